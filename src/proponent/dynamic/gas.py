"""GAS: directions of gradients at checkpoints, not their lengths (survey section 5.3)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from proponent.card import MethodCard
from proponent.dynamic.along_run import AlongRun, RunSettings

if TYPE_CHECKING:
    from typing_extensions import Unpack


def _cost(*, n: int, n_test: int, checkpoints: int = 1, **_: Any) -> float:
    return float(checkpoints * (n + n_test))


class GAS(AlongRun):
    """Gradient aggregated similarity: cosines of gradients at checkpoints.

    ``I(z_i, z_te) = sum_c eta_c <g_i, g_te> / (||g_i|| ||g_te||)``: every instance counts by the
    direction of its gradient, so that the few with large gradients do not drown the others.
    ``|I| <= sum_c eta_c``, which is the influence of an instance on itself.

    **Source** Hammoudeh and Lowd, CCS 2022; survey eq. (67).

    **Differs from the paper in** nothing. The released code weights by the learning rate over the
    batch size (``scale_by_batch=True``) and adds weight decay to the gradients, which the
    formula does not; it floors squared norms at 1e-8 where they are 0. Here a zero gradient has
    similarity 0 with everything. With several parameter groups the inner product is weighted by
    the learning rates, the norms are not.

    Layer-wise (GAS-L), the cosine is had of each layer, a module's own parameters together, and
    averaged over the layers, so that none drowns the others; a layer in which one of the two
    gradients is 0 has the similarity 0.

    Scores are ``(n_test, n_train)``, in units of the learning rate.

    **Cost** As :class:`TracInCP`, and the norms.

    Parameters
    ----------
    layerwise : bool
        Whether cosines are those of the layers, averaged.
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
    >>> pp.GAS().fit(run, train).influence(train).shape
    (10, 10)
    """

    normalise_train = normalise_test = True
    card: ClassVar[MethodCard] = MethodCard(
        name="GAS",
        survey_name="GAS",
        title="Gradient Aggregated Similarity",
        family="dynamic",
        section="5.3",
        equations="67",
        paper="Hammoudeh and Lowd, CCS 2022",
        needs="a recorded training run (pp.Recorder)",
        full_complexity="O(npK), K checkpoints",
        incremental_complexity="O(npK), K checkpoints",
        space_complexity="O(n + p)",
        storage_complexity="O(pK), K checkpoints",
        assumes=("differentiable", "optimizer"),
        generative=True,
        original_sign="the same",
        cost=_cost,
    )

    def __init__(self, *, layerwise: bool = False, **settings: Unpack[RunSettings]) -> None:
        super().__init__(**settings)
        self.layerwise = layerwise
