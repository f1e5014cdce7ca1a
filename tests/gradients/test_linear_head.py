"""A linear layer on fixed features: closed forms against automatic differentiation."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import proponent.gradients.linear_head as linear_head
from proponent.data import Instances
from proponent.gradients.gauss_newton import GaussNewton
from proponent.gradients.last_layer import LastLayer
from proponent.gradients.linear_head import HeadCurvature, LinearHead
from proponent.gradients.solvers.conjugate_gradients import ConjugateGradients
from proponent.models.torch import TorchModel

N, D, C = 23, 4, 3


def soft(n: int = N) -> Tensor:
    return torch.rand(n, C).softmax(1)


LOSSES = {
    "cross entropy": (
        lambda z, y: functional.cross_entropy(z, y, reduction="none"),
        lambda: torch.randint(0, C, (N,)),
    ),
    "soft cross entropy": (
        lambda z, y: functional.cross_entropy(z, y, reduction="none"),
        soft,
    ),
    "binary": (
        lambda z, y: functional.binary_cross_entropy_with_logits(z, y, reduction="none").mean(1),
        lambda: torch.rand(N, C),
    ),
    "squared error": (lambda z, y: (z - y).square().mean(1), lambda: torch.randn(N, C)),
    "another": (lambda z, y: (z - y).cosh().sum(1) + z.prod(1), lambda: torch.randn(N, C)),
    "linear": (lambda z, y: (z * y).sum(1), lambda: torch.randn(N, C)),
}


@pytest.fixture(params=LOSSES)
def problem(request):
    """Return a head with a bias, and its mean risk written out."""
    loss, make = LOSSES[request.param]
    features, targets, theta = torch.randn(N, D), make(), torch.randn(C, D + 1)
    head = LinearHead(features, lambda outputs, rows: loss(outputs, targets[rows]), theta)
    constant = torch.cat([features, torch.ones(N, 1)], 1)
    return head, lambda weights: loss(constant @ weights.T, targets).mean()


def close(found: Tensor, expected: Tensor, tolerance: float = 1e-12) -> bool:
    return bool((found - expected).norm() <= tolerance * (1 + expected.norm()))


@pytest.fixture(params=[2**22, 40], ids=["one block", "blocks of five"])
def entries(request, monkeypatch):
    monkeypatch.setattr(linear_head, "ENTRIES", request.param)


def test_value_gradient_and_slopes(problem, entries) -> None:
    head, risk = problem
    theta = torch.randn(C, D + 1, requires_grad=True)
    expected = risk(theta)
    (gradient,) = torch.autograd.grad(expected, theta)
    value, found = head.value_and_gradient(theta.detach())
    assert value == pytest.approx(float(expected.detach()), rel=1e-13)
    assert close(found, gradient)
    slopes = head.slopes(theta.detach())
    assert slopes.shape == (N, C) and not slopes.requires_grad
    assert close(head.combined(slopes) / N, gradient)


@pytest.mark.parametrize("kept", [True, False])
def test_curvature_is_the_hessian(problem, entries, kept, monkeypatch) -> None:
    if not kept:
        monkeypatch.setattr(linear_head, "KEPT", 0)
    head, risk = problem
    theta = torch.randn(C, D + 1)
    p = theta.numel()
    expected = torch.autograd.functional.hessian(risk, theta).view(p, p)
    curvature = HeadCurvature(head, theta)
    assert curvature.size == p
    vectors = torch.randn(4, p)
    for _ in range(2):  # the second time from what was kept
        assert close(curvature.matvec(vectors), vectors @ expected)
    assert close(curvature.dense(), expected)
    assert close(curvature.diagonal(), expected.diagonal())


@pytest.mark.parametrize("loss", ["squared error", "single logit"])
def test_the_kronecker_inverse_is_exact_where_one_factor_tells_all(loss, entries) -> None:
    """The second derivatives are the same for all instances, or numbers that weigh them."""
    if loss == "squared error":
        features, targets, theta = torch.randn(N, D), torch.randn(N, C), torch.randn(C, D + 1)
        function, _ = LOSSES[loss]
    else:
        features, targets, theta = torch.randn(N, D), torch.rand(N, 1), torch.randn(1, D + 1)
        function, _ = LOSSES["binary"]
    head = LinearHead(features, lambda outputs, rows: function(outputs, targets[rows]), theta)
    curvature = HeadCurvature(head, theta)
    shifted = curvature.dense() + 0.3 * torch.eye(curvature.size)
    right = torch.randn(5, curvature.size)
    assert close(curvature.kronecker(0.3)(right), torch.linalg.solve(shifted, right.T).T)


def test_the_kronecker_inverse_is_symmetric_and_positive(problem) -> None:
    head, _ = problem
    curvature = HeadCurvature(head, head.theta)
    inverse = curvature.kronecker(0.1)(torch.eye(curvature.size))
    assert close(inverse, inverse.T)
    assert float(torch.linalg.eigvalsh(inverse)[0]) > 0


def test_the_kronecker_inverse_spares_iterations() -> None:
    """Features of very different sizes, as pixels and their sums are."""
    features, targets = torch.randn(200, 20) * torch.logspace(-2, 1, 20), torch.rand(200, C)
    head = LinearHead(
        features, lambda z, rows: LOSSES["cross entropy"][0](z, targets[rows]), torch.zeros(C, 20)
    )
    curvature, right = HeadCurvature(head, head.theta), torch.randn(1, C * 20)
    found = [
        ConjugateGradients(preconditioner=made, coupled=False).prepare(curvature, 1e-4).solve(right)
        for made in (None, curvature.kronecker(1e-4))
    ]
    assert all(solution.converged for solution in found)
    assert found[1].iterations < found[0].iterations / 3


def test_a_loss_that_cannot_be_vectorised_is_gone_through_one_by_one(problem, monkeypatch) -> None:
    head, _ = problem
    vectors = torch.randn(4, head.theta.numel())
    expected = HeadCurvature(head, head.theta).matvec(vectors)
    original, asked = linear_head._vjp, []

    def refusing(slopes, outputs, moved, *, batched):
        asked.append(batched)
        if batched:
            raise RuntimeError("no batching rule")
        return original(slopes, outputs, moved, batched=False)

    monkeypatch.setattr(linear_head, "_vjp", refusing)
    assert close(HeadCurvature(head, head.theta).matvec(vectors), expected)
    assert asked in ([], [True, *[False] * 4])  # a linear loss has nothing to differentiate


def test_curvature_on_some_instances(entries) -> None:
    features, targets = torch.randn(N, D), torch.randint(0, C, (N,))
    head = LinearHead(
        features,
        lambda outputs, rows: functional.cross_entropy(outputs, targets[rows], reduction="none"),
        torch.randn(C, D),
    )
    chosen = np.array([3, 3, 20, 0, 11, 7, 7, 7])
    vectors = torch.randn(2, C * D)
    expected = torch.autograd.functional.hessian(
        lambda theta: functional.cross_entropy(features[chosen] @ theta.T, targets[chosen]),
        head.theta,
    ).view(C * D, C * D)
    found = HeadCurvature(head, head.theta).matvec_on(vectors, chosen)
    assert close(found, vectors @ expected)


@pytest.mark.parametrize("bias", [True, False])
def test_it_is_the_gauss_newton_matrix_of_the_models_last_layer(bias: bool) -> None:
    """As differentiated through the module, whose weight and bias stand one after the other."""
    net = nn.Sequential(nn.Linear(5, D), nn.Tanh(), nn.Linear(D, C, bias=bias))
    train = Instances.of((torch.randn(N, 5), torch.randint(0, C, (N,))))
    model = TorchModel(net, loss="cross_entropy")
    layer = LastLayer(model, train, batch_size=7)
    readout = layer.read(train)
    head = LinearHead.of(
        layer,
        readout.features,
        lambda outputs, rows: readout.loss(outputs, readout.targets[rows]),
        torch.float64,
    )
    expected = GaussNewton(model.with_parameters("last"), train).dense()
    places = torch.arange(C * D).view(C, D)
    if bias:
        places = torch.cat([places, C * D + torch.arange(C)[:, None]], 1)
    order = places.flatten()
    assert close(HeadCurvature(head, head.theta).dense(), expected[order][:, order])
    assert close(head.outputs(head.theta), net(train.batch(slice(None))[0]).detach())


def test_single_precision_features_are_worked_on_in_double() -> None:
    features = torch.randn(N, D, dtype=torch.float32)
    head = LinearHead(features, lambda z, rows: z.square().sum(1), torch.randn(C, D + 1))
    inputs = head.inputs(features[:2])
    assert inputs.dtype == torch.float64
    assert torch.equal(inputs[:, -1], torch.ones(2))
    assert head.value_and_gradient(head.theta)[1].dtype == torch.float64
    expected = (head.inputs(features) @ head.theta.T).square().sum() / N
    assert head.value_and_gradient(head.theta)[0] == pytest.approx(float(expected), rel=1e-14)
