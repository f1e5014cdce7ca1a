"""Influence functions: the leave-one-out change of the test risk to first order (5.1.1)."""

from __future__ import annotations

from typing import ClassVar

from proponent.card import MethodCard
from proponent.static.chosen_inverse import NEEDS
from proponent.static.curvature_method import CurvatureMethod


class InfluenceFunctions(CurvatureMethod):
    r"""First-order estimate of what leaving an instance out does to the test risk.

    ``I(z_i, z_te) = (1/n) g_te^T (C + (weight_decay + damping) 1)^{-1} g_i``, gradients of the
    risk at the trained parameters, with C the curvature of the mean training risk. Up to first
    order in 1/n this is ``L(z_te; theta without z_i) - L(z_te; theta)``.

    **Source** Koh and Liang, ICML 2017; survey eqs. (27)-(34). Generalised Gauss-Newton instead
    of the Hessian: Bae et al., NeurIPS 2022, whose proximal Bregman response it then estimates
    also where training has not converged.

    **Differs from the paper in** the default curvature, and in how the two meanings of leaving
    an instance out are kept apart (``loo_convention``). Weight decay belongs to the curvature:
    without it the estimate is far off. The gradient of the test risk never contains it.

    Scores are ``(n_test, n_train)`` in units of the risk, leave-one-out differences; positive
    means that the training instance lowers the test risk.

    **Cost** Upfront that of the solver; for a test instance one solve, and for each training
    instance a forward-backward pass, less the weight gradients, and the products.

    Parameters
    ----------
    solver : str, solver or KroneckerFactors
        How ``A x = g`` is solved, A the curvature with weight decay and damping. Exact to
        rounding: ``"explicit"`` (the matrix, up to some thousand parameters) and ``"gram_dual"``
        (Fisher matrices, up to some thousand instances); to a tolerance: ``"cg"``. Approximate:
        ``"ekfac"`` and ``"kfac"`` (Kronecker factors, the cheapest for networks), ``"arnoldi"``
        (leading eigenvectors) and ``"lissa"`` (mini-batches). ``"auto"`` chooses by size and
        says why in ``diagnostics``. A solver object has its settings; ``KroneckerFactors`` that
        were fitted or loaded are used as they are.
    curvature : "ggn", "hessian", "fisher" or "empirical_fisher", or a Curvature
        C. The generalised Gauss-Newton matrix needs a loss of outputs and targets; for a risk
        that is a callable of module and batch take ``"hessian"``. Kronecker factors are of the
        Fisher matrix with sampled labels, which estimates the Gauss-Newton matrix.
    damping : float, mapping or None
        Added to the diagonal, in units of the mean risk's Hessian; for Kronecker factors one
        number a layer will do too. None lets the library choose: for Kronecker factors a tenth of
        each layer's mean eigenvalue; else what is missing, beside the weight decay, for the
        Hessian to be positive semidefinite by what the Gauss-Newton matrix neglects,
        ``max(0, -lambda_min(H - G) - weight_decay)``, and without weight decay a thousandth of
        the largest eigenvalue at least. Nothing is missing where outputs are linear in the
        parameters. It is reported.
    weight_decay : float or mapping
        The training objective is ``mean risk + (weight_decay / 2) ||theta||^2``, as torch's SGD
        has it; a mapping gives one number a parameter by its name.
    loo_convention : "fixed_divisor" or "renormalised"
        ``fixed_divisor``: the instance's term is removed and the others keep the weight 1/n
        (survey eq. (28)). ``renormalised``: the model is trained on the others with the mean
        over n - 1 and the same weight decay; the training gradient then contains
        ``weight_decay * theta``.
    query_rank : int, optional
        Hold the solved gradients of matrices at this rank, so that more test instances go through
        one pass over the training set; how much each loses is in ``diagnostics``
        (``query_errors``). 32 is ample for most networks. None: whole, block by block.
    seed : int
        Fixes the labels that Fisher matrices draw, and what solvers draw.
    parameters, batch_size, products, memory, dtype, progress
        As in :class:`GradientDot`.

    Examples
    --------
    >>> import torch, proponent as pp
    >>> module = torch.nn.Linear(2, 3)
    >>> train = torch.randn(10, 2), torch.randint(3, (10,))
    >>> model = pp.TorchModel(module, loss="cross_entropy")
    >>> pp.InfluenceFunctions(weight_decay=0.01).fit(model, train).influence(train).shape
    (10, 10)
    """

    card: ClassVar[MethodCard] = MethodCard(
        name="InfluenceFunctions",
        survey_name="IF",
        title="Influence Functions",
        aliases=("infinitesimal jackknife",),
        family="static",
        section="5.1.1",
        equations="27-34",
        paper="Koh and Liang, ICML 2017",
        needs=NEEDS,
        full_complexity="O(np)",
        incremental_complexity="O(np)",
        space_complexity="O(n + p)",
        storage_complexity="0",
        assumes=("differentiable", "convex", "stationary"),
        estimates_loo=True,
        group=True,
        generative=True,
        original_sign="the same: the predicted change of the test loss on removal",
    )
