"""What the recorder writes: the states, the log, and nothing into the training itself."""

import json
import random

import numpy as np
import pytest
import torch
from recorded_runs import (
    N,
    assert_same_state,
    backward,
    copy_state,
    make_loader,
    make_net,
    make_set,
    plain_net,
    sgd,
    train,
)
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

from proponent.exceptions import InvalidInputError, RunError
from proponent.models.recorder import Recorder, indexed
from proponent.models.run import TrainingRun


class Augmented(Dataset):
    """Items that draw from all three global generators."""

    def __init__(self, data):
        self.data = data

    def __len__(self):
        return len(self.data[0])

    def __getitem__(self, position):
        noise = torch.randn(()) + random.random() + np.random.rand()
        return torch.as_tensor(self.data[0][position]) + noise, int(self.data[1][position])


def random_states():
    return torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()


def test_recording_changes_nothing_about_the_training(tmp_path):
    data = make_set()
    results = []
    for recorded in (False, True):
        random.seed(5), np.random.seed(5), torch.manual_seed(5)
        net = make_net(dropout=0.3)
        optimizer = sgd(net, momentum=0.9)
        net[3].eval()
        recorder = None
        if recorded:
            options = {"train": Augmented(data), "test": Augmented(make_set(1)), "every": 1}
            recorder = Recorder(
                tmp_path, net, optimizer, loss="cross_entropy", optimizer_state=True, **options
            )
            recorder.open()
        train(recorder, net, optimizer, make_loader(Augmented(data)))
        net[3].train()
        train(recorder, net, optimizer, make_loader(Augmented(data)))
        modes = [module.training for module in net.modules()]
        if recorded:
            recorder.close()
        results.append((copy_state(net), random_states(), modes, len(optimizer.state)))
        assert not optimizer._optimizer_step_post_hooks
    assert_same_state(results[1][0], results[0][0])
    assert torch.equal(results[1][1][0], results[0][1][0])
    assert results[1][1][1] == results[0][1][1]
    assert np.array_equal(results[1][1][2], results[0][1][2])
    assert results[1][2:] == results[0][2:]


@pytest.mark.parametrize(
    ("every", "expected"),
    [(1, range(1, 11)), (3, [1, 4, 7, 10]), ("epoch", [1, 6]), ([2, 5, 6], [2, 5, 6])],
)
def test_stored_states_are_those_before_the_steps(tmp_path, every, expected):
    data = make_set()
    net = make_net()
    optimizer = sgd(net)
    with Recorder(tmp_path, net, optimizer, loss="mse", train=data, every=every) as recorder:
        states, batches = train(recorder, net, optimizer, make_loader(data))
    run = TrainingRun.load(tmp_path, make_net())
    assert [checkpoint.t for checkpoint in run.checkpoints] == [*expected, 11]
    for checkpoint in run.checkpoints:
        assert_same_state(checkpoint.load(), states[checkpoint.t - 1])
    assert [step.indices.tolist() for step in run.steps] == batches
    assert [step.has_checkpoint for step in run.steps] == [t in expected for t in range(1, 11)]
    assert [step.divisor for step in run.steps] == [5, 5, 5, 5, 3] * 2
    assert run.complete and run.checkpoints[-1].final


def test_stored_states_are_safetensors_files(tmp_path):
    net = make_net().float()
    optimizer = sgd(net)
    with Recorder(tmp_path, net, optimizer):
        state = copy_state(net)
    assert_same_state(load_file(tmp_path / "checkpoints" / "step-00000001.safetensors"), state)


@pytest.mark.parametrize(
    ("n", "batch_size", "drop_last", "known", "expected"),
    [
        (20, 5, False, True, [1, 5, 9]),
        (23, 5, False, True, [1, 6, 11]),
        (23, 5, True, True, [1, 5, 9]),
        (23, 5, True, False, [1, 5, 9]),
        (23, 23, False, False, [1, 2, 3]),
        (23, 40, False, True, [1, 2, 3]),
    ],
)
def test_a_checkpoint_starts_each_epoch(tmp_path, n, batch_size, drop_last, known, expected):
    data = make_set(n=n)
    net = plain_net()
    optimizer = sgd(net)
    with Recorder(tmp_path, net, optimizer, loss="mse", train=data if known else None) as recorder:
        loader = make_loader(data, batch_size, drop_last=drop_last)
        train(recorder, net, optimizer, loader, epochs=3)
    run = TrainingRun.load(tmp_path, net)
    assert [checkpoint.t for checkpoint in run.checkpoints if not checkpoint.final] == expected


