"""Methods whose influence is a sum over the steps of training: they can tell when it was made."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Literal, overload

import numpy as np
from numpy.typing import NDArray

from proponent.checkpoint_influence import (
    CheckpointInfluence,
    CheckpointSummary,
    StepColumns,
    StepSums,
    SummedSums,
)
from proponent.data import Instances
from proponent.exceptions import InvalidInputError
from proponent.influence import Influence
from proponent.method import InfluenceMethod
from proponent.top import TopInfluence

Contributions = NDArray[np.floating[Any]]


class StepwiseMethod(InfluenceMethod):
    """Base of the methods whose influence is a sum of contributions of steps or checkpoints.

    A subclass implements, besides what every method does,

    - ``_steps(query)``: the steps that contribute, counted from 1;
    - ``_add_contributions(query, rows, at)``: for each step, in the order of training or against
      it, adds its contributions to ``at(step)``, an array ``(n_test, len(rows))`` of zeros, with
      one row where the query is joint;

    and where the scores are not float64 ``_contribution_dtype()``, and where not all tests go
    along the run together

    - ``_test_parts(query)``: goes through the parts of a query, each as ``_add_contributions``
      takes it, with its place among the tests.
    """

    @overload
    def influence(
        self,
        test: Any = None,
        *,
        ids: Any = None,
        top_k: None = None,
        joint: bool = False,
        shard: tuple[int, int] | None = None,
        by_checkpoint: Literal[False] = False,
        phases: None = None,
    ) -> Influence: ...

    @overload
    def influence(
        self,
        test: Any = None,
        *,
        ids: Any = None,
        top_k: int,
        joint: Literal[False] = False,
        shard: tuple[int, int] | None = None,
        by_checkpoint: Literal[False] = False,
        phases: None = None,
    ) -> TopInfluence: ...

    @overload
    def influence(
        self,
        test: Any = None,
        *,
        ids: Any = None,
        top_k: None = None,
        joint: bool = False,
        shard: tuple[int, int] | None = None,
        by_checkpoint: Literal[True],
        phases: int | None = None,
    ) -> CheckpointInfluence: ...

    @overload
    def influence(
        self,
        test: Any = None,
        *,
        ids: Any = None,
        top_k: None = None,
        joint: bool = False,
        shard: None = None,
        by_checkpoint: Literal["summary"],
        phases: int | None = None,
    ) -> CheckpointSummary: ...

    def influence(
        self,
        test: Any = None,
        *,
        ids: Any = None,
        top_k: int | None = None,
        joint: bool = False,
        shard: tuple[int, int] | None = None,
        by_checkpoint: bool | Literal["summary"] = False,
        phases: int | None = None,
    ) -> Influence | TopInfluence | CheckpointInfluence | CheckpointSummary:
        """Return the influence of every training instance on every test instance.

        Parameters
        ----------
        test, ids, top_k, joint, shard
            As for every method, see :meth:`InfluenceMethod.influence`.
        by_checkpoint : bool or "summary"
            Also tell when during training the influence was made. True gives the contribution of
            each step or checkpoint to each score, ``(n_test, n_train, K)``, or ``(n_train, K)``
            where ``joint``. ``"summary"`` sums them over the training instances while they pass:
            whether each test instance was learnt early or late, in O(n_test * K) memory.
        phases : int, optional
            Gather the steps or checkpoints into this many phases of equal numbers of them.

        Returns
        -------
        Influence or TopInfluence
            As for every method, without ``by_checkpoint``.
        CheckpointInfluence
            Where ``by_checkpoint`` is True; its ``total()`` is the influence.
        CheckpointSummary
            Where it is ``"summary"``.

        Raises
        ------
        InvalidInputError
            As for every method; or if what is asked for does not go together or does not fit
            into half of the machine's memory.
        NotFittedError, NonFiniteError
            As for every method.
        """
        if by_checkpoint not in (False, True, "summary"):
            raise InvalidInputError(
                f"by_checkpoint: expected False, True or 'summary'; got {by_checkpoint!r}."
            )
        if not by_checkpoint:
            if phases is not None:
                raise InvalidInputError(
                    "phases: the influence is cut into phases of training where by_checkpoint is "
                    "True or 'summary'; pass it too."
                )
            plain: Any = super().influence
            answer: Influence | TopInfluence = plain(
                test, ids=ids, top_k=top_k, joint=joint, shard=shard
            )
            return answer
        rows = self._rows(shard)
        if top_k is not None:
            raise InvalidInputError(
                "top_k: by_checkpoint keeps every training instance; leave top_k out and call "
                ".phase(first, last).proponents(k), or .total().proponents(k), on the result."
            )
        if not isinstance(joint, (bool, np.bool_)):
            raise InvalidInputError(f"joint: expected True or False; got {joint!r}.")
        instances = self._tests(test, ids)
        query = self._joint_query(instances) if joint else self._query(instances)
        columns = StepColumns.of(self._steps(query), phases)
        if not len(columns):
            raise InvalidInputError(
                f"{self.card.name}: no step of the run contributes: all learning rates are 0."
            )
        if by_checkpoint == "summary":
            if shard is not None:
                raise InvalidInputError(
                    "shard: a summary sums over all training instances; leave shard out."
                )
            return self._summed_by_step(query, instances, rows, columns, joint=bool(joint))
        return self._by_step(query, instances, rows, columns, joint=bool(joint))

    # What a subclass writes

    @abstractmethod
    def _steps(self, query: Any) -> Sequence[int]: ...

    @abstractmethod
    def _add_contributions(
        self, query: Any, rows: range, at: Callable[[int], Contributions]
    ) -> None: ...

    def _contribution_dtype(self) -> np.dtype[Any]:
        return np.dtype(np.float64)

    def _test_parts(self, query: Any) -> Iterator[tuple[Any, slice]]:
        yield query, slice(None)

    # The frame

    def _by_step(
        self, query: Any, instances: Instances, rows: range, columns: StepColumns, *, joint: bool
    ) -> CheckpointInfluence:
        n_test = 1 if joint else len(instances)
        dtype = self._contribution_dtype()
        _check_fits(n_test, len(rows), len(columns), dtype.itemsize, joint=joint)
        sums = StepSums(columns, n_test, len(rows), dtype)
        for part, where in self._test_parts(query):
            self._add_contributions(part, rows, partial(_part_at, sums, where))
        stored = sums.result()
        stored = stored[:, 0] if joint else stored
        test_ids = None if joint else instances.ids
        for contributions in stored:
            self._check_finite(contributions, rows, test_ids)
        return CheckpointInfluence(
            np.moveaxis(stored, 0, -1),
            steps=columns.first,
            last_steps=columns.last,
            train_ids=self._ids(rows),
            test_ids=test_ids,
            method=self.card.name,
            settings=self._settings(),
            diagnostics=self._noticed_along(query, instances, joint=joint),
            additive=self._is_additive(),
        )

    def _summed_by_step(
        self, query: Any, instances: Instances, rows: range, columns: StepColumns, *, joint: bool
    ) -> CheckpointSummary:
        n_test = 1 if joint else len(instances)
        sums = SummedSums(columns, n_test, self._contribution_dtype())
        for block in self._blocks(rows, n_test):
            for part, where in self._test_parts(query):
                sums.begin(len(block))
                self._add_contributions(part, block, partial(_part_at, sums, where))
                sums.end()
        helped, harmed = sums.result()
        return CheckpointSummary(
            helped[0] if joint else helped,
            harmed[0] if joint else harmed,
            steps=columns.first,
            last_steps=columns.last,
            train_ids=self._ids(rows),
            test_ids=None if joint else instances.ids,
            method=self.card.name,
            settings=self._settings(),
            diagnostics=self._noticed_along(query, instances, joint=joint),
        )

    def _noticed_along(self, query: Any, instances: Instances, *, joint: bool) -> dict[str, Any]:
        asked = {"joint": {"reduction": "sum", "n_test": len(instances)}} if joint else {}
        return self._diagnostics(query) | asked


def _part_at(sums: StepSums, where: slice, step: int) -> Contributions:
    return sums.at(step)[where]


def _check_fits(n_test: int, rows: int, columns: int, itemsize: int, *, joint: bool) -> None:
    """Refuse contributions that take more than half of the machine's memory."""
    needed, limit = n_test * rows * columns * itemsize, _memory() // 2
    if needed <= limit:
        return
    tests = "" if joint else f"{n_test:,} tests x "
    ways = "" if joint else "joint=True (the sum over the tests), by_checkpoint='summary', "
    raise InvalidInputError(
        f"by_checkpoint=True: {tests}{rows:,} training instances x {columns:,} checkpoints take "
        f"{needed / 2**30:,.1f} GiB, more than half of this machine's memory "
        f"({2 * limit / 2**30:,.1f} GiB). Ask for fewer columns with phases=10, for {ways}or for a "
        f"part of the training set with shard=(i, of)."
    )


def _memory() -> int:
    """Return the bytes of the machine's memory; 16 GiB where it does not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 2**34
