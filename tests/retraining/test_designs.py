"""Which coalitions a design draws: the same again, by the law it names, balanced where it says."""

import tracemalloc
from collections import Counter
from fractions import Fraction
from itertools import pairwise, permutations, product
from math import comb, factorial

import numpy as np
import pytest
from retraining.games import all_masks
from scipy.stats import binom, chi2

from proponent.exceptions import InvalidInputError
from proponent.retraining.designs import (
    AMEGrid,
    Balanced,
    Bernoulli,
    Bootstrap,
    Exhaustive,
    GroupTesting,
    KFold,
    LeaveOneOutDesign,
    PairedComplements,
    Permutations,
    Ratios,
    SizeStratified,
    TwoSizes,
    UniformSize,
    WeighedSizes,
)
from proponent.retraining.designs.chosen_sizes import ChosenSizes, often
from proponent.retraining.designs.ends import WithEnds
from proponent.retraining.designs.fixed_players import FixedPlayers
from proponent.retraining.designs.sizes import CYCLE
from proponent.retraining.semivalues import BetaWeights, SizeWeights

# Each design by name, for n players.
SAMPLED = {
    "Bernoulli": lambda n: Bernoulli(0.3),
    "coins": lambda n: Bernoulli(),
    "AMEGrid": lambda n: AMEGrid(),
    "UniformSize": lambda n: UniformSize(max(1, n // 2)),
    "TwoSizes": lambda n: TwoSizes(max(2, n // 2)),
    "Ratios": lambda n: Ratios((1, max(1, n // 3), n)),
    "SizeStratified": lambda n: SizeStratified(),
    "GroupTesting": lambda n: GroupTesting(),
    "Balanced": lambda n: Balanced(max(1, n // 3)),
    "ChosenSizes": lambda n: ChosenSizes((0, 1, max(1, n // 2), n)),
    "KFold": lambda n: KFold(2),
    "Bootstrap": lambda n: Bootstrap(),
    "Permutations": lambda n: Permutations(),
    "antithetic Permutations": lambda n: Permutations(antithetic=True),
    "PairedComplements": lambda n: PairedComplements(GroupTesting()),
    "WeighedSizes": lambda n: WeighedSizes(BetaWeights(4, 1)),
    "WithEnds": lambda n: WithEnds(Permutations()),
    "FixedPlayers": lambda n: FixedPlayers(Bernoulli(), n),
}
LISTED = {"Exhaustive": lambda n: Exhaustive(), "LeaveOneOut": lambda n: LeaveOneOutDesign(20)}
TWO_OR_MORE = {"TwoSizes", "KFold"}  # players that it needs
COLUMNS = ("masks", "seeds", "chances", "blocks")


def same(one, other) -> bool:
    pairs = [(getattr(one, name), getattr(other, name)) for name in COLUMNS]
    return all(
        (a is None and b is None) or (a.dtype == b.dtype and np.array_equal(a, b)) for a, b in pairs
    )


def pieces(design, n, cuts, seed):
    """Return what is drawn piece by piece, put together."""
    parts = [design.draw(n, *ends, seed) for ends in pairwise(cuts)]
    joined = type(parts[0])(
        *(
            None
            if getattr(parts[0], name) is None
            else np.concatenate([getattr(part, name) for part in parts])
            for name in COLUMNS
        )
    )
    assert [len(part) for part in parts] == [b - a for a, b in pairwise(cuts)]
    return joined


def fits_law(counts, law) -> bool:
    """Return whether counts are those of a law, by Pearson's chi-square, one in a million wrong."""
    counts, law = np.asarray(counts, float), np.asarray(law, float)
    assert abs(law.sum() - 1) < 1e-12
    assert not counts[law == 0].any()
    counts, law = counts[law > 0], law[law > 0]
    expected = law * counts.sum()
    assert expected.min() > 5
    return float(((counts - expected) ** 2 / expected).sum()) < chi2.ppf(1 - 1e-6, len(law) - 1)


def codes(masks):
    """Return the number of each coalition in ``all_masks``."""
    return (masks != 0) @ 2 ** np.arange(masks.shape[1])


def by_size(law):
    """Return the probability of each coalition, uniform within the sizes ``0 .. n``."""
    n = len(law) - 1
    return np.array([law[size] / comb(n, size) for size in all_masks(n).sum(axis=1)])


# What all of them promise


@pytest.mark.parametrize("name", [*SAMPLED, *LISTED])
def test_a_longer_draw_begins_with_the_shorter_one(name):
    n = 7
    design = (SAMPLED | LISTED)[name](n)
    whole = design.draw(n, 0, 150, 3)
    if name in SAMPLED:
        assert len(whole) == 150
    top = len(whole)
    assert same(whole, pieces(design, n, [0, 1, 2, 3, 5, 20, 63, 64, 65, 100, top], 3))
    assert same(whole, pieces(design, n, [0, 61, 61, top], 3))
    assert same(design.draw(n, 70, 75, 3), whole.take(slice(70, 75)))
    assert same(whole, design.draw(n, 0, 150, 3))
    assert len(design.draw(n, 9, 9, 3)) == 0


@pytest.mark.parametrize("name", SAMPLED)
def test_other_seeds_and_numbers_of_players_give_others(name):
    n = 12
    design = SAMPLED[name](n)
    one, other = design.draw(n, 0, 130, 0), design.draw(n, 0, 130, 1)
    assert not np.array_equal(one.masks, other.masks)
    assert not np.isin(one.seeds, other.seeds).any()
    if name != "FixedPlayers":
        more = design.draw(n + 1, 0, 130, 0)
        assert not np.array_equal(one.masks, more.masks[:, :n])
    # What is drawn together is not drawn again.
    assert not np.array_equal(one.masks[2:64], one.masks[66:128])


@pytest.mark.parametrize("name", [*SAMPLED, "Exhaustive"])
def test_each_training_has_its_own_seed(name):
    seeds = (SAMPLED | LISTED)[name](9).draw(9, 0, 500, 0).seeds
    assert seeds.dtype == np.int64
    assert seeds.min() >= 0
    assert len(np.unique(seeds)) == 500


@pytest.mark.parametrize("name", [*SAMPLED, *LISTED])
@pytest.mark.parametrize("n", [1, 2])
def test_one_player_and_two(name, n):
    design = (SAMPLED | LISTED)[name](n)
    if n == 1 and name in TWO_OR_MORE:
        with pytest.raises(InvalidInputError, match=r"size|folds"):
            design.draw(n, 0, 70, 0)
        return
    drawn = design.draw(n, 0, 70, 0)
    total = design.total(n)
    assert len(drawn) == 70 if total is None else min(total, 70)
    assert drawn.masks.shape == (len(drawn), n)
    found = Counter(codes(drawn.masks).tolist())
    expected = {
        "UniformSize": [2**1 - 1] if n == 1 else [1, 2],
        "TwoSizes": [1, 2, 3],
        "Ratios": [1] if n == 1 else [1, 2, 3],
        "Balanced": [1] if n == 1 else [1, 2],
        "KFold": [1, 2],
        "Bootstrap": [1] if n == 1 else [1, 2, 3],
        "LeaveOneOut": [0, 1] if n == 1 else [1, 2, 3],
    }.get(name, list(range(2**n)))
    assert sorted(found) == expected


def test_the_coalitions_of_two_players_after_the_ends():
    for design in (SizeStratified(), GroupTesting(), Permutations()):
        drawn = design.draw(2, 0, 400, 0)
        assert drawn.sizes.tolist() == [0, 2] + [1] * 398
        assert 150 < drawn.masks[2:, 0].sum() < 250


# By what law


HALF = np.array([comb(5, s) * 0.3**s * 0.7 ** (5 - s) for s in range(6)])
GRID = np.mean(
    [[comb(5, s) * q**s * (1 - q) ** (5 - s) for s in range(6)] for q in AMEGrid().probabilities],
    axis=0,
)
KERNEL = np.array([0, *(Fraction(1, k) + Fraction(1, 5 - k) for k in range(1, 5)), 0])
# Of five players: from which row on, and the law of sizes.
LAWS = {
    "Bernoulli": (Bernoulli(0.3), 0, HALF),
    "coins": (Bernoulli(0.5), 0, np.array([comb(5, s) / 32 for s in range(6)])),
    "AMEGrid": (AMEGrid(), 0, GRID),
    "UniformSize": (UniformSize(2), 0, np.eye(6)[2]),
    "TwoSizes": (TwoSizes(3), 0, [0, 0, 0.5, 0.5, 0, 0]),
    "Ratios": (Ratios((1, 4, 5)), 0, [0, 1 / 3, 0, 0, 1 / 3, 1 / 3]),
    "SizeStratified": (SizeStratified(), 2, [0, 0.25, 0.25, 0.25, 0.25, 0]),
    "GroupTesting": (GroupTesting(), 2, (KERNEL / KERNEL.sum()).astype(float)),
    "Balanced": (Balanced(2), 0, np.eye(6)[2]),
    "ChosenSizes": (ChosenSizes((0, 2, 2, 3)), 1, [0, 0, 2 / 3, 1 / 3, 0, 0]),
    "KFold": (KFold(5), 0, np.eye(6)[4]),
    "Permutations": (Permutations(), 2, [0, 0.25, 0.25, 0.25, 0.25, 0]),
    "PairedComplements": (PairedComplements(UniformSize(1)), 0, [0, 0.5, 0, 0, 0.5, 0]),
    "WithEnds": (WithEnds(UniformSize(2)), 2, np.eye(6)[2]),
}


@pytest.mark.parametrize("name", LAWS)
def test_coalitions_of_a_size_are_equally_likely(name):
    design, first, law = LAWS[name]
    masks = design.draw(5, 0, 12_000 + first, 0).masks[first:]
    counts = np.bincount(codes(masks), minlength=32)
    assert fits_law(counts, by_size(np.asarray(law, float)))


@pytest.mark.parametrize(
    "name", ["Bernoulli", "coins", "UniformSize", "GroupTesting", "SizeStratified"]
)
def test_two_players_are_drawn_apart_from_the_next_two(name):
    """Players of one coalition, and one player in coalitions of one block, are independent."""
    design, first, _ = LAWS[name]
    masks = design.draw(5, 0, 8000 + first, 0).masks[first:].astype(float)
    for lag in (1, 63, 64):
        one, next_one = masks[:-lag] - masks.mean(axis=0), masks[lag:] - masks.mean(axis=0)
        # Stratified sizes repel each other a little within a run of n - 1.
        correlation = (one.T @ next_one / len(one)) / masks.var(axis=0).mean()
        assert np.abs(correlation).max() < (0.12 if name == "SizeStratified" else 0.06)


def test_each_run_of_all_sizes_has_every_size_once():
    for n in (2, 3, 8, 100):
        drawn = SizeStratified().draw(n, 0, 2 + 7 * (n - 1), 0)
        assert not drawn.masks[0].any()
        assert drawn.masks[1].all()
        runs = drawn.sizes[2:].reshape(7, n - 1)
        assert (np.sort(runs, axis=1) == np.arange(1, n)).all()
        if n == 100:
            assert len({tuple(run) for run in runs}) == 7


def test_nobody_and_everybody_come_before_group_testing():
    drawn = GroupTesting().draw(9, 0, 300, 5)
    assert drawn.sizes[:2].tolist() == [0, 9]
    assert set(drawn.sizes[2:]) == set(range(1, 9))


def test_sizes_in_turns():
    assert TwoSizes(4).draw(6, 3, 9, 0).sizes.tolist() == [3, 4, 3, 4, 3, 4]
    assert Ratios((2, 5, 1)).draw(6, 1, 7, 0).sizes.tolist() == [5, 1, 2, 5, 1, 2]
    turns = ChosenSizes((0, 1, 1, 4, 6)).draw(6, 0, 8, 0).sizes.tolist()
    assert turns == [0, 6, 1, 1, 4, 1, 1, 4]
    assert ChosenSizes((0, 3)).draw(3, 0, 4, 0).sizes.tolist() == [0, 3, 0, 3]


def test_sizes_as_often_as_wanted():
    assert sorted(often([1, 2, 4], 1)) == [1] * 4 + [2] * 2 + [4]
    assert often([1, 2, 4], 0) == [1, 2, 4]
    spread = often([1, 10], 1)
    assert spread.index(10) == 5
    assert often([0, 2], 1).count(0) == 2
    assert len(often([1, 10**6], 2)) == 1001


@pytest.mark.parametrize(("n", "size"), [(6, 2), (10, 7), (15, 4), (12, 12), (30, 1), (100, 70)])
def test_balanced_coalitions_have_each_player_equally_often(n, size):
    assert CYCLE * size % n == 0
    masks = Balanced(size).draw(n, 0, 4 * CYCLE, 0).masks
    assert (masks.sum(axis=1) == size).all()
    assert (masks.reshape(4, CYCLE, n).sum(axis=1) == CYCLE * size // n).all()


@pytest.mark.parametrize(("n", "size"), [(7, 2), (7, 5), (100, 71), (64, 1), (130, 129), (301, 2)])
def test_or_one_more_or_less(n, size):
    masks = Balanced(size).draw(n, 0, 3 * CYCLE, 0).masks
    assert (masks.sum(axis=1) == size).all()
    for cycle in masks.reshape(3, CYCLE, n):
        assert np.ptp(cycle.sum(axis=0)) == 1
    # Also on the way: whoever stands in k orders so far is in k coalitions, or in one less.
    assert (np.ptp(np.cumsum(masks[:CYCLE], axis=0), axis=1) <= 2).all()


@pytest.mark.parametrize(("n", "folds"), [(10, 10), (10, 3), (7, 2), (100, 10)])
def test_every_player_is_out_once_a_split(n, folds):
    drawn = KFold(folds).draw(n, 0, 5 * folds, 0)
    out = ~drawn.masks.reshape(5, folds, n)
    assert (out.sum(axis=1) == 1).all()
    assert set(out.sum(axis=2).ravel()) <= {n // folds, -(-n // folds)}
    assert drawn.blocks.tolist() == np.repeat(np.arange(5), folds).tolist()
    if folds < n:
        assert not np.array_equal(out[0], out[1])


@pytest.mark.parametrize("n", [1, 3, 300])
def test_a_bootstrap_sample_has_n_members(n):
    counts = Bootstrap().draw(n, 0, 640, 0).masks
    assert counts.dtype == np.uint8
    assert (counts.sum(axis=1, dtype=np.int64) == n).all()  # so none has wrapped at 256
    assert counts.max() < 10


def test_a_player_is_never_drawn_256_times():
    for n in (300, 60_000, 10**7):
        assert n * binom.sf(255, n, 1 / n) < 1e-300


def test_bootstrap_counts_are_multinomial():
    counts = Bootstrap().draw(3, 0, 8000, 0).masks
    possible = [c for c in product(range(4), repeat=3) if sum(c) == 3]
    law = [6 / 27 / np.prod([factorial(k) for k in c]) for c in possible]
    found = Counter(map(tuple, counts.tolist()))
    assert fits_law([found[c] for c in possible], law)


def test_probabilities_are_noted():
    for q in (0.3, 0.5):
        assert (Bernoulli(q).draw(4, 0, 9, 0).chances == q).all()
    drawn = AMEGrid((0.1, 0.5, 0.8)).draw(40, 0, 6000, 0)
    found, counts = np.unique(drawn.chances, return_counts=True)
    assert found.tolist() == [0.1, 0.5, 0.8]
    assert fits_law(counts, [1 / 3] * 3)
    for q in found:
        rows = drawn.masks[drawn.chances == q]
        error = np.sqrt(q * (1 - q) / rows.size)
        assert abs(rows.mean() - q) < 5 * error
    # Everyone apart: sizes are binomial, not wider.
    sizes = drawn.sizes[drawn.chances == 0.5]
    assert sizes.var() == pytest.approx(10, rel=0.12)


@pytest.mark.parametrize("antithetic", [False, True])
def test_coalitions_grow_along_orders(antithetic):
    n, orders = 6, 40
    drawn = Permutations(antithetic).draw(n, 0, 2 + orders * (n - 1), 0)
    assert drawn.sizes.tolist() == [0, n, *list(range(1, n)) * orders]
    assert drawn.blocks[:2].tolist() == [-1, -1]
    walks = drawn.masks[2:].reshape(orders, n - 1, n)
    assert (walks[:, 1:] >= walks[:, :-1]).all()
    number = np.arange(orders) // 2 if antithetic else np.arange(orders)
    assert drawn.blocks[2:].tolist() == np.repeat(number, n - 1).tolist()
    if antithetic:
        # The first k of the reverse are all but the first n - k of the order.
        assert (walks[1::2] == ~walks[::2, ::-1]).all()
    assert len({walk.tobytes() for walk in walks}) > 35


def test_all_orders_are_equally_likely():
    ranks = [tuple(Permutations().ranks(4, number, 0).tolist()) for number in range(4000)]
    counts = Counter(ranks)
    assert fits_law([counts[order] for order in permutations(range(4))], [1 / 24] * 24)


def test_a_coalition_and_who_is_not_in_it():
    inner = UniformSize(3)
    drawn = PairedComplements(inner).draw(8, 0, 101, 2)
    assert (drawn.masks[::2] == inner.draw(8, 0, 51, 2).masks).all()
    assert (drawn.masks[1::2] == ~drawn.masks[:-1:2]).all()
    assert drawn.blocks.tolist() == [j // 2 for j in range(101)]
    chances = PairedComplements(AMEGrid((0.2, 0.7))).draw(8, 3, 60, 2).chances
    first = AMEGrid((0.2, 0.7)).draw(8, 1, 30, 2).chances
    assert chances[1::2] == pytest.approx(first[1:])
    assert chances[::2] == pytest.approx(1 - first)
    paired = PairedComplements(Exhaustive())
    assert paired.total(3) == 16
    assert len(paired.draw(3, 10, 99, 0)) == 6
    assert PairedComplements(inner).total(8) is None


def test_nobody_and_everybody_before_another_design():
    inner = Permutations()
    drawn = WithEnds(inner).draw(5, 0, 20, 1)
    assert drawn.sizes[:2].tolist() == [0, 5]
    assert (drawn.masks[2:] == inner.draw(5, 0, 18, 1).masks).all()
    assert (drawn.seeds[2:] == inner.draw(5, 0, 18, 1).seeds).all()
    assert drawn.blocks[:2].tolist() == [-2, -1]


def test_another_number_of_players():
    fixed = FixedPlayers(Bernoulli(), 9)
    assert same(fixed.draw(4, 3, 50, 0), Bernoulli().draw(9, 3, 50, 0))


# Those that end


def test_every_coalition_once():
    for n in (1, 3, 10):
        assert Exhaustive().total(n) == 2**n
        assert (Exhaustive().draw(n, 0, 2**n, 0).masks == all_masks(n)).all()
    assert len(Exhaustive().draw(3, 6, 100, 0)) == 2
    assert len(Exhaustive().draw(3, 8, 100, 0)) == 0
    assert Exhaustive().total(20) == 2**20


def test_beyond_twenty_players_there_are_too_many():
    for call in (Exhaustive().total, lambda n: Exhaustive().draw(n, 0, 1, 0)):
        with pytest.raises(InvalidInputError, match=r"21 players have 2\^21.*20 groups or fewer"):
            call(21)


def test_everyone_and_everyone_but_one():
    design = LeaveOneOutDesign(repeats=3)
    assert design.total(4) == 15
    drawn = design.draw(4, 0, 99, 0)
    expected = np.vstack([np.ones((1, 4), bool), ~np.eye(4, dtype=bool)])
    assert (drawn.masks == np.tile(expected, (3, 1))).all()
    # A common seed within a repeat, another one in each.
    assert (drawn.seeds.reshape(3, 5) == drawn.seeds[::5, None]).all()
    assert len(np.unique(drawn.seeds)) == 3


# What does not suit


@pytest.mark.parametrize(
    ("design", "message"),
    [
        (UniformSize(0), "size: coalitions of 0 of 5 players; use 1 to 5"),
        (UniformSize(6), "use 1 to 5"),
        (TwoSizes(1), "size: coalitions of 1 of 5 players; use 2 to 5"),
        (Ratios((2, 6)), "coalitions of 6 of 5"),
        (Balanced(6), "coalitions of 6 of 5"),
        (KFold(1), "folds: 1 folds of 5 players; use 2 to 5"),
        (KFold(6), "folds: 6 folds of 5"),
        (Bernoulli(0.0), "q must be a number between 0 and 1; got 0.0"),
        (Bernoulli(1.0), "q must be"),
        (Bernoulli("half"), "q must be"),
        (AMEGrid(()), "probabilities: give at least one"),
        (AMEGrid((0.5, 1.0)), "probabilities must be"),
    ],
    ids=str,
)
def test_refusals(design, message):
    with pytest.raises(InvalidInputError, match=message):
        design.draw(5, 0, 3, 0)


# Many players


@pytest.mark.parametrize("name", [name for name in SAMPLED if name != "FixedPlayers"])
def test_many_players_take_bounded_memory(name):
    """That of 64 coalitions: two arrays of 31 MB each, and their masks; however many are drawn."""
    n = 60_000
    design = SAMPLED[name](n)
    tracemalloc.start()
    drawn = design.draw(n, 100, 130, 0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert drawn.masks.shape == (30, n)
    assert peak < 150e6
    again = design.draw(n, 128, 129, 0)
    assert (again.masks == drawn.masks[28:29]).all()


def test_no_ratio_is_refused():
    with pytest.raises(InvalidInputError, match="sizes: give at least one"):
        Ratios(()).draw(8, 0, 5, 0)


def test_sizes_come_as_often_as_they_weigh():
    """For all sizes alike, 1 / sqrt(q (1 - q)); for a law on few sizes, these alone."""
    n = 9
    k = np.arange(1, n)
    shapley = WeighedSizes(BetaWeights(1, 1))
    wanted = 1 / np.sqrt(k * (n - k))
    assert shapley.law(n) == pytest.approx(wanted / wanted.sum())
    sizes = shapley.draw(n, 0, 6402, 0).sizes
    assert sizes[:2].tolist() == [0, n]
    # One from each of 64 equal portions: far nearer to the law than independent draws.
    shares = np.bincount(sizes[2:], minlength=n)[1:n] / 6400
    assert shares == pytest.approx(shapley.law(n), abs=0.004)
    small = WeighedSizes(SizeWeights([0, 1, 0, 0, 0, 0, 0, 0, 0])).draw(n, 2, 500, 0).sizes
    assert set(small.tolist()) == {1, 2}
