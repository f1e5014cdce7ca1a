"""Utilities of submodels, and of a model without a training instance."""

import threading

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from scipy.special import log_softmax, softmax

from proponent.exceptions import InvalidInputError, MethodCapabilityError, NonFiniteError
from proponent.models.learner import Fitted, Prepared, Trainer
from proponent.retraining.empty import check_empty, empty_utility
from proponent.retraining.utility import Accuracy, FromPredictions, Margin, Risk, utility_of

LOGITS = np.random.default_rng(0).normal(size=(3, 5, 4)) * 3  # 3 submodels, 5 tests, 4 classes
LABELS = np.array([2, 0, 1, 1, 3])
TEST = Prepared(None, LABELS, np.array(["a", "b", "c", "d", "e"]))
FITTED = Fitted(LOGITS, 3)


class Outputs(Trainer):
    """A trainer whose models are what they predict."""

    n = 10

    def __init__(self, output):
        self.output = output

    def fit(self, counts, seeds):
        raise NotImplementedError

    def prepare(self, test, role="test"):
        raise NotImplementedError

    def risks(self, fitted, test):
        return -log_softmax(fitted.models, axis=-1)[:, np.arange(5), test.targets]

    def outputs(self, fitted, test):
        return fitted.models

    def constant(self, kind):
        chances = {"prior": [0.1, 0.6, 0.2, 0.1], "uniform": [0.25] * 4}
        if kind not in chances:
            raise MethodCapabilityError("there is no untrained network here")
        return Fitted(np.broadcast_to(np.log(chances[kind]), (1, 5, 4)).copy(), 1)


CLASSIFIER = Outputs("logits")
REGRESSOR = Outputs("values")


def as_probabilities(fitted=FITTED):
    return Outputs("probabilities"), Fitted(softmax(fitted.models, axis=-1), fitted.size), TEST


def test_the_utility_risk_is_minus_the_risk():
    found = Risk().of(CLASSIFIER, FITTED, TEST)
    for k in range(3):
        for t in range(5):
            assert_allclose(found[k, t], np.log(softmax(LOGITS[k, t])[LABELS[t]]))


def test_accuracy_is_whether_the_label_has_the_largest_output():
    expected = [
        [
            float(max(range(4), key=row.__getitem__) == y)
            for row, y in zip(rows, LABELS, strict=True)
        ]
        for rows in LOGITS.tolist()
    ]
    assert_array_equal(Accuracy().of(CLASSIFIER, FITTED, TEST), expected)
    assert_array_equal(Accuracy().of(*as_probabilities()), expected)
    assert 0 < np.mean(expected) < 1


def test_of_classes_that_are_level_the_first_is_predicted():
    level = Fitted(np.zeros((1, 5, 4)), 1)
    assert_array_equal(Accuracy().of(CLASSIFIER, level, TEST), [[0, 1, 0, 0, 0]])


def test_the_margin_is_how_far_the_label_leads():
    found = Margin().of(CLASSIFIER, FITTED, TEST)
    for k in range(3):
        for t in range(5):
            others = [LOGITS[k, t, c] for c in range(4) if c != LABELS[t]]
            assert_allclose(found[k, t], LOGITS[k, t, LABELS[t]] - max(others))
    assert_allclose(Margin(smoothing=0).of(*as_probabilities()), found, atol=1e-12)


def test_the_margin_of_a_chance_of_zero_needs_smoothing():
    certain = np.zeros((1, 5, 4))
    certain[0, :, 1] = 1.0
    trainer, fitted = Outputs("probabilities"), Fitted(certain, 1)
    with pytest.raises(NonFiniteError, match=r"instance 'a'.*smoothing"):
        Margin(smoothing=0).of(trainer, fitted, TEST)
    found = Margin(smoothing=0.1).of(trainer, fitted, TEST)
    lead = np.log(0.925 / 0.025)
    assert_allclose(found, [[-lead, -lead, lead, lead, -lead]])
    with pytest.raises(InvalidInputError, match="smoothing"):
        Margin(smoothing=1.0)


@pytest.mark.parametrize("utility", [Accuracy(), Margin()])
def test_utilities_of_classes_need_classes(utility):
    with pytest.raises(MethodCapabilityError, match="classifier"):
        utility.of(REGRESSOR, FITTED, TEST)
    with pytest.raises(MethodCapabilityError, match="no predictions"):
        utility.of(Outputs(None), FITTED, TEST)


@pytest.mark.parametrize(
    "utility", [Risk(), Accuracy(), Margin(), FromPredictions(lambda outputs, labels: labels)]
)
def test_a_submodel_that_failed_has_no_utility(utility):
    broken = LOGITS.copy()
    broken[1] = np.nan
    found = utility.of(CLASSIFIER, Fitted(broken, 3, {1: "why"}), TEST)
    assert_array_equal(np.isnan(found).all(axis=1), [False, True, False])
    assert_array_equal(found[[0, 2]], utility.of(CLASSIFIER, FITTED, TEST)[[0, 2]])


