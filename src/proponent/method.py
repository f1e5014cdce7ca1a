"""What a method is: fitted once to a model and its training set, asked often.

A method is a subclass of :class:`InfluenceMethod` with a card. It writes ``fit``, ``_query`` and
``_scores``; everything a user sees around them is here, so that all methods answer alike.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np
from numpy.typing import NDArray

from proponent import _method_checks as checks
from proponent._method_frame import BLOCK_SCORES, MethodFrame
from proponent.card import MethodCard
from proponent.exceptions import MethodCapabilityError
from proponent.influence import Influence
from proponent.registry import load_families, methods, register, registered

if TYPE_CHECKING:
    from typing_extensions import Self

    from proponent.top import TopInfluence

__all__ = ["BLOCK_SCORES", "InfluenceMethod", "MethodCard", "methods"]


class InfluenceMethod(MethodFrame):
    """Base of every method.

    A class with its own ``card`` enters the registry under the card's name; one without is a
    helper for others. ``__init__`` names every hyperparameter, past the obvious first as
    keyword only, stores each under its own name, and does nothing else.

    A subclass implements

    - ``fit(model, train, *, ids=None)``: sets ``train_`` (an :class:`Instances`) and what a
      query needs, and returns ``self``; if it fails, the method is as it was before;
    - ``_query(instances)``: what is computed once for a test set, as any object;
    - ``_scores(query, rows)``: the scores of the training instances at positions ``rows``,
      a float array ``(n_test, len(rows))``;

    and where it has something better than the default

    - ``_joint_query(instances)``: the query whose only row of ``_scores`` is the sum over the
      test set, or whatever its own ``_joint_scores(query, rows)`` turns into ``(len(rows),)``,
      with the standard errors ``_joint_errors(query, rows)``;
    - ``_self_scores(rows)``: memorization, ``(len(rows),)``;
    - ``_std_errors(query, rows)``: standard errors of ``_scores``, in its shape;
    - ``_block_rows(n_test)``: how many training instances to score at once while streaming;
    - ``_diagnostics(query)``: what the method noticed, as JSON knows it; the query is None for
      memorization;
    - ``_is_fitted()``; ``_is_additive()``: whether a group's influence is its members' sum.

    Attributes
    ----------
    card : MethodCard
        What the method is.
    marks_unscored : bool
        Whether NaN among its scores means "not scored", instead of an error.
    train_ : Instances
        The training set, once fitted.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Enter a class with its own card in the registry; make its ``fit`` all or nothing."""
        super().__init_subclass__(**kwargs)
        if "fit" in cls.__dict__:
            cls.fit = checks.all_or_nothing(cls.fit)  # type: ignore[method-assign]
        if "card" in cls.__dict__:
            register(cls)

    # What a user asks

    @abstractmethod
    def fit(self, model: Any, train: Any, *, ids: Any = None) -> Self:
        """Pay the upfront cost for a model and its training set.

        Parameters
        ----------
        model : object
            What the card of the method says that it needs.
        train : (X, y), dict, Dataset or Instances
            The training set, in the order of the training record where there is one.
        ids : array-like of shape (n,), optional
            Unique labels of the training instances.
        """

    @overload
    def influence(
        self,
        test: Any = None,
        *,
        ids: Any = None,
        top_k: None = None,
        joint: bool = False,
        shard: tuple[int, int] | None = None,
    ) -> Influence: ...

    @overload
    def influence(
        self,
        test: Any = None,
        *,
        ids: Any = None,
        top_k: int,
        joint: Literal[False] = False,
        shard: tuple[int, int] | None = None,
    ) -> TopInfluence: ...

    def influence(
        self,
        test: Any = None,
        *,
        ids: Any = None,
        top_k: int | None = None,
        joint: bool = False,
        shard: tuple[int, int] | None = None,
        by_checkpoint: bool = False,
        phases: int | None = None,
    ) -> Influence | TopInfluence:
        """Return the influence of every training instance on every test instance.

        Parameters
        ----------
        test : (X, y), dict, Dataset or Instances
            The test set; None only for a method that was given it in ``fit``.
        ids : array-like of shape (n_test,), optional
            Unique labels of the test instances.
        top_k : int, optional
            Keep only the k strongest proponents and opponents of each test instance, in
            ``O(n_test * k)`` memory and one block of scores.
        joint : bool
            The influence on the whole test set: the sum over its instances, eq. (3).
        shard : (int, int), optional
            ``(i, of)`` scores only the i-th of ``of`` slices of the training set, from 0. The
            slices are contiguous: joined in order they give the full result.
        by_checkpoint, phases
            When the influence was made: for methods whose influence is a sum over the steps of
            a recorded training, which document them.

        Returns
        -------
        Influence
            Scores ``(n_test, n_train)``, or ``(n_train,)`` where ``joint``; positive means that
            the training instance lowers the test risk.
        TopInfluence
            Where ``top_k`` is given.

        Raises
        ------
        NotFittedError
            If ``fit`` has not been called.
        InvalidInputError
            If a set is empty, or an argument is out of range.
        MethodCapabilityError
            If ``by_checkpoint`` is asked for and the influence is no sum over steps.
        NonFiniteError
            If a score is not finite; the message names the instances.
        """
        if by_checkpoint is not False or phases is not None:
            load_families()  # so that all that have it are named
            raise self._lacks("influence by step of training (by_checkpoint, phases)", "_steps")
        rows = self._rows(shard)
        k = checks.check_request(top_k, joint, len(self.train_))
        instances = self._tests(test, ids)
        if joint:
            return self._joint(instances, rows)
        query = self._query(instances)
        if k is not None:
            # A slice smaller than k keeps all it has: joined, the slices still give the k best.
            return self._strongest(query, instances, rows, min(k, len(rows)))
        values = self._checked_scores(query, instances, rows)
        errors = self._std_errors(query, rows)
        return self._answer(values, rows, instances.ids, errors, self._diagnostics(query))

    def memorization(self, *, shard: tuple[int, int] | None = None) -> Influence:
        """Return the influence of each training instance on itself, eq. (4).

        Parameters
        ----------
        shard : (int, int), optional
            As in :meth:`influence`.

        Returns
        -------
        Influence
            Scores ``(n_train,)``.

        Raises
        ------
        MethodCapabilityError
            If the method has none short of the full matrix.
        NotFittedError
            If ``fit`` has not been called.
        NonFiniteError
            If a score is not finite.
        """
        rows = self._rows(shard)
        shape = (len(rows),)
        values = checks.check_scores(self._self_scores(rows), shape, self.card.name, "_self_scores")
        self._check_finite(values, rows, None)
        return self._answer(values, rows, None, None, self._diagnostics(None))

    def group_influence(
        self, groups: Mapping[Any, Any] | Any, test: Any = None, *, ids: Any = None
    ) -> Influence:
        """Return the influence of groups of training instances on every test instance.

        Parameters
        ----------
        groups : mapping or array-like
            As :meth:`Influence.group` takes them.
        test, ids
            As in :meth:`influence`.

        Returns
        -------
        Influence
            Scores ``(n_test, n_groups)``.

        Raises
        ------
        MethodCapabilityError
            If a group's influence is not its members' sum, and the method has no other way.
        """
        if not self._is_additive():
            raise self._lacks("group influence", "group_influence")
        return self.influence(test, ids=ids).group(groups)

    def cooks_distance(self) -> Influence:
        """Return the change of the parameters that each training instance makes, eq. (5).

        Raises
        ------
        MethodCapabilityError
            If the method has none.
        """
        raise self._lacks("Cook's distance", "cooks_distance")

    def expected(self, test: Any = None, *, repeats: int = 5, ids: Any = None) -> Influence:
        """Return the influence in expectation over ``repeats`` seeds of the training.

        Parameters
        ----------
        test, ids
            As in :meth:`influence`.
        repeats : int
            How many seeds, 2 or more.

        Raises
        ------
        MethodCapabilityError
            If the method has none.
        """
        raise self._lacks("expected influence", "expected")

    # What others are told

    def _steps(self, query: Any) -> Sequence[int]:
        raise self._lacks("influence by step of training", "_steps")

    def _self_scores(self, rows: range) -> NDArray[np.floating[Any]]:
        raise self._lacks("memorization", "_self_scores")

    def _lacks(self, what: str, attribute: str) -> MethodCapabilityError:
        """Return the error for something this method does not have, naming those that do."""
        others = [name for name, method in sorted(registered().items()) if _has(method, attribute)]
        return checks.lacks(self.card, what, others)


def _has(method: type[InfluenceMethod], attribute: str) -> bool:
    own = getattr(method, attribute) is not getattr(InfluenceMethod, attribute)
    return own or (attribute == "group_influence" and method.card.group)
