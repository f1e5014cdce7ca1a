"""The numbers of the learners: where one changes, its ``training_version`` has to be raised.

Stored submodels are only found again by the same version. Raise that of the learner, and then put
the new number here.
"""

import numpy as np
import pytest
import torch

import proponent as pp
from proponent.data import Instances
from proponent.models.bayes_learner import GaussianNaiveBayesLearner
from proponent.models.linear_learner import LinearLearner
from proponent.models.logistic_learner import LogisticLearner
from proponent.models.nearest_learner import NearestNeighboursLearner

N = 12
GRID = np.arange(N)
X = np.stack([np.sin(GRID), np.cos(2.0 * GRID)], axis=1)
RESPONSES = X[:, 0] - 0.5 * X[:, 1] + 0.1 * np.sin(5.0 * GRID)
MASKS = np.array([k != (GRID % 4) for k in range(4)])
TEST = X[:5] + 0.1


def network():
    module = torch.nn.Linear(2, 3).double()
    with torch.no_grad():
        module.weight.copy_(torch.tensor([[0.1, 0.2], [-0.3, 0.4], [0.5, -0.6]]))
        module.bias.zero_()
    return module


def optimizer(parameters):
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.5)


LEARNERS = {
    "linear": (LinearLearner(alpha=0.5), RESPONSES),
    "logistic, binary": (LogisticLearner(), GRID % 2),
    "logistic": (LogisticLearner(), GRID % 3),
    "nearest": (NearestNeighboursLearner(3), GRID % 2),
    "bayes": (GaussianNaiveBayesLearner(), GRID % 2),
    "torch": (
        pp.TorchLearner(network, optimizer, loss="cross_entropy", epochs=2, batch_size=4),
        GRID % 3,
    ),
}
# Version, and the mean risk, by learner.
FROZEN = {
    "linear": (1, 0.004100350891066328),
    "logistic, binary": (1, 0.7634563132297061),
    "logistic": (1, 0.6867468768780385),
    "nearest": (1, 0.6970331620656776),
    "bayes": (1, 0.7970575175897063),
    "torch": (1, 0.9102596094535661),
}


@pytest.mark.parametrize("name", LEARNERS)
def test_numbers(name):
    learner, labels = LEARNERS[name]
    trainer = learner.bind(Instances.of((X, labels)))
    fitted = trainer.fit(MASKS, np.arange(4))
    risks = trainer.risks(fitted, trainer.prepare(Instances.of((TEST, labels[:5]))))
    version, expected = FROZEN[name]
    assert learner.training_version == version
    np.testing.assert_allclose(risks.mean(), expected, rtol=1e-7)
