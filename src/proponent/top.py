"""The answer when the matrix would not fit: only the k strongest on both sides of each test."""

from proponent._results.accumulator import TopAccumulator
from proponent._results.top import TopInfluence

__all__ = ["TopAccumulator", "TopInfluence"]
