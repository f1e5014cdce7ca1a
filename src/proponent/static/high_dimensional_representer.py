r"""High-dimensional representers: sparse and low-rank models as sums over their training set."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, get_args

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from proponent._results.checks import as_count
from proponent.card import MethodCard
from proponent.data import Instances
from proponent.exceptions import InvalidInputError
from proponent.method import InfluenceMethod
from proponent.static.high_dimensional.coerce import study_of
from proponent.static.high_dimensional.decomposition import Asked, Decomposition, Signed
from proponent.static.high_dimensional.estimators import UnsuitableEstimatorError
from proponent.static.high_dimensional.kernels import Form
from proponent.static.high_dimensional.study import Refinement, Study

if TYPE_CHECKING:
    from typing_extensions import Self


class HighDimensionalRepresenter(InfluenceMethod):
    r"""The share of each training instance in a prediction of a sparse or low-rank model.

    For a linear model at the minimum of ``(1/n) sum_i loss_i + lambda r(theta)``, with
    ``alpha_i = -(1 / (lambda n)) d loss_i / d yhat_i``,

        I(z_i, z_te) = alpha_i K(x_i, x_te),      sum_i I(z_i, z_te) = yhat_te,

    with a kernel by the subdifferential of the regulariser r:

    - L1 norm: ``K = x_i^T diag(|theta|) x_te``; features that were dropped count for nothing;
    - elastic net, ``rho ||theta||_1 + (1 - rho) / 2 ||theta||^2``: ``diag(|theta| / (rho +
      (1 - rho) |theta|))``;
    - nuclear norm, ``Theta = U S V^T``: ``<U S U^T X_i, X_te>`` or ``<X_i V S V^T, X_te>``;
    - matrix factorisation under weight decay: ``V_{v_i}^T V_v`` for ratings of the same user (the
      form ``"items"``), ``U_{u_i}^T U_u`` for those of the same item (``"users"``), else 0.

    **Source** Tsai et al., ICML 2023; survey section 5.1.2.3, eq. (47). Of nuclear norm and
    factorisation each of the two forms sums to the prediction, so half of each does too: the
    default.

    **Differs from the paper in** the intercept: one that was not penalised is no sum over the
    training set, and is left out of the scores; ``diagnostics`` say how large it is. And in what
    is given back with the scores: how far they are from summing to the prediction, which is the
    residual of the optimality conditions divided by lambda.

    Scores are ``(n_test, n_train)``. Signed by the logit they are contributions to the logit of
    the test instance's class (with one logit for two classes, to its negative for the first);
    signed by the loss, ``<alpha_i, -d loss_te / d yhat_te> K``, to minus the test risk, to first
    order in the outputs. In both, positive means that the training instance helps. Signed by the
    prediction they are contributions to the one number that is predicted: positive raises it.

    **Cost** Upfront one prediction of the training set; for a test instance ``O(n s)``, s the
    features that are not dropped (of all outputs, signed by the loss), and for ratings ``O(r)``
    for each training rating of the same user or item. Memory is n times s. Joint influence and
    the error of the sums never form the scores of single tests: ``O((n + n_test) s)``.

    Parameters
    ----------
    signed : "logit", "loss", "prediction" or None
        What a score is a contribution to, as above. None: the logit where the loss has classes,
        else the loss. The prediction needs a model with one output, and no test labels (which a
        scikit-learn estimator's sets have all the same).
    form : "both", "items" or "users"
        For matrices: which instances speak for a prediction. Users are rows.
    refine : bool
        Solve the model's own objective on, from where it is, to a relative residual of 1e-10,
        and explain that solution. False explains the model as it is, and warns when its scores
        do not sum to its predictions.
    max_iterations : int
        Largest number of steps of the refinement.
    batch_size : int, optional
        Instances in a forward pass of a torch module; None: 512. It does not change the numbers.
    progress : bool, optional
        Whether to show a progress bar; None shows one on a terminal when the work lasts.

    Attributes
    ----------
    alphas_ : ndarray of shape (n, k)
        The representer values, of each of k outputs.

    Examples
    --------
    >>> import numpy as np, proponent as pp
    >>> from sklearn.datasets import load_diabetes
    >>> from sklearn.linear_model import Lasso
    >>> X, y = load_diabetes(return_X_y=True)
    >>> lasso = Lasso(alpha=0.1, tol=1e-12).fit(X, y)
    >>> method = pp.HighDimensionalRepresenter(signed="prediction").fit(lasso, (X, y))
    >>> scores = method.influence((X[:5], y[:5])).values
    >>> bool(np.allclose(scores.sum(axis=1) + lasso.intercept_, lasso.predict(X[:5])))
    True
    """

    card: ClassVar[MethodCard] = MethodCard(
        name="HighDimensionalRepresenter",
        survey_name="High Dim. Rep.",
        title="High-Dimensional Representers",
        family="static",
        section="5.1.2.3",
        equations="47",
        paper="Tsai et al., ICML 2023",
        needs=(
            "a model fitted with a sparse or low-rank penalty: a scikit-learn linear model, or a "
            "pp.SparseLastLayer, pp.MatrixFactorisation or pp.LowRankModel"
        ),
        full_complexity="O(n)",
        incremental_complexity="O(n)",
        space_complexity="O(n + p)",
        storage_complexity="0",
        assumes=("differentiable", "convex", "stationary", "linear"),
        original_sign="the contribution to the pre-activation of the test label, not to its risk",
    )

    def __init__(
        self,
        *,
        signed: Signed | None = None,
        form: Form = "both",
        refine: bool = False,
        max_iterations: int = 10_000,
        batch_size: int | None = None,
        progress: bool | None = None,
    ) -> None:
        self.signed = signed
        self.form = form
        self.refine = refine
        self.max_iterations = max_iterations
        self.batch_size = batch_size
        self.progress = progress

    def fit(self, model: Any, train: Any, *, ids: Any = None) -> Self:
        """Take a fitted model and the set that it was fitted to.

        Parameters
        ----------
        model : scikit-learn estimator, SparseLastLayer, MatrixFactorisation or LowRankModel
            Lasso, ElasticNet, LogisticRegression, SGDClassifier, SGDRegressor or LinearSVC with
            an L1 part in the penalty (also cross-validated, or last in a pipeline), whose
            strength is read; or what says it.
        train : (X, y), dict, Dataset or Instances
            The training set; for ratings pairs of user and item (n, 2) and ratings, or
            ``(users, items, ratings)``.
        ids : array-like of shape (n,), optional
            Unique labels of the training instances.

        Raises
        ------
        InvalidInputError
            If the model or a setting cannot be used.
        NonFiniteError
            If a prediction or the derivative of a loss is not finite.
        """
        for name, known in (("signed", (*get_args(Signed), None)), ("form", get_args(Form))):
            if getattr(self, name) not in known:
                raise InvalidInputError(
                    f"{name}={getattr(self, name)!r}: expected one of "
                    f"{', '.join(map(repr, known))}."
                )
        steps = as_count(self.max_iterations, "max_iterations")
        instances = Instances.of(train, ids=ids)
        if not len(instances):
            raise InvalidInputError("train: the set is empty; fit to at least one instance.")
        self._decomposition = Decomposition.of(
            self._study(model, instances),
            instances,
            form=self.form,
            signed=self.signed,
            refinement=Refinement(steps, self.progress) if self.refine else None,
        )
        self.alphas_ = self._decomposition.kernel.values()
        self.train_ = instances
        return self

    def _study(self, model: Any, train: Instances) -> Study:
        try:
            study = study_of(model, train, batch_size=self.batch_size, progress=self.progress)
        except UnsuitableEstimatorError as error:
            raise InvalidInputError(f"{self._wrong_kind(model)} {error}") from error
        if study is None:
            raise self._wrong_kind(model)
        return study

    @override
    def _is_additive(self) -> bool:
        return True  # the contribution of a group is the sum of its members', exactly

    @override
    def _query(self, instances: Instances) -> Asked:
        return self._decomposition.ask(instances)

    @override
    def _scores(self, query: Asked, rows: range) -> NDArray[np.float64]:
        return self._decomposition.kernel.scores(query.inputs, query.weights, rows)

    @override
    def _joint_scores(self, query: Asked, rows: range) -> NDArray[np.float64]:
        return self._decomposition.kernel.joint(query.inputs, query.weights, rows)

    @override
    def _self_scores(self, rows: range) -> NDArray[np.float64]:
        weights = self._decomposition.weights[rows.start : rows.stop]
        return self._decomposition.kernel.own(weights, rows)

    # What was noticed

    @override
    def _settings(self) -> dict[str, Any]:
        """Return what the numbers depend on: shards scored with other batches still join."""
        same = ("batch_size", "progress")
        return {name: value for name, value in super()._settings().items() if name not in same}

    @override
    def _diagnostics(self, query: Asked | None) -> dict[str, Any]:
        return self._decomposition.diagnostics(query)
