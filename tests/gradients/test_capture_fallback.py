"""What no rule covers is differentiated instance by instance: slower, never wrong, never lost."""

import pytest
import torch
from gradient_checks import N, Written, capture_in_batches, check_gradients, labels, tokens
from references import gradients_by_loop, relative_error
from torch import nn
from torch.utils.checkpoint import checkpoint

from proponent.data import Instances
from proponent.gradients import fallback
from proponent.models.torch import TorchModel

LATE = 20  # instances, of which those that make the difference are in no small probe


def named(module: nn.Module, *parts: str) -> set[str]:
    return {name for name, _ in module.named_parameters() if name.split(".")[0] in parts}


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("batch_first", [True, False])
def test_recurrent_layers(kind, batch_first):
    def forward(self, x):
        x = self.first(x)
        out, _ = self.recurrent(x if batch_first else x.transpose(0, 1))
        return self.last(out[:, -1] if batch_first else out[-1])

    module = Written(
        forward,
        first=nn.Linear(3, 5),
        recurrent=kind(5, 4, num_layers=2, batch_first=batch_first),
        last=nn.Linear(4, 4),
    )
    data = torch.randn(N, 5, 3), labels()
    check_gradients(module, data, differentiated=named(module, "recurrent"))


def test_bidirectional_recurrent_layer():
    module = Written(
        lambda self, x: self.last(self.recurrent(x)[0].mean(1)),
        recurrent=nn.LSTM(3, 4, bidirectional=True, batch_first=True),
        last=nn.Linear(8, 4),
    )
    data = torch.randn(N, 5, 3), labels()
    check_gradients(module, data, differentiated=named(module, "recurrent"))


def test_recurrent_cell():
    def forward(self, x):
        hidden = None
        for step in range(x.shape[1]):
            hidden = self.cell(x[:, step], hidden)
        return self.last(hidden)

    module = Written(forward, cell=nn.GRUCell(3, 4), last=nn.Linear(4, 4))
    data = torch.randn(N, 5, 3), labels()
    check_gradients(module, data, differentiated=None)


@pytest.mark.parametrize(
    "layer, shape, after",
    [
        (lambda: nn.PReLU(), (6,), 6),
        (lambda: nn.PReLU(6), (6, 3), 18),
        (lambda: nn.ConvTranspose1d(6, 2, 3, stride=2), (6, 3), 14),
        (lambda: nn.ConvTranspose2d(6, 2, 2, groups=2), (6, 2, 2), 18),
    ],
)
def test_layers_without_a_rule(layer, shape, after):
    size = torch.Size(shape).numel()
    module = nn.Sequential(
        nn.Linear(3, size), nn.Unflatten(1, shape), layer(), nn.Flatten(), nn.Linear(after, 4)
    )
    data = torch.randn(N, 3), labels()
    check_gradients(module, data, differentiated=named(module, "2"))


def test_bilinear():
    module = Written(
        lambda self, x, y: self.last(torch.tanh(self.product(x, y))),
        product=nn.Bilinear(6, 3, 5),
        last=nn.Linear(5, 4),
    )
    data = torch.randn(N, 6), torch.randn(N, 3), labels()
    check_gradients(module, data, differentiated=named(module, "product"))


@pytest.mark.parametrize("mode", ["mean", "sum", "max"])
def test_embedding_bag(mode):
    module = nn.Sequential(nn.EmbeddingBag(11, 6, mode=mode), nn.Tanh(), nn.Linear(6, 4))
    check_gradients(module, (tokens(), labels()), differentiated={"0.weight"})


@pytest.mark.parametrize("kind", [nn.Embedding, nn.EmbeddingBag])
def test_sparse_gradients(kind):
    module = nn.Sequential(
        kind(11, 6, sparse=True), nn.Unflatten(1, (-1, 1)), nn.Flatten(), nn.LazyLinear(4)
    )
    module(tokens())
    check_gradients(module, (tokens(), labels()), differentiated=None)


def test_embedding_that_counts_its_tokens():
    # The count is that of the batch, so the gradient of an instance is that of it alone.
    module = nn.Sequential(
        nn.Embedding(11, 6, scale_grad_by_freq=True), nn.Flatten(), nn.Linear(30, 4)
    )
    check_gradients(module, (tokens(5, 4), labels()), differentiated={"0.weight"})


def branching():
    def forward(self, x):
        chosen = [self.first(row) if row.sum() > 0 else self.second(row) for row in x]
        return self.last(torch.tanh(torch.stack(chosen)))

    return Written(forward, first=nn.Linear(6, 5), second=nn.Linear(6, 5), last=nn.Linear(5, 4))


def test_control_flow_that_depends_on_the_instance():
    check_gradients(branching(), (torch.randn(N, 6), labels()), differentiated=None)