def test_epochs_of_draws_with_replacement_have_n_instances(tmp_path):
    data = make_set()
    net = plain_net()
    optimizer = sgd(net)
    draws = np.random.default_rng(0).integers(0, N, size=(50, 1))
    with Recorder(tmp_path, net, optimizer, loss="mse", train=data) as recorder:
        for batch in draws:
            backward(net, optimizer, *map(torch.as_tensor, (data[0][batch], data[1][batch])))
            recorder.step(batch)
            optimizer.step()
    run = TrainingRun.load(tmp_path, net)
    assert [checkpoint.t for checkpoint in run.checkpoints] == [1, 1 + N, 1 + 2 * N, 51]


def test_checkpoints_can_be_forced_and_left_out(tmp_path):
    net = plain_net()
    optimizer = sgd(net)
    x, y = map(torch.as_tensor, make_set())
    with Recorder(tmp_path, net, optimizer, loss="mse", every=2) as recorder:
        for forced in (False, True, None, None):
            backward(net, optimizer, x, y)
            recorder.step(range(N), checkpoint=forced)
            optimizer.step()
    run = TrainingRun.load(tmp_path, net)
    assert [checkpoint.t for checkpoint in run.checkpoints] == [2, 3, 5]


def test_the_log_replays_sgd_with_momentum_weight_decay_and_a_schedule(tmp_path):
    x, y = map(torch.as_tensor, make_set())
    net = plain_net()
    optimizer = torch.optim.SGD(
        [
            {"params": net[0].parameters(), "weight_decay": 0.02},
            {"params": net[2].parameters(), "lr": 0.05, "nesterov": True},
        ],
        lr=0.2,
        momentum=0.8,
    )
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    with Recorder(
        tmp_path, net, optimizer, loss="cross_entropy", train=(x, y), every=1
    ) as recorder:
        states, _ = train(recorder, net, optimizer, make_loader((x, y)), 3, scheduler)
    run = TrainingRun.load(tmp_path, plain_net())
    first = run.checkpoints[0].load()
    theta = {name: value.clone() for name, value in first.items()}
    velocity = {name: torch.zeros_like(value) for name, value in theta.items()}
    for step in run.steps:
        gradients = dict.fromkeys(theta, 0.0)
        for position, weight in zip(step.indices, step.weights, strict=True):
            values = [value.clone().requires_grad_() for value in theta.values()]
            output = torch.func.functional_call(
                net, dict(zip(theta, values, strict=True)), x[position][None]
            )
            loss = functional.cross_entropy(output, y[position][None])
            for name, part in zip(theta, torch.autograd.grad(loss, values), strict=True):
                gradients[name] = gradients[name] + weight * part
        for group, rate in zip(step.groups, step.learning_rates, strict=True):
            settings = group.settings
            for name in group.parameters:
                gradient = gradients[name] + settings["weight_decay"] * theta[name]
                velocity[name] = settings["momentum"] * velocity[name] + gradient
                if settings["nesterov"]:
                    gradient = gradient + settings["momentum"] * velocity[name]
                else:
                    gradient = velocity[name]
                theta[name] = theta[name] - rate * gradient
    for name, value in states[-1].items():
        assert (theta[name] - value).norm() <= 1e-12 * value.norm()
        assert torch.equal(run.final_state()[name], value)
    assert run.steps[3].learning_rates == pytest.approx((0.2 * 0.9**3, 0.05 * 0.9**3), rel=1e-14)
    rates = run.checkpoints[3].learning_rates
    assert rates == {
        "0.weight": run.steps[3].learning_rates[0],
        "0.bias": run.steps[3].learning_rates[0],
        "2.weight": run.steps[3].learning_rates[1],
        "2.bias": run.steps[3].learning_rates[1],
    }
    assert run.checkpoints[-1].learning_rates is None


