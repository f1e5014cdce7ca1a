"""TREX: representer points of tree ensembles (survey section 5.1.2.3)."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Unpack, override

from proponent.card import MethodCard
from proponent.exceptions import InvalidInputError
from proponent.trees.losses import Logistic, Softmax, Squared, Values, softmax
from proponent.trees.method import TreeMethod, TreeSettings
from proponent.trees.tree_kernels import Kernel, tree_kernel
from proponent.trees.trex_surrogate import Surrogate, SurrogateLoss, fit_surrogate
from proponent.trees.view import LeafRows, LeafView

CONSTANT = 0.1  # of the spread of the ensemble's predictions: a surrogate that hardly varies
LARGE = 0.1  # changes of scores from which on a difference of risks is as precise as their change


class TREX(TreeMethod):
    r"""What each training instance adds to the prediction of a linear model on tree features.

    .. math::
        I(z_i, z_{te}) = L\bigl(y_{te}, \tilde f(z_{te}) - \alpha_i k(i, te)\bigr)
        - L\bigl(y_{te}, \tilde f(z_{te})\bigr),
        \qquad \tilde f(x) = \sum_i \alpha_i k(x_i, x)

    with a tree kernel k and the surrogate :math:`\tilde f`, which is fitted to the labels of the
    training set on the features of the ensemble's leaves. "I(z_i, z_te) =" is what the risk of
    the surrogate would be more without the term of the training instance.

    **Source** Brophy, Hammoudeh and Lowd, JMLR 2023; survey section 5.1.2.3.

    **Differs from the paper in** the fit, which goes on to the minimum, where the sum above is
    exact (theirs is gradient descent that stops at 1/200 of the first gradient; their values for
    a regression lack a factor 2); in trees that all classes share, which a kernel without leaf
    values counts once; in the scale of ``weight_decay``, twice theirs, for the
    objective here is ``mean risk + (weight_decay / 2) ||W||^2``; and in sample weights. Like
    theirs the fit is to the true labels and not to the ensemble's predictions, without an
    intercept, and for a regression to the squared error without a half.

    With the defaults, which are the paper's, the surrogate often hardly varies, and its ranking
    is that of :class:`TreeSim`. The diagnostics compare it with the ensemble's predictions, and
    warn; ``kernel="lp"`` follows the ensemble more closely.

    Scores are ``(n_test, n_train)`` in units of the surrogate's risk (nats, or half the squared
    error); positive means that without its term the risk would be larger.

    **Cost** Upfront a fit of some tens of passes over the leaves of the training set, some
    hundreds for "lp"; for each test instance and tree the training instances in its leaf.

    Parameters
    ----------
    kernel : "lpw", "lp", "lo", "low" or "to"
        The feature of a leaf, as in :class:`TreeSim`.
    weight_decay : float
        Of the surrogate; positive. 0.006 is the paper's 0.003.
    tolerance : float
        How far the surrogate's scores may be from ``sum_i alpha_i k(i, .)``, relative to the
        largest.
    approximate
        As in :class:`TreeMethod`.

    Attributes
    ----------
    alphas_ : ndarray of shape (n, C)
        The representer values, for C = 1 score of two classes or a regression, or a score for
        each class or target.

    Examples
    --------
    >>> import proponent as pp
    >>> from sklearn.datasets import load_breast_cancer
    >>> from sklearn.ensemble import GradientBoostingClassifier
    >>> X, y = load_breast_cancer(return_X_y=True)
    >>> train, test = (X[:400], y[:400]), (X[400:], y[400:])
    >>> model = GradientBoostingClassifier(n_estimators=20, random_state=0).fit(*train)
    >>> method = pp.TREX(kernel="lp").fit(model, train)
    >>> round(method.influence(test).diagnostics["surrogate_correlation"], 1)
    1.0
    """

    card: ClassVar[MethodCard] = MethodCard(
        name="TREX",
        survey_name="TREX",
        title="Tree-Ensemble Representer-Point Explanations",
        family="trees",
        section="5.1.2.3",
        paper="Brophy, Hammoudeh and Lowd, JMLR 2023",
        needs="a fitted tree ensemble of XGBoost, LightGBM, CatBoost or scikit-learn",
        full_complexity="O(snT), s solver steps",
        incremental_complexity="O(nT)",
        space_complexity="O(nT)",
        storage_complexity="0",
        assumes=("differentiable", "convex", "stationary", "linear"),
        original_sign="the same",
    )

    alphas_: Values

    def __init__(
        self,
        *,
        kernel: Kernel = "lpw",
        weight_decay: float = 0.006,
        tolerance: float = 1e-10,
        **settings: Unpack[TreeSettings],
    ) -> None:
        super().__init__(**settings)
        self.kernel = kernel
        self.weight_decay = weight_decay
        self.tolerance = tolerance

    @override
    def _check(self, view: LeafView) -> None:
        for name in ("weight_decay", "tolerance"):
            value = getattr(self, name)
            number = isinstance(value, (int, float, np.number)) and not isinstance(value, bool)
            if not number or not np.isfinite(value) or value <= 0:
                raise InvalidInputError(f"{name}={value!r}: expected a finite number above 0.")
        kernel, loss = tree_kernel(view, self.kernel), _loss_of(view)
        surrogate = fit_surrogate(
            kernel,
            view.train,
            loss,
            _targets(view, view.train),
            view.weights,
            float(self.weight_decay),
            float(self.tolerance),
        )
        noticed = _compare(view, surrogate, loss)
        # Last, so that a fit that fails leaves the method as it was.
        self._kernel, self._loss, self._surrogate, self._noticed = kernel, loss, surrogate, noticed
        self.alphas_ = surrogate.alphas.T

    # Scores

    def surrogate_scores(self, data: Any) -> Values:
        """Return what the surrogate predicts, ``(m, C)``: ``sum_i alpha_i k(x_i, x)``.

        Parameters
        ----------
        data : (X, y) or Instances

        Returns
        -------
        ndarray of shape (m, C)
            Logits, or the predictions of a regression.
        """
        self._rows(None)  # fitted?
        rows = self._place(self._tests(data, None))
        return np.ascontiguousarray(self._kernel.predict(rows, self._surrogate.weights).T)

    @override
    def _scores(self, query: LeafRows, rows: range) -> NDArray[np.floating[Any]]:
        products = self._kernel.products(self._train_rows(rows), query)
        alphas = self._surrogate.alphas[:, rows.start : rows.stop]
        scores = self._kernel.predict(query, self._surrogate.weights)
        targets = _targets(self.view_, query)
        for test, row in enumerate(products):
            row[:] = self._change(scores[:, [test]], -alphas * row, targets[..., [test]])
        return products

    @override
    def _self_scores(self, rows: range) -> NDArray[np.floating[Any]]:
        train, part = self._train_rows(rows), slice(rows.start, rows.stop)
        removed = -self._surrogate.alphas[:, part] * self._kernel.norms(train)
        return self._change(self._surrogate.scores[:, part], removed, _targets(self.view_, train))

    def _change(self, scores: Values, moves: Values, targets: NDArray[Any]) -> Values:
        """Return what moves of the scores, ``(C, n)``, add to the risk, ``(n,)``.

        Where moves are small the difference of two risks would be rounding.
        """
        if self._loss.loss.name == "squared":
            return np.asarray((moves * (scores - targets + 0.5 * moves)).sum(axis=0))
        if self._loss.loss.name == "logistic":
            scores = np.concatenate([np.zeros_like(scores), scores])
            moves = np.concatenate([np.zeros_like(moves), moves])
            targets = targets.astype(np.intp)
        moves = moves - moves[targets, np.arange(moves.shape[1])]
        # What is added is log sum_c p_c e^move_c.
        with np.errstate(over="ignore", invalid="ignore"):  # of large moves, taken below
            change = np.log1p((softmax(scores) * np.expm1(moves)).sum(axis=0))
        large = np.abs(moves).max(axis=0) > LARGE
        if large.any():
            scores = np.broadcast_to(scores, moves.shape)[:, large]
            change[large] = _log_sum(scores + moves[:, large]) - _log_sum(scores)
        return np.asarray(change)

    @override
    def _diagnostics(self, query: Any) -> dict[str, Any]:
        noticed = super()._diagnostics(query)
        noticed |= {
            "targets": "the true labels",
            "surrogate_residual": self._surrogate.residual,
            "solver_products": self._surrogate.products,
            **self._noticed,
        }
        warnings = list(noticed.get("warnings", []))
        if self._surrogate.residual > self.tolerance:
            warnings.append(
                f"the surrogate is short of its minimum: its scores depart from the sum over the "
                f"training instances by {self._surrogate.residual:.1e} of the largest; a larger "
                f"weight_decay makes it easier."
            )
        if self._noticed["surrogate_spread"] < CONSTANT * self._noticed["model_spread"]:
            advice = "kernel='lp'" if self.kernel != "lp" else "a smaller weight_decay"
            warnings.append(
                f"the surrogate is nearly constant: its predictions spread by "
                f"{self._noticed['surrogate_spread']:.2g}, the ensemble's by "
                f"{self._noticed['model_spread']:.2g}, so the ranking is that of the kernel "
                f"alone, as in TreeSim; {advice} follows the ensemble more closely."
            )
        if warnings:
            noticed["warnings"] = warnings
        return noticed


def _loss_of(view: LeafView) -> SurrogateLoss:
    if view.classes is None:
        outputs = np.atleast_2d(view.train.targets).shape[0]
        return SurrogateLoss(Squared(outputs), outputs, 2.0)
    if len(view.classes) == 2:
        return SurrogateLoss(Logistic(), 1, 1.0)
    return SurrogateLoss(Softmax(len(view.classes)), len(view.classes), 1.0)


def _targets(view: LeafView, rows: LeafRows) -> NDArray[Any]:
    """Return targets as the surrogate's loss takes them, ``(n,)`` or ``(C, n)``."""
    if view.classes is None:
        return rows.targets
    return rows.labels.astype(np.float64 if len(view.classes) == 2 else np.intp)


def _compare(view: LeafView, surrogate: Surrogate, of: SurrogateLoss) -> dict[str, Any]:
    """Return how the surrogate's predictions of the training set go along with the ensemble's."""
    own = of.loss.link(surrogate.scores)
    raw = view.raw(view.train)
    model = view.loss.link(raw) if view.kind == "boosting" else raw
    if len(model) > len(own):
        model = model[1:]  # a forest of two classes
    own, model = (each - each.mean(axis=1, keepdims=True) for each in (own, model))
    spreads = [float(np.sqrt(np.square(each).mean())) for each in (own, model)]
    product = float((own * model).mean())
    return {
        "surrogate_spread": spreads[0],
        "model_spread": spreads[1],
        "surrogate_correlation": product / (spreads[0] * spreads[1]) if all(spreads) else None,
    }


def _log_sum(scores: Values) -> Values:
    return np.asarray(np.logaddexp.reduce(scores, axis=0))
