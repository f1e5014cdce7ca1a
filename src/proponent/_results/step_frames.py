"""Contributions of steps as a data frame or as a labelled array; imported when used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from proponent._results.step_columns import StepColumns

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr


def dataframe(
    values: NDArray[Any],
    columns: StepColumns,
    train_ids: NDArray[Any],
    test_ids: NDArray[Any] | None,
) -> pd.DataFrame:
    """Write contributions (n_test, n_train, K) or (n_train, K) as one line each."""
    import pandas as pd

    where = np.indices(values.shape).reshape(values.ndim, -1)
    lines: dict[str, Any] = {} if test_ids is None else {"test": test_ids[where[0]]}
    lines["train"] = train_ids[where[-2]]
    lines |= {"step": columns.first[where[-1]], "last_step": columns.last[where[-1]]}
    return pd.DataFrame({**lines, "influence": values.ravel()})


def dataarray(
    values: NDArray[Any],
    columns: StepColumns,
    train_ids: NDArray[Any],
    test_ids: NDArray[Any] | None,
    attributes: dict[str, Any],
) -> xr.DataArray:
    """Copy them to an ``xarray.DataArray``, the last steps as a coordinate."""
    try:
        import xarray as xr
    except ImportError as error:
        raise ImportError(
            "to_xarray needs the package xarray; install it with: pip install xarray"
        ) from error
    axes = ("train", "step") if test_ids is None else ("test", "train", "step")
    coordinates: dict[str, Any] = {
        "train": train_ids.copy(),
        "step": columns.first.copy(),
        "last_step": ("step", columns.last.copy()),
    }
    if test_ids is not None:
        coordinates["test"] = test_ids.copy()
    return xr.DataArray(values.copy(), coordinates, axes, name="influence", attrs=attributes)
