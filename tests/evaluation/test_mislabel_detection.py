"""Mislabel detection against scikit-learn, exhaustive enumeration and closed forms."""

import itertools
import subprocess
import sys

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from proponent import evaluation
from proponent.evaluation import (
    by_memorization,
    by_opponents,
    flip_labels,
    mislabel_detection,
)
from proponent.evaluation.ranking import (
    Ordering,
    bootstrap_figures,
    expected_average_precision,
    random_figures,
)
from proponent.exceptions import InvalidInputError, NonFiniteError
from proponent.influence import Influence


def noisy_scores(rng, n=400, n_wrong=60, levels=None):
    """Scores that lean towards the wrong labels, with ties where levels are given."""
    wrong = np.zeros(n, dtype=bool)
    wrong[rng.choice(n, n_wrong, replace=False)] = True
    scores = rng.normal(size=n) + 1.2 * wrong
    return (scores if levels is None else np.round(scores * levels)), wrong


def found_by_hand(scores, wrong, n_checked):
    """Mean share found over all ways to break the ties, one whole instance at a time."""
    sure = scores > np.sort(scores)[::-1][n_checked - 1]
    tied = np.flatnonzero(scores == np.sort(scores)[::-1][n_checked - 1])
    picks = list(itertools.combinations(tied, n_checked - sure.sum()))
    return np.mean([(wrong[sure].sum() + wrong[list(p)].sum()) / wrong.sum() for p in picks])


@pytest.mark.parametrize("levels", [None, 2])
def test_figures_equal_scikit_learn(rng, levels):
    scores, wrong = noisy_scores(rng, levels=levels)
    row = mislabel_detection({"mine": scores}, wrong, n_bootstrap=5)["mine"]
    assert row.auroc.value == pytest.approx(roc_auc_score(wrong, scores), abs=1e-12)
    expected = average_precision_score(wrong, scores)
    assert row.average_precision.value == pytest.approx(expected, abs=1e-12)


def test_found_is_the_mean_over_all_ways_to_break_ties():
    scores = np.array([3, 2, 2, 2, 2, 1, 1, 0, 0, 0.0])
    wrong = np.array([0, 1, 0, 1, 0, 0, 1, 0, 0, 1], dtype=bool)
    for n_checked in range(1, 10):
        row = mislabel_detection(scores, wrong, checked=n_checked / 10, n_bootstrap=2)["scores"]
        expected = found_by_hand(scores, wrong, n_checked)
        assert row.found.value == pytest.approx(expected, abs=1e-12)


def test_curve_joins_the_ends_of_ties():
    scores = np.array([5.0, 4.0, 4.0, 1.0])
    wrong = np.array([True, False, True, False])
    detection = mislabel_detection(scores, wrong, n_bootstrap=2)
    checked, found = detection.curve("scores")
    np.testing.assert_allclose(checked, [0, 0.25, 0.75, 1])
    np.testing.assert_allclose(found, [0, 0.5, 1, 1])
    np.testing.assert_allclose(detection.curve("random"), [[0, 1], [0, 1]])
    with pytest.raises(KeyError, match="nobody"):
        detection.curve("nobody")


def test_found_lies_on_the_curve(rng):
    scores, wrong = noisy_scores(rng, levels=3)
    detection = mislabel_detection(scores, wrong, checked=0.17, n_bootstrap=2)
    assert detection["scores"].found.value == pytest.approx(
        np.interp(0.17, *detection.curve("scores")), abs=1e-12
    )


# What peers get wrong


