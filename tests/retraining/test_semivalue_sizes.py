"""The law of the size of the coalition that a player joins."""

from fractions import Fraction

import numpy as np
import pytest
from retraining.games import FROZEN, enumerated, random_worth
from retraining.knn_games import SEMIVALUES
from scipy.stats import betabinom, binom

from proponent.exceptions import InvalidInputError
from proponent.retraining.semivalues import (
    AMEWeights,
    BanzhafWeights,
    BetaWeights,
    LeaveOneOutWeights,
    ShapleyWeights,
    SizeWeights,
    semivalue_of,
)

KNOWN = [
    (LeaveOneOutWeights(), "3 5 2"),
    (ShapleyWeights(), "11/6 10/3 5/6"),
    (BanzhafWeights(), "7/4 13/4 3/4"),
    (BanzhafWeights(0.7), "219/100 389/100 119/100"),
    (BetaWeights(4, 1), "19/15 37/15 4/15"),
    (BetaWeights(1, 4), "37/15 64/15 22/15"),
    (BetaWeights(16, 1), "163/153 325/153 10/153"),
    (AMEWeights(), "9/5 33/10 4/5"),
]


@pytest.mark.parametrize(("semivalue", "values"), KNOWN, ids=lambda part: str(part))
def test_the_frozen_game(semivalue, values):
    expected = [float(Fraction(value)) for value in values.split()]
    assert enumerated(FROZEN, semivalue.sizes(3))[0] == pytest.approx(expected, abs=1e-14)


@pytest.mark.parametrize("name", SEMIVALUES)
@pytest.mark.parametrize("n", [1, 2, 3, 9, 30])
def test_laws_are_the_known_ones(name, n):
    given, law = SEMIVALUES[name]
    found = semivalue_of(given(n)).sizes(n)
    assert found.shape == (n,)
    assert found == pytest.approx(law(n), rel=1e-12, abs=1e-15)


@pytest.mark.parametrize("name", SEMIVALUES)
@pytest.mark.parametrize("n", [2, 9, 60])
def test_sizes_are_how_many_of_all_the_others_are_in(name, n):
    given, _ = SEMIVALUES[name]
    semivalue = semivalue_of(given(n))
    of_all = [law[n - 1] for law in semivalue.counts(n, n)]
    assert semivalue.sizes(n) == pytest.approx(of_all, rel=1e-10, abs=1e-14)


@pytest.mark.parametrize("n", [1, 2, 1100, 60_000])
@pytest.mark.parametrize(
    "semivalue",
    [
        ShapleyWeights(),
        LeaveOneOutWeights(),
        BanzhafWeights(),
        BanzhafWeights(0.001),
        BanzhafWeights(0.999),
        BetaWeights(16, 1),
        BetaWeights(1, 16),
        BetaWeights(0.5, 0.3),
        BetaWeights(1000, 1),
        AMEWeights(),
    ],
    ids=str,
)
def test_it_is_a_law_however_many_players(semivalue, n):
    law = semivalue.sizes(n)
    assert np.isfinite(law).all()
    assert (law >= 0).all()
    assert law.sum() == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("n", [1100, 60_000])
def test_large_games_keep_their_digits(n):
    s = np.linspace(0, n - 1, 400).astype(int)
    for semivalue, law in [
        (BetaWeights(16, 1), betabinom.pmf(s, n - 1, 1, 16)),
        (BetaWeights(1, 16), betabinom.pmf(s, n - 1, 16, 1)),
        (BanzhafWeights(0.5), binom.pmf(s, n - 1, 0.5)),
        (BanzhafWeights(0.01), binom.pmf(s, n - 1, 0.01)),
    ]:
        assert semivalue.sizes(n)[s] == pytest.approx(law, rel=1e-8, abs=1e-300), semivalue


def test_beta_is_uniform_for_1_1_and_prefers_small_coalitions_for_16_1():
    assert BetaWeights(1, 1).sizes(500) == pytest.approx(np.full(500, 1 / 500), rel=1e-11)
    for alpha, beta in ((16, 1), (1, 16), (0.5, 3)):
        mean = BetaWeights(alpha, beta).sizes(1001) @ np.arange(1001)
        assert mean == pytest.approx(1000 * beta / (alpha + beta), rel=1e-9)


def test_limits():
    """Leave-one-out is Beta(1, infinity), what a player is alone is Beta(infinity, 1)."""
    assert BetaWeights(1, 1e9).sizes(20)[-1] == pytest.approx(1, abs=1e-6)
    assert BetaWeights(1e9, 1).sizes(20)[0] == pytest.approx(1, abs=1e-6)
    many = AMEWeights(tuple((np.arange(4000) + 0.5) / 4000))
    assert many.sizes(8) == pytest.approx(np.full(8, 1 / 8), abs=1e-6)


def test_values_are_those_of_a_given_law():
    law = np.array([0.5, 0.2, 0.2, 0.1])
    worth = random_worth(4, 2)
    weights = SizeWeights(law)
    assert (weights.sizes(4) == law).all()
    mixed = sum(p * enumerated(worth, np.eye(4)[s]) for s, p in enumerate(law))
    assert enumerated(worth, weights.sizes(4)) == pytest.approx(mixed, abs=1e-14)
    with pytest.raises(InvalidInputError, match=r"4 probabilities .* 5 training instances"):
        weights.sizes(5)
