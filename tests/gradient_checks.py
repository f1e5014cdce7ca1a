"""What every test of the gradient engine does: capture in batches, compare with the slow truth."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from references import Dense, flat, gradients_by_loop, inner_products, relative_error
from torch import Tensor, nn

from proponent.data import Instances
from proponent.gradients.capture import GradientCapture
from proponent.gradients.forms import Form
from proponent.gradients.products import GradientQuery, Products
from proponent.models.torch import TorchModel

N = 7  # instances: batches of 3 and of 5 leave a ragged last one


class Written(nn.Module):
    """A module of some parts (modules, parameters, buffers) and a forward written out."""

    def __init__(self, forward: Callable[..., Any], **parts: Any) -> None:
        super().__init__()
        self.written = forward
        for name, part in parts.items():
            if isinstance(part, Tensor) and not isinstance(part, nn.Parameter):
                self.register_buffer(name, part)
            else:
                setattr(self, name, part)

    def forward(self, *inputs: Any, **named: Any) -> Any:
        return self.written(self, *inputs, **named)


def parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape))


def labels(classes: int = 4, n: int = N) -> Tensor:
    return torch.randint(0, classes, (n,))


def tokens(length: int = 5, vocabulary: int = 11, n: int = N) -> Tensor:
    return torch.randint(0, vocabulary, (n, length))


def capture_in_batches(
    model: TorchModel, data: Any, size: int, **options: Any
) -> tuple[GradientCapture, list[Mapping[str, Form]], list[int]]:
    """Capture a data set in batches of ``size`` instances, the last one ragged."""
    instances = Instances.of(data)
    capture = GradientCapture(model, instances, **options)
    parts, sizes = [], []
    with model.evaluating():
        for start in range(0, len(instances), size):
            where = slice(start, min(start + size, len(instances)))
            batch = model.prepare(instances.batch(where))
            parts.append(capture(batch, instances.ids[where]))
            sizes.append(where.stop - start)
    return capture, parts, sizes


def materialised(
    parts: list[Mapping[str, Form]], sizes: list[int], like: Mapping[str, Tensor]
) -> Dense:
    """Return the captured gradients ``(n, *shape)`` of the parameters in ``like``."""
    unknown = {name for part in parts for name in part} - set(like)
    assert not unknown, f"gradients of parameters that were not asked for: {unknown}"
    return {
        name: torch.cat(
            [
                part[name].materialise()
                if name in part
                else value.new_zeros(size, *value.shape[1:])
                for part, size in zip(parts, sizes, strict=True)
            ]
        )
        for name, value in like.items()
    }


def assert_same_gradients(found: Dense, expected: Dense, tolerance: float) -> None:
    """Compare norm-wise, parameter by parameter."""
    assert found.keys() == expected.keys()
    whole = float(flat(expected).norm())
    for name, value in expected.items():
        assert found[name].shape == value.shape, name
        size = float(value.double().norm())
        # A gradient that cancels exactly is rounding: held against the whole gradient.
        compared = size if size > 1e-10 * whole else whole
        error = float((found[name].double() - value.double()).norm()) / compared
        assert error < tolerance, f"{name}: relative error {error:.1e}"


def check_gradients(
    module: nn.Module,
    data: Any,
    *,
    loss: Any = None,
    risk: Any = None,
    parameters: Any = "all",
    differentiated: Any = (),
    sizes: tuple[int, ...] = (7, 3, 5),
    tolerance: float = 1e-12,
    **options: Any,
) -> GradientCapture:
    """Hold captured gradients and their products against one backward pass an instance.

    ``differentiated`` names the parameters that no rule is expected to cover; ``None`` leaves
    open how each gradient is had.
    """
    if risk is None and loss is None:
        loss = "cross_entropy"
    model = TorchModel(module, loss=loss, risk=risk, parameters=parameters)
    instances = Instances.of(data)
    n = len(instances)
    batch = model.prepare(instances.batch(slice(0, n)))
    reference = gradients_by_loop(model.module, model.risk, batch, n)
    expected = {name: reference[name] for name in model.selected}
    assert any(value.any() for value in expected.values()), "the test compares nothing but zeros"
    products = inner_products(expected, expected)
    for size in sizes:
        capture, parts, lengths = capture_in_batches(model, instances, size, **options)
        assert_same_gradients(materialised(parts, lengths, expected), expected, tolerance)
        if differentiated is not None:
            left = set(capture.coverage.differentiated)
            assert left == set(differentiated), f"differentiated: {left}"
        counted = capture.coverage.captured + capture.coverage.differentiated
        assert sorted(counted) == sorted(model.selected)
        for way in ("pair", "materialise"):
            query = GradientQuery(parts, lengths, Products(way))
            met = [
                query.meet(part, length, norms=True)
                for part, length in zip(parts, lengths, strict=True)
            ]
            assert relative_error(torch.cat([part for part, _ in met]), products) < tolerance
            squares = torch.cat([part for _, part in met])
            assert relative_error(squares, products.diagonal()) < tolerance
            assert relative_error(query.norms(), products.diagonal().sqrt()) < tolerance
    assert all(parameter.grad is None for parameter in module.parameters())
    return capture
