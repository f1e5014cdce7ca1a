"""The laws of coalitions: by size, and of how many of some instances are in one."""

from fractions import Fraction

import numpy as np
import pytest
from retraining.knn_games import SEMIVALUES, semivalues
from scipy.special import comb
from scipy.stats import betabinom, binom

from proponent.exceptions import InvalidInputError
from proponent.retraining.semivalues import (
    AMEWeights,
    BanzhafWeights,
    BetaWeights,
    LeaveOneOutWeights,
    Semivalue,
    ShapleyWeights,
    SizeWeights,
    semivalue_of,
)

# The three-player game of the specification, by its coalitions.
WORTH = {(): 0, (0,): 1, (1,): 2, (2,): 0, (0, 1): 4, (0, 2): 1, (1, 2): 3, (0, 1, 2): 6}
FROZEN = [
    (LeaveOneOutWeights(), ["3", "5", "2"]),
    (ShapleyWeights(), ["11/6", "10/3", "5/6"]),
    (BanzhafWeights(), ["7/4", "13/4", "3/4"]),
    (BanzhafWeights(0.7), ["219/100", "389/100", "119/100"]),
    (BetaWeights(4, 1), ["19/15", "37/15", "4/15"]),
    (BetaWeights(1, 4), ["37/15", "64/15", "22/15"]),
    (BetaWeights(16, 1), ["163/153", "325/153", "10/153"]),
    (AMEWeights(), ["9/5", "33/10", "4/5"]),
]


def law_of_sizes(semivalue: Semivalue, n: int) -> np.ndarray:
    return np.array([law[n - 1] for law in semivalue.counts(n, n)])


@pytest.mark.parametrize(("semivalue", "expected"), FROZEN, ids=lambda part: str(part))
def test_a_game_of_three_players_has_the_known_values(semivalue, expected):
    values = semivalues(lambda S: WORTH[tuple(S)], 3, law_of_sizes(semivalue, 3))
    assert values == pytest.approx([float(Fraction(value)) for value in expected], abs=1e-14)


@pytest.mark.parametrize("name", SEMIVALUES)
@pytest.mark.parametrize("n", [1, 2, 3, 9])
def test_counts_are_those_of_a_coalition_drawn_by_its_size(name, n):
    given, law = SEMIVALUES[name]
    found = np.array(list(semivalue_of(given(n)).counts(n, n)))
    assert found.shape == (n, n)
    for m in range(n):
        # Of s drawn among the n - 1 others, how many are of the m.
        expected = [
            sum(law(n)[s] * comb(m, j) * comb(n - 1 - m, s - j) / comb(n - 1, s) for s in range(n))
            for j in range(n)
        ]
        assert found[:, m] == pytest.approx(expected, abs=1e-14)
    some = list(semivalue_of(given(n)).counts(n, 1))
    assert len(some) == 1
    assert (some[0] == found[0]).all()


def test_large_games_keep_their_digits():
    n, k = 1000, 10
    m = np.arange(n)
    for semivalue, law in [
        (BetaWeights(4, 1), lambda j: betabinom.pmf(j, m, 1, 4)),
        (BetaWeights(1, 16), lambda j: betabinom.pmf(j, m, 16, 1)),
        (BanzhafWeights(0.01), lambda j: binom.pmf(j, m, 0.01)),
    ]:
        for j, found in enumerate(semivalue.counts(n, k)):
            assert found == pytest.approx(law(j), rel=1e-8, abs=1e-300), (semivalue, j)


def test_weights_of_n_1100_neither_underflow_nor_overflow():
    """Where another library's Beta weights are NaN."""
    law = law_of_sizes(BetaWeights(16, 1), 1100)
    assert np.isfinite(law).all()
    assert law.sum() == pytest.approx(1, abs=1e-12)
    assert law @ np.arange(1100) == pytest.approx(1099 * 1 / 17, rel=1e-10)
    law = law_of_sizes(BanzhafWeights(), 1100)
    assert law.sum() == pytest.approx(1, abs=1e-11)
    assert law @ np.arange(1100) == pytest.approx(1099 / 2, rel=1e-10)


def test_beta_1_1_is_the_shapley_value():
    for found, expected in zip(
        BetaWeights(1, 1).counts(50, 50), ShapleyWeights().counts(50, 50), strict=True
    ):
        assert found == pytest.approx(expected, rel=1e-13)


@pytest.mark.parametrize(
    "wrong",
    ["owen", 3, None, [0.5, 0.6], [], [-0.1, 1.1], [[1.0]], [0.5, np.nan]],
    ids=repr,
)
def test_what_is_no_semivalue_is_refused(wrong):
    with pytest.raises(InvalidInputError, match=r"semivalue|probabilities"):
        semivalue_of(wrong)


def test_parameters_out_of_range_are_refused():
    for q in (0.0, 1.0, -1.0, np.nan):
        with pytest.raises(InvalidInputError, match="q must be"):
            BanzhafWeights(q)
    with pytest.raises(InvalidInputError, match="alpha must be"):
        BetaWeights(0, 1)
    with pytest.raises(InvalidInputError, match="beta must be"):
        BetaWeights(1, np.inf)
    for probabilities in ((), 0.5, (0.5, 1.0)):
        with pytest.raises(InvalidInputError, match=r"probabilities|q must be"):
            AMEWeights(probabilities)


def test_weights_for_another_number_of_instances_are_refused():
    with pytest.raises(InvalidInputError, match=r"3 probabilities .* for 4 training instances"):
        list(SizeWeights([0.2, 0.3, 0.5]).counts(4, 1))
    with pytest.raises(ValueError, match="read-only"):
        SizeWeights([1.0]).probabilities[0] = 0
