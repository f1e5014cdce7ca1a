"""The objectives of removal against their formulas, and the derivative of their response."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, hessian, jacrev
from torch.nn import functional

import proponent as pp
from proponent.data import Instances
from proponent.evaluation.linear_response import leading_inverse, solve_exactly
from proponent.evaluation.minimise import minimise
from proponent.evaluation.proximal_bregman import Removals
from proponent.exceptions import InvalidInputError
from proponent.gradients.gauss_newton import GaussNewton
from proponent.gradients.weight_decay import Penalised, WeightDecay

N, CLASSES, REMOVED = 13, 3, 4


class WeightedNetwork:
    """An untrained tanh network, whose risks are cross-entropies times a weight an instance."""

    def __init__(self, weights: Tensor) -> None:
        torch.manual_seed(1)
        self.module = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, CLASSES)).double()
        self.X, self.y = 2 * torch.randn(N, 3).double(), torch.randint(CLASSES, (N,))
        self.weights = weights.clone()
        self.model = pp.TorchModel(self.module, loss=weighted)
        self.train = Instances.of((self.X, torch.stack([self.y.double(), self.weights], 1)))
        self.theta = torch.cat([p.detach().flatten() for p in self.module.parameters()])

    def unflatten(self, theta: Tensor) -> dict[str, Tensor]:
        named = dict(self.module.named_parameters())
        parts = theta.split([p.numel() for p in named.values()])
        return {k: v.reshape(p.shape) for (k, p), v in zip(named.items(), parts, strict=True)}

    def outputs(self, theta: Tensor) -> Tensor:
        return functional_call(self.module, self.unflatten(theta), (self.X,))

    def losses(self, outputs: Tensor) -> Tensor:
        return self.weights * functional.cross_entropy(outputs, self.y, reduction="none")

    def mean_risk(self, theta: Tensor) -> Tensor:
        return self.losses(self.outputs(theta)).mean()

    @property
    def gauss_newton(self) -> Tensor:
        J, p = jacrev(self.outputs)(self.theta), torch.softmax(self.outputs(self.theta), 1)
        D = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
        return torch.einsum("n,nap,nab,nbq->pq", self.weights, J, D, J) / N


def weighted(output: Tensor, target: Tensor) -> Tensor:
    return target[:, 1] * functional.cross_entropy(output, target[:, 0].long(), reduction="none")


def bregman(network: WeightedNetwork, theta: Tensor) -> Tensor:
    """sum_j D_j as it is defined, term by term."""
    here, there = network.outputs(theta), network.outputs(network.theta).detach()
    slopes = jacrev(lambda z: network.losses(z).sum())(there)
    return (network.losses(here) - network.losses(there) - (slopes * (here - there)).sum(1)).sum()


@pytest.mark.parametrize("renormalised", [False, True])
@pytest.mark.parametrize("removed", [REMOVED, None])
@pytest.mark.parametrize("batch_size", [5, 64])
def test_objectives_equal_their_formulas(renormalised, removed, batch_size) -> None:
    network = WeightedNetwork(torch.rand(N).double() + 0.5)
    start, p = network.theta, len(network.theta)
    decay, damping = torch.rand(p).double(), torch.rand(p).double()
    removals = Removals(
        network.model, network.train, decay=decay, damping=damping,
        renormalised=renormalised, batch_size=batch_size,
    )  # fmt: skip
    share = 0.0 if removed is None else 1 / N

    def taken(theta):
        """What the instance takes with it."""
        own = 0.0 if removed is None else network.losses(network.outputs(theta))[removed]
        return own + (0.5 * (decay * theta**2).sum() if renormalised else 0.0)

    def warm(theta):
        objective = network.mean_risk(theta) + 0.5 * (decay * theta**2).sum()
        return objective - share * taken(theta)

    def proximal(theta):
        return warm(theta) + 0.5 * (damping * (theta - start) ** 2).sum()

    def proximal_bregman(theta):
        pull = 0.5 * ((decay + damping) * (theta - start) ** 2).sum()
        return bregman(network, theta) / N + pull - share * taken(theta)

    there = start + 0.3 * torch.randn(p).double()
    for made, formula in [
        (removals.warm, warm),
        (removals.proximal, proximal),
        (removals.bregman, proximal_bregman),
    ]:
        objective = made(removed)
        value, slope = objective(there)
        expected = float(formula(there) - formula(start))
        assert value - objective(start)[0] == pytest.approx(expected, rel=1e-10)
        torch.testing.assert_close(slope, jacrev(formula)(there), rtol=1e-10, atol=1e-12)


def test_nothing_left_out_of_the_bregman_objective_leaves_the_model_where_it_is() -> None:
    network = WeightedNetwork(torch.ones(N).double())
    ones = torch.ones_like(network.theta)
    removals = Removals(
        network.model, network.train, decay=0.1 * ones, damping=0.1 * ones,
        renormalised=True, batch_size=64,
    )  # fmt: skip
    assert removals.bregman(None)(network.theta)[1].norm() < 1e-15
    assert removals.proximal(None)(network.theta)[1].norm() > 0.1


def test_derivative_of_the_response_is_the_gauss_newton_influence() -> None:
    """Central differences in the weight of an instance, far from a stationary point.

    With its risk times a small weight, leaving the instance out moves the model by the weight
    times the derivative; the curvature is that without the instance.
    """
    decay, damping, step = 0.02, 0.01, 2e-5
    weights = torch.ones(N).double()
    weights[REMOVED] = 0.0
    plain = WeightedNetwork(weights)
    p = len(plain.theta)
    eye = torch.eye(p, dtype=torch.float64)
    H = hessian(plain.mean_risk)(plain.theta)
    assert torch.linalg.eigvalsh(H)[0] < -(decay + damping)
    assert jacrev(plain.mean_risk)(plain.theta).norm() > 0.1

    def own(theta):
        return functional.cross_entropy(plain.outputs(theta), plain.y, reduction="none")[REMOVED]

    moved = []
    for weight in (step, -step):
        weights[REMOVED] = weight
        network = WeightedNetwork(weights)
        removals = Removals(
            network.model, network.train, decay=torch.full((p,), decay).double(),
            damping=torch.full((p,), damping).double(), renormalised=False, batch_size=5,
        )  # fmt: skip
        A = network.gauss_newton + (decay + damping) * eye
        minimum = minimise(
            removals.bregman(REMOVED), network.theta, gradient_goal=1e-14, value_goal=0.0,
            max_iterations=200, precondition=lambda b, A=A: torch.linalg.solve(A, b.T).T,
        )  # fmt: skip
        moved.append(minimum.theta - network.theta)
    derivative = (moved[0] - moved[1]) / (2 * step)
    shift = (decay + damping) * eye
    expected = torch.linalg.solve(plain.gauss_newton + shift, jacrev(own)(plain.theta)) / N
    assert (derivative - expected).norm() < 1e-5 * expected.norm()
    newton = torch.linalg.solve(H + shift, jacrev(own)(plain.theta)) / N
    assert (derivative - newton).norm() > 0.1 * expected.norm()


def test_the_linear_response_is_solved_exactly() -> None:
    network = WeightedNetwork(torch.ones(N).double())
    decay = {name: 0.1 * (i + 1) for i, name in enumerate(network.model.selected)}
    matrix = Penalised(GaussNewton(network.model, network.train), WeightDecay(decay))
    dense = network.gauss_newton + torch.diag(WeightDecay(decay).diagonal(matrix.space))
    right = torch.randn(4, matrix.size).double()
    precondition = leading_inverse(matrix, memory=10**9)
    expected = torch.linalg.solve(dense, right.T).T
    torch.testing.assert_close(precondition(right), expected)  # it has all eigenvectors here
    rough = leading_inverse(matrix, memory=8 * 5 * matrix.size)  # five of them
    assert not torch.allclose(rough(right), expected, rtol=1e-3)
    for inverse in (precondition, rough):
        solution = solve_exactly(matrix, right, inverse)
        assert solution.residuals.max() < 1e-10
        torch.testing.assert_close(solution.vectors, expected, rtol=1e-8, atol=1e-8)


def test_risk_without_outputs_is_refused() -> None:
    model = pp.TorchModel(nn.Linear(2, 1), risk=lambda module, batch: module(batch[0])[:, 0])
    ones = torch.ones(3)
    with pytest.raises(InvalidInputError, match="no outputs apart from its loss"):
        Removals(
            model, Instances.of((np.ones((4, 2)),)), decay=ones, damping=ones,
            renormalised=False, batch_size=2,
        )  # fmt: skip


# The optimiser


def quadratic(matrix: Tensor, centre: Tensor):
    def objective(theta):
        slope = matrix @ (theta - centre)
        return float(slope @ (theta - centre)) / 2, slope

    return objective


def rosenbrock(theta):
    theta = theta.clone().requires_grad_()
    value = (1 - theta[0]) ** 2 + 100 * (theta[1] - theta[0] ** 2) ** 2
    (slope,) = torch.autograd.grad(value, theta)
    return float(value.detach()), slope


def test_first_step_is_newtons_where_the_inverse_is_exact() -> None:
    factor = torch.randn(6, 6).double()
    matrix, centre = factor @ factor.T + torch.eye(6).double(), torch.randn(6).double()
    found = minimise(
        quadratic(matrix, centre), torch.zeros(6).double(), gradient_goal=1e-10, value_goal=0.0,
        max_iterations=5, precondition=lambda b: torch.linalg.solve(matrix, b.T).T,
    )  # fmt: skip
    assert found.iterations == 1 and found.stop == "converged"
    torch.testing.assert_close(found.theta, centre)


def test_curved_valley_without_a_useful_inverse() -> None:
    start = torch.tensor([-1.2, 1.0]).double()
    settings = {"gradient_goal": 1e-9, "value_goal": 0.0, "precondition": lambda b: b}
    found = minimise(rosenbrock, start, max_iterations=100, **settings)
    assert found.stop == "converged" and found.gradient_norm <= 1e-9
    torch.testing.assert_close(found.theta, torch.ones(2).double())
    cut = minimise(rosenbrock, start, max_iterations=5, **settings)
    assert cut.stop == "iterations" and cut.iterations == 5
    assert cut.gradient_norm == pytest.approx(float(rosenbrock(cut.theta)[1].norm()))


def test_a_minimum_at_a_kink_is_reached_and_not_called_converged() -> None:
    def kinked(theta):
        return float(theta.abs().sum() + theta.square().sum()), theta.sign() + 2 * theta

    start = torch.tensor([0.7, -1.3]).double()
    found = minimise(
        kinked, start, gradient_goal=1e-9, value_goal=1e-12, max_iterations=500,
        precondition=lambda b: b,
    )  # fmt: skip
    assert found.stop == "stalled" and found.gradient_norm > 0.5
    assert found.theta.abs().max() < 1e-6


def test_nothing_is_done_at_a_minimum() -> None:
    found = minimise(
        quadratic(torch.eye(3), torch.ones(3)), torch.ones(3), gradient_goal=0.0, value_goal=0.0,
        max_iterations=5, precondition=lambda b: b,
    )  # fmt: skip
    assert found.iterations == 0 and found.stop == "converged"


def test_steps_into_infinite_values_are_shortened() -> None:
    def walled(theta):
        """-log is infinite from 1 on, where a first step of length 1 leads."""
        value = -torch.log(1 - theta) - 2 * theta
        return float(value.nan_to_num(nan=float("inf"))), 1 / (1 - theta) - 2

    found = minimise(
        lambda theta: (walled(theta)[0], walled(theta)[1]), torch.zeros(1).double(),
        gradient_goal=1e-10, value_goal=0.0, max_iterations=50, precondition=lambda b: 3 * b,
    )  # fmt: skip
    assert found.stop == "converged" and float(found.theta) == pytest.approx(0.5)
