"""SOURCE against unrolled differentiation by autograd, dense matrices and influence functions."""

import numpy as np
import pytest
import torch
from references import relative_error
from torch import nn
from torch.func import functional_call
from torch.nn import functional
from traced_runs import (
    as_batch,
    cnn,
    copied,
    cross_entropies,
    error,
    in_batches,
    make_images,
    make_set,
    mlp,
    trace,
)

import proponent as pp
from benchmarks.source import Training, estimates, trained
from proponent.dynamic.segments_explicit import ExplicitPropagator
from proponent.dynamic.segments_factored import FactoredPropagator
from proponent.dynamic.segments_rates import Pace
from proponent.dynamic.source import SOURCE
from proponent.exceptions import InvalidInputError, NonFiniteError, RunError, SolveError
from proponent.gradients.gauss_newton import GaussNewton
from proponent.gradients.kfac.factors import KroneckerFactors

EXACT = 1e-10
TRAIN, TEST = make_set(), make_set(1, n=4)
UNROLLED = {
    "solver": "explicit",
    "curvature": "hessian",
    "averaging": "recorded",
    "propagation": "power",
}


def squared(module, batch):
    return (module(batch[0]) - batch[1]).square().mean(1)


def unrolled(
    state, module, risk, train, test, batches, rates, decay=0.0, divide=True, momentum=0.0
):
    """Differentiate each test risk through the whole training by each instance's weight.

    ``rates`` are, for each step, by parameter; a number is for all.
    """
    weights = torch.ones(len(train[-1]), dtype=torch.float64, requires_grad=True)
    names = [name for name, _ in module.named_parameters()]
    theta = {name: state[name].clone().requires_grad_() for name in names}
    columns, buffers = as_batch(module, train), dict.fromkeys(names, 0.0)

    def risks(theta, batch):
        return risk(lambda *inputs: functional_call(module, theta, inputs), batch)

    for batch, rate in zip(batches, rates, strict=True):
        each = risks(theta, tuple(column[batch] for column in columns))
        loss = (weights[batch] * each).sum() / (len(batch) if divide else 1)
        slopes = torch.autograd.grad(loss, list(theta.values()), create_graph=True)
        for (name, value), slope in zip(list(theta.items()), slopes, strict=True):
            buffers[name] = momentum * buffers[name] + slope + decay * value
            theta[name] = value - (rate[name] if isinstance(rate, dict) else rate) * buffers[name]
    found = risks(theta, as_batch(module, test))
    rows = [-torch.autograd.grad(one, weights, retain_graph=True)[0] for one in found]
    return torch.stack(rows).numpy()


def still_run(path, module, train, steps=1, rate=0.1, every=1, loss="cross_entropy"):
    """Record steps with a learning rate and gradients of zero: nothing moves."""
    optimizer = torch.optim.SGD(module.parameters(), lr=rate)
    with pp.Recorder(path, module, optimizer, loss=loss, train=train, every=every) as recorder:
        for _ in range(steps):
            for parameter in module.parameters():
                parameter.grad = torch.zeros_like(parameter)
            recorder.step(np.arange(len(train[-1])))
            optimizer.step()
    return pp.TrainingRun.load(path, module)


# Segments of one step: nothing is approximated


@pytest.mark.parametrize("case", ["plain", "decay", "sum", "groups"])
def test_a_segment_for_each_step_is_unrolled_differentiation(tmp_path, case):
    net, batches = mlp(), in_batches(13, 5, epochs=2)
    start, options, decay = copied(net), {}, 0.0
    rates = [0.2] * len(batches)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.2)
    if case == "decay":
        decay = 0.3
        optimizer = torch.optim.SGD(net.parameters(), lr=0.2, weight_decay=decay)
    elif case == "sum":
        options["reduction"] = "sum"
    elif case == "groups":
        named = dict(net.named_parameters())
        each = dict(zip(named, (0.3, 0.1, 0.0, 0.2), strict=True))
        optimizer = torch.optim.SGD([{"params": [named[k]], "lr": each[k]} for k in named])
        rates = [each] * len(batches)
    traced = trace(tmp_path, net, TRAIN, batches, optimizer=optimizer, **options)
    expected = unrolled(
        start, mlp(), cross_entropies, TRAIN, TEST, batches, rates, decay, case != "sum"
    )
    method = SOURCE(segments=len(batches), **UNROLLED).fit(traced.run, TRAIN)
    assert error(method.influence(TEST).values, expected) < EXACT
    assert error(method.influence(TEST, joint=True).values, expected.sum(0)) < EXACT
    diagonal = method.influence(TRAIN).values.diagonal()
    assert error(method.memorization().values, diagonal) < EXACT


