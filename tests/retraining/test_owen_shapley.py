"""Owen sampling: the quadrature, its designs, and values within their errors."""

import numpy as np
import pytest
from retraining.games import (
    FROZEN,
    NeighboursGame,
    all_masks,
    enumerated,
    everything,
    few_nearer,
    measured,
    random_worth,
    table_game,
    without,
)
from retraining.sampled import assert_calibrated, deviations, user_game
from sklearn.linear_model import Ridge

from proponent.exceptions import InvalidInputError
from proponent.retraining.coalitions import Coalitions, Table
from proponent.retraining.designs.flips import ByChance, BySize, Flips
from proponent.retraining.designs.owen import OwenNodes
from proponent.retraining.estimators.flip_marginals import FlipMarginals, marginals
from proponent.retraining.estimators.owen import (
    OwenMeans,
    end_marginals,
    gauss_legendre,
    trapezoid,
)
from proponent.retraining.owen_shapley import OwenShapley


def uneven_worth(n, n_tests):
    return random_worth(n, n_tests) + 7 + np.sqrt(all_masks(n).sum(axis=1)[:, None])


def shapley(worth):
    n = int(np.log2(len(worth)))
    return enumerated(worth, np.full(n, 1 / n))


def test_rules_integrate_polynomials():
    for nodes in (1, 3, 6):
        rule = gauss_legendre(nodes)
        at, weights = np.array(rule.chances), np.array(rule.weights)
        assert rule.end == 0
        for degree in range(2 * nodes):
            assert weights @ at**degree == pytest.approx(1 / (degree + 1), rel=1e-12)
    rule = trapezoid(9)
    at, weights = np.array(rule.chances), np.array(rule.weights)
    assert at == pytest.approx(np.arange(1, 10) / 10)
    for degree in (0, 1):
        total = weights @ at**degree + rule.end * (0.0**degree + 1)
        assert total == pytest.approx(1 / (degree + 1), rel=1e-12)


def expected_values(worth, rule):
    """Return the quadrature of the exact integrand."""
    from scipy.stats import binom

    n = int(np.log2(len(worth)))
    s = np.arange(n)
    parts = [
        weight * enumerated(worth, binom.pmf(s, n - 1, q))
        for q, weight in zip(rule.chances, rule.weights, strict=True)
    ]
    ends = [rule.end * enumerated(worth, np.eye(n)[at]) for at in (0, n - 1)]
    return sum(parts) + sum(ends)


def test_half_as_many_nodes_as_players_have_no_error():
    worth = uneven_worth(7, 2)
    assert expected_values(worth, gauss_legendre(4)) == pytest.approx(shapley(worth), abs=1e-12)
    few = np.abs(expected_values(worth, gauss_legendre(2)) - shapley(worth)).max()
    coarse = np.abs(expected_values(worth, trapezoid(9)) - shapley(worth)).max()
    fine = np.abs(expected_values(worth, trapezoid(99)) - shapley(worth)).max()
    assert few > 1e-3
    assert 1e-4 < coarse < 0.1
    assert fine == pytest.approx(coarse / 100, rel=0.2)


@pytest.mark.parametrize(
    ("settings", "rule"),
    [
        ({"nodes": 4}, gauss_legendre(4)),
        ({"nodes": 4, "estimator": "means"}, gauss_legendre(4)),
        ({"nodes": 5, "estimator": "means", "antithetic": True}, gauss_legendre(5)),
        ({"nodes": 4, "antithetic": True}, gauss_legendre(4)),
        ({"nodes": 9, "rule": "trapezoid"}, trapezoid(9)),
        ({"nodes": 4, "estimator": "marginals"}, gauss_legendre(4)),
        ({"nodes": 5, "rule": "trapezoid", "estimator": "marginals"}, trapezoid(5)),
    ],
    ids=lambda given: str(given) if isinstance(given, dict) else "",
)
def test_values_are_within_their_errors(settings, rule):
    n = 7
    worth = uneven_worth(n, 2)

    def method(seed):
        return OwenShapley(2500, **({"estimator": "regression"} | settings), seed=seed)

    z = deviations(method, user_game(table_game(worth), n), expected_values(worth, rule), 24)
    assert_calibrated(z)


def test_the_game_of_three_players_has_its_values():
    found = OwenShapley().fit(user_game(table_game(FROZEN), 3)).influence()
    assert found.values[0] == pytest.approx([11 / 6, 10 / 3, 5 / 6], abs=1e-14)


def test_neighbours_at_n_60():
    n, k = 60, 5
    game = NeighboursGame.random(n, 4, k)
    truth = game.exact(few_nearer("shapley", n, k))
    errors = {}
    for estimator in ("regression", "means", "marginals"):
        method = OwenShapley(6000, estimator=estimator, nodes=10)
        found = method.fit(user_game(game, n)).influence()
        errors[estimator] = np.sqrt(np.nanmean(np.square(found.values - truth)))
        assert not np.isnan(found.values).any()
    scale = np.sqrt(np.square(truth).mean())
    assert errors["regression"] < 0.15 * scale
    assert errors["regression"] < 0.7 * min(errors["means"], errors["marginals"])


def test_nodes_are_as_many_as_the_models_allow():
    game = user_game(NeighboursGame.random(30, 1), 30)
    nodes = [
        OwenShapley(models, estimator="means").fit(game).influence().diagnostics["nodes"]
        for models in (100, 1000, 20_000)
    ]
    assert nodes == sorted(nodes)
    assert nodes[0] < nodes[1] < nodes[2] == 10
    with pytest.raises(InvalidInputError, match=r"one node needs at least \d+ submodels"):
        OwenShapley(10, estimator="means").fit(game)
    with pytest.raises(InvalidInputError, match=r"5 nodes need at least 310 submodels"):
        OwenShapley(300, estimator="marginals", nodes=5).fit(game)


