"""Influence sketching: Cook's distance with leverages of a random projection (section 4.1.3)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from proponent._results.checks import as_count
from proponent.card import MethodCard
from proponent.data import Instances
from proponent.exceptions import InvalidInputError, MethodCapabilityError
from proponent.influence import Influence
from proponent.method import InfluenceMethod
from proponent.retraining.checks import check_choice
from proponent.retraining.closed_forms.cooks import residual_variance
from proponent.retraining.generalised_linear import (
    WeightedLeastSquares,
    is_generalised_linear,
    weighted_least_squares,
)
from proponent.retraining.leverage_sketch import Leverages, Projection, leverages

if TYPE_CHECKING:
    from typing_extensions import Self

Values = NDArray[np.float64]

ALONE = 1e-12  # 1 - leverage, below which a distance is undefined


class InfluenceSketching(InfluenceMethod):
    r"""Which training instances move a linear model most: Cook's distance, from a sketch.

    .. math::
        D_i = \frac{r_i^2\, \tilde h_i}{p \phi (1 - \tilde h_i)^2}

    with the Pearson residual r_i of the fitted model, its dispersion phi, and the leverage of the
    instance in a random subspace of k of the d dimensions of the coefficients; p is the sum of the
    leverages. It screens a training set for instances worth a closer look: one value an instance,
    whatever the test set, and never negative. It is no I(z_i, z_te) = R(z_te; D - z_i) - R(z_te; D)
    and has no ``influence(test)``: ask :meth:`cooks_distance`.

    From ``k = d`` on nothing is projected, and the distances are exactly those of Cook (and, for
    the other generalised linear models, of Pregibon). Below, every leverage is too small, and
    their sum is k (plus 1 for the intercept) instead of d: the ranking is good where k is near the
    rank of the features, and the diagnostics say how much is missing. With ``rescale`` the
    leverages become ``1 - (1 - h)^c``, with the c that gives them the right sum; the ranking
    by leverage stays as it is.

    **Source** Wojnowicz et al., "Influence sketching: Finding influential samples in large-scale
    regressions", IEEE BigData 2016; Cook 1977; Pregibon 1981; survey section 4.1.3 and eq. (5).

    **Differs from the paper in** the division by ``p phi``, which is Cook's own and leaves the
    ranking as it is; and in penalised models, where the penalty enters the leverages as that of
    the projected coefficients, and the numerator has the diagonal of the squared hat matrix in
    place of :math:`\tilde h_i`, so that the distance is that of the fit to the training set. The
    intercept is not projected. The survey argues with distances that a projection to ``log n``
    dimensions preserves; that does not carry over to leverages.

    Values are ``(n_train,)``, in Cook's units: above 1 an instance is commonly taken to be highly
    influential. NaN: its leverage is 1, as it alone has some feature, and the distance undefined.

    **Cost** One training, unless the model is fitted; ``O(ndk)`` for the projection (the number of
    features that are not 0 times k, where they are sparse), ``O(nk^2 + k^3)`` for the leverages.
    Memory is ``O(nk)``.

    Parameters
    ----------
    k : int
        Dimensions of the sketch; ``d`` where there are fewer features.
    projection : {"gaussian", "sparse"}
        Normal numbers; or signs at one in ``sqrt(d)`` places, which is faster.
    rescale : bool or float
        Whether leverages are given the sum that they have without a sketch: the number of
        parameters, or this number (with a penalty, where it has to be known).
    seed : int
        Decides the projection.

    Examples
    --------
    >>> import numpy as np, proponent as pp
    >>> from sklearn.linear_model import LinearRegression
    >>> X = np.arange(6.0)[:, None]
    >>> y = np.array([0.0, 1.1, 1.9, 3.0, 4.1, 9.0])
    >>> sketch = pp.InfluenceSketching().fit(LinearRegression(), (X, y))
    >>> sketch.cooks_distance().values.round(2)
    array([0.35, 0.01, 0.02, 0.07, 0.33, 2.19])
    """

    card: ClassVar[MethodCard] = MethodCard(
        name="InfluenceSketching",
        survey_name="Influence Sketching",
        title="Least Squares Influence Sketching",
        family="retraining",
        section="4.1.3",
        equations="5",
        paper="Wojnowicz et al., IEEE BigData 2016",
        needs="a linear or generalised linear model of scikit-learn",
        full_complexity="O(ndk + nk^2 + k^3), d features sketched to k",
        incremental_complexity="0",
        space_complexity="O(nk)",
        storage_complexity="O(k^2)",
        assumes=("differentiable", "convex", "stationary", "linear"),
        original_sign="none: Cook's distance is not negative",
    )
    marks_unscored: ClassVar[bool] = True
    _distances: Values
    _noticed: dict[str, Any]

    def __init__(
        self,
        k: int = 512,
        *,
        projection: Projection = "gaussian",
        rescale: bool | float = False,
        seed: int = 0,
    ) -> None:
        self.k = k
        self.projection = projection
        self.rescale = rescale
        self.seed = seed

    @override
    def fit(self, model: Any, train: Any, *, ids: Any = None) -> Self:
        """Compute the distances.

        Parameters
        ----------
        model : scikit-learn estimator, or a pipeline that ends in one
            ``LinearRegression``, ``Ridge``, ``LogisticRegression`` of two classes, or a Poisson,
            Gamma or Tweedie regressor. One that is not fitted is cloned and fitted.
        train : (X, y), Dataset or Instances
            The training set of the model.
        ids : array-like of shape (n,), optional
            Unique labels of the training instances.

        Raises
        ------
        InvalidInputError
            If the model is of another kind, does not belong to the training set, fits it
            perfectly, or a hyperparameter is out of range.
        """
        if isinstance(model, type) or not is_generalised_linear(model):
            raise self._wrong_kind(model)
        instances = Instances.of(train, ids=ids)
        if not len(instances):
            raise InvalidInputError("train: the set is empty; fit to at least one instance.")
        check_choice("projection", self.projection, ("gaussian", "sparse"))
        k, seed = as_count(self.k, "k"), self._checked_seed()
        near = weighted_least_squares(model, instances)
        found = leverages(
            near.features,
            near.weights,
            near.intercept,
            near.penalty,
            k,
            self.projection,
            seed,
        )
        self._distances, self._noticed = self._cooks(near, found, k, instances)
        self.train_ = instances
        return self

    @override
    def cooks_distance(self) -> Influence:
        """Return Cook's distance of each training instance, ``(n_train,)``.

        Raises
        ------
        NotFittedError
            If ``fit`` has not been called.
        """
        rows = self._rows(None)
        self._check_finite(self._distances, rows, None)
        return self._answer(self._distances.copy(), rows, None, None, self._diagnostics(None))

    # The frame's hooks

    @override
    def _query(self, instances: Instances) -> NoReturn:
        raise MethodCapabilityError(
            "InfluenceSketching has one value a training instance, whatever the test set: ask "
            "cooks_distance(). For the influence on test instances use LeaveOneOut, which is exact "
            "for linear models, or InfluenceFunctions."
        )

    @override
    def _scores(self, query: Any, rows: range) -> NoReturn:
        raise NotImplementedError("there is no query to have scores of.")

    @override
    def _diagnostics(self, query: Any) -> dict[str, Any]:
        return self._noticed

    # Cook's distance

    def _cooks(
        self, near: WeightedLeastSquares, found: Leverages, k: int, instances: Instances
    ) -> tuple[Values, dict[str, Any]]:
        """Return the distances, and what there is to say about them."""
        d = near.features.shape[1]
        parameters = float(found.values.sum())
        noticed: dict[str, Any] = {
            "k": min(k, d),
            "features": d,
            "exact": k >= d,
            "sum of leverages": parameters,
        }
        gaps, squared = 1 - found.values, found.squared
        total = self._total(near, parameters)
        if total is not None:
            power = _power(gaps, total)
            gaps = gaps**power
            squared = squared * (1 - gaps) / np.maximum(found.values, np.finfo(np.float64).tiny)
            parameters = total
            noticed["sum of leverages, rescaled"] = parameters
        dispersion = _dispersion(near, parameters)
        alone = gaps < ALONE
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            distances = np.square(near.residuals / gaps) * squared / (parameters * dispersion)
        distances[alone] = np.nan
        warnings = []
        if alone.any():
            named = ", ".join(map(str, instances.ids[alone][:10].tolist()))
            warnings.append(
                f"{np.count_nonzero(alone):,} training instances have leverage 1, so that their "
                f"distance is not defined; the first ids: {named}"
            )
        if near.notes:
            noticed["notes"] = list(near.notes)
        return distances, noticed | ({"warnings": warnings} if warnings else {})

    def _total(self, near: WeightedLeastSquares, parameters: float) -> float | None:
        """Return the sum that leverages are to have; None: as they are."""
        if self.rescale is False:
            return None
        n, d = near.features.shape
        if self.rescale is not True:
            total = self.rescale
            if not isinstance(total, (int, float, np.number)) or not parameters <= total < n:
                raise InvalidInputError(
                    f"rescale: expected True, False or a sum of leverages between that of the "
                    f"sketch, {parameters:.4g}, and the number of instances, {n}; got {total!r}."
                )
            return float(total)
        if near.penalty:
            raise InvalidInputError(
                "rescale: with a penalty the sum of the leverages is less than the number of "
                "parameters; pass that sum, where it is known, in place of True."
            )
        total = d + near.intercept
        if total >= n:
            raise InvalidInputError(
                f"rescale: {total} parameters for {n} instances leave every leverage at 1; "
                f"use rescale=False."
            )
        return float(total)

    def _checked_seed(self) -> int:
        if not isinstance(self.seed, (int, np.integer)) or self.seed < 0:
            raise InvalidInputError(
                f"seed: expected an integer that is not negative; got {self.seed!r}."
            )
        return int(self.seed)


def _dispersion(near: WeightedLeastSquares, parameters: float) -> float:
    """Return the dispersion, estimated from the residuals where it is not known."""
    if near.dispersion is not None:
        return near.dispersion
    centred = np.sqrt(near.weights) * (near.linear - near.linear.mean())
    residuals, count = near.residuals[:, None], np.array([parameters])
    targets = residuals + centred[:, None]
    return float(residual_variance(residuals, targets, np.ones(len(targets)), count)[0])


def _power(gaps: Values, total: float) -> float:
    """Return c for which ``1 - gaps^c`` has a sum, at least that for ``c = 1``."""
    low, high = 1.0, 2.0
    while np.sum(1 - gaps**high) < total and high < 1e12:
        low, high = high, 2 * high
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if np.sum(1 - gaps**middle) < total else (low, middle)
    return (low + high) / 2
