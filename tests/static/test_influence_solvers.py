"""Influence functions by every solver, on a network whose matrices are written out."""

import numpy as np
import pytest
import torch
from gradients import kfac_examples
from static.networks import N, Network, close

import proponent as pp
from proponent.exceptions import InvalidInputError, SolveError
from proponent.gradients.kfac.factors import KroneckerFactors
from proponent.gradients.solvers.arnoldi import Arnoldi
from proponent.gradients.solvers.conjugate_gradients import ConjugateGradients
from proponent.gradients.solvers.lissa import LiSSA

SHIFT = 0.05
# Solver, and how near the dense inverse it is: rounding, its tolerance, or its noise.
SOLVERS = {
    "auto": ("auto", 1e-10),
    "explicit": ("explicit", 1e-10),
    "cg": (ConjugateGradients(tolerance=1e-12), 1e-9),
    "arnoldi at full rank": (Arnoldi(iterations=60, rank=60), 1e-8),
    "lissa": (LiSSA(steps=600, batch_size=N), 1e-3),
}


@pytest.fixture(autouse=True)
def double_precision():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture(scope="module")
def network() -> Network:
    return Network()


def influence_of(network, inverse, *, decay: float = 0.0) -> np.ndarray:
    """(1/n) g_te^T inverse (g_i + decay theta), and the same of the training set on itself."""
    train, test = network.gradients(network.train), network.gradients(network.test)
    return (test @ inverse @ (train + decay * network.theta).T / N).numpy()


@pytest.mark.parametrize(
    "name, batch_size",
    [(name, size) for name in SOLVERS for size in (5, 100) if (name, size) != ("lissa", 5)],
)
def test_every_solver_inverts_the_gauss_newton_matrix(network, name, batch_size) -> None:
    solver, tolerance = SOLVERS[name]
    method = pp.InfluenceFunctions(solver, damping=SHIFT, batch_size=batch_size)
    method.fit(network.model, network.train)
    expected = influence_of(network, network.inverse(SHIFT))
    influence = method.influence(network.test)
    assert close(influence.values, expected, tolerance)
    joint = method.influence(network.test, joint=True).values
    assert close(joint, expected.sum(0), 10 * tolerance)
    train = network.gradients(network.train)
    itself = (train @ network.inverse(SHIFT) * train).sum(1) / N
    assert close(method.memorization().values, itself, tolerance)
    assert influence.diagnostics["converged"] or name == "lissa"
    assert len(influence.diagnostics["residuals"]) == len(network.test[0])


@pytest.mark.parametrize("curvature", ["fisher", "empirical_fisher"])
def test_the_gram_dual_inverts_fisher_matrices(network, curvature) -> None:
    settings = {"curvature": curvature, "damping": SHIFT, "seed": 4}
    dual = pp.InfluenceFunctions("gram_dual", **settings).fit(network.model, network.train)
    explicit = pp.InfluenceFunctions("explicit", **settings).fit(network.model, network.train)
    assert close(dual.influence(network.test).values, explicit.influence(network.test).values, 1e-9)
    assert close(dual.memorization().values, explicit.memorization().values, 1e-9)
    with pytest.raises(InvalidInputError, match="Fisher"):
        pp.InfluenceFunctions("gram_dual", damping=SHIFT).fit(network.model, network.train)


@pytest.mark.parametrize("solver", ["ekfac", "kfac"])
@pytest.mark.parametrize("convention", ["fixed_divisor", "renormalised"])
def test_kronecker_factors_equal_their_dense_matrix(network, solver, convention) -> None:
    factors = KroneckerFactors.fit(network.model, network.train, method=solver, seed=7)
    dense = kfac_examples.dense_curvature(factors)
    inverse = torch.linalg.inv(dense + (SHIFT + 0.02) * torch.eye(len(dense)).double())
    renormalised = convention == "renormalised"
    decay = 0.02 if renormalised else 0.0
    expected = influence_of(network, inverse, decay=decay)
    for given in (solver, factors):
        method = pp.InfluenceFunctions(
            given, damping=SHIFT, weight_decay=0.02, loo_convention=convention, seed=7
        ).fit(network.model, network.train)
        assert close(method.influence(network.test).values, expected)
        assert close(method.influence(network.test, joint=True).values, expected.sum(0))
        train = network.gradients(network.train)
        itself = (train @ inverse * (train + decay * network.theta)).sum(1) / N
        assert close(method.memorization().values, itself)
        changes = method.parameter_changes([2, 5])
        moved = -(train[[2, 5]] + decay * network.theta) @ inverse / N
        assert close(np.concatenate([c.reshape(2, -1) for c in changes.values()], 1), moved)


