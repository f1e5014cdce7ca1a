"""The engine's bargain: no weight gradient is ever computed, only what it is made of."""

import pytest
import torch
from gradient_checks import N, labels, tokens
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from proponent.data import Instances
from proponent.gradients.capture import GradientCapture
from proponent.models.torch import TorchModel

PRODUCTS = {"mm", "addmm", "bmm", "baddbmm", "_unsafe_view"}


class Calls(TorchDispatchMode):
    """Keeps the name, the arguments and the shapes of the results of every operation."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        results = result if isinstance(result, (tuple, list)) else (result,)
        shapes = {tuple(r.shape) for r in results if isinstance(r, torch.Tensor)}
        self.seen.append((function.overloadpacket._qualified_op_name, args, shapes))
        return result


def calls_of_a_capture(module, data, **options):
    """Return what one capture of a batch and, for comparison, one backward pass calls."""
    model = TorchModel(module, **(options or {"loss": "cross_entropy"}))
    instances = Instances.of(data)
    capture = GradientCapture(model, instances)
    assert not capture.coverage.differentiated
    batch = model.prepare(instances.batch(slice(0, N)))
    with model.evaluating():
        with Calls() as calls:
            capture(batch, instances.ids)
        with Calls() as plain:
            risk = model.batch_risk(batch, N).sum()
            torch.autograd.grad(risk, list(model.selected.values()))
    return calls.seen, plain.seen


def weight_shaped(seen, module):
    """Return the operations that return a tensor of the shape of a weight or its transpose."""
    matrices = {tuple(p.shape) for p in module.parameters() if p.ndim == 2}
    matrices |= {shape[::-1] for shape in matrices}
    return [
        name
        for name, _, shapes in seen
        if name.removeprefix("aten::") in PRODUCTS and shapes & matrices
    ]


def mlp():
    # No two widths are equal, and none is the number of instances.
    return nn.Sequential(
        nn.Linear(11, 13), nn.ReLU(inplace=True), nn.Linear(13, 17), nn.ReLU(inplace=True),
        nn.Linear(17, 4),
    )  # fmt: skip


def test_linear_layers():
    module = mlp()
    captured, plain = calls_of_a_capture(module, (torch.randn(N, 11), labels()))
    assert not weight_shaped(captured, module)
    assert len(weight_shaped(plain, module)) == 3  # the test sees them where there are any


def test_linear_layers_on_sequences():
    module = nn.Sequential(mlp(), nn.Flatten(), nn.Linear(20, 4))
    captured, plain = calls_of_a_capture(module, (torch.randn(N, 5, 11), labels()))
    assert not weight_shaped(captured, module)
    assert len(weight_shaped(plain, module)) == 4


def convolutions(seen):
    """Return which of (input, weight, bias) each convolution's backward pass was asked for."""
    return [list(args[-1]) for name, args, _ in seen if name == "aten::convolution_backward"]


def test_convolutions():
    module = nn.Sequential(
        nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.ReLU(inplace=True), nn.Conv2d(5, 6, 3),
        nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(24, 4),
    )  # fmt: skip
    captured, plain = calls_of_a_capture(module, (torch.randn(N, 3, 6, 6), labels()))
    asked = convolutions(captured)
    assert [weight for _, weight, _ in asked] == [False] * len(asked)
    # The first layer needs no backward pass at all, as nothing lies before it.
    assert len(asked) == 1
    assert [weight for _, weight, _ in convolutions(plain)] == [True, True]
    assert not weight_shaped(captured, module)


@pytest.mark.parametrize("norm", [nn.LayerNorm, nn.RMSNorm])
def test_norms_and_embeddings(norm):
    module = nn.Sequential(
        nn.Embedding(11, 13), norm(13), nn.Linear(13, 17), nn.Tanh(), nn.Flatten(), nn.Linear(85, 4)
    )
    captured, plain = calls_of_a_capture(module, (tokens(), labels()))
    names = {name for name, _, _ in captured}
    assert "aten::embedding_dense_backward" not in names
    assert "aten::embedding_dense_backward" in {name for name, _, _ in plain}
    for name, args, _ in captured:
        if name == "aten::native_layer_norm_backward":
            assert list(args[-1]) == [True, False, False]
    assert not weight_shaped(captured, module)


def test_only_as_far_back_as_the_chosen_layers():
    """With the last layer chosen, the layers before it are not differentiated."""
    module = mlp()
    options = {"loss": "cross_entropy", "parameters": "last"}
    captured, _ = calls_of_a_capture(module, (torch.randn(N, 11), labels()), **options)
    names = [name for name, _, _ in captured]
    assert "aten::threshold_backward" not in names
    assert not [name for name in names if name == "aten::mm"]


def test_one_forward_pass_a_batch():
    module = mlp()
    calls = []
    module[0].register_forward_hook(lambda layer, inputs, output: calls.append(len(output)))
    model = TorchModel(module, loss="cross_entropy")
    instances = Instances.of((torch.randn(N, 11), labels()))
    capture = GradientCapture(model, instances)
    calls.clear()
    with model.evaluating():
        capture(model.prepare(instances.batch(slice(0, N))), instances.ids)
    assert calls == [N]
