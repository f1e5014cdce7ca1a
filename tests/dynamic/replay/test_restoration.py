"""The user's module and the random state come back as they were, and moments stay honest."""

import random

import numpy as np
import pytest
import torch
from replayed_runs import Augmented, columns, normalised, plain, replay_of, train_and_record
from torch.nn import functional

from proponent.exceptions import RunError
from proponent.models.run import TrainingRun


def sgd(net):
    return torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)


def everything(net):
    tensors = [*net.parameters(), *net.buffers()]
    return {
        "addresses": [tensor.data_ptr() for tensor in tensors],
        "identities": [id(tensor) for tensor in tensors],
        "values": [tensor.detach().clone() for tensor in tensors],
        "flags": [parameter.requires_grad for parameter in net.parameters()],
        "gradients": [parameter.grad for parameter in net.parameters()],
        "modes": [part.training for part in net.modules()],
        "hooks": [len(part._forward_pre_hooks) for part in net.modules()],
        "python": random.getstate(),
        "numpy": np.random.get_state()[1].tolist(),
        "numpy_position": np.random.get_state()[2],
        "numpy_generator": id(np.random.get_bit_generator()),
        "torch": torch.get_rng_state(),
        "grad": torch.is_grad_enabled(),
    }


def same(found, expected):
    for key, value in expected.items():
        if key in ("values",):
            assert all(torch.equal(*pair) for pair in zip(found[key], value, strict=True)), key
        elif key == "torch":
            assert torch.equal(found[key], value)
        else:
            assert found[key] == value, key


@pytest.fixture
def live(tmp_path):
    return train_and_record(tmp_path, normalised, sgd, data=Augmented(columns()), seed=2, every=4)


def odd_state(net):
    """Put the module into a state of its own, other than any recorded one."""
    torch.manual_seed(11), np.random.seed(12), random.seed(13)
    with torch.no_grad():
        for tensor in net.parameters():
            tensor.add_(torch.randn_like(tensor))
    net[1].running_mean += 3
    net[0].weight.requires_grad_(False)
    net[3].eval()
    net[1].eval()
    return everything(net)


def test_the_module_is_as_it_was_at_every_yield(live):
    net = live.run.model.module
    before = odd_state(net)
    for moments in ("forward", "backward"):
        replay = replay_of(live)
        for moment in getattr(replay, moments)():
            same(everything(net), before)
            assert moment.gradient and moment.state is not None
            same(everything(net), before)
            with replay.entering(moment):
                assert net[0].weight.requires_grad and net[3].training
                assert torch.equal(net[0].weight, moment.parameters["0.weight"])
                batch, n = replay.batch(moment)
                live.run.model.batch_risk(batch, n).sum().backward()
                for parameter in net.parameters():
                    parameter.grad = None
            same(everything(net), before)
        assert replay.report["exact"]


@pytest.mark.parametrize("where", ["risk", "between", "entering"])
def test_the_module_is_as_it_was_after_an_error(live, where):
    net = live.run.model.module
    before = odd_state(net)
    calls = []

    def failing(module, batch):
        calls.append(1)
        if len(calls) > 3 and where == "risk":
            raise ZeroDivisionError
        return functional.cross_entropy(module(batch[0]), batch[1], reduction="none")

    live.run = TrainingRun.load(live.run.path, net, risk=failing)
    for moments in ("forward", "backward"):
        replay = replay_of(live)
        with pytest.raises(ZeroDivisionError):
            for moment in getattr(replay, moments)():
                if where == "between" and moment.step.index in (4, 7):
                    raise ZeroDivisionError
                if where == "entering":
                    with replay.entering(moment), torch.no_grad():
                        raise ZeroDivisionError
                assert moment.gradient
        calls.clear()
        same(everything(net), before)


def test_random_numbers_inside_are_those_of_the_training(live):
    replay = replay_of(live)
    for moment in replay.forward():
        with replay.entering(moment):
            (first, _), n = replay.batch(moment)
            (again, _), _ = replay.batch(moment)
            assert torch.equal(first, again) and n == len(moment.step.indices)
            clean = live.data.data[0][moment.step.indices.tolist()]
            assert not torch.equal(first, clean)
            risks = live.run.model.batch_risk(*replay.batch(moment))
            found = torch.autograd.grad(
                risks.sum() / n, [live.run.model.selected[name] for name in moment.gradient]
            )
        for gradient, expected in zip(found, moment.gradient.values(), strict=True):
            torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-15)


def test_a_moment_is_refused_once_the_replay_has_gone_on(live):
    replay = replay_of(live)
    moments = replay.forward()
    first = next(moments)
    kept = first.kept()
    parameters = {name: value.clone() for name, value in first.parameters.items()}
    next(moments)
    with pytest.raises(RunError, match=r"kept\(\)"):
        _ = first.state
    with pytest.raises(RunError, match=r"kept\(\)"), replay.entering(first):
        pass
    for name, value in parameters.items():
        assert torch.equal(kept.parameters[name], value)
        assert not torch.equal(first.parameters[name], value)
    assert kept.state == {}
    with replay.entering(kept):
        assert torch.equal(live.run.model.module[0].weight, parameters["0.weight"])
    assert set(kept.gradient) == set(parameters)


def test_a_gradient_that_was_provided_is_not_computed_again(tmp_path):
    live = train_and_record(tmp_path, plain, sgd)
    calls = []
    live.run.model.module.register_forward_pre_hook(lambda module, args: calls.append(1))
    replay = replay_of(live)
    for moment in replay.forward():
        moment.provide(live.optimizer_states[moment.step.index - 1].gradient)
    assert not calls and replay.report["exact"]
    # It is the gradient that the step is taken with.
    for moment in replay.forward():
        moment.provide({name: 2 * v for name, v in live.optimizer_states[0].gradient.items()})
        assert torch.equal(
            moment.gradient["2.bias"], 2 * live.optimizer_states[0].gradient["2.bias"]
        )
    assert not replay.report["exact"]


def test_a_provided_gradient_is_not_taken_where_buffers_follow_the_batch(live):
    replay = replay_of(live)
    for moment in replay.forward():
        moment.provide({name: torch.zeros_like(value) for name, value in moment.parameters.items()})
        assert any(value.any() for value in moment.gradient.values())
    assert replay.report["exact"]
