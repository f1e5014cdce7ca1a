"""What the optimizer made of an instance's gradient, against steps of torch's own optimizers.

Second moments see squares alone: a step with the gradient G and one with -G have the same, and
differ by twice what the step makes of G. That quotient is the map, entry by entry.
"""

import copy

import numpy as np
import pytest
import torch
from references import gradients_by_vmap
from replayed_runs import normalised, train_and_record
from torch import nn
from traced_runs import as_batch, cross_entropies, error, in_batches, make_set, mlp

import proponent as pp
from proponent.exceptions import InvalidInputError, RunError

EXACT = 1e-9  # the quotients lose some digits where G is small
TRAIN, TEST = make_set(), make_set(1, n=4)
BATCHES = in_batches(13, 5, epochs=2)

OPTIMIZERS = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, dampening=0.3),
    "nesterov": lambda p: torch.optim.SGD(
        p, lr=0.1, momentum=0.8, nesterov=True, weight_decay=0.01
    ),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.03),
    "coupled": lambda p: torch.optim.Adam(p, lr=0.03, weight_decay=0.2, amsgrad=True),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.03, betas=(0.7, 0.95), weight_decay=0.2),
    "groups": lambda p: torch.optim.AdamW(
        [{"params": p[:2], "lr": 0.1}, {"params": p[2:], "betas": (0.5, 0.9)}], lr=0.03
    ),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=0.03, momentum=0.5, weight_decay=0.1),
    "Adagrad": lambda p: torch.optim.Adagrad(p, lr=0.1, lr_decay=0.3),
}
STATEFUL = [name for name in OPTIMIZERS if name not in ("SGD", "nesterov")]


class Studied:
    """A recorded run, and for each step the module and the optimizer just before it."""

    def __init__(self, path, make, net=None, clip=None, known=True, **options):
        net = net or mlp()
        self.make = make
        optimizer = make(list(net.parameters()))
        columns = as_batch(net, TRAIN)
        self.before = []
        options = {"optimizer_state": True, "every": 1} | options
        with pp.Recorder(
            path, net, optimizer, loss="cross_entropy", train=TRAIN, **options
        ) as recorder:
            for batch in BATCHES:
                optimizer.zero_grad()
                cross_entropies(net, tuple(c[batch] for c in columns)).mean().backward()
                scale = 1.0
                if clip is not None:
                    norm = torch.nn.utils.clip_grad_norm_(net.parameters(), clip)
                    scale = min(1.0, clip / (float(norm) + 1e-6))
                gradients = [p.grad.clone() for p in net.parameters()]
                self.before.append(
                    (copy.deepcopy(net), copy.deepcopy(optimizer.state_dict()), gradients, scale)
                )
                recorder.step(np.asarray(batch), clip_scale=scale if known else None)
                optimizer.step()
        self.run = pp.TrainingRun.load(path, copy.deepcopy(net))

    def stepped(self, t, sign):
        """Return how a real step of the optimizer moves the parameters, for G or -G."""
        net, state, gradients, _ = self.before[t - 1]
        net = copy.deepcopy(net)
        optimizer = self.make(list(net.parameters()))
        optimizer.load_state_dict(copy.deepcopy(state))
        start = [p.detach().clone() for p in net.parameters()]
        for group in optimizer.param_groups:
            group["foreach"] = False
        decays = {
            id(p): 0.0 if group.get("decoupled_weight_decay") else group["weight_decay"]
            for group in optimizer.param_groups
            for p in group["params"]
        }
        for parameter, gradient in zip(net.parameters(), gradients, strict=True):
            decay = decays[id(parameter)] * parameter.detach()
            parameter.grad = sign * (gradient + decay) - decay  # G is what the optimizer squares
        optimizer.step()
        whole = [
            g + decays[id(p)] * s
            for p, g, s in zip(net.parameters(), gradients, start, strict=True)
        ]
        return [p.detach() - s for p, s in zip(net.parameters(), start, strict=True)], whole

    def maps(self, t):
        """Return eta times the map, entry by entry, for each parameter."""
        (there, whole), (back, _) = self.stepped(t, 1.0), self.stepped(t, -1.0)
        return [(b - a) / (2 * g) for a, b, g in zip(there, back, whole, strict=True)]

    def influence(self, test, weights):
        """Return ``sum_t w_ti <g_te, eta U_t g_i>`` by plain loops."""
        total = np.zeros((len(test[1]), 13))
        for t, weight in weights.items():
            net = self.before[t - 1][0]
            sides = [
                gradients_by_vmap(net, cross_entropies, as_batch(net, d)) for d in (test, TRAIN)
            ]
            products = sum(
                sides[0][name].flatten(1) @ (u.flatten() * sides[1][name].flatten(1)).T
                for (name, _), u in zip(net.named_parameters(), self.maps(t), strict=True)
            )
            total += products.numpy() * np.asarray(weight)
        return total


