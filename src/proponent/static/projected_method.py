"""What the methods share that keep projected gradients of the training set.

    I(z_i, z_te) = w_i sum_j phi_j(z_te)^T (M_j + damping_j)^{-1} phi_j(z_i)

with tables j of projected gradients phi_j (of checkpoints, or layers), their second moments M_j
over the training set, and a weight w_i of each training instance.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import override

from proponent.data import Instances
from proponent.exceptions import InvalidInputError
from proponent.gradients.method import MEMORY, GradientMethod
from proponent.gradients.path import PathPoint, TestSet
from proponent.gradients.projected_gradients import ProjectedGradients
from proponent.gradients.row_store import MemoryRows, Rows, RowStore, StoredRows
from proponent.gradients.second_moment import DampedInverse
from proponent.models.torch import ParameterChoice


@dataclass(frozen=True)
class ProjectedSet:
    """The projected gradients of the training set at one set of parameters.

    Attributes
    ----------
    gradients : ProjectedGradients
        How those of other instances are had.
    rows : RowStore
        Those of the training set.
    inverses : mapping
        ``(M_j + damping_j)^{-1}``, by table.
    fingerprint : str
        Of the parameters and buffers.
    """

    gradients: ProjectedGradients
    rows: RowStore
    inverses: Mapping[str, DampedInverse]
    fingerprint: str


@dataclass(frozen=True)
class PreparedSet(TestSet):
    """A test set, or the sum over it, multiplied with the inverses.

    Attributes
    ----------
    vectors : tuple of dict
        ``(M_j + damping_j)^{-1} phi_j(z_te)``, (m, k_j), by table, for each set of parameters.
    """

    vectors: tuple[Rows, ...]

    @property
    def m(self) -> int:
        """Number of test instances; 1 for their sum."""
        return 1 if self.joint else len(self.instances)


class ProjectedMethod(GradientMethod):
    """Base of the methods that keep projected gradients of the training set.

    A subclass's ``fit`` sets ``_sets``.

    Parameters
    ----------
    damping : float, optional
        Added to the second moments; None chooses.
    seed : int
        Fixes the projection.
    path : str or Path, optional
        A directory for the projected gradients; None: they are kept in memory.
    parameters, batch_size, memory, dtype, progress
        As in :class:`GradientMethod`.
    """

    _sets: tuple[ProjectedSet, ...]

    def __init__(
        self,
        *,
        damping: float | None = None,
        seed: int = 0,
        path: str | Path | None = None,
        parameters: ParameterChoice | None = None,
        batch_size: int | None = None,
        memory: int = MEMORY,
        dtype: str | None = None,
        progress: bool | None = None,
    ) -> None:
        super().__init__(
            parameters=parameters,
            batch_size=batch_size,
            memory=memory,
            dtype=dtype,
            progress=progress,
        )
        self.damping = damping
        self.seed = seed
        self.path = path

    @abstractmethod
    def _weights(self, rows: range) -> Tensor | float:
        """Return ``w_i`` of the training instances at ``rows``."""

    def _points(self, instances: Instances) -> tuple[PathPoint, ...]:
        return (PathPoint("the model", 1.0, nullcontext),)

    def _open_rows(
        self, path: Path | None, header: Mapping[str, Any], widths: Mapping[str, int], memory: int
    ) -> RowStore:
        """Return room for the projected gradients of the training set.

        Parameters
        ----------
        path : Path, optional
            A directory; None: in memory.
        header : mapping
            What they are made from, besides the training set.
        widths : mapping
            Dimensions, by table.
        memory : int
            Bytes that they may take in memory.
        """
        n = len(self.train_)
        like = torch.empty(0, dtype=self._capture.dtype, device=self.model_.device)
        if path is None:
            return MemoryRows(n, widths, like, memory)
        with self.model_.evaluating():  # items of a data set may draw random numbers
            train = self.train_.fingerprint()
        return StoredRows(path, {**header, "train": train}, n, widths, like)

    # Scores

    @override
    def _query(self, instances: Instances) -> PreparedSet:
        return self._prepared(instances, joint=False)

    @override
    def _joint_query(self, instances: Instances) -> PreparedSet:
        return self._prepared(instances, joint=True)

    def _prepared(self, instances: Instances, *, joint: bool) -> PreparedSet:
        self._refuse_changes()
        vectors = []
        for part in self._sets:
            gradients = part.gradients
            tables = gradients.sums(instances) if joint else gradients.tables(instances)
            vectors.append(
                {name: inverse.solve(tables[name]) for name, inverse in part.inverses.items()}
            )
        return PreparedSet(instances, joint, self._points(instances), tuple(vectors))

    @override
    def _joint_scores(self, query: TestSet, rows: range) -> NDArray[np.floating[Any]]:
        blocks = self._blocks(rows, cast(PreparedSet, query).m)
        return np.concatenate([self._scores(query, block).sum(axis=0) for block in blocks])

    @override
    def _scores(self, query: TestSet, rows: range) -> NDArray[np.floating[Any]]:
        query = cast(PreparedSet, query)
        scores = self._sets[0].rows.like.new_zeros(query.m, len(rows))
        for part, vectors in zip(self._sets, query.vectors, strict=True):
            for block, values in part.rows.read(rows, list(vectors)):
                columns = scores[:, block.start - rows.start : block.stop - rows.start]
                for name, table in values.items():
                    columns.addmm_(vectors[name], table.T)
        return _array(scores.mul_(self._weights(rows)))

    @override
    def _self_scores(self, rows: range) -> NDArray[np.floating[Any]]:
        scores = self._sets[0].rows.like.new_zeros(len(rows))
        for part in self._sets:
            for block, values in part.rows.read(rows, list(part.inverses)):
                some = scores[block.start - rows.start : block.stop - rows.start]
                for name, inverse in part.inverses.items():
                    some += (inverse.solve(values[name]) * values[name]).sum(1)
        return _array(scores.mul_(self._weights(rows)))

    def _refuse_changes(self) -> None:
        """Refuse a test set for parameters that are not those of the training gradients kept."""
        for part in self._sets:
            if part.gradients.fingerprint() != part.fingerprint:
                raise InvalidInputError(
                    f"the parameters or buffers of the module have changed since {self.card.name} "
                    f"was fitted, and what it keeps belongs to the old ones: fit it again."
                )

    @override
    def _settings(self) -> dict[str, Any]:
        return {name: value for name, value in super()._settings().items() if name != "path"}


def _array(scores: Tensor) -> NDArray[np.floating[Any]]:
    array: NDArray[np.floating[Any]] = scores.cpu().numpy()
    return array
