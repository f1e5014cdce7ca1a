"""TracInRP: unbiased, with the stated variance, and one embedding an instance."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal
from references import flat, inner_products
from traced_runs import (
    RATE,
    error,
    in_batches,
    influence_by_loops,
    make_set,
    mlp,
    trace,
)

import proponent as pp
from proponent.exceptions import InvalidInputError, NotFittedError

K = 6
SEEDS = 200
TRAIN, TEST = make_set(n=5), make_set(1, n=3)


@pytest.fixture(scope="module")
def traced(tmp_path_factory):
    """Two checkpoints, close to each other: one projection for both would not average out."""
    path = tmp_path_factory.mktemp("runs") / "mlp"
    return trace(path, mlp(), TRAIN, in_batches(5, 3), rate=RATE)


@pytest.fixture(scope="module", params=["gaussian", "rademacher", "kronecker"])
def sampled(request, traced):
    """Return the kind of projection and the scores of many seeds, (seeds, m, n)."""
    scores = [
        pp.TracInRP(K, projection=request.param, seed=seed)
        .fit(traced.run, TRAIN)
        .influence(TEST)
        .values
        for seed in range(SEEDS)
    ]
    return request.param, np.stack(scores)


def squared_parts(traced, cross, names=None):
    """Return ``sum_c eta_c^2 (||g_i||^2 ||g_te||^2 + <g_i, g_te>^2 - cross_c)``, (m, n)."""
    total = np.zeros((3, 5))
    for t in traced.steps:
        train, test = (
            {
                name: g
                for name, g in traced.gradients(t, data).items()
                if names is None or name in names
            }
            for data in (TRAIN, TEST)
        )
        G, G_te = flat(train), flat(test)
        squares = G_te.square().sum(1)[:, None] * G.square().sum(1)
        products = inner_products(test, train)
        fourth = 2 * G_te.square() @ G.square().T if cross else 0
        total += RATE**2 * (squares + products.square() - fourth).numpy()
    return total


def test_the_mean_over_projections_is_tracincp(traced, sampled):
    _, scores = sampled
    expected = influence_by_loops(traced, TEST, traced.steps)
    z = (scores.mean(axis=0) - expected) / (scores.std(axis=0, ddof=1) / np.sqrt(SEEDS))
    assert np.abs(z).max() < 4  # of 15 entries
    assert np.sqrt((z**2).mean()) < 2
    # ... and each seed is another draw, far from its neighbour.
    assert error(scores[0], scores[1]) > 0.1


def test_the_variance_is_the_stated_one(traced, sampled):
    kind, scores = sampled
    expected = squared_parts(traced, cross=kind == "rademacher") / K
    ratio = scores.var(axis=0, ddof=1).sum() / expected.sum()
    if kind == "kronecker":
        assert 1.1 < ratio < 3
    else:
        assert ratio == pytest.approx(1, abs=0.15)


@pytest.mark.parametrize("projection", ["gaussian", "rademacher"])
def test_signs_vary_less_where_gradients_have_few_entries(traced, projection):
    names = ["2.bias"]
    scores = [
        pp.TracInRP(K, projection=projection, seed=seed, parameters=names)
        .fit(traced.run, TRAIN)
        .influence(TEST)
        .values
        for seed in range(SEEDS)
    ]
    plain, signed = (squared_parts(traced, cross, names).sum() / K for cross in (False, True))
    assert signed < 0.7 * plain
    found = np.var(scores, axis=0, ddof=1).sum()
    assert found == pytest.approx(signed if projection == "rademacher" else plain, rel=0.15)


def test_the_variance_falls_with_k(traced):
    def spread(k):
        estimates = [
            pp.TracInRP(k, projection="gaussian", seed=seed).fit(traced.run, TRAIN).influence(TEST)
            for seed in range(40)
        ]
        return np.var([estimate.values for estimate in estimates], axis=0).sum()

    assert spread(4) / spread(64) == pytest.approx(16, rel=0.5)


@pytest.mark.parametrize("projection", ["gaussian", "rademacher", "kronecker"])
@pytest.mark.parametrize(
    "settings",
    [{}, {"scale_by_batch": True}, {"checkpoints": [2]}, {"parameters": "*.weight"}],
    ids=str,
)
def test_inner_products_of_embeddings_are_the_scores(traced, projection, settings):
    method = pp.TracInRP(7, projection=projection, seed=3, **settings).fit(traced.run, TRAIN)
    train, test = method.embeddings(TRAIN), method.embeddings(TEST)
    checkpoints = len(settings.get("checkpoints", traced.steps))
    assert train.shape == (5, 7 * checkpoints)
    assert error(test @ train.T, method.influence(TEST).values) < 1e-12
    joint = method.influence(TEST, joint=True).values
    assert error(test.sum(axis=0) @ train.T, joint) < 1e-12


def test_embeddings_know_each_groups_learning_rate(tmp_path):
    net = mlp()
    groups = [
        {"params": [net[0].weight], "lr": 0.01},
        {"params": [net[2].weight, net[2].bias], "lr": 0.7},
        {"params": [net[0].bias], "lr": 0.0},
    ]
    traced = trace(tmp_path, net, TRAIN, in_batches(5, 3), optimizer=torch.optim.SGD(groups))
    method = pp.TracInRP(4096, projection="gaussian").fit(traced.run, TRAIN)
    scores = method.embeddings(TEST) @ method.embeddings(TRAIN).T
    assert error(scores, method.influence(TEST).values) < 1e-12
    expected = influence_by_loops(traced, TEST, traced.steps)
    assert error(scores, expected) < 0.15  # about 1/sqrt(k) each, of larger norms
    assert np.corrcoef(scores.ravel(), expected.ravel())[0, 1] > 0.99


def test_embeddings_of_two_sets_stand_at_the_same_checkpoints(traced):
    # The checkpoints where the risk moves most are those of one test set.
    method = pp.TracInRP(5, checkpoints=pp.LargestRiskChange(1)).fit(traced.run, TRAIN)
    with pytest.raises(InvalidInputError, match="LargestRiskChange"):
        method.embeddings(TRAIN)


def test_memorization_is_tracincps_whatever_the_seed(traced):
    expected = influence_by_loops(traced, TRAIN, traced.steps).diagonal()
    for seed in (0, 1):
        memorization = pp.TracInRP(4, seed=seed).fit(traced.run, TRAIN).memorization()
        assert error(memorization.values, expected) < 1e-12


def test_one_object_does_not_change_another(traced):
    first = pp.TracInRP(4, projection="gaussian").fit(traced.run, TRAIN)
    before = first.influence(TEST).values
    pp.TracInRP(9, projection="rademacher", seed=5).fit(traced.run, TRAIN).influence(TEST)
    assert_array_equal(first.influence(TEST).values, before)
    again = pp.TracInRP(4, projection="gaussian").fit(traced.run, TRAIN)
    assert_array_equal(again.influence(TEST).values, before)


@pytest.mark.parametrize("projection", ["gaussian", "rademacher", "kronecker"])
def test_memory_does_not_change_the_numbers(traced, projection):
    values = [
        pp.TracInRP(9, projection=projection, memory=memory)
        .fit(traced.run, TRAIN)
        .influence(TEST)
        .values
        for memory in (1, 2000, 2**29)
    ]
    assert error(values[0], values[2]) < 1e-12
    assert error(values[1], values[2]) < 1e-12


def test_a_prime_k_and_a_k_of_1_are_possible(traced):
    for k in (1, 13):
        influence = pp.TracInRP(k).fit(traced.run, TRAIN).influence(TEST)
        assert np.isfinite(influence.values).all()
        assert (influence.values != 0).all()


def test_wrong_settings_are_refused_by_fit(traced):
    for settings, message in (
        ({"k": 0}, "at least 1; got 0"),
        ({"projection": "sparse"}, "projection='sparse': expected one of gaussian"),
    ):
        with pytest.raises(InvalidInputError, match=message):
            pp.TracInRP(**settings).fit(traced.run, TRAIN)


def test_embeddings_need_fit():
    with pytest.raises(NotFittedError, match="TracInRP is not fitted"):
        pp.TracInRP().embeddings(TRAIN)
