"""Labels drawn from the model: their distribution, their scale, and what they depend on."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from references import relative_error
from torch import Tensor, nn
from torch.func import functional_call, hessian, jacrev

from proponent.data import Instances
from proponent.exceptions import InvalidInputError, NonFiniteError
from proponent.gradients.capture import GradientCapture
from proponent.gradients.labels import with_fisher_labels
from proponent.models.risk import LOSSES
from proponent.models.torch import TorchModel

DRAWS = 40_000


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    torch.manual_seed(4)
    yield


class _CausalModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(5, 5)

    def forward(self, words: Tensor) -> Tensor:
        return self.table(words)


class _Identity(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        return x


def _sequence_targets(last: int) -> Tensor:
    return torch.tensor([[1, -100, 0, last]])


CASES: dict[str, Any] = {
    "classes": (nn.Linear(2, 3), "cross_entropy", torch.randn(1, 2), torch.tensor([1])),
    "tokens": (nn.Linear(2, 3), "cross_entropy", torch.randn(1, 4, 2), _sequence_targets(2)),
    "pixels": (nn.Conv1d(2, 3, 1), "cross_entropy", torch.randn(1, 2, 4), _sequence_targets(2)),
    "outputs": (nn.Linear(2, 3), "mse", torch.randn(1, 2), torch.randn(1, 3)),
    "binary": (nn.Linear(2, 3), "bce_with_logits", torch.randn(1, 2), torch.zeros(1, 3)),
    "causal": (_CausalModel(), "causal_lm", torch.tensor([[1, 0, 3, 3]]), _sequence_targets(4)),
    "summed": (nn.Linear(2, 3), nn.MSELoss(reduction="sum"), torch.randn(1, 2), torch.randn(1, 3)),
    "module": (
        nn.Conv1d(2, 3, 1),
        nn.CrossEntropyLoss(ignore_index=2),
        torch.randn(1, 2, 4),
        torch.tensor([[1, 2, 0, 2]]),
    ),
}


def _gauss_newton(model: TorchModel, x: Tensor, y: Tensor) -> Tensor:
    """``J^T H J`` of one instance by automatic differentiation."""
    module = model.module
    values = {name: p.detach() for name, p in module.named_parameters()}

    def output(values: Any) -> Tensor:
        return functional_call(module, values, (x,))

    # The risk as a function of the output: a module that returns what it is given.
    returned = nn.Identity()
    z = output(values)
    curved = hessian(lambda z: model.risk(returned, (z, y)).sum())(z)
    curved = curved.reshape(z.numel(), z.numel())
    parts = jacrev(output)(values).values()
    jacobian = torch.cat([part.reshape(z.numel(), -1) for part in parts], 1)
    return (jacobian.T @ curved @ jacobian).detach()


@pytest.mark.parametrize("name", CASES)
def test_squared_gradients_average_to_the_gauss_newton_matrix(name: str) -> None:
    module, loss, x, y = CASES[name]
    module = module.double()
    x = x.double() if x.is_floating_point() else x
    y = y.double() if y.is_floating_point() else y
    model = TorchModel(module, loss=loss)
    repeated = tuple(v.expand(DRAWS, *v.shape[1:]).contiguous() for v in (x, y))
    drawn, instances = with_fisher_labels(model, repeated, seed=5)
    capture = GradientCapture(drawn, instances)
    total = 0.0
    with drawn.evaluating():
        for start in range(0, DRAWS, 4000):
            rows = slice(start, start + 4000)
            forms = capture(drawn.prepare(instances.batch(rows)), instances.ids[rows])
            flat = torch.cat([forms[p].flat() for p in model.selected], 1)
            total = total + flat.T @ flat / DRAWS
    assert isinstance(total, Tensor)
    assert relative_error(total, _gauss_newton(model, x, y)) < 0.03


def test_labels_depend_on_seed_and_position_alone() -> None:
    model = TorchModel(nn.Linear(2, 4), loss="cross_entropy")
    data = torch.randn(50, 2), torch.randint(0, 4, (50,))

    def risks(instances: Instances, drawn: TorchModel, size: int) -> Tensor:
        return drawn.risks(instances, batch_size=size)

    drawn, instances = with_fisher_labels(model, data, seed=7)
    whole = risks(instances, drawn, 50)
    assert torch.allclose(risks(instances, drawn, 7), whole, rtol=1e-13)
    chosen = np.array([41, 3, 3, 17])
    part = drawn.batch_risk(drawn.prepare(instances.batch(chosen)), 4)
    assert torch.allclose(part, whole[torch.as_tensor(chosen)], rtol=1e-13)
    assert torch.allclose(
        risks(instances.select(slice(20, 40)), drawn, 9), whole[20:40], rtol=1e-13
    )
    other, same = with_fisher_labels(model, data, seed=8)
    assert (risks(same, other, 50) != whole).sum() > 20
    # The global generator has no say.
    torch.manual_seed(99)
    assert torch.equal(risks(instances, drawn, 50), whole)


@pytest.mark.parametrize(
    "layout, loss",
    [
        ("classes", "cross_entropy"),
        ("tokens", "cross_entropy"),
        ("pixels", "cross_entropy"),
        ("causal", "causal_lm"),
        ("classes", nn.CrossEntropyLoss(reduction="sum")),
        ("pixels", nn.CrossEntropyLoss(reduction="sum")),
    ],
)
def test_risk_and_gradient_are_those_of_the_cross_entropy_at_one_class(
    layout: str, loss: Any
) -> None:
    n, count, places = 6, 5, 4
    shapes = {"classes": (n, count), "pixels": (n, count, 2, 2)}
    z = torch.randn(shapes.get(layout, (n, places, count)), requires_grad=True)
    y = torch.randint(0, count, (n,) if layout == "classes" else (n, places))
    if y.ndim > 1:
        y[y == 3] = -100
        y[:, -1] = 1
    y = y.view(n, 2, 2) if layout == "pixels" else y
    model, instances = with_fisher_labels(TorchModel(_Identity(), loss=loss), (z.detach(), y))
    _, companions = instances.batch(slice(0, n))
    risks = model.risk(_Identity(), ((z, y), companions))
    (slopes,) = torch.autograd.grad(risks.sum(), z)
    logits, kept = (z[:, :-1], y[:, 1:] != -100) if layout == "causal" else (z, y != -100)
    slopes = slopes[:, :-1] if layout == "causal" else slopes
    if layout == "pixels":
        logits, slopes = logits.movedim(1, -1), slopes.movedim(1, -1)
    logits, slopes = logits.reshape(n, -1, count), slopes.reshape(n, -1, count)
    kept = kept.reshape(n, -1)
    scale = 1 / kept.sum(1).sqrt() if isinstance(loss, str) else torch.ones(n)
    # One class alone has a slope below zero.
    assert torch.equal((slopes < 0).sum(2), kept.long())
    drawn = slopes.argmin(2)
    losses = nn.functional.cross_entropy(logits.mT, drawn, reduction="none") * kept
    expected = (losses.sum(1) * scale).sum()
    assert torch.allclose(risks.detach(), losses.sum(1).detach() * scale, rtol=1e-13)
    (gradient,) = torch.autograd.grad(expected, z)
    gradient = gradient[:, :-1] if layout == "causal" else gradient
    gradient = gradient.movedim(1, -1) if layout == "pixels" else gradient
    assert torch.allclose(slopes, gradient.reshape(n, -1, count), rtol=1e-12, atol=1e-15)


def test_a_logit_that_is_not_a_number_is_named() -> None:
    x = torch.randn(5, 4)
    x[3, 1] = float("nan")
    model, instances = with_fisher_labels(
        TorchModel(_Identity(), loss="cross_entropy"), (x, torch.zeros(5, dtype=torch.long))
    )
    with pytest.raises(NonFiniteError, match=r"ids 3\."):
        model.risks(instances)


def test_given_labels_are_put_in() -> None:
    model = TorchModel(nn.Linear(2, 4), loss="cross_entropy")
    x, y, given = torch.randn(9, 2), torch.randint(0, 4, (9,)), torch.randint(0, 4, (9,))
    drawn, instances = with_fisher_labels(model, (x, y), labels=given.numpy())
    expected = LOSSES["cross_entropy"](model.module(x), given)
    assert torch.allclose(drawn.risks(instances, batch_size=4), expected)
    # A risk of one's own, with its labels where they are looked for.
    own = TorchModel(
        model.module, risk=lambda m, b: nn.functional.cross_entropy(m(b[0]), b[1], reduction="none")
    )
    drawn, instances = with_fisher_labels(own, (x, y), labels=given)
    assert torch.allclose(drawn.risks(instances, batch_size=4), expected)
    observed, same = with_fisher_labels(own, (x, y), labels="observed")
    assert observed is own
    assert torch.allclose(observed.risks(same), own.risks((x, y)))


@pytest.mark.parametrize(
    "loss",
    [
        nn.CrossEntropyLoss(label_smoothing=0.1),
        nn.CrossEntropyLoss(weight=torch.ones(4)),
        nn.L1Loss(),
        lambda output, target: (output - target).abs().sum(1),
    ],
)
def test_a_risk_without_a_distribution_is_refused(loss: Any) -> None:
    model = TorchModel(nn.Linear(2, 4), loss=loss)
    with pytest.raises(InvalidInputError, match=r"labels=array.*labels='observed'"):
        with_fisher_labels(model, (torch.randn(3, 2), torch.zeros(3, 4)))


def test_labels_that_do_not_fit_are_refused() -> None:
    model = TorchModel(nn.Linear(2, 4), loss="cross_entropy")
    with pytest.raises(InvalidInputError, match="3 training instances"):
        with_fisher_labels(model, (torch.randn(3, 2), torch.zeros(3)), labels=torch.zeros(4))
