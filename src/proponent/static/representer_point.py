"""Representer points: a prediction as a sum over the training instances (survey section 5.1.2)."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

from torch import Tensor
from typing_extensions import override

from proponent.card import MethodCard
from proponent.data import Instances
from proponent.exceptions import InvalidInputError
from proponent.gradients.method import divide
from proponent.gradients.solvers.solution import check_positive
from proponent.gradients.weight_decay import check_amount
from proponent.static.directions import Signed, own_loss
from proponent.static.head_fit import PenalisedHead, newton, paper_descent
from proponent.static.head_method import HeadMethod
from proponent.static.head_query import HeadQuery, OuterQuery
from proponent.static.representers import Reconstruction, Representers

if TYPE_CHECKING:
    from typing_extensions import Self

Targets = Literal["outputs", "labels"]
Solver = Literal["newton", "paper"]


def _cost(*, n: int, n_test: int, **_: Any) -> float:
    return (n + n_test) / 3


class RepresenterPoint(HeadMethod):
    r"""What each training instance contributes to a prediction of the last layer.

    ``I(z_i, z_te) = <alpha_i, v_te> <f_i, f_te>`` with
    ``alpha_i = -(1 / (weight_decay n)) dloss_i / doutput``: the features f enter the last linear
    layer, whose weights theta are refitted with weight decay to a stationary point. There
    ``theta = sum_i alpha_i f_i^T``, so that the scores of all training instances sum up to the
    output of the refitted layer in the direction v_te.

    **Source** Yeh, Kim, Yen and Ravikumar, "Representer point selection", NeurIPS 2018 (Yeh et
    al.); survey eqs. (36)-(46), with the norm of (36) squared.

    **Differs from the paper in** the fit, which goes on to a stationary point
    (``solver="paper"`` stops where Yeh et al. do); in the scale of ``weight_decay``, twice
    theirs, for the objective here is ``mean risk + (weight_decay / 2) ||theta||^2``; and in that
    outputs have a sign for regression and single logits too. The bias is the weight of a constant
    feature and decays as the others, as in their code.

    Scores are ``(n_test, n_train)``. By default v_te is the unit vector of the test instance's
    class (for a single logit ``2 y - 1``), and a score is a contribution to its logit: positive
    means that the training instance raises it. This is no change of the test risk, and no
    leave-one-out difference. With ``signed="loss"`` v_te is ``-dloss/doutput`` of the test
    instance, and a score what the contribution takes off its risk, to first order; for a
    regression there is nothing else, as a larger output is in itself neither good nor bad.

    **Cost** Upfront a forward pass an instance, and the fit on n features, which is small beside
    it; for a test instance a forward pass and n (C + d) multiplications, C outputs, d features.

    Parameters
    ----------
    weight_decay : float
        Of the refitted layer; positive. 0.006 is the paper's 0.003.
    targets : "outputs" or "labels"
        What the layer is refitted to: the network's own predictions (its softmax, its sigmoid,
        its outputs), which explains the network as it is, but does not see the training labels;
        or these, as wrong labels are to be found by, which explains the refitted layer as a model
        of its own.
    solver : "newton" or "paper"
        Newton steps by conjugate gradients to stationarity; or the paper's gradient descent with
        backtracking, which stops at 1/200 of the first gradient.
    renormalise : bool
        Replace alpha_i by ``alpha_i / ||alpha_i||`` (survey section 5.3), so that instances with
        a large loss do not drown the others. Scores then sum up to nothing in particular.
    tolerance : float
        How far, relatively, theta may be from ``sum_i alpha_i f_i^T`` to count as stationary.
    signed, batch_size, dtype, progress
        As in :class:`~proponent.static.head_method.HeadMethod`.

    Attributes
    ----------
    alphas_ : ndarray of shape (n, C)
        The representer values, as they are before ``renormalise``.

    Examples
    --------
    >>> import torch, proponent as pp
    >>> module = torch.nn.Sequential(torch.nn.Linear(2, 5), torch.nn.ReLU(), torch.nn.Linear(5, 3))
    >>> train = torch.randn(10, 2), torch.randint(3, (10,))
    >>> model = pp.TorchModel(module, loss="cross_entropy")
    >>> method = pp.RepresenterPoint().fit(model, train)
    >>> sums = method.influence(train).values.sum(axis=1)
    >>> logits = method.reconstruction(train).refitted
    >>> bool((abs(sums - logits[range(10), train[1]]) < 1e-8).all())
    True
    """

    card: ClassVar[MethodCard] = MethodCard(
        name="RepresenterPoint",
        survey_name="RP",
        title="Representer Point",
        aliases=("RPS-l2", "representer point selection"),
        family="static",
        section="5.1.2",
        equations="36-46",
        paper="Yeh et al., NeurIPS 2018",
        needs="a trained torch module whose last layer is linear (pp.TorchModel)",
        full_complexity="O(n)",
        incremental_complexity="O(n)",
        space_complexity="O(n + p)",
        storage_complexity="0",
        # Only the loss has to be differentiable (Table 1's asterisk).
        assumes=("differentiable", "convex", "stationary", "linear"),
        original_sign="the contribution to the pre-activation of the test label, not to its risk",
        cost=_cost,
    )

    _renormalised: bool = False

    def __init__(
        self,
        weight_decay: float = 0.006,
        *,
        targets: Targets = "outputs",
        solver: Solver = "newton",
        renormalise: bool = False,
        tolerance: float = 1e-10,
        signed: Signed | None = None,
        batch_size: int | None = None,
        dtype: str = "float64",
        progress: bool | None = None,
    ) -> None:
        super().__init__(signed=signed, batch_size=batch_size, dtype=dtype, progress=progress)
        self.weight_decay = weight_decay
        self.targets = targets
        self.solver = solver
        self.renormalise = renormalise
        self.tolerance = tolerance

    def fit(self, model: Any, train: Any, *, ids: Any = None) -> Self:
        """Take a trained model and its training set, and refit the last layer.

        Parameters
        ----------
        model : TorchModel
            The module and its risk; the chosen parameters do not matter.
        train : (X, y), dict, Dataset or Instances
            The training set.
        ids : array-like of shape (n,), optional
            Unique labels of the training instances.

        Raises
        ------
        InvalidInputError
            If a setting cannot be used, or the module's output is not that of a linear layer
            which sees one feature vector an instance.
        NonFiniteError
            If a feature or a derivative of the loss is not finite; the message names the
            instances.
        SolveError
            If the loss is not convex in the outputs.
        """
        self._check_settings()
        study = self._look(model, train, ids)
        head = study.head(study.readout)
        if self.targets == "outputs":
            head = replace(head, loss=own_loss(study.family, study.readout, study.dtype))
        objective = PenalisedHead(head, float(self.weight_decay))
        if self.solver == "paper":
            fitted = paper_descent(objective, tolerance=self.tolerance)
        else:
            fitted = newton(objective, tolerance=self.tolerance, progress=self.progress)
        representers = Representers(study, objective, fitted)
        alphas = representers.alphas
        self._study = study
        self._theta = representers.theta
        self._representers = representers
        self._renormalised = bool(self.renormalise)
        norms = alphas.norm(dim=1, keepdim=True)
        self._coefficients = divide(alphas, norms) if self._renormalised else alphas
        self.alphas_ = alphas.cpu().numpy()
        self.train_ = study.train
        return self

    def reconstruction(self, data: Any) -> Reconstruction:
        """Return the pre-activations of a set by the network, the refit and the sum.

        Parameters
        ----------
        data : (X, y), dict, Dataset or Instances
            The instances.

        Raises
        ------
        NotFittedError
            If ``fit`` has not been called.
        """
        self._rows(None)
        readout = self._study.layer.read(Instances.of(data, role="data"))
        return self._representers.reconstruction(readout)

    def _check_settings(self) -> None:
        for name, choices in {"targets": Targets, "solver": Solver}.items():
            value = getattr(self, name)
            if value not in get_args(choices):
                raise InvalidInputError(
                    f"{name}={value!r}: expected one of {', '.join(get_args(choices))}."
                )
        check_positive(tolerance=self.tolerance)
        if not check_amount("weight_decay", self.weight_decay) > 0:
            raise InvalidInputError(
                "weight_decay=0: representer values are divided by it, and without it the weights "
                "are no sum over the training instances. Give a positive number."
            )

    @override
    def _head_query(self, inputs: Tensor, directions: Tensor) -> HeadQuery:
        # Renormalised scores sum up to nothing that could be missed.
        bound = None if self._renormalised else self._representers.error_bound(inputs, directions)
        return OuterQuery(directions, inputs, noticed={"decomposition_error_bound": bound})

    @override
    def _is_additive(self) -> bool:
        return not self._renormalised

    @override
    def _diagnostics(self, query: HeadQuery | None) -> dict[str, Any]:
        study = self._study
        seen = {"layer": study.layer.name, "signed": study.signed, **self._representers.noticed}
        return seen if query is None else {**seen, **query.noticed}
