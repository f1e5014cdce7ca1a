"""What the methods for tree ensembles share: a leaf view, and test instances placed in it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np
from typing_extensions import override

from proponent._randomness import fixed_randomness
from proponent.data import Instances
from proponent.exceptions import InvalidInputError
from proponent.method import InfluenceMethod
from proponent.trees.losses import Values
from proponent.trees.read import is_ensemble, read
from proponent.trees.view import LeafRows, LeafView

if TYPE_CHECKING:
    from typing_extensions import Self

Margin = Any | Callable[[Any], Any]


class TreeSettings(TypedDict, total=False):
    """Hyperparameters of :class:`TreeMethod`."""

    approximate: bool


class TreeMethod(InfluenceMethod):
    """Base of the methods for tree ensembles.

    Parameters
    ----------
    approximate : bool
        Take a model too whose settings break the formulas (row sampling whose mask is not given,
        monotone constraints, DART, ...), and say so on the result. By default it is refused, by
        the name of the setting.
    """

    view_: LeafView

    def __init__(self, *, approximate: bool = False) -> None:
        self.approximate = approximate

    def fit(
        self,
        model: Any,
        train: Any,
        *,
        ids: Any = None,
        base_margin: Margin = None,
        sample_weight: Any = None,
        sample_mask: Any = None,
    ) -> Self:
        """Read a trained tree ensemble, and the training set it was trained on.

        Parameters
        ----------
        model : estimator, booster or LeafView
            Of XGBoost, LightGBM, CatBoost or scikit-learn (GradientBoosting,
            HistGradientBoosting, RandomForest, ExtraTrees), trained.
        train : (X, y) or Instances
            The whole training set, in the order of training.
        ids : array-like of shape (n,), optional
            Unique labels of the training instances.
        base_margin : array of shape (n,) or (n, K), or callable, optional
            Initial scores (LightGBM's ``init_score``), where the model was trained with some; a
            callable takes features X and returns them, so that test instances have some too.
        sample_weight : array of shape (n,), optional
            Sample weights, where the model was trained with some. Class weights are read.
        sample_mask : array of shape (T, n), optional
            Which instances (or how often) each tree was fitted to, where rows were sampled.

        Raises
        ------
        InvalidInputError
            If the model is of another kind, not fitted, or has settings under which the formulas
            do not hold; or the training set is empty or not the one of the model.
        """
        if not is_ensemble(model):
            raise self._wrong_kind(model)
        instances = Instances.of(train, ids=ids, role="train")
        if not len(instances):
            raise InvalidInputError("train: the set is empty; influence needs instances.")
        with fixed_randomness():  # data sets may draw when they are looked at
            margins = base_margin
            if callable(base_margin):
                margins = base_margin(instances.features("train"))
            view = read(
                model,
                instances,
                base_margin=margins,
                sample_weight=sample_weight,
                sample_mask=sample_mask,
                approximate=self.approximate,
            )
        self._check(view)
        self._margin = base_margin
        self.view_ = view
        self.train_ = instances
        return self

    def _check(self, view: LeafView) -> None:
        """Refuse an ensemble that the method is not defined for, or a wrong hyperparameter."""

    def _query(self, instances: Instances) -> Any:
        return self._place(instances)

    def _place(self, instances: Instances) -> LeafRows:
        """Return the test instances in their leaves."""
        margins = None
        if callable(self._margin):
            margins = self._margin(instances.features("test"))
        elif self._margin is not None:
            raise InvalidInputError(
                "base_margin: test instances need initial scores as well; give fit a callable "
                "that returns them for any features X, base_margin=lambda X: ..."
            )
        with fixed_randomness():
            return self.view_.place(instances, base_margin=margins)

    def _train_rows(self, rows: range) -> LeafRows:
        """Return the training instances at ``rows`` in their leaves."""
        if len(rows) == len(self.train_):
            return self.view_.train
        return self.view_.train.select(slice(rows.start, rows.stop))

    @override
    def _diagnostics(self, query: Any) -> dict[str, Any]:
        view = self.view_
        noticed: dict[str, Any] = {
            "library": view.library,
            "trees": view.n_trees,
            "outputs": view.outputs,
            "loss": view.loss.name,
            "leaf_residual": view.residual,
        }
        if view.notes:
            noticed["notes"] = list(view.notes)
        if view.approximate:
            noticed["approximate"] = list(view.reasons)
            noticed["warnings"] = [
                f"the leaves are not what the formulas make of the training set, so these scores "
                f"are approximate: {'; '.join(view.reasons)}"
            ]
        return noticed


def leaf_sizes(view: LeafView) -> Values:
    """Return the number of training instances of each leaf, flat over all trees, ``(L,)``."""
    sizes = np.zeros(view.n_leaves)
    ones = np.ones((view.outputs, len(view.train)))
    for tree in range(view.n_trees):
        (sizes[view.tree_span(tree)],) = view.leaf_sums(view.train, tree, ones)
    return sizes