def test_a_stored_adamw_state_gives_the_next_parameters(tmp_path):
    data = make_set()
    net = plain_net()
    optimizer = torch.optim.AdamW(
        net.parameters(), lr=0.01, betas=(0.8, 0.95), eps=1e-6, weight_decay=0.1, amsgrad=True
    )
    gradients = []
    with Recorder(tmp_path, net, optimizer, every=1, optimizer_state=True) as recorder:
        for indices, x, y in make_loader(data):
            backward(net, optimizer, x, y)
            gradients.append({name: value.grad.clone() for name, value in net.named_parameters()})
            recorder.step(indices)
            optimizer.step()
    run = TrainingRun.load(tmp_path, net, loss="cross_entropy")
    (settings,) = run.steps[3].settings
    assert settings["betas"] == [0.8, 0.95] and settings["eps"] == 1e-6
    assert settings["weight_decay"] == 0.1 and settings["decoupled_weight_decay"] is True
    assert settings["amsgrad"] is True and settings["maximize"] is False
    assert run.checkpoints[0].optimizer_state() == {}
    before, state = run.checkpoints[3].load(), run.checkpoints[3].optimizer_state()
    after = run.checkpoints[4].load()
    for name, gradient in gradients[3].items():
        assert state[name]["step"] == 3
        mean = 0.8 * state[name]["exp_avg"] + 0.2 * gradient
        square = 0.95 * state[name]["exp_avg_sq"] + 0.05 * gradient**2
        largest = torch.maximum(state[name]["max_exp_avg_sq"], square)
        direction = mean / (1 - 0.8**4) / ((largest / (1 - 0.95**4)).sqrt() + 1e-6)
        expected = before[name] * (1 - 0.01 * 0.1) - 0.01 * direction
        torch.testing.assert_close(after[name], expected, rtol=1e-12, atol=1e-13)


def test_adam_with_coupled_weight_decay_is_told_from_adamw(tmp_path):
    net = plain_net()
    optimizer = torch.optim.Adam(net.parameters(), weight_decay=0.1)
    with Recorder(tmp_path, net, optimizer) as recorder:
        train(recorder, net, optimizer, make_loader(make_set()), epochs=1)
    run = TrainingRun.load(tmp_path, net, loss="mse")
    assert run.steps[0].settings[0]["decoupled_weight_decay"] is False


def test_settings_that_change_are_logged_when_they_do(tmp_path):
    net = plain_net()
    optimizer = sgd(net, momentum=0.5)
    x, y = map(torch.as_tensor, make_set())
    expected = []
    with Recorder(tmp_path, net, optimizer) as recorder:
        for momentum, decay in [(0.5, 0.0), (0.6, 0.0), (0.6, 0.0), (0.6, 0.1)]:
            optimizer.param_groups[0].update(momentum=momentum, weight_decay=decay)
            expected.append((momentum, decay))
            backward(net, optimizer, x, y)
            recorder.step(range(N))
            optimizer.step()
    run = TrainingRun.load(tmp_path, net, loss="mse")
    found = [step.settings[0] for step in run.steps]
    assert [(one["momentum"], one["weight_decay"]) for one in found] == expected
    lines = [json.loads(line) for line in (tmp_path / "steps.jsonl").read_text().splitlines()]
    assert ["settings" in line for line in lines[:4]] == [False, True, False, True]
    assert not any("groups" in line for line in lines)


