"""Jacobians of outputs and derivatives of losses, against automatic differentiation by hand."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.autograd.functional import hessian, jacobian
from torch.nn import functional

import proponent as pp
from proponent.data import Instances
from proponent.exceptions import InvalidInputError
from proponent.gradients.output_gradients import OutputGradients
from proponent.gradients.space import ParameterSpace


class Squeezed(nn.Module):
    """One output an instance, without an axis for it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(12, 1)

    def forward(self, x):
        return self.layer(x.flatten(1))[:, 0]


class Scaled(nn.Module):
    """A parameter that no rule covers, and outputs of two axes."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.scale = nn.Parameter(torch.tensor([0.5, 2.0]))

    def forward(self, x):
        return self.layer(x[:, 0]).unsqueeze(2) * torch.sinh(self.scale)


MODULES = {
    "convolution": lambda: nn.Sequential(
        nn.Conv1d(1, 2, 3, padding=1), nn.Flatten(), nn.Tanh(), nn.Linear(24, 3)
    ),
    "squeezed": Squeezed,
    "scaled": Scaled,
}


@pytest.fixture(params=MODULES)
def studied(request):
    torch.manual_seed(0)
    module = MODULES[request.param]().double()
    x = torch.randn(7, 1, 3 if request.param == "scaled" else 12, dtype=torch.float64)
    y = torch.randn(module(x).shape, dtype=torch.float64).sigmoid()
    return pp.TorchModel(module, loss="bce_with_logits"), x, y


def by_hand(module, x):
    """Return the Jacobian by one backward pass for each output of each instance."""
    rows = []
    for single in x:
        outputs = module(single[None]).flatten()
        parts = [torch.autograd.grad(z, list(module.parameters()), retain_graph=True)
                 for z in outputs]  # fmt: skip
        rows.append(torch.stack([torch.cat([p.flatten() for p in part]) for part in parts]))
    return torch.stack(rows)


def test_jacobian_and_combinations(studied) -> None:
    model, x, y = studied
    instances = Instances.of((x, y))
    made = OutputGradients(model, instances, torch.float64)
    expected = by_hand(model.module, x)
    weights = torch.randn(expected.shape[:2], dtype=torch.float64)
    with model.evaluating():
        torch.testing.assert_close(made.jacobian((x, y), instances.ids), expected)
        combined = made.combined((x, y), weights, instances.ids)
    found = ParameterSpace.of(model).gradients(combined, 7)
    torch.testing.assert_close(found, (weights[:, :, None] * expected).sum(1))
    assert made.count == expected.shape[1]


def test_derivatives_of_the_loss(studied) -> None:
    model, x, y = studied
    instances = Instances.of((x, y))
    made = OutputGradients(model, instances, torch.float64)
    with model.evaluating():
        found = made.derivatives((x, y), instances.ids)
        outputs = made.values((x, y))
    torch.testing.assert_close(made.loss(outputs, (x, y)), model.risks((x, y)))
    for i in range(7):
        risk = partial(functional.binary_cross_entropy_with_logits, target=y[i].flatten())
        z = outputs[i].flatten()
        torch.testing.assert_close(found.slopes[i], jacobian(risk, z))
        torch.testing.assert_close(found.curvatures[i], hessian(risk, z))


def test_a_loss_that_is_linear_in_the_outputs_has_no_curvature() -> None:
    model = pp.TorchModel(nn.Linear(3, 2), loss=lambda z, y: (z * y).sum(1))
    x, y = torch.randn(4, 3), torch.randn(4, 2)
    instances = Instances.of((x, y))
    with model.evaluating():
        found = OutputGradients(model, instances, torch.float32).derivatives((x, y), instances.ids)
    assert torch.equal(found.slopes, y) and torch.equal(found.curvatures, torch.zeros(4, 2, 2))


def test_outputs_without_an_axis_of_instances_are_refused() -> None:
    model = pp.TorchModel(nn.Sequential(nn.Linear(3, 2), nn.Flatten(0)), loss="mse")
    with pytest.raises(InvalidInputError, match="first axis"):
        OutputGradients(model, Instances.of((torch.randn(4, 3), torch.randn(4, 2))), torch.float32)