def test_tiny_scores_in_a_large_set_keep_their_order():
    """quanda adds index * 1e-4 to break ties, which outweighs scores of 1e-2 at n = 10,000."""
    n = 10_000
    wrong = np.zeros(n, dtype=bool)
    wrong[np.random.default_rng(1).choice(n, n // 10, replace=False)] = True
    scores = 1e-2 * (1.0 + 1e-6 * wrong)
    row = mislabel_detection({"perfect": scores}, wrong, n_bootstrap=2)["perfect"]
    assert row.auroc.value == 1.0
    assert row.average_precision.value == pytest.approx(1.0, abs=1e-12)
    assert row.found.value == pytest.approx(1.0, abs=1e-12)


def test_scale_and_order_of_the_instances_do_not_matter(rng):
    scores, wrong = noisy_scores(rng, levels=3)
    shuffled = rng.permutation(len(scores))
    detection = mislabel_detection({"as is": scores, "tiny": scores * 2.0**-900}, wrong)
    moved = mislabel_detection({"as is": scores[shuffled]}, wrong[shuffled], n_bootstrap=2)
    for figure in ("auroc", "average_precision", "found"):
        assert getattr(detection["tiny"], figure) == getattr(detection["as is"], figure)
        assert getattr(moved["as is"], figure).value == pytest.approx(
            getattr(detection["as is"], figure).value, abs=1e-12
        )


@pytest.mark.parametrize("places", [slice(0, 20), slice(80, 100), slice(0, 100, 5)])
def test_constant_scores_know_nothing_wherever_the_wrong_labels_are(places):
    """dattri gives .29 or .75 here, by position."""
    wrong = np.zeros(100, dtype=bool)
    wrong[places] = True
    row = mislabel_detection({"constant": np.full(100, 0.3)}, wrong, n_bootstrap=50)["constant"]
    assert row.auroc.value == row.auroc.low == row.auroc.high == 0.5
    assert row.average_precision.value == pytest.approx(0.2)
    assert row.found.value == pytest.approx(0.1)


def test_a_column_is_not_a_vector():
    """dattri's brittleness takes (n, 1) and ranks nothing, so that only instance 0 is removed."""
    wrong = np.array([True, False, False])
    with pytest.raises(InvalidInputError, match=r"shape \(3, 1\).*x\[:, 0\]"):
        mislabel_detection(np.array([[3.0], [2.0], [1.0]]), wrong)
    with pytest.raises(InvalidInputError, match=r"shape \(n,\), got \(3, 1\)"):
        mislabel_detection(np.arange(3.0), wrong[:, None])
    with pytest.raises(InvalidInputError, match=r"shape \(3, 1\)"):
        by_memorization(np.ones((3, 1)))


def test_a_perfect_ranking_finds_every_flipped_label():
    """TreeInfluence draws noise with replacement: at 40 %, at most 83 % could be found."""
    _, flipped = flip_labels(np.arange(1000) % 10, 0.4)
    row = mislabel_detection(flipped.astype(float), flipped, checked=0.4, n_bootstrap=2)["scores"]
    assert row.found.value == pytest.approx(1.0)


# The random row


def test_expected_average_precision_is_the_mean_over_all_orders():
    for n, m in [(2, 1), (5, 1), (7, 3), (6, 5)]:
        descending = np.arange(n, 0, -1.0)
        values = []
        for places in itertools.combinations(range(n), m):
            wrong = np.isin(np.arange(n), places)
            values.append(average_precision_score(wrong, descending))
        assert expected_average_precision(n, m) == pytest.approx(np.mean(values), abs=1e-12)


def test_random_orders_have_the_expected_figures(rng):
    wrong = np.arange(200) < 30
    drawn = random_figures(wrong, 0.15, 20_000, rng)
    expected = np.array([0.5, expected_average_precision(200, 30), 0.15])
    error = drawn.std(axis=0) / np.sqrt(len(drawn))
    assert (np.abs(drawn.mean(axis=0) - expected) < 4 * error).all()
    # Mann and Whitney's variance of the AUROC without any relation.
    assert drawn[:, 0].std() == pytest.approx(np.sqrt(201 / (12 * 30 * 170)), rel=0.03)


def test_random_row_is_exact_and_says_where_random_orders_lie():
    wrong = np.arange(500) < 100
    row = mislabel_detection(np.arange(500.0), wrong, checked=0.3, n_bootstrap=4000)["random"]
    assert (row.auroc.value, row.found.value) == (0.5, 0.3)
    assert row.average_precision.value == expected_average_precision(500, 100)
    half_width = 1.96 * np.sqrt(501 / (12 * 100 * 400))
    assert row.auroc.low == pytest.approx(0.5 - half_width, abs=0.006)
    assert row.auroc.high == pytest.approx(0.5 + half_width, abs=0.006)


# Intervals


def test_a_resample_counts_as_repeated_instances(rng):
    scores, wrong = noisy_scores(rng, n=80, n_wrong=20, levels=2)
    counts = rng.integers(0, 4, size=80)
    figures = Ordering(scores, wrong).figures(counts[None].astype(float), 0.25)[0]
    repeated, marks = np.repeat(scores, counts), np.repeat(wrong, counts)
    checked, found = Ordering(repeated, marks).curve()
    expected = [
        roc_auc_score(marks, repeated),
        average_precision_score(marks, repeated),
        np.interp(0.25, checked, found),
    ]
    np.testing.assert_allclose(figures, expected, atol=1e-12)


def test_resamples_keep_both_numbers_and_are_shared_by_all_methods(rng):
    scores, wrong = noisy_scores(rng, n=50, n_wrong=3)
    same = [Ordering(scores, wrong), Ordering(2 * scores, wrong)]
    first, second = bootstrap_figures(same, wrong, 0.1, 300, rng)
    assert np.isfinite(first).all()
    np.testing.assert_array_equal(first, second)


def test_interval_is_as_wide_as_fresh_samples_scatter(rng):
    fresh = []
    for _ in range(600):
        scores, wrong = noisy_scores(rng)
        fresh.append(Ordering(scores, wrong).figures(np.ones((1, 400)), 0.1)[0])
    spread = np.std(fresh, axis=0)
    widths = []
    for _ in range(10):
        scores, wrong = noisy_scores(rng)
        row = mislabel_detection(scores, wrong)["scores"]
        figures = (row.auroc, row.average_precision, row.found)
        widths.append([(f.high - f.low) / (2 * 1.96) for f in figures])
    np.testing.assert_allclose(np.mean(widths, axis=0), spread, rtol=0.2)


def test_seed_fixes_the_intervals(rng):
    scores, wrong = noisy_scores(rng)
    results = [mislabel_detection(scores, wrong, seed=seed) for seed in (3, 3, 4)]
    assert results[0]["scores"].auroc == results[1]["scores"].auroc
    assert results[0]["scores"].auroc != results[2]["scores"].auroc


def test_blocks_of_resamples_do_not_change_the_count(rng, monkeypatch):
    monkeypatch.setattr("proponent.evaluation.ranking.BLOCK_ENTRIES", 1000)
    scores, wrong = noisy_scores(rng)
    drawn = bootstrap_figures([Ordering(scores, wrong)], wrong, 0.1, 7, rng)
    assert drawn.shape == (1, 7, 3)
    assert len(np.unique(drawn[0, :, 0])) == 7


# Directions and rows


def test_directions_are_named(rng):
    wrong = np.array([True, False, True, False])
    values = np.array([[-1.0, 2.0, -3.0, 1.0], [-1.0, -0.5, 0.5, 1.0]])
    np.testing.assert_allclose(by_opponents(Influence(values)), [2.0, -1.5, 2.5, -2.0])
    np.testing.assert_allclose(by_opponents(values), by_opponents(Influence(values.sum(axis=0))))
    memorization = Influence(np.array([4.0, 1.0, 3.0, 2.0]))
    np.testing.assert_allclose(by_memorization(memorization), [4, 1, 3, 2])
    detection = mislabel_detection(
        {"opponents": by_opponents(Influence(values)), "self": by_memorization(memorization)},
        wrong,
        n_bootstrap=2,
    )
    assert detection["opponents"].auroc.value == detection["self"].auroc.value == 1.0
    with pytest.raises(InvalidInputError, match=r"by_memorization.*by_opponents"):
        mislabel_detection({"self": memorization}, wrong)
    with pytest.raises(InvalidInputError, match=r"by_memorization.*by_opponents"):
        mislabel_detection(memorization, wrong)
    with pytest.raises(InvalidInputError, match="memorization"):
        by_memorization(Influence(values))


def test_rows_table_and_text(rng):
    scores, wrong = noisy_scores(rng)
    detection = mislabel_detection(
        {"b <i>": scores, "a": -scores},
        wrong,
        losses=scores + 1,
        seconds={"a": 1.234, "loss": 0.0},
        checked=0.25,
        n_bootstrap=100,
    )
    table = detection.table()
    assert list(table.index) == ["b <i>", "a", "loss", "random"]
    assert table.loc["loss", "auroc"] == pytest.approx(roc_auc_score(wrong, scores))
    assert table.loc["a", "auroc"] == pytest.approx(1 - table.loc["loss", "auroc"])
    assert table.loc["a", "found_low"] == detection["a"].found.low
    assert table.loc["a", "seconds"] == 1.234
    assert np.isnan(table.loc["random", "seconds"])
    lines = repr(detection).splitlines()
    assert "60 mislabelled among 400" in lines[0]
    assert "found in worst 25 %" in lines[1]
    assert str(detection["loss"].auroc) in lines[4]
    assert len({line.index("[") for line in lines[2:6]}) == 1
    html = detection._repr_html_()
    assert "b &lt;i&gt;" in html
    assert "<i>" not in html
    untimed = mislabel_detection(scores, wrong, n_bootstrap=2)
    assert "seconds" not in untimed.table().columns


def test_tensors_are_accepted(rng):
    torch = pytest.importorskip("torch")
    scores, wrong = noisy_scores(rng)
    tensors = mislabel_detection(
        torch.tensor(scores, requires_grad=True), torch.tensor(wrong), n_bootstrap=2
    )
    arrays = mislabel_detection(scores, wrong, n_bootstrap=2)
    assert tensors["scores"].auroc == arrays["scores"].auroc
    half = mislabel_detection(torch.tensor([2.0, 1.0]).bfloat16(), [True, False], n_bootstrap=2)
    assert half["scores"].auroc.value == 1.0


# Refusals


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_scores_that_are_not_finite_are_named_by_index(bad):
    scores = np.arange(12.0)
    scores[[4, 9]] = bad
    with pytest.raises(NonFiniteError, match=r"scores\['mine'\].*4, 9 \(2 of 12\)"):
        mislabel_detection({"mine": scores}, np.arange(12) < 3)
    with pytest.raises(NonFiniteError, match=r"losses.*4, 9"):
        mislabel_detection(np.arange(12.0), np.arange(12) < 3, losses=scores)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mislabelled": np.zeros(4, dtype=bool)}, "marks 0 of 4"),
        ({"mislabelled": np.ones(4, dtype=bool)}, "marks 4 of 4"),
        ({"mislabelled": np.array([0, 1, 0, 1])}, "boolean mask"),
        ({"mislabelled": np.array([True, False])}, "4 entries, but mislabelled has 2"),
        ({"losses": np.ones(3)}, "losses has 3 entries"),
        ({"scores": {}}, "no method"),
        ({"scores": {"random": np.ones(4)}}, "'random'"),
        ({"scores": {"loss": np.ones(4)}, "losses": np.ones(4)}, "'loss'"),
        ({"scores": np.array(["a", "b", "c", "d"])}, "real numbers"),
        ({"seconds": {"else": 1.0}}, "'else'"),
        ({"checked": 0.0}, "checked"),
        ({"checked": 1.0}, "checked"),
        ({"confidence": 95}, "confidence"),
        ({"n_bootstrap": 0}, "n_bootstrap"),
    ],
)
def test_unusable_arguments_are_refused(arguments, message):
    usable = {"scores": np.arange(4.0), "mislabelled": np.array([True, False, False, True])}
    with pytest.raises(InvalidInputError, match=message):
        mislabel_detection(**(usable | arguments))


def test_package_exports_what_it_says_and_imports_little():
    assert all(hasattr(evaluation, name) for name in evaluation.__all__)
    code = (
        "import sys, proponent.evaluation; "
        "print(sorted({'torch', 'pandas', 'sklearn', 'scipy'} & set(sys.modules)))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"
