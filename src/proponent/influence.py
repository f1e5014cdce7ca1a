"""The answer: how much each training instance helped or harmed each test instance."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Set
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from proponent._results import files, frames
from proponent._results.checks import as_count, check_not_infinite, strict_json
from proponent._results.scores import Scores
from proponent._results.select import group_positions
from proponent._results.strongest import Strongest, strongest_positions
from proponent._results.view import ROWS, SIDE, Row, View, counted, warnings_in
from proponent.exceptions import InvalidInputError

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

__all__ = ["Influence", "Strongest"]


class Influence(Scores):
    """An immutable labelled matrix of influence, one row a test instance.

    A score above 0 means that the training instance lowers the risk on the test instance (it is
    a proponent), below 0 that it raises it. NaN means "not scored" and is never ranked.

    Parameters
    ----------
    values : array-like of shape (n_test, n_train) or (n_train,)
        The influence. One dimension is for one score a training instance: a joint influence or
        memorization. float32 and float64 are kept as they are. The array is copied unless it is
        read-only, so that nobody can change it later.
    train_ids, test_ids : array-like of shape (n_train,) and (n_test,), optional
        All integers or all strings, each once; 0, 1, 2, ... when left out. One-dimensional
        values have no test ids.
    method : str
        Name of the method.
    settings, diagnostics : mapping, optional
        What the method was set to, and what it noticed; anything that JSON can hold. The texts
        under ``diagnostics["warnings"]`` are shown with the result.
    std_error : array-like of the same shape as ``values``, optional
        Standard errors, not negative; NaN where unknown.
    additive : bool
        Whether the influence of a group is the sum over its members. It decides whether
        :meth:`group` answers.

    Raises
    ------
    InvalidInputError
        If shapes, ids or metadata do not fit.
    NonFiniteError
        If a value or standard error is infinite; the message says where.

    Notes
    -----
    ``len(influence)`` is the number of rows, ``influence[test, train]`` selects by position and
    :meth:`select` by id. Two results are equal only if they are the same object; compare
    ``values``.

    Examples
    --------
    >>> influence = Influence([[0.5, -0.2, 0.1]], train_ids=["a", "b", "c"], method="example")
    >>> influence.proponents(k=2).ids
    array([['a', 'c']], dtype='<U1')
    >>> influence.opponents(k=1).values
    array([[-0.2]])
    """

    __slots__ = ()

    def proponents(self, k: int = 5) -> Strongest:
        """Give the k training instances that helped most, most helpful first.

        They are the k largest scores, whatever their sign: where few instances helped, the last
        of them have scores of 0 or below. Equal scores come in the order of their positions.

        Parameters
        ----------
        k : int
            How many for each test instance, at least 1.

        Returns
        -------
        Strongest
            ``ids``, ``values`` and ``positions``, each (n_test, k), or (k,) for
            one-dimensional values.

        Raises
        ------
        InvalidInputError
            If there are fewer than ``k`` training instances, or fewer scored ones in a row.
        """
        return self._strongest("proponents", k, largest=True)

    def opponents(self, k: int = 5) -> Strongest:
        """Give the k training instances that harmed most, most harmful first.

        They are the k smallest scores, whatever their sign. Everything else is as for
        :meth:`proponents`.
        """
        return self._strongest("opponents", k, largest=False)

    def _strongest(self, what: str, k: int, *, largest: bool) -> Strongest:
        k = as_count(k)
        n_train = len(self._train_ids)
        if k > n_train:
            raise InvalidInputError(
                f"{what}(k={k}): there are only {counted(n_train, 'training instance')}; "
                f"ask for at most {n_train}"
            )
        matrix = np.atleast_2d(self._values)
        positions = strongest_positions(matrix, k, largest=largest)
        short = np.flatnonzero(positions[:, -1] < 0)
        if short.size:
            row = int(short[0])
            scored = int(np.count_nonzero(~np.isnan(matrix[row])))
            test = None if self._test_ids is None else self._test_ids[row]
            where = "" if test is None else f" of test {test!s} (row {row})"
            raise InvalidInputError(
                f"{what}(k={k}): only {scored} of the {n_train} training instances{where} "
                f"are scored, the others are NaN; ask for at most {scored}, or select others"
            )
        values = np.take_along_axis(matrix, positions, axis=1)
        if self._test_ids is None:
            positions, values = positions[0], values[0]
        return Strongest(self._train_ids[positions], values, positions)

    def ranking(self) -> NDArray[Any]:
        """Rank the train ids from the most helpful to the most harmful.

        Returns
        -------
        ndarray of shape (n_test, n_train) or (n_train,)
            Equal scores come in the order of their positions.

        Raises
        ------
        InvalidInputError
            If an instance is not scored (NaN): it has no place in a ranking.
        """
        missing = int(np.count_nonzero(np.isnan(self._values)))
        if missing:
            raise InvalidInputError(
                f"{missing:,} of {self._values.size:,} scores are NaN and cannot be ranked; select "
                "the training instances that are scored, or use proponents(k) and opponents(k)"
            )
        ranked: NDArray[Any] = self._train_ids[np.argsort(-self._values, axis=-1, kind="stable")]
        return ranked

    def joint(self, reduction: Literal["sum", "mean"] = "sum") -> Influence:
        r"""Sum the influence on all test instances.

        .. math:: I(z_i, D_{te}) = \sum_j I(z_i, z_j)

        Parameters
        ----------
        reduction : {"sum", "mean"}
            Over the test instances.

        Returns
        -------
        Influence
            Values of shape (n_train,), float64. A training instance that is not scored on some
            test instance (NaN) has a joint influence of NaN. Standard errors are the sum (or the
            mean) of those of the tests: an upper bound by the triangle inequality, reached when
            the errors go together, as they may because all tests share the same submodels.
        """
        if reduction not in ("sum", "mean"):
            raise InvalidInputError(f"reduction must be 'sum' or 'mean', not {reduction!r}")
        if self._test_ids is None:
            raise InvalidInputError(
                "values are 1-D, one score a training instance: there are no tests to put together"
            )
        n_test = len(self._test_ids)
        if n_test == 0:
            raise InvalidInputError("there is no test instance to take the joint influence on")
        values, errors = (
            None if array is None else array.sum(axis=0, dtype=np.float64)
            for array in (self._values, self._std_error)
        )
        if reduction == "mean":
            values, errors = (None if a is None else a / n_test for a in (values, errors))
        return self._summed(
            values,
            errors,
            test_ids=None,
            diagnostics={**self._diagnostics, "joint": {"reduction": reduction, "n_test": n_test}},
        )

    def group(self, groups: Mapping[Any, ArrayLike | Set[Any]] | ArrayLike) -> Influence:
        """Sum the influence over the members of groups of training instances.

        Parameters
        ----------
        groups : mapping of names to train ids, or array-like of shape (n_train,)
            The members of each group (a training instance may be in several or in none), or the
            group of each training instance in the order of ``train_ids``. Names are all integers
            or all strings.

        Returns
        -------
        Influence
            Values of shape (n_test, n_groups) or (n_groups,), float64; the group names, in the
            order of their first appearance, are its train ids. A group with a member that is not
            scored is NaN. Standard errors are sums, an upper bound as in :meth:`joint`.

        Raises
        ------
        InvalidInputError
            If the method is not additive, or a group is empty or has unknown ids.
        """
        if not self._additive:
            raise InvalidInputError(
                f"the scores of {self._method or 'this method'} are not additive: the influence "
                "of a group is not the sum over its members; use "
                "method.group_influence(groups, test) instead"
            )
        names, members = group_positions(groups, self._train_ids)
        values, errors = (
            None
            if array is None
            else np.stack([array[..., m].sum(axis=-1, dtype=np.float64) for m in members], axis=-1)
            for array in (self._values, self._std_error)
        )
        return self._summed(values, errors, train_ids=names)

    def _summed(self, values: Any, std_error: Any, **changes: Any) -> Influence:
        """Put sums in place of the scores; a sum too large for float64 is refused."""
        result = self._with(values=values, std_error=std_error, **changes)
        check_not_infinite(values, "the sum of values", result._train_ids, result._test_ids)
        return result

    def to_dataframe(self) -> pd.DataFrame:
        """Give the values as a data frame of its own, without standard errors.

        Returns
        -------
        pandas.DataFrame
            One row a test instance (the index ``test``) and one column a training instance
            (``train``); one-dimensional values are the column ``influence`` over ``train``.
        """
        return frames.dataframe(self._values, self._train_ids, self._test_ids)

    def to_xarray(self) -> xr.DataArray:
        """Give the values as an ``xarray.DataArray``.

        Returns
        -------
        xarray.DataArray
            Dimensions ``test`` and ``train``, labelled; ``std_error`` is a coordinate. ``attrs``
            has the method, whether it is additive, and as JSON the settings and diagnostics.

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
        return frames.dataarray(
            self._values, self._std_error, self._train_ids, self._test_ids, attributes
        )

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Write the result to a directory, without pickle.

        The directory holds ``values.npy``, ``labels.npz`` (train and test ids), ``std_error.npy``
        if there are any, and ``meta.json``. It appears at once, complete.

        Parameters
        ----------
        path : path-like
            The directory to make.
        overwrite : bool
            Whether a result that is there may be replaced. Nothing else ever is.

        Raises
        ------
        InvalidInputError
            If something is there that may not be replaced.
        """
        arrays = {"values": self._values, "std_error": self._std_error}
        labels = {"train_ids": self._train_ids, "test_ids": self._test_ids}
        files.write(
            path,
            kind="Influence",
            arrays={name: array for name, array in arrays.items() if array is not None},
            labels={name: array for name, array in labels.items() if array is not None},
            meta={
                "method": self._method,
                "settings": self._settings,
                "diagnostics": self._diagnostics,
                "additive": self._additive,
            },
            overwrite=overwrite,
        )

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, mmap: bool = True) -> Influence:
        """Open a saved result.

        Parameters
        ----------
        path : path-like
            The directory.
        mmap : bool
            Leave the values on disk and read only what is used: a large matrix opens at once.
            Otherwise they are read, and checked for infinite values again.

        Raises
        ------
        InvalidInputError
            If a file is missing, damaged or of another version; the message names it.
        """
        stored = files.read(path, kind="Influence", mmap=mmap)
        result = cls.__new__(cls)
        additive: Any = stored.meta.get("additive")
        with files.fitting(path):
            result._build(
                stored.arrays["values"],
                stored.labels["train_ids"],
                stored.labels.get("test_ids"),
                stored.meta["method"],
                stored.meta["settings"],
                stored.arrays.get("std_error"),
                stored.meta["diagnostics"],
                additive,
                scan=not mmap,
            )
        return result

    def _view(self) -> View:
        start = "Influence of"
        if "joint" in self._diagnostics:
            start = "Joint influence of"
        shown = np.atleast_2d(self._values)[:ROWS]
        tests = [None] if self._test_ids is None else list(self._test_ids[:ROWS])
        rows = [
            Row(test, self._first(row, largest=True), self._first(row, largest=False))
            for test, row in zip(tests, shown, strict=True)
        ]
        left_out = 0 if self._test_ids is None else len(self._test_ids) - len(rows)
        return View(self._heading(start), rows, left_out, warnings_in(self._diagnostics))

    def _first(self, row: NDArray[Any], *, largest: bool) -> list[tuple[object, float]]:
        """Choose what is shown of one side of a row: as many as are scored, up to ``SIDE``."""
        k = min(SIDE, int(np.count_nonzero(~np.isnan(row))))
        if not k:
            return []
        chosen = strongest_positions(row[None, :], k, largest=largest)[0]
        return [(self._train_ids[position], float(row[position])) for position in chosen]
