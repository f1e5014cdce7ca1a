"""When influence happened: the part of it that each checkpoint, step or phase contributed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Set
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from proponent._results import step_frames
from proponent._results.checks import frozen, strict_json
from proponent._results.over_steps import median_steps, shares
from proponent._results.select import group_positions
from proponent._results.step_contributions import StepContributions
from proponent._results.strongest import Strongest
from proponent._results.summary import CheckpointSummary
from proponent.exceptions import InvalidInputError
from proponent.influence import Influence

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr


class CheckpointInfluence(StepContributions):
    """Influence, and how much of it each checkpoint (or step, or phase) contributed.

    ``method.influence(test, by_checkpoint=True)`` returns it, for every method whose influence
    is a sum over the run. Contributions are signed as :class:`Influence` is: above 0 the step
    made the training instance lower the risk on the test instance.

    Parameters
    ----------
    values : array-like of shape (n_test, n_train, K) or (n_train, K)
        The contributions; without tests for a joint influence.
    steps : integer array-like of shape (K,)
        The step taken from each checkpoint, counted from 1, in the order of training.
    last_steps : integer array-like of shape (K,), optional
        Where the columns are phases of several steps, the last step of each.
    train_ids, test_ids, method, settings, diagnostics, additive
        As for :class:`Influence`.

    Raises
    ------
    InvalidInputError
        If shapes, steps, ids or metadata do not fit.
    NonFiniteError
        If a contribution is infinite.

    Examples
    --------
    >>> values = [[[0.1, 0.3, 0.0], [0.0, -0.2, 0.2]]]
    >>> found = CheckpointInfluence(values, steps=[1, 10, 20], train_ids=["a", "b"])
    >>> found.total().values
    array([[0.4, 0. ]])
    >>> found.shares().round(2)
    array([[[0.25, 0.75, 0.  ],
            [0.  , 0.5 , 0.5 ]]])
    >>> found.phase(last=10).values
    array([[ 0.4, -0.2]])
    """

    __slots__ = ()

    # Sums over steps

    def total(self) -> Influence:
        """Sum over all of training: the influence itself, as ``influence(test)`` gives it."""
        return self._as_influence(slice(None), self._diagnostics)

    def phase(self, first: int | None = None, last: int | None = None) -> Influence:
        """Sum over the steps ``first`` to ``last``, both included.

        Parameters
        ----------
        first, last : int, optional
            Steps, counted from 1; the first and the last of the run when left out. They need
            not be steps of checkpoints.

        Returns
        -------
        Influence
            Its ``diagnostics["phase"]`` says which steps.

        Raises
        ------
        InvalidInputError
            If there is no checkpoint between them, or they cut a phase of several steps in two.
        """
        return self._of(self._columns.between(first, last))

    def phases(self) -> Iterator[Influence]:
        """Go through the checkpoints or phases, the influence of each."""
        return (self._of(slice(k, k + 1)) for k in range(len(self._columns)))

    def _of(self, columns: slice) -> Influence:
        steps = [int(self.steps[columns][0]), int(self.last_steps[columns][-1])]
        return self._as_influence(columns, {**self._diagnostics, "phase": steps})

    def _as_influence(self, columns: slice, diagnostics: Mapping[str, Any]) -> Influence:
        return Influence(
            frozen(self._stored[columns].sum(axis=0, dtype=np.float64)),
            train_ids=self._train_ids,
            test_ids=self._test_ids,
            method=self._method,
            settings=self._settings,
            diagnostics=diagnostics,
            additive=self._additive,
        )

    def proponents(
        self, k: int = 5, first: int | None = None, last: int | None = None
    ) -> Strongest:
        """Give the k training instances that helped most in the steps ``first`` to ``last``.

        As ``phase(first, last).proponents(k)``.
        """
        return self.phase(first, last).proponents(k)

    def opponents(self, k: int = 5, first: int | None = None, last: int | None = None) -> Strongest:
        """Give the k training instances that harmed most in the steps ``first`` to ``last``."""
        return self.phase(first, last).opponents(k)

    # Early or late

    def shares(self) -> NDArray[np.floating[Any]]:
        r"""Return the share of each checkpoint in the influence, in the shape of ``values``.

        .. math:: s_k = |c_k| \big/ \sum_l |c_l|

        Contributions of both signs can cancel in the total, so the shares are those of the
        *absolute* contributions: between 0 and 1, and 1 in sum. NaN where nothing contributed.
        """
        return shares(np.abs(self.values))

    def median_step(self) -> NDArray[np.float64]:
        """Return the step by which half of the absolute contributions had come.

        Small where an influence was made early in training, large where late; (n_test, n_train)
        or (n_train,), NaN where nothing contributed. With phases it is the last step of one.
        """
        rows = np.atleast_3d(self.values) if self.values.ndim == 3 else self.values[None]
        found = np.stack([median_steps(np.abs(row), self._columns) for row in rows])
        return found if self._test_ids is not None else found[0]

    def summary(self) -> CheckpointSummary:
        """Sum over the training instances: when each test instance was influenced at all."""
        positive = np.stack([np.maximum(c, 0).sum(-1, dtype=np.float64) for c in self._stored], -1)
        negative = np.stack([np.minimum(c, 0).sum(-1, dtype=np.float64) for c in self._stored], -1)
        return CheckpointSummary(
            frozen(positive), frozen(negative), **self._labels(), **self._metadata()
        )

    # Sums over instances

    def joint(self, reduction: Literal["sum", "mean"] = "sum") -> CheckpointInfluence:
        """Sum the contributions over the test instances, (n_train, K), as ``Influence.joint``.

        Raises
        ------
        InvalidInputError
            If there are no test instances to sum over, or the reduction is unknown.
        """
        if reduction not in ("sum", "mean"):
            raise InvalidInputError(f"reduction must be 'sum' or 'mean', not {reduction!r}")
        if self._test_ids is None or not len(self._test_ids):
            raise InvalidInputError("there are no test instances to put together")
        n_test = len(self._test_ids)
        stored = self._stored.sum(axis=1, dtype=np.float64)
        joint = {"reduction": reduction, "n_test": n_test}
        return self._with(
            frozen(stored if reduction == "sum" else stored / n_test),
            test_ids=None,
            diagnostics={**self._diagnostics, "joint": joint},
        )

    def group(self, groups: Mapping[Any, ArrayLike | Set[Any]] | ArrayLike) -> CheckpointInfluence:
        """Sum the contributions over the members of groups, as ``Influence.group`` does.

        Raises
        ------
        InvalidInputError
            If the method is not additive, or a group is empty or has unknown ids.
        """
        if not self._additive:
            raise InvalidInputError(
                f"the scores of {self._method or 'this method'} are not additive: the influence "
                "of a group is not the sum over its members"
            )
        names, members = group_positions(groups, self._train_ids)
        sums = [self._stored[..., m].sum(axis=-1, dtype=np.float64) for m in members]
        return self._with(frozen(np.stack(sums, axis=-1)), train_ids=names)

    # Other forms

    def to_dataframe(self) -> pd.DataFrame:
        """Give one line for each test instance, training instance and checkpoint.

        Returns
        -------
        pandas.DataFrame
            Columns ``test`` (unless joint), ``train``, ``step``, ``last_step``, ``influence``.
        """
        return step_frames.dataframe(self.values, self._columns, self._train_ids, self._test_ids)

    def to_xarray(self) -> xr.DataArray:
        """Give the contributions as an ``xarray.DataArray``.

        Returns
        -------
        xarray.DataArray
            Dimensions ``test`` (unless joint), ``train`` and ``step``; ``last_step`` is a
            coordinate. ``attrs`` as for ``Influence.to_xarray``.

        Raises
        ------
        ImportError
            If xarray is not installed.
        """
        attributes = {
            "method": self._method,
            "additive": int(self._additive),  # netCDF knows no booleans
            "settings": json.dumps(strict_json(self._settings)),
            "diagnostics": json.dumps(strict_json(self._diagnostics)),
        }
        return step_frames.dataarray(
            self.values, self._columns, self._train_ids, self._test_ids, attributes
        )
