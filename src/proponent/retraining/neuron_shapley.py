"""The Shapley value of a network's units (survey section 4.3.3)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from proponent.card import MethodCard
from proponent.data import Instances
from proponent.exceptions import InvalidInputError, MethodCapabilityError
from proponent.models.torch import TorchModel
from proponent.retraining.coalitions import Coalitions
from proponent.retraining.neuron_game import Layer, NeuronGame, measured_layers
from proponent.retraining.semivalue_method import Sampled, SemivalueMethod
from proponent.retraining.semivalues import Semivalue, ShapleyWeights
from proponent.retraining.settings import HOW, NO_USE, Settings, refuse_ignored

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack


class NeuronShapley(SemivalueMethod):
    r"""The Shapley value of each unit of a trained network: what would be lost without it.

    .. math::

        I(u, z_te) = E_S \bigl[ v(S \cup u) - v(S) \bigr]

    with :math:`v(S)` minus the risk on the test instance of the network in which all units outside
    S give their mean output over the reference set, whatever the input. The columns of the answer
    are units, ``"layer:number"``, not training instances; nothing is trained.

    **Source** Ghorbani and Zou, NeurIPS 2020; survey section 4.3.3.

    **Differs from the paper in** the estimator: the regression of :class:`Shapley`, which gives
    every unit a value and a standard error, where theirs, truncated bandits, looks for the best
    units alone.

    **Cost** a pass over the reference set, then ``n_models`` forward passes over a test set; the
    passes of several coalitions are one.

    Parameters
    ----------
    layers : str or sequence of str, optional
        The modules whose units play, by their names in the network; None: all convolutions and
        linear layers but the last one.
    n_models : int
        Coalitions of units.
    estimator : {"auto", "regression", "means", "permutations", "antithetic", "exact"}
        As in :class:`SemivalueMethod`.
    batch_size : int
        Reference instances in one forward pass.
    **settings
        As in :class:`SubmodelMethod`; there is no ``utility`` but the risk, and nothing to store.

    Examples
    --------
    >>> import torch
    >>> import proponent as pp
    >>> net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
    >>> data = torch.randn(8, 2), torch.arange(8) % 2
    >>> model = pp.TorchModel(net, loss="cross_entropy")
    >>> units = pp.NeuronShapley(estimator="exact").fit(model, data).influence(data)
    >>> [str(unit) for unit in units.train_ids]
    ['0:0', '0:1', '0:2']
    """

    card = MethodCard(
        name="NeuronShapley",
        survey_name="Neuron Shapley",
        title="Shapley Value-Based Neural Explanations",
        family="retraining",
        section="4.3.3",
        paper="Ghorbani and Zou, NeurIPS 2020",
        needs="a trained torch module (pp.TorchModel); it scores units, not training instances",
        full_complexity="O(2^u), u units",
        incremental_complexity="O(2^u)",
        space_complexity="O(u + p)",
        storage_complexity="0",
        original_sign="the same, in the utility of the model (accuracy)",
    )
    _model: TorchModel
    _layers: list[Layer]

    def __init__(
        self,
        layers: str | Sequence[str] | None = None,
        *,
        n_models: int = 2000,
        estimator: Sampled = "auto",
        batch_size: int = 256,
        **settings: Unpack[Settings],
    ) -> None:
        super().__init__(n_models, estimator=estimator, **settings)
        self.layers = layers
        self.batch_size = batch_size

    @override
    def fit(
        self,
        model: Any,
        train: Any = None,
        *,
        ids: Any = None,
        groups: Any = None,
        test: Any = None,
    ) -> Self:
        """Take the network, and the mean output of its units over a reference set.

        Parameters
        ----------
        model : TorchModel
            The trained network with its risk.
        train : (X, y), dict, Dataset or Instances
            The reference set.
        ids, groups
            None: units have their own names, and play alone.
        test : (X, y), dict, Dataset or Instances, optional
            What ``influence()`` without a test set answers for.

        Raises
        ------
        InvalidInputError
            If the model is of another kind, or a hyperparameter is out of range.
        """
        if not isinstance(model, TorchModel):
            raise self._wrong_kind(model)
        for name, given in (("ids", ids), ("groups", groups)):
            if given is not None:
                raise InvalidInputError(f"{name}: the players are units, with names of their own.")
        if self.utility != "risk":
            raise InvalidInputError(f"utility: units are scored by the risk; got {self.utility!r}.")
        refuse_ignored(self, dict.fromkeys(("empty", *HOW), NO_USE), "a trained network has")
        if train is None:
            raise InvalidInputError("train: pass a reference set, fit(model, (X, y)).")
        reference = Instances.of(train)
        if not len(reference):
            raise InvalidInputError("train: the set is empty; pass at least one instance.")
        self._check_settings()
        self._game, self._submodels, self._given_table = None, None, None
        self._model = model
        self._layers = measured_layers(model, self.layers, reference, self.batch_size)
        names = np.array(
            [f"{layer.name}:{unit}" for layer in self._layers for unit in range(layer.units)]
        )
        self.train_ = Instances.of((np.arange(len(names)),), ids=names)
        self._given_test = None if test is None else self._tests(test, None)
        self._train()
        return self

    @override
    def _settings(self) -> dict[str, Any]:
        return {name: value for name, value in super()._settings().items() if name != "empty"}

    @override
    def _semivalue(self) -> Semivalue:
        return ShapleyWeights()

    @override
    def _self_scores(self, rows: range) -> NDArray[np.float64]:
        raise MethodCapabilityError(
            "NeuronShapley has no memorization: its players are units, not training instances. "
            "Shapley scores those."
        )

    @override
    def _utilities(
        self, instances: Instances | None, coalitions: Coalitions
    ) -> NDArray[np.float64]:
        test = self._given_test if instances is None else instances
        if test is None:
            return super()._utilities(None, coalitions)
        return NeuronGame(self._model, self._layers, test).utilities(coalitions)
