"""Which states to keep when a chain of steps is gone through backwards in little memory."""

from __future__ import annotations

from math import comb


def repeats(steps: int, slots: int) -> int:
    r"""Return how many times a step is taken at most, to reverse a chain of states.

    With ``slots`` states kept beside the first one and the one in hand, r repeats reverse
    :math:`\binom{s+1+r}{r}` states.
    """
    count = 0
    while comb(slots + 1 + count, count) < steps:
        count += 1
    return count


def next_kept(steps: int, slots: int) -> int:
    """Return how far on the next state is kept, for ``steps`` states still to be reversed.

    The binomial schedule of Griewank and Walther (2000), which takes the fewest steps: what lies
    beyond the kept state is reversed with one slot fewer, and what lies before it with one
    repeat fewer. Where all states fit, every one is kept.

    Parameters
    ----------
    steps : int
        Number of states to be reversed from the one in hand, itself among them; at least 2.
    slots : int
        Number of states that can still be kept; without any the last state is walked to.

    Returns
    -------
    int
        In ``1 .. steps - 1``.
    """
    if slots == 0:
        return steps - 1
    count = repeats(steps, slots)
    fewest_before = comb(slots + count - 1, count - 2) if count > 1 else 1
    most_beyond = comb(slots + count, count)
    return max(fewest_before, steps - most_beyond)
