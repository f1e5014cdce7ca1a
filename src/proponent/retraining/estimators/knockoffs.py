"""Knockoffs of coalitions: which players have an effect, at a given rate of false discoveries."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from proponent.exceptions import InvalidInputError
from proponent.retraining.coalitions import Table
from proponent.retraining.estimators.marginal_effects import chances_of, effect_features
from proponent.retraining.estimators.sparse_regression import Selection, lasso

Values = NDArray[np.float64]


def statistics(table: Table, *, folds: int = 5, penalties: int = 30, seed: int = 0) -> Values:
    r"""Return the statistics W of all players, one row a test, ``(T, n)``.

    Given the probability of a coalition its players are in independently, so a knockoff of the
    coalition is another one that is drawn with this probability; no model is trained on it. With
    slopes of a LASSO on the features of both,

    .. math:: W_i = |\beta_i| - |\tilde\beta_i|.

    The sign of W is a coin toss for a player without effect.

    **Source** Lin et al., ICML 2022, section 3.3; Candes et al., JRSS B 2018.

    Parameters
    ----------
    table : Table
        Of coalitions with the probabilities that they were drawn with.
    folds, penalties : int
        Of the cross-validation, and how many penalties it tries.
    seed : int
        Of the knockoffs.
    """
    chances, masks = chances_of(table.coalitions), table.coalitions.masks
    copies = np.random.default_rng([seed, 0x6B6E6F63]).random(masks.shape) < chances[:, None]
    features = np.hstack([effect_features(masks, chances), effect_features(copies, chances)])
    selection = Selection.by_folds(len(features), folds, penalties, 1e-3)
    slopes = np.abs(lasso(features, table.utilities, selection).weights)
    return np.asarray(slopes[:, : table.n] - slopes[:, table.n :])


def threshold(statistic: Values, fdr: float, *, plus: bool = True) -> float:
    r"""Return from which W on players are selected; infinite where none is.

    .. math:: \tau = \min\Bigl\{t > 0:
        \frac{c + |\{W_i \le -t\}|}{\max(1, |\{W_i \ge t\}|)} \le fdr\Bigr\}

    with c = 1 for the knockoff+ threshold, which keeps the rate of false discoveries below
    ``fdr``, and 0 for the knockoff threshold, which keeps a slightly smaller rate below it and
    selects more where few players have an effect.

    Parameters
    ----------
    statistic : ndarray of shape (n,)
        W of each player.
    fdr : float
        The rate of false discoveries, between 0 and 1.
    plus : bool
        Whether c is 1.

    Raises
    ------
    InvalidInputError
        If the rate is not between 0 and 1.
    """
    if not isinstance(fdr, (int, float, np.floating)) or not 0 < fdr < 1:
        raise InvalidInputError(f"fdr must be a number between 0 and 1; got {fdr!r}.")
    steps = np.unique(np.abs(statistic[statistic != 0]))
    ordered = np.sort(statistic)
    below = np.searchsorted(ordered, -steps, side="right")
    above = len(ordered) - np.searchsorted(ordered, steps, side="left")
    enough = np.flatnonzero((below + plus) / np.maximum(above, 1) <= fdr)
    return float(steps[enough[0]]) if len(enough) else np.inf
