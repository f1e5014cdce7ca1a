"""Games that come from shapiq and shap, and go there; those libraries are optional."""

import itertools
import math

import numpy as np
import pytest
from numpy.testing import assert_allclose

from proponent.exceptions import InvalidInputError
from proponent.retraining.coalitions import Coalitions
from proponent.retraining.game import Game
from proponent.retraining.game_adapters import (
    from_shap,
    from_shapiq,
    to_shap,
    to_shapiq,
    values_of,
)

N = 5


def random_game(outputs: int = 2) -> tuple[Game, np.ndarray]:
    """Return a game and its values by the number whose bits are the mask."""
    table = np.random.default_rng(0).normal(size=(2**N, outputs))
    powers = 2 ** np.arange(N)
    return Game(N, lambda masks: table[masks @ powers], vectorized=True), table


def shapley(table: np.ndarray) -> np.ndarray:
    """Shapley values as the mean marginal over all orders, ``(outputs, N)``."""
    found = np.zeros((N, table.shape[1]))
    for order in itertools.permutations(range(N)):
        mask = 0
        for player in order:
            found[player] += table[mask | 1 << player] - table[mask]
            mask |= 1 << player
    return (found / math.factorial(N)).T


def test_masks_of_numbers_are_read_as_coalitions() -> None:
    game, table = random_game()
    assert_allclose(values_of(game, [1.0, 0, 1, 0, 0]), table[[5]])
    assert_allclose(to_shap(game, value=1)(np.eye(N)), table[2 ** np.arange(N), 1])


def test_a_game_goes_to_shapiq_and_back() -> None:
    shapiq = pytest.importorskip("shapiq")
    game, table = random_game()
    handed = to_shapiq(game, value=1)
    exact = shapiq.ExactComputer(handed, n_players=N)("SV")
    assert_allclose(exact.get_n_order_values(1), shapley(table)[1], atol=1e-12)
    back = from_shapiq(handed)
    masks = np.random.default_rng(1).random((7, N)) < 0.5
    found = back.utilities(Coalitions(masks, np.zeros(7, dtype=np.int64)))
    assert_allclose(found[:, 0], values_of(game, masks)[:, 1] - table[0, 1])


def test_shaps_kernel_explainer_finds_the_shapley_values_of_a_game() -> None:
    shap = pytest.importorskip("shap")
    game, table = random_game()
    explainer = shap.KernelExplainer(to_shap(game), np.zeros((1, N)))
    found = explainer.shap_values(np.ones((1, N)), silent=True)
    assert_allclose(found[0], shapley(table)[0], atol=1e-9)


def test_features_that_shap_masks_are_players() -> None:
    shap = pytest.importorskip("shap")
    rng = np.random.default_rng(2)
    background, instance, weights = rng.normal(size=(20, N)), rng.normal(size=N), rng.normal(size=N)
    game = from_shap(lambda X: X @ weights, shap.maskers.Independent(background), instance)
    whole = values_of(game, np.ones(N))[0, 0]
    without = [values_of(game, 1 - row)[0, 0] for row in np.eye(N)]
    # A linear model loses each feature's distance from the background's mean.
    assert_allclose(whole - without, weights * (instance - background.mean(axis=0)))
    with pytest.raises(InvalidInputError, match="instance: expected a vector"):
        from_shap(lambda X: X @ weights, shap.maskers.Independent(background), instance[None])
