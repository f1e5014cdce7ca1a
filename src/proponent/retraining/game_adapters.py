"""Games handed to and from the libraries that explain features: shapiq and shap."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from proponent.exceptions import InvalidInputError
from proponent.retraining.coalitions import Coalitions
from proponent.retraining.game import CooperativeGame, Game

Values = NDArray[np.float64]


def values_of(game: CooperativeGame, masks: Any) -> Values:
    """Return what coalitions are worth, ``(K, T)``, for masks of any numeric type."""
    rows = np.atleast_2d(np.asarray(masks)) > 0.5
    return game.utilities(Coalitions(rows, np.zeros(len(rows), dtype=np.int64)))


def from_shapiq(game: Any) -> Game:
    """Return a game of shapiq as one of ours.

    Parameters
    ----------
    game : shapiq.Game
        Its players keep their names; values are taken as it gives them, normalised or not.

    Examples
    --------
    ``pp.Banzhaf().fit(from_shapiq(game)).influence()``
    """
    names = getattr(game, "player_name_lookup", None)
    players = int(game.n_players) if not names else sorted(names, key=names.__getitem__)
    return Game(players, lambda masks: np.asarray(game(masks)), vectorized=True)


def to_shapiq(game: CooperativeGame, *, value: int = 0) -> Any:
    """Return a game as a ``shapiq.Game``, for its approximators and interaction indices.

    Parameters
    ----------
    game : Game
        Ours.
    value : int
        Which of its T values; a game of shapiq has one.

    Raises
    ------
    ModuleNotFoundError
        If shapiq is not installed.
    """
    from shapiq import Game as Shapiq  # type: ignore[import-not-found]

    class Handed(Shapiq):  # type: ignore[misc]
        def value_function(self, coalitions: Any) -> Values:
            return values_of(game, coalitions)[:, value]

    players = getattr(game, "players", None)
    names = None if players is None or players.dtype.kind != "U" else players.tolist()
    empty = float(values_of(game, np.zeros((1, game.n)))[0, value])
    return Handed(game.n, normalize=True, normalization_value=empty, player_names=names)


def from_shap(model: Any, masker: Any, instance: Any) -> Game:
    """Return the game of an instance's features: the mean output where the others are masked.

    Parameters
    ----------
    model : callable
        ``model(X)`` returns ``(rows,)`` or ``(rows, outputs)``.
    masker : shap masker
        What takes a feature's place, such as ``shap.maskers.Independent(background)``.
    instance : ndarray of shape (d,)
        The instance whose features are the players.

    Raises
    ------
    ModuleNotFoundError
        If shap is not installed.
    InvalidInputError
        If the instance is not a vector.
    """
    from shap import links  # type: ignore[import-not-found]
    from shap.utils import MaskedModel  # type: ignore[import-not-found]

    row = np.asarray(instance)
    if row.ndim != 1:
        raise InvalidInputError(f"instance: expected a vector of features; got shape {row.shape}.")
    masked = MaskedModel(model, masker, links.identity, False, row)
    return Game(len(row), lambda masks: np.asarray(masked(masks)), vectorized=True)


def to_shap(game: CooperativeGame, *, value: int = 0) -> Any:
    """Return a game as a function of a matrix of zeros and ones, as shap's explainers take it.

    ``shap.KernelExplainer(to_shap(game), np.zeros((1, n))).shap_values(np.ones((1, n)))`` has the
    Shapley values of the players.

    Parameters
    ----------
    game : Game
        Ours.
    value : int
        Which of its T values.
    """
    return lambda masks: values_of(game, masks)[:, value]
