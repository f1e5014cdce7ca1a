"""Test sets and utilities that submodels are measured on, with what is known of each."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from proponent.data import Instances
from proponent.models.learner import Prepared, Trainer
from proponent.retraining.batches import Done
from proponent.retraining.empty import empty_utility
from proponent.retraining.results import Results
from proponent.retraining.store import Store
from proponent.retraining.utility import Utility

Values = NDArray[np.float64]


class Measurement:
    """One utility on one test set.

    Parameters
    ----------
    trainer : Trainer
        Whose submodels are measured.
    utility : Utility
        What they are worth.
    test : Prepared
        The test set.
    content : str
        A hash of the content of the test set.
    store : Store, optional
        Where the results outlive this process; those that it holds are read.

    Attributes
    ----------
    results : Results
        What is known.
    """

    def __init__(
        self,
        trainer: Trainer,
        utility: Utility,
        test: Prepared,
        content: str,
        store: Store | None,
    ) -> None:
        self.utility = utility
        self.test = test
        self.results = Results()
        self._trainer = trainer
        self._content = content
        self._store = store
        self._empty: Values | None = None
        self._recipe = "" if store is None else utility.recipe()
        if store is not None:
            for keys, utilities, failures in store.results(content, self._recipe):
                self._add_new(keys, utilities, failures)

    def add(self, keys: Sequence[bytes], done: Done) -> None:
        """Add what was measured of some submodels, in memory and in the store.

        Parameters
        ----------
        keys : sequence of bytes
            The submodels, K.
        done : Done
            What became of them. Those that could not be trained are stored elsewhere.

        Raises
        ------
        ProponentError
            If the disk is full.
        """
        failures = {**done.untrained, **done.unmeasured} if done.untrained else done.unmeasured
        new = self._add_new(keys, done.utilities, failures)
        if done.untrained:
            new = [row for row in new if row not in done.untrained]
        if self._store is not None and new:
            rows = _rows(new, keys, done.utilities, failures)
            self._store.add_results(self._content, self._recipe, *rows)

    def empty(self, policy: str | float) -> Values:
        """Return the utility of the empty set, ``(T,)``."""
        if self._empty is None:
            self._empty = empty_utility(policy, self._trainer, self.test, self.utility)
        return self._empty

    def _add_new(
        self, keys: Sequence[bytes], utilities: Values | None, failures: Mapping[int, str]
    ) -> list[int]:
        """Add what is not known yet to the results, and return its positions."""
        new = self.results.unknown(keys)
        self.results.add(*_rows(new, keys, utilities, failures))
        return new


class Measurements:
    """The test sets and utilities that were asked for last, as many as the memory holds.

    Parameters
    ----------
    trainer : Trainer
        Whose submodels are measured.
    store : Store, optional
        Where results outlive this process.
    memory : int
        How many bytes the results may take; those of the test set asked for last always stay.
    """

    def __init__(self, trainer: Trainer, store: Store | None, memory: int) -> None:
        self._trainer = trainer
        self._store = store
        self._memory = memory
        self._contents: WeakKeyDictionary[Instances, str] = WeakKeyDictionary()
        self._known: OrderedDict[tuple[str, Utility], Measurement] = OrderedDict()

    def of(self, test: Instances, utility: Utility) -> Measurement:
        """Return what is known of a utility on a test set."""
        content = self._contents.get(test)
        if content is None:
            content = self._contents[test] = test.content_hash()
        key = (content, utility)
        found = self._known.get(key)
        if found is None:
            prepared = self._prepared(test, content)
            found = Measurement(self._trainer, utility, prepared, content, self._store)
            self._known[key] = found
        self._known.move_to_end(key)
        while len(self._known) > 1 and self._nbytes() > self._memory:
            self._known.popitem(last=False)
        return found

    def failures(self) -> dict[bytes, str]:
        """Return the submodels that failed in any measurement, and why."""
        return {
            key: reason
            for known in self._known.values()
            for key, reason in known.results.failures.items()
        }

    def _prepared(self, test: Instances, content: str) -> Prepared:
        for (other, _), known in self._known.items():
            if other == content:
                return known.test
        return self._trainer.prepare(test)

    def _nbytes(self) -> int:
        return sum(known.results.nbytes for known in self._known.values())


def _rows(
    rows: list[int],
    keys: Sequence[bytes],
    utilities: Values | None,
    failures: Mapping[int, str],
) -> tuple[Sequence[bytes], Values | None, Mapping[int, str]]:
    """Return some rows of what was measured."""
    if len(rows) == len(keys):
        return keys, utilities, failures
    return (
        [keys[row] for row in rows],
        None if utilities is None else utilities[rows],
        {new: failures[row] for new, row in enumerate(rows) if row in failures},
    )