def test_clipping_is_a_smaller_learning_rate(tmp_path):
    net, train = nn.Linear(4, 2).double(), make_set()
    start, optimizer = copied(net), torch.optim.SGD(net.parameters(), lr=0.2)
    x, y = as_batch(net, train)
    with pp.Recorder(
        tmp_path, net, optimizer, loss="cross_entropy", train=(train[0], train[1] % 2), every=1
    ) as recorder:
        for scale in (0.5, 0.25):
            optimizer.zero_grad()
            functional.cross_entropy(net(x), y % 2).backward()
            for parameter in net.parameters():
                parameter.grad.mul_(scale)
            recorder.step(np.arange(13), clip_scale=scale)
            optimizer.step()
    data, test = (train[0], train[1] % 2), (TEST[0], TEST[1] % 2)
    run = pp.TrainingRun.load(tmp_path, net)
    found = SOURCE(segments=2, **UNROLLED).fit(run, data).influence(test).values
    everything = [list(range(13))] * 2
    expected = unrolled(start, net, cross_entropies, data, test, everything, [0.1, 0.05])
    assert error(found, expected) < EXACT


# Quadratics at rest: a segment of many steps is exact


@pytest.fixture(scope="module")
def at_optimum(tmp_path_factory):
    """Least squares that starts at its optimum, 8 steps at 0.05 and 12 at 0.02."""
    rng = np.random.default_rng(0)
    train = rng.normal(size=(13, 4)), rng.normal(size=(13, 2))
    test = rng.normal(size=(4, 4)), rng.normal(size=(4, 2))
    net = nn.Linear(4, 2).double()
    design = np.hstack([train[0], np.ones((13, 1))])
    solution = torch.from_numpy(np.linalg.lstsq(design, train[1], rcond=None)[0].T)
    with torch.no_grad():
        net.weight.copy_(solution[:, :4])
        net.bias.copy_(solution[:, 4])
    start, rates = copied(net), [0.05] * 8 + [0.02] * 12
    optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: [*rates, 0.0][t])
    batches = [list(range(13))] * 20
    traced = trace(
        tmp_path_factory.mktemp("runs") / "optimum",
        net,
        train,
        batches,
        optimizer=optimizer,
        scheduler=schedule,
        loss="mse",
        risk=squared,
        every=4,
    )
    return traced.run, train, test, start, rates, batches


@pytest.mark.parametrize("segments", ["learning_rate", [9]])
def test_piecewise_constant_learning_rates_on_a_quadratic(at_optimum, segments):
    run, train, test, start, rates, batches = at_optimum
    net = nn.Linear(4, 2).double()
    expected = unrolled(start, net, squared, train, test, batches, rates)
    method = SOURCE(segments=segments, **UNROLLED).fit(run, train)
    found = method.influence(test)
    assert error(found.values, expected) < 1e-9
    first, second = found.diagnostics["segments"]
    assert (first["steps"], second["steps"]) == ([1, 8], [9, 20])
    assert first["effective_learning_rate"] == pytest.approx(0.05)
    assert second["effective_learning_rate"] == pytest.approx(0.02)
    # The exponential is the limit for small steps: near, and not the same.
    smooth = SOURCE(segments=segments, solver="explicit").fit(run, train).influence(test)
    assert 1e-4 < error(smooth.values, expected) < 0.1


