"""The demo does what it says: on the digits, at small size, through its command line."""

import io
import re
from contextlib import redirect_stdout
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
from sklearn.datasets import load_digits
from sklearn.metrics import average_precision_score, roc_auc_score

torch = pytest.importorskip("torch")

import proponent as pp  # noqa: E402
from examples import digits_mislabels as demo  # noqa: E402
from proponent.datasets import digits  # noqa: E402

SEED = 3
SAVED = {
    "tracincp-self-influence",
    "tracinlast-self-influence",
    "tracincp-on-validation",
    "tracinlast-on-validation",
    "gas-on-validation",
    "gas-on-wrong-predictions",
}


class Run(NamedTuple):
    folder: Path
    text: str
    data: demo.Data
    wrong: np.ndarray  # of the training labels, found without the library


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("digits")
    with redirect_stdout(io.StringIO()) as printed:
        demo.main(["--quick", "--seed", str(SEED), "--out", str(folder)])
    data = demo.load_data(SEED)
    wrong = data.train.labels() != load_digits().target[data.train.ids]
    return Run(folder, printed.getvalue(), data, wrong)


def test_digits_are_those_of_scikit_learn() -> None:
    images, labels = digits()
    bunch = load_digits()
    assert images.dtype == np.float32 and labels.dtype == np.int64
    assert np.array_equal(16 * images.reshape(1797, 64), bunch.data)
    assert np.array_equal(labels, bunch.target)


def test_only_training_labels_are_flipped_and_no_image_is_in_two_sets() -> None:
    data = demo.load_data(SEED)
    target = load_digits().target
    ids = np.concatenate([data.train.ids, data.validation.ids, data.test.ids])
    assert np.array_equal(np.sort(ids), np.arange(1797))
    assert np.array_equal(data.train.labels() != target[data.train.ids], data.flipped)
    assert data.flipped.sum() == 100
    for clean in (data.validation, data.test):
        assert np.array_equal(clean.labels(), target[clean.ids])
        assert np.array_equal(clean.batch(slice(None))[0], data.images[clean.ids])


def test_flipped_labels_are_found_far_better_than_by_chance(run: Run) -> None:
    table = pd.read_csv(run.folder / "mislabel_detection.csv", index_col="method")
    assert list(table.index) == [*demo.SELF_INFLUENCE, *demo.ON_VALIDATION, "loss", "random"]
    good = table.loc[["TracInCP self-influence", "TracInLast self-influence", "GAS on validation"]]
    assert (good["auroc"] > 0.95).all()
    assert (good["found"] > 0.7).all()
    assert table.loc["random", "auroc"] == 0.5
    assert (table["seconds"].drop("random") > 0).all()


@pytest.mark.parametrize("name", [*demo.SELF_INFLUENCE, *demo.ON_VALIDATION])
def test_the_table_follows_from_the_saved_influence(run: Run, name: str) -> None:
    table = pd.read_csv(run.folder / "mislabel_detection.csv", index_col="method")
    answer = pp.Influence.load(run.folder / "influence" / name.lower().replace(" ", "-"))
    assert np.array_equal(answer.train_ids, run.data.train.ids)
    suspicion = answer.values if "self" in name else -answer.values
    worst = np.argsort(-suspicion)[:100]
    assert table.loc[name, "auroc"] == pytest.approx(roc_auc_score(run.wrong, suspicion))
    assert table.loc[name, "average_precision"] == pytest.approx(
        average_precision_score(run.wrong, suspicion)
    )
    assert table.loc[name, "found"] == pytest.approx(run.wrong[worst].mean())


def test_the_recorded_run_is_complete_and_is_that_of_the_printed_network(run: Run) -> None:
    network = demo.new_network(0)
    recorded = pp.TrainingRun.load(run.folder / "run", network)
    recorded.check_train(run.data.train)
    assert recorded.complete
    assert len(recorded.steps) == 10 * 16  # 1,000 images in batches of 64
    assert len(recorded.checkpoints) == 10 + 1
    network.load_state_dict(recorded.final_state())
    images, labels = run.data.test.batch(slice(None))
    with torch.no_grad():
        right = (network(images).argmax(1) == labels).double().mean()
    assert f"Accuracy on 500 test images:  {right:.1%}" in run.text


def test_retraining_on_everything_gives_the_same_network_again(run: Run) -> None:
    first = re.search(r"test images: +(\S+%)", run.text)
    again = re.search(r"^nothing +(\S+%)", run.text, re.MULTILINE)
    assert first and again and first[1] == again[1]


def test_pictures_are_captioned_with_the_strongest_and_fit_the_screen(run: Run) -> None:
    assert {path.name for path in (run.folder / "influence").iterdir()} == SAVED
    influence = pp.Influence.load(run.folder / "influence" / "gas-on-wrong-predictions")
    lines = run.text.splitlines()
    assert max(map(len, lines)) <= 100
    captions = [number for number, line in enumerate(lines) if line.startswith("#")]
    assert len(captions) == 5 == len(influence)
    target = load_digits().target
    given = dict(zip(run.data.train.ids, run.data.train.labels(), strict=True))
    for row, number in enumerate(captions):
        order = np.argsort(-influence.values[row])
        columns = [*order[:3], *order[:-4:-1]]
        ids = influence.train_ids[columns]
        test = influence.test_ids[row]
        assert re.findall(r"#(\d+)", lines[number]) == [str(index) for index in [test, *ids]]
        labels = re.findall(r"label (\d)(?:, is (\d))?", lines[number + 1])
        assert labels == [(str(target[test]), "")] + [
            (str(given[i]), "" if given[i] == target[i] else str(target[i])) for i in ids
        ]
        said, scores = lines[number + 2].split("│", 1)
        assert int(said.split()[1]) != target[test]
        values = influence.values[row, columns]
        assert re.findall(r"[+-]\d\.\d{3}", scores) == [f"{value:+.3f}" for value in values]


def test_a_picture_has_ink_where_the_image_has() -> None:
    image = np.zeros((1, 8, 8), dtype=np.float32)
    assert demo.picture(image) == [" " * 12] * 6
    image[0, :, :4] = 1
    assert demo.picture(image) == ["█" * 6 + " " * 6] * 6
    image = np.zeros((1, 8, 8), dtype=np.float32)
    image[0, :2] = 1  # a quarter of the height: 3 of 12 rows of pixels
    assert demo.picture(image) == ["█" * 12, "▀" * 12] + [" " * 12] * 4


def test_what_is_removed_is_not_trained_on(monkeypatch: pytest.MonkeyPatch) -> None:
    data = demo.load_data(SEED)
    trained: list[tuple[list[int], int]] = []

    def always_seven(train: pp.Instances, path: Path, *, epochs: int, seed: int) -> object:
        trained.append((train.ids.tolist(), seed))
        return lambda images: torch.nn.functional.one_hot(torch.full((len(images),), 7), 10)

    monkeypatch.setattr(demo, "train_network", always_seven)
    accuracies = demo.accuracies_without(np.array([0, 999]), data, epochs=1, seeds=range(4, 6))
    assert trained == [(data.train.ids[1:-1].tolist(), 4), (data.train.ids[1:-1].tolist(), 5)]
    assert accuracies == pytest.approx(np.full(2, np.mean(data.test.labels() == 7)))
