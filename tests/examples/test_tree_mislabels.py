"""The demo of the trees does what it says: on the table, through its command line."""

import io
import re
from contextlib import redirect_stdout

import numpy as np
import pytest
from sklearn.datasets import load_breast_cancer
from sklearn.metrics import average_precision_score, roc_auc_score

from examples import tree_mislabels as demo
from proponent import BoostIn

SEED = 3


@pytest.fixture(scope="module")
def text():
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(io.StringIO()) as printed:
        patch.setattr(demo, "SPLITS", 3)
        demo.main(["--seed", str(SEED)])
    return printed.getvalue()


def test_only_training_labels_are_flipped_and_no_row_is_in_two_sets():
    data = demo.load_data(SEED)
    table, target = load_breast_cancer(return_X_y=True)
    ids = np.concatenate([data.train.ids, data.validation.ids, data.test.ids])
    assert np.array_equal(np.sort(ids), np.arange(569))
    assert np.array_equal(data.right, target[data.train.ids])
    assert np.array_equal(data.train.labels() != data.right, data.flipped)
    assert data.flipped.sum() == 30
    for clean in (data.validation, data.test):
        assert np.array_equal(clean.labels(), target[clean.ids])
    assert np.array_equal(data.train.features("train"), table[data.train.ids])


@pytest.mark.parametrize("library", demo.LIBRARIES)
def test_flipped_labels_are_found_far_better_than_by_chance(library):
    if library != "scikit-learn":
        pytest.importorskip(library)
    data = demo.load_data(SEED)
    suspicion, detection = demo.find_flipped(demo.fitted(library, data.train), data)
    table = detection.table()
    assert list(table.index) == [*suspicion, "loss", "random"]
    for name, found in suspicion.items():
        assert table.loc[name, "auroc"] == pytest.approx(roc_auc_score(data.flipped, found))
        expected = average_precision_score(data.flipped, found)
        assert table.loc[name, "average_precision"] == pytest.approx(expected)
    for name in ("BoostIn", "LeafInfluence", "LeafRefit"):
        assert table.loc[f"{name}, itself", "auroc"] > 0.95
        assert table.loc[f"{name}, itself", "found"] > 0.6
        assert table.loc[f"{name}, validation", "auroc"] > 0.8


def test_what_is_printed_is_what_was_found(text):
    data = demo.load_data(SEED)
    model = demo.fitted("scikit-learn", data.train)
    suspicion, _ = demo.find_flipped(model, data)
    order = np.argsort(-suspicion[demo.SHOWN])
    target, names = load_breast_cancer().target, ["malignant", "benign"]
    shown = re.findall(r"^  row +(\d+)  (\w+) +(flipped|right)$", text, re.MULTILINE)
    assert [int(row) for row, _, _ in shown] == data.train.ids[order[:8]].tolist()
    given = dict(zip(data.train.ids, data.train.labels(), strict=True))
    for row, label, verdict in shown:
        assert label == names[given[int(row)]]
        assert (verdict == "flipped") == (given[int(row)] != target[int(row)])
    assert max(map(len, text.splitlines())) <= 100


def test_what_is_removed_is_not_trained_on():
    data = demo.load_data(SEED)
    X, y = data.train.features("train"), data.train.labels()
    model = demo.new_model("scikit-learn").fit(X, y)
    risk_of_itself = BoostIn().fit(model, (X, y)).influence((X, y)).values.diagonal()
    worst = np.argsort(-risk_of_itself)[:30]
    found = demo.accuracies_without("scikit-learn", SEED)
    for start, rows in (("nothing", []), ("the worst 30 by BoostIn, itself", worst),
                        ("the 30 that were flipped", data.flipped)):  # fmt: skip
        keep = np.ones(300, dtype=bool)
        keep[rows] = False
        model = demo.new_model("scikit-learn").fit(X[keep], y[keep])
        score = model.score(data.test.features("test"), data.test.labels())
        assert found[start] == pytest.approx(score, abs=1e-12)


def test_means_and_errors_of_accuracies_are_those_of_the_splits(text):
    splits = [demo.accuracies_without("scikit-learn", SEED + at) for at in range(3)]
    for what in splits[0]:
        all_splits = np.array([found[what] for found in splits])
        line = next(line for line in text.splitlines() if line.startswith(f"  {what}  "))
        numbers = re.findall(r"[+-]?\d+\.\d", line)
        assert numbers[0] == f"{100 * all_splits.mean():.1f}"
        if what != "nothing":
            gains = 100 * (all_splits - [found["nothing"] for found in splits])
            error = np.sqrt(np.var(gains, ddof=1) / 3)
            assert numbers[1:] == [f"{gains.mean():+.1f}", f"{error:.1f}"]