def test_many_steps_are_influence_functions_and_few_are_gradient_products(tmp_path):
    model = pp.TorchModel(mlp(), loss="cross_entropy")
    reference = pp.InfluenceFunctions("explicit", damping=0.02).fit(model, TRAIN)
    far = still_run(tmp_path / "far", mlp(), TRAIN, steps=7, rate=1e4)
    found = SOURCE(1, solver="explicit", damping=0.02).fit(far, TRAIN).influence(TEST)
    assert error(found.values, reference.influence(TEST).values) < 1e-9
    near = still_run(tmp_path / "near", mlp(), TRAIN, steps=7, rate=1e-9)
    products = pp.GradientDot().fit(model, TRAIN).influence(TEST).values
    for solver, segments in (("explicit", 1), ("explicit", 3), ("ekfac", 3), ("kfac", 1)):
        found = SOURCE(segments, solver=solver).fit(near, TRAIN).influence(TEST).values
        assert error(found, products * 7e-9 / 13) < 1e-7


def test_momentum_has_an_effective_learning_rate(at_optimum, tmp_path):
    _, train, test, start, _, _ = at_optimum
    net, batches, momentum = nn.Linear(4, 2).double(), [list(range(13))] * 200, 0.8
    net.load_state_dict(start)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=momentum)
    traced = trace(
        tmp_path, net, train, batches, optimizer=optimizer, loss="mse", risk=squared, every=100
    )
    expected = unrolled(start, net, squared, train, test, batches, [0.01] * 200, momentum=momentum)
    found = SOURCE(1, solver="explicit").fit(traced.run, train).influence(test)
    (segment,) = found.diagnostics["segments"]
    assert segment["effective_learning_rate"] == pytest.approx(0.05)
    assert segment["largest_exponent"] > 1  # far from few steps
    assert error(found.values, expected) < 0.02
    without = unrolled(start, net, squared, train, test, batches, [0.01] * 200)
    assert error(found.values, without) > 0.1


# Kronecker factors


@pytest.mark.parametrize("solver", ["ekfac", "kfac"])
@pytest.mark.parametrize("network", ["mlp", "cnn"])
def test_many_steps_with_kronecker_factors(tmp_path, solver, network):
    net, train, test = (
        (mlp(), TRAIN, TEST)
        if network == "mlp"
        else (
            cnn(),
            make_images(),
            make_images(1, n=3),
        )
    )
    run = still_run(tmp_path, net, train, rate=1e9)
    model = pp.TorchModel(net, loss="cross_entropy")
    reference = pp.InfluenceFunctions(solver, damping=0.05, seed=5).fit(model, train)
    method = SOURCE(1, solver=solver, damping=0.05, seed=5).fit(run, train)
    assert error(method.influence(test).values, reference.influence(test).values) < EXACT


def test_layers_act_as_the_whole_matrix_does():
    """A convolutional network with norms: e and f of the factors' own dense matrix."""
    net, train = cnn(), make_images()
    model = pp.TorchModel(net, loss="cross_entropy")
    factors = KroneckerFactors.fit(model, train, seed=2)
    names = factors.space.names
    pace = Pace(dict.fromkeys(names, 0.7), dict.fromkeys(names, 0.1))
    for propagation in ("exponential", "power"):
        by_layers = FactoredPropagator(factors, pace, 0.2, 9, propagation, "here")
        matrix = factors.dense() + 0.3 * torch.eye(factors.size, dtype=torch.float64)
        rates = torch.full((factors.size,), 0.7, dtype=torch.float64)
        whole = ExplicitPropagator(matrix, rates, 9, propagation, "here")
        vectors = torch.randn(3, factors.size, dtype=torch.float64)
        found, expected = by_layers.carry(vectors), whole.carry(vectors)
        assert relative_error(found.met, expected.met) < EXACT
        assert relative_error(found.before, expected.before) < EXACT


