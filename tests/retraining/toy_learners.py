"""Learners that are trained in microseconds, and say how often they were."""

import os
import time
from pathlib import Path

import numpy as np

from proponent.models.learner import Fitted, Learner, Prepared, SerialTrainer, Trainer


class MeanLearner(Learner):
    """Predicts the mean label of its training instances, plus a little that the seed decides.

    ``log`` is a file that gets a line a training; ``fails`` are positions whose presence fails
    it, and ``kills`` those whose presence kills the process. From the training numbered ``hold``
    on, each waits until there is a file named as the log, with ``.go``.
    """

    def __init__(self, noise=0.0, log=None, fails=(), kills=(), seconds=0.0, hold=None):
        self.noise = noise
        self.log = log
        self.fails = fails
        self.kills = kills
        self.seconds = seconds
        self.hold = hold

    def recipe(self):
        return f"MeanLearner(noise={self.noise})"

    def bind(self, train):
        return MeanTrainer(self, train)


class MeanTrainer(SerialTrainer):
    output = "values"

    def __init__(self, learner, train):
        self.learner = learner
        self.labels = np.asarray(train.labels(), np.float64)
        self.n = len(train)
        self.seeded = learner.noise > 0

    def fit_one(self, positions, seed):
        learner = self.learner
        time.sleep(learner.seconds)
        if learner.log is not None:
            with Path(learner.log).open("a") as file:
                file.write(f"{' '.join(map(str, positions))} {seed} {os.getpid()}\n")
        if learner.hold is not None and len(trainings(learner.log)) >= learner.hold:
            while not Path(f"{learner.log}.go").exists():
                time.sleep(0.01)
        if set(learner.fails) & set(positions.tolist()):
            raise ValueError(f"cannot be trained on {positions.tolist()}")
        if set(learner.kills) & set(positions.tolist()):
            os.kill(os.getpid(), 9)
        noise = np.random.default_rng(seed).normal() * learner.noise if self.seeded else 0.0
        return float(self.labels[positions].mean() + noise)

    def prepare(self, test, role="test"):
        return Prepared(None, np.asarray(test.labels(), np.float64), test.ids)

    def risks_one(self, model, test):
        return (model - test.targets) ** 2

    def outputs_one(self, model, test):
        return np.full(len(test), model)

    def constant(self, kind):
        return Fitted([0.0 if kind == "uniform" else float(self.labels.mean())], 1)


class StackedLearner(MeanLearner):
    """The same, trained many at once and stored as an array."""

    def recipe(self):
        return f"StackedLearner(noise={self.noise})"

    def bind(self, train):
        return StackedTrainer(self, train)


class StackedTrainer(Trainer):
    output = "values"
    at_once = 4

    def __init__(self, learner, train):
        self._one = MeanTrainer(learner, train)
        self.n, self.seeded = self._one.n, self._one.seeded

    def fit(self, counts, seeds):
        fitted = self._one.fit(counts, seeds)
        means = [np.nan if model is None else model for model in fitted.models]
        return Fitted(np.array(means), fitted.size, fitted.failures)

    def prepare(self, test, role="test"):
        return self._one.prepare(test, role)

    def risks(self, fitted, test):
        return (fitted.models[:, None] - test.targets) ** 2

    def outputs(self, fitted, test):
        return np.repeat(fitted.models[:, None], len(test), axis=1)

    def constant(self, kind):
        return Fitted(np.array(self._one.constant(kind).models), 1)

    def to_arrays(self, fitted):
        return {"means": fitted.models}

    def from_arrays(self, arrays, size, failures):
        return Fitted(arrays["means"], size, failures)


class FragileLearner(StackedLearner):
    """The same, whose process dies when it measures what is worth ``deadly``.

    Where ``once`` is a file, whoever measures first writes it and dies. ``measured`` is a file
    that gets a line a submodel measured.
    """

    def __init__(self, noise=0.0, log=None, deadly=(), once=None, measured=None):
        super().__init__(noise, log)
        self.deadly = deadly
        self.once = once
        self.measured = measured

    def bind(self, train):
        return FragileTrainer(self, train)


class FragileTrainer(StackedTrainer):
    def __init__(self, learner, train):
        super().__init__(learner, train)
        self.learner = learner

    def risks(self, fitted, test):
        learner = self.learner
        first = learner.once is not None and not Path(learner.once).exists()
        if first:
            Path(learner.once).touch()
        if first or np.isclose(fitted.models[:, None], learner.deadly).any():
            os.kill(os.getpid(), 9)
        with Path(learner.measured).open("a") as file:
            file.write("".join(f"{mean!r}\n" for mean in fitted.models.tolist()))
        return super().risks(fitted, test)


def trainings(log):
    """Return the lines of a log, without the process."""
    path = Path(log)
    lines = path.read_text().splitlines() if path.exists() else []
    return [line.rpartition(" ")[0] for line in lines]
