"""HyDRA against central differences of retraining, plain loops, and itself the other way round."""

import numpy as np
import pytest
import torch
from references import flat, gradients_by_loop
from retrained_runs import TEST, TRAIN, N, Setup, relative_error, two_groups
from torch import nn
from traced_runs import as_batch, cross_entropies, in_batches, make_images, mlp

import proponent as pp
from proponent.dynamic.hydra import HyDRA
from proponent.dynamic.sgd_influence import SGDInfluence
from proponent.exceptions import InvalidInputError, MethodCapabilityError, RunError

EXACT = 1e-12
DIFFERENCED = 1e-8
SGD, ADAM, ADAMW = torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW


def plain(kind, **settings):
    return lambda module: kind(module.parameters(), **settings)


SETUPS = {
    "sgd": Setup(plain(SGD, lr=0.3)),
    "weight decay": Setup(plain(SGD, lr=0.3, weight_decay=0.05)),
    "momentum": Setup(plain(SGD, lr=0.1, momentum=0.9, dampening=0.3, weight_decay=0.05)),
    "nesterov": Setup(plain(SGD, lr=0.1, momentum=0.8, nesterov=True, weight_decay=0.05)),
    "adam": Setup(plain(ADAM, lr=0.02, weight_decay=0.05), record={"optimizer_state": True}),
    "adamw": Setup(plain(ADAMW, lr=0.02, weight_decay=0.05), record={"every": "epoch"}),
    "clipped": Setup(plain(SGD, lr=0.3, momentum=0.5), clip=0.4),
    "schedule": Setup(plain(SGD, lr=0.3, momentum=0.5), decay=0.8),
    "two groups": Setup(
        lambda module: two_groups(module, ADAMW, lr=0.02, weight_decay=0.1), clip=0.5, decay=0.9
    ),
    "two groups of sgd": Setup(
        lambda module: two_groups(module, SGD, lr=0.2, momentum=0.5, weight_decay=0.1),
        clip=0.5,
        decay=0.9,
    ),
    # Instance 3 stands twice in the first batch, instance 0 three times in the last.
    "copies": Setup(
        plain(SGD, lr=0.3, momentum=0.5), batches=[[3, 1, 3, 0], [2, 3, 4], [0, 0, 5, 0, 6]]
    ),
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return {name: setup.recorded(folder / name) for name, setup in SETUPS.items()}


@pytest.mark.parametrize("name", SETUPS)
def test_standard_is_the_derivative_of_retraining(runs, name):
    influence = HyDRA().fit(runs[name], TRAIN).influence(TEST)
    instances = (0, 3, 12) if name != "copies" else (0, 3, 5)
    expected = [SETUPS[name].differences(i)[0] for i in instances]
    found = influence.values[:, list(instances)]
    assert relative_error(found, np.stack(expected, 1)) < DIFFERENCED
    if name == "copies":
        assert not influence.values[:, 7:].any()  # these were never drawn


@pytest.mark.parametrize("name", SETUPS)
@pytest.mark.parametrize("approximation", ["standard", "fast"])
def test_backward_is_forward(runs, name, approximation):
    backward = HyDRA(approximation).fit(runs[name], TRAIN)
    forward = HyDRA(approximation, track=range(N)).fit(runs[name], TRAIN)
    expected = backward.influence(TEST)
    assert relative_error(forward.influence(TEST).values, expected.values) < EXACT
    assert (
        relative_error(forward.influence(TEST, joint=True).values, expected.values.sum(0)) < EXACT
    )
    joint = backward.influence(TEST, joint=True).values
    assert relative_error(joint, expected.values.sum(0)) < EXACT


def gradients_at(run, checkpoint, data):
    with run.at(checkpoint):
        module = run.model.module.eval()
        rows = gradients_by_loop(module, cross_entropies, as_batch(module, data), len(data[1]))
        return flat(rows).numpy()


def test_fast_is_equation_64(tmp_path):
    setup = Setup(plain(SGD, lr=0.3), decay=0.9, record={"every": 1})
    run = setup.recorded(tmp_path)
    test = gradients_at(run, run.checkpoints[-1], TEST)
    expected = np.zeros((len(TEST[1]), N))
    for step, checkpoint in zip(run.steps, run.checkpoints, strict=False):
        train = gradients_at(run, checkpoint, TRAIN)
        (rate,) = step.learning_rates
        for i in step.indices:
            expected[:, i] += rate / len(step.indices) * (test @ train[i])
    assert relative_error(HyDRA("fast").fit(run, TRAIN).influence(TEST).values, expected) < EXACT


def test_fast_with_momentum_and_decay_is_the_recursion_of_each_hypergradient(tmp_path):
    settings = {"lr": 0.1, "momentum": 0.8, "weight_decay": 0.1}
    run = Setup(plain(SGD, **settings), record={"every": 1}).recorded(tmp_path)
    h, m = 0.0, 0.0
    for step, checkpoint in zip(run.steps, run.checkpoints, strict=False):
        g = gradients_at(run, checkpoint, TRAIN)
        here = np.isin(np.arange(N), step.indices)[:, None]
        q = 0.1 * h + N / len(step.indices) * here * g
        m = 0.8 * m + q
        h = h - 0.1 * m
    expected = -gradients_at(run, run.checkpoints[-1], TEST) @ h.T / N
    method = HyDRA("fast", track=[4, 2]).fit(run, TRAIN)
    rows = [part.reshape(2, -1) for part in method.hypergradients().values()]
    assert relative_error(np.concatenate(rows, 1), h[[4, 2]]) < EXACT
    assert relative_error(HyDRA("fast").fit(run, TRAIN).influence(TEST).values, expected) < EXACT


def test_deletion_corrected_goes_on_under_the_other_instances_hessian(tmp_path):
    rate = 0.3
    run = Setup(plain(SGD, lr=rate), record={"every": 1}).recorded(tmp_path)
    module = mlp()
    names = [name for name, _ in module.named_parameters()]
    shapes = [p.shape for p in module.parameters()]
    columns = as_batch(module, TRAIN)

    def risks(theta, rows):
        cut = theta.split([shape.numel() for shape in shapes])
        values = {n: c.view(s) for n, c, s in zip(names, cut, shapes, strict=True)}
        output = torch.func.functional_call(module, values, (columns[0][rows],))
        return nn.functional.cross_entropy(output, columns[1][rows], reduction="none")

    expected = []
    for i in (1, 6):
        change = torch.zeros(sum(shape.numel() for shape in shapes), dtype=torch.float64)
        for step, checkpoint in zip(run.steps, run.checkpoints, strict=False):
            state = checkpoint.load()
            theta = torch.cat([state[name].flatten() for name in names])
            rows = step.indices.tolist()
            others = [row for row in rows if row != i]
            size = len(rows)
            hessian = torch.func.hessian(lambda t, o=others, s=size: risks(t, o).sum() / s)(theta)
            move = hessian @ change
            if i in rows:
                move -= torch.func.grad(lambda t, i=i: risks(t, [i]).sum())(theta) / size
            change = change - rate * move
        expected.append(change)
    expected = gradients_at(run, run.checkpoints[-1], TEST) @ torch.stack(expected).numpy().T
    method = HyDRA(track=[1, 6], deletion_corrected=True).fit(run, TRAIN)
    influence = method.influence(TEST)
    assert relative_error(influence.values[:, [1, 6]], expected) < EXACT
    assert np.isnan(np.delete(influence.values, [1, 6], 1)).all()
    plain_values = HyDRA().fit(run, TRAIN).influence(TEST).values[:, [1, 6]]
    assert relative_error(influence.values[:, [1, 6]], plain_values) > 1e-3


@pytest.mark.parametrize("first", [1, 4, 9])
def test_a_horizon_counts_the_last_steps(runs, first):
    horizon = 9 - first + 1
    for approximation in ("standard", "fast"):
        back = HyDRA(approximation, horizon=horizon).fit(runs["momentum"], TRAIN).influence(TEST)
        tracked = HyDRA(approximation, horizon=horizon, track=range(N)).fit(runs["momentum"], TRAIN)
        assert relative_error(back.values, tracked.influence(TEST).values) < EXACT
        assert back.diagnostics["steps"] == (first, 9) or back.diagnostics["steps"] == [first, 9]
    if first > 1:
        found = HyDRA(horizon=horizon).fit(runs["momentum"], TRAIN).influence(TEST).values
        drawn = int(runs["momentum"].steps[-1].indices[0])
        expected = SETUPS["momentum"].differences(drawn, first=first)[0]
        assert relative_error(found[:, drawn], expected) < DIFFERENCED


@pytest.mark.parametrize("name", ["momentum", "adam", "clipped"])
@pytest.mark.parametrize("approximation", ["standard", "fast"])
def test_blocks_of_tests_and_of_train_give_the_same_numbers(runs, name, approximation):
    whole = HyDRA(approximation).fit(runs[name], TRAIN)
    size = 48 * 8  # of the parameters
    small = HyDRA(approximation, memory=10 * size).fit(runs[name], TRAIN)
    expected = whole.influence(TEST).values
    assert relative_error(small.influence(TEST).values, expected) < EXACT
    parts = [small.influence(TEST, shard=(i, 3)).values for i in range(3)]
    assert relative_error(np.concatenate(parts, 1), expected) < EXACT
    diagonal = whole.influence(TRAIN).values.diagonal()
    assert relative_error(small.memorization().values, diagonal) < EXACT
    strongest = whole.influence(TEST, top_k=3).proponents(3)
    assert np.array_equal(strongest.positions, np.argsort(-expected, 1, kind="stable")[:, :3])


class Dropout(nn.Module):
    """A small convolutional network with dropout and a linear layer that is called twice."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.convolution = nn.Conv2d(1, 2, 3)
        self.dropout = nn.Dropout(0.3)
        self.twice = nn.Linear(8, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        x = nn.functional.avg_pool2d(torch.tanh(self.convolution(x)), 2).flatten(1)
        x = self.dropout(torch.tanh(self.twice(x)))
        return self.head(torch.tanh(self.twice(x)))


@pytest.mark.parametrize("optimizer", [plain(SGD, lr=0.3, momentum=0.5), plain(ADAM, lr=0.05)])
def test_a_convolutional_network_with_dropout(tmp_path, optimizer):
    train, test = make_images(), make_images(1, n=3)
    setup = Setup(
        optimizer, Dropout, train, test, in_batches(11, 4, 2), record={"seed": 5, "every": 3}
    )
    run = setup.recorded(tmp_path / "run")
    influence = HyDRA().fit(run, train).influence(test)
    assert influence.diagnostics["replay"]["exact"]
    expected = [setup.differences(i, path=tmp_path / "other")[0] for i in (0, 7)]
    assert relative_error(influence.values[:, [0, 7]], np.stack(expected, 1)) < DIFFERENCED
    fast = HyDRA("fast").fit(run, train).influence(test).values
    forward = HyDRA("fast", track=range(11)).fit(run, train).influence(test).values
    assert relative_error(fast, forward) < EXACT


class Normalised(nn.Sequential):
    def __init__(self):
        torch.manual_seed(1)
        norm = nn.BatchNorm1d(5, momentum=None)
        super().__init__(nn.Linear(4, 5), norm, nn.Tanh(), nn.Linear(5, 3))


def test_batch_normalisation_while_training_moves_the_parameters_as_it_did(tmp_path):
    setup = Setup(plain(SGD, lr=0.3), Normalised, batches=in_batches(12, 4, 2))
    run = setup.recorded(tmp_path)
    changes = SGDInfluence().fit(run, TRAIN).parameter_changes([2, 7])
    for row, instance in enumerate((2, 7)):
        moved = setup.differences(instance)[1]
        for name, change in changes.items():
            assert np.allclose(-change[row], moved[name].numpy(), rtol=1e-6, atol=1e-9)
    for approximation in ("standard", "fast"):
        backward = HyDRA(approximation).fit(run, TRAIN).influence(TEST).values
        forward = HyDRA(approximation, track=range(N)).fit(run, TRAIN).influence(TEST).values
        assert relative_error(backward, forward) < EXACT


def test_an_unstable_training_is_reported(tmp_path):
    setup = Setup(plain(SGD, lr=60.0), batches=in_batches(N, N, 12))
    run = setup.recorded(tmp_path)
    influence = HyDRA().fit(run, TRAIN).influence(TEST)
    growth = influence.diagnostics["growth"]
    assert growth["largest"] > growth["bound"] and growth["left_bound_at_step"] is not None
    assert "horizon" in influence.diagnostics["warnings"][0]


# Refusals


def test_what_it_cannot_take_is_refused(runs, tmp_path):
    run = runs["momentum"]
    cases = [
        ({"approximation": "slow"}, "approximation"),
        ({"horizon": 0}, "horizon"),
        ({"divisor": "n"}, "divisor"),
        ({"deletion_corrected": True}, "track"),
        ({"track": [99]}, "no training instance has the id 99"),
        ({"track": [1, 1]}, "twice"),
        ({"track": [1], "deletion_corrected": True, "approximation": "fast"}, "standard"),
    ]
    for settings, message in cases:
        with pytest.raises(InvalidInputError, match=message):
            HyDRA(**settings).fit(run, TRAIN)
    with pytest.raises(InvalidInputError, match=r"without .*2\.weight"):
        HyDRA().fit(run.with_parameters("0.*"), TRAIN)
    with pytest.raises(InvalidInputError, match="run"):
        HyDRA().fit(run.model, TRAIN)
    with pytest.raises(MethodCapabilityError, match="track"):
        HyDRA().fit(run, TRAIN).hypergradients()
    with pytest.raises(MethodCapabilityError, match="track"):
        HyDRA(track=[1]).fit(run, TRAIN).memorization()


def test_other_optimizers_are_refused_by_name(tmp_path):
    run = Setup(plain(torch.optim.RMSprop, lr=0.01)).recorded(tmp_path / "rmsprop")
    with pytest.raises(RunError, match="RMSprop"):
        HyDRA().fit(run, TRAIN)
    run = Setup(plain(ADAM, lr=0.01, amsgrad=True)).recorded(tmp_path / "amsgrad")
    with pytest.raises(RunError, match="amsgrad"):
        HyDRA().fit(run, TRAIN)


def test_a_run_that_lacks_something_is_refused_before_work(tmp_path):
    net = mlp()
    optimizer = SGD(net.parameters(), lr=0.1)
    with (
        pytest.raises(KeyError),
        pp.Recorder(tmp_path, net, optimizer, loss="cross_entropy", train=TRAIN) as recorder,
    ):
        cross_entropies(net, as_batch(net, TRAIN)).mean().backward()
        recorder.step(range(N), clip_scale=None)
        optimizer.step()
        raise KeyError
    run = pp.TrainingRun.load(tmp_path, net)
    with pytest.raises(RunError, match="clip"):
        HyDRA().fit(run, TRAIN)
