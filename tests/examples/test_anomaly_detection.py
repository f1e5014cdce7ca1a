"""The example does what it says: at small size, through its command line."""

import io
from contextlib import redirect_stdout
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
from scipy.stats import ttest_1samp
from sklearn.datasets import load_digits
from sklearn.metrics import roc_auc_score

torch = pytest.importorskip("torch")

import proponent as pp  # noqa: E402
from examples import anomaly_detection as demo  # noqa: E402

SEED = 2
ADDED = ["TracInAD", "TracInAD, late", "TracInAD, late, last layer"]
DETECTORS = [demo.RISK_DETECTOR, demo.FOREST, *ADDED]


class Run(NamedTuple):
    folder: Path
    text: str


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("anomalies")
    with redirect_stdout(io.StringIO()) as printed:
        demo.main(["--quick", "--seed", str(SEED), "--out", str(folder)])
    return Run(folder, printed.getvalue())


def test_the_held_out_class_is_never_trained_on() -> None:
    target = load_digits().target
    data = demo.load_data(4, SEED)
    assert len(data.train) == demo.TRAINED_ON
    assert 4 not in target[data.train.ids]
    assert np.array_equal(target[data.test.ids] == 4, data.anomalous)
    together = np.concatenate([data.train.ids, data.test.ids])
    assert np.array_equal(np.sort(together), np.arange(1797))


def test_the_table_follows_from_the_saved_scores(run: Run) -> None:
    table = pd.read_csv(run.folder / "auroc.csv", index_col="detector")
    assert list(table.index) == DETECTORS
    target = load_digits().target
    for held_out in range(3):
        scores = pd.read_csv(run.folder / f"scores-{held_out}.csv", index_col="image")
        wrong = target[scores.index] == held_out
        for name in DETECTORS:
            expected = roc_auc_score(wrong, scores[name])
            assert table.loc[name, str(held_out)] == pytest.approx(expected)
        for name in ADDED:
            assert (scores[f"{name}, std_error"] > 0).all()


def test_intervals_are_those_of_a_mean(run: Run) -> None:
    table = pd.read_csv(run.folder / "auroc.csv", index_col="detector")
    for _, row in table.iterrows():
        each = row[["0", "1", "2"]].to_numpy(float)
        interval = ttest_1samp(each, 0.5).confidence_interval(0.95)
        assert row["mean"] == pytest.approx(each.mean())
        assert (row["low"], row["high"]) == pytest.approx((interval.low, interval.high))
        assert f"{row['mean']:.2f}  " in run.text


def test_baselines_find_zeros(run: Run) -> None:
    table = pd.read_csv(run.folder / "auroc.csv", index_col="detector")
    assert (table.loc[[demo.RISK_DETECTOR, demo.FOREST], "0"] > 0.65).all()


def test_saved_scores_are_the_mean_influence_of_a_sample(run: Run) -> None:
    data = demo.load_data(1, SEED)
    recorded = pp.TrainingRun.load(run.folder / "run-1", demo.VAE(), risk=demo.RISK)
    recorded.check_train(data.train)
    method = demo.detectors(recorded, SEED)["TracInAD, late, last layer"]
    whole = pp.TracInAD(None, seed=SEED, checkpoints=method.checkpoints, parameters="last")
    everything = whole.fit(recorded, data.train).anomaly_scores(data.test)
    saved = pd.read_csv(run.folder / "scores-1.csv", index_col="image")
    assert np.array_equal(saved.index, everything.ids)
    name = "TracInAD, late, last layer"
    distance = (saved[name] - everything.values) / saved[f"{name}, std_error"]
    assert distance.abs().median() < 3


def test_lines_fit_the_screen(run: Run) -> None:
    assert max(len(line) for line in run.text.splitlines() if "Saved" not in line) <= 100
    assert "3 held-out classes, 6 epochs each" in run.text