def test_kronecker_factors_are_damped_layer_by_layer(network) -> None:
    method = pp.InfluenceFunctions("ekfac", seed=1).fit(network.model, network.train)
    factors = KroneckerFactors.fit(network.model, network.train, seed=1)
    assert method.damping_ == factors.default_damping()
    given = {name: 2 * value for name, value in method.damping_.items()}
    twice = pp.InfluenceFunctions("ekfac", seed=1, damping=given)
    assert twice.fit(network.model, network.train).damping_ == given
    assert not close(
        twice.influence(network.test).values, method.influence(network.test).values, 0.05
    )


def test_weight_decay_may_differ_between_parameters(network) -> None:
    """As scikit-learn's, which leaves intercepts alone."""
    decays = {"0.weight": 0.3, "0.bias": 0.0, "2.weight": 0.1, "2.bias": 0.0}
    diagonal = torch.cat(
        [
            value * torch.ones_like(network.parameters[name]).flatten()
            for name, value in decays.items()
        ]
    )
    matrix = network.gauss_newton + torch.diag(diagonal) + SHIFT * torch.eye(len(diagonal))
    expected = influence_of(network, torch.linalg.inv(matrix))
    for solver in ("explicit", ConjugateGradients(tolerance=1e-12)):
        method = pp.InfluenceFunctions(solver, weight_decay=decays, damping=SHIFT)
        found = method.fit(network.model, network.train).influence(network.test)
        assert close(found.values, expected, 1e-9)
    with pytest.raises(InvalidInputError, match="one number a layer"):
        pp.InfluenceFunctions("ekfac", weight_decay=decays).fit(network.model, network.train)
    with pytest.raises(InvalidInputError, match=r"missing or unknown: 2\.bias"):
        decays.pop("2.bias")
        pp.InfluenceFunctions(weight_decay=decays).fit(network.model, network.train)


@pytest.mark.parametrize("solver", ["explicit", "ekfac"])
def test_a_small_memory_cuts_the_test_set_and_changes_nothing(network, solver) -> None:
    plain = pp.InfluenceFunctions(solver, damping=SHIFT).fit(network.model, network.train)
    entries = len(network.theta)
    tight = pp.InfluenceFunctions(solver, damping=SHIFT)
    tight.fit(network.model, network.train)
    tight.memory = 16 * entries * 2  # two test instances at a time
    assert tight._solved_at_once == 2
    full = plain.influence(network.test)
    assert close(tight.influence(network.test).values, full.values)
    strongest = tight.influence(network.test, top_k=3).proponents(k=3)
    assert (strongest.positions == full.proponents(k=3).positions).all()


def test_each_test_set_is_solved_once_however_it_is_streamed(network) -> None:
    """The solves, dear ones, are not had again for each block of training instances."""
    calls = []

    class Counting(ConjugateGradients):
        def prepare(self, curvature, shift):
            prepared = super().prepare(curvature, shift)
            solve = prepared.solve
            prepared.solve = lambda right: calls.append(len(right)) or solve(right)
            return prepared

    method = pp.InfluenceFunctions(Counting(), damping=SHIFT).fit(network.model, network.train)
    method._block_rows = lambda n_test: 4
    method.influence(network.test, top_k=2)
    assert calls == [len(network.test[0])]


def test_cooks_distance_is_the_change_in_the_metric_of_the_curvature(network) -> None:
    method = pp.InfluenceFunctions(damping=SHIFT).fit(network.model, network.train)
    moved = -network.gradients(network.train) @ network.inverse(SHIFT) / N
    metric = torch.linalg.inv(network.inverse(SHIFT))
    expected = N / len(metric) * ((moved @ metric) * moved).sum(1)
    assert close(method.cooks_distance().values, expected)
    changes = method.parameter_changes()
    assert close(np.concatenate([c.reshape(N, -1) for c in changes.values()], 1), moved)
    assert changes["0.weight"].shape == (N, 5, 4)
    with pytest.raises(InvalidInputError, match="positions"):
        method.parameter_changes([N])


def test_classical_cooks_distance_of_least_squares() -> None:
    """D_i = e_i^2 h_i / (p s^2 (1 - h_i)^2), to first order in the leverage h_i."""
    generator = torch.Generator().manual_seed(3)
    X = torch.randn(400, 4, generator=generator, dtype=torch.float64)
    y = X.sum(1) + torch.randn(400, generator=generator, dtype=torch.float64)
    module = torch.nn.Linear(4, 1, bias=False).double()
    module.weight.data = torch.linalg.lstsq(X, y[:, None]).solution.T
    model = pp.TorchModel(module, loss=lambda out, target: 0.5 * (out[:, 0] - target) ** 2)
    method = pp.InfluenceFunctions("explicit", damping=0.0).fit(model, (X, y))
    residual = y - module(X)[:, 0].detach()
    leverage = (X @ torch.linalg.inv(X.T @ X) * X).sum(1)
    variance = residual.square().sum() / (400 - 4)
    classical = residual**2 * leverage / (4 * variance * (1 - leverage) ** 2)
    found = method.cooks_distance().values / float(variance)
    assert close(found, classical * (1 - leverage) ** 2)


