"""Delta-Shapley: the mean marginal contribution to coalitions of some sizes."""

import numpy as np
import pytest
from retraining.games import NeighboursGame, all_masks, enumerated, random_worth, table_game
from retraining.sampled import assert_calibrated, deviations, user_game
from sklearn.linear_model import Ridge

from proponent.exceptions import InvalidInputError
from proponent.retraining.delta_shapley import DeltaShapley
from proponent.retraining.designs.chosen_sizes import ChosenSizes, often


def law(n, lower, upper):
    found = np.zeros(n)
    found[lower : upper + 1] = 1 / (upper - lower + 1)
    return found


def uneven_worth(n, n_tests):
    return random_worth(n, n_tests) + 7 + np.sqrt(all_masks(n).sum(axis=1)[:, None])


@pytest.mark.parametrize(("lower", "upper"), [(0, 6), (1, 3), (2, 2), (0, 0), (6, 6)])
def test_exact_values_are_the_mean_over_sizes(lower, upper):
    worth = uneven_worth(7, 2)
    method = DeltaShapley(lower=lower, upper=upper)
    found = method.fit(user_game(table_game(worth), 7)).influence()
    assert found.values == pytest.approx(enumerated(worth, law(7, lower, upper)), abs=1e-12)
    assert found.diagnostics["estimator"] == "exact"


@pytest.mark.parametrize(
    ("estimator", "lower", "upper", "decay"),
    [
        ("regression", 1, 4, 0.0),
        ("regression", 0, 3, 0.0),
        ("means", 1, 4, 0.0),
        ("means", 2, 7, 2.0),
        ("marginals", 1, 4, 0.0),
        ("marginals", 0, 3, 1.0),
    ],
)
def test_sampled_values_are_within_their_errors(estimator, lower, upper, decay):
    n = 8
    worth = uneven_worth(n, 2)

    def method(seed):
        return DeltaShapley(
            1500, lower=lower, upper=upper, decay=decay, estimator=estimator, seed=seed
        )

    z = deviations(
        method, user_game(table_game(worth), n), enumerated(worth, law(n, lower, upper)), 24
    )
    assert_calibrated(z)


def test_only_coalitions_of_these_sizes_are_evaluated():
    seen = []
    worth = random_worth(10, 1)

    def value(masks):
        seen.extend(masks.sum(axis=1).tolist())
        return table_game(worth)(masks)

    for estimator in ("regression", "means", "marginals"):
        seen.clear()
        method = DeltaShapley(600, lower=2, upper=4, estimator=estimator)
        method.fit(user_game(value, 10)).influence()
        # A marginal of a player who is in the coalition begins with one less.
        least, most = (1, 6) if estimator == "marginals" else (2, 5)
        assert set(seen) == set(range(least, most + 1))


def test_the_default_sizes_are_up_to_a_tenth():
    game = user_game(NeighboursGame.random(60, 1), 60)
    assert DeltaShapley(500).fit(game).influence().diagnostics["upper"] == 6
    few = user_game(NeighboursGame.random(12, 1), 12)
    assert DeltaShapley(500).fit(few).influence().diagnostics["upper"] == 2


def test_sizes_come_as_often_as_wanted_and_evenly():
    assert often([1, 2, 3], 0.0) == [1, 2, 3]
    turns = often([0, 1, 2, 4], 2.0)
    assert {size: turns.count(size) for size in (0, 1, 2, 4)} == {0: 16, 1: 16, 2: 4, 4: 1}
    assert len(set(turns[:3])) > 1
    half = turns[: len(turns) // 2]
    assert half.count(2) == 2


def test_nobody_and_everybody_come_once():
    design = ChosenSizes((0, 1, 2, 5))
    drawn = design.draw(5, 0, 200, 1)
    sizes = drawn.sizes.tolist()
    assert sizes[:2] == [0, 5]
    assert sizes.count(0) == sizes.count(5) == 1
    assert sizes.count(1) == sizes.count(2) == 99
    for start, stop in ((0, 1), (1, 70), (64, 200)):
        part = design.draw(5, start, stop, 1)
        assert (part.masks == drawn.masks[start:stop]).all()
        assert (part.seeds == drawn.seeds[start:stop]).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lower": -1}, "lower and upper must be sizes"),
        ({"lower": 3, "upper": 2}, "lower and upper must be sizes"),
        ({"upper": 8}, "lower <= upper <= 7"),
        ({"upper": 2.5}, "lower and upper must be sizes"),
        ({"decay": -1}, "decay must be"),
        ({"estimator": "marginals", "n_models": 20}, "take 54 submodels; got 20"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    game = user_game(table_game(random_worth(8, 1)), 8)
    with pytest.raises(InvalidInputError, match=message):
        DeltaShapley(**settings).fit(game)


def test_training_instances_have_values_in_a_model():
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(9, 2)), rng.normal(size=9)
    test = X[:2] + 0.1, y[:2]
    exact = DeltaShapley(estimator="exact", upper=3).fit(Ridge(), (X, y)).influence(test)
    for estimator in ("regression", "means", "marginals"):
        method = DeltaShapley(600, estimator=estimator, upper=3)
        found = method.fit(Ridge(), (X, y)).influence(test)
        assert np.abs((found.values - exact.values) / found.std_error).max() < 5