def test_control_flow_first_met_after_the_probe():
    x = torch.randn(N, 6).abs()
    x[4:] = -x[4:]
    check_gradients(branching(), (x, labels()), differentiated=None)


def test_control_flow_met_late_by_a_module_that_writes_to_its_input():
    """A batch that has to be differentiated after all must still be what it was."""

    def forward(self, x):
        x = x.sub_(0.5)
        hidden = torch.tanh(self.first(x))
        if bool((x[:, 0] > 5).any()):
            hidden = hidden + torch.tanh(self.second(x)) * (x[:, :1] > 5)
        return self.last(hidden)

    module = Written(forward, first=nn.Linear(6, 5), second=nn.Linear(6, 5), last=nn.Linear(5, 4))
    x = torch.randn(LATE, 6)
    x[[2, 7, 13], 0] = 9.0
    before = x.clone()
    check_gradients(module, (x, labels(n=LATE)), differentiated=None, sizes=(20, 6))
    assert torch.equal(x, before)


def test_depth_that_depends_on_the_instances():
    # Later batches are deeper than the probe, a call at a time.
    def forward(self, x):
        for _ in range(int(x[:, 0].max())):
            x = torch.tanh(self.shared(x))
        return self.last(x)

    def risk(module, batch):
        return torch.cat(
            [
                model_risk(module, (batch[0][i : i + 1], batch[1][i : i + 1]))
                for i in range(len(batch[1]))
            ]
        )

    module = Written(forward, shared=nn.Linear(6, 6), last=nn.Linear(6, 4))
    model_risk = TorchModel(module, loss=nn.CrossEntropyLoss()).risk
    x = torch.randn(N, 6)
    x[:, 0] = torch.tensor([1.0, 1.0, 1.0, 2.0, 3.0, 1.0, 2.0])
    check_gradients(module, (x, labels()), risk=risk, differentiated=None)


@pytest.mark.parametrize("late", [(2,), (7, 8), (13,)])
def test_instances_sorted_inside_the_module(late):
    """Rows of a layer that are not the batch's rows, though there are as many."""

    def forward(self, x):
        order = x[:, 0].argsort(stable=True)
        hidden = torch.tanh(self.first(x[order]))
        return self.last(hidden)[order.argsort()]

    module = Written(forward, first=nn.Linear(6, 5), last=nn.Linear(5, 4))
    x = torch.randn(LATE, 6)
    x[:, 0] = 0.0  # most are equal, and sorting leaves them where they are
    x[list(late), 0] = 1.0
    data = x, labels(n=LATE)
    check_gradients(module, data, differentiated=None, sizes=(20, 6))


@pytest.mark.parametrize("late", [(2, 3), (7, 8), (12, 13)])
def test_tokens_sent_to_experts(late):
    """As many tokens for each expert as twice the instances, but not two of each."""

    def forward(self, x):
        chosen = x[..., 0] > 0
        hidden = torch.zeros_like(x)
        hidden[chosen] = self.first(x[chosen])
        hidden[~chosen] = self.second(x[~chosen])
        return self.last(torch.tanh(hidden).mean(1))

    module = Written(forward, first=nn.Linear(6, 6), second=nn.Linear(6, 6), last=nn.Linear(6, 4))
    x = torch.randn(LATE, 4, 6)
    counts = [2] * LATE
    counts[late[0]], counts[late[1]] = 3, 1
    for row, count in enumerate(counts):
        x[row, :, 0] = -1.0
        x[row, :count, 0] = 1.0
    data = x, labels(n=LATE)
    check_gradients(module, data, differentiated=None, sizes=(20, 5))


def test_last_token_of_each_sequence():
    """Rows chosen by content that do keep the instances apart, and in place."""

    def forward(self, x, lengths):
        hidden = torch.tanh(self.first(x))
        return self.last(hidden[torch.arange(len(x)), lengths])

    module = Written(forward, first=nn.Linear(6, 5), last=nn.Linear(5, 4))
    data = torch.randn(N, 4, 6), torch.arange(N) % 4, labels()
    check_gradients(module, data)


class Squared(torch.autograd.Function):
    """A product of the user's own, which torch can neither see through nor vectorise."""

    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight)
        return x @ weight.square()

    @staticmethod
    def backward(ctx, gradient):
        x, weight = ctx.saved_tensors
        return gradient @ weight.square().T, x.T @ gradient * 2 * weight


def test_function_of_the_users_own():
    def forward(self, x):
        return self.last(torch.tanh(Squared.apply(self.first(x), self.weight)))

    module = Written(
        forward,
        first=nn.Linear(3, 6),
        weight=nn.Parameter(torch.randn(6, 5)),
        last=nn.Linear(5, 4),
    )
    check_gradients(module, (torch.randn(N, 3), labels()), differentiated={"weight"})


