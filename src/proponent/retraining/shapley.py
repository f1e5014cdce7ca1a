"""The Shapley value of training instances (survey section 4.3)."""

from __future__ import annotations

from typing_extensions import override

from proponent.card import MethodCard
from proponent.retraining.semivalue_method import SemivalueMethod
from proponent.retraining.semivalues import Semivalue, ShapleyWeights
from proponent.retraining.settings import NEEDS


class Shapley(SemivalueMethod):
    r"""The Shapley value: what an instance adds to a random coalition of the others.

    .. math::

        I(z_i, z_te) = \frac{1}{n} \sum_{S \subseteq D \setminus z_i} \binom{n - 1}{|S|}^{-1}
            \bigl( v(S \cup z_i) - v(S) \bigr)

    with :math:`v(S)` the utility on the test instance, minus the risk, of the model trained on S.
    The values of a test instance sum to :math:`v(D) - v(\emptyset)`, so that they depend on what
    counts as a model without data (``empty``).

    **Source** Shapley 1953; Ghorbani and Zou, ICML 2019; survey eq. (16) and (17).

    **Differs from the paper in** the estimator. By the identity

    .. math::

        I_i = \frac{v(D) - v(\emptyset)}{n} + \frac{1}{n} \sum_{k=1}^{n-1}
              \bigl( E[v(S) | |S| = k, z_i \in S] - E[v(S) | |S| = k, z_i \notin S] \bigr)

    subsets of all sizes, drawn independently, say something about every instance at once, and a
    regression within sizes takes out what the other members explain. Its error is a fraction of
    the permutations' at the same number of trainings. ``estimator="permutations"`` is the paper's
    without truncation; :class:`TMCShapley` truncates.

    Every size of a subset counts alike. Of a classifier's risk the smallest subsets, which may lack
    a class, then make up most of the value and nearly all of its noise: ``utility="accuracy"``, or
    :class:`Banzhaf` or :class:`BetaShapley` with beta above alpha, say more about labels from as
    many models.

    **Cost** ``n_models`` trainings (``2^n`` where exact), then as many predictions of a test
    instance and ``O(K n)``.

    Parameters
    ----------
    n_models : int
        Submodels, K. A few times n are needed before the ranking can be relied on; look at the
        standard errors.
    estimator : {"auto", "regression", "means", "permutations", "antithetic", "exact"}
        As in :class:`SemivalueMethod`.
    **settings
        As in :class:`SubmodelMethod`.

    Examples
    --------
    >>> import numpy as np
    >>> import proponent as pp
    >>> from sklearn.linear_model import Ridge
    >>> rng = np.random.default_rng(0)
    >>> X, y = rng.normal(size=(8, 3)), rng.normal(size=8)
    >>> values = pp.Shapley(estimator="exact").fit(Ridge(), (X, y)).influence((X[:2], y[:2]))
    >>> values.joint().values.shape
    (8,)
    """

    # Table 1 ticks "Estimates LOO?": the value averages leave-one-out differences over the
    # subsets of every size, so its numbers are not those on the whole training set.
    card = MethodCard(
        name="Shapley",
        survey_name="SV",
        title="Shapley Value",
        aliases=("Data Shapley",),
        family="retraining",
        section="4.3",
        equations="16, 17",
        paper="Shapley 1953; Ghorbani and Zou, ICML 2019",
        needs=NEEDS,
        full_complexity="O(2^n T)",
        incremental_complexity="O(2^n)",
        space_complexity="O(n + p)",
        storage_complexity="O(2^n p)",
        group=True,
        generative=True,
        any_model=True,
        original_sign="the same, in the utility of the model (accuracy)",
    )

    @override
    def _semivalue(self) -> Semivalue:
        return ShapleyWeights()
