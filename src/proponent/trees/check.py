"""The validity test of a reading: every leaf is what the formula makes of its instances.

``v H = -eta G - lam v`` over all leaves, with the sums recomputed along the path, holds to the
library's own precision exactly where the formulas of the methods hold; any setting that breaks
them (sampling, clipping, constraints) shows here, whatever a model's settings say.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from proponent.exceptions import InvalidInputError
from proponent.trees.calibrate import LeafSums, calibrate, leaf_sums, predicted, rates_by_tree
from proponent.trees.losses import Values
from proponent.trees.reading import Reading
from proponent.trees.steps import refit_steps
from proponent.trees.view import LeafView

# Relative to the largest leaf value of the tree and output; rounding of the library comes on top.
TOLERANCE = 1e-5
SINGLE = 1e-6  # of a gradient in float32, with some room


def checked(reading: Reading, instances: Any, *, approximate: bool = False) -> LeafView:
    """Return the leaf view of a reading whose leaves are what the formula makes of them.

    Parameters
    ----------
    reading : Reading
    instances : Instances
        The training set.
    approximate : bool
        Accept a model whose settings break the formula, and mark the view.

    Raises
    ------
    InvalidInputError
        If the leaves are not explained; the message names the settings that break the formula.
    """
    view = _unchecked(reading, instances)
    if reading.steps > 1 or (reading.loss.coupled and reading.estimation == "newton"):
        found = refit_steps(view, reading.steps)
        view = replace(
            view,
            theta=found.theta,
            inverse=found.inverse,
            step_scales=found.scales,
            coupled_inverse=found.matrices,
            notes=(*view.notes, *_halvings(found.scales)),
        )
        rates = _of_leaves(view, view.learning_rates)
        departure = np.abs(view.values - rates * view.moved(view.steps))
        fits = bool((departure <= TOLERANCE * _scales(view)).all())
    else:
        view, departure, fits = _one_step(reading, view)
    residual = float((departure / _scales(view)).max(initial=0.0))
    view = replace(view, residual=residual)
    if fits:
        return view
    reasons = reading.suspects or (_unknown(reading),)
    if approximate:
        return replace(view, approximate=True, reasons=reasons)
    raise InvalidInputError(
        f"model: the leaf values of this {reading.library} ensemble are not what its training "
        f"set makes of them (largest departure {residual:.1e} of the largest value in a tree). "
        + (
            f"It was trained with {'; '.join(reasons)}, where the formulas do not hold. "
            if reading.suspects
            else f"{reasons[0]} "
        )
        + "approximate=True reads it all the same, and marks the results."
    )


def _halvings(scales: Values) -> tuple[str, ...]:
    trees = np.count_nonzero((scales != 1.0).any(axis=0))
    if not trees:
        return ()
    return (f"leaf_estimation_backtracking halved steps of {trees} of {scales.shape[1]} trees",)


def _unchecked(reading: Reading, instances: Any) -> LeafView:
    none = np.zeros((1, len(reading.values)))
    return LeafView(
        library=reading.library,
        kind=reading.kind,
        train=reading.train,
        weights=reading.weights,
        counts=reading.counts,
        loss=reading.loss,
        offsets=reading.offsets,
        values=reading.values,
        learning_rates=reading.learning_rates,
        l2=reading.l2,
        theta=none,
        inverse=none,
        step_scales=np.ones((1, len(reading.learning_rates))),
        estimation=reading.estimation,
        l1=reading.l1,
        parallel=reading.parallel,
        classes=reading.classes,
        notes=reading.notes,
        instances=instances,
        source=reading.source,
    )


def _one_step(reading: Reading, view: LeafView) -> tuple[LeafView, Values, bool]:
    """Try the settings as they are said, then what the leaves themselves say."""
    sums, kept = leaf_sums(view)
    view = replace(view, kept=kept)
    fixed = reading.fixed
    if reading.other_l2 is not None:
        view = replace(view, l2=_better_l2(view, sums, reading.other_l2))
    slack: Values | None = None
    first: tuple[LeafView, Values] | None = None
    for candidate in _candidates(reading, view, sums):
        rates = _of_leaves(candidate, candidate.learning_rates)
        formula, inverse = predicted(sums, rates, candidate.l2, candidate.l1)
        departure = np.abs(candidate.values - formula)
        if fixed is not None:
            departure[fixed] = 0.0
            inverse[fixed] = 0.0
        theta = candidate.values / rates
        candidate = replace(candidate, theta=theta[None], inverse=inverse[None])
        fits = bool((departure <= TOLERANCE * _scales(candidate)).all())
        if not fits and reading.single_precision != "none":
            if slack is None:
                slack = _rounding(reading, view, sums)
            rounded = departure > TOLERANCE * _scales(candidate)
            fits = bool((departure <= TOLERANCE * _scales(candidate) + rates * slack).all())
            if fits:
                note = f"{np.count_nonzero(rounded)} of {len(rounded)} leaf values are the "
                note += "library's to its own rounding only (gradients near 0 in float32)"
                candidate = replace(candidate, notes=(*candidate.notes, note))
        if fits:
            return candidate, departure, True
        first = first or (candidate, departure)
    if first is None:
        raise RuntimeError("no candidate settings")
    return (*first, False)


def _candidates(reading: Reading, view: LeafView, sums: LeafSums) -> Any:
    yield view
    if not reading.calibrate:
        return
    for with_l1 in (False, True):
        found = calibrate(view, sums, with_l1=with_l1)
        if found is not None:
            note = f"calibrated from the leaves: learning rate {found.learning_rate:.6g}, "
            note += f"L2 {found.l2:.6g}" + (f", L1 {found.l1:.6g}" if with_l1 else "")
            yield replace(
                view,
                learning_rates=np.full_like(view.learning_rates, found.learning_rate),
                l2=np.full_like(view.l2, found.l2),
                l1=found.l1,
                notes=(*view.notes, note),
            )
    rates = rates_by_tree(view, sums)
    if rates is not None:
        note = f"learning rates of the trees found from their leaves: {rates[0]:.4g} to "
        yield replace(view, learning_rates=rates, notes=(*view.notes, f"{note}{rates[-1]:.4g}"))


def _better_l2(view: LeafView, sums: LeafSums, other: Values) -> Values:
    rates = _of_leaves(view, view.learning_rates)
    both = [view.l2, np.where(np.isnan(other), view.l2, other)]
    departures = [np.abs(view.values - predicted(sums, rates, l2, view.l1)[0]) for l2 in both]
    return np.where(departures[1] < departures[0], both[1], both[0])


def _of_leaves(view: LeafView, of_trees: Values) -> Values:
    """Repeat what each tree has for each of its leaves, ``(L,)``."""
    return np.repeat(of_trees, np.diff(view.offsets[:: view.outputs]))


def _scales(view: LeafView) -> Values:
    """Return the largest leaf value of each leaf's tree and output, ``(L,)``."""
    largest = np.maximum.reduceat(np.abs(view.values), view.offsets[:-1])
    return np.repeat(np.where(largest > 0, largest, 1.0), np.diff(view.offsets))


def _rounding(reading: Reading, view: LeafView, sums: LeafSums) -> Values:
    """Return how far float32 gradients may move a leaf's step, ``(L,)``."""
    largest = 1.0
    if view.loss.name == "squared":
        largest = float(np.abs(view.train.targets).max(initial=0.0))
        if reading.single_precision == "scores":
            largest += float(np.abs(view.train.start).max(initial=0.0))
    weights = np.empty(view.n_leaves)
    ones = np.ones_like(view.train.start)
    for tree in range(view.n_trees):
        given = view.tree_weights(tree)
        values = ones if given is None else given * ones
        view.leaf_sums(view.train, tree, values, out=(weights[view.tree_span(tree)],))
    denominator = sums.hessian + view.l2
    return SINGLE * largest * weights / np.where(denominator > 0, denominator, np.inf)


def _unknown(reading: Reading) -> str:
    return (
        "None of its settings explains this: check that the training set is the one it was "
        "trained on (all rows, the same labels, sample_weight and base_margin), and that it was "
        "trained without row sampling, clipping and constraints of leaf values, an objective of "
        "its own, or continued training under other settings."
    )
