"""Semivalues, by the size of the coalition that an instance joins.

A semivalue of an instance is its mean marginal contribution ``v(S + i) - v(S)`` to a coalition S
of the other instances, drawn by its size: first ``s = |S|`` from a law ``p_0 .. p_{n-1}``, then S
uniformly among the coalitions of that size.
"""

from __future__ import annotations

import reprlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from proponent.exceptions import InvalidInputError

Vector = NDArray[np.float64]


class Semivalue(ABC):
    """A law of coalitions."""

    @abstractmethod
    def sizes(self, n: int) -> Vector:
        """Return the law of the size of the coalition that an instance joins.

        Parameters
        ----------
        n : int
            Instances in the game.

        Returns
        -------
        ndarray of shape (n,)
            ``p_0 .. p_{n-1}``.
        """

    @abstractmethod
    def counts(self, n: int, k: int) -> Iterator[Vector]:
        """Yield how many of given other instances a coalition has: the laws for j = 0 .. k - 1.

        Parameters
        ----------
        n : int
            Instances in the game.
        k : int
            At most n.

        Yields
        ------
        ndarray of shape (n,)
            The probability that, of m given instances among the ``n - 1`` others, exactly j are
            in the coalition, for m = 0 .. n - 1.
        """


@dataclass(frozen=True)
class ShapleyWeights(Semivalue):
    """The Shapley value: every size is equally likely, ``p_s = 1 / n``.

    **Source** Shapley 1953; survey eq. (16).
    """

    def sizes(self, n: int) -> Vector:
        """Return the law of sizes, as :meth:`Semivalue.sizes` says: uniform."""
        return np.full(n, 1 / n)

    def counts(self, n: int, k: int) -> Iterator[Vector]:
        """Yield the laws of counts, as :meth:`Semivalue.counts` says: uniform on 0 .. m."""
        m = np.arange(n)
        for j in range(k):
            yield np.where(m >= j, 1 / (m + 1), 0.0)


@dataclass(frozen=True)
class LeaveOneOutWeights(Semivalue):
    """Leave-one-out: the coalition is everyone else, ``p_{n-1} = 1``. Survey eq. (7)."""

    def sizes(self, n: int) -> Vector:
        """Return the law of sizes, as :meth:`Semivalue.sizes` says: everyone else."""
        return np.where(np.arange(n) == n - 1, 1.0, 0.0)

    def counts(self, n: int, k: int) -> Iterator[Vector]:
        """Yield the laws of counts, as :meth:`Semivalue.counts` says: all m are in."""
        for j in range(k):
            yield np.where(np.arange(n) == j, 1.0, 0.0)


@dataclass(frozen=True)
class BanzhafWeights(Semivalue):
    """The (weighted) Banzhaf value: everyone else is in with probability q, independently.

    **Source** Banzhaf 1965, survey eq. (26), for q = 1/2; Li and Yu, NeurIPS 2023, for any q.

    Parameters
    ----------
    q : float
        Between 0 and 1.
    """

    q: float = 0.5

    def __post_init__(self) -> None:
        """Check the probability."""
        if not 0 < self.q < 1:
            raise InvalidInputError(f"q must be between 0 and 1, exclusively; got {self.q!r}.")

    def sizes(self, n: int) -> Vector:
        """Return the law of sizes, as :meth:`Semivalue.sizes` says: binomial."""
        k = np.arange(n)
        log_odds = np.log(self.q) - np.log1p(-self.q)
        log_law = _log_binomials(n - 1) + k * log_odds + (n - 1) * np.log1p(-self.q)
        return np.asarray(np.exp(log_law))

    def counts(self, n: int, k: int) -> Iterator[Vector]:
        """Yield the laws of counts, as :meth:`Semivalue.counts` says: binomial."""
        m = np.arange(n)
        log_odds = np.log(self.q) - np.log1p(-self.q)
        log_law = m * np.log1p(-self.q)
        for j in range(k):
            yield np.exp(log_law)
            with np.errstate(divide="ignore"):
                log_law = log_law + np.log(np.maximum(m - j, 0) / (j + 1)) + log_odds


@dataclass(frozen=True)
class BetaWeights(Semivalue):
    """Beta(alpha, beta) Shapley: everyone else is in with a probability drawn for them all.

    The probability is drawn from the beta distribution with the parameters ``(beta, alpha)``, in
    this order: Beta(16, 1) favours small coalitions, Beta(1, 16) large ones. Beta(1, 1) is the
    Shapley value.

    **Source** Kwon and Zou, AISTATS 2022. Their released code swaps the two parameters.

    Parameters
    ----------
    alpha, beta : float
        Positive.
    """

    alpha: float
    beta: float

    def __post_init__(self) -> None:
        """Check the parameters."""
        for name in ("alpha", "beta"):
            value = getattr(self, name)
            if not 0 < value < np.inf:
                raise InvalidInputError(f"{name} must be a positive number; got {value!r}.")

    def sizes(self, n: int) -> Vector:
        """Return the law of sizes, as :meth:`Semivalue.sizes` says: beta-binomial."""
        from scipy.special import betaln

        k = np.arange(n)
        log_law = betaln(k + self.beta, n - 1 - k + self.alpha) - betaln(self.beta, self.alpha)
        return np.asarray(np.exp(_log_binomials(n - 1) + log_law))

    def counts(self, n: int, k: int) -> Iterator[Vector]:
        """Yield the laws of counts, as :meth:`Semivalue.counts` says: beta-binomial."""
        m = np.arange(n)
        step = np.log((self.alpha + m[:-1]) / (self.alpha + self.beta + m[:-1]))
        log_law = np.concatenate([[0.0], np.cumsum(step)])
        for j in range(k):
            yield np.exp(log_law)
            more = np.full(n, -np.inf)
            left = m[j + 1 :] - j
            odds = left / (j + 1) * (self.beta + j) / (self.alpha + left - 1)
            more[j + 1 :] = log_law[j + 1 :] + np.log(odds)
            log_law = more