def test_parameter_used_in_the_open_and_out_of_sight():
    # A rule covers one of the two uses: the parameter must not be counted by half.
    def forward(self, x):
        hidden = torch.tanh(Squared.apply(x, self.shared.weight))
        return self.last(torch.tanh(self.shared(hidden)))

    module = Written(forward, shared=nn.Linear(6, 6), last=nn.Linear(6, 4))
    check_gradients(module, (torch.randn(N, 6), labels()), differentiated={"shared.weight"})


@pytest.mark.parametrize(
    "make, shape",
    [
        (lambda: nn.Sequential(nn.Linear(6, 8), nn.ReLU(inplace=True), nn.Linear(8, 6)), (6,)),
        (lambda: nn.Conv1d(3, 3, 3, padding=1), (3, 6)),
        (lambda: nn.TransformerEncoderLayer(6, 2, 8, batch_first=True), (3, 6)),
    ],
    ids=["mlp", "convolution", "attention"],
)
def test_activation_checkpointing(make, shape):
    def forward(self, x):
        x = checkpoint(self.part, self.first(x), use_reentrant=False)
        return self.last(torch.tanh(x).flatten(1))

    module = Written(
        forward,
        first=nn.Linear(6, 6),
        part=make(),
        last=nn.Linear(torch.Size(shape).numel(), 4),
    )
    check_gradients(module, (torch.randn(N, *shape), labels()), differentiated=None)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
def test_scripted_module():
    part = nn.Sequential(nn.Linear(6, 5), nn.Tanh())
    module = nn.Sequential(torch.jit.script(part), nn.Linear(5, 4))
    data = torch.randn(N, 6), labels()
    check_gradients(module, data, differentiated=named(module, "0"))
    whole = torch.jit.script(nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4)))
    check_gradients(whole, data, differentiated=None)


def test_compiled_module_is_seen_through():
    plain = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4))
    compiled = torch.compile(plain, backend="eager")
    check_gradients(compiled, (torch.randn(N, 6), labels()))
    assert TorchModel(compiled, loss="mse").module is plain


@pytest.mark.parametrize("loss", ["cross_entropy", "bce_with_logits", "mse", "causal_lm"])
def test_named_losses_can_be_vectorised(loss, monkeypatch):
    """One pass an instance is the last resort, not the way for every named loss."""
    if loss == "causal_lm":
        module = nn.Sequential(nn.Embedding(11, 6), nn.PReLU(), nn.Linear(6, 11))
        data = tokens(), tokens()
    else:
        module = nn.Sequential(nn.Linear(6, 5), nn.PReLU(), nn.Linear(5, 4))
        data = torch.randn(N, 6), labels() if loss == "cross_entropy" else torch.rand(N, 4)
    model = TorchModel(module, loss=loss)
    instances = Instances.of(data)
    batch = model.prepare(instances.batch(slice(0, N)))
    expected = gradients_by_loop(module, model.risk, batch, N)

    def refuse(*arguments):
        raise AssertionError("one backward pass an instance")

    monkeypatch.setattr(fallback, "separate_gradients", refuse)
    with model.evaluating():
        found = fallback.vectorised_gradients(model, dict(model.selected), batch, N)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert relative_error(found[name], value) < 1e-12


def test_frozen_parameters_are_not_differentiated():
    module = nn.Sequential(nn.Linear(6, 5), nn.PReLU(), nn.Linear(5, 4))
    module[0].requires_grad_(False)
    capture = check_gradients(module, (torch.randn(N, 6), labels()), differentiated={"1.weight"})
    assert set(capture.coverage.captured) == {"2.weight", "2.bias"}


def test_parameters_that_the_risk_does_not_depend_on():
    module = Written(
        lambda self, x: self.used(x),
        unused=nn.Linear(6, 6),
        alone=nn.PReLU(),
        used=nn.Linear(6, 4),
    )
    check_gradients(module, (torch.randn(N, 6), labels()))


def test_parameter_whose_gradient_is_stopped():
    module = Written(
        lambda self, x: self.last(torch.tanh(self.first(x)).detach()),
        first=nn.Linear(6, 5),
        last=nn.Linear(5, 4),
    )
    check_gradients(module, (torch.randn(N, 6), labels()))


def test_nothing_but_unused_parameters():
    module = Written(lambda self, x: x.mean(1), unused=nn.Linear(6, 6))
    model = TorchModel(module, risk=lambda module, batch: module(batch[0]).square())
    capture, parts, _ = capture_in_batches(model, (torch.randn(N, 6), labels()), 3)
    assert all(not form.materialise().any() for part in parts for form in part.values())
    assert set(capture.coverage.captured) == {"unused.weight", "unused.bias"}