def test_parameters_that_a_step_cannot_move_have_learning_rate_0(tmp_path):
    net = plain_net()
    other = nn.Linear(2, 2)
    optimizer = torch.optim.SGD([*net[2].parameters(), *other.parameters()], lr=0.1)
    x, y = map(torch.as_tensor, make_set())
    with Recorder(tmp_path, net, optimizer, every=1) as recorder:
        for step in range(3):
            net[2].bias.requires_grad_(step > 0)
            if step == 2:
                optimizer.add_param_group({"params": [net[0].weight], "lr": 0.3})
            backward(net, optimizer, x, y)
            recorder.step(range(N))
            optimizer.step()
    run = TrainingRun.load(tmp_path, net, loss="mse")
    rates = [tuple(checkpoint.learning_rates.values()) for checkpoint in run.checkpoints[:3]]
    assert list(run.checkpoints[0].learning_rates) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert rates == [(0, 0, 0.1, 0), (0, 0, 0.1, 0.1), (0.3, 0, 0.1, 0.1)]
    assert run.steps[0].groups[0].frozen == ("2.bias",)
    assert any("2 parameters of other modules" in note for note in run.notes)
    header = json.loads((tmp_path / "run.json").read_text())
    assert header["optimizer"]["parameters_without_optimizer"] == ["0.weight", "0.bias"]


def test_divisors_and_clipping_are_logged_as_given(tmp_path):
    net = plain_net()
    optimizer = sgd(net)
    x, y = map(torch.as_tensor, make_set())
    with Recorder(tmp_path, net, optimizer, every=1) as recorder:
        for arguments in (
            {"divisor": 1},
            {"divisor": torch.tensor([8.0, 8.0, 4.0]), "clip_scale": torch.tensor(0.25)},
            {"clip_scale": None},
        ):
            backward(net, optimizer, x, y)
            recorder.step([4, 4, 7], **arguments)
            optimizer.step()
    run = TrainingRun.load(tmp_path, net, loss="mse")
    assert [step.clip_scale for step in run.steps] == [1.0, 0.25, None]
    assert run.steps[0].weights.tolist() == [1, 1, 1]
    assert run.steps[1].weights.tolist() == [0.125, 0.125, 0.25]
    assert run.steps[1].indices.tolist() == [4, 4, 7]
    assert [checkpoint.divisor for checkpoint in run.checkpoints] == [1, 6, 3, None]


def test_test_risks_are_those_of_every_state(tmp_path):
    data, test = make_set(), make_set(1, n=7)
    net = make_net()
    optimizer = sgd(net)

    def risks():
        with torch.no_grad():
            output = net.eval()(torch.as_tensor(test[0]))
            net.train()
            return functional.cross_entropy(output, torch.as_tensor(test[1]), reduction="none")

    expected = [risks()]
    with Recorder(
        tmp_path, net, optimizer, loss="cross_entropy", train=data, test=test
    ) as recorder:
        for indices, x, y in make_loader(data):
            backward(net, optimizer, x, y)
            recorder.step(indices)
            optimizer.step()
            expected.append(risks())
    run = TrainingRun.load(tmp_path, net)
    np.testing.assert_allclose(run.test_risks, torch.stack(expected).numpy(), rtol=1e-12)
    assert run.test_ids.tolist() == list(range(7))


def test_test_risks_start_at_the_parameters_before_the_first_step(tmp_path):
    data, net = make_set(), plain_net()
    optimizer = sgd(net)
    recorder = Recorder(tmp_path, net, optimizer, loss="cross_entropy", test=data)
    with recorder:
        net.load_state_dict({name: value * 3 for name, value in net.state_dict().items()})
        expected = functional.cross_entropy(net(torch.as_tensor(data[0])), torch.as_tensor(data[1]))
        train(recorder, net, optimizer, make_loader(data), epochs=1)
    run = TrainingRun.load(tmp_path, net)
    assert run.test_risks.shape == (6, N)
    assert run.test_risks[0].mean() == pytest.approx(float(expected.detach()), rel=1e-12)


def test_risks_that_are_not_finite_do_not_stop_the_training(tmp_path):
    data, net = make_set(), plain_net()
    optimizer = sgd(net)
    with Recorder(tmp_path, net, optimizer, loss="cross_entropy", test=data) as recorder:
        train(recorder, net, optimizer, make_loader(data), epochs=1)
        with torch.no_grad():
            net[0].weight[0, 0] = float("nan")
        train(recorder, net, optimizer, make_loader(data), epochs=1)
    run = TrainingRun.load(tmp_path, net)
    assert np.isnan(run.test_risks).any(1).tolist() == [False] * 6 + [True] * 5


