"""The binomial schedule recomputes no more than it has to."""

from math import comb

import pytest

from proponent.dynamic.replay.schedule import next_kept, repeats


def steps_taken(n, slots):
    """Count the steps that reversing n states takes, keeping at most ``slots`` states."""
    taken, most, kept = 0, 0, []
    for t in range(n - 1, -1, -1):
        while kept and kept[-1] > t:
            kept.pop()
        if kept and kept[-1] == t:
            continue
        at = kept[-1] if kept else 0
        while at < t:
            free = slots - len(kept)
            distance = next_kept(t - at + 1, free)
            assert 1 <= distance <= t - at
            at += distance
            taken += distance
            if at < t:
                kept.append(at)
        most = max(most, len(kept))
    assert most <= slots
    return taken


def fewest(n, slots, known={}):  # noqa: B006
    """Return the least number of steps by trying every place for the next kept state."""
    if n <= 1:
        return 0
    if slots == 0:
        return n * (n - 1) // 2
    if (n, slots) not in known:
        known[n, slots] = min(m + fewest(m, slots) + fewest(n - m, slots - 1) for m in range(1, n))
    return known[n, slots]


@pytest.mark.parametrize("slots", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("n", [1, 2, 3, 7, 20, 41])
def test_no_schedule_takes_fewer_steps(n, slots):
    assert steps_taken(n, slots) == fewest(n, slots)


def test_states_that_all_fit_are_computed_once():
    assert steps_taken(500, 499) == 499
    assert steps_taken(500, 10_000) == 499


@pytest.mark.parametrize("n", [100, 500, 2_000, 10_000])
def test_the_square_root_of_the_steps_suffices_for_few_repeats(n):
    root = int((2 * n) ** 0.5) + 1
    assert repeats(n, root) == 2
    assert steps_taken(n, root) <= 2 * n
    assert steps_taken(n, int(n**0.5)) <= 2.5 * n


@pytest.mark.parametrize("slots", [0, 1, 4, 9])
def test_no_step_is_taken_more_often_than_the_repeats(slots):
    for steps in range(2, 60):
        count = repeats(steps, slots)
        assert comb(slots + 1 + count, count) >= steps > comb(slots + count, count - 1)
        assert steps_taken(steps, slots) <= count * (steps - 1)
