"""Many independent tasks: one after the other, or by joblib on processes, threads or machines.

Inside a task there is one thread, so that the numbers do not depend on how many tasks run at
once. joblib's own settings count: ``joblib.parallel_config(backend="threading")``, or ``"dask"``
for more machines.
"""

from __future__ import annotations

import copy
import pickle
import uuid
import warnings
from collections import Counter, OrderedDict
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np

from proponent._one_thread import one_thread
from proponent.exceptions import InvalidInputError
from proponent.progress import progress as progress_bar

Task = TypeVar("Task")
Result = TypeVar("Result")

# A task that was under way this often when a worker died is run alone; if that worker dies too,
# it has failed.
DEATHS_IN_COMPANY = 2

# Functions that a worker keeps at hand, each with the data that it carries.
FUNCTIONS_KEPT = 2


@dataclass(frozen=True)
class TaskFailed:
    """What stands for the result of a task whose worker died each time.

    Attributes
    ----------
    reason : str
        What happened.
    """

    reason: str


def run_tasks(
    function: Callable[[Task], Result],
    tasks: Iterable[Task],
    *,
    n_jobs: int | None = None,
    progress: bool | None = None,
    description: str = "",
    total: int | None = None,
    size: Callable[[Task], int] | None = None,
) -> Generator[tuple[int, Result | TaskFailed], None, None]:
    """Run a function on many tasks and hand over each result as soon as it is there.

    An exception in a task is raised here and ends the others. If a worker dies, the pool is
    started again for the tasks that have no result.

    Parameters
    ----------
    function : callable
        Sent to each worker once, with all that it carries.
    tasks : iterable
        Taken as they are needed, a few more than there are workers.
    n_jobs : int, optional
        How many run at once; -1: as many as there are cores. None: one, or what
        ``joblib.parallel_config`` says.
    progress : bool, optional
        Show a bar with the rate and the remaining time; None: on a terminal, if it lasts.
    description : str
        What the work is.
    total : int, optional
        The sum of the sizes.
    size : callable, optional
        How much of the total a task is; the default is one.

    Yields
    ------
    tuple of int and result
        The position of the task and its result, in the order in which they come.

    Raises
    ------
    InvalidInputError
        If ``n_jobs`` or joblib's backend cannot be used.
    """
    numbered = _Numbered(enumerate(tasks))
    pool = _Pool.of(function, n_jobs)
    results: Any
    if pool is None:
        results = _one_by_one(function, numbered)
    elif pool.client is not None:
        results = pool.run_in_cluster(iter(numbered))
    else:
        results = _in_pool(pool, numbered)
    shown: Any = progress_bar(total=total, description=description, enabled=progress)
    with shown as bar:
        try:
            for index, result in results:
                task = numbered.under_way.pop(index)
                bar.update(1 if size is None else size(task))
                yield index, result
        finally:
            results.close()


class _Numbered(Generic[Task]):
    """The tasks with their positions; those that were taken and have no result are kept."""

    def __init__(self, source: Iterator[tuple[int, Task]]) -> None:
        self._source = source
        self.under_way: dict[int, Task] = {}

    def __iter__(self) -> Iterator[tuple[int, Task]]:
        for index, task in self._source:
            self.under_way[index] = task
            yield index, task


def _one_by_one(function: Callable[[Task], Result], tasks: _Numbered[Task]) -> Any:
    for index, task in tasks:
        with one_thread():
            result = function(task)
        yield index, result


def _in_pool(pool: _Pool, tasks: _Numbered[Task]) -> Any:
    """Run tasks in a pool, and again, by themselves in the end, what died with a worker."""
    deaths: Counter[int] = Counter()
    remaining: Iterable[tuple[int, Any]] = tasks
    while True:
        try:
            yield from pool.run(remaining)
            return
        except BrokenProcessPool:
            pass
        deaths.update(tasks.under_way.keys())
        for index, task in [*tasks.under_way.items()]:
            if deaths[index] >= DEATHS_IN_COMPANY:
                yield from _alone(pool, index, task)
        remaining = _chain([*tasks.under_way.items()], tasks)


def _chain(
    again: list[tuple[int, Any]], tasks: Iterable[tuple[int, Any]]
) -> Iterator[tuple[int, Any]]:
    yield from again
    yield from tasks


def _alone(pool: _Pool, index: int, task: Any) -> Any:
    try:
        yield from pool.run([(index, task)])
    except BrokenProcessPool as error:
        yield index, _failed(error)