def test_a_function_of_predictions_on_each_test_instance():
    def brier(outputs, labels):
        return -((softmax(outputs, axis=1) - np.eye(4)[labels]) ** 2).sum(axis=1)

    found = utility_of(brier).of(CLASSIFIER, FITTED, TEST)
    assert_array_equal(found, [brier(model, LABELS) for model in LOGITS])
    in_torch = utility_of(lambda outputs, labels: torch.as_tensor(brier(outputs, labels)))
    assert_array_equal(in_torch.of(CLASSIFIER, FITTED, TEST), found)


def test_a_function_of_predictions_on_the_test_set_as_one():
    found = utility_of(lambda outputs, labels: outputs.max()).of(CLASSIFIER, FITTED, TEST)
    assert_array_equal(found, LOGITS.max(axis=(1, 2))[:, None])


@pytest.mark.parametrize("wrong", [np.zeros(4), np.zeros((5, 1)), "good", np.zeros(5) * 1j])
def test_a_function_of_predictions_returns_numbers_for_the_tests(wrong):
    with pytest.raises(InvalidInputError, match="one for each of the 5"):
        utility_of(lambda outputs, labels: wrong).of(CLASSIFIER, FITTED, TEST)


def test_a_function_of_predictions_keeps_to_one_shape():
    def undecided(outputs, labels):
        return 1.0 if outputs is LOGITS[0] or outputs[0, 0] == LOGITS[0, 0, 0] else labels

    with pytest.raises(InvalidInputError, match="for some submodels"):
        utility_of(undecided).of(CLASSIFIER, FITTED, TEST)


def test_utilities_by_name():
    assert [utility_of(name) for name in ("risk", "accuracy", "margin")] == [
        Risk(),
        Accuracy(),
        Margin(),
    ]
    assert utility_of(Margin(smoothing=0.1)) == Margin(smoothing=0.1) != Margin()
    for wrong in ("loss", None, Risk, 3):
        with pytest.raises(InvalidInputError, match="'risk', 'accuracy', 'margin'"):
            utility_of(wrong)


def test_recipes_tell_utilities_apart():
    def scaled(factor):
        return FromPredictions(lambda outputs, labels: factor * outputs[:, 0])

    recipes = [
        utility.recipe()
        for utility in (
            Risk(), Accuracy(), Margin(), Margin(0.1), Margin(0.2), scaled(1.0), scaled(2.0),
            FromPredictions(lambda outputs, labels: outputs[:, 1]),
        )
    ]  # fmt: skip
    assert len(set(recipes)) == len(recipes)
    assert scaled(2.0).recipe() == recipes[6]
    with pytest.raises(InvalidInputError, match="address"):
        scaled(threading.Lock()).recipe()


@pytest.mark.parametrize("policy", ["prior", "uniform", "init", "max_class_freq"])
def test_policies_of_the_empty_set(policy):
    assert check_empty(policy) == policy


def test_a_number_is_the_utility_of_the_empty_set():
    assert check_empty(np.float32(-2)) == -2.0
    assert_array_equal(empty_utility(-2.0, CLASSIFIER, TEST, Risk()), np.full(5, -2.0))
    as_one = utility_of(lambda outputs, labels: 0.0)
    assert_array_equal(empty_utility(-2.0, CLASSIFIER, TEST, as_one), [-2.0])


@pytest.mark.parametrize("wrong", ["mean", None, float("nan"), float("inf"), True, [1.0]])
def test_other_policies_are_refused(wrong):
    with pytest.raises(InvalidInputError, match="empty: expected 'prior'"):
        check_empty(wrong)


def test_the_empty_set_is_worth_what_the_constant_model_is():
    found = empty_utility("prior", CLASSIFIER, TEST, Risk())
    assert_allclose(found, np.log([0.2, 0.1, 0.6, 0.6, 0.1]))
    found = empty_utility("prior", CLASSIFIER, TEST, Accuracy())
    assert_array_equal(found, [0, 0, 1, 1, 0])
    assert_allclose(empty_utility("uniform", CLASSIFIER, TEST, Risk()), np.full(5, np.log(0.25)))
    with pytest.raises(MethodCapabilityError, match="untrained"):
        empty_utility("init", CLASSIFIER, TEST, Risk())


def test_the_most_frequent_class_of_the_test_set():
    found = empty_utility("max_class_freq", CLASSIFIER, TEST, Accuracy())
    assert_array_equal(found, np.full(5, 2 / 5))
    with pytest.raises(InvalidInputError, match="is an accuracy"):
        empty_utility("max_class_freq", CLASSIFIER, TEST, Risk())
