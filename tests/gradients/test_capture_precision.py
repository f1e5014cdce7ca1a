"""Modules in other precisions than float64: what is held, and how exact it is."""

import pytest
import torch
from gradient_checks import N, Written, capture_in_batches, check_gradients, labels, materialised
from references import gradients_by_loop, relative_error
from torch import nn

from proponent.models.torch import TorchModel


def mlp():
    return nn.Sequential(
        nn.Linear(12, 16), nn.LayerNorm(16), nn.ReLU(inplace=True), nn.Linear(16, 4)
    )


def cnn():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.Conv2d(8, 8, 3),
        nn.Flatten(), nn.Linear(32, 4),
    )  # fmt: skip


@pytest.mark.parametrize(
    "dtype, tolerance", [(torch.float32, 1e-5), (torch.bfloat16, 5e-2), (torch.float16, 1e-2)]
)
@pytest.mark.parametrize("make, shape", [(mlp, (12,)), (cnn, (3, 6, 6))])
def test_module_in_one_precision(make, shape, dtype, tolerance):
    # The data stays in float64: its floating tensors are given the module's type.
    module = make().to(dtype)
    data = torch.randn(N, *shape), labels()
    capture = check_gradients(module, data, tolerance=tolerance)
    assert capture.dtype == torch.float32
    _, parts, _ = capture_in_batches(TorchModel(module, loss="cross_entropy"), data, 4)
    assert {form.materialise().dtype for part in parts for form in part.values()} == {torch.float32}


@pytest.mark.parametrize("make, shape", [(mlp, (12,)), (cnn, (3, 6, 6))])
@pytest.mark.parametrize("seed", range(3))
def test_autocast_inside_the_module(make, shape, seed):
    torch.manual_seed(seed)

    def forward(self, x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return self.inner(x).float()

    module = Written(forward, inner=make()).float()
    check_gradients(module, (torch.randn(N, *shape), labels()), tolerance=5e-2)


def test_autocast_around_the_engine():
    module = mlp().float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        check_gradients(module, (torch.randn(N, 12), labels()), tolerance=5e-2)


def test_products_in_double_precision_on_request():
    """What float32 loses when gradients are held and summed is not lost in float64."""
    module = mlp().float()
    data = torch.randn(N, 12), labels()
    model = TorchModel(module, loss="cross_entropy")
    _, parts, sizes = capture_in_batches(model, data, 3, dtype=torch.float64)
    assert {form.materialise().dtype for part in parts for form in part.values()} == {torch.float64}
    batch = tuple(part.float() if part.is_floating_point() else part for part in data)
    expected = gradients_by_loop(module, model.risk, batch, N)
    found = materialised(parts, sizes, expected)
    for name, value in expected.items():
        assert relative_error(found[name], value) < 1e-5


def half_and_full():
    """A body in half precision and a head in full precision."""

    def forward(self, x):
        return self.head(torch.relu(self.body(x.bfloat16())).float())

    return Written(forward, body=nn.Linear(12, 16).bfloat16(), head=nn.Linear(16, 4).float())


def test_two_precisions():
    data = torch.randn(N, 12), labels()
    check_gradients(half_and_full(), data, tolerance=5e-2)


def test_inputs_do_not_follow_the_choice_of_parameters():
    """Inputs belong to the first layer, whichever layers are chosen."""
    module = nn.Sequential(nn.Linear(12, 16).bfloat16(), nn.Tanh(), nn.Linear(16, 4).float())
    module[1].register_forward_hook(lambda layer, inputs, output: output.float())
    capture = check_gradients(
        module, (torch.randn(N, 12), labels()), parameters="last", tolerance=1e-5
    )
    assert capture.dtype == torch.float32


def test_gradients_that_are_large_in_half_precision():
    """Squares of half-precision gradients overflow; the check against the truth must not."""
    module = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 1)).half()

    def risk(module, batch):
        return 100 * module(batch[0])[:, 0]

    check_gradients(module, (torch.full((N, 4), 5.0), labels()), risk=risk, tolerance=1e-2)


def deep(width: int = 128) -> nn.Sequential:
    """Return layers whose rounding shows: it differs between one instance and a batch."""
    layers = [layer for _ in range(4) for layer in (nn.Linear(width, width), nn.Tanh())]
    return nn.Sequential(*layers)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", ["frozen half", "frozen single", "autocast"])
def test_coarse_body_under_a_fine_head(kind, seed):
    """Rounding in layers that are not chosen is no mixing of instances."""
    torch.manual_seed(seed)
    body, head = deep(), nn.Linear(128, 4)
    if kind == "frozen half":
        body, head = body.bfloat16(), head.float()
    elif kind == "frozen single":
        body = body.float()
    else:
        body, head = body.float(), head.float()

    def forward(self, x):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=kind == "autocast"):
            hidden = self.body(x)
        return self.head(10 * hidden.to(self.head.weight.dtype))

    module = Written(forward, body=body.requires_grad_(kind == "autocast"), head=head)
    capture = check_gradients(
        module,
        (torch.randn(N, 128), labels()),
        parameters="last",
        tolerance=1e-4 if kind == "frozen single" else 5e-2,
    )
    assert capture.dtype == head.weight.dtype
