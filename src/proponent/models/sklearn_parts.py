"""What a fitted scikit-learn model is made of. scikit-learn itself is not imported."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def scikit_learn_class(estimator: object) -> type:
    """Return the scikit-learn class that an object is of, or derives from; else its own."""
    kinds = (kind for kind in type(estimator).__mro__ if kind.__module__.startswith("sklearn."))
    return next(kinds, type(estimator))


def pipeline_parts(model: object) -> tuple[tuple[Any, ...], Any]:
    """Return the transformers of a pipeline and its last step; an estimator alone has none."""
    if scikit_learn_class(model).__name__ != "Pipeline":
        return (), model
    steps = [step for _, step in getattr(model, "steps", ())]
    before, final = pipeline_parts(steps[-1])
    return (*(step for step in steps[:-1] if step not in (None, "passthrough")), *before), final


def dense(coefficients: Any) -> NDArray[Any]:
    """Return coefficients as an array; ``sparsify()`` makes them sparse."""
    return np.asarray(coefficients.toarray() if hasattr(coefficients, "toarray") else coefficients)
