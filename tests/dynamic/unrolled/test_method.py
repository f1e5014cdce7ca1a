"""What HyDRA and SGD-Influence share: frozen parameters, when influence was made, refusals."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal
from retrained_runs import TEST, TRAIN, N, Setup, relative_error
from torch import nn
from torch.nn import functional

import proponent as pp
from proponent.dynamic.hydra import HyDRA
from proponent.dynamic.sgd_influence import SGDInfluence
from proponent.exceptions import InvalidInputError, MethodCapabilityError, NonFiniteError

SUMMED = 1e-10
DIFFERENCED = 1e-8
SETUPS = {
    "momentum": Setup(lambda m: torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9), clip=0.5),
    "adamw": Setup(lambda m: torch.optim.AdamW(m.parameters(), lr=0.02, weight_decay=0.05)),
}
METHODS = {
    "standard": HyDRA,
    "fast": lambda **settings: HyDRA("fast", **settings),
    "SGD-Influence": SGDInfluence,
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return {name: setup.recorded(folder / name) for name, setup in SETUPS.items()}


# Parameters that require no gradient now


@pytest.mark.parametrize("method", METHODS)
def test_what_is_frozen_after_recording_was_moved_all_the_same(runs, method):
    path = runs["momentum"].path
    expected = METHODS[method]().fit(runs["momentum"], TRAIN)
    module = SETUPS["momentum"].module().double()
    module[0].requires_grad_(False)
    run = pp.TrainingRun.load(path, module)  # frozen before it is loaded ...
    module[2].weight.requires_grad_(False)  # ... and after
    fitted = METHODS[method]().fit(run, TRAIN)
    module[2].bias.requires_grad_(False)
    flags = [parameter.requires_grad for parameter in module.parameters()]
    assert not any(flags)
    assert_array_equal(fitted.influence(TEST).values, expected.influence(TEST).values)
    assert_array_equal(fitted.memorization().values, expected.memorization().values)
    assert [parameter.requires_grad for parameter in module.parameters()] == flags


def test_tracked_instances_move_frozen_parameters_too(runs):
    run = runs["adamw"]
    expected = HyDRA(track=[3]).fit(run, TRAIN).hypergradients()
    module = SETUPS["adamw"].module().double()
    run = pp.TrainingRun.load(run.path, module)
    module.requires_grad_(False)
    found = HyDRA(track=[3]).fit(run, TRAIN).hypergradients()
    assert found.keys() == expected.keys() == dict(module.named_parameters()).keys()
    for name, values in expected.items():
        assert_array_equal(found[name], values)


def test_a_choice_of_parameters_is_still_refused(runs):
    run = runs["momentum"]
    run.model.module[0].weight.requires_grad_(False)
    try:
        with pytest.raises(InvalidInputError, match=r"SGDInfluence follows .*without 0\.weight"):
            SGDInfluence().fit(run.with_parameters("2.*"), TRAIN)
    finally:
        run.model.module[0].weight.requires_grad_(True)


# When influence was made


@pytest.mark.parametrize("name", SETUPS)
@pytest.mark.parametrize("method", METHODS)
def test_the_parts_of_the_steps_add_up_to_the_whole(runs, name, method):
    fitted = METHODS[method]().fit(runs[name], TRAIN)
    whole = fitted.influence(TEST)
    found = fitted.influence(TEST, by_checkpoint=True)
    assert found.shape == (4, N, 9)
    assert found.steps.tolist() == list(range(1, 10))
    assert relative_error(found.values.sum(-1), whole.values) < SUMMED
    for step in runs[name].steps:  # an instance has no part in the batches of others
        others = np.setdiff1d(np.arange(N), step.indices)
        assert not found.values[:, others, step.index - 1].any()
    phases = fitted.influence(TEST, by_checkpoint=True, phases=3)
    assert phases.last_steps.tolist() == [3, 6, 9]
    expected = found.values.reshape(4, N, 3, 3).sum(-1)
    assert relative_error(phases.values, expected) < SUMMED
    joint = fitted.influence(TEST, joint=True, by_checkpoint=True)
    assert relative_error(joint.values, found.values.sum(0)) < SUMMED
    parts = [fitted.influence(TEST, by_checkpoint=True, shard=(i, 3)).values for i in range(3)]
    assert relative_error(np.concatenate(parts, 1), found.values) < SUMMED
    summary = fitted.influence(TEST, by_checkpoint="summary", phases=3)
    assert relative_error(summary.helped, np.maximum(expected, 0).sum(1)) < SUMMED
    assert relative_error(summary.harmed, np.minimum(expected, 0).sum(1)) < SUMMED


@pytest.mark.parametrize("name", SETUPS)
def test_a_part_is_the_slope_of_leaving_the_instance_out_of_that_step_alone(runs, name):
    found = HyDRA().fit(runs[name], TRAIN).influence(TEST, by_checkpoint=True).values
    for step in (2, 9):
        instance = int(runs[name].steps[step - 1].indices[1])
        from_here = SETUPS[name].differences(instance, first=step)[0]
        from_next = SETUPS[name].differences(instance, first=step + 1)[0]
        expected = from_here - from_next
        assert relative_error(found[:, instance, step - 1], expected) < DIFFERENCED


@pytest.mark.parametrize("method", METHODS)
def test_tests_that_do_not_fit_into_one_replay(runs, method):
    size = 48 * 8  # of the parameters
    small = METHODS[method](memory=10 * size).fit(runs["momentum"], TRAIN)
    assert small._tests_at_once() < 4
    whole = METHODS[method]().fit(runs["momentum"], TRAIN)
    expected = whole.influence(TEST, by_checkpoint=True, phases=4)
    found = small.influence(TEST, by_checkpoint=True, phases=4)
    assert relative_error(found.values, expected.values) < SUMMED
    summary = small.influence(TEST, by_checkpoint="summary", phases=4)
    assert relative_error(summary.helped, np.maximum(expected.values, 0).sum(1)) < SUMMED


def test_a_horizon_leaves_out_the_steps_before_it(runs):
    run = runs["momentum"]
    whole = SGDInfluence().fit(run, TRAIN).influence(TEST, by_checkpoint=True)
    late = SGDInfluence(horizon=4).fit(run, TRAIN).influence(TEST, by_checkpoint=True)
    assert late.steps.tolist() == [6, 7, 8, 9]
    assert relative_error(late.values, whole.values[..., 5:]) < SUMMED


def test_what_is_followed_forward_cannot_tell_when(runs):
    method = HyDRA(track=[1, 2]).fit(runs["momentum"], TRAIN)
    with pytest.raises(MethodCapabilityError, match=r"by_checkpoint fit it without track"):
        method.influence(TEST, by_checkpoint=True)


# Refusals name the method


class Once(torch.autograd.Function):
    """The hyperbolic tangent, which can be differentiated once."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x.tanh())
        return x.tanh()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        (y,) = ctx.saved_tensors
        return gradient * (1 - y * y)