@pytest.fixture(scope="module", params=list(OPTIMIZERS))
def studied(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "run"
    return Studied(path, OPTIMIZERS[request.param])


def test_the_step_that_the_optimizer_made(studied):
    method = pp.TracInCP(update="optimizer").fit(studied.run, TRAIN)
    weights = dict.fromkeys(range(1, 7), 1.0)
    expected = studied.influence(TEST, weights)
    found = method.influence(TEST)
    assert error(found.values, expected) < EXACT
    assert error(method.influence(TEST, joint=True).values, expected.sum(0)) < EXACT
    own = studied.influence(TRAIN, weights).diagonal()
    assert error(method.memorization().values, own) < EXACT
    assert "warnings" not in found.diagnostics
    every = {} if "SGD" in found.diagnostics["optimizer"] else {"recorded": 6}
    assert found.diagnostics["second_moments"] == every


def test_an_instances_part_of_the_steps_that_were_taken(studied):
    weights = {
        t: np.bincount(batch, minlength=13) / len(batch) for t, batch in enumerate(BATCHES, 1)
    }
    method = pp.TracIn(update="optimizer").fit(studied.run, TRAIN)
    assert error(method.influence(TEST).values, studied.influence(TEST, weights)) < EXACT


@pytest.mark.parametrize("name", [*STATEFUL, "SGD"])
@pytest.mark.parametrize("clip", [None, 0.3])
def test_second_moments_from_the_batch_where_they_were_not_recorded(tmp_path, name, clip):
    studied = Studied(tmp_path / "run", OPTIMIZERS[name], clip=clip, every=2)
    method = pp.TracInCP(update="optimizer").fit(studied.run, TRAIN)
    found = method.influence(TEST)
    assert error(found.values, studied.influence(TEST, {1: 1.0, 3: 1.0, 5: 1.0})) < EXACT
    if name not in ("SGD", "momentum"):
        assert found.diagnostics["second_moments"] == {"recomputed": 3}


def test_clipping_that_is_not_known_takes_the_moments_before_the_step(tmp_path):
    studied = Studied(tmp_path / "run", OPTIMIZERS["Adam"], clip=0.3, known=False, every=2)
    method = pp.TracInCP(update="optimizer", checkpoints=[3, 5]).fit(studied.run, TRAIN)
    found = method.influence(TEST)
    expected = np.zeros((4, 13))
    for t in (3, 5):
        net, state, _, _ = studied.before[t - 1]
        sides = [gradients_by_vmap(net, cross_entropies, as_batch(net, d)) for d in (TEST, TRAIN)]
        for index, name in enumerate(dict(net.named_parameters())):
            v = state["state"][index]["exp_avg_sq"] / (1 - 0.999 ** (t - 1))
            u = 0.03 * (1 - 0.9) / (1 - 0.9**t) / (v.sqrt() + 1e-8)
            sizes = sides[1][name].flatten(1) * u.flatten()
            expected += (sides[0][name].flatten(1) @ sizes.T).numpy()
    assert error(found.values, expected) < EXACT
    assert found.diagnostics["second_moments"] == {"before": 2}
    assert "before the step" in found.diagnostics["warnings"][0]
    with pytest.raises(RunError, match=r"before step 1 .* Record clip_scale"):
        pp.TracInCP(update="optimizer").fit(studied.run, TRAIN).influence(TEST)


def test_centred_moments(tmp_path):
    def make(parameters):
        return torch.optim.RMSprop(parameters, lr=0.03, centered=True)

    runs = [
        Studied(tmp_path / name, make, every=every) for name, every in (("all", 1), ("some", 3))
    ]
    expected = np.zeros((4, 13))
    for t in (1, 4):
        net = runs[0].before[t - 1][0]
        state = runs[0].before[t][1]["state"]
        sides = [gradients_by_vmap(net, cross_entropies, as_batch(net, d)) for d in (TEST, TRAIN)]
        for index, name in enumerate(dict(net.named_parameters())):
            variance = state[index]["square_avg"] - state[index]["grad_avg"] ** 2
            sizes = sides[1][name].flatten(1) * (0.03 / (variance.sqrt() + 1e-8)).flatten()
            expected += (sides[0][name].flatten(1) @ sizes.T).numpy()
    for studied in runs:
        method = pp.TracInCP(update="optimizer", checkpoints=[1, 4]).fit(studied.run, TRAIN)
        assert error(method.influence(TEST).values, expected) < EXACT


@pytest.mark.parametrize("products", ["auto", "pair", "materialise"])
@pytest.mark.parametrize("memory", [1, 2**29])
def test_neither_memory_nor_blocks_change_the_numbers(tmp_path, products, memory):
    studied = Studied(tmp_path / "run", OPTIMIZERS["Adam"], every=3)
    settings = {"products": products, "memory": memory, "batch_size": 2}
    method = pp.TracInCP(update="optimizer", **settings).fit(studied.run, TRAIN)
    expected = studied.influence(TEST, {1: 1.0, 4: 1.0})
    assert error(method.influence(TEST).values, expected) < EXACT
    shards = [method.influence(TEST, shard=(i, 2)) for i in range(2)]
    assert error(pp.Influence.join(shards).values, expected) < EXACT


def test_chosen_parameters_keep_their_part_of_the_map(tmp_path):
    studied = Studied(tmp_path / "run", OPTIMIZERS["coupled"], every=3)
    whole = pp.TracInCP(update="optimizer").fit(studied.run, TRAIN).influence(TEST).values
    parts = [
        pp.TracInCP(update="optimizer", parameters=name).fit(studied.run, TRAIN).influence(TEST)
        for name in ("0.*", "2.*")
    ]
    assert error(sum(part.values for part in parts), whole) < EXACT
    assert error(parts[0].values, whole) > 1e-2


def test_recomputing_with_dropout_is_said(tmp_path):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 5), nn.Dropout(0.5), nn.Linear(5, 3)).double()
    studied = Studied(tmp_path / "run", OPTIMIZERS["Adam"], net=net, every=3)
    found = pp.TracInCP(update="optimizer").fit(studied.run, TRAIN).influence(TEST)
    (warning,) = found.diagnostics["warnings"]
    assert warning.startswith("2 steps") and "Dropout drawn anew" in warning and "seed" in warning