def test_an_explicit_segment_is_a_matrix_function():
    generator = torch.Generator().manual_seed(0)
    half = torch.randn(6, 6, generator=generator, dtype=torch.float64)
    matrix = half @ half.T - torch.eye(6, dtype=torch.float64)  # indefinite
    rates = torch.rand(6, generator=generator, dtype=torch.float64)
    rates[2] = 0.0
    vectors = torch.randn(2, 6, generator=generator, dtype=torch.float64)
    carried = ExplicitPropagator(matrix, rates, 5, "exponential", "here").carry(vectors)
    generated = rates[:, None] * matrix
    assert relative_error(carried.before, vectors @ torch.matrix_exp(-generated)) < 1e-12
    pulled = torch.zeros(6, 6, dtype=torch.float64)
    for part in range(1000):  # the integral of exp(-t P H) P over the segment, midpoints
        pulled += torch.matrix_exp(-(part + 0.5) / 1000 * generated) / 1000
    assert relative_error(carried.met, vectors @ pulled * rates) < 1e-6
    power = ExplicitPropagator(matrix, rates, 5, "power", "here").carry(vectors)
    step = torch.eye(6, dtype=torch.float64) - generated / 5
    total = sum(torch.linalg.matrix_power(step, k) for k in range(5)) / 5
    assert relative_error(power.met, vectors @ total * rates) < 1e-12
    assert relative_error(power.before, vectors @ torch.linalg.matrix_power(step, 5)) < 1e-12


def test_kronecker_factors_are_exact_for_a_linear_model_of_several_outputs():
    """With labels whose residuals are, exactly, white: the Gauss-Newton matrix of each layer."""
    rng = np.random.default_rng(0)
    x = np.repeat(rng.normal(size=(20, 4)), 4, axis=0)
    net = nn.Linear(4, 2).double()
    model = pp.TorchModel(net, loss="mse")
    data = pp.Instances.of((x, np.zeros((80, 2))))
    matrix = GaussNewton(model, data).dense()
    with torch.no_grad():
        outputs = net(torch.from_numpy(x)).numpy()
    # exp(-residual^2) has variance 1/2.
    residuals = np.tile([[1, 1], [1, -1], [-1, 1], [-1, -1]], (20, 1)) / np.sqrt(2)
    factors = KroneckerFactors.fit(model, data, labels=outputs + residuals)
    assert relative_error(factors.dense(), matrix) < EXACT
    names = factors.space.names
    pace = Pace(dict.fromkeys(names, 2.0), dict.fromkeys(names, 0.0))
    vectors = torch.from_numpy(rng.normal(size=(3, 10)))
    rates = torch.full((10,), 2.0, dtype=torch.float64)
    found = FactoredPropagator(factors, pace, 0.0, 5, "exponential", "here").carry(vectors)
    expected = ExplicitPropagator(matrix, rates, 5, "exponential", "here").carry(vectors)
    assert relative_error(found.met, expected.met) < EXACT
    assert relative_error(found.before, expected.before) < EXACT


def test_factors_are_means_over_the_states_of_a_segment(tmp_path):
    """By hand, for one linear layer at two states with their shares."""
    net = nn.Linear(4, 3).double()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.8)
    traced = trace(tmp_path, net, TRAIN, [list(range(13))] * 5, optimizer=optimizer, every=[1, 4])
    method = SOURCE(1, curvature="empirical_fisher").fit(traced.run, TRAIN)
    (segment,) = method.influence(TEST).diagnostics["segments"]
    # Steps 1, 2 are nearest to the first state, 3, 4, 5 to the second (the end is as near as it).
    assert segment["states"] == ["step 1", "step 4"]
    assert segment["shares"] == pytest.approx([0.4, 0.6])
    x = np.hstack([TRAIN[0], np.ones((13, 1))])
    second, slopes = [], []
    for t in (1, 4):
        module = traced.at(t)
        with torch.no_grad():
            p = torch.softmax(module(torch.from_numpy(TRAIN[0])), 1).numpy()
        slopes.append(p - np.eye(3)[TRAIN[1]])
        second.append(slopes[-1].T @ slopes[-1] / 13)
    _, left = np.linalg.eigh(0.4 * second[0] + 0.6 * second[1])
    _, right = np.linalg.eigh(x.T @ x / 13)
    moments = sum(
        share * np.mean(np.einsum("no,oa->na", d, left)[:, :, None] ** 2
                        * np.einsum("nc,cb->nb", x, right)[:, None, :] ** 2, axis=0)
        for share, d in zip((0.4, 0.6), slopes, strict=True)
    )  # fmt: skip
    (block,) = method._propagators[0].factors.blocks
    basis = np.einsum("ab,cd->acbd", block.left.numpy(), block.right.numpy()).reshape(15, 15)
    found = basis @ np.diag(block.eigenvalues.numpy().ravel()) @ basis.T
    basis = np.einsum("ab,cd->acbd", left, right).reshape(15, 15)
    assert error(found, basis @ np.diag(moments.ravel()) @ basis.T) < 1e-5