def test_auto_says_why(network) -> None:
    method = pp.InfluenceFunctions(damping=SHIFT).fit(network.model, network.train)
    diagnostics = method.influence(network.test).diagnostics
    assert "explicit" in diagnostics["why_solver"]
    assert diagnostics["solver"] == "explicit"


def test_a_model_that_is_not_stationary_is_said(network) -> None:
    method = pp.InfluenceFunctions(damping=SHIFT).fit(network.model, network.train)
    diagnostics = method.influence(network.test).diagnostics
    gradients = network.gradients(network.train)
    mean = gradients.mean(0).norm()
    assert diagnostics["objective_gradient_norm"] == pytest.approx(float(mean))
    relative = float(mean / gradients.square().sum(1).mean().sqrt())
    assert diagnostics["relative_objective_gradient"] == pytest.approx(relative)
    assert any("stationary" in warning for warning in diagnostics["warnings"])


def test_settings_that_do_not_go_together_are_refused(network) -> None:
    with pytest.raises(InvalidInputError, match="factorises"):
        pp.InfluenceFunctions("ekfac", curvature="hessian").fit(network.model, network.train)
    with pytest.raises(InvalidInputError, match="Kronecker"):
        pp.InfluenceFunctions("cg", damping={"0": 1.0}).fit(network.model, network.train)
    factors = KroneckerFactors.fit(network.model, network.train)
    last = network.model.with_parameters("last")
    with pytest.raises(InvalidInputError, match="other parameters"):
        pp.InfluenceFunctions(factors).fit(last, network.train)
    with pytest.raises((InvalidInputError, SolveError), match="damping"):
        pp.InfluenceFunctions("gram_dual", curvature="fisher", damping=0.0).fit(
            network.model, network.train
        )


def test_a_fit_that_fails_late_leaves_the_method_as_it_was(network) -> None:
    method = pp.InfluenceFunctions(damping=SHIFT).fit(network.model, network.train)
    before = method.influence(network.test).values
    X, y = network.train
    with pytest.raises(SolveError):
        method.set_params(solver="explicit", curvature="hessian", damping=0.0)
        method.fit(network.model, (X[:10], y[:10]))
    method.set_params(solver="auto", curvature="ggn", damping=SHIFT)
    assert close(method.influence(network.test).values, before, 1e-14)


@pytest.mark.parametrize("solver", ["explicit", "ekfac"])
@pytest.mark.parametrize("convention", ["fixed_divisor", "renormalised"])
@pytest.mark.parametrize("memory", [2**29, 16 * 43 * 2])
def test_compressed_queries_report_what_they_lose(network, solver, convention, memory) -> None:
    settings = {"damping": SHIFT, "weight_decay": 0.02, "loo_convention": convention, "seed": 1}
    whole = pp.InfluenceFunctions(solver, **settings).fit(network.model, network.train)
    exact = whole.influence(network.test).values
    for rank in (1, 5):
        method = pp.InfluenceFunctions(solver, query_rank=rank, **settings)
        method.fit(network.model, network.train)
        method.memory = memory  # two test instances at a time, or all
        influence = method.influence(network.test)
        errors = np.array(influence.diagnostics["query_errors"])
        assert errors.shape == (len(network.test[0]),)
        # |<g_i, x - x'>| <= error ||x|| ||g_i||, x = A^{-1} g_te
        sizes = network.gradients(network.train).norm(dim=1).numpy() / N
        solved = whole._chosen.fresh().solve(network.gradients(network.test)).vectors
        bound = (errors * solved.norm(dim=1).numpy())[:, None] * sizes
        assert (np.abs(influence.values - exact) <= bound + 1e-12).all()
        if rank == 5:  # no matrix has a larger rank
            assert close(influence.values, exact, 1e-9)
        else:
            assert errors.max() > 0.01
        joint = method.influence(network.test, joint=True).values
        assert close(joint, exact.sum(0), 1e-9)  # a sum is never compressed
    with pytest.raises(InvalidInputError, match="query_rank"):
        pp.InfluenceFunctions(query_rank=0).fit(network.model, network.train)


def test_the_memory_bounds_the_batches_that_are_chosen(network) -> None:
    sizes = [
        pp.GradientDot(memory=memory).fit(network.model, network.train)._batch_size
        for memory in (2**29, 2**12, 1)
    ]
    assert sizes[0] > sizes[1] > sizes[2] == 1
    answers = []
    for memory in (2**12, 2**29):
        method = pp.InfluenceFunctions("explicit", damping=SHIFT, memory=memory)
        answers.append(method.fit(network.model, network.train).influence(network.test).values)
    assert close(*answers, 1e-9)
