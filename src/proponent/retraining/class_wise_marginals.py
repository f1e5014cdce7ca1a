"""Class-wise Shapley values of walks that were measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from proponent.exceptions import ProponentError
from proponent.retraining.class_walks import ClassWalks, utility_of_class
from proponent.retraining.coalitions import Estimate, Estimated, Estimator, Table

Values = NDArray[np.float64]

ROUNDING = 1e-12  # a sum below this portion of what it sums is 0
NAMED = 5  # classes that a message names


class ClassWiseMarginals(Estimator):
    """Mean marginals over the walks of each class, of a table whose first row is the whole set.

    Parameters
    ----------
    walks : sequence of ClassWalks
        Of some classes; other instances are not scored.
    test_codes : ndarray of shape (T,)
        The class of each test of the table.
    names : ndarray of shape (C,)
        The classes.
    normalise : bool
        Whether the values of a class sum to the accuracy on it.
    """

    linear = False

    def __init__(
        self,
        walks: Sequence[ClassWalks],
        test_codes: NDArray[np.intp],
        names: NDArray[Any],
        *,
        normalise: bool,
    ) -> None:
        self.walks = walks
        self.test_codes = test_codes
        self.names = names
        self.normalise = normalise

    @override
    def on(self, table: Table) -> Estimated:
        """Average the marginals over the walks."""
        return _Marginals(table, self)


class _Marginals(Estimated):
    def __init__(self, table: Table, of: ClassWiseMarginals) -> None:
        self._values = np.full(table.n, np.nan)
        self._errors = np.full(table.n, np.nan)
        self._left_out = 0
        self._gap = 0.0
        self._scales: dict[str, float] = {}
        tested = set(of.test_codes.tolist())
        walked = {walk.code for walk in of.walks}
        absent = [code for code in range(len(of.names)) if code not in tested]
        unwalked = tested - walked
        failed, unscaled = [], []
        for walk in of.walks:
            of_class = of.test_codes == walk.code
            if not of_class.any():
                continue
            worths = utility_of_class(table.utilities, of_class)
            marginals, whole = walk.marginals(worths)
            self._left_out += int(np.count_nonzero(~whole))
            if not whole.any():
                failed.append(walk.code)
                continue
            mean, errors = _mean(marginals[whole])
            ends = worths[walk.rows[whole][:, [0, -1]]]
            self._gap = max(self._gap, abs(float(np.diff(ends).mean() - mean.sum())))
            if of.normalise:
                accuracy = table.utilities[0, of_class].sum() / len(of_class)
                if np.isnan(accuracy):
                    raise ProponentError(
                        "The training on all instances failed, so that the values cannot be scaled "
                        "to its accuracy; set normalise=False. It failed with: "
                        f"{table.failures.get(table.n, 'a utility that is not finite')}"
                    )
                scale = _scale(mean, float(accuracy))
                if scale is None:
                    unscaled.append(walk.code)
                else:
                    self._scales[str(of.names[walk.code])] = scale
                    mean, errors = mean * scale, errors * scale
            self._values[walk.members], self._errors[walk.members] = mean, errors
        reasons = {
            "classes without a test instance, whose training instances are not scored": absent,
            "classes that the test set of fit lacked, and that are not scored": sorted(unwalked),
            "classes with a failed training in every permutation, not scored": failed,
            "classes whose values are not scaled, as the factor would not be positive": unscaled,
        }
        self._warnings = [
            f"{reason}: {', '.join(str(of.names[code]) for code in codes[:NAMED])}"
            f"{', ...' if len(codes) > NAMED else ''}"
            for reason, codes in reasons.items()
            if codes
        ]

    @override
    def players(self, rows: range) -> Estimate:
        """Return the values of some players, as a single row."""
        some = slice(rows.start, rows.stop)
        return Estimate(self._values[None, some].copy(), self._errors[None, some].copy())

    @override
    def noticed(self) -> dict[str, Any]:
        """Return permutations left out, the factors, and what cutting took from the sums."""
        noticed: dict[str, Any] = {
            "permutations_left_out": self._left_out,
            "scales": self._scales,
            "efficiency_gap": self._gap,
        }
        return noticed | ({"warnings": self._warnings} if self._warnings else {})


def _mean(marginals: Values) -> tuple[Values, Values]:
    """Return means over walks, and their standard errors; NaN for a single walk."""
    mean = np.asarray(marginals.mean(axis=0))
    if len(marginals) < 2:
        return mean, np.full_like(mean, np.nan)
    return mean, np.asarray(marginals.std(axis=0, ddof=1) / np.sqrt(len(marginals)))


def _scale(values: Values, accuracy: float) -> float | None:
    """Return the factor by which values sum to the accuracy; None where it is not positive."""
    total = float(values.sum())
    if accuracy <= 0 or total <= ROUNDING * float(np.abs(values).sum()):
        return None
    return accuracy / total
