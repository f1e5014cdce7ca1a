"""Influence functions against retraining on real data, where the optimum is unique and exact."""

from functools import cache

import numpy as np
import pytest
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

import proponent as pp
from proponent.datasets import digits
from proponent.evaluation import (
    linear_datamodeling_score,
    loo_correlation,
    random_subsets,
    retrain_on_subsets,
)

N, N_TEST, CLASSES, WEIGHT_DECAY = 800, 60, 10, 0.01


class Regression:
    """Softmax regression of the digits: 64 pixels and a constant, all of them decayed.

    Gradients and Hessian are by hand, and optima by Newton's method: nothing here is the
    library's.
    """

    def __init__(self) -> None:
        images, labels = digits()
        order = np.random.default_rng(0).permutation(len(labels))[: N + N_TEST]
        pixels = torch.from_numpy(images[order].reshape(-1, 64)).double()
        self.train = pixels[:N], torch.from_numpy(labels[order[:N]])
        self.test = pixels[N:], torch.from_numpy(labels[order[N:]])
        self.x = nn.functional.pad(self.train[0], (0, 1), value=1.0)
        self.x_test = nn.functional.pad(self.test[0], (0, 1), value=1.0)
        self.y = nn.functional.one_hot(self.train[1], CLASSES).double()
        theta = torch.zeros(CLASSES, 65, dtype=torch.float64)
        weights = torch.full((N,), 1.0 / N, dtype=torch.float64)
        for _ in range(8):  # Newton's method proper; other optima are found from this one's factor
            self.factor = torch.linalg.cholesky(self.hessian(theta))
            theta, _ = self.step(theta, weights)
        self.theta = self.refit(slice(None), N, theta)

    def hessian(self, theta: Tensor) -> Tensor:
        p = torch.softmax(self.x @ theta.T, 1)
        bent = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
        matrix = torch.einsum("nab,ni,nj->aibj", bent, self.x, self.x).reshape(650, 650) / N
        return matrix + WEIGHT_DECAY * torch.eye(650, dtype=torch.float64)

    def step(self, theta: Tensor, weights: Tensor) -> tuple[Tensor, float]:
        residual = (torch.softmax(self.x @ theta.T, 1) - self.y) * weights[:, None]
        slope = residual.T @ self.x + WEIGHT_DECAY * theta
        move = torch.cholesky_solve(slope.reshape(-1, 1), self.factor).reshape(theta.shape)
        return theta - move, float(slope.abs().max())

    def refit(self, kept: ArrayLike, divisor: int, start: Tensor | None = None) -> Tensor:
        """Return the optimum of sum(risks of the kept) / divisor + decay: there is only one."""
        weights = torch.zeros(N, dtype=torch.float64)
        weights[kept] = 1.0 / divisor
        theta = self.theta if start is None else start
        for _ in range(300):
            theta, slope = self.step(theta, weights)
            if slope < 1e-10:
                return theta
        raise AssertionError("the optimum was not reached")

    def log_p(self, theta: Tensor) -> Tensor:
        scores = torch.log_softmax(self.x_test @ theta.T, 1)
        return scores[torch.arange(N_TEST), self.test[1]]


@cache
def regression() -> Regression:
    return Regression()


@cache
def influence(convention: str) -> pp.Influence:
    """What the library says of the fitted model, with what it chooses by itself."""
    known = regression()
    module = nn.Linear(64, CLASSES).double()
    module.weight.data, module.bias.data = known.theta[:, :64].clone(), known.theta[:, 64].clone()
    model = pp.TorchModel(module, loss="cross_entropy")
    method = pp.InfluenceFunctions(weight_decay=WEIGHT_DECAY, loo_convention=convention)
    return method.fit(model, known.train).influence(known.test)


@cache
def loo_differences(convention: str) -> tuple[np.ndarray, np.ndarray]:
    """Positions of 200 training images, and the risk without each less the risk with it."""
    known = regression()
    left_out = np.random.default_rng(1).choice(N, 200, replace=False)
    divisor = N if convention == "fixed_divisor" else N - 1

    def train(kept: np.ndarray, seed: int) -> Tensor:
        return known.refit(kept, divisor)

    kept = [np.delete(np.arange(N), position) for position in left_out]
    risks = retrain_on_subsets(train, lambda theta: -known.log_p(theta), kept)
    return left_out, (risks + known.log_p(known.theta).numpy()).T


@cache
def half_size() -> tuple[np.ndarray, np.ndarray]:
    """100 random halves of the training set, and the test margins of the optimum on each."""
    known = regression()

    def train(kept: np.ndarray, seed: int) -> Tensor:
        return known.refit(kept, len(kept))

    def margins(theta: Tensor) -> Tensor:
        log_p = known.log_p(theta)
        return log_p - torch.log(-torch.expm1(log_p))

    subsets = random_subsets(N, 100, fraction=0.5, seed=0)
    return subsets, retrain_on_subsets(train, margins, subsets)


# What the renormalised convention adds is the same for every training image of a test image.
@pytest.mark.parametrize("convention", ["fixed_divisor", "renormalised"])
def test_sums_of_influences_predict_training_on_half_of_the_images(convention: str) -> None:
    subsets, margins = half_size()
    result = linear_datamodeling_score(influence(convention), subsets, margins=margins)
    assert result.score.value >= 0.985
    assert result.score.low > 0.98


@pytest.mark.parametrize("convention", ["fixed_divisor", "renormalised"])
def test_influences_are_leave_one_out_differences(convention: str) -> None:
    left_out, differences = loo_differences(convention)
    found = influence(convention)[:, left_out]
    result = loo_correlation(found, differences)
    assert result.pooled_pearson.value >= 0.999
    assert result.mean_pearson.value >= 0.999
    assert result.mean_spearman.value >= 0.999
    # The same scale, with the 1/n; to first order short by the leverage of the image, 6 % here.
    slope = np.polyfit(found.values.ravel(), differences.ravel(), 1)[0]
    assert 1.0 < slope < 1.1


def test_conventions_differ_as_training_with_either_divisor_does() -> None:
    """With the mean over n - 1 the risks weigh more than the weight decay."""
    left_out, fixed = loo_differences("fixed_divisor")
    measured = loo_differences("renormalised")[1] - fixed
    found = influence("renormalised").values - influence("fixed_divisor").values
    assert np.linalg.norm(found[:, left_out] - measured) < 0.02 * np.linalg.norm(measured)
    assert np.linalg.norm(measured) > 0.05 * np.linalg.norm(fixed)  # no small matter