def test_tied_and_shared_memory_is_stored_once(tmp_path):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(7, 4)
            self.head = nn.Linear(4, 7, bias=False)
            self.head.weight = self.embedding.weight
            self.copy = nn.Linear(4, 7, bias=False)
            self.copy.weight.data = self.embedding.weight.data
            self.part = nn.Parameter(self.embedding.weight.data[:2])

    net = Tied()
    optimizer = sgd(net)
    with Recorder(tmp_path, net, optimizer):
        pass
    stored = load_file(tmp_path / "checkpoints" / "step-00000001.safetensors")
    assert set(stored) == {"embedding.weight", "part"}
    run = TrainingRun.load(tmp_path, Tied(), risk=lambda module, batch: batch)
    state = run.final_state()
    assert set(state) == {"embedding.weight", "head.weight", "copy.weight", "part"}
    assert torch.equal(state["head.weight"], net.embedding.weight)
    assert torch.equal(state["part"], net.embedding.weight[:2])
    other = Tied()
    other.load_state_dict(state)
    assert torch.equal(other.copy.weight, net.copy.weight)


def test_tensors_of_all_kinds_are_stored(tmp_path):
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.turned = nn.Parameter(torch.arange(6.0).reshape(2, 3).T)
            self.scale = nn.Parameter(torch.tensor(2.5))
            self.brief = nn.Parameter(torch.randn(5, dtype=torch.bfloat16))
            self.empty = nn.Parameter(torch.empty(0, 3))
            self.register_buffer("count", torch.tensor(3))
            self.register_buffer("mask", torch.tensor([True, False]))
            self.register_buffer("cache", torch.zeros(2), persistent=False)

    net = Odd()
    with Recorder(tmp_path, net, sgd(net)):
        pass
    found = TrainingRun.load(tmp_path, net, loss="mse").final_state()
    assert_same_state(found, net.state_dict())
    for tensor in found.values():
        assert tensor.data_ptr() % tensor.element_size() == 0


def test_untying_while_recording_is_an_error(tmp_path):
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    net[1].weight = net[0].weight
    optimizer = sgd(net)
    with (
        pytest.raises(RunError, match="tied or untied"),
        Recorder(tmp_path, net, optimizer) as recorder,
    ):
        net[1].weight = nn.Parameter(net[0].weight.detach().clone())
        recorder.step([0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([],), "indices"),
        (([0.0, 1.0],), "float64"),
        (([True, False],), "bool"),
        ((torch.tensor(3),), r"shape \(\)"),
        (([[1, 2]],), r"shape \(1, 2\)"),
        (([3, -1],), "count from 0"),
        (([3, N],), "out of range"),
        (([1, 2], {"divisor": 0}), "divisor"),
        (([1, 2], {"divisor": [1, 2, 3]}), "divisor"),
        (([1, 2], {"divisor": float("nan")}), "divisor"),
        (([1, 2], {"clip_scale": -0.5}), "clip_scale"),
        (([1, 2], {"clip_scale": float("inf")}), "clip_scale"),
    ],
)
def test_steps_that_cannot_be_recorded_are_refused(tmp_path, arguments, message):
    net = plain_net()
    indices, *options = arguments
    with (
        Recorder(tmp_path, net, sgd(net), train=make_set()) as recorder,
        pytest.raises(InvalidInputError, match=message),
    ):
        recorder.step(indices, **(options[0] if options else {}))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every": 0}, "every"),
        ({"every": True}, "every"),
        ({"every": "step"}, "every"),
        ({"every": [0, 1]}, "every"),
        ({"every": []}, "every"),
        ({"every": 1.5}, "every"),
        ({"test": make_set()}, "test: give loss"),
        ({"test": (np.zeros((0, 4)), np.zeros(0)), "loss": "mse"}, "test: the set is empty"),
        ({"train": (np.zeros((0, 4)), np.zeros(0))}, "train: the set is empty"),
        ({"loss": "mse", "risk": lambda module, batch: batch}, "exactly one"),
    ],
)
def test_options_that_cannot_be_used_are_refused(tmp_path, options, message):
    net = plain_net()
    with pytest.raises(InvalidInputError, match=message):
        Recorder(tmp_path, net, sgd(net), **options)
    assert not list(tmp_path.iterdir())


