"""Tasks on a Dask cluster: the same results, whatever dies. Run where Dask is installed."""

import logging
import os
import signal
import time

import joblib
import numpy as np
import pytest
from numpy.testing import assert_array_equal
from sklearn.linear_model import LogisticRegression
from sklearn.tree import DecisionTreeClassifier

from proponent.jobs import TaskFailed, run_tasks
from proponent.retraining.submodels import Submodels

distributed = pytest.importorskip("distributed")

rng = np.random.default_rng(0)
TRAIN = rng.normal(size=(40, 3)), rng.integers(0, 2, 40)
TEST = rng.normal(size=(5, 3)), rng.integers(0, 2, 5)
MASKS, SEEDS = rng.random((60, 40)) < 0.5, np.arange(60)


@pytest.fixture(scope="module", autouse=True)
def cluster():
    settings = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None}
    with (
        distributed.LocalCluster(**settings, silence_logs=logging.CRITICAL) as cluster,
        distributed.Client(cluster),
        joblib.parallel_config(backend="dask"),
    ):
        yield


@pytest.mark.parametrize("model", [DecisionTreeClassifier(max_depth=3), LogisticRegression()])
def test_the_same_bits(model):
    found = Submodels(model, TRAIN).utilities(MASKS, SEEDS, TEST)
    ahead = Submodels(model, TRAIN)
    ahead.fit(MASKS, SEEDS)
    expected = Submodels(model, TRAIN, n_jobs=1).utilities(MASKS, SEEDS, TEST)
    assert_array_equal(found, expected)
    assert_array_equal(ahead.utilities(MASKS, SEEDS, TEST), expected)


def test_an_exception_in_a_task_is_raised_and_ends_the_others():
    def fail(task):
        if task == 3:
            raise ZeroDivisionError(f"task {task}")
        return os.getpid()

    with pytest.raises(ZeroDivisionError, match="task 3"):
        list(run_tasks(fail, range(6)))
    results = run_tasks(fail, range(4, 100))
    assert next(results)[1] != os.getpid()
    results.close()
    assert sorted(run_tasks(abs, [-1, -2])) == [(0, 1), (1, 2)]


def test_workers_that_die(tmp_path):
    def die(task):
        with (tmp_path / str(task)).open("a") as file:
            file.write("x")
        if task == 5 or (task == 11 and (tmp_path / "11").stat().st_size == 1):
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.02)
        return -task

    found = dict(run_tasks(die, range(20)))
    failed = found.pop(5)
    assert isinstance(failed, TaskFailed) and "worker process died" in failed.reason
    assert found == {task: -task for task in range(20) if task != 5}
    assert (tmp_path / "11").stat().st_size >= 2
