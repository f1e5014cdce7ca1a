"""TracIn: gradient products at every step, for the instances of its batch (section 5.2.1)."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from proponent.card import MethodCard
from proponent.data import Instances
from proponent.dynamic.along_run import AlongRun
from proponent.dynamic.optimizer_update import Update
from proponent.gradients.method import MEMORY, Settings
from proponent.gradients.path import PathPoint, TestSet
from proponent.gradients.products import Way
from proponent.models.run import TrainingRun
from proponent.models.torch import ParameterChoice

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack


def _cost(*, n_test: int, T: int, batch_size: int = 1, **_: Any) -> float:
    return float(T * (batch_size + n_test))


class EveryStep(AlongRun):
    """Base of the methods that look at every step of a run, for the instances of its batch.

    Parameters
    ----------
    parameters, batch_size, products, memory, dtype, progress
        As in :class:`GradientDot`.
    """

    def __init__(
        self,
        *,
        parameters: ParameterChoice | None = None,
        batch_size: int | None = None,
        products: Way = "auto",
        memory: int = MEMORY,
        dtype: str | None = None,
        progress: bool | None = None,
    ) -> None:
        super().__init__(
            parameters=parameters,
            batch_size=batch_size,
            products=products,
            memory=memory,
            dtype=dtype,
            progress=progress,
        )

    def fit(self, model: Any, train: Any, *, ids: Any = None) -> Self:
        """Take a run recorded at every step and the training set it was recorded on.

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
            If the model is of another kind, the set is empty, or the risk of an instance
            depends on the other instances of its batch.
        RunError
            If the run was recorded on another training set, or not at every step.
        """
        if isinstance(model, TrainingRun):
            model.require(batches=True, every_step=True, by=self.card.name)
        return super().fit(model, train, ids=ids)

    def _points(self, instances: Instances) -> tuple[PathPoint, ...]:
        stored = {checkpoint.t: checkpoint for checkpoint in self.run_.checkpoints}
        points = (
            replace(
                self._point(stored[step.index]),
                members=step.indices,
                member_weights=step.weights * (1.0 if step.clip_scale is None else step.clip_scale),
            )
            for step in self.run_.steps
        )
        return tuple(point for point in points if point.weight != 0.0)

    def _diagnostics(self, query: TestSet | None) -> dict[str, Any]:
        noticed = super()._diagnostics(query)
        unknown = sum(step.clip_scale is None for step in self.run_.steps)
        if unknown:
            noticed.setdefault("warnings", []).append(
                f"gradients were clipped at {unknown} steps by a factor that was not recorded; "
                f"they are taken as if they were not"
            )
        return noticed


class TracIn(EveryStep):
    """Gradient products at every step, for the instances of the step's batch.

    ``I(z_i, z_te) = sum_{t : z_i in B_t} (eta_t / |B_t|) <g_i, g_te>``, gradients of the risk at
    ``theta^(t-1)``: to first order what the instance's part of each gradient step took off the
    test risk.

    **Source** Pruthi et al., NeurIPS 2020; survey eq. (54).

    **Differs from the paper in** the divisor, which is the one that was recorded (``|B_t|``
    where the loss is the batch's mean) and is multiplied by the factor of gradient clipping, and
    in counting an instance as often as it stands in a batch. As in the paper, momentum, adaptive
    rates and weight decay are not seen, unless ``update="optimizer"``: an instance's part is then
    what the run's optimizer made of its gradient in the step, as :class:`TracInCP` defines it.

    Scores are ``(n_test, n_train)`` in units of the risk; positive means that the training
    instance lowers the test risk.

    **Cost** For each step a forward-backward pass of its batch and of the test set. Needs a run
    that was recorded with ``every=1``.

    Parameters
    ----------
    update : "gradient" or "optimizer"
        Whether an instance's step is its gradient, or what the optimizer made of it.
        ``"optimizer"`` needs ``Recorder(..., optimizer_state=True)`` where it has a state.
    parameters, batch_size, products, memory, dtype, progress
        As in :class:`GradientDot`.

    Examples
    --------
    >>> import torch, proponent as pp
    >>> module = torch.nn.Linear(2, 3)
    >>> optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    >>> train = torch.randn(10, 2), torch.randint(3, (10,))
    >>> with pp.Recorder("runs/doc", module, optimizer, loss="cross_entropy", every=1,
    ...                  train=train, overwrite=True) as recorder:
    ...     for batch in torch.arange(10).split(5):
    ...         optimizer.zero_grad()
    ...         logits = module(train[0][batch])
    ...         torch.nn.functional.cross_entropy(logits, train[1][batch]).backward()
    ...         recorder.step(batch)
    ...         optimizer.step()
    >>> run = pp.TrainingRun.load("runs/doc", module)
    >>> pp.TracIn().fit(run, train).influence(train).shape
    (10, 10)
    """

    card: ClassVar[MethodCard] = MethodCard(
        name="TracIn",
        survey_name="TracIn",
        title="Traced Gradient Descent Influence",
        family="dynamic",
        section="5.2.1",
        equations="54",
        paper="Pruthi et al., NeurIPS 2020",
        needs="a recorded training run with parameters at every step (pp.Recorder, every=1)",
        full_complexity="O(bpT)",
        incremental_complexity="O(bpT)",
        space_complexity="O(n + p)",
        storage_complexity="O(pT)",
        assumes=("differentiable", "optimizer"),
        group=True,
        generative=True,
        original_sign="the same",
        cost=_cost,
    )

    def __init__(self, *, update: Update = "gradient", **settings: Unpack[Settings]) -> None:
        super().__init__(**settings)
        self.update = update


class RenormalizedTracIn(EveryStep):
    """TracIn with every gradient replaced by its direction.

    ``I(z_i, z_te) = sum_{t : z_i in B_t} (eta_t / |B_t|) <g_i, g_te> / (||g_i|| ||g_te||)``: as
    :class:`GAS` is to :class:`TracInCP`, so is this to :class:`TracIn`.

    **Source** Hammoudeh and Lowd, CCS 2022; survey section 5.3, its rule of renormalisation
    applied to eq. (54).

    **Differs from the paper in** nothing. A zero gradient has similarity 0 with everything.

    **Cost** As :class:`TracIn`, and the norms.

    Parameters
    ----------
    layerwise : bool
        Whether cosines are those of the layers, averaged over them; see :class:`GAS`.
    parameters, batch_size, products, memory, dtype, progress
        As in :class:`GradientDot`.

    Examples
    --------
    >>> import torch, proponent as pp
    >>> module = torch.nn.Linear(2, 3)
    >>> optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    >>> train = torch.randn(10, 2), torch.randint(3, (10,))
    >>> with pp.Recorder("runs/doc", module, optimizer, loss="cross_entropy", every=1,
    ...                  train=train, overwrite=True) as recorder:
    ...     for batch in torch.arange(10).split(5):
    ...         optimizer.zero_grad()
    ...         logits = module(train[0][batch])
    ...         torch.nn.functional.cross_entropy(logits, train[1][batch]).backward()
    ...         recorder.step(batch)
    ...         optimizer.step()
    >>> run = pp.TrainingRun.load("runs/doc", module)
    >>> pp.RenormalizedTracIn().fit(run, train).influence(train).shape
    (10, 10)
    """

    normalise_train = normalise_test = True
    card: ClassVar[MethodCard] = MethodCard(
        name="RenormalizedTracIn",
        title="Renormalised TracIn",
        family="dynamic",
        section="5.3",
        paper="Hammoudeh and Lowd, CCS 2022",
        needs="a recorded training run with parameters at every step (pp.Recorder, every=1)",
        full_complexity="O(bpT)",
        incremental_complexity="O(bpT)",
        space_complexity="O(n + p)",
        storage_complexity="O(pT)",
        assumes=("differentiable", "optimizer"),
        generative=True,
        original_sign="the same",
        cost=_cost,
    )

    def __init__(self, *, layerwise: bool = False, **settings: Unpack[Settings]) -> None:
        super().__init__(**settings)
        self.layerwise = layerwise
