"""One thread in the libraries of linear algebra and OpenMP while a task runs."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class _ThreadPools:
    """The thread pools of the libraries that are loaded, and who holds them to one thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._controller: Any = None
        self._modules = 0
        self._tasks = 0
        self._shared: Any = None

    def enter(self) -> Any:
        """Hold the pools to one thread; return what undoes it for the pools of this thread."""
        if "torch" in sys.modules:
            sys.modules["torch"].get_num_threads()  # it sets its threads when it is first asked
        with self._lock:
            controller = self._looked_up()
            # Linear algebra counts the threads of the process: the last task to end restores
            # them. OpenMP counts those of each thread.
            if self._tasks == 0:
                self._shared = controller.limit(limits=1, user_api="blas")
            self._tasks += 1
        return controller.limit(limits=1, user_api="openmp")

    def leave(self, own: Any) -> None:
        """Restore what ``enter`` found."""
        own.restore_original_limits()
        with self._lock:
            self._tasks -= 1
            if self._tasks == 0:
                self._shared.restore_original_limits()

    def _looked_up(self) -> Any:
        # Looking takes milliseconds, so it is done again only where more has been imported.
        if self._controller is None or len(sys.modules) != self._modules:
            from threadpoolctl import (  # type: ignore[import-untyped]
                ThreadpoolController,
            )

            self._controller = ThreadpoolController()
            self._modules = len(sys.modules)
        return self._controller


_pools = _ThreadPools()


@contextmanager
def one_thread() -> Iterator[None]:
    """Keep linear algebra and OpenMP, torch's included, to one thread.

    The last bits of a product may depend on how many threads share it; and many small trainings
    are far slower with several threads each.
    """
    own = _pools.enter()
    try:
        yield
    finally:
        _pools.leave(own)
