"""A result as a data frame or as a labelled array; pandas and xarray are imported when used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr


def dataframe(
    values: NDArray[Any], train_ids: NDArray[Any], test_ids: NDArray[Any] | None
) -> pd.DataFrame:
    """Copy scores of shape (n_test, n_train), or (n_train,) without tests, to a data frame."""
    import pandas as pd

    train = pd.Index(train_ids, name="train")
    if test_ids is None:
        frame: pd.DataFrame = pd.DataFrame({"influence": values.copy()}, index=train)
        return frame
    test = pd.Index(test_ids, name="test")
    frame = pd.DataFrame(values, index=test, columns=train, copy=True)
    return frame


def dataarray(
    values: NDArray[Any],
    std_error: NDArray[Any] | None,
    train_ids: NDArray[Any],
    test_ids: NDArray[Any] | None,
    attributes: dict[str, Any],
) -> xr.DataArray:
    """Copy them to an ``xarray.DataArray`` with the standard errors as a coordinate."""
    try:
        import xarray as xr
    except ImportError as error:
        raise ImportError(
            "to_xarray needs the package xarray; install it with: pip install xarray"
        ) from error
    axes = ("train",) if test_ids is None else ("test", "train")
    coordinates: dict[str, Any] = {"train": train_ids.copy()}
    if test_ids is not None:
        coordinates["test"] = test_ids.copy()
    if std_error is not None:
        coordinates["std_error"] = (axes, std_error.copy())
    return xr.DataArray(values.copy(), coordinates, axes, name="influence", attrs=attributes)