@dataclass(frozen=True)
class AMEWeights(Semivalue):
    """The average marginal effect: Banzhaf values averaged over probabilities of being in.

    **Source** Lin et al., ICML 2022.

    Parameters
    ----------
    probabilities : tuple of float
        Between 0 and 1, all equally likely.
    """

    probabilities: tuple[float, ...] = (0.2, 0.4, 0.6, 0.8)

    def __post_init__(self) -> None:
        """Check the probabilities."""
        if not isinstance(self.probabilities, tuple) or not self.probabilities:
            raise InvalidInputError(
                f"probabilities must be a tuple with an entry or more; got {self.probabilities!r}."
            )
        for q in self.probabilities:
            BanzhafWeights(q)

    def sizes(self, n: int) -> Vector:
        """Return the law of sizes, as :meth:`Semivalue.sizes` says: a mixture of binomials."""
        return np.asarray(np.mean([BanzhafWeights(q).sizes(n) for q in self.probabilities], axis=0))

    def counts(self, n: int, k: int) -> Iterator[Vector]:
        """Yield the laws of counts, as :meth:`Semivalue.counts` says: a mixture of binomials."""
        each = (BanzhafWeights(q).counts(n, k) for q in self.probabilities)
        for laws in zip(*each, strict=True):
            yield np.mean(laws, axis=0)


class SizeWeights(Semivalue):
    """Any semivalue, by the law of the coalition's size.

    Preparing it takes O(n^2) additions.

    Parameters
    ----------
    probabilities : array-like of shape (n,)
        ``p_0 .. p_{n-1}``, not negative, with the sum 1. In terms of the weight w_s of each
        coalition of size s, ``p_s = C(n - 1, s) w_s``.
    """

    def __init__(self, probabilities: ArrayLike) -> None:
        law = np.array(probabilities, dtype=np.float64)
        if law.ndim != 1 or not len(law) or not (law >= 0).all() or abs(law.sum() - 1) > 1e-9:
            raise InvalidInputError(
                "a semivalue by its weights takes n probabilities of the coalition's sizes "
                f"0 .. n - 1, not negative and with the sum 1; got {law.tolist()!r:.200}."
            )
        law.setflags(write=False)
        self.probabilities = law

    def __repr__(self) -> str:
        """Show the first of the probabilities."""
        return f"SizeWeights({reprlib.repr(self.probabilities.tolist())})"

    def sizes(self, n: int) -> Vector:
        """Return the law of sizes, as :meth:`Semivalue.sizes` says: the one that was given."""
        if len(self.probabilities) != n:
            raise InvalidInputError(
                f"semivalue: {len(self.probabilities)} probabilities of the coalition's size were "
                f"given for {n} training instances; pass one for each size 0 .. {n - 1}."
            )
        return self.probabilities

    def counts(self, n: int, k: int) -> Iterator[Vector]:
        """Yield the laws of counts, as :meth:`Semivalue.counts` says.

        ``P(j of m - 1) = P(j of m) (m - j) / m + P(j + 1 of m) (j + 1) / m``, as any of the m is as
        likely as another to be the one that is no longer looked at.
        """
        law = self.sizes(n)
        table = np.zeros((k, n))
        for m in range(n - 1, -1, -1):
            table[: m + 1, m] = law[:k]
            j = np.arange(m)
            law = (law[:-1] * (m - j) + law[1:] * (j + 1)) / m
        yield from table


def _log_binomials(n: int) -> Vector:
    """Return the logarithms of the binomial coefficients ``C(n, 0) .. C(n, n)``."""
    from scipy.special import gammaln

    k = np.arange(n + 1)
    return np.asarray(gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1))


PRESETS: dict[str, Semivalue] = {
    "shapley": ShapleyWeights(),
    "banzhaf": BanzhafWeights(),
    "leave_one_out": LeaveOneOutWeights(),
}


def semivalue_of(given: Any) -> Semivalue:
    """Return the semivalue that a name, an array of weights or a semivalue stands for.

    Raises
    ------
    InvalidInputError
        If it is none of them.
    """
    if isinstance(given, Semivalue):
        return given
    if isinstance(given, str):
        if given in PRESETS:
            return PRESETS[given]
    elif isinstance(given, (list, tuple, np.ndarray)):
        return SizeWeights(given)
    raise InvalidInputError(
        f"semivalue must be one of {', '.join(map(repr, PRESETS))}, an object such as "
        f"BetaWeights(4, 1), or an array with a probability for each size of a coalition; "
        f"got {given!r}."
    )
