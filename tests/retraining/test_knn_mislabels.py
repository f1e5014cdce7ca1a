"""Wrong labels among handwritten digits are found."""

import pytest

from proponent.datasets import digits
from proponent.evaluation.detection import by_memorization, by_opponents, mislabel_detection
from proponent.evaluation.noise import flip_labels
from proponent.retraining.neighbours.leave_one_out import KNNLeaveOneOut
from proponent.retraining.neighbours.shapley import KNNShapley
from proponent.retraining.neighbours.threshold_shapley import ThresholdKNNShapley
from proponent.retraining.neighbours.weighted_shapley import WeightedKNNShapley

# The area under the curve by harm to 300 trusted test instances; measured, and what is asked.
BY_HARM = {
    "Shapley": (KNNShapley(), 0.976, 0.96),
    "approximate": (KNNShapley(max_error=0.01), 0.973, 0.96),
    "soft labels": (KNNShapley(divide_by="neighbours"), 0.976, 0.96),
    "Banzhaf": (KNNShapley(semivalue="banzhaf"), 0.958, 0.94),
    "threshold": (ThresholdKNNShapley(radius=2.0), 0.973, 0.96),
    # Only the six nearest of a test instance have an influence at all.
    "leave-one-out": (KNNLeaveOneOut(), 0.792, 0.75),
}


@pytest.fixture(scope="module")
def flipped():
    """Return digits, a tenth of which have a wrong label, clean ones to test on, and which."""
    images, labels = digits()
    noisy, wrong = flip_labels(labels[:1000], 0.1)
    return (images[:1000], noisy), (images[1000:1300], labels[1000:1300]), wrong


def area(suspicion, wrong):
    return mislabel_detection(suspicion, wrong, n_bootstrap=2)["scores"].auroc.value


@pytest.mark.parametrize("name", BY_HARM)
def test_those_that_harm_are_wrong(name, flipped):
    train, test, wrong = flipped
    method, measured, asked = BY_HARM[name]
    found = area(by_opponents(method.fit(train).influence(test, joint=True)), wrong)
    assert found > asked
    assert found == pytest.approx(measured, abs=0.001)


def test_those_that_harm_weighted_neighbours_are_wrong(flipped):
    train, (X_test, y_test), wrong = flipped
    method = WeightedKNNShapley(vote="majority").fit(train)
    found = area(by_opponents(method.influence((X_test[:60], y_test[:60]), joint=True)), wrong)
    assert found > 0.92


def test_those_that_matter_most_to_themselves_are_wrong(flipped):
    train, _, wrong = flipped
    assert area(by_memorization(KNNShapley().fit(train).memorization()), wrong) > 0.99
    assert area(by_memorization(KNNLeaveOneOut().fit(train).memorization()), wrong) > 0.9
