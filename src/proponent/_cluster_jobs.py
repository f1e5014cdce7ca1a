"""Tasks on a Dask cluster, by its client.

joblib's own backend for Dask never returns from a task whose worker dies each time, and loses the
data that it sent to a worker that dies.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from importlib import import_module
from itertools import islice
from typing import Any

# A task is run anew where the cluster has lost it, this often.
LOSSES = 3
# Tasks sent ahead, so that no worker waits.
AHEAD = 2


def run_in_cluster(
    client: Any,
    call: Callable[..., Any],
    token: str,
    content: Any,
    tasks: Iterator[tuple[int, Any]],
    n_jobs: int,
    failed: Callable[[Exception], Any],
) -> Iterator[tuple[int, Any]]:
    """Run numbered tasks and hand over the numbered results as they come.

    Parameters
    ----------
    client : distributed.Client
        Of the cluster.
    call : callable
        Takes token, content, index and task; returns index and result.
    token, content
        What every call takes.
    tasks : iterator
        Taken as they are needed.
    n_jobs : int
        How many run at once; as many as the cluster has threads if it is negative.
    failed : callable
        Makes, of the error, what stands for the result of a task whose workers die, also with no
        other task beside it.

    Raises
    ------
    Exception
        What a task raised; the others are cancelled.
    """
    cores = sum(client.ncores().values())
    count = max(cores if n_jobs < 0 else n_jobs, 1)
    cluster = _Cluster(client, call, token, content)
    try:
        suspects: list[tuple[int, Any, Exception]] = []
        for index, result, task, error in cluster.run(tasks, AHEAD * count):
            if error is None:
                yield index, result
            else:
                suspects.append((index, task, error))
        for index, task, _ in suspects:
            for _, result, _, error in cluster.run(iter([(index, task)]), 1):
                yield index, result if error is None else failed(error)
    finally:
        cluster.cancel()


class _Cluster:
    """What is under way on a cluster."""

    def __init__(self, client: Any, call: Callable[..., Any], token: str, content: Any) -> None:
        self._client, self._call, self._token = client, call, token
        self._under_way: dict[Any, tuple[int, Any]] = {}  # by future
        # The result of a task, which the cluster makes anew when the worker that has it dies.
        self._content = client.submit(_itself, content, key=f"content-{token}", pure=False)

    def run(
        self, tasks: Iterator[tuple[int, Any]], most: int
    ) -> Iterator[tuple[int, Any, Any, Exception | None]]:
        """Yield index, result, task and the error of the workers' deaths, ``most`` at once."""
        distributed = import_module("distributed")
        losses: Counter[int] = Counter()
        done = distributed.as_completed([self._submit(*task) for task in islice(tasks, most)])
        for future in done:
            index, task = self._under_way.pop(future)
            if future.status in ("cancelled", "lost") and losses[index] < LOSSES:
                losses[index] += 1
                done.add(self._submit(index, task))
                continue
            error = future.exception() if future.status == "error" else None
            if isinstance(error, distributed.KilledWorker):
                yield index, None, task, error
            else:
                yield index, future.result()[1], task, None
            for following in islice(tasks, 1):
                done.add(self._submit(*following))

    def cancel(self) -> None:
        """Take back what has no result yet, and the content."""
        self._client.cancel([*self._under_way, self._content])

    def _submit(self, index: int, task: Any) -> Any:
        future = self._client.submit(
            self._call, self._token, self._content, index, task, pure=False
        )
        self._under_way[future] = index, task
        return future


def _itself(content: Any) -> Any:
    return content
