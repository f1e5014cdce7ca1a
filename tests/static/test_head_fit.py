"""Refits of a linear layer: where they end, and what they say of it."""

import pytest
import torch
from sklearn.datasets import load_digits
from torch.nn import functional

from proponent.gradients.linear_head import LinearHead
from proponent.static import head_fit
from proponent.static.head_fit import PenalisedHead, newton, paper_descent


def digits_head(scale: float, n: int = 300) -> LinearHead:
    """Return a layer of zeros on raw pixels, which are badly conditioned."""
    X, y = load_digits(n_class=4, return_X_y=True)
    features, labels = torch.tensor(X[:n] * scale), torch.tensor(y[:n])
    theta = torch.zeros(4, 65, dtype=torch.float64)
    return LinearHead(
        features,
        lambda outputs, rows: functional.cross_entropy(outputs, labels[rows], reduction="none"),
        theta,
    )


@pytest.mark.parametrize("weight_decay", [1.0, 1e-2, 1e-4])
def test_newton_reaches_a_stationary_point_from_afar(weight_decay) -> None:
    objective = PenalisedHead(digits_head(1.0), weight_decay)
    fit = newton(objective, tolerance=1e-10)
    assert fit.converged and fit.residual <= 1e-10
    theta = fit.point.theta.requires_grad_()
    outputs = objective.head.inputs(objective.head.features) @ theta.T
    value = objective.head.loss(outputs, slice(None)).mean()
    value = value + weight_decay / 2 * theta.square().sum()
    (gradient,) = torch.autograd.grad(value, theta)
    assert float(gradient.norm()) <= 2e-10 * weight_decay * float(theta.detach().norm())
    assert fit.point.value == pytest.approx(float(value.detach()), rel=1e-13)
    # The one minimum of a strictly convex function, approached from elsewhere.
    elsewhere = LinearHead(objective.head.features, objective.head.loss, theta.detach() + 1)
    again = newton(PenalisedHead(elsewhere, weight_decay), tolerance=1e-10).point.theta
    assert float((again - theta.detach()).norm()) < 1e-8 * float(theta.detach().norm())


def test_a_layer_that_is_stationary_is_left_as_it_is() -> None:
    objective = PenalisedHead(digits_head(0.1), 0.1)
    fit = newton(objective, tolerance=1e-10)
    there = PenalisedHead(
        LinearHead(objective.head.features, objective.head.loss, fit.point.theta), 0.1
    )
    again = newton(there, tolerance=1e-10)
    assert again.iterations == 0 and again.converged
    assert torch.equal(again.point.theta, fit.point.theta)


def test_steps_that_run_out_are_not_called_converged(monkeypatch) -> None:
    monkeypatch.setattr(head_fit, "MAX_STEPS", 2)
    objective = PenalisedHead(digits_head(1.0), 1e-2)
    fit = newton(objective, tolerance=1e-10)
    assert fit.iterations == 2 and not fit.converged
    assert fit.residual == pytest.approx(objective.residual(fit.point))
    assert fit.residual > 1e-10


def test_a_tolerance_below_rounding_ends_and_is_not_claimed() -> None:
    fit = newton(PenalisedHead(digits_head(1.0), 1e-2), tolerance=1e-18)
    assert not fit.converged
    assert 0 < fit.residual < 1e-10
    assert fit.iterations < head_fit.MAX_STEPS


def test_the_papers_descent_ends_where_it_says() -> None:
    objective = PenalisedHead(digits_head(0.1), 0.1)
    first = float(objective.at(objective.head.theta).gradient.abs().mean())
    fit = paper_descent(objective, tolerance=1e-10)
    assert float(fit.point.gradient.abs().mean()) <= first / 200
    assert not fit.converged
    assert paper_descent(objective, tolerance=0.5).converged
    optimum = newton(objective, tolerance=1e-10).point
    assert optimum.value < fit.point.value < objective.at(objective.head.theta).value


def test_the_papers_descent_gives_up_on_ever_shorter_steps() -> None:
    """With a large enough weight decay no step of 1e-10 descends, and the start is kept."""
    head = digits_head(1.0)
    far = LinearHead(head.features, head.loss, torch.ones_like(head.theta))
    fit = paper_descent(PenalisedHead(far, 1e11), tolerance=1e-10)
    assert fit.iterations == 0
    assert torch.equal(fit.point.theta, far.theta)