# How means are taken


def by_formula(traced, test, cuts, states, shares, rate=0.2):
    """Return the formula with dense matrices, exponentials and solves."""
    n = len(traced.train[-1])
    final = traced.gradients(len(traced.batches) + 1, test)
    flat = torch.cat([g.flatten(1) for g in final.values()], 1)
    total = torch.zeros(len(flat), n, dtype=torch.float64)
    for position in reversed(range(len(states))):
        steps = cuts[position + 1] - cuts[position]
        hessian = sum(
            share * dense_hessian(traced.at(t), traced.train)
            for t, share in zip(states[position], shares[position], strict=True)
        )
        kept = torch.matrix_exp(-rate * steps * hessian)
        met = torch.linalg.solve(hessian, (flat - flat @ kept).T).T
        for t, share in zip(states[position], shares[position], strict=True):
            g = torch.cat([g.flatten(1) for g in traced.gradients(t, traced.train).values()], 1)
            total += met @ g.T * share / n
        flat = flat @ kept
    return total.numpy()


def dense_hessian(module, train):
    names = [name for name, _ in module.named_parameters()]
    shapes = [value.shape for value in module.parameters()]
    columns = as_batch(module, train)

    def risk(vector):
        parts = vector.split([shape.numel() for shape in shapes])
        theta = {k: part.view(s) for k, part, s in zip(names, parts, shapes, strict=True)}
        return cross_entropies(lambda *i: functional_call(module, theta, i), columns).mean()

    flat = torch.cat([value.detach().flatten() for value in module.parameters()])
    return torch.autograd.functional.hessian(risk, flat)


@pytest.fixture(scope="module")
def epochs(tmp_path_factory):
    """Four epochs of three batches, stored at each epoch's beginning."""
    path = tmp_path_factory.mktemp("runs") / "epochs"
    return trace(path, mlp(), TRAIN, in_batches(13, 5, epochs=4), every="epoch")


def test_the_formula(epochs):
    method = SOURCE(2, solver="explicit", curvature="hessian").fit(epochs.run, TRAIN)
    found = method.influence(TEST)
    described = found.diagnostics["segments"]
    assert [one["states"] for one in described] == [
        ["step 1", "step 4", "step 7"],
        ["step 7", "step 10", "the end"],
    ]
    states = [[1, 4, 7], [7, 10, 13]]
    shares = [one["shares"] for one in described]
    assert shares[0] == pytest.approx([1 / 3, 1 / 2, 1 / 6])
    assert shares[1] == pytest.approx([1 / 3, 1 / 2, 1 / 6])
    assert error(found.values, by_formula(epochs, TEST, [1, 7, 13], states, shares)) < 1e-9
    assert any("negative" in warning for warning in found.diagnostics["warnings"])
    assert found.diagnostics["test_gradients"] == "at the final parameters"


def test_an_instance_counts_where_it_was_used(tmp_path):
    """Two stages of training: one on the first instances, one on the others."""
    early, late = list(range(7)), list(range(7, 13))
    batches = [early] * 3 + [late] * 3
    net = mlp()
    start = copied(net)
    traced = trace(tmp_path, net, TRAIN, batches)
    expected = unrolled(start, mlp(), cross_entropies, TRAIN, TEST, batches, [0.2] * 6)
    method = SOURCE(6, **{**UNROLLED, "averaging": "expected"}).fit(traced.run, TRAIN)
    assert error(method.influence(TEST).values, expected) < EXACT
    assert [one["instances"] for one in method.influence(TEST).diagnostics["segments"]] == [
        7, 7, 7, 6, 6, 6,
    ]  # fmt: skip
    # One mean a stage is near it.
    stages = SOURCE([4], solver="explicit", curvature="hessian").fit(traced.run, TRAIN)
    assert 1e-3 < error(stages.influence(TEST).values, expected) < 0.2


