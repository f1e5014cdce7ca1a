"""The base of the methods that score what training instances do together."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from proponent._results.checks import as_count
from proponent.data import Instances
from proponent.exceptions import InvalidInputError
from proponent.retraining.checks import check_choice
from proponent.retraining.coalitions import Design, Estimator
from proponent.retraining.designs import Exhaustive
from proponent.retraining.designs.fixed_players import FixedPlayers
from proponent.retraining.estimators.interactions import (
    ExactInteractions,
    Group,
    Index,
    every_group,
)
from proponent.retraining.method import SubmodelMethod
from proponent.retraining.semivalue_method import MOST_EXACT
from proponent.retraining.settings import Settings

if TYPE_CHECKING:
    from typing_extensions import Unpack

Tuples = Literal["all"] | Sequence[Sequence[Any]]

Values = NDArray[np.float64]

MOST_TUPLES = 1_000_000


class InteractionMethod(SubmodelMethod):
    """Base of the methods whose answer has a column for each of some tuples of players.

    The columns of :meth:`influence` are the tuples, named by the ids of their members, such as
    ``"3&7"``. A subclass implements ``_index``, ``_sampled_design`` and ``_sampled_estimator``.

    Parameters
    ----------
    n_models : int
        Coalitions that are evaluated, at most. Tuples share some; each is trained once.
    order : int
        How many members a tuple has.
    tuples : "all" or sequence of tuples
        Which ones: tuples of ids of training instances (of groups, or of the players of a game).
    estimator : {"auto", "sampled", "exact"}
        ``"exact"`` evaluates each of the ``2^n`` subsets once, for 20 players at most; ``"auto"``
        is exact where that takes no more than ``n_models``.
    **settings
        As in :class:`SubmodelMethod`.

    Attributes
    ----------
    players_ : Instances
        The training instances, or groups; ``train_`` has the tuples.
    tuples_ : list of tuple of int
        The positions of the members of each tuple, in ascending order.
    """

    choices: ClassVar[tuple[str, ...]] = ("auto", "sampled", "exact")
    players_: Instances
    tuples_: list[Group]

    def __init__(
        self,
        n_models: int = 2000,
        *,
        order: int = 2,
        tuples: Tuples = "all",
        estimator: Literal["auto", "sampled", "exact"] = "auto",
        **settings: Unpack[Settings],
    ) -> None:
        super().__init__(**settings)
        self.n_models = n_models
        self.order = order
        self.tuples = tuples
        self.estimator = estimator

    # What a subclass writes

    @abstractmethod
    def _index(self) -> Index:
        """Return the index."""

    @abstractmethod
    def _sampled_design(self) -> Design:
        """Return the design for ``tuples_``."""

    @abstractmethod
    def _sampled_estimator(self) -> Estimator:
        """Return the estimator for ``tuples_``."""

    def _orders(self) -> range:
        """Return how many members a tuple may have."""
        return range(self.order, self.order + 1)

    def _sampled_size(self) -> int:
        return as_count(self.n_models, "n_models")

    # What a user asks

    def matrix(self, test: Any = None) -> Values:
        """Return the interactions of pairs as symmetric matrices, one a test instance.

        Parameters
        ----------
        test : (X, y), dict, Dataset or Instances
            As in :meth:`influence`.

        Returns
        -------
        ndarray of shape (n_test, n, n)
            The value of a single player, where there is one, on the diagonal; NaN elsewhere.

        Raises
        ------
        InvalidInputError
            If there are tuples of more than two.
        """
        values = self.influence(test).values
        if max(map(len, self.tuples_)) > 2:
            raise InvalidInputError("order: only interactions of pairs make a matrix.")
        n = len(self.players_)
        found = np.full((len(values), n, n), np.nan)
        for column, members in enumerate(self.tuples_):
            first, last = members[0], members[-1]
            found[:, first, last] = found[:, last, first] = values[:, column]
        return found

    # The frame's hooks

    @override
    def _train(self) -> None:
        self.players_ = self.train_
        self.tuples_ = self._read()
        ids = self.players_.ids
        names = ["&".join(str(ids[member]) for member in members) for members in self.tuples_]
        self.train_ = Instances.of((np.arange(len(names)),), ids=np.array(names))
        super()._train()

    @override
    def _design(self, n: int) -> Design:
        design = Exhaustive() if self._is_exact() else self._sampled_design()
        return FixedPlayers(design, len(self.players_))

    @override
    def _size(self, n: int) -> int:
        return Exhaustive().total(len(self.players_)) if self._is_exact() else self._sampled_size()

    @override
    def _estimator(self, n: int) -> Estimator:
        if self._is_exact():
            return ExactInteractions(self.tuples_, self._index())
        return self._sampled_estimator()

    @override
    def _self_scores(self, rows: range) -> Values:
        raise self._lacks("memorization", "_self_scores")

    # Settings

    def _is_exact(self) -> bool:
        check_choice("estimator", self.estimator, self.choices)
        n = len(self.players_)
        few = n <= MOST_EXACT and 2**n <= as_count(self.n_models, "n_models")
        return self.estimator == "exact" or (self.estimator == "auto" and few)

    def _read(self) -> list[Group]:
        """Return the positions of the members of each tuple.

        Raises
        ------
        InvalidInputError
            If there is none, or one is not of different known ids, or stands there twice.
        """
        n, orders = len(self.players_), self._orders()
        as_count(self.order, "order")
        if isinstance(self.tuples, str):
            check_choice("tuples", self.tuples, ("all",))
            return self._every(n, orders)
        position = {id_: place for place, id_ in enumerate(self.players_.ids.tolist())}
        found: list[Group] = []
        for given in self.tuples:
            members = list(given) if isinstance(given, (tuple, list, np.ndarray)) else [given]
            unknown = [member for member in members if member not in position]
            if unknown:
                raise InvalidInputError(f"tuples: there is no player {unknown[0]!r}.")
            group = tuple(sorted({position[member] for member in members}))
            if len(group) != len(members) or len(group) not in orders:
                raise InvalidInputError(
                    f"tuples: {given!r} must have {orders[0]}"
                    + (f" to {orders[-1]}" if len(orders) > 1 else "")
                    + f" different members, by order={self.order}."
                )
            found.append(group)
        if not found or len(set(found)) < len(found):
            raise InvalidInputError("tuples: give at least one, and each once.")
        return found

    def _every(self, n: int, orders: range) -> list[Group]:
        from scipy.special import comb

        if orders[-1] > n:
            raise InvalidInputError(f"order: {n} players make no tuple of {orders[-1]}.")
        count = sum(int(comb(n, order, exact=True)) for order in orders)
        if count > MOST_TUPLES:
            raise InvalidInputError(
                f"tuples='all': {n:,} players make {count:,} tuples; name those that you want."
            )
        return every_group(n, orders)
