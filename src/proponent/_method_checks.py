"""What a query may ask for, and what a method may answer."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from functools import wraps
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from proponent._results.checks import as_count, surely_finite
from proponent.card import MethodCard
from proponent.exceptions import InvalidInputError, MethodCapabilityError, NonFiniteError

Fit = TypeVar("Fit", bound=Callable[..., Any])

Scores = NDArray[np.floating[Any]]

NAMED = 10  # instances that a message names


def all_or_nothing(fit: Fit) -> Fit:
    """Return a ``fit`` that leaves the method as it was where it fails or is interrupted."""

    @wraps(fit)
    def fitted(self: Any, *args: Any, **kwargs: Any) -> Any:
        before = dict(vars(self))
        try:
            return fit(self, *args, **kwargs)
        except BaseException:
            vars(self).clear()
            vars(self).update(before)
            raise

    return fitted  # type: ignore[return-value]


def shard_rows(n: int, shard: tuple[int, int] | None) -> range:
    """Return the positions of shard ``(i, of)`` of n instances, or all of them.

    The shards are contiguous, in order, and differ by one instance at most, as
    ``numpy.array_split`` cuts them.

    Raises
    ------
    InvalidInputError
        If ``shard`` is not ``(i, of)`` with ``0 <= i < of <= n``.
    """
    if shard is None:
        return range(n)
    try:
        index, of = (operator.index(part) for part in shard)
    except (TypeError, ValueError):
        raise InvalidInputError(
            f"shard: expected a pair (i, number of shards) of integers, such as (0, 4); "
            f"got {shard!r}."
        ) from None
    if not 0 <= index < of:
        raise InvalidInputError(
            f"shard: {shard!r} is not one of {of} shards; pass (i, {of}) with 0 <= i < {of}."
        )
    if of > n:
        raise InvalidInputError(
            f"shard: {of} shards of {n} training instances leave some empty; use {n} at most."
        )
    size, larger = divmod(n, of)
    start = index * size + min(index, larger)
    return range(start, start + size + (index < larger))


def check_request(top_k: int | None, joint: bool, n_train: int) -> int | None:
    """Return ``top_k`` as an int in ``1 .. n_train``, or None; refuse what does not go together.

    Raises
    ------
    InvalidInputError
        If ``joint`` is not a bool, ``top_k`` is out of range, or both are asked for.
    """
    if not isinstance(joint, (bool, np.bool_)):
        raise InvalidInputError(
            f"joint: expected True (the sum over the test instances) or False; got {joint!r}. "
            f"For a mean, take the full influence and call .joint('mean')."
        )
    if top_k is None:
        return None
    if joint:
        raise InvalidInputError(
            "top_k: a joint influence is a single row; leave top_k out and call .proponents(k) "
            "and .opponents(k) on the result."
        )
    k = as_count(top_k, "top_k")
    if k > n_train:
        raise InvalidInputError(f"top_k: {k} is more than the {n_train} training instances.")
    return k


def check_scores(
    values: Any, shape: tuple[int, ...], method: str, hook: str
) -> NDArray[np.floating[Any]]:
    """Return what a method computed, if it is a real array of the shape it owes.

    Raises
    ------
    TypeError
        If it is not: the method is at fault, not its user.
    """
    if not isinstance(values, np.ndarray) or values.dtype.kind != "f" or values.shape != shape:
        found = f"{values.dtype} {values.shape}" if isinstance(values, np.ndarray) else type(values)
        raise TypeError(f"{method}.{hook} must return a real array of shape {shape}; got {found}.")
    return values


def check_finite(
    values: NDArray[np.floating[Any]],
    train_ids: NDArray[Any],
    test_ids: NDArray[Any] | None,
    method: str,
    *,
    unscored: bool,
) -> None:
    """Refuse scores that are not finite, naming the first of them.

    Parameters
    ----------
    values : ndarray of shape (n_test, n_train) or (n_train,)
        The scores.
    train_ids, test_ids : ndarray
        The ids of the columns and the rows; no ``test_ids`` for one row.
    method : str
        The name of the method.
    unscored : bool
        Whether NaN is allowed, as the mark of an instance without a score.

    Raises
    ------
    NonFiniteError
        If a score is infinite, or NaN where that is no mark.
    """
    if surely_finite(values):
        return
    bad = np.isinf(values) if unscored else ~np.isfinite(values)
    if not bad.any():
        return
    places = np.argwhere(bad)
    named = ", ".join(
        f"({test_ids[place[0]]}, {train_ids[place[-1]]})"
        if test_ids is not None
        else str(train_ids[place[0]])
        for place in places[:NAMED]
    )
    what = "(test id, train id)" if test_ids is not None else "train id"
    more = f" and {len(places) - NAMED:,} more" if len(places) > NAMED else ""
    raise NonFiniteError(
        f"{method}: {len(places):,} of {values.size:,} scores are not finite, at {what} {named}"
        f"{more}. Look at the inputs, labels and risks of these instances; leave out or repair "
        f"those at fault, or compute in float64 if they overflow."
    )


def joint_by_block(blocks: Iterable[tuple[Scores, Scores | None]]) -> tuple[Scores, Scores | None]:
    """Return the sums over the tests of scores and, as a bound, of their standard errors.

    Parameters
    ----------
    blocks : iterable of (ndarray, ndarray or None)
        Scores of some training instances at a time, ``(n_test, some)``, and their errors.
    """
    sums: list[Scores] = []
    bounds: list[Scores] = []
    for scores, errors in blocks:
        sums.append(scores.sum(axis=0, dtype=np.float64))
        if errors is not None:
            bounds.append(errors.sum(axis=0, dtype=np.float64))
    return np.concatenate(sums), np.concatenate(bounds) if bounds else None


def wrong_kind(card: MethodCard, model: object) -> InvalidInputError:
    """Return the error for a model of another kind than the method needs."""
    kind = type(model)
    advice = ""
    if any(base.__module__.startswith("torch.nn.") for base in kind.__mro__):
        advice = " A torch module comes with its risk: pp.TorchModel(module, loss=...)."
    package = kind.__module__.partition(".")[0]
    name = kind.__qualname__ if package == "builtins" else f"{package} {kind.__qualname__}"
    return InvalidInputError(f"model: {card.name} needs {card.needs}; got a {name}.{advice}")


def lacks(card: MethodCard, what: str, others: list[str]) -> MethodCapabilityError:
    """Return the error for something a method does not have, naming the methods that do."""
    advice = f"Use {' or '.join(others)}" if others else "No method that is loaded has it"
    return MethodCapabilityError(f"{card.name} has no {what}. {advice}.")
