"""What the methods share that explain the outputs of the last linear layer on fixed features."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import override

from proponent.data import Instances
from proponent.exceptions import InvalidInputError
from proponent.gradients.labels import LossFamily, loss_family
from proponent.gradients.last_layer import BATCH_SIZE, LastLayer, Readout
from proponent.gradients.linear_head import LinearHead, Rows
from proponent.method import InfluenceMethod
from proponent.models.torch import TorchModel
from proponent.static.directions import Signed, chosen_sign, label_directions
from proponent.static.head_query import HeadQuery

# Training instances whose influence on themselves is computed at once.
SELF_BLOCK = 256


@dataclass(frozen=True)
class HeadStudy:
    """The last layer of a model, and what it did on the training set.

    Attributes
    ----------
    train : Instances
        The training set.
    layer : LastLayer
        The layer.
    readout : Readout
        Features, outputs and targets of the training set.
    family : LossFamily, optional
        The distribution that the loss belongs to, where it is known.
    signed : "logit" or "loss"
        What positive means.
    dtype : torch.dtype
        Precision of everything behind the features.
    """

    train: Instances
    layer: LastLayer
    readout: Readout
    family: LossFamily | None
    signed: Signed
    dtype: torch.dtype

    def head(self, readout: Readout) -> LinearHead:
        """Return the layer on the features of a readout, with the loss of its targets."""

        def loss(outputs: Tensor, rows: Rows) -> Tensor:
            return readout.loss(outputs, readout.targets[rows])

        return LinearHead.of(self.layer, readout.features, loss, self.dtype)

    def inputs(self, readout: Readout) -> Tensor:
        """Return the features of m instances as the layer's weights meet them, (m, d)."""
        return self.head(readout).inputs(readout.features)

    def directions(self, readout: Readout, theta: Tensor) -> Tensor:
        """Return in which direction outputs help each of m instances, (m, C).

        Where the loss decides, that is minus its derivative by the outputs at weights theta.
        """
        if self.signed == "loss" or self.family is None:
            return -self.head(readout).slopes(theta)
        return label_directions(self.family, readout, self.dtype)


class HeadMethod(InfluenceMethod):
    """Base of the methods that explain the outputs of the last linear layer.

    A subclass's ``fit`` sets ``_study``, ``_theta`` (the weights that it explains, (C, d)) and
    ``_coefficients`` (n, C), and then ``train_``.

    Parameters
    ----------
    signed : "logit", "loss" or None
        What a score is a contribution to: ``"logit"``, the logit of the test instance's class;
        ``"loss"``, minus the test risk, to first order in the outputs. None: the logit where the
        loss has classes, else the loss.
    batch_size : int, optional
        Instances in a forward pass; None: 512. It does not change the numbers.
    dtype : "float64" or "float32"
        Precision of everything behind the features.
    progress : bool, optional
        Whether to show a progress bar; None shows one on a terminal when the work lasts.
    """

    _study: HeadStudy
    _theta: Tensor
    _coefficients: Tensor

    def __init__(
        self,
        *,
        signed: Signed | None = None,
        batch_size: int | None = None,
        dtype: str = "float64",
        progress: bool | None = None,
    ) -> None:
        self.signed = signed
        self.batch_size = batch_size
        self.dtype = dtype
        self.progress = progress

    @abstractmethod
    def _head_query(self, inputs: Tensor, directions: Tensor) -> HeadQuery:
        """Return the query of m test instances by inputs (m, d) and directions (m, C)."""

    def _look(self, model: Any, train: Any, ids: Any) -> HeadStudy:
        """Check the settings, and look at the training set once."""
        if not isinstance(model, TorchModel):
            raise self._wrong_kind(model)
        if self.dtype not in ("float64", "float32"):
            raise InvalidInputError(f"dtype must be 'float64' or 'float32'; got {self.dtype!r}.")
        family = loss_family(model)
        signed = chosen_sign(self.signed, family)
        instances = Instances.of(train, ids=ids, role="train")
        size = BATCH_SIZE if self.batch_size is None else self.batch_size
        layer = LastLayer(model, instances, batch_size=size, progress=self.progress)
        held = getattr(torch, self.dtype)
        return HeadStudy(instances, layer, layer.read(instances), family, signed, held)

    @override
    def _query(self, instances: Instances) -> HeadQuery:
        return self._query_of(self._study.layer.read(instances))

    def _query_of(self, readout: Readout) -> HeadQuery:
        directions = self._study.directions(readout, self._theta)
        return self._head_query(self._study.inputs(readout), directions)

    @override
    def _joint_query(self, instances: Instances) -> HeadQuery:
        return self._query(instances).summed()

    @override
    def _joint_scores(self, query: HeadQuery, rows: range) -> NDArray[np.floating[Any]]:
        scores: NDArray[np.floating[Any]] = self._scores(query, rows)[0]
        return scores

    @override
    def _scores(self, query: HeadQuery, rows: range) -> NDArray[np.floating[Any]]:
        chosen = slice(rows.start, rows.stop)
        inputs = self._study.inputs(self._study.readout[chosen])
        scores: NDArray[np.floating[Any]]
        scores = query.scores(self._coefficients[chosen], inputs).cpu().numpy()
        return scores

    @override
    def _self_scores(self, rows: range) -> NDArray[np.floating[Any]]:
        parts = []
        for start in range(rows.start, rows.stop, SELF_BLOCK):
            block = slice(start, min(start + SELF_BLOCK, rows.stop))
            readout = self._study.readout[block]
            query = self._query_of(readout)
            parts.append(query.paired(self._coefficients[block], self._study.inputs(readout)))
        scores: NDArray[np.floating[Any]] = torch.cat(parts).cpu().numpy()
        return scores

    @override
    def _is_additive(self) -> bool:
        return True  # contributions to an output, whatever Table 1 says of leaving groups out

    @override
    def _settings(self) -> dict[str, Any]:
        """Return what the numbers depend on: shards scored with other batches still join."""
        same = ("batch_size", "progress")
        return {name: value for name, value in super()._settings().items() if name not in same}