def once(module, batch):
    hidden = Once.apply(module[0](batch[0]))
    return functional.cross_entropy(module[2](hidden), batch[1], reduction="none")


def test_a_module_that_can_be_differentiated_only_once(runs):
    module = SETUPS["momentum"].module().double()
    run = pp.TrainingRun.load(runs["momentum"].path, module, risk=once)
    for method, remedy in (
        (HyDRA(), r"HyDRA\(approximation='fast'\)"),
        (HyDRA(track=[3]), r"HyDRA\(approximation='fast'\)"),
        (SGDInfluence(), r"SGDInfluence\(hessian=False\)"),
    ):
        with pytest.raises(InvalidInputError, match=f"twice.* {remedy} needs gradients alone"):
            method.fit(run, TRAIN).influence(TEST)
    # As it says, without the Hessian it goes.
    found = SGDInfluence(hessian=False).fit(run, TRAIN).influence(TEST).values
    expected = HyDRA("fast").fit(runs["momentum"], TRAIN).influence(TEST).values
    assert relative_error(found, expected) < 1e-12


class Steep(nn.Module):
    """One weight, on a quadratic that plain steps leave by a factor of 1e60 each."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, x):
        return self.weight * x[:, 0]


def test_an_explosion_names_the_method_and_how_it_leaves_the_hessian_out(tmp_path):
    module = Steep().double()
    x, y = np.full((4, 1), 1e30), np.zeros(4)
    optimizer = torch.optim.SGD(module.parameters(), lr=1.0)
    options = {"loss": "mse", "train": (x, y), "every": 1}
    with pp.Recorder(tmp_path, module, optimizer, **options) as recorder:
        for _ in range(9):
            module.weight.grad = torch.zeros(1, dtype=torch.float64)
            recorder.step(range(4))
            optimizer.step()
    run = pp.TrainingRun.load(tmp_path, module)
    test = np.ones((1, 1)), np.ones(1)
    for method, remedy in (
        (HyDRA(), r"HyDRA\(approximation='fast'\)"),
        (SGDInfluence(), r"SGDInfluence\(hessian=False\)"),
    ):
        with pytest.raises(NonFiniteError, match=rf"{method.card.name}: .*use {remedy}"):
            method.fit(run, (x, y)).influence(test)
