"""The responses between retraining and an influence, and the gaps between them, by name."""

from __future__ import annotations

# From retraining to the estimate; each gap lies between two neighbours.
RESPONSES = ("cold", "warm", "proximal", "pbrf", "linear", "estimate")
GAPS = ("warm_start", "proximity", "non_convergence", "linearisation", "solver")

_TITLES = {
    "cold": "cold retraining",
    "warm": "warm retraining",
    "proximal": "proximal retraining",
    "pbrf": "PBRF",
    "linear": "linear response",
    "warm_start": "warm start",
    "non_convergence": "non-convergence",
}


def title(name: str) -> str:
    """Return what a response or a gap is called in a sentence."""
    return _TITLES.get(name, name)
