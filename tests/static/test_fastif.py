"""FastIF against influence functions, neighbours by brute force, and the paper's recursion."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from static.networks import M, N, Network, close
from torch import nn
from torch.nn import functional

import proponent as pp
from proponent.exceptions import InvalidInputError, MethodCapabilityError, NonFiniteError
from proponent.gradients.solvers.lissa import LiSSA
from proponent.influence import Influence
from proponent.static.fastif import FastIF
from proponent.static.nearest import nearest

SETTINGS = {"weight_decay": 0.1}


@pytest.fixture(scope="module")
def network() -> Network:
    return Network(6)


def hidden(network, data) -> np.ndarray:
    """What enters the last layer, by hand."""
    return torch.tanh(network.module[0](data[0])).detach().numpy()


def neighbours(network, test, k: int) -> np.ndarray:
    """Whether a training instance is one of the k nearest, (n_test, n)."""
    queries, points = hidden(network, test), hidden(network, network.train)
    distances = np.linalg.norm(queries[:, None] - points[None], axis=2)
    order = np.argsort(distances, axis=1)
    inside = np.zeros(distances.shape, dtype=bool)
    np.put_along_axis(inside, order[:, :k], True, axis=1)
    return inside


# Neighbours


@pytest.mark.parametrize("memory", [1, 5_000, 10**7])
@pytest.mark.parametrize("k", [1, 7, 60])
def test_nearest_by_brute_force(k, memory) -> None:
    rng = np.random.default_rng(0)
    queries = (rng.normal(size=(9, 4)) + 1e3).astype(np.float32)
    points = (rng.normal(size=(60, 4)) + 1e3).astype(np.float32)
    distances = np.linalg.norm(queries[:, None].astype(float) - points[None], axis=2)
    found = nearest(torch.tensor(queries), torch.tensor(points), k, memory)
    assert_array_equal(found, np.argsort(distances, axis=1)[:, :k])


@pytest.mark.parametrize("memory", [1_300, 10**7])
@pytest.mark.parametrize("convention", ["fixed_divisor", "renormalised"])
def test_neighbours_are_scored_as_by_influence_functions_and_no_other(
    network, convention, memory
) -> None:
    settings = {**SETTINGS, "solver": "explicit", "loo_convention": convention}
    full = pp.InfluenceFunctions(**settings).fit(network.model, network.train)
    method = FastIF(k=5, memory=memory, **settings).fit(network.model, network.train)
    scores = method.influence(network.test)
    inside = neighbours(network, network.test, 5)
    assert_array_equal(np.isnan(scores.values), ~inside)
    expected = full.influence(network.test).values
    assert close(scores.values[inside], expected[inside])
    assert scores.diagnostics["scored_instances"] == inside.any(0).sum()
    parts = [method.influence(network.test, shard=(i, 2)) for i in range(2)]
    joined = Influence.join(parts).values
    assert_array_equal(np.isnan(joined), ~inside)
    assert close(joined[inside], expected[inside])
    top = method.influence(network.test, top_k=3)
    assert_array_equal(top.proponents().ids, scores.proponents(3).ids)
    assert_array_equal(top.opponents().ids, scores.opponents(3).ids)


@pytest.mark.parametrize(
    "solver, k",
    [("explicit", N), ("cg", 1000), ("ekfac", 1000), (LiSSA(batch_size=4, steps=20), 1000)],
)
def test_all_neighbours_are_influence_functions(network, solver, k) -> None:
    """To the last bit."""
    settings = {"damping": 0.2, "solver": solver, "batch_size": 8}
    full = pp.InfluenceFunctions(**settings).fit(network.model, network.train)
    method = FastIF(k=k, **settings).fit(network.model, network.train)
    assert_array_equal(method.influence(network.test).values, full.influence(network.test).values)
    assert_array_equal(
        method.influence(network.test, joint=True).values,
        full.influence(network.test, joint=True).values,
    )
    assert_array_equal(method.memorization().values, full.memorization().values)


def test_memorization_needs_no_neighbours(network) -> None:
    method = FastIF(k=1, solver="explicit", **SETTINGS).fit(network.model, network.train)
    own = method.influence(network.train).values
    assert_array_equal(~np.isnan(own), np.eye(N, dtype=bool))
    assert close(method.memorization().values, own.diagonal())


def test_a_joint_influence_needs_a_score_for_every_test(network) -> None:
    settings = {**SETTINGS, "solver": "explicit"}
    method = FastIF(k=16, **settings).fit(network.model, network.train)
    scores = method.influence(network.test)
    joint = method.influence(network.test, joint=True)
    common = neighbours(network, network.test, 16).all(0)
    assert 0 < common.sum() < N
    assert_array_equal(np.isnan(joint.values), ~common)
    assert close(joint.values[common], scores.joint().values[common])
    few = FastIF(k=1, **settings).fit(network.model, network.train)
    with pytest.raises(InvalidInputError, match=r"joint: no training instance .* all 7 test"):
        few.influence(network.test, joint=True)
    # one test instance, and each of its neighbours
    one = tuple(part[:1] for part in network.test)
    assert_array_equal(few.influence(one, joint=True).values, few.influence(one).values[0])


class Watched:
    """A map-style set that notes which of its items are looked at."""

    def __init__(self, data) -> None:
        self.data, self.seen = data, set()

    def __len__(self) -> int:
        return len(self.data[1])

    def __getitem__(self, position):
        self.seen.add(position)
        return self.data[0][position], int(self.data[1][position])


def test_no_gradient_but_the_neighbours_is_taken(network) -> None:
    train = Watched(network.train)
    method = FastIF(k=3, solver="explicit", **SETTINGS).fit(network.model, train)
    train.seen.clear()
    method.influence(tuple(part[:2] for part in network.test))
    wanted = neighbours(network, network.test, 3)[:2].any(0)
    assert train.seen == set(np.flatnonzero(wanted))


def test_any_embedding_may_be_used(network) -> None:
    def raw(instances: pp.Instances) -> np.ndarray:
        return instances.batch(slice(None))[0].numpy()[:, :2]

    method = FastIF(k=4, features=raw, solver="explicit", **SETTINGS)
    values = method.fit(network.model, network.train).influence(network.test).values
    queries, points = network.test[0][:, :2].numpy(), network.train[0][:, :2].numpy()
    distances = ((queries[:, None] - points[None]) ** 2).sum(2)
    for row, distance in zip(values, distances, strict=True):
        assert_array_equal(np.flatnonzero(~np.isnan(row)), np.sort(np.argsort(distance)[:4]))


@pytest.mark.parametrize("wrong", [lambda i: np.ones(len(i)), lambda i: np.ones((2, 3))])
def test_an_embedding_that_does_not_fit_is_refused(network, wrong) -> None:
    with pytest.raises(InvalidInputError, match=r"features: expected shape \(23, d\)"):
        FastIF(features=wrong).fit(network.model, network.train)
    with pytest.raises(NonFiniteError, match=r"embedding .* ids 0, 1, "):
        FastIF(features=lambda i: np.full((len(i), 1), np.nan)).fit(network.model, network.train)


def test_a_module_without_features_is_told_of_the_argument() -> None:
    module = nn.Sequential(nn.Conv1d(1, 1, 2), nn.Flatten()).double()
    model = pp.TorchModel(module, loss="cross_entropy")
    train = torch.randn(6, 1, 4).double(), torch.arange(6) % 3
    with pytest.raises(InvalidInputError, match=r"no linear layer.*give features="):
        FastIF(**SETTINGS).fit(model, train)
    flat = FastIF(k=2, features=lambda i: i.batch(slice(None))[0].flatten(1), **SETTINGS)
    assert np.isnan(flat.fit(model, train).influence(train).values).sum() == 6 * 4


@pytest.mark.parametrize("classes", [2, 3])
def test_a_scikit_learn_model_has_its_features(classes) -> None:
    X, y = load_digits(n_class=classes, return_X_y=True)
    train, test = (X[:60], y[:60]), (X[60:65], y[60:65])
    model = LogisticRegression(C=0.01, tol=1e-8, max_iter=1000).fit(*train)
    method = FastIF(k=5, solver="explicit").fit(model, train)
    distances = np.linalg.norm(test[0][:, None] - train[0][None], axis=2)
    values = method.influence(test).values
    for row, distance in zip(values, distances, strict=True):
        assert_array_equal(np.flatnonzero(~np.isnan(row)), np.sort(np.argsort(distance)[:5]))
    full = pp.InfluenceFunctions("explicit").fit(model, train).influence(test).values
    inside = ~np.isnan(values)
    assert close(values[inside], full[inside])
    common = inside[:1].all(0)
    joint = method.influence((test[0][:1], test[1][:1]), joint=True).values
    assert_array_equal(~np.isnan(joint), common)


def test_more_neighbours_find_more_of_the_strongest() -> None:
    """On digits: the recall of the 20 largest scores, which is that of chance at worst."""
    X, y = load_digits(return_X_y=True)
    X, y = torch.tensor(X / 16), torch.tensor(y)
    module = nn.Linear(64, 10).double()
    optimizer = torch.optim.LBFGS(module.parameters(), max_iter=50)

    def objective():
        optimizer.zero_grad()
        loss = functional.cross_entropy(module(X[:300]), y[:300])
        loss = loss + 0.01 / 2 * sum(p.square().sum() for p in module.parameters())
        loss.backward()
        return loss

    optimizer.step(objective)
    model, train, test = pp.TorchModel(module, loss="cross_entropy"), (X[:300], y[:300]), X[300:330]
    test = test, y[300:330]
    settings = {"weight_decay": 0.01, "solver": "explicit"}
    full = pp.InfluenceFunctions(**settings).fit(model, train).influence(test).values
    strongest = np.argsort(-np.abs(full), axis=1)[:, :20]
    recalls = []
    for k in (30, 75, 150):
        scores = FastIF(k=k, **settings).fit(model, train).influence(test).values
        recalls.append((~np.isnan(np.take_along_axis(scores, strongest, axis=1))).mean())
    assert (np.diff(recalls) > 0).all()
    assert recalls[0] > 2 * 30 / 300
    assert recalls[2] > 0.7


# Solvers


def test_the_settings_of_the_paper(network) -> None:
    """u <- v + (1 - 0.005) u - H_b u / 10,000, single instances, the last u: damping 50."""
    method = FastIF(k=N, solver="paper", seed=3).fit(network.model, network.train)
    influence = method.influence(network.test)
    damped = network.gauss_newton + (50 + method.damping_) * torch.eye(len(network.theta)).double()
    train, test = network.gradients(network.train), network.gradients(network.test)
    expected = test @ torch.linalg.solve(damped, train.T) / N
    assert close(influence.values, expected, 0.02)  # 1 - 0.995^1000 of the way
    assert influence.diagnostics["effective_damping"] == pytest.approx(50, rel=1e-3)
    # nothing but the inner product of the gradients is left
    assert np.corrcoef(influence.values.ravel(), (test @ train.T).ravel())[0, 1] > 0.9999


def test_repeats_in_processes_are_those_in_turn(network) -> None:

    def scores(repeats: int, **settings) -> Influence:
        # Batches as large as the set would have no noise to average.
        solver = LiSSA(batch_size=4, steps=40, repeats=repeats, seed=5)
        method = FastIF(k=4, solver=solver, damping=0.5, **settings)
        return method.fit(network.model, network.train).influence(network.test)

    expected, parallel = scores(3), scores(3, n_jobs=2)
    inside = ~np.isnan(expected.values)
    assert close(parallel.values[inside], expected.values[inside], 1e-12)
    assert parallel.diagnostics["iterations"] == expected.diagnostics["iterations"]
    assert "n_jobs" not in parallel.settings
    assert not close(scores(1).values[inside], expected.values[inside], 1e-4)


def test_the_default_is_lissa_near_the_exact_solution(network) -> None:
    settings = {"damping": 0.2, "k": N}
    exact = FastIF(solver="explicit", **settings).fit(network.model, network.train)
    found = FastIF(**settings).fit(network.model, network.train)
    influence = found.influence(network.test)
    assert close(influence.values, exact.influence(network.test).values, 0.02)
    assert influence.diagnostics["solver"] == "LiSSA"
    assert influence.diagnostics["converged"]
    twice = FastIF(repeats=2, **settings).fit(network.model, network.train)
    steps = twice.influence(network.test).diagnostics["iterations"]
    assert steps == 2 * influence.diagnostics["iterations"]


# What is refused


def test_refusals(network) -> None:
    for wrong in ({"k": 0}, {"k": 2.5}, {"repeats": 0}):
        with pytest.raises(InvalidInputError, match=r"(k|repeats) must be a positive integer"):
            FastIF(**wrong).fit(network.model, network.train)
    with pytest.raises(InvalidInputError, match=r"repeats=3 are of solver='lissa' or 'paper'"):
        FastIF(solver="cg", repeats=3).fit(network.model, network.train)
    with pytest.raises(InvalidInputError, match="solver='magic'"):
        FastIF(solver="magic").fit(network.model, network.train)
    method = FastIF(k=4, solver="explicit", **SETTINGS).fit(network.model, network.train)
    with pytest.raises(InvalidInputError, match=r"top_k: only 4 neighbours .* raise k=4"):
        method.influence(network.test, top_k=5)
    with pytest.raises(InvalidInputError, match="NaN and cannot be ranked"):
        method.influence(network.test).ranking()
    with pytest.raises(MethodCapabilityError, match="FastIF has no group influence"):
        method.group_influence({"a": [0]}, network.test)
    assert method.influence(network.test).proponents(4).ids.shape == (M, 4)
