"""The answer of an anomaly detector: one score a test instance."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from proponent.exceptions import InvalidInputError

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False)
class AnomalyScores:
    """How anomalous each of n instances is.

    Attributes
    ----------
    values : float array of shape (n,)
        The scores; the higher, the more anomalous.
    std_error : float array of shape (n,)
        Their standard errors over the sample of training instances; NaN where unknown.
    ids : array of shape (n,)
        Labels of the instances.
    method : str
        The method's name.
    settings, diagnostics : mapping
        What it was set to, and what it noticed.
    """

    values: NDArray[np.float64]
    std_error: NDArray[np.float64]
    ids: NDArray[Any]
    method: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    diagnostics: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Make the arrays read-only."""
        for array in (self.values, self.std_error, self.ids):
            array.setflags(write=False)

    def __len__(self) -> int:
        """Return the number of instances."""
        return len(self.values)

    def ranking(self) -> NDArray[Any]:
        """Return the ids from the most to the least anomalous; ties by position."""
        return self.ids[np.argsort(-self.values, kind="stable")]

    def highest(self, k: int = 5) -> NDArray[Any]:
        """Return the ids of the k most anomalous instances, the most anomalous first.

        Raises
        ------
        InvalidInputError
            If there are fewer than k.
        """
        if not 1 <= k <= len(self):
            raise InvalidInputError(f"k must lie in 1 .. {len(self)}; got {k}.")
        return self.ranking()[:k]

    def to_dataframe(self) -> pd.DataFrame:
        """Return ``score`` and ``std_error`` by id."""
        import pandas as pd

        columns = {"score": self.values, "std_error": self.std_error}
        return pd.DataFrame(columns, index=pd.Index(self.ids, name="id"))

    def __repr__(self) -> str:
        """Return the method, the number of instances and the most anomalous of them."""
        first = ", ".join(map(str, self.ranking()[:3]))
        return f"AnomalyScores({self.method}, {len(self)} instances, most anomalous: {first})"
