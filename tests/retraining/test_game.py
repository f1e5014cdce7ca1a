"""Games of the user's own: played as they are, once a coalition, and refused with a reason."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from retraining.games import FROZEN, all_masks, enumerated, random_worth, table_game

import proponent as pp
from proponent.exceptions import InvalidInputError, MethodCapabilityError, NonFiniteError
from proponent.retraining import game as game_module
from proponent.retraining.coalitions import Coalitions
from proponent.retraining.game import Game

N = 4
WORTH = random_worth(N, 3)
PLAYED = table_game(WORTH)


def coalitions(masks):
    return Coalitions(masks, np.zeros(len(masks), np.int64))


def counted(calls, worth=PLAYED):
    """Return a game that notes every mask it is asked about."""

    def value(mask):
        calls.append(tuple(mask.tolist()))
        return worth(mask[None])[0]

    return value


@pytest.mark.parametrize(
    "value",
    [
        lambda mask: PLAYED(mask[None])[0],
        lambda mask: PLAYED(mask[None])[0].tolist(),
        lambda mask: torch.tensor(PLAYED(mask[None])[0]),
    ],
)
def test_coalitions_one_by_one_or_all_at_once(value):
    one_by_one, at_once = Game(N, value), Game(N, PLAYED, vectorized=True)
    masks = all_masks(N)[::-1]
    assert_array_equal(one_by_one.utilities(coalitions(masks)), WORTH[::-1])
    assert_array_equal(at_once.utilities(coalitions(masks)), WORTH[::-1])


def test_a_single_number_is_one_value():
    game = Game(N, lambda mask: int(mask.sum()))
    assert_array_equal(game.utilities(coalitions(all_masks(N)))[:, 0], all_masks(N).sum(axis=1))
    game = Game(N, lambda masks: masks.any(axis=1), vectorized=True)
    assert_array_equal(game.utilities(coalitions(all_masks(N)))[:2, 0], [0.0, 1.0])


def test_players_are_columns_and_values_are_rows():
    found = pp.Shapley().fit(Game(["d", "a", "c", "b"], PLAYED, vectorized=True)).influence()
    assert found.train_ids.tolist() == ["d", "a", "c", "b"]
    assert found.test_ids.tolist() == [0, 1, 2]
    assert_allclose(found.values, enumerated(WORTH, np.full(N, 1 / N)), atol=1e-14)
    assert Game(N, PLAYED).as_instances().ids.tolist() == [0, 1, 2, 3]


def test_masks_are_boolean_whoever_is_in():
    def value(mask):
        assert mask.dtype == bool and mask.shape == (N,)
        return 0.0

    pp.Shapley().fit(Game(N, value)).influence()


def test_each_coalition_is_evaluated_once_by_all_methods():
    calls = []
    game = Game(N, counted(calls))
    shapley = pp.Shapley().fit(game)
    shapley.influence()
    shapley.influence(joint=True)
    pp.Banzhaf().fit(game).influence()
    tmc = pp.TMCShapley(5).fit(game).influence()
    assert sorted(calls) == sorted(set(calls)) and len(calls) == 16
    assert tmc.diagnostics["evaluations"] == 16


def test_no_more_are_evaluated_than_asked_for():
    calls = []
    method = pp.Banzhaf(n_models=7, estimator="means").fit(
        Game(12, counted(calls, lambda masks: masks.sum(axis=1)))
    )
    method.influence(), method.influence()
    assert len(calls) == 7


def test_values_beyond_the_memory_are_evaluated_again(monkeypatch):
    monkeypatch.setattr(game_module, "KEPT", 16 * (N + 3 * 8) - 1)
    calls = []
    method = pp.Shapley().fit(Game(N, counted(calls)))
    first, second = method.influence(), method.influence()
    assert_array_equal(first.values, second.values)
    assert_allclose(first.values, enumerated(WORTH, np.full(N, 1 / N)), atol=1e-14)
    assert len(calls) > 30  # all, twice, but for what was asked for on its own


def test_leave_one_out_and_groups_of_the_frozen_game():
    game = Game(3, table_game(FROZEN), vectorized=True)
    method = pp.LeaveOneOut().fit(game)
    assert_allclose(method.influence().values, [[3, 5, 2]], atol=1e-15)
    pairs = method.group_influence({"12": [0, 1], "13": [0, 2], "all": [0, 1, 2]})
    assert_allclose(pairs.values, [[6 - 0, 6 - 2, 6 - 0]], atol=1e-15)


@pytest.mark.parametrize("players", [0, -2, [], [["a", "b"]], "ab", None])
def test_players_that_are_none(players):
    with pytest.raises(InvalidInputError, match="players: expected"):
        Game(players, PLAYED)


@pytest.mark.parametrize("value", [None, 3.0, WORTH])
def test_a_value_that_is_no_function(value):
    with pytest.raises(InvalidInputError, match="value: expected a function"):
        Game(N, value)


def test_players_with_the_same_name():
    with pytest.raises(InvalidInputError, match="a"):
        pp.Shapley().fit(Game(["a", "b", "a"], lambda mask: 0.0))


@pytest.mark.parametrize(
    ("value", "vectorized", "message"),
    [
        (lambda mask: np.zeros(1 + mask[0]), False, "always as many of them"),
        (lambda mask: np.zeros((2, 2)), False, "always as many of them"),
        (lambda mask: "good", False, "real numbers"),
        (lambda mask: 1j, False, "real numbers"),
        (lambda masks: np.zeros(3), True, r"masks must give an array .* got \(3,\)"),
        (lambda masks: 0.0, True, r"got \(\)"),
        (lambda masks: np.zeros((16, 2, 2)), True, r"got \(16, 2, 2\)"),
    ],
)
def test_values_of_another_shape_or_kind(value, vectorized, message):
    with pytest.raises(InvalidInputError, match=message):
        pp.Shapley().fit(Game(N, value, vectorized=vectorized)).influence()


def test_as_many_values_at_all_times():
    game = Game(N, lambda masks: np.zeros((len(masks), len(masks))), vectorized=True)
    masks = all_masks(N)
    game.utilities(coalitions(masks[:3]))
    with pytest.raises(InvalidInputError, match="now 2 numbers, now 3"):
        game.utilities(coalitions(masks[2:5]))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_names_its_players(bad):
    game = Game(list("abcd"), lambda mask: bad if mask[1] and mask[3] else 0.0)
    with pytest.raises(NonFiniteError, match=r"4 coalitions .* players \['b', 'd'\]"):
        pp.Shapley().fit(game).influence()


@pytest.mark.parametrize("given", ["train", "ids", "groups", "test"])
def test_a_game_has_its_own_sets(given):
    with pytest.raises(InvalidInputError, match=f"{given}: "):
        pp.Shapley().fit(Game(N, PLAYED, vectorized=True), **{given: np.arange(N)})


def test_what_a_game_does_not_have():
    method = pp.Downsampling(20).fit(Game(N, PLAYED, vectorized=True))
    with pytest.raises(InvalidInputError, match="test: a game has its values"):
        method.influence((np.zeros((2, 1)), np.zeros(2)))
    with pytest.raises(MethodCapabilityError, match="memorization"):
        method.memorization()
    with pytest.raises(MethodCapabilityError, match="groups=names"):
        method.group_influence({"all": [0, 1]})
    with pytest.raises(InvalidInputError, match=r"repeats: .* no randomness"):
        method.expected()