def test_modules_and_optimizers_that_do_not_fit_are_refused(tmp_path):
    net = plain_net()
    with pytest.raises(InvalidInputError, match=r"expected a torch\.nn\.Module"):
        Recorder(tmp_path, "net", sgd(net))
    with pytest.raises(InvalidInputError, match=r"expected a torch\.optim\.Optimizer"):
        Recorder(tmp_path, net, net)
    with pytest.raises(InvalidInputError, match="no parameter of the module"):
        Recorder(tmp_path, net, sgd(plain_net()))
    with pytest.raises(InvalidInputError, match="not initialised"):
        lazy = nn.Sequential(nn.LazyLinear(3))
        with Recorder(tmp_path, lazy, sgd(lazy)):
            pass


def test_a_step_outside_of_the_context_is_refused(tmp_path):
    net = plain_net()
    recorder = Recorder(tmp_path, net, sgd(net))
    with pytest.raises(RunError, match="not open"):
        recorder.step([0])


def test_an_optimizer_step_that_was_not_announced_is_an_error(tmp_path):
    net = plain_net()
    optimizer = sgd(net)
    x, y = map(torch.as_tensor, make_set())
    with (
        pytest.warns(RuntimeWarning, match="changed after the optimizer's last step"),
        Recorder(tmp_path, net, optimizer) as recorder,
    ):
        optimizer.step()  # without gradients it changes nothing
        backward(net, optimizer, x, y)
        recorder.step([0])
        optimizer.step()
        with pytest.raises(RunError, match=r"without recorder\.step"):
            optimizer.step()
    optimizer.step()


def test_a_step_that_was_skipped_is_not_recorded_and_its_checkpoint_is_kept(tmp_path):
    net = plain_net()
    optimizer = sgd(net)
    x, y = map(torch.as_tensor, make_set())
    with Recorder(tmp_path, net, optimizer, train=(x, y), loss="mse") as recorder:
        recorder.step([0, 1])  # a gradient scaler finds infinities and takes no step
        backward(net, optimizer, x, y)
        state = copy_state(net)
        recorder.step([2, 3])
        optimizer.step()
        recorder.step([4])
    run = TrainingRun.load(tmp_path, net)
    assert [step.indices.tolist() for step in run.steps] == [[2, 3]]
    assert_same_state(run.checkpoints[0].load(), state)
    assert run.checkpoints[0].t == 1
    assert run.notes == ("2 recorded steps were not taken by the optimizer",)


def test_an_optimizer_that_takes_no_step_is_warned_of(tmp_path):
    net = plain_net()
    with (
        pytest.warns(RuntimeWarning, match="took none of the recorded steps"),
        Recorder(tmp_path, net, sgd(net)) as recorder,
    ):
        recorder.step([0])


def test_steps_of_an_optimizer_that_calls_no_hooks_are_recorded(tmp_path):
    net = plain_net()
    optimizer = sgd(net)
    data = make_set()
    states = []
    with Recorder(tmp_path, net, optimizer, loss="mse", every=1) as recorder:
        for indices, x, y in make_loader(data):
            backward(net, optimizer, x, y)
            states.append(copy_state(net))
            recorder.step(indices)
            with torch.no_grad():  # what a compiled optimizer does
                for parameter in net.parameters():
                    parameter -= 0.1 * parameter.grad
    run = TrainingRun.load(tmp_path, net)
    assert len(run.steps) == 5 and run.notes == ()
    for checkpoint, state in zip(run.checkpoints, states, strict=False):
        assert_same_state(checkpoint.load(), state)


