"""Many independent tasks: the same results however they run, whatever dies."""

import os
import signal
import threading
import time
import warnings

import joblib
import numpy as np
import pytest
import torch
from job_examples import CountingBackend, Heavy, threads

from proponent.exceptions import InvalidInputError
from proponent.jobs import TaskFailed, run_tasks

BACKENDS = ["sequential", "threading", "loky", "counting"]


def run(function, tasks, backend="loky", **settings):
    if backend == "sequential":
        return list(run_tasks(function, tasks, **settings))
    with joblib.parallel_config(backend=backend, n_jobs=2):
        return list(run_tasks(function, tasks, **settings))


@pytest.mark.parametrize("backend", BACKENDS)
def test_each_result_comes_with_its_position(backend):
    found = run(lambda task: task**2, [3, 1, 4, 1, 5, 9, 2, 6], backend)
    assert sorted(found) == list(enumerate([9, 1, 16, 1, 25, 81, 4, 36]))


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_tasks(backend):
    assert run(abs, [], backend) == []


def test_results_come_as_they_are_done():
    def wait(seconds):
        time.sleep(seconds)
        return os.getpid()

    with joblib.parallel_config(backend="loky", n_jobs=2):
        results = list(run_tasks(wait, [1.0, 0.0, 0.0, 0.0]))
    assert results[-1][0] == 0  # the slow one holds nobody up
    assert os.getpid() not in {process for _, process in results}


def test_tasks_are_taken_as_they_are_needed():
    taken = []

    def tasks():
        for task in range(100):
            taken.append(task)
            yield task

    results = run_tasks(abs, tasks())
    next(results)
    assert taken == [0]
    results.close()
    with joblib.parallel_config(backend="threading", n_jobs=2):
        results = run_tasks(lambda task: time.sleep(0.05), tasks())
        next(results)
        assert len(taken) < 20
        results.close()


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_exception_in_a_task_is_raised(backend):
    def fail(task):
        if task == 3:
            raise ZeroDivisionError(f"task {task}")
        return task

    with pytest.raises(ZeroDivisionError, match="task 3"):
        run(fail, range(6), backend)


def test_joblib_says_how_many_at_once():
    def thread(_):
        time.sleep(0.05)
        return threading.get_ident()

    with joblib.parallel_config(backend="threading", n_jobs=3):
        assert len({name for _, name in run_tasks(thread, range(9))}) == 3
        assert len({name for _, name in run_tasks(thread, range(9), n_jobs=2)}) == 2
        assert {name for _, name in run_tasks(thread, range(9), n_jobs=1)} == {
            threading.get_ident()
        }


@pytest.mark.parametrize("n_jobs", [0, 1.5, "two"])
def test_n_jobs_is_a_number_of_workers(n_jobs):
    with pytest.raises(InvalidInputError, match="n_jobs"):
        next(run_tasks(abs, [1], n_jobs=n_jobs))


def test_a_backend_that_keeps_its_results_is_refused():
    with (
        joblib.parallel_config(backend="multiprocessing", n_jobs=2),
        pytest.raises(InvalidInputError, match="loky"),
    ):
        next(run_tasks(abs, [1]))


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_thread_inside_a_task(backend):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        found = run(threads, range(3), backend)
        assert all(pools == {1} for _, pools in found)
        assert torch.get_num_threads() == 2  # as it was
    finally:
        torch.set_num_threads(before)


def test_the_function_is_sent_to_each_worker_once(tmp_path):
    log = tmp_path / "unpacked"
    found = run(Heavy(log), range(50))
    assert sorted(found) == [(task, (float(task), True)) for task in range(50)]
    unpacked = log.read_text().split()
    assert len(unpacked) == len(set(unpacked)) <= 2


def test_a_pool_whose_worker_died_is_started_again(tmp_path):
    def die_once(task):
        with (tmp_path / str(task)).open("a") as file:
            file.write("x")
        if task == 11 and (tmp_path / "11").stat().st_size == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.04)
        return -task

    assert sorted(run(die_once, range(30))) == [(task, -task) for task in range(30)]
    ran = [(tmp_path / str(task)).stat().st_size for task in range(30)]
    assert ran[11] == 2
    assert sum(ran) <= 30 + 2 * 4  # what was under way at the time, and no more


def test_a_task_that_kills_its_worker_each_time_has_failed(tmp_path):
    def die(task):
        if task in (5, 17):
            with (tmp_path / str(task)).open("a") as file:
                file.write("x")
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.01)
        return -task

    found = dict(run(die, range(24)))
    assert sorted(found) == list(range(24))
    for task in (5, 17):
        assert isinstance(found[task], TaskFailed)
        assert "worker process died" in found[task].reason
        assert (tmp_path / str(task)).stat().st_size <= 3
    assert all(found[task] == -task for task in range(24) if task not in (5, 17))


def test_stopping_early_is_quiet_and_leaves_the_pool_usable():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with joblib.parallel_config(backend="loky", n_jobs=2):
            results = run_tasks(abs, range(100))
            next(results)
            results.close()
            assert sorted(run_tasks(abs, [-1, -2])) == [(0, 1), (1, 2)]


@pytest.mark.parametrize("backend", BACKENDS)
def test_progress_counts_sizes_with_rate_and_remaining_time(backend, capsys):
    tasks = [np.zeros(size) for size in (5, 1, 4)]
    run(len, tasks, backend, progress=True, description="adding", total=10, size=len)
    shown = capsys.readouterr().err
    assert "adding: 100%" in shown and "10/10" in shown
    assert "it/s" in shown and "00:00" in shown


def test_a_backend_of_the_users_own_runs_the_tasks():
    before = CountingBackend.submitted
    assert sorted(run(abs, range(-9, 0), "counting")) == list(enumerate(range(9, 0, -1)))
    assert CountingBackend.submitted == before + 9
