"""RPS-LJE: representers by a local Jacobian expansion (survey section 5.1.2.3)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor
from typing_extensions import override

from proponent.card import MethodCard
from proponent.data import Instances
from proponent.exceptions import InvalidInputError
from proponent.gradients.linear_head import HeadCurvature
from proponent.gradients.solvers.choose import FACTORISED
from proponent.gradients.solvers.conjugate_gradients import ConjugateGradients
from proponent.gradients.solvers.explicit import Explicit
from proponent.gradients.solvers.lanczos import extreme_eigenvalues
from proponent.gradients.solvers.solution import Solver
from proponent.gradients.weight_decay import check_amount
from proponent.models.torch import check_finite
from proponent.static.chosen_inverse import RELATIVE_DAMPING
from proponent.static.directions import Signed
from proponent.static.head_method import HeadMethod
from proponent.static.head_query import HeadQuery, MatrixQuery

if TYPE_CHECKING:
    from typing_extensions import Self


def _cost(*, n: int, n_test: int, **_: Any) -> float:
    return (n + n_test) / 3


class RPSLJE(HeadMethod):
    r"""What each training instance contributes to a Newton step of the last layer.

    ``I(z_i, z_te) = <w_i, v_te f_te^T>`` with
    ``w_i = (1/n) (theta' - (H + damping 1)^{-1} dloss_i / dtheta')``: theta' are the weights of
    the last linear layer after one step of gradient *ascent* on the mean training risk, and
    gradients and Hessian H of the mean risk are taken there. The w_i sum up to the layer after
    a Newton step from theta', where a stationary point is expected: no refit is needed.

    The theta' is the same in every w_i. What ranks the training instances is
    ``-(1/n) v_te f_te^T . (H + damping 1)^{-1} dloss_i / dtheta'``: the influence function of the
    last layer on the output instead of the risk.

    **Source** Sui, Wu and Sanner, "Representer point selection via local Jacobian expansion",
    NeurIPS 2021; survey section 5.1.2.3.

    **Differs from the paper in** that w_i is never divided by f_i, entry by entry, and multiplied
    with it again (their alpha_i, which a feature of 0 breaks), and in the damping: the Hessian of
    a softmax layer is singular.

    Scores are ``(n_test, n_train)``. By default v_te is the unit vector of the test instance's
    class (for a single logit ``2 y - 1``), and a score is a contribution to its logit: positive
    means that the training instance raises it. With ``signed="loss"``, and for a regression,
    v_te is ``-dloss/doutput`` of the test instance, so that positive lowers its risk. They are no
    leave-one-out differences; each contains 1/n of the output at theta'.

    **Cost** Upfront a forward pass an instance, and ``O(n q^2 + q^3)`` for the Hessian of the
    layer's q weights in closed form (beyond 2,000 conjugate gradients); for a test instance a
    forward pass, a solve and n q multiplications.

    Parameters
    ----------
    learning_rate : float
        Of the one step of ascent; 0 takes the weights as they are.
    damping : float, optional
        Added to the diagonal of H, in the units of the mean risk's Hessian. None: a thousandth
        of its largest eigenvalue. It is reported.
    solver : "auto" or a solver
        How the systems of H are solved; ``auto`` factorises it up to 2,000 weights, and takes
        preconditioned conjugate gradients beyond.
    signed, batch_size, dtype, progress
        As in :class:`~proponent.static.head_method.HeadMethod`.

    Attributes
    ----------
    damping_ : float
        The damping used.

    Examples
    --------
    >>> import torch, proponent as pp
    >>> module = torch.nn.Sequential(torch.nn.Linear(2, 5), torch.nn.ReLU(), torch.nn.Linear(5, 3))
    >>> train = torch.randn(10, 2), torch.randint(3, (10,))
    >>> model = pp.TorchModel(module, loss="cross_entropy")
    >>> pp.RPSLJE(damping=0.01).fit(model, train).influence(train).shape
    (10, 10)
    """

    card: ClassVar[MethodCard] = MethodCard(
        name="RPSLJE",
        survey_name="RPS-LJE",
        title="Representer Point Based on Local Jacobian Expansion",
        family="static",
        section="5.1.2.3",
        equations="46",
        paper="Sui, Wu and Sanner, NeurIPS 2021",
        needs="a trained torch module whose last layer is linear (pp.TorchModel)",
        full_complexity="O(nq^2 + q^3), q parameters of the last layer",
        incremental_complexity="O(nq)",
        space_complexity="O(n + q^2)",
        storage_complexity="0",
        assumes=("differentiable", "linear"),
        original_sign="the contribution to the pre-activation of the test label, not to its risk",
        cost=_cost,
    )

    def __init__(
        self,
        learning_rate: float = 0.01,
        *,
        damping: float | None = None,
        solver: str | Solver = "auto",
        signed: Signed | None = None,
        batch_size: int | None = None,
        dtype: str = "float64",
        progress: bool | None = None,
    ) -> None:
        super().__init__(signed=signed, batch_size=batch_size, dtype=dtype, progress=progress)
        self.learning_rate = learning_rate
        self.damping = damping
        self.solver = solver

    def fit(self, model: Any, train: Any, *, ids: Any = None) -> Self:
        """Take a trained model and its training set, and prepare the layer's Hessian.

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
            If the Hessian, damped, is singular or indefinite.
        """
        rate = check_amount("learning_rate", self.learning_rate)
        damping = None if self.damping is None else check_amount("damping", self.damping)
        if isinstance(self.solver, str) and self.solver != "auto":
            raise InvalidInputError(f"solver={self.solver!r}: expected 'auto' or a solver.")
        study = self._look(model, train, ids)
        head = study.head(study.readout)
        theta = head.theta + rate * head.value_and_gradient(head.theta)[1]
        slopes = head.slopes(theta)
        check_finite(slopes, study.train.ids, "derivative of the loss by the output")
        curvature = HeadCurvature(head, theta, progress=self.progress)
        if damping is None:
            _, largest = extreme_eigenvalues(curvature.matvec, theta.flatten())
            damping = RELATIVE_DAMPING * max(largest, 0.0)
        self._prepared = self._chosen_solver(curvature, damping).prepare(curvature, damping)
        self.damping_ = damping
        self._study = study
        self._theta = theta
        self._coefficients = slopes
        self.train_ = study.train
        return self

    def _chosen_solver(self, curvature: HeadCurvature, damping: float) -> Solver:
        if not isinstance(self.solver, str):
            return self.solver
        if curvature.size <= FACTORISED or damping == 0:
            return Explicit()
        return ConjugateGradients(preconditioner=curvature.kronecker(damping))

    @override
    def _head_query(self, inputs: Tensor, directions: Tensor) -> MatrixQuery:
        return self._solved(directions[:, :, None] * inputs[:, None, :])

    @override
    def _joint_query(self, instances: Instances) -> HeadQuery:
        readout = self._study.layer.read(instances)
        directions = self._study.directions(readout, self._theta)
        return self._solved((directions.T @ self._study.inputs(readout))[None])

    def _solved(self, matrices: Tensor) -> MatrixQuery:
        """Return the query of matrices ``v f^T``, (k, C, d), or sums of them."""
        n = len(self._coefficients)
        solution = self._prepared.solve(matrices.flatten(1))
        constants = (matrices * self._theta).sum((1, 2)) / n
        noticed = solution.diagnostics()
        return MatrixQuery(solution.vectors.view_as(matrices) / -n, constants, noticed=noticed)

    @override
    def _diagnostics(self, query: HeadQuery | None) -> dict[str, Any]:
        study = self._study
        seen = {"layer": study.layer.name, "signed": study.signed, "damping": self.damping_}
        return seen if query is None else {**seen, **query.noticed}
