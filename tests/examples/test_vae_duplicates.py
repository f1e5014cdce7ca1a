"""The example does what it says: at small size, through its command line."""

import io
import re
from contextlib import redirect_stdout
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import proponent as pp  # noqa: E402
from examples import vae_duplicates as demo  # noqa: E402

SEED = 1


class Run(NamedTuple):
    folder: Path
    text: str


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("vae")
    with redirect_stdout(io.StringIO()) as printed:
        demo.main(["--quick", "--seed", str(SEED), "--out", str(folder)])
    return Run(folder, printed.getvalue())


def test_twins_are_equal_and_nothing_else_is() -> None:
    data = demo.load_data(SEED, n=400, planted=20)
    (images,) = data.train.batch(slice(None))
    assert images.shape == (400, 64)
    assert torch.equal(images[data.originals], images[data.copies])
    assert len(torch.unique(images, dim=0)) == 380


def test_places_are_counted_without_the_image_itself() -> None:
    data = demo.Data(pp.Instances.of(np.zeros((4, 1))), np.array([0, 1]), np.array([2, 3]))
    influence = pp.Influence([[9.0, 1.0, 2.0, 3.0], [0.0, 9.0, 0.0, 5.0]])
    assert demo.ranks_of_twins(influence, data).tolist() == [2, 1]


def test_vae_tracin_finds_the_planted_twins(run: Run) -> None:
    influence = pp.Influence.load(run.folder / "vaetracin")
    data = demo.load_data(SEED, n=400, planted=20)
    assert np.array_equal(influence.test_ids, data.originals)
    found = 0
    for original, twin in zip(data.originals, data.copies, strict=True):
        others = [i for i in influence.proponents(6).ids[original] if i != original][:5]
        found += twin in others
    assert found >= 17  # by chance a quarter of one
    assert np.median(demo.ranks_of_twins(influence, data)) <= 2
    line = re.search(r"^VAETracIn +\d+% +(\d+)%", run.text, re.MULTILINE)
    assert line and int(line[1]) == round(100 * found / 20)


def test_more_draws_find_more(run: Run) -> None:
    data = demo.load_data(SEED, n=400, planted=20)
    ranks = [
        np.median(demo.ranks_of_twins(pp.Influence.load(run.folder / name), data))
        for name in ("vaetracin", "vaetracin-1-draw")
    ]
    assert ranks[0] < ranks[1]


def test_shared_draws_overstate_memorization(run: Run) -> None:
    last = run.text.split("influence of an image on itself")[1]
    own = {name: float(value) for name, value in re.findall(r"^(\S.*?)  +(\S+)$", last, re.M)}
    assert own["TracInCP, 1 shared draw"] > 1.1 * own["VAETracIn"]


def test_the_recorded_run_is_complete(run: Run) -> None:
    data = demo.load_data(SEED, n=400, planted=20)
    recorded = pp.TrainingRun.load(run.folder / "run", demo.VAE(), risk=pp.BetaVAERisk())
    recorded.check_train(data.train)
    assert recorded.complete and len(recorded.steps) == 30 * 8
    assert max(len(line) for line in run.text.splitlines() if "Saved" not in line) <= 100
