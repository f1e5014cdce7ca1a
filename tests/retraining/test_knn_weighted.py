"""Semivalues of weighted neighbours, against enumeration."""

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from retraining.knn_games import SEMIVALUES, by_distance, nearest_members, semivalues

from proponent.exceptions import InvalidInputError
from proponent.retraining.neighbours.shapley import KNNShapley
from proponent.retraining.neighbours.weighted_shapley import WeightedKNNShapley

EXACT = 1e-12


def make(n, seed=0, m=2):
    rng = np.random.default_rng(seed)
    points = rng.normal(size=(n + m, 2))
    labels = rng.integers(0, 3, n + m)
    return (points[:n], labels[:n]), (points[n:], labels[n:])


def rounded(weights, levels):
    return np.rint(weights / weights.max() * levels)


def inverse(distances):
    return 1 / distances


def halving(distances):
    return 2.0 ** -np.floor(3 * distances)


def voting_game(weights, right, ranking, k, vote, empty):
    def game(members):
        counted = nearest_members(ranking, members, k)
        weight = sum(weights[i] for i in counted)
        agreed = sum(weights[i] for i in counted if right[i])
        if vote == "share":
            return agreed / weight if weight else empty
        return float(2 * agreed >= weight) if counted else empty

    return game


def check(n, k, vote, *, weight=inverse, levels=8, empty=None, name="Shapley", seed=0):
    semivalue, law = SEMIVALUES[name]
    (X, y), (X_test, y_test) = make(n, seed)
    method = WeightedKNNShapley(
        k=k,
        vote=vote,
        weight="inverse" if weight is inverse else weight,
        levels=levels,
        semivalue=semivalue(n),
        empty=empty,
    )
    found = method.fit((X, y)).influence((X_test, y_test)).values
    v = {"share": 1 / len(set(y)), "majority": 1.0}[vote] if empty is None else empty
    for row, x in enumerate(X_test):
        weights = rounded(weight(np.linalg.norm(X - x, axis=1)), levels)
        game = voting_game(weights, y == y_test[row], by_distance(X, x), k, vote, v)
        expected = semivalues(game, n, law(n))
        assert found[row] == pytest.approx(expected, abs=EXACT)


@pytest.mark.parametrize("vote", ["share", "majority"])
@pytest.mark.parametrize("n", [1, 2, 3, 7])
def test_equal_to_enumeration_for_any_k(n, vote):
    for k in (1, 2, 3, n, n + 1):
        check(n, k, vote, levels=4, seed=n + k)


@pytest.mark.parametrize("vote", ["share", "majority"])
@pytest.mark.parametrize("name", SEMIVALUES)
def test_equal_to_enumeration_for_any_semivalue(name, vote):
    check(6, 2, vote, name=name, empty=0.3)
    check(7, 3, vote, name=name, levels=3)


@pytest.mark.parametrize("vote", ["share", "majority"])
def test_equal_to_enumeration_for_any_weight(vote):
    check(7, 3, vote, weight=halving, levels=8)
    check(7, 2, vote, weight=inverse, levels=1)  # only those with half of the largest weight vote


def test_equal_weights_are_those_of_the_unweighted_game():
    (X, y), test = make(200, m=5)
    for k in (1, 4, 12):
        weighted = WeightedKNNShapley(k=k, weight=np.ones_like, levels=1).fit((X, y))
        plain = KNNShapley(k=k, divide_by="neighbours").fit((X, y))
        found, expected = (method.influence(test).values for method in (weighted, plain))
        assert found == pytest.approx(expected, abs=EXACT)


@pytest.mark.parametrize("vote", ["share", "majority"])
def test_shapley_values_of_many_sum_up_to_the_utility(vote):
    (X, y), (X_test, y_test) = make(700, m=3)
    for k, levels in ((5, 8), (10, 2)):
        method = WeightedKNNShapley(k=k, vote=vote, levels=levels, empty=0.5).fit((X, y))
        found = method.influence((X_test, y_test)).values
        for row, x in enumerate(X_test):
            weights = rounded(1 / np.linalg.norm(X - x, axis=1), levels)
            game = voting_game(weights, y == y_test[row], by_distance(X, x), k, vote, 0.5)
            assert found[row].sum() == pytest.approx(game(range(700)) - 0.5, abs=1e-11)


def test_many_neighbours_keep_their_digits():
    """Inclusion and exclusion, up to the largest k, against the unweighted closed form."""
    (X, y), test = make(400)
    for n in (26, 40, 60, 400):
        train = X[:n], y[:n]
        weighted = WeightedKNNShapley(k=25, weight=np.ones_like, levels=1).fit(train)
        plain = KNNShapley(k=25, divide_by="neighbours").fit(train)
        found, expected = (method.influence(test).values for method in (weighted, plain))
        assert found == pytest.approx(expected, abs=1e-10), n


def test_blocks_of_ranks_equal_the_whole(monkeypatch):
    from proponent.retraining.neighbours import weighted

    train, test = make(90)
    expected = WeightedKNNShapley(k=3).fit(train).influence(test).values
    monkeypatch.setattr(weighted, "COUNTS_AT_ONCE", 1)
    found = WeightedKNNShapley(k=3).fit(train).influence(test).values
    assert found == pytest.approx(expected, abs=1e-14)


def test_those_at_distance_0_outvote_all_others():
    X, y = np.array([[0.0], [0.0], [1.0], [2.0]]), np.array([1, 0, 1, 1])
    test = np.array([[0.0]]), [1]
    found = WeightedKNNShapley(k=2).fit((X, y)).influence(test).values

    def weight(distances):
        return (distances == 0) * 1.0

    assert_array_equal(
        found, WeightedKNNShapley(k=2, weight=weight).fit((X, y)).influence(test).values
    )
    assert found.sum() == pytest.approx(0.5 - 0.5, abs=EXACT)
    assert (found[0, :2] != 0).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"k": 0}, "k must be"),
        ({"levels": 0}, "levels must be"),
        ({"vote": "plurality"}, "vote must be 'share' or 'majority'"),
        ({"weight": "gaussian"}, "weight must be 'inverse' or a function"),
        ({"k": 26, "levels": 1}, r"k=26 .* k=25"),
        ({"k": 5, "levels": 100}, r"100 levels .* entries"),
    ],
    ids=repr,
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(InvalidInputError, match=message):
        WeightedKNNShapley(**settings).fit(make(5)[0])


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (lambda d: d[:-1], r"of shape \(5,\) it returned \(4,\)"),
        (lambda d: -d, "not negative"),
        (lambda d: 0 * d, "some of them positive"),
        (lambda d: d / 0, "finite"),
        (lambda d: d * np.nan, "finite"),
    ],
)
def test_weights_that_are_none_are_refused(weight, message):
    train, test = make(5)
    with (
        np.errstate(all="ignore"),
        pytest.raises(InvalidInputError, match=f"weight: .*{message}"),
    ):
        WeightedKNNShapley(weight=weight).fit(train).influence(test)
