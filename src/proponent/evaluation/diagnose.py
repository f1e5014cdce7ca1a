"""Where an influence goes wrong: five measured gaps between it and retraining."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from proponent._results.select import positions_of
from proponent.data import Instances
from proponent.evaluation.diagnosis import Diagnosis
from proponent.evaluation.inputs import boolean_mask, open_fraction, positive_integer
from proponent.evaluation.remedies import remedies
from proponent.evaluation.removal_study import Retrain, Study
from proponent.exceptions import InvalidInputError, NotFittedError
from proponent.static.curvature_method import CurvatureMethod


def diagnose(
    method: CurvatureMethod,
    instances: Any,
    test: Any,
    *,
    retrain: Retrain | None = None,
    seeds: int | Sequence[int] = 0,
    seed: int = 0,
    tolerance: float = 1e-4,
    max_iterations: int = 500,
    dtype: str | None = None,
    confidence: float = 0.95,
    show_progress: bool | None = None,
) -> Diagnosis:
    r"""Measure why an influence differs from retraining, on training instances left out for real.

    Between the change of a test risk by retraining without an instance and its estimate stand
    six numbers, of which each is one idealisation further from the first. With the trained
    parameters :math:`\theta_s`:

    ========  =================================================================  ===============
    response  the change of the test risk                                        gap to the next
    ========  =================================================================  ===============
    cold      trained from scratch without the instance                          warm start
    warm      trained on from :math:`\theta_s` without it                        proximity
    proximal  so, with :math:`(\delta/2) \|\theta - \theta_s\|^2` added          non-convergence
    pbrf      so, but with outputs compared to those of :math:`\theta_s`         linearisation
              instead of labels: the proximal Bregman response function
    linear    derivative of that,                                                solver
              :math:`(1/n)\, g_{te}^T (G + \lambda + \delta)^{-1} g_i`
    estimate  what the method says
    ========  =================================================================  ===============

    with weight decay :math:`\lambda`, damping :math:`\delta` and the exact Gauss-Newton matrix G.
    The gaps are the differences of neighbours, so they add up to retraining minus estimate. What
    a gap is already when nothing is left out, its drift, is measured too: it moves all instances
    alike. The non-convergence gap has a second part, which a stationary model keeps: the
    curvature of the outputs, by which the Hessian differs from G.

    Parameters
    ----------
    method : CurvatureMethod
        Fitted: influence functions, or another method whose scores estimate leaving an instance
        out, on a model whose risk is a loss of outputs. Its damping, weight decay, convention and
        choice of parameters are those of the responses; no other parameters move.
    instances : int, or sequence of training ids, or boolean array of shape (n_train,)
        Which training instances are left out, one at a time; a number draws as many.
    test : (X, y), dict, Dataset or Instances
        The test set.
    retrain : callable ``(indices, seed) -> model``, optional
        Trains a **new** model from scratch on the training instances at those positions, as
        :func:`~proponent.evaluation.retrain_on_subsets` takes it: a module, a ``TorchModel``, or
        the test risks themselves, (n_test,). It must minimise the same objective; by the
        convention ``"fixed_divisor"`` that is the sum over the instances given divided by the
        whole n, by ``"renormalised"`` their mean. Without it ``cold`` is not measured.
    seeds : int or sequence of ints
        Handed to ``retrain``; several tell the noise between trainings.
    seed : int
        Fixes which instances are drawn.
    tolerance : float
        How far warm, proximal and pbrf are optimised: to a gradient of this size relative to that
        of the terms the instances take with them, about the relative error of the change of the
        parameters.
    max_iterations : int
        Steps of each optimisation, at most. What is left undone is reported.
    dtype : "float32" or "float64", optional
        Precision in which a copy of the model is studied; None: the module's own. Changes of a
        risk are small: float64 resolves them better.
    confidence : float
        Level of the intervals.
    show_progress : bool or None
        True and False force the progress bars; None shows them on a terminal when it lasts.

    Returns
    -------
    Diagnosis
        Every value, the size of each gap with its interval, the largest one named, and a
        sentence on what would reduce it.

    Raises
    ------
    NotFittedError
        If the method is not fitted.
    InvalidInputError
        If the method's scores do not estimate leaving an instance out, the risk has no outputs
        apart from its loss, an instance is unknown, or a setting is out of range.
    SolveError
        If the Gauss-Newton matrix has negative curvature: a loss not convex in the outputs.
    ProponentError
        If a retraining failed.

    Notes
    -----
    **Source**: Bae, Ng, Lo, Ghassemi and Grosse, NeurIPS 2022.

    **Differs from the paper in**: the responses are optimised to a tolerance by L-BFGS over the
    whole training set, and what is left is reported; the change that comes without any removal is
    reported beside each gap.

    **Cost**: three fine-tunings for each instance, some tens to hundreds of passes over the
    training set each; three more without any removal; and the retrainings. Memory for up to 160
    vectors of parameters, and the outputs of the training set. Choose few instances, and for a
    large model few parameters. The model is untouched, also after an interruption.

    Examples
    --------
    >>> import torch, proponent as pp
    >>> module = torch.nn.Linear(2, 3)
    >>> train = torch.randn(20, 2), torch.arange(20) % 3
    >>> model = pp.TorchModel(module, loss="cross_entropy")
    >>> method = pp.InfluenceFunctions(weight_decay=0.1).fit(model, train)
    >>> diagnosis = pp.diagnose(method, [3, 4, 5], train, dtype="float64")
    >>> diagnosis.largest
    'non_convergence'
    """
    _check_method(method)
    tolerance = open_fraction(tolerance, "tolerance")
    max_iterations = positive_integer(max_iterations, "max_iterations")
    confidence = open_fraction(confidence, "confidence")
    positions = _chosen(instances, method.train_.ids, seed)
    test = Instances.of(test, role="test")
    influence = method.influence(test)
    if method._study is not None:
        test = method._study.encode(test)
    study = Study.of(method, positions, test, dtype, show_progress)
    retrained, retrained_drift = study.retrained(retrain, seeds, show_progress)
    linear, residual = study.linear_response()
    responses, drifts, optimisations = study.optimised(tolerance, max_iterations, show_progress)
    return Diagnosis(
        retrained=retrained,
        **responses,
        linear=linear,
        estimate=influence.values[:, positions].astype(np.float64),
        retrained_drift=retrained_drift,
        **drifts,
        train_ids=method.train_.ids[positions],
        test_ids=test.ids,
        method=method.card.name,
        optimisations=optimisations,
        residual=residual,
        remedies=remedies(method.card.name, len(method.train_), influence.diagnostics),
        resolution=study.resolution,
        confidence=confidence,
    )


def _check_method(method: object) -> None:
    if not isinstance(method, CurvatureMethod):
        raise InvalidInputError(
            f"method: expected a fitted InfluenceFunctions, or another method that multiplies "
            f"gradients with an inverse curvature; got {type(method).__name__}."
        )
    name = method.card.name
    if getattr(method, "train_", None) is None:
        raise NotFittedError(f"{name} is not fitted; call fit(model, train) first.")
    if not method.card.estimates_loo:
        raise InvalidInputError(
            f"method: the scores of {name} do not estimate leaving an instance out, so they cannot "
            f"be compared with retraining. Diagnose InfluenceFunctions with the same solver."
        )


def _chosen(instances: Any, ids: NDArray[Any], seed: int) -> NDArray[np.intp]:
    """Return the positions of the training instances to leave out."""
    if isinstance(instances, (int, np.integer)) and not isinstance(instances, bool):
        count = positive_integer(instances, "instances")
        if count > len(ids):
            raise InvalidInputError(
                f"instances: {count} cannot be drawn from {len(ids)} training instances."
            )
        return np.sort(np.random.default_rng(seed).choice(len(ids), count, replace=False))
    mask = getattr(instances, "dtype", None) == np.bool_
    positions = (
        np.flatnonzero(boolean_mask(instances, "instances", len(ids)))
        if mask
        else positions_of(instances, ids, "instances")
    )
    if not len(positions):
        raise InvalidInputError("instances: none is chosen; name at least one training instance.")
    return positions
