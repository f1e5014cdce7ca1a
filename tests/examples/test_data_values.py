"""The demo does what it says: on the vendors' labels, at small size, through its command line."""

import io
import re
from contextlib import redirect_stdout
from itertools import combinations
from math import comb
from typing import NamedTuple

import numpy as np
import pytest
from sklearn.datasets import load_breast_cancer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from examples import data_values as demo

SEED, MODELS = 3, 1200
NUMBER = r"[+-]?\d[\d,]*(?:\.\d+)?"


class Run(NamedTuple):
    text: str
    data: demo.Data
    answers: dict[str, demo.Answer]


@pytest.fixture(scope="module")
def run() -> Run:
    answers: dict[str, demo.Answer] = {}
    value_labels = demo.value_labels

    def kept(*arguments, **settings):
        answers.update(value_labels(*arguments, **settings))
        return answers

    with pytest.MonkeyPatch.context() as patch, redirect_stdout(io.StringIO()) as printed:
        patch.setattr(demo, "value_labels", kept)
        demo.main(["--models", str(MODELS), "--seed", str(SEED)])
    return Run(printed.getvalue(), demo.load_data(SEED), answers)


def line_of(text: str, start: str) -> list[float]:
    """Return the numbers of the line that starts so, after its start."""
    line = next(line for line in text.splitlines() if line.strip().startswith(start))
    rest = line.strip().removeprefix(start)
    return [float(number.replace(",", "")) for number in re.findall(NUMBER, rest)]


def accuracy(rows, data, test):
    """Return the accuracy in percent of scikit-learn trained on some rows; constant on none."""
    labels = data.given[rows]
    if len(rows) == 0 or len(np.unique(labels)) == 1:
        guess = np.argmax(np.bincount(data.given)) if len(rows) == 0 else labels[0]
        return 100 * np.mean(test.labels() == guess)
    fitted = LogisticRegression(C=0.1, tol=1e-8).fit(data.train.features("train")[rows], labels)
    return 100 * fitted.score(test.features("test"), test.labels())


def test_labels_are_wrong_where_a_vendor_is_careless_and_right_outside_the_training_set():
    data = demo.load_data(SEED)
    target = load_breast_cancer().target
    assert np.array_equal(data.given != target[data.train.ids], data.wrong)
    counts = {name: int(data.wrong[data.vendor == name].sum()) for name in demo.VENDORS}
    assert counts == {name: 16 if name == "C" else 2 for name in "ABCDEF"}
    ids = np.concatenate([data.train.ids, data.validation.ids, data.test.ids])
    assert np.array_equal(np.sort(ids), np.arange(len(target)))
    for clean in (data.validation, data.test):
        assert np.array_equal(clean.labels(), target[clean.ids])


