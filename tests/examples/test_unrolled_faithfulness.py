"""The example does what it says: at small size, through its command line."""

import io
from contextlib import redirect_stdout
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr

torch = pytest.importorskip("torch")

import proponent as pp  # noqa: E402
from examples import unrolled_faithfulness as demo  # noqa: E402

SEED = 3
OTHERS = ["SOURCE", "influence functions", "TracIn", "TracInCP", "random"]


class Run(NamedTuple):
    folder: Path
    text: str


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("unrolled")
    with redirect_stdout(io.StringIO()) as printed:
        demo.main(["--quick", "--seed", str(SEED), "--out", str(folder)])
    return Run(folder, printed.getvalue())


@pytest.fixture(scope="module")
def correlations(run: Run) -> pd.DataFrame:
    return pd.read_csv(run.folder / "correlations-SGD.csv", index_col="image")


@pytest.mark.parametrize("training", list(demo.TRAININGS))
def test_the_truth_is_a_plain_training_without_the_image(training: str) -> None:
    data = demo.load_data(30, 4, SEED)
    batches = demo.draw_batches(30, 6, SEED)
    truth, whole = demo.leave_one_out(training, data, batches, SEED)
    images, labels = data.train.batch(slice(None))
    test_images, test_labels = data.test.batch(slice(None))

    def risks(left_out: int | None) -> np.ndarray:
        network = demo.new_network(SEED)
        optimizer = demo.TRAININGS[training](network.parameters())
        for batch in batches:
            kept = batch[batch != left_out] if left_out is not None else batch
            optimizer.zero_grad()
            summed = torch.nn.CrossEntropyLoss(reduction="sum")
            (summed(network(images[kept]), labels[kept]) / len(batch)).backward()
            optimizer.step()
        if left_out is None:
            for name, value in network.named_parameters():
                assert torch.allclose(value, whole[name], rtol=0, atol=1e-12)
        each = torch.nn.CrossEntropyLoss(reduction="none")
        return each(network(test_images), test_labels).detach().numpy()

    for position in (0, 17, int(batches[-1][0])):
        assert truth[:, position] == pytest.approx(risks(position) - risks(None), abs=1e-10)
        assert np.abs(truth[:, position]).max() > 1e-6


def test_correlations_are_those_of_the_recorded_run(run: Run, correlations: pd.DataFrame) -> None:
    data = demo.load_data(100, 20, SEED)
    batches = demo.draw_batches(100, 100, SEED)
    assert np.array_equal(correlations.index, data.test.ids)
    recorded = pp.TrainingRun.load(
        run.folder / "run-SGD", demo.new_network(0), loss="cross_entropy"
    )
    truth, _ = demo.leave_one_out("SGD", data, batches, SEED)
    influence = pp.HyDRA().fit(recorded, data.train).influence(data.test)
    expected = [spearmanr(*pair).statistic for pair in zip(influence.values, truth, strict=True)]
    assert correlations["HyDRA"].to_numpy() == pytest.approx(expected, abs=1e-9)


def test_unrolling_predicts_retraining_better_than_the_others(correlations: pd.DataFrame) -> None:
    assert list(correlations) == [demo.HYDRA, demo.FAST, demo.SGD_INFLUENCE, *OTHERS]
    mean = correlations.mean()
    for name in (demo.HYDRA, demo.SGD_INFLUENCE):
        assert mean[name] > 0.7
        ahead = correlations[[name]].to_numpy() - correlations[OTHERS].to_numpy()
        assert (ahead.mean(0) > 0).all()
        assert ahead[:, OTHERS.index("TracIn")].mean() > 0.2
    assert abs(mean["random"]) < 0.1


def test_the_table_follows_from_the_correlations(run: Run, correlations: pd.DataFrame) -> None:
    table = pd.read_csv(run.folder / "table-SGD.csv", index_col="method")
    assert table["mean"].to_numpy() == pytest.approx(correlations.mean().to_numpy())
    for name, row in table.iterrows():
        error = correlations[name].std() / np.sqrt(len(correlations))
        assert row["high"] - row["low"] == pytest.approx(2 * 1.96 * error, rel=0.15)
        assert row["low"] < row["mean"] < row["high"]
        assert f"{row['mean']:.3f} [{row['low']:.3f}, {row['high']:.3f}]" in run.text
    paired = correlations[demo.HYDRA] - correlations["TracIn"]
    row = table.loc["TracIn"]
    assert row["HyDRA ahead"] == pytest.approx(paired.mean())
    error = paired.std() / np.sqrt(len(paired))
    assert row["HyDRA ahead, high"] - row["HyDRA ahead, low"] == pytest.approx(
        2 * 1.96 * error, rel=0.15
    )


def test_lines_fit_the_screen(run: Run) -> None:
    assert "the network is the recorded one to 0e+00" in run.text
    assert max(len(line) for line in run.text.splitlines() if "Saved" not in line) <= 100