def test_parameters_changed_after_the_last_step_are_warned_of(tmp_path):
    net = plain_net()
    optimizer = sgd(net)
    best = copy_state(net)
    with (
        pytest.warns(RuntimeWarning, match="changed after the optimizer's last step"),
        Recorder(tmp_path, net, optimizer) as recorder,
    ):
        train(recorder, net, optimizer, make_loader(make_set()), epochs=1)
        net.load_state_dict(best)
    run = TrainingRun.load(tmp_path, net, loss="mse")
    assert run.notes == ("the parameters were changed after the last step",)


def test_an_error_in_the_loop_leaves_a_run_that_loads(tmp_path):
    net = plain_net()
    optimizer = sgd(net)
    with (
        pytest.raises(KeyboardInterrupt),
        Recorder(tmp_path, net, optimizer, loss="mse", every=1) as recorder,
    ):
        states, _ = train(recorder, net, optimizer, make_loader(make_set()), epochs=1)
        raise KeyboardInterrupt
    assert not optimizer._optimizer_step_post_hooks
    run = TrainingRun.load(tmp_path, net)
    assert len(run.steps) == 5 and not run.complete
    assert [checkpoint.t for checkpoint in run.checkpoints] == [1, 2, 3, 4, 5]
    assert not any(checkpoint.final for checkpoint in run.checkpoints)
    assert_same_state(run.checkpoints[4].load(), states[4])


def test_a_run_is_replaced_only_if_asked_for_and_nothing_else_ever(tmp_path):
    net = plain_net()
    optimizer = sgd(net)
    path = tmp_path / "run"
    with Recorder(path, net, optimizer, loss="mse", every=1) as recorder:
        train(recorder, net, optimizer, make_loader(make_set()), epochs=2)
    with pytest.raises(RunError, match="overwrite=True"):
        Recorder(path, net, optimizer).open()
    assert len(TrainingRun.load(path, net).steps) == 10
    with Recorder(path, net, optimizer, loss="mse", overwrite=True) as recorder:
        train(recorder, net, optimizer, make_loader(make_set()), epochs=1)
    assert len(TrainingRun.load(path, net).steps) == 5
    assert len(list((path / "checkpoints").glob("*.safetensors"))) == 2
    for strange in (path / "notes.txt", path / "checkpoints" / "step-1.ckpt"):
        strange.write_text("mine")
        with pytest.raises(RunError, match=strange.name):
            Recorder(path, net, optimizer, overwrite=True).open()
        assert len(TrainingRun.load(path, net).steps) == 5
        strange.unlink()
    file = tmp_path / "file"
    file.write_text("mine")
    with pytest.raises(RunError, match="is a file"):
        Recorder(file, net, optimizer, overwrite=True).open()


def test_a_recorder_that_cannot_start_leaves_nothing(tmp_path):
    net = plain_net()
    path = tmp_path / "run"
    with pytest.raises(InvalidInputError, match="the risk must have shape"):
        Recorder(path, net, sgd(net), risk=lambda *_: torch.tensor(0.0), test=make_set()).open()
    with Recorder(path, net, sgd(net)):
        pass


def test_several_processes_are_refused(tmp_path, monkeypatch):
    net = plain_net()
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    with pytest.raises(RunError, match="several processes"):
        Recorder(tmp_path, net, sgd(net)).open()


def test_indexed_sets_give_positions_first():
    X, y = make_set()
    assert indexed((X, y))[4][0] == 4 and np.array_equal(indexed((X, y))[4][1], X[4])
    assert indexed((X, y))[-1][0] == N - 1
    dicts = indexed({"x": X, "labels": y})
    assert list(dicts[3]) == ["index", "x", "labels"] and dicts[3]["index"] == 3
    tensors = torch.utils.data.TensorDataset(torch.as_tensor(X))
    assert indexed(tensors)[2][0] == 2 and torch.equal(indexed(tensors)[2][1], tensors[2][0])
    assert indexed([5.0, 6.0])[1] == (1, 6.0)
    with pytest.raises(IndexError):
        indexed((X, y))[N]
    with pytest.raises(InvalidInputError, match="index"):
        indexed({"index": y})[0]
    seen = [int(i) for indices, *_ in DataLoader(indexed((X, y)), shuffle=True) for i in indices]
    assert sorted(seen) == list(range(N))
