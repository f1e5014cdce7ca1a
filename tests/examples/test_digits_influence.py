"""The demo does what it says: on the digits, at small size, through its command line."""

import io
import re
from contextlib import redirect_stdout
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from sklearn.datasets import load_digits

torch = pytest.importorskip("torch")

import proponent as pp  # noqa: E402
from examples import digits_influence as demo  # noqa: E402

SEED = 1
RECIPE = demo.Recipe(hidden=(8, 6), epochs=3, batch_size=7)
INTERVAL = r"(-?\d\.\d{3}) \[(-?\d\.\d{3}), (-?\d\.\d{3})\]"


@pytest.fixture
def data() -> demo.Data:
    return demo.load_data(30, 20, noise=0.0, seed=SEED)


class Row(NamedTuple):
    one: tuple[float, ...]  # the score and its interval
    several: tuple[float, ...]
    rest: str


@pytest.fixture(scope="module")
def printed() -> str:
    with redirect_stdout(io.StringIO()) as text:
        demo.main(["--quick"])
    return text.getvalue()


@pytest.fixture(scope="module")
def table(printed: str) -> dict[str, Row]:
    rows = {}
    for line in printed.splitlines():
        if found := re.match(rf"(\w.*\S) +{INTERVAL} +{INTERVAL} +(.*)", line):
            name, *numbers, rest = found.groups()
            values = tuple(map(float, numbers))
            rows[name] = Row(values[:3], values[3:], rest)
    return rows


def test_gauss_newton_influence_predicts_best(printed: str, table: dict[str, Row]) -> None:
    assert list(table) == [*demo.methods(RECIPE), "random"]
    ceiling = float(re.search(r"Noise ceiling.* (\d\.\d{3})$", printed, re.MULTILINE)[1])
    best = table.pop(demo.GGN)
    assert 0.65 < best.one[0] < best.several[0] < ceiling < 1
    for name, other in table.items():
        assert best.one[0] > other.one[0] and best.several[0] > other.several[0], name
    for name in ("gradient cosine", "gradient dot product", "TracInCP", "random"):
        assert best.one[1] > table[name].one[2], name  # the intervals do not meet


def test_random_scores_predict_nothing(table: dict[str, Row]) -> None:
    value, low, high = table["random"].one
    assert abs(value) < 0.1
    assert low < 0 < high


def test_only_training_labels_are_flipped_and_no_image_is_in_both_sets() -> None:
    noisy = demo.load_data(200, 100, noise=0.2, seed=SEED)
    target = load_digits().target
    assert len(np.unique([*noisy.train.ids, *noisy.test.ids])) == 300
    assert (noisy.train.labels() != target[noisy.train.ids]).sum() == 40
    assert np.array_equal(noisy.test.labels(), target[noisy.test.ids])
    pixels = load_digits().data[noisy.train.ids] / 16
    assert np.array_equal(noisy.train.batch(slice(None))[0], pixels.astype(np.float32))


def test_networks_side_by_side_are_trained_as_one_alone(data: demo.Data, tmp_path: Path) -> None:
    rows = np.stack([np.arange(30), np.random.default_rng(0).permutation(30)])
    together = demo.train_many(RECIPE, data, rows, [5, 9])
    for position, seed in enumerate([5, 9]):
        chosen = demo.Data(data.train.select(rows[position]), data.test)
        run = demo.train_network(RECIPE, chosen, tmp_path / str(seed), seed)
        assert len(run.steps) == 3 * 5
        start = RECIPE.network(seed).state_dict()
        for name, value in run.final_state().items():
            assert torch.allclose(together[name][position], value, atol=1e-6)
            assert not torch.allclose(start[name], value, atol=1e-3)


def test_every_network_is_trained_on_its_subset_with_its_seed(
    data: demo.Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "TOGETHER", 4)  # of six, so that the last two are left over
    subsets = np.random.default_rng(0).permuted(np.arange(30) < np.full((3, 1), 15), axis=1)
    measured = demo.measure(RECIPE, data, subsets, repeats=2, first_seed=40)
    assert measured.shape == (3, 2, 20)
    images, labels = data.test.batch(slice(None))
    for subset in range(3):
        for repeat in range(2):
            seed = 40 + 2 * subset + repeat
            half = demo.Data(data.train.select(np.flatnonzero(subsets[subset])), data.test)
            run = demo.train_network(RECIPE, half, tmp_path / str(seed), seed)
            with torch.no_grad(), run.model.at(run.final_state()):
                p = torch.softmax(run.model.module(images).double(), 1)[torch.arange(20), labels]
            assert np.allclose(measured[subset, repeat], torch.log(p / (1 - p)), atol=1e-4)


def test_dampings_are_tried_only_where_the_matrix_is_not_singular(
    data: demo.Data, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = demo.Recipe(hidden=(4,), epochs=2, weight_decay=0.0)
    run = demo.train_network(recipe, data, tmp_path / "run", 0)
    subsets = pp.evaluation.random_subsets(30, 5, seed=0)
    measured = np.random.default_rng(0).normal(size=(5, 1, 20))
    demo.sweep(recipe, data, run, subsets, measured)
    tried = [float(line.split()[0]) for line in capsys.readouterr().out.splitlines()[2:]]
    assert tried == list(demo.DAMPINGS[1:])
