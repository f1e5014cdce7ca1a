"""Processes that are killed or interrupted: nothing that was done is lost, nor any bit of it."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from retraining.toy_learners import FragileLearner, MeanLearner, StackedLearner, trainings

from proponent.retraining.submodels import Submodels

LEARNERS = {"MeanLearner": MeanLearner, "StackedLearner": StackedLearner}
ROWS, SECONDS = 24, {"MeanLearner": 0.08, "StackedLearner": 0.01}

SCRIPT = """
    import signal
    import sys
    import numpy as np
    from retraining import toy_learners
    from proponent.retraining.submodels import Submodels
    from retraining.test_submodels_killed import MASKS, SECONDS, SEEDS, TEST, TRAIN

    # A shell that starts the tests in the background has the signal ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    kind, log, path, n_jobs, ahead, hold, out = sys.argv[1:]
    learner = getattr(toy_learners, kind)(noise=1.0, log=log, seconds=SECONDS[kind], hold=int(hold))
    submodels = Submodels(learner, TRAIN, path=path or None, n_jobs=int(n_jobs))
    interrupted = 0
    while True:
        try:
            if ahead == "ahead":
                submodels.fit(MASKS, SEEDS)
            found = submodels.utilities(MASKS, SEEDS, TEST)
            break
        except KeyboardInterrupt:
            interrupted += 1
            print("interrupted", flush=True)
    np.save(out, np.concatenate([found, np.full((1, 3), float(interrupted))]))
