"""When each test instance was influenced, in the memory of tests times checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from typing_extensions import override

from proponent._results.checks import as_scores, owned
from proponent._results.over_steps import OverSteps, median_steps, shares
from proponent._results.step_columns import StepColumns
from proponent.exceptions import InvalidInputError, NonFiniteError

if TYPE_CHECKING:
    import pandas as pd
    from typing_extensions import Self


class CheckpointSummary(OverSteps):
    """How much the training set helped and harmed each test instance at each checkpoint.

    ``method.influence(test, by_checkpoint="summary")`` returns it, in
    O(n_test * checkpoints) memory: were these test instances learnt early or late?

    Parameters
    ----------
    helped : array-like of shape (n_test, K) or (K,)
        Sums over the training instances of their contributions above 0; without tests for a
        joint influence.
    harmed : array-like of the same shape
        Sums of those below 0.
    steps, last_steps : integer array-like of shape (K,)
        As for :class:`CheckpointInfluence`.
    train_ids : array-like of shape (n_train,)
        The training instances that were summed over.
    test_ids, method, settings, diagnostics
        As for :class:`Influence`.

    Raises
    ------
    InvalidInputError
        If shapes, signs, steps or ids do not fit.
    NonFiniteError
        If a sum is not finite.
    """

    __slots__ = ("_harmed", "_helped")

    _helped: NDArray[np.floating[Any]]
    _harmed: NDArray[np.floating[Any]]
    _subject: ClassVar[str] = "Summed influence"

    def __init__(
        self,
        helped: ArrayLike,
        harmed: ArrayLike,
        *,
        steps: ArrayLike,
        last_steps: ArrayLike | None = None,
        train_ids: ArrayLike,
        test_ids: ArrayLike | None = None,
        method: str = "",
        settings: Mapping[str, Any] | None = None,
        diagnostics: Mapping[str, Any] | None = None,
    ) -> None:
        above, below = owned(as_scores(helped, "helped")), owned(as_scores(harmed, "harmed"))
        if above.ndim not in (1, 2) or above.shape != below.shape:
            raise InvalidInputError(
                "helped and harmed must both have shape (n_test, K) or (K,), but have shapes "
                f"{above.shape} and {below.shape}"
            )
        n_test = len(above) if above.ndim == 2 else None
        self._label(None, n_test, train_ids, test_ids, method, settings, diagnostics)
        columns = StepColumns.checked(steps, last_steps, above.shape[-1])
        bad = ~(np.isfinite(above) & np.isfinite(below))
        if bad.any():
            row = int(np.argwhere(np.atleast_2d(bad))[0, 0])
            where = "" if self._test_ids is None else f" for test {self._test_ids[row]!s}"
            raise NonFiniteError(f"the sums of contributions{where} are not finite")
        if np.any(above < 0) or np.any(below > 0):
            raise InvalidInputError("helped must not be below 0, and harmed not above it")
        self._fill(helped=above, harmed=below, columns=columns)

    @property
    def helped(self) -> NDArray[np.floating[Any]]:
        """Sums of the contributions above 0, (n_test, K) or (K,), read-only."""
        return self._helped

    @property
    def harmed(self) -> NDArray[np.floating[Any]]:
        """Sums of the contributions below 0, (n_test, K) or (K,), read-only."""
        return self._harmed

    def net(self) -> NDArray[np.floating[Any]]:
        """Sum both: what the whole training set contributed, (n_test, K) or (K,)."""
        return self._helped + self._harmed

    def shares(self) -> NDArray[np.floating[Any]]:
        """Return the share of each checkpoint in the sum of the *absolute* contributions.

        (n_test, K) or (K,), between 0 and 1 and 1 in sum; NaN where nothing contributed.
        """
        return shares(self._helped - self._harmed)

    def median_step(self) -> NDArray[np.float64]:
        """Return the step by which half of the absolute contributions had come, (n_test,) or ().

        With phases it is the last step of one; NaN where nothing contributed.
        """
        return median_steps(self._helped - self._harmed, self._columns)

    def to_dataframe(self) -> pd.DataFrame:
        """Give one line for each test instance and checkpoint.

        Returns
        -------
        pandas.DataFrame
            Columns ``test`` (unless joint), ``step``, ``last_step``, ``helped``, ``harmed`` and
            ``share``.
        """
        import pandas as pd

        rows, count = np.atleast_2d(self._helped).shape
        frame: dict[str, Any] = {}
        if self._test_ids is not None:
            frame["test"] = np.repeat(self._test_ids, count)
        frame |= {"step": np.tile(self.steps, rows), "last_step": np.tile(self.last_steps, rows)}
        frame |= {"helped": self._helped.ravel(), "harmed": self._harmed.ravel()}
        return pd.DataFrame({**frame, "share": self.shares().ravel()})

    @override
    def _absolute(self, tests: slice) -> NDArray[np.floating[Any]]:
        absolute: NDArray[np.floating[Any]] = self._helped - self._harmed
        return absolute if self._test_ids is None else absolute[tests]

    @override
    def _arrays(self) -> dict[str, NDArray[Any]]:
        return {"helped": self._helped, "harmed": self._harmed}

    @override
    @classmethod
    def _from_files(
        cls,
        arrays: Mapping[str, NDArray[Any]],
        labels: Mapping[str, NDArray[Any]],
        meta: Mapping[str, Any],
        *,
        scan: bool,
    ) -> Self:
        names = ("method", "settings", "diagnostics")
        given: dict[str, Any] = {**arrays, **labels, **{name: meta[name] for name in names}}
        return cls(**given)

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel between processes, and copy."""
        given = {
            "steps": self.steps,
            "last_steps": self.last_steps,
            "train_ids": self._train_ids,
            "test_ids": self._test_ids,
            **self._meta(),
        }
        return _restored, (self._helped, self._harmed, given)


def _restored(
    helped: NDArray[np.floating[Any]], harmed: NDArray[np.floating[Any]], given: dict[str, Any]
) -> CheckpointSummary:
    return CheckpointSummary(helped, harmed, **given)