@pytest.mark.parametrize("limit", [None, 0.2])
def test_the_map_of_a_recomputed_step_is_that_of_the_training(tmp_path, limit):
    """Without a first moment the whole step is the map of the batch's gradient, as trained.

    With batch normalisation and dropout, both at work.
    """

    def make(net):
        return torch.optim.Adam(net.parameters(), lr=0.02, betas=(0.0, 0.9))

    some, live = (
        train_and_record(tmp_path / str(k), normalised, make, every=k, seed=4, limit=limit)
        for k in (2, 1)
    )
    method = pp.TracInCP(update="optimizer").fit(some.run, some.data)
    module = some.run.model.module.eval()
    for checkpoint in some.run.checkpoints[:-1]:
        t = checkpoint.t
        with some.run.at(checkpoint), some.run.model.evaluating():
            buffers = {name: value.clone() for name, value in module.named_buffers()}
            metric = method._updates.metric_at(checkpoint)()
            assert not any(part.training for part in module.modules())
            assert all(torch.equal(v, buffers[n]) for n, v in module.named_buffers())
        for name, gradient in live.optimizer_states[t - 1].gradient.items():
            step = -0.02 * metric.factors[name] * metric.diagonals[name] * gradient
            taken = live.states[t][name] - live.states[t - 1][name]
            assert (step - taken).abs().max() < 1e-15  # of parameters about 1
    found = method.influence(some.data)
    assert found.diagnostics["second_moments"] == {"recomputed": 5}
    assert "warnings" not in found.diagnostics
    recorded = pp.TracInCP(update="optimizer", checkpoints=[1, 3, 5, 7, 9])
    expected = recorded.fit(live.run, live.data).influence(live.data)
    assert expected.diagnostics["second_moments"] == {"recorded": 5}
    assert error(found.values, expected.values) < EXACT


def test_refusals(tmp_path):
    adam = Studied(tmp_path / "adam", OPTIMIZERS["Adam"], optimizer_state=False)
    for method in (pp.TracInCP, pp.TracIn):
        with pytest.raises(RunError, match=r"optimizer_state=True"):
            method(update="optimizer").fit(adam.run, TRAIN)
        with pytest.raises(InvalidInputError, match="'gradient' or 'optimizer'"):
            method(update="adam").fit(adam.run, TRAIN)
    plain = Studied(tmp_path / "sgd", OPTIMIZERS["SGD"], optimizer_state=False)
    same = [pp.TracInCP(update=u).fit(plain.run, TRAIN) for u in ("gradient", "optimizer")]
    assert error(*(method.influence(TEST).values for method in same)) < 1e-14
    other = Studied(tmp_path / "max", lambda p: torch.optim.Adamax(p, lr=0.01))
    with pytest.raises(InvalidInputError, match=r"Adamax makes of a gradient is not known"):
        pp.TracInCP(update="optimizer").fit(other.run, TRAIN)
    upward = Studied(tmp_path / "up", lambda p: torch.optim.Adam(p, lr=0.01, maximize=True))
    with pytest.raises(InvalidInputError, match="maximised"):
        pp.TracInCP(update="optimizer").fit(upward.run, TRAIN)
