"""HyDRA: leave-one-out influence by differentiating the recorded training (section 5.2.2)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from proponent._method_checks import check_finite
from proponent.card import MethodCard
from proponent.data import Instances
from proponent.dynamic.unrolled.chosen import positions_of
from proponent.dynamic.unrolled.final_gradients import Tests
from proponent.dynamic.unrolled.method import Settings, UnrolledMethod
from proponent.exceptions import InvalidInputError, MethodCapabilityError
from proponent.gradients.products import VectorQuery
from proponent.models.run import TrainingRun

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

Approximation = Literal["standard", "fast"]


def _cost(*, n_test: int, T: int, batch_size: int = 1, **_: Any) -> float:
    return float(T * batch_size * (2 + 2 * n_test))


class HyDRA(UnrolledMethod):
    r"""Hypergradients: how the whole training would have gone on without an instance.

    ``I(z_i, z_te) = -(1/n) <g_te^(T), h_i^(T)>`` with the hypergradient ``h_i = d theta / d
    eps_i`` of the weight that instance i has in the training risk. For SGD

    .. math::
        h_i \leftarrow h_i - \eta_t \left( \lambda h_i + H_{\mathcal{B}_t} h_i
        + \frac{n}{|\mathcal{B}_t|} 1[i \in \mathcal{B}_t]\, \nabla\ell(z_i; \theta^{(t-1)})
        \right),

    and accordingly through momentum, Nesterov's momentum, Adam, AdamW, coupled and decoupled
    weight decay, schedules, parameter groups and clipping by norm. It estimates leave-one-out.

    **Source** Chen et al., AAAI 2021; survey eq. (56)-(64), algorithm 4.

    **Differs from the paper in** how it is computed. For all instances the hypergradients are
    never formed: the test gradients are pulled back through the steps instead (the adjoint, equal
    to rounding), many test instances at once. The fast approximation, which leaves ``H h`` out,
    needs for SGD only inner products of each batch's gradients with the final test gradients,
    times numbers known from the settings: eq. (64) with the momentum's and the decay's weights.
    Adam and AdamW are derived here. The survey's eq. (77) is taken at ``eps_i = 0``, where its
    last term vanishes; ``deletion_corrected`` keeps it. The divisor is the one that was recorded;
    an instance counts as often as it stands in a batch.

    Scores are ``(n_test, n_train)`` in units of the risk; positive means that the training
    instance lowers the test risk.

    **Cost** Upfront only with ``track``. A query replays the training once for every block of
    test instances that fits the memory; the standard form adds a Hessian-vector product of the
    batch a step and test instance. Memory ``O(n_test p)`` within ``memory``, never ``O(n p)``;
    the fast form with SGD needs no vectors at all. Memorization costs as much as the influence
    of the training set on itself, without its matrix. ``top_k`` holds whole rows meanwhile.

    Parameters
    ----------
    approximation : "standard" or "fast"
        With the Hessians, or without.
    track : array-like of ids, optional
        Follow the hypergradients of these training instances alone, forward, in ``fit``; the
        others are not scored (NaN). Queries then cost inner products only.
    deletion_corrected : bool
        Let each tracked change go on under the Hessian of the batch without the instance,
        ``eps_i = -1/n`` in the survey's eq. (77): no derivative, but sometimes nearer to actual
        retraining. Needs ``track``.
    horizon, divisor, memory, progress
        As in :class:`SGDInfluence`.

    Attributes
    ----------
    tracked_ : array of shape (k,)
        The ids that are tracked, once fitted; empty where none are.

    Examples
    --------
    >>> import torch, proponent as pp
    >>> module = torch.nn.Linear(2, 3)
    >>> optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    >>> train = torch.randn(10, 2), torch.randint(3, (10,))
    >>> with pp.Recorder("runs/doc", module, optimizer, loss="cross_entropy",
    ...                  train=train, overwrite=True) as recorder:
    ...     for batch in torch.arange(10).split(5):
    ...         optimizer.zero_grad()
    ...         logits = module(train[0][batch])
    ...         torch.nn.functional.cross_entropy(logits, train[1][batch]).backward()
    ...         recorder.step(batch)
    ...         optimizer.step()
    >>> run = pp.TrainingRun.load("runs/doc", module)
    >>> pp.HyDRA().fit(run, train).influence(train).shape
    (10, 10)
    >>> pp.HyDRA(track=[0, 1]).fit(run, train).hypergradients()["weight"].shape
    (2, 3, 2)
    """

    marks_unscored: ClassVar[bool] = True
    card: ClassVar[MethodCard] = MethodCard(
        name="HyDRA",
        survey_name="HyDRA",
        title="Hypergradient Data Relevance Analysis",
        family="dynamic",
        section="5.2.2",
        equations="56-64",
        paper="Chen et al., AAAI 2021",
        needs="a recorded training run (pp.Recorder) that can be replayed",
        # Those of the algorithm as published (Table 1); ours are in the docstring.
        full_complexity="O(npT)",
        incremental_complexity="O(np)",
        space_complexity="O(np)",
        storage_complexity="O(pT + np)",
        assumes=("differentiable", "optimizer"),
        estimates_loo=True,
        group=True,
        generative=True,
        original_sign="the same",
        cost=_cost,
    )

    def __init__(
        self,
        approximation: Approximation = "standard",
        *,
        track: Any = None,
        deletion_corrected: bool = False,
        **settings: Unpack[Settings],
    ) -> None:
        super().__init__(**settings)
        self.approximation = approximation
        self.track = track
        self.deletion_corrected = deletion_corrected

    @property
    def _hessian(self) -> bool:
        return self.approximation == "standard"

    @property
    def _without_hessian(self) -> str:
        return "HyDRA(approximation='fast')"

    def fit(self, model: Any, train: Any, *, ids: Any = None) -> Self:
        """Take a recorded run and its training set; follow the tracked instances through it.

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
            If the model is of another kind, the set is empty, a setting cannot be used, or the
            run's parameters were restricted (``parameters=``).
        RunError
            If the run was recorded on another training set, is not complete, lacks something
            that the replay needs, or its optimizer is not covered.
        NonFiniteError
            If a hypergradient explodes.
        """
        if self.approximation not in get_args(Approximation):
            raise InvalidInputError(
                f"approximation={self.approximation!r}: expected 'standard' or 'fast'."
            )
        if self.deletion_corrected and (self.track is None or not self._hessian):
            raise InvalidInputError(
                "deletion_corrected=True gives each instance a Hessian of its own: name the "
                "instances (track=) and keep approximation='standard'."
            )
        return super().fit(model, train, ids=ids)

    def _prepare(self, run: TrainingRun, instances: Instances) -> None:
        super()._prepare(run, instances)
        self._positions: NDArray[np.int64] | None = None
        self.tracked_ = instances.ids[:0]
        if self.track is None:
            return
        self._positions = positions_of(self.track, instances, "track")
        self.tracked_ = instances.ids[self._positions]
        self._followed = self._changes(self._positions, deletion_corrected=self.deletion_corrected)

    def hypergradients(self) -> dict[str, NDArray[np.floating[Any]]]:
        """Return ``h_i = d theta^(T) / d eps_i`` of the tracked instances.

        Returns
        -------
        dict
            For each parameter ``(k, *shape)``, in the order of ``tracked_``.

        Raises
        ------
        MethodCapabilityError
            If none are tracked.
        """
        self._rows(None)
        if self._positions is None:
            raise MethodCapabilityError(
                "HyDRA forms hypergradients only of the instances that it tracks: name them, "
                "HyDRA(track=ids)."
            )
        n = len(self.train_)
        return {name: part.cpu().numpy() * -n for name, part in self._followed.items()}

    def _scores(self, query: Tests, rows: range) -> NDArray[np.floating[Any]]:
        if self._positions is None:
            return super()._scores(query, rows)
        n_test = 1 if query.joint else len(query.instances)
        values = np.full((n_test, len(self.train_)), np.nan)
        changes = VectorQuery(self._followed, self._products)
        start = 0
        for tests in self._finals.of(query, None):
            if isinstance(tests, VectorQuery):
                parts = [
                    part.flatten(1) @ self._followed[name].flatten(1).T
                    for name, part in tests.vectors.items()
                ]
                found = [torch.stack(parts).sum(0)]
            else:
                pairs = zip(tests.parts, tests.sizes, strict=True)
                found = [changes.meet(part, size)[0] for part, size in pairs]
            for block in found:
                values[start : start + len(block), self._positions] = block.cpu().numpy()
                start += len(block)
        return values[:, rows.start : rows.stop]

    def _check_finite(
        self, values: NDArray[np.floating[Any]], rows: range, test_ids: NDArray[Any] | None
    ) -> None:
        # NaN marks what is not scored; without track everything is.
        unscored = self._positions is not None
        check_finite(values, self._ids(rows), test_ids, self.card.name, unscored=unscored)

    def _steps(self, query: Tests) -> range:
        if self._positions is None:
            return super()._steps(query)
        raise MethodCapabilityError(
            "HyDRA with track= follows the parameters forward, to the end, where the steps' shares "
            "can no longer be told apart; for by_checkpoint fit it without track."
        )

    def _self_scores(self, rows: range) -> NDArray[np.floating[Any]]:
        if self._positions is None:
            return super()._self_scores(rows)
        raise MethodCapabilityError(
            "HyDRA with track= scores only some of the training instances; for memorization fit "
            "it without track, or take influence() of those instances."
        )