def _failed(error: Exception) -> TaskFailed:
    return TaskFailed(
        f"the worker process died at least {DEATHS_IN_COMPANY + 1} times, the last time with no "
        f"other task beside this one (for lack of memory?): {str(error).splitlines()[0]}"
    )


class _Pool:
    """joblib with a backend and a function."""

    def __init__(self, backend: Any, n_jobs: int, function: Callable[[Any], Any]) -> None:
        self._backend = backend
        self._n_jobs = n_jobs
        kinds = {kind.__name__ for kind in type(backend).__mro__}
        self.client: Any = backend.client if "DaskDistributedBackend" in kinds else None
        self._shipped = None if _shares(backend) else _Shipped(function)
        self._function = function

    @classmethod
    def of(cls, function: Callable[[Any], Any], n_jobs: int | None) -> _Pool | None:
        """Return the pool that is meant, or None where tasks run one after the other here."""
        if n_jobs == 1:
            return None
        if n_jobs == 0 or (n_jobs is not None and not isinstance(n_jobs, (int, np.integer))):
            raise InvalidInputError(
                f"n_jobs: expected a number of workers, -1 for one a core, or None; got {n_jobs!r}."
            )
        from joblib.parallel import BACKENDS, get_active_backend

        backend, configured = get_active_backend()
        local = isinstance(backend, tuple(BACKENDS[name] for name in BACKENDS if name != "dask"))
        given = n_jobs if n_jobs is not None else configured
        count = int(backend.default_n_jobs if given is None else given)
        if local and backend.effective_n_jobs(count) == 1:
            return None
        if not backend.supports_return_generator:
            raise InvalidInputError(
                f"joblib's {type(backend).__name__} cannot hand over results as they come; use "
                f"joblib.parallel_config(backend='loky'), 'threading' or 'dask'."
            )
        if backend.supports_inner_max_num_threads and backend.inner_max_num_threads is None:
            backend = copy.copy(backend)
            backend.inner_max_num_threads = 1
        return cls(backend, count, function)

    def run_in_cluster(self, tasks: Iterator[tuple[int, Any]]) -> Iterator[tuple[int, Any]]:
        """Run numbered tasks on the Dask cluster of joblib's backend, as :meth:`run` does."""
        from proponent._cluster_jobs import run_in_cluster

        shipped = self._shipped or _Shipped(self._function)
        return run_in_cluster(
            self.client,
            _call_shipped,
            shipped.token,
            shipped.content,
            tasks,
            self._n_jobs,
            _failed,
        )

    def run(self, tasks: Iterable[tuple[int, Any]]) -> Iterator[tuple[int, Any]]:
        """Run numbered tasks and hand over the numbered results as they come."""
        from joblib import Parallel, delayed

        calls: Iterable[Any]
        if self._shipped is None:
            calls = (delayed(_call)(self._function, index, task) for index, task in tasks)
        else:
            token, content = self._shipped.token, self._shipped.content
            calls = (delayed(_call_shipped)(token, content, index, task) for index, task in tasks)
        results: Any = Parallel(
            n_jobs=self._n_jobs,
            backend=self._backend,
            return_as="generator_unordered",
            batch_size=1,
        )(calls)
        try:
            # `yield from` would close joblib's generator before the warnings are off.
            for result in results:  # noqa: UP028
                yield result
        finally:
            with warnings.catch_warnings():
                # joblib warns of results that nobody took: here somebody stopped on purpose.
                warnings.simplefilter("ignore", UserWarning)
                results.close()


def _shares(backend: Any) -> bool:
    """Whether the workers are threads of this process."""
    return bool(getattr(backend, "supports_sharedmem", False))


class _Shipped:
    """A function as bytes in an array, which joblib sends to each worker once."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        from joblib import wrap_non_picklable_objects

        self.token = uuid.uuid4().hex
        # Wrapped, so that functions without a name that can be imported are sent by their code.
        wrapped = wrap_non_picklable_objects(function, keep_wrapper=False)
        self.content = np.frombuffer(pickle.dumps(wrapped, protocol=5), np.uint8)


_unpacked: OrderedDict[str, Callable[[Any], Any]] = OrderedDict()  # of a worker


def _call_shipped(token: str, content: Any, index: int, task: Any) -> tuple[int, Any]:
    function = _unpacked.get(token)
    if function is None:
        function = _unpacked[token] = pickle.loads(np.asarray(content).data)
        while len(_unpacked) > FUNCTIONS_KEPT:
            _unpacked.popitem(last=False)
    return _call(function, index, task)


def _call(function: Callable[[Any], Any], index: int, task: Any) -> tuple[int, Any]:
    with one_thread():
        return index, function(task)
