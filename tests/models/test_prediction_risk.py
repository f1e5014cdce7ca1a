"""Labels of any kind, risks of predictions, and what is predicted without a training instance."""

import math

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import brier_score_loss, log_loss

from proponent.data import Instances
from proponent.exceptions import InvalidInputError, MethodCapabilityError, NonFiniteError
from proponent.models.prediction_risk import (
    Classes,
    Classification,
    Regression,
    classification_risks,
    regression_risks,
    targets_of,
)


def instances(labels):
    labels = labels if hasattr(labels, "iloc") else np.asarray(labels)
    return Instances.of((np.zeros((len(labels), 1)), labels))


KINDS = {
    "from one": [2, 1, 2, 1],
    "text": ["no", "maybe", "no", "maybe"],
    "objects of text": np.array(["no", "maybe", "no", "maybe"], dtype=object),
    "booleans": [True, False, True, False],
    "whole floats": [7.0, -3.0, 7.0, -3.0],
    "objects of numbers": np.array([7, -3, 7, -3], dtype=object),
    "categorical": pd.Series(["no", "maybe", "no", "maybe"], dtype="category"),
    "a column": np.array([[2], [1], [2], [1]]),
    "nullable": pd.Series([7, -3, 7, -3], dtype="Int64"),
}


@pytest.mark.parametrize("labels", KINDS.values(), ids=KINDS.keys())
def test_labels_of_any_kind_are_positions_among_sorted_ones(labels):
    found = instances(labels).labels()
    classes = Classes.of(found)
    assert classes.positions(found).tolist() == [1, 0, 1, 0]
    assert classes.counts.tolist() == [2, 2]
    # Positions are those of the whole training set, whatever the test set lacks.
    assert classes.positions(found[:1]).tolist() == [1]


def test_numbers_of_another_type_are_the_same_classes():
    classes = Classes.of(np.array([1, 2, 3]))
    assert classes.positions(np.array([3.0, 1.0])).tolist() == [2, 0]


def test_a_longer_text_is_not_cut_to_a_class():
    classes = Classes.of(np.array(["cat", "dog"]))
    with pytest.raises(InvalidInputError, match="'category'"):
        classes.positions(np.array(["category"]))


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ([0.5, 1.5], "are no classes"),
        ([0.0, np.nan], "are no classes"),
        (np.array(["a", None], dtype=object), "are no classes"),
        (np.eye(2), "argmax"),
        ([], "empty"),
    ],
)
def test_what_is_no_class_is_refused(labels, words):
    with pytest.raises(InvalidInputError, match=words):
        Classes.of(np.asarray(labels))


def test_unseen_labels_are_named():
    classes = Classes.of(np.array([1, 2]))
    with pytest.raises(InvalidInputError, match=r"test: the labels 0, 9 are none of .*\(1, 2\)"):
        classes.positions(np.array([1, 9, 0, 9]))
    with pytest.raises(InvalidInputError, match="both as text or both as numbers"):
        classes.positions(np.array(["1"]))


def test_constant_models():
    classes = Classes.of(np.array(["b", "a", "b", "b"]))
    judged = Classification(classes)
    np.testing.assert_allclose(judged.constant("prior"), [2 / 6, 4 / 6])
    np.testing.assert_allclose(judged.constant("uniform"), [0.5, 0.5])
    assert classes.only(1).tolist() == [0, 1]
    with pytest.raises(MethodCapabilityError, match="'prior' or 'uniform'"):
        judged.constant("init")
    regression = Regression.of(np.array([[1.0, 2.0], [3.0, 8.0]]))
    assert regression.constant("prior").tolist() == [2.0, 5.0]
    with pytest.raises(MethodCapabilityError, match="mean target"):
        regression.constant("uniform")


def test_cross_entropy_is_sklearns_and_smoothing_mixes_the_uniform_in(rng):
    probabilities = rng.dirichlet(np.ones(3), size=6)
    targets, ids = np.array([0, 1, 2, 0, 1, 2]), np.arange(6)
    exact = classification_risks(probabilities, targets, ids, smoothing=0.0)
    for row, target, risk in zip(probabilities, targets, exact, strict=True):
        np.testing.assert_allclose(risk, log_loss([target], [row], labels=[0, 1, 2]), rtol=1e-12)
    smoothed = classification_risks(probabilities, targets, ids, smoothing=0.3)
    np.testing.assert_allclose(
        smoothed, [-math.log(0.7 * p[t] + 0.1) for p, t in zip(probabilities, targets, strict=True)]
    )