"""

rng = np.random.default_rng(2)
TRAIN = (np.arange(8.0), rng.normal(size=8))
TEST = (np.zeros(3), np.array([0.0, 1.0, 2.5]))
MASKS = rng.random((ROWS, 8)) < 0.6
MASKS[MASKS.sum(axis=1) == 0, 0] = True
SEEDS = np.arange(ROWS)


class Process:
    """The script in a process of its own, which waits at some training."""

    def __init__(self, tmp_path, kind, n_jobs, hold, ahead=False, path="store"):
        self.log, self.out = tmp_path / "trainings", tmp_path / "out.npy"
        self.path = tmp_path / path if path else ""
        here = Path(__file__).resolve().parents[1]
        arguments = [kind, self.log, self.path, n_jobs, "ahead" if ahead else "", hold, self.out]
        self.hold = hold
        self.process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(SCRIPT), *map(str, arguments)],
            env={**os.environ, "PYTHONPATH": str(here)},
            start_new_session=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def wait(self):
        """Wait until the script does."""
        while len(trainings(self.log)) < self.hold:
            assert self.process.poll() is None, self.process.stderr.read()
            time.sleep(0.01)

    def go(self):
        Path(f"{self.log}.go").touch()

    def workers(self):
        return {int(line.split()[-1]) for line in self.log.read_text().splitlines()}

    def result(self):
        _, errors = self.process.communicate(timeout=120)
        assert self.process.returncode == 0, errors
        *found, last = np.load(self.out)
        return np.array(found), int(last[0])

    def kill(self):
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.communicate(timeout=60)


def uninterrupted(kind):
    return Submodels(LEARNERS[kind](noise=1.0), TRAIN).utilities(MASKS, SEEDS, TEST)


@pytest.mark.parametrize(
    ("kind", "n_jobs", "ahead"),
    [("MeanLearner", 1, False), ("StackedLearner", 1, True), ("StackedLearner", 2, False)],
)
def test_after_a_kill_only_the_rest_is_trained(tmp_path, kind, n_jobs, ahead):
    first = Process(tmp_path, kind, n_jobs, 15, ahead)
    first.wait()
    first.kill()
    begun = len(trainings(first.log))
    assert 15 <= begun <= 16
    later = Submodels(LEARNERS[kind](noise=1.0, log=first.log), TRAIN, path=first.path)
    if ahead:
        later.fit(MASKS, SEEDS)
    found = later.utilities(MASKS, SEEDS, TEST)
    assert_array_equal(found, uninterrupted(kind))
    done = later.report()["reused"]
    width = 7  # what half a second trains, or what is trained together
    assert begun - done <= width * n_jobs * (1 if n_jobs == 1 else 2)
    assert later.report()["trained"] == ROWS - done
    assert len(trainings(first.log)) == begun + ROWS - done


@pytest.mark.parametrize("kind", LEARNERS)
def test_after_a_worker_is_killed_the_rest_goes_on(tmp_path, kind):
    running = Process(tmp_path, kind, 2, 10)
    running.wait()
    (*_, worker) = running.workers()
    assert worker != running.process.pid
    os.kill(worker, signal.SIGKILL)
    running.go()
    found, _ = running.result()
    assert_array_equal(found, uninterrupted(kind))
    again = len(trainings(running.log)) - len(set(trainings(running.log)))
    assert len(set(trainings(running.log))) == ROWS
    assert again <= 4 * 7  # what was under way


@pytest.mark.parametrize("n_jobs", [1, 2])
@pytest.mark.parametrize("ahead", [True, False])
def test_after_an_interrupt_from_the_keyboard_the_same_object_goes_on(tmp_path, n_jobs, ahead):
    running = Process(tmp_path, "StackedLearner", n_jobs, 14, ahead, path="")
    running.wait()
    os.killpg(running.process.pid, signal.SIGINT)  # as a terminal does: the workers get it too
    assert running.process.stdout.readline() == "interrupted\n"
    running.go()
    found, interrupted = running.result()
    assert interrupted == 1
    assert_array_equal(found, uninterrupted("StackedLearner"))
    again = len(trainings(running.log)) - ROWS
    assert again <= 4 * n_jobs * (1 if n_jobs == 1 else 2)
    assert len(set(trainings(running.log))) == ROWS


def means(seeds=SEEDS):
    """Return what each submodel is, in a plain loop."""
    pairs = zip(MASKS, seeds, strict=True)
    return np.array(
        [TRAIN[1][mask].mean() + np.random.default_rng(s).normal() for mask, s in pairs]
    )


def test_a_worker_that_is_killed_while_it_measures_loses_what_was_under_way(tmp_path):
    once, log = tmp_path / "once", tmp_path / "measured"
    learner = FragileLearner(1.0, tmp_path / "trainings", once=once, measured=log)
    submodels = Submodels(learner, TRAIN, n_jobs=2)
    submodels.fit(MASKS, SEEDS)
    found = submodels.utilities(MASKS, SEEDS, TEST)
    assert once.exists()  # somebody died
    assert_array_equal(found, uninterrupted("StackedLearner"))
    measured = log.read_text().split()
    assert len(set(measured)) == ROWS
    assert max(Counter(measured).values()) <= 2  # what was under way when somebody died, again
    assert len(trainings(tmp_path / "trainings")) == ROWS


@pytest.mark.parametrize("stored", [True, False])
def test_a_submodel_that_kills_whoever_measures_it_fails_alone(tmp_path, stored):
    log, path = tmp_path / "measured", tmp_path / "store" if stored else None
    deadly = means()[[5, 6, 14]]
    learner = FragileLearner(1.0, tmp_path / "trainings", deadly=deadly, measured=log)
    submodels = Submodels(learner, TRAIN, path=path, n_jobs=2)
    submodels.fit(MASKS, SEEDS)
    found = submodels.utilities(MASKS, SEEDS, TEST)
    failed = np.isnan(found).all(axis=1)
    assert np.flatnonzero(failed).tolist() == [5, 6, 14]
    expected = uninterrupted("StackedLearner")
    assert_array_equal(found[~failed], expected[~failed])
    (reason,) = submodels.report()["failures"]
    assert "worker process died" in reason
    if stored:  # another process, where there is memory enough, measures what is missing
        log.unlink()
        later = FragileLearner(1.0, tmp_path / "trainings", measured=log)
        again = Submodels(later, TRAIN, path=path).utilities(MASKS, SEEDS, TEST)
        assert_array_equal(again, expected)
        assert len(trainings(tmp_path / "trainings")) == ROWS
        # A batch is measured as it was stored.
        assert set(log.read_text().split()) == {
            repr(mean) for mean in means()[[4, 5, 6, 7, *range(12, 16)]].tolist()
        }
