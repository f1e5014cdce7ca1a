"""Datamodels: linear functions that predict a model's output from its training set."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from proponent._results.checks import as_count
from proponent.card import MethodCard
from proponent.data import Instances
from proponent.exceptions import InvalidInputError
from proponent.models.learner import Fitted, Prepared, Trainer
from proponent.retraining.checks import check_choice, check_fraction
from proponent.retraining.coalitions import Design
from proponent.retraining.designs import Bernoulli, UniformSize
from proponent.retraining.estimators.datamodel_fits import (
    DatamodelFit,
    LassoFit,
    LeastSquaresFit,
    RidgeFit,
)
from proponent.retraining.estimators.linear_fit import LinearFit
from proponent.retraining.method import SubmodelMethod
from proponent.retraining.settings import NEEDS, Settings
from proponent.retraining.utility import Margin, Risk, Utility

if TYPE_CHECKING:
    from typing_extensions import Unpack

Values = NDArray[np.float64]


@dataclass(frozen=True)
class MarginOrRisk(Utility):
    """The margin of the true class where the model is a classifier, and minus the risk if not.

    Parameters
    ----------
    smoothing : float
        Of probabilities, as in :class:`~proponent.retraining.utility.Margin`.
    """

    smoothing: float = 1e-3

    @property
    def name(self) -> str:
        """Return ``"margin or risk"``, with the smoothing."""
        return f"margin(smoothing={self.smoothing!r}) or risk"

    @override
    def of(self, trainer: Trainer, fitted: Fitted, test: Prepared) -> Values:
        """Return the margins, or minus the risks, ``(K, T)``."""
        classifies = trainer.output in ("probabilities", "logits")
        chosen = Margin(self.smoothing) if classifies else Risk()
        return chosen.of(trainer, fitted, test)


class Datamodels(SubmodelMethod):
    r"""Datamodels: the output on a test instance as a linear function of the training set.

    Submodels are trained on random subsets S of ``fraction`` of the training set, and a sparse
    linear function is fitted to what they make of each test instance:

    .. math::

        v(S) \approx \theta_0 + \sum_{z_i \in S} \theta_i, \qquad I(z_i, z_te) = \theta_i

    The function predicts models that have not been trained: :meth:`predict`, and :meth:`lds` for
    how well it does.

    **Source** Ilyas et al., ICML 2022. Not in the survey.

    **Differs from the paper in** the fit: coordinate descent along the path of penalties, which
    ends once ten smaller ones have not lowered the held-out error. ``"ridge"`` and
    ``"least_squares"`` are this library's.

    Scores are ``(n_test, n_train)``, in units of the utility; positive where an instance raises
    the margin. With ``sampling="bernoulli"`` least squares estimates weighted Banzhaf values; with
    subsets of one size it is ``(n - 1) / n`` of Downsampling's influence, and its slopes sum to 0,
    as the size tells nothing. Standard errors are those of the one-step estimate for the LASSO,
    and of the variance alone for ridge; neither knows of the penalty's bias towards 0. The sum of
    the scores of a group is the predicted influence of the group.

    **Cost** ``n_models`` trainings, then as many predictions of a test instance and a path of
    fits on ``K x n`` numbers. The paper takes hundreds of thousands of submodels for 50,000
    instances.

    Parameters
    ----------
    n_models : int
        Submodels, K.
    fraction : float
        Of the training set in each subset; the paper's 0.5, 0.1, 0.2 or 0.75.
    sampling : {"uniform", "bernoulli"}
        Subsets of one size, or every instance in with probability ``fraction``.
    estimator : {"lasso", "ridge", "least_squares"}
        How slopes are fitted: with a penalty on their absolute values, chosen on a tenth of the
        subsets; on their squares, chosen by leave-one-out; or with none, which takes more subsets
        than instances.
    penalties : int
        How many the LASSO tries.
    ratio : float
        Of its smallest penalty to its largest.
    utility : {"risk", "accuracy", "margin"}, callable or Utility
        What is predicted. By default the margin of the true class, with probabilities smoothed by
        0.001, and for a regression minus the risk.
    **settings
        As in :class:`~proponent.retraining.method.SubmodelMethod`.

    Examples
    --------
    >>> import proponent as pp
    >>> game = pp.Game(20, lambda mask: 2.0 * mask[3] - mask[5])
    >>> datamodels = pp.Datamodels(n_models=200).fit(game)
    >>> datamodels.influence().proponents(1).ids
    array([[3]])
    >>> bool(datamodels.lds(n_models=50)[0] > 0.99)
    True
    """

    card = MethodCard(
        name="Datamodels",
        title="Datamodels",
        family="retraining",
        paper="Ilyas et al., ICML 2022",
        needs=NEEDS,
        full_complexity="O(KT)",
        incremental_complexity="O(K)",
        space_complexity="O(Kn + p)",
        storage_complexity="O(Kp)",
        group=True,
        generative=True,
        any_model=True,
        original_sign="the same, in the margin of the correct class",
    )

    def __init__(  # type: ignore[misc]
        self,
        n_models: int = 2000,
        *,
        fraction: float = 0.5,
        sampling: Literal["uniform", "bernoulli"] = "uniform",
        estimator: Literal["lasso", "ridge", "least_squares"] = "lasso",
        penalties: int = 100,
        ratio: float = 1e-5,
        utility: str | Utility | Callable[[Any, Any], Any] = MarginOrRisk(),
        **settings: Unpack[Settings],
    ) -> None:
        super().__init__(utility=utility, **settings)
        self.n_models = n_models
        self.fraction = fraction
        self.sampling = sampling
        self.estimator = estimator
        self.penalties = penalties
        self.ratio = ratio

    # What a user asks

    def datamodel(self, test: Any = None, *, ids: Any = None) -> LinearFit:
        """Return the linear function of each test instance.

        Parameters
        ----------
        test, ids
            As in :meth:`influence`.

        Returns
        -------
        LinearFit
            ``weights`` (n_test, n_train), ``intercepts`` (n_test,), ``std_errors``, and
            ``predict(masks)``. Unlike in :meth:`influence`, an instance that is in all subsets or
            in none has the slope 0.
        """
        self._rows(None)
        return self._of(self._tests(test, ids))

    def predict(self, masks: Any, test: Any = None, *, ids: Any = None) -> Values:
        """Return what models that are trained on some subsets are predicted to be worth.

        Parameters
        ----------
        masks : array-like of shape (K, n_train)
            Who is in each subset, boolean.
        test, ids
            As in :meth:`influence`.

        Returns
        -------
        ndarray of shape (n_test, K)
            Larger is better.

        Raises
        ------
        InvalidInputError
            If the masks are not of this shape.
        """
        self._rows(None)
        given = np.asarray(masks)
        if given.ndim != 2 or given.shape[1] != len(self.train_) or given.dtype.kind not in "biu":
            raise InvalidInputError(
                f"masks: expected booleans of shape (K, {len(self.train_):,}); got "
                f"{given.dtype} of shape {given.shape}."
            )
        return self.datamodel(test, ids=ids).predict(given != 0)

    def lds(self, test: Any = None, *, n_models: int = 100, ids: Any = None) -> Values:
        """Return the linear datamodeling score: how well the predictions rank other submodels.

        Submodels on ``n_models`` more subsets are trained, and for each test instance what they
        are worth is compared with what was predicted, by Spearman's rank correlation.

        Parameters
        ----------
        test, ids
            As in :meth:`influence`.
        n_models : int
            How many to train, 2 or more.

        Returns
        -------
        ndarray of shape (n_test,)
            NaN where all predictions, or all submodels, are alike.
        """
        from scipy.stats import rankdata

        self._rows(None)
        more, n, used = as_count(n_models, "n_models"), len(self.train_), len(self._coalitions)
        if more < 2:
            raise InvalidInputError(f"n_models: 2 or more make a ranking; got {more}.")
        instances = self._tests(test, ids)
        held_out = self._design(n).draw(n, used, used + more, self.seed)
        self._trained(held_out)
        seen = self._measured(instances, held_out)
        predicted = self._of(instances).predict(seen.coalitions.masks)
        one, other = rankdata(predicted, axis=1), rankdata(seen.utilities.T, axis=1)
        one, other = (ranks - ranks.mean(axis=1, keepdims=True) for ranks in (one, other))
        norms = np.sqrt((one**2).sum(axis=1) * (other**2).sum(axis=1))
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray((one * other).sum(axis=1) / norms)

    # The frame's hooks

    def _of(self, instances: Instances) -> LinearFit:
        table = self._measured(instances, self._coalitions)
        return self._estimator(len(self.train_)).on(table).fit

    @override
    def _is_additive(self) -> bool:
        return True

    @override
    def _design(self, n: int) -> Design:
        check_choice("sampling", self.sampling, ("uniform", "bernoulli"))
        fraction = check_fraction("fraction", self.fraction)
        if self.sampling == "bernoulli":
            return Bernoulli(fraction)
        size = round(fraction * n)
        if not 0 < size < n:
            raise InvalidInputError(
                f"fraction: {fraction} of {n} training instances makes subsets of {size}; choose "
                f"one that leaves some in and some out."
            )
        return UniformSize(size)

    @override
    def _size(self, n: int) -> int:
        return as_count(self.n_models, "n_models")

    @override
    def _estimator(self, n: int) -> DatamodelFit:
        check_choice("estimator", self.estimator, ("lasso", "ridge", "least_squares"))
        if self.estimator == "ridge":
            return RidgeFit()
        if self.estimator == "least_squares":
            return LeastSquaresFit()
        return LassoFit(as_count(self.penalties, "penalties"), check_fraction("ratio", self.ratio))
