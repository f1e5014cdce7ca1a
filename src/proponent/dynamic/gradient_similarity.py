"""Similarity of gradients at one set of parameters: the model as it is."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, ClassVar

from proponent.card import MethodCard
from proponent.data import Instances
from proponent.gradients.method import GradientMethod, Settings
from proponent.gradients.path import PathPoint
from proponent.models.torch import TorchModel

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack


def _cost(*, n: int, n_test: int, **_: Any) -> float:
    return float(n + n_test)


class _AtTheModel(GradientMethod):
    def fit(self, model: Any, train: Any, *, ids: Any = None) -> Self:
        """Take the model as it is and its training set.

        Parameters
        ----------
        model : TorchModel
            The module, its risk and the chosen parameters.
        train : (X, y), dict, Dataset or Instances
            The training set.
        ids : array-like of shape (n,), optional
            Unique labels of the training instances.

        Raises
        ------
        InvalidInputError
            If the model is of another kind, the set is empty, or the risk of an instance
            depends on the other instances of its batch.
        """
        if not isinstance(model, TorchModel):
            raise self._wrong_kind(model)
        self._prepare(model, train, ids)
        return self

    def _points(self, instances: Instances) -> tuple[PathPoint, ...]:
        return (PathPoint("the model", 1.0, nullcontext),)


class GradientDot(_AtTheModel):
    """Inner product of a training and a test gradient.

    ``I(z_i, z_te) = <g_i, g_te>``, the gradients of the risk at the model's parameters: the
    first-order change of the test risk for a small gradient step on the training instance.

    **Source** Charpiat et al., NeurIPS 2019; TracInCP with one checkpoint and learning rate 1.

    **Differs from the paper in** nothing.

    Scores are ``(n_test, n_train)`` in squared risk over squared parameters; positive means that
    the training instance lowers the test risk.

    **Cost** One forward-backward pass an instance of either set, less the weight gradients, and
    the products. Nothing is stored.

    Examples
    --------
    >>> import torch, proponent as pp
    >>> module = torch.nn.Linear(2, 3)
    >>> train = torch.randn(10, 2), torch.randint(3, (10,))
    >>> model = pp.TorchModel(module, loss="cross_entropy")
    >>> pp.GradientDot().fit(model, train).influence(train).shape
    (10, 10)
    """

    card: ClassVar[MethodCard] = MethodCard(
        name="GradientDot",
        title="Gradient dot product",
        aliases=("Grad-Dot",),
        family="dynamic",
        paper="Charpiat et al., NeurIPS 2019",
        needs="a torch module with its risk (pp.TorchModel)",
        full_complexity="O(np)",
        incremental_complexity="O(np)",
        space_complexity="O(n + p)",
        storage_complexity="0",
        assumes=("differentiable",),
        group=True,
        generative=True,
        original_sign="the same",
        cost=_cost,
    )


class GradientCosine(_AtTheModel):
    """Cosine of a training and a test gradient.

    ``I(z_i, z_te) = <g_i, g_te> / (||g_i|| ||g_te||)``, between -1 and 1: like
    :class:`GradientDot`, but a large gradient alone makes no instance influential. A zero
    gradient has cosine 0 with everything.

    **Source** Charpiat et al., NeurIPS 2019; GAS with one checkpoint and learning rate 1.

    **Differs from the paper in** nothing.

    **Cost** As :class:`GradientDot`, and the norms.

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
    >>> train = torch.randn(10, 2), torch.randint(3, (10,))
    >>> model = pp.TorchModel(module, loss="cross_entropy")
    >>> cosines = pp.GradientCosine().fit(model, train).memorization()
    >>> bool((abs(cosines.values - 1) < 1e-5).all())
    True
    """

    normalise_train = normalise_test = True
    card: ClassVar[MethodCard] = MethodCard(
        name="GradientCosine",
        title="Gradient cosine",
        aliases=("Grad-Cos",),
        family="dynamic",
        paper="Charpiat et al., NeurIPS 2019",
        needs="a torch module with its risk (pp.TorchModel)",
        full_complexity="O(np)",
        incremental_complexity="O(np)",
        space_complexity="O(n + p)",
        storage_complexity="0",
        assumes=("differentiable",),
        generative=True,
        original_sign="the same",
        cost=_cost,
    )

    def __init__(self, *, layerwise: bool = False, **settings: Unpack[Settings]) -> None:
        super().__init__(**settings)
        self.layerwise = layerwise
