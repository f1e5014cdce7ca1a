"""TracInRP: TracInCP on randomly projected gradients (survey section 5.2.1)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import override

from proponent.card import MethodCard
from proponent.data import Instances
from proponent.dynamic.along_run import AlongRun
from proponent.dynamic.checkpoints import LargestRiskChange
from proponent.exceptions import InvalidInputError
from proponent.gradients.method import MEMORY
from proponent.gradients.path import PathPoint, TestSet, batches
from proponent.gradients.products import Query, Way
from proponent.gradients.projection import Kind, ProjectedQuery, Projection
from proponent.models.torch import ParameterChoice, check_finite

if TYPE_CHECKING:
    from typing_extensions import Self


class TracInRP(AlongRun):
    r"""TracInCP on randomly projected gradients.

    ``I(z_i, z_te) = sum_c eta_c <R_c g_i, R_c g_te>`` with random ``R_c`` of k rows and
    ``E R_c^T R_c = 1``: an unbiased estimate of :class:`TracInCP`, whose variance falls as 1/k.
    Each instance becomes one vector of k numbers a checkpoint, which any index of nearest
    neighbours by inner product can hold (:meth:`embeddings`).

    **Source** Pruthi et al., NeurIPS 2020; survey section 5.2.1.

    **Differs from the paper in** the variance of the entries, which has to be 1/k, and in a
    projection of its own for each checkpoint.

    Scores are ``(n_test, n_train)``; positive means that the training instance lowers the test
    risk. With Gaussian entries the variance over projections is
    ``sum_c eta_c^2 (||g_i||^2 ||g_te||^2 + <g_i, g_te>^2) / k``, with ``kronecker`` about twice
    that. Memorization needs no projection: it is TracInCP's.

    **Cost** As :class:`TracInCP`, and k p multiplications an instance and checkpoint (``gaussian``,
    ``rademacher``) or, from the factors of each gradient, far fewer (``kronecker``).

    Parameters
    ----------
    k : int
        Number of dimensions a checkpoint.
    projection : "kronecker", "gaussian" or "rademacher"
        How gradients are projected; see :class:`~proponent.gradients.projection.Projection`.
    seed : int
        Fixes the projections.
    checkpoints, scale_by_batch, parameters, batch_size, products, memory, dtype, progress
        As in :class:`TracInCP`.

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
    >>> pp.TracInRP(k=64).fit(run, train).influence(train).shape
    (10, 10)
    """

    card: ClassVar[MethodCard] = MethodCard(
        name="TracInRP",
        survey_name="TracInRP",
        title="TracIn Random Projection",
        family="dynamic",
        section="5.2.1",
        equations="55",
        paper="Pruthi et al., NeurIPS 2020",
        needs="a recorded training run (pp.Recorder)",
        full_complexity="O(npK), K checkpoints",
        incremental_complexity="O(pK + nkK), K checkpoints, k dimensions",
        space_complexity="O(n + p)",
        storage_complexity="O(pK), K checkpoints",
        assumes=("differentiable", "optimizer"),
        group=True,
        generative=True,
        original_sign="the same",
        cost=lambda *, n, n_test, checkpoints=1, **_: checkpoints * (n + n_test),
    )

    def __init__(
        self,
        k: int = 1024,
        *,
        projection: Kind = "kronecker",
        seed: int = 0,
        checkpoints: Any = "all",
        scale_by_batch: bool = False,
        parameters: ParameterChoice | None = None,
        batch_size: int | None = None,
        products: Way = "auto",
        memory: int = MEMORY,
        dtype: str | None = None,
        progress: bool | None = None,
    ) -> None:
        super().__init__(
            checkpoints=checkpoints,
            scale_by_batch=scale_by_batch,
            parameters=parameters,
            batch_size=batch_size,
            products=products,
            memory=memory,
            dtype=dtype,
            progress=progress,
        )
        self.k = k
        self.projection = projection
        self.seed = seed

    @override
    def fit(self, model: Any, train: Any, *, ids: Any = None) -> Self:
        self._projection("")  # refuses wrong settings before any work
        return super().fit(model, train, ids=ids)

    def embeddings(self, data: Any) -> NDArray[np.floating[Any]]:
        """Return the projected gradients of a set, ``(n, k * checkpoints)``.

        The inner product of two rows is the influence of the one instance on the other: each
        checkpoint's part is scaled by the square root of its learning rate.

        Raises
        ------
        NotFittedError
            If ``fit`` has not been called.
        InvalidInputError
            If the checkpoints depend on the set.
        NonFiniteError
            If a risk or a gradient is not finite.
        """
        self._rows(None)
        if isinstance(self.checkpoints, LargestRiskChange):
            raise InvalidInputError(
                "checkpoints=LargestRiskChange chooses other checkpoints for other sets, whose "
                "embeddings then do not belong together; give 'all', EveryKth(k) or the steps."
            )
        instances = Instances.of(data, role="data")
        parts = []
        for point in self._points(instances):
            with point.enter(), self.model_.evaluating():
                projection = self._projection(point.label)
                projected = self._projected(instances, projection, _roots(point))
                parts.append(projected * math.sqrt(point.weight))
        return torch.cat(parts, 1).cpu().numpy()

    def _projection(self, label: str) -> Projection:
        return Projection(self.k, self.projection, f"{self.seed}/{label}", max(1, self.memory // 2))

    def _projected(
        self, instances: Instances, projection: Projection, scales: Mapping[str, float]
    ) -> Tensor:
        """Return the projected gradients of a set at the current point, ``(n, k)``."""
        rows = []
        cut = batches(len(instances), self._batch_size)
        for batch, gradients in self._captured(instances, cut):
            rows.append(projection(gradients, len(batch), scales))
            check_finite(rows[-1], instances.ids[batch.positions], "gradient")
        return torch.cat(rows)

    def _test_side(self, query: TestSet, point: PathPoint) -> tuple[Query, None]:
        projection = self._projection(point.label)
        scales = _roots(point)
        vectors = self._projected(query.instances, projection, scales)
        if query.joint:
            vectors = vectors.sum(0, keepdim=True)
        return ProjectedQuery(vectors, projection, scales), None


def _roots(point: PathPoint) -> dict[str, float]:
    """Return the share of relative learning rates that either side of a product gets."""
    return {name: math.sqrt(scale) for name, scale in point.scales.items()}
