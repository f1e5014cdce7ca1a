"""Ideal TracIn: the test risk that each step took away (survey section 5.2.1)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from proponent.card import MethodCard
from proponent.data import Instances
from proponent.exceptions import InvalidInputError, RunError
from proponent.models.run import TrainingRun
from proponent.stepwise import Contributions, StepwiseMethod

if TYPE_CHECKING:
    from typing_extensions import Self


class IdealTracIn(StepwiseMethod):
    """The test risk that fell in the steps an instance took part in.

    ``I(z_i, z_te) = sum_{t : z_i in B_t} [L(z_te; theta^(t-1)) - L(z_te; theta^(t))]`` for batches
    of one instance. No gradient is taken: the risks are measured while the model trains, so the
    test set is given to the recorder before training. Over all training instances the influences
    sum to ``L(z_te; theta^(0)) - L(z_te; theta^(T))`` exactly.

    **Source** Pruthi et al., NeurIPS 2020; survey eqs. (48)-(51).

    **Differs from the paper in** the parentheses that eq. (50) lacks, and in ``share_batches``,
    the survey's naive extension to larger batches.

    Scores are ``(n_test, n_train)`` in units of the risk; positive means that the test risk fell
    when the training instance was learnt.

    **Cost** A forward pass over the test set at each step, while recording; a query is a sum.

    Parameters
    ----------
    share_batches : bool
        Share a step's change equally among the instances of its batch. It then no longer tells
        the instances of a batch apart, which is why batches of more than one instance are
        refused unless it is set.

    Examples
    --------
    >>> import torch, proponent as pp
    >>> module = torch.nn.Linear(2, 3)
    >>> optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    >>> train = torch.randn(10, 2), torch.randint(3, (10,))
    >>> with pp.Recorder("runs/doc", module, optimizer, loss="cross_entropy", every=1,
    ...                  train=train, overwrite=True, test=train) as recorder:
    ...     for batch in torch.arange(10).split(1):
    ...         optimizer.zero_grad()
    ...         logits = module(train[0][batch])
    ...         torch.nn.functional.cross_entropy(logits, train[1][batch]).backward()
    ...         recorder.step(batch)
    ...         optimizer.step()
    >>> run = pp.TrainingRun.load("runs/doc", module)
    >>> pp.IdealTracIn().fit(run, train).influence(train).shape
    (10, 10)
    """

    card: ClassVar[MethodCard] = MethodCard(
        name="IdealTracIn",
        title="Ideal TracIn",
        aliases=("idealised TracIn",),
        family="dynamic",
        section="5.2.1",
        equations="48-51",
        paper="Pruthi et al., NeurIPS 2020",
        needs="a recorded training run that was given the test set (pp.Recorder, test=...)",
        full_complexity="O(T) forward passes while training",
        incremental_complexity="O(T) forward passes while training",
        space_complexity="O(n)",
        storage_complexity="O(T)",
        assumes=("optimizer",),
        group=True,
        generative=True,
        original_sign="the same",
        cost=lambda *, n_test, T, **_: n_test * (T + 1) / 3,
    )

    def __init__(self, *, share_batches: bool = False) -> None:
        self.share_batches = share_batches

    def fit(self, model: Any, train: Any, *, ids: Any = None) -> Self:
        """Take a run that recorded its test risks, and its training set.

        Parameters
        ----------
        model : TrainingRun
            The recorded run.
        train : (X, y), dict, Dataset or Instances
            The training set.
        ids : array-like of shape (n,), optional
            Unique labels of the training instances.

        Raises
        ------
        InvalidInputError
            If the model is of another kind, the set is empty, or batches hold several instances
            and ``share_batches`` is not set.
        RunError
            If the run was recorded on another training set, or without test risks.
        """
        if not isinstance(model, TrainingRun):
            raise self._wrong_kind(model)
        instances = Instances.of(train, ids=ids, role="train")
        if not len(instances):
            raise InvalidInputError("train: the set is empty; influence needs instances.")
        model.require(batches=True, test_risks=True, by=self.card.name)
        model.check_train(instances)
        largest = max(len(step.indices) for step in model.steps)
        if largest > 1 and not self.share_batches:
            raise InvalidInputError(
                f"the run's batches have up to {largest} instances; the change of the risk in a "
                f"step belongs to one instance only where it trained on one. Use TracIn, train "
                f"with batch size 1, or set share_batches=True to share it equally."
            )
        self.run_ = model
        self.train_ = instances
        return self

    def _query(self, instances: Instances) -> NDArray[np.float64]:
        """Return the fall of each test risk in each step, ``(T, n_test)``."""
        self.run_.check_test(instances)
        if self.run_.test_risks is None:
            raise RunError("the run has no test risks; record with Recorder(..., test=test).")
        return np.asarray(-np.diff(self.run_.test_risks, axis=0))

    def _joint_query(self, instances: Instances) -> NDArray[np.float64]:
        return np.asarray(self._query(instances).sum(axis=1, keepdims=True))

    def _joint_scores(self, query: NDArray[np.float64], rows: range) -> NDArray[np.float64]:
        return np.asarray(self._scores(query, rows)[0])

    def _scores(self, query: NDArray[np.float64], rows: range) -> NDArray[np.float64]:
        scores = np.zeros((len(rows), query.shape[1]))
        self._add_contributions(query, rows, lambda step: scores.T)
        return np.ascontiguousarray(scores.T)

    @override
    def _steps(self, query: NDArray[np.float64]) -> list[int]:
        return [step.index for step in self.run_.steps]

    @override
    def _add_contributions(
        self, query: NDArray[np.float64], rows: range, at: Callable[[int], Contributions]
    ) -> None:
        for step, fall in zip(self.run_.steps, query, strict=True):
            positions = step.indices[(step.indices >= rows.start) & (step.indices < rows.stop)]
            np.add.at(at(step.index).T, positions - rows.start, fall / len(step.indices))

    def _diagnostics(self, query: Any) -> dict[str, Any]:
        largest = max(len(step.indices) for step in self.run_.steps)
        noticed: dict[str, Any] = {"steps": len(self.run_.steps), "largest_batch": largest}
        if largest > 1:
            noticed["warnings"] = [
                f"batches of up to {largest} instances: each step's change of the risk was shared "
                f"equally, so the instances of a batch are not told apart"
            ]
        return noticed