@pytest.mark.parametrize("antithetic", [False, True])
@pytest.mark.parametrize("rule", [gauss_legendre(3), trapezoid(4)])
def test_a_longer_draw_begins_with_the_shorter_one(rule, antithetic):
    same_start(OwenNodes(rule, antithetic))


@pytest.mark.parametrize("strata", [ByChance((0.2, 0.7)), BySize((0, 2, 5))])
def test_a_longer_draw_of_flips_begins_with_the_shorter_one(strata):
    same_start(Flips(strata))


def same_start(design, n=5):
    whole = design.draw(n, 0, 90, 3)
    for start, stop in ((0, 3), (7, 30), (11, 13), (61, 90)):
        part = design.draw(n, start, stop, 3)
        for name in ("masks", "seeds", "blocks", "chances"):
            ours, theirs = getattr(part, name), getattr(whole, name)
            assert ours is None if theirs is None else (ours == theirs[start:stop]).all()


def test_nodes_come_in_turn_and_complements_have_the_other_half():
    rule = gauss_legendre(3)
    plain = OwenNodes(rule, False).draw(400, 0, 3000, 0)
    pairs = OwenNodes(rule, True).draw(400, 0, 3000, 0)
    for drawn in (plain, pairs):
        assert drawn.chances is not None
        portion = drawn.masks.mean(axis=1)
        z = (portion - drawn.chances) / np.sqrt(drawn.chances * (1 - drawn.chances) / 400)
        assert abs(z.mean()) < 0.1
        assert z.std() == pytest.approx(1, abs=0.05)
    assert (pairs.masks[0::2] == ~pairs.masks[1::2]).all()
    assert (pairs.seeds[0::2] == pairs.seeds[1::2]).all()
    assert set(np.round(pairs.chances, 6)) == set(np.round(rule.chances, 6))


def test_the_ends_are_exact():
    n = 5
    worth = random_worth(n, 2)
    table = measured(table_game(worth), OwenNodes(trapezoid(2), False), n, 2 * n + 2)
    expected = enumerated(worth, np.eye(n)[0]) + enumerated(worth, np.eye(n)[n - 1])
    assert end_marginals(table) == pytest.approx(expected, abs=1e-14)
    alone = np.flatnonzero(table.coalitions.masks[:, 2] & (table.coalitions.sizes == 1))
    missing = end_marginals(without(table, alone))
    assert np.isnan(missing[:, 2]).all()
    assert np.isfinite(np.delete(missing, 2, axis=1)).all()


def test_marginals_are_found_whatever_failed():
    n = 5
    worth = random_worth(n, 1)
    table = measured(table_game(worth), Flips(ByChance((0.3, 0.8))), n, 8 * (n + 1))
    gone = [0, 7, 14, 15, 20, 21, 22, 23, 24, 25, 26, 28, 40]
    for left in (table, without(table, gone)):
        lower, upper, players = marginals(left.coalitions)
        masks = left.coalitions.masks
        assert len(players) > 0
        for low, up, player in zip(lower, upper, players, strict=True):
            apart = np.flatnonzero(masks[low] != masks[up])
            assert apart.tolist() == [player]
            assert masks[up, player]
            assert left.coalitions.blocks[low] == left.coalitions.blocks[up]
    assert len(marginals(table.coalitions)[0]) == 8 * n
    # Round 0 lost its centre, 1 and 2 lost a player or two, 3 all but the first and the last.
    _, _, players = marginals(without(table, gone).coalitions)
    assert len(players) < 8 * n


def test_a_stratum_without_a_marginal_is_nan():
    n = 4
    table = measured(table_game(random_worth(n, 1)), Flips(ByChance((0.3,))), n, 3 * (n + 1))
    found = FlipMarginals({0.3: 0.5, 0.6: 0.5}, by_size=False).on(table).players(range(n))
    assert np.isnan(found.values).all()
    found = FlipMarginals({0.3: 1.0}, by_size=False).on(table).players(range(n))
    assert np.isfinite(found.values).all()
    assert np.isfinite(found.std_errors).all()


def test_coalitions_without_a_probability_are_refused():
    table = Table(everything(3), random_worth(3, 1))
    with pytest.raises(InvalidInputError, match="with a probability"):
        OwenMeans(gauss_legendre(2)).on(table)
    alone = Coalitions(table.coalitions.masks, table.coalitions.seeds, np.full(8, 0.5))
    with pytest.raises(InvalidInputError, match="in pairs"):
        OwenMeans(gauss_legendre(1), antithetic=True).on(Table(alone, table.utilities))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rule": "simpson"}, "rule must be"),
        ({"antithetic": 1}, "antithetic must be"),
        ({"nodes": 0}, "nodes"),
        ({"estimator": "adjusted"}, "estimator must be"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    game = user_game(NeighboursGame.random(20, 1), 20)
    with pytest.raises(InvalidInputError, match=message):
        OwenShapley(**settings).fit(game)


def test_training_instances_have_their_shapley_values_in_a_model():
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(8, 2)), rng.normal(size=8)
    test = X[:2] + 0.1, y[:2]
    exact = OwenShapley(estimator="exact").fit(Ridge(), (X, y)).influence(test)
    for estimator in ("regression", "means", "marginals"):
        method = OwenShapley(1500, estimator=estimator, nodes=4)
        found = method.fit(Ridge(), (X, y)).influence(test)
        assert np.abs((found.values - exact.values) / found.std_error).max() < 5