# What holds whatever the settings are


@pytest.mark.parametrize("solver", ["ekfac", "explicit"])
@pytest.mark.parametrize("averaging", ["expected", "recorded"])
def test_neither_memory_nor_batches_change_the_numbers(epochs, solver, averaging):
    settings = {"solver": solver, "averaging": averaging, "segments": 2}
    method = SOURCE(**settings).fit(epochs.run, TRAIN)
    test = tuple(column[:2] for column in TEST)
    expected = method.influence(test).values
    small = SOURCE(**settings, batch_size=3).fit(epochs.run, TRAIN)
    small.memory = 1  # from here on a test and a training instance at a time
    assert error(small.influence(test).values, expected) < EXACT
    assert error(small.influence(test, joint=True).values, expected.sum(0)) < EXACT
    halves = [method.influence(test, shard=(i, 2)).values for i in range(2)]
    assert error(np.hstack(halves), expected) < EXACT
    for one in (method, small):
        own = one.memorization().values
        assert error(own, method.influence(TRAIN).values.diagonal()) < EXACT
    strongest = small.influence(test, top_k=3).proponents(3)
    assert (strongest.ids == method.influence(test).proponents(3).ids).all()
    assert error(strongest.values, -np.sort(-expected)[:, :3]) < EXACT
    groups = np.arange(13) % 3
    together = method.group_influence(groups, test).values
    assert error(together, np.stack([expected[:, groups == g].sum(1) for g in range(3)], 1)) < EXACT


def test_when_influence_was_made(epochs):
    method = SOURCE([5, 9], batch_size=3).fit(epochs.run, TRAIN)
    expected = method.influence(TEST).values
    found = method.influence(TEST, by_checkpoint=True)
    assert list(found.steps) == [1, 5, 9]
    assert error(found.total().values, expected) < EXACT
    only = method.influence(TEST, joint=True, by_checkpoint=True).values
    assert error(only, np.asarray(found.values).sum(0)) < EXACT
    summary = method.influence(TEST, by_checkpoint="summary")
    values = np.asarray(found.values)
    assert error(summary.helped, values.clip(min=0).sum(1)) < EXACT
    method.memory = 1
    again = method.influence(TEST, by_checkpoint=True)
    assert error(np.asarray(again.values), values) < EXACT
    assert error(method.influence(TEST, by_checkpoint="summary").helped, summary.helped) < EXACT


def test_a_seed_fixes_the_drawn_labels(epochs):
    one, other = (SOURCE(2, seed=seed).fit(epochs.run, TRAIN).influence(TEST) for seed in (1, 2))
    again = SOURCE(2, seed=1).fit(epochs.run, TRAIN).influence(TEST)
    assert (again.values == one.values).all()
    assert error(other.values, one.values) > 1e-3


# Real data


def test_it_is_nearer_to_retraining_than_influence_functions_and_tracin(tmp_path):
    """Digits, not converged; leave-one-out retraining under the recorded batches."""
    training = Training("short", epochs=20, rate=0.2)
    it = trained(training, tmp_path / "run", n=60, n_test=10, hidden=8)
    found = {
        name: np.mean([np.corrcoef(*pair)[0, 1] for pair in zip(values, it.loo, strict=True)])
        for name, values in estimates(it, training.weight_decay)
    }
    assert found["SOURCE, explicit"] > found["SOURCE, EK-FAC"] > 0.9
    for solver in ("EK-FAC", "explicit"):
        assert found[f"SOURCE, {solver}"] > found[f"InfluenceFunctions, {solver}"] + 0.01
    assert found["SOURCE, EK-FAC"] > found["TracInCP"] + 0.1


def test_parameters_that_no_step_moved_have_no_influence(tmp_path):
    net = mlp()
    optimizer = torch.optim.SGD(net[0].parameters(), lr=0.1)
    traced = trace(tmp_path, net, TRAIN, in_batches(13, 5), optimizer=optimizer)
    found = SOURCE(2, parameters="last").fit(traced.run, TRAIN).influence(TEST)
    assert (found.values == 0).all()
    assert found.diagnostics["warnings"] == [
        "no step moved the chosen parameters: every influence is 0"
    ]