def test_a_class_without_a_chance_costs_a_finite_amount_or_raises():
    probabilities, targets = np.array([[1.0, 0.0], [1.0, 0.0]]), np.array([0, 1])
    risks = classification_risks(probabilities, targets, np.array(["u", "v"]), smoothing=1e-3)
    np.testing.assert_allclose(risks, [-math.log(1 - 5e-4), math.log(2 / 1e-3)])
    with pytest.raises(NonFiniteError, match=r"instances 'v' is infinite.*smoothing"):
        classification_risks(probabilities, targets, np.array(["u", "v"]), smoothing=0.0)


def test_brier_and_zero_one(rng):
    probabilities = rng.dirichlet(np.ones(2), size=5)
    targets, ids = np.array([0, 1, 1, 0, 1]), np.arange(5)
    brier = classification_risks(probabilities, targets, ids, risk="brier")
    # The two-sided sum over both classes is twice scikit-learn's one-sided square.
    np.testing.assert_allclose(brier.mean(), 2 * brier_score_loss(targets, probabilities[:, 1]))
    wrong = classification_risks(probabilities, targets, ids, risk="zero_one")
    assert wrong.tolist() == [float((p[1] > p[0]) != t) for p, t in zip(probabilities, targets)]  # noqa: B905


@pytest.mark.parametrize("risk", ["cross_entropy", "zero_one", "brier"])
def test_many_submodels_at_once_are_one_after_the_other_and_failed_ones_stay_nan(risk, rng):
    probabilities = rng.dirichlet(np.ones(3), size=(4, 5))
    probabilities[2] = np.nan
    targets, ids = np.array([2, 0, 1, 1, 0]), np.arange(5)
    many = classification_risks(probabilities, targets, ids, risk=risk)
    for position in range(4):
        one = classification_risks(probabilities[position], targets, ids, risk=risk)
        np.testing.assert_array_equal(many[position], one)
    assert np.isnan(many[2]).all()
    assert np.isfinite(np.delete(many, 2, axis=0)).all()


def test_risks_of_values():
    values, targets = np.array([[1.0, 4.0]]), np.array([3.0, 3.5])
    assert regression_risks(values, targets).tolist() == [[4.0, 0.25]]
    assert regression_risks(values, targets, risk="absolute").tolist() == [[2.0, 0.5]]
    several = np.array([[1.0, 2.0], [0.0, -1.0]])
    assert regression_risks(several, np.zeros((2, 2))).tolist() == [5.0, 1.0]


def test_targets():
    assert targets_of(instances([1, 2]), "train").dtype == np.float64
    assert targets_of(instances([[1.0], [2.0]]), "train").shape == (2,)
    assert targets_of(instances(pd.Series([1, 2], dtype="Int64")), "train").tolist() == [1.0, 2.0]
    with pytest.raises(NonFiniteError, match="such as 1"):
        targets_of(instances([1.0, np.inf]), "train")
    with pytest.raises(InvalidInputError, match="need a classifier"):
        targets_of(instances(["a", "b"]), "train")
    with pytest.raises(InvalidInputError, match="no labels"):
        targets_of(Instances.of(np.zeros((2, 1))), "train")
    with pytest.raises(InvalidInputError, match="do not fit the training set's"):
        Regression.of(np.zeros(3)).targets(instances(np.zeros((2, 2))))


@pytest.mark.parametrize("smoothing", [-0.1, 1.0, math.nan, True])
def test_smoothing_is_a_share(smoothing):
    with pytest.raises(InvalidInputError, match="smoothing: expected the share"):
        Classification(Classes.of(np.array([0, 1])), smoothing=smoothing)


def test_unknown_risks_are_refused():
    with pytest.raises(InvalidInputError, match=r"'cross_entropy', 'zero_one', 'brier'; got 'hin"):
        Classification(Classes.of(np.array([0, 1])), "hinge")
    with pytest.raises(InvalidInputError, match="'squared', 'absolute'"):
        Regression.of(np.zeros(2), "cross_entropy")