def test_the_table_is_that_of_the_answers(run):
    counted = []
    for name, (influence, _) in run.answers.items():
        trained, reused, _, found, area = line_of(run.text, name + " ")
        order = np.argsort(influence.values)
        assert found == pytest.approx(run.data.wrong[order[:24]].sum(), abs=1)  # ties
        assert area == pytest.approx(roc_auc_score(run.data.wrong, -influence.values), abs=0.006)
        counted.append((name, trained, reused))
    assert line_of(run.text, "by chance") == pytest.approx([2.6, 0.5])
    done = {name: rest for name, *rest in counted}
    assert done["LeaveOneOut, retrained"] == [241, 0]
    trained, reused = done["Shapley"]
    assert trained > 0.95 * MODELS and trained + reused <= MODELS
    for name in ("Shapley of the risk", "BetaShapley(1, 4)"):
        assert done[name] == [0, trained + reused]  # the same subsets, and nothing else
    assert done["DataOOB"] == [MODELS // 20, 0]


@pytest.mark.parametrize(
    ("name", "least"),
    [
        ("LeaveOneOut, Newton", 0.85),
        ("BetaShapley(1, 4)", 0.85),
        ("Banzhaf", 0.8),
        ("DataOOB", 0.9),
    ],
)
def test_wrong_labels_are_found_far_better_than_by_chance(run, name, least):
    assert roc_auc_score(run.data.wrong, -run.answers[name].influence.values) > least


def test_leave_one_out_is_that_of_a_loop_over_scikit_learn(run):
    data = run.data
    X, test = data.train.features("train"), data.validation
    features, labels = test.features("test"), test.labels()

    def risk(rows):
        fitted = LogisticRegression(C=0.1, tol=1e-8).fit(X[rows], data.given[rows])
        chances = fitted.predict_proba(features)[np.arange(len(labels)), labels]
        return -np.log((1 - 1e-3) * chances + 1e-3 / 2).sum()

    everyone = np.arange(240)
    some = everyone[::24]
    anew = [risk(np.delete(everyone, i)) - risk(everyone) for i in some]
    retrained = run.answers["LeaveOneOut, retrained"].influence.values
    assert retrained[some] == pytest.approx(np.array(anew), abs=1e-4)
    newton = run.answers["LeaveOneOut, Newton"].influence.values
    (said,) = re.findall(r"240 retrainings: correlation (\S+)", run.text)
    assert float(said) == pytest.approx(np.corrcoef(newton, retrained)[0, 1], abs=1e-4)
    assert float(said) > 0.99


def test_values_of_the_vendors_are_exact_and_sum_to_what_the_labels_add(run):
    data = run.data
    worth = {
        members: accuracy(np.flatnonzero(np.isin(data.vendor, members)), data, data.validation)
        for size in range(7)
        for members in combinations("ABCDEF", size)
    }
    values = run.answers["Shapley"].influence.values * 100 / 165
    for name in "ABCDEF":
        others = [members for members in worth if name not in members]
        exact = sum(
            (worth[tuple(sorted((*members, name)))] - worth[members]) / comb(5, len(members)) / 6
            for members in others
        )
        wrong, labels, value, error, mean, mean_error = line_of(run.text, name + "  ")
        its = data.vendor == name
        assert (wrong, labels) == (data.wrong[its].sum(), 40)
        assert value == pytest.approx(exact, abs=0.006)
        assert 0 < error < 3
        assert mean == pytest.approx(values[its].mean(), abs=6e-4)
        assert mean_error == pytest.approx(values[its].std(ddof=1) / np.sqrt(40), abs=6e-4)
    gain = worth[tuple("ABCDEF")] - worth[()]
    assert line_of(run.text, "sum") == pytest.approx([gain, gain], abs=0.006)
    assert line_of(run.text, "What the labels add") == pytest.approx([gain], abs=0.006)


def test_the_careless_vendor_is_worth_least(run):
    values = {name: line_of(run.text, name + "  ")[2] for name in "ABCDEF"}
    assert min(values, key=values.__getitem__) == demo.CARELESS


def test_the_worst_labels_are_listed_with_their_errors(run):
    influence = run.answers["Shapley"].influence
    rows = re.findall(r"^ *(\d+)   ([A-F]) +(\d)   (wrong|right)   (\S+) ± (\S+)$", run.text, re.M)
    worst = np.argsort(influence.values)[:8]
    assert [int(row) for row, *_ in rows] == run.data.train.ids[worst].tolist()
    for at, (_, vendor, label, verdict, value, error) in zip(worst, rows, strict=True):
        assert vendor == run.data.vendor[at] and int(label) == run.data.given[at]
        assert (verdict == "wrong") == run.data.wrong[at]
        assert float(value) == pytest.approx(influence.values[at] * 100 / 165, abs=6e-4)
        assert float(error) == pytest.approx(influence.std_error[at] * 100 / 165, abs=6e-4)


def test_retraining_is_scikit_learns(run):
    without = {
        "nothing": [],
        "the 26 wrong ones": np.flatnonzero(run.data.wrong),
        "the worst 24 by DataOOB": np.argsort(run.answers["DataOOB"].influence.values)[:24],
    }
    for what, rows in without.items():
        kept = np.delete(np.arange(240), np.asarray(rows, dtype=int))
        said = line_of(run.text, what)[-1]
        assert said == pytest.approx(accuracy(kept, run.data, run.data.test), abs=0.06)


def test_it_fits_the_screen(run):
    assert max(map(len, run.text.splitlines())) <= 100