# Refusals


def test_a_risk_without_a_distribution_needs_another_curvature(tmp_path):
    net = mlp()
    traced = trace(tmp_path, net, TRAIN, in_batches(13, 5), load={"risk": cross_entropies})
    with pytest.raises(InvalidInputError, match="curvature='empirical_fisher'"):
        SOURCE(2).fit(traced.run, TRAIN)
    for settings in (
        {"curvature": "empirical_fisher"},
        {"curvature": "empirical_fisher", "solver": "explicit"},
        {"curvature": "hessian", "solver": "explicit"},
    ):
        assert SOURCE(2, **settings).fit(traced.run, TRAIN).influence(TEST).shape == (4, 13)


def test_optimizers_other_than_sgd_are_refused(tmp_path):
    net = mlp()
    adam = torch.optim.Adam(net.parameters(), lr=0.01)
    traced = trace(tmp_path / "adam", net, TRAIN, in_batches(13, 5), optimizer=adam)
    with pytest.raises(RunError, match=r"SOURCE .*another optimizer, torch.optim.adam.Adam"):
        SOURCE(1).fit(traced.run, TRAIN)
    net = mlp()
    up = torch.optim.SGD(net.parameters(), lr=0.01, maximize=True)
    traced = trace(tmp_path / "up", net, TRAIN, in_batches(13, 5), optimizer=up)
    with pytest.raises(RunError, match="maximize"):
        SOURCE(1).fit(traced.run, TRAIN)


def test_too_few_states_are_refused(epochs):
    with pytest.raises(RunError, match=r"of steps 2 to 2 .* before steps 1, 4, 7, 10\)"):
        SOURCE(9).fit(epochs.run, TRAIN)
    with pytest.raises(RunError, match="of steps 1 to 6"):
        SOURCE(2, checkpoints=[10]).fit(epochs.run, TRAIN)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"segments": 0}, "segments=0"),
        ({"segments": 13}, "segments=13"),
        ({"segments": [7, 4]}, "increasing"),
        ({"segments": [1]}, "from 2 to 12"),
        ({"segments": "epochs"}, "segments='epochs'"),
        ({"solver": "cg"}, "solver='cg'"),
        ({"curvature": "hessian"}, "use solver='explicit'"),
        ({"curvature": "fischer"}, "curvature='fischer'"),
        ({"averaging": "mean"}, "averaging='mean'"),
        ({"propagation": "exact"}, "propagation='exact'"),
        ({"damping": -1.0}, "damping"),
        ({"seed": -1}, "seed"),
        ({"solver": "explicit", "memory": 10_000}, r"43 parameters in 3 segments"),
    ],
)
def test_settings_that_cannot_be_used(epochs, settings, message):
    with pytest.raises(InvalidInputError, match=message):
        SOURCE(**settings).fit(epochs.run, TRAIN)


def test_a_layer_has_one_learning_rate_with_kronecker_factors(tmp_path):
    net = nn.Linear(4, 3).double()
    groups = [{"params": [net.weight], "weight_decay": 0.1}, {"params": [net.bias]}]
    optimizer = torch.optim.SGD(groups, lr=0.1)
    traced = trace(tmp_path, net, TRAIN, in_batches(13, 5), optimizer=optimizer)
    with pytest.raises(InvalidInputError, match="different weight decays"):
        SOURCE(1).fit(traced.run, TRAIN)
    SOURCE(1, solver="explicit").fit(traced.run, TRAIN)


def test_a_gradient_that_is_not_finite_is_named(epochs):
    method = SOURCE(2).fit(epochs.run, TRAIN)
    bad = TEST[0].copy()
    bad[2, 1] = np.inf
    with pytest.raises(NonFiniteError, match="2"):
        method.influence((bad, TEST[1]))


def test_what_grows_beyond_all_numbers_is_refused(tmp_path):
    run = still_run(tmp_path, mlp(), TRAIN, steps=2, rate=1e9)
    with pytest.raises(SolveError, match="magnified beyond"):
        SOURCE(1, solver="explicit", curvature="hessian").fit(run, TRAIN)
