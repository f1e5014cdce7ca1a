"""Progress bars for long work."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any, TypeVar

from tqdm import tqdm

Item = TypeVar("Item")

SECONDS_BEFORE_BAR = 2.0


def progress(
    iterable: Iterable[Item] | None = None,
    *,
    total: int | None = None,
    description: str = "",
    enabled: bool | None = None,
) -> tqdm[Item]:
    """Wrap an iterable (or a count) in a progress bar on standard error.

    Parameters
    ----------
    iterable : iterable or None
        What to go through; None for a bar that is moved by ``update``.
    total : int, optional
        Number of steps where the iterable has no length.
    description : str
        What the work is.
    enabled : bool or None
        True shows the bar at once, False never. None, the default, shows it on a terminal
        and only once the work has lasted two seconds.
    """
    delay = 0.0 if enabled else SECONDS_BEFORE_BAR
    disable = not enabled if enabled is not None else not sys.stderr.isatty()
    bar: tqdm[Any] = tqdm(
        iterable, total=total, desc=description, disable=disable, delay=delay, leave=bool(enabled)
    )
    return bar
