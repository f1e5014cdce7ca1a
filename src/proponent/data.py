"""Any training or test set, seen the same way: n instances with ids, read in order.

The library makes its own batches and never shuffles, so a column of an influence matrix can
never be misaligned with its instance. A set is an ``(X, y)`` pair of arrays, data frames or
tensors, a dict of them, or a map-style ``torch.utils.data.Dataset``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from proponent._content import as_numpy as _numpy
from proponent._content import update_exactly, update_rounded
from proponent.exceptions import InvalidInputError

if TYPE_CHECKING:
    from torch import Tensor

    Batch = Tensor | tuple[Any, ...] | dict[str, Any]

# Rows whose content enters the fingerprint: enough to tell data sets apart, cheap to read.
FINGERPRINT_ROWS = 64


class Instances:
    """n instances with ids, in a fixed order.

    Use :meth:`Instances.of`, which takes whatever the user has.

    Parameters
    ----------
    source : object
        Columns (a tuple or dict of arrays with a common first axis) or a map-style data set.
    ids : array of shape (n,)
        Unique labels of the instances.
    collate : callable, optional
        Turns a list of items of a map-style data set into a batch; the default is
        ``torch.utils.data.default_collate``.
    feature_names : tuple, optional
        Names of the first column's features, where it was a data frame.
    frame : DataFrame, optional
        The first column as it was given, where it was a data frame.
    """

    def __init__(
        self,
        source: Any,
        ids: NDArray[Any],
        collate: Callable[[list[Any]], Any] | None = None,
        feature_names: tuple[Any, ...] = (),
        frame: Any = None,
    ) -> None:
        self._source = source
        self.feature_names = feature_names
        self._frame = frame
        self._columns = isinstance(source, (tuple, dict))
        self._collate = collate
        ids.setflags(write=False)
        self.ids = ids

    @classmethod
    def of(
        cls,
        data: Any,
        *,
        ids: Any = None,
        collate: Callable[[list[Any]], Any] | None = None,
        role: str = "train",
    ) -> Instances:
        """See any data set as instances.

        Parameters
        ----------
        data : (X, y), dict, Dataset or Instances
            Arrays, data frames or tensors with a common first axis, as a tuple, list or dict; or
            a map-style data set with ``__len__`` and ``__getitem__``.
        ids : array-like of shape (n,), optional
            Unique labels of the instances; the default is ``0 .. n-1``, or the index of a data
            frame where it is unique.
        collate : callable, optional
            For map-style data sets: turns a list of items into a batch.
        role : str
            The argument's name in error messages.

        Raises
        ------
        InvalidInputError
            If the lengths differ, the set is not map-style, or the ids are not n unique labels.
        """
        if isinstance(data, Instances):
            return (
                data
                if ids is None
                else cls(
                    data._source,
                    _ids(ids, len(data), role),
                    data._collate,
                    data.feature_names,
                    data._frame,
                )
            )
        pair = isinstance(data, list) and len(data) == 2 and all(map(_is_column, data))
        if pair or (isinstance(data, tuple) and data):
            columns: Any = tuple(_column(part, role) for part in data)
            n = _common_length(dict(enumerate(columns)), role)
        elif isinstance(data, Mapping):
            columns = {key: _column(part, role) for key, part in data.items()}
            n = _common_length(columns, role)
        elif _is_column(data):
            columns = (_column(data, role),)
            n = len(columns[0])
        elif _is_map_style(data):
            n = len(data)
            chosen = np.arange(n) if ids is None else _ids(ids, n, role)
            return cls(_MapStyle(data), chosen, collate)
        else:
            raise InvalidInputError(
                f"{role}: expected an (X, y) pair of arrays, data frames or tensors, a dict of "
                f"them, or a map-style data set with __len__ and __getitem__; got "
                f"{type(data).__name__}. Iterable-style sets and data loaders hide the order of "
                f"the instances: pass the data set behind the loader."
            )
        if collate is not None:
            raise InvalidInputError(
                f"collate: {role} is made of arrays; only map-style data sets are collated."
            )
        chosen = _frame_index(data, n) if ids is None else _ids(ids, n, role)
        first = data[0] if isinstance(data, (tuple, list)) else data
        names = tuple(getattr(first, "columns", ()))
        return cls(columns, chosen, feature_names=names, frame=first if names else None)

    def __len__(self) -> int:
        """Return the number of instances."""
        return len(self.ids)

    def __repr__(self) -> str:
        """Return the number of instances in words."""
        return f"Instances(n={len(self):,})"

    def batch(self, indices: slice | NDArray[np.integer[Any]]) -> Batch:
        """Return the instances at ``indices`` as a batch of tensors, in that order.

        Parameters
        ----------
        indices : slice or integer array
            Positions in ``0 .. n-1``.

        Returns
        -------
        tuple, dict or Tensor
            Tensors with the instances on their first axis, or what ``collate`` returns.
        """
        if isinstance(self._source, tuple):
            return tuple(_tensor(column, indices) for column in self._source)
        if isinstance(self._source, dict):
            return {key: _tensor(column, indices) for key, column in self._source.items()}
        from torch.utils.data import default_collate

        positions = range(len(self))[indices] if isinstance(indices, slice) else indices
        items = [self._source[int(position)] for position in positions]
        batch = (self._collate or default_collate)(items)
        if isinstance(batch, list):
            return tuple(batch)
        return dict(batch) if isinstance(batch, Mapping) else batch

    def labels(self) -> NDArray[Any] | None:
        """Return the labels, ``(n, ...)``: the last column, or the one called ``labels`` or ``y``.

        None where the set has no column of labels (a single column, or a map-style data set
        whose items are not pairs).
        """
        if isinstance(self._source, tuple):
            return _numpy(self._source[-1]) if len(self._source) > 1 else None
        if isinstance(self._source, dict):
            for name in ("labels", "label", "y", "target"):
                if name in self._source:
                    return _numpy(self._source[name])
            return None
        first = self._source[0] if len(self) else None
        if not isinstance(first, (tuple, list)) or len(first) < 2:
            return None
        return np.asarray([_numpy(self._source[position][-1]) for position in range(len(self))])

    def features(self, role: str = "train") -> Any:
        """Return X of a set of (X, y) pairs: the data frame that was given, else an array.

        Raises
        ------
        InvalidInputError
            If the set is not made of (X, y) pairs.
        """
        if self._frame is not None:
            return self._frame
        if isinstance(self._source, tuple):
            if len(self._source) <= 2:
                return _numpy(self._source[0])
            raise InvalidInputError(
                f"{role}: expected an (X, y) pair; got {len(self._source)} columns. A trained "
                f"network (pp.TorchModel) takes any columns."
            )
        if isinstance(self._source, dict):
            raise InvalidInputError(
                f"{role}: expected an (X, y) pair; got columns by name: "
                f"{', '.join(map(str, self._source))}."
            )
        items = [self._source[position] for position in range(len(self))]
        if any(not isinstance(item, (tuple, list)) or len(item) != 2 for item in items):
            raise InvalidInputError(f"{role}: the items of the data set must be (x, y) pairs.")
        return np.stack([_numpy(item[0]) for item in items])

    def select(self, indices: slice | NDArray[np.integer[Any]]) -> Instances:
        """Return the instances at ``indices``, with their ids."""
        positions = np.arange(len(self))[indices]
        if isinstance(self._source, tuple):
            return Instances(
                tuple(_take(column, positions) for column in self._source),
                self.ids[positions],
                feature_names=self.feature_names,
                frame=None if self._frame is None else self._frame.iloc[positions],
            )
        if isinstance(self._source, dict):
            columns = {key: _take(column, positions) for key, column in self._source.items()}
            return Instances(columns, self.ids[positions])
        return Instances(_MapStyle(self._source, positions), self.ids[positions], self._collate)

    def fingerprint(self) -> str:
        """Return a hash of the number of instances and the content of some of them.

        Two sets with the same fingerprint have the same length, and the same content at 64
        evenly spaced instances.
        """
        digest = hashlib.blake2b(digest_size=16)
        digest.update(str(len(self)).encode())
        rows = np.unique(np.linspace(0, len(self) - 1, FINGERPRINT_ROWS, dtype=int))
        for position in rows if len(self) else ():
            update_rounded(digest, self.item(int(position)))
        return digest.hexdigest()

    def content_hash(self) -> str:
        """Return a hash of all of the content: two sets with the same one are the same.

        Unlike :meth:`fingerprint` it reads every instance, and every bit of it.
        """
        digest = hashlib.blake2b(str(len(self)).encode(), digest_size=16)
        if not self._columns:
            for position in range(len(self)):
                update_exactly(digest, self._source[position])
            return digest.hexdigest()
        named = self._source if isinstance(self._source, dict) else enumerate(self._source)
        for name, column in dict(named).items():
            digest.update(str(name).encode())
            update_exactly(digest, column)
        return digest.hexdigest()

    def item(self, position: int) -> Any:
        """Return one instance as the set holds it: its entry in each column, or its item."""
        if isinstance(self._source, tuple):
            return tuple(column[position] for column in self._source)
        if isinstance(self._source, dict):
            return {key: column[position] for key, column in self._source.items()}
        return self._source[position]


class _MapStyle:
    """A map-style data set, or chosen positions of it."""

    def __init__(self, data: Any, positions: NDArray[np.integer[Any]] | None = None) -> None:
        self._data = data
        self._positions = positions

    def __getitem__(self, position: int) -> Any:
        return self._data[position if self._positions is None else int(self._positions[position])]


def _is_column(part: Any) -> bool:
    """Whether ``part`` is an array, frame, series, tensor or sparse matrix (not a data set)."""
    return (hasattr(part, "shape") and hasattr(part, "dtype")) or hasattr(part, "iloc")


def _is_map_style(data: Any) -> bool:
    """Whether ``data`` has a length and items by position, which text and streams have not."""
    if isinstance(data, (str, bytes)) or not (
        hasattr(data, "__getitem__") and hasattr(data, "__len__")
    ):
        return False
    if isinstance(data, list):
        return not any(isinstance(item, (str, bytes)) for item in data[:1])
    # torch's iterable-style sets inherit a __getitem__ that they do not have.
    return not any(kind.__name__ == "IterableDataset" for kind in type(data).__mro__)


def _column(part: Any, role: str) -> Any:
    """Turn one column of the set into an array or tensor with instances on the first axis."""
    if hasattr(part, "iloc"):
        part = part.to_numpy()
    if hasattr(part, "toarray"):
        part = part.toarray()
    if not hasattr(part, "shape"):
        part = np.asarray(part)
    if len(part.shape) == 0:
        raise InvalidInputError(
            f"{role}: a column of the set is a scalar; it needs one entry an instance."
        )
    return part


def _common_length(columns: Mapping[Any, Any], role: str) -> int:
    lengths = {key: int(column.shape[0]) for key, column in columns.items()}
    if not lengths:
        raise InvalidInputError(f"{role}: the set has no columns.")
    if len(set(lengths.values())) > 1:
        listed = ", ".join(f"{key}: {length}" for key, length in lengths.items())
        raise InvalidInputError(
            f"{role}: the columns have different numbers of instances ({listed}); "
            f"each needs one row an instance."
        )
    return next(iter(lengths.values()))


def _ids(ids: Any, n: int, role: str) -> NDArray[Any]:
    labels = _numpy(ids).copy()
    if labels.shape != (n,):
        raise InvalidInputError(
            f"ids: expected {n} labels, one for each instance of {role}; got shape {labels.shape}."
        )
    if labels.dtype == object and all(isinstance(label, str) for label in labels):
        labels = labels.astype(str)
    if labels.dtype.kind not in "iuU":
        raise InvalidInputError(f"ids: labels must be integers or strings; got {labels.dtype}.")
    values, counts = np.unique(labels, return_counts=True)
    if (counts > 1).any():
        raise InvalidInputError(
            f"ids: labels must be unique; {values[counts > 1].tolist()[0]!r} stands more than once."
        )
    return labels


def _frame_index(data: Any, n: int) -> NDArray[Any]:
    """Return the index of the first data frame where it can serve as ids, else ``0 .. n-1``."""
    parts = (
        data.values()
        if isinstance(data, Mapping)
        else data
        if isinstance(data, (tuple, list))
        else [data]
    )
    for part in parts:
        if hasattr(part, "iloc") and part.index.is_unique:
            index = part.index.to_numpy()
            if index.dtype == object and all(isinstance(label, str) for label in index):
                index = index.astype(str)
            if index.dtype.kind in "iuU":
                return np.array(index)
    return np.arange(n)


def _take(column: Any, indices: Any) -> Any:
    if isinstance(column, np.ndarray) or isinstance(indices, slice):
        return column[indices]
    import torch

    return column[torch.tensor(indices, device=column.device)]


def _tensor(column: Any, indices: Any) -> Tensor:
    import torch

    part = _take(column, indices)
    if isinstance(part, torch.Tensor):
        return part.clone() if isinstance(indices, slice) else part
    if part.dtype.kind not in "biufc":
        raise InvalidInputError(
            f"a column of the set has dtype {part.dtype}, which a torch module cannot take; "
            f"encode it as numbers first."
        )
    part = np.asarray(part, part.dtype.newbyteorder("="))
    # A copy: a module may write to the batch that it is given.
    return torch.from_numpy(part.copy())
