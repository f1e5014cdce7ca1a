"""A diagnosis in words: one table, and advice."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from typing import TYPE_CHECKING

import numpy as np

from proponent.evaluation.estimates import Estimate
from proponent.evaluation.gaps import GAPS, RESPONSES, title
from proponent.evaluation.inputs import listed
from proponent.evaluation.tables import Table

if TYPE_CHECKING:
    from proponent.evaluation.diagnosis import Array, Diagnosis, Optimisation

NOT_MEASURED = "not measured"
# Of the linear response's own size: below it no gap needs a remedy.
SMALL = 0.05
# Of a gap: beyond it a cause explains most of it.
MOSTLY = 0.5


def advice(diagnosis: Diagnosis) -> str:
    """Name the largest gap and say what would reduce it; beyond the drift too, if that is most."""
    gap, rest = diagnosis.largest, diagnosis.largest_beyond_drift
    size, beyond = diagnosis.sizes[gap].value, diagnosis.sizes_beyond_drift
    linear = float(np.abs(diagnosis.linear).mean())
    named = (
        f"The largest gap is {title(gap)}: {size:.2g}, where the linear response is {linear:.2g}"
    )
    if size <= SMALL * linear:
        return f"{named}. No gap that was measured needs a remedy."
    if gap == "warm_start" and diagnosis.retraining_noise > MOSTLY * size:
        named += "; the noise between the seeds alone could make most of it"
    if beyond[gap].value > MOSTLY * size:
        return f"{named}. {diagnosis.remedies[gap]}"
    also = "" if rest == gap else f" {diagnosis.remedies[rest]}"
    return (
        f"{named}; most of it is there although nothing is left out. {diagnosis.remedies[gap]} "
        f"Beyond this drift the largest gap is {title(rest)}: {beyond[rest].value:.2g}.{also}"
    )


def as_table(diagnosis: Diagnosis) -> Table:
    """Return a row for each response, with the gap to the next, and notes below."""
    header = ["change of the test risk", "mean size", f"correlation with {diagnosis.method}"]
    header += ["gap to the next", "mean size", "beyond the drift"]
    cells = []
    for name, gap in zip(RESPONSES[:-1], GAPS, strict=True):
        size, beyond = diagnosis.sizes[gap], diagnosis.sizes_beyond_drift[gap]
        cells.append(
            [
                title(name),
                _mean_size(diagnosis.responses[name]),
                _written(diagnosis.correlations[name], ".2f", "undefined"),
                title(gap),
                _written(size, ".2g", NOT_MEASURED),
                _written(beyond, ".2g", NOT_MEASURED),
            ]
        )
    cells.append([diagnosis.method, _mean_size(diagnosis.estimate), "", "", "", ""])
    first = (
        f"Diagnosis of {diagnosis.method}: {len(diagnosis.train_ids)} training instances left out "
        f"one at a time, {len(diagnosis.test_ids)} test instances"
    )
    return Table(header, cells, [first, diagnosis.advice, *_notes(diagnosis)])


def _notes(diagnosis: Diagnosis) -> list[str]:
    notes = [
        f"[{100 * diagnosis.confidence:g} % interval, over the training instances left out]; sizes "
        f"are mean absolute values; the drift is what a gap is when nothing is left out",
        _of_cold_retraining(diagnosis),
    ]
    unscored = int(np.isnan(diagnosis.estimate).sum())
    if unscored:
        notes.append(
            f"not scored by {diagnosis.method}, and so not in the solver gap: {unscored} of "
            f"{diagnosis.estimate.size} pairs"
        )
    notes += _of_optimisations(diagnosis)
    if diagnosis.resolution > SMALL * np.abs(diagnosis.linear).mean():
        notes.append(
            f"changes of the risk are rounded to about {diagnosis.resolution:.1g}, which is much "
            f"beside them: give dtype='float64'"
        )
    return notes


def _of_cold_retraining(diagnosis: Diagnosis) -> str:
    if not diagnosis.n_seeds:
        return "cold retraining, and so the warm-start gap: not measured (give retrain=)"
    if diagnosis.n_seeds == 1:
        return "cold retraining: one seed, so its noise is not known (give several seeds=)"
    return (
        f"cold retraining: mean of {diagnosis.n_seeds} seeds, whose noise alone would make a "
        f"warm-start gap of {diagnosis.retraining_noise:.2g}, beyond the drift "
        f"{diagnosis.retraining_noise_beyond_drift:.2g}"
    )


def _of_optimisations(diagnosis: Diagnosis) -> list[str]:
    """Say what the optimiser left undone, which is a further error inside the gaps."""
    parts, notes = [], []
    for name in ("warm", "proximal", "pbrf"):
        runs = [run for run in diagnosis.optimisations if run.response == name]
        ended = [run for run in runs if run.stop != "unbounded"]
        short = [run for run in ended if run.stop != "converged"]
        if ended:
            part = f"{title(name)} {max(run.gradient for run in ended):.1g}"
            if short:
                reasons = " or ".join(sorted({run.stop for run in short}))
                part += f" ({len(short)} of {len(runs)} ended early, {reasons}: {_without(short)})"
            parts.append(part)
        if len(ended) < len(runs):
            unbounded = [run for run in runs if run.stop == "unbounded"]
            notes.append(
                f"{title(name)} does not exist {_without(unbounded)}: its objective falls without "
                f"end at this damping"
            )
    notes.append(
        f"largest gradient left by the optimiser, relative to that of the left-out terms: "
        f"{', '.join(parts)}; residual of the linear response: {diagnosis.residual:.1g}"
    )
    return notes


def _without(runs: Sequence[Optimisation]) -> str:
    ids = ["nothing" if run.train_id is None else run.train_id for run in runs]
    return f"without {listed(ids)}"


def _mean_size(response: Array) -> str:
    seen = response[~np.isnan(response)]
    return f"{np.abs(seen).mean():.2g}" if seen.size else NOT_MEASURED


def _written(estimate: Estimate, form: str, missing: str) -> str:
    if not isfinite(estimate.value):
        return missing
    if not isfinite(estimate.low):
        return f"{estimate.value:{form}}"
    return f"{estimate.value:{form}} [{estimate.low:{form}}, {estimate.high:{form}}]"
