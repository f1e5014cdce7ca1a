"""Correlation with leave-one-out: values, matching by id, and refusals."""

import numpy as np
import pytest
from scipy.stats import pearsonr, spearmanr

from proponent.evaluation import loo_correlation
from proponent.evaluation.leave_one_out import _groups
from proponent.exceptions import InvalidInputError, NonFiniteError
from proponent.influence import Influence


def pair(rng, n_test=5, n_train=60):
    loo = rng.normal(size=(n_test, n_train)) ** 3
    return 0.2 * loo + 0.3 * rng.normal(size=loo.shape), loo


def test_equals_scipy_pooled_and_per_test(rng):
    influence, loo = pair(rng)
    result = loo_correlation(influence, loo)
    pairs = list(zip(influence, loo, strict=True))
    pearson = [pearsonr(*p).statistic for p in pairs]
    spearman = [spearmanr(*p).statistic for p in pairs]
    np.testing.assert_allclose(result.per_test_pearson, pearson)
    np.testing.assert_allclose(result.per_test_spearman, spearman)
    assert result.mean_pearson.value == pytest.approx(np.mean(pearson))
    assert result.mean_spearman.value == pytest.approx(np.mean(spearman))
    flat = influence.ravel(), loo.ravel()
    assert result.pooled_pearson.value == pytest.approx(pearsonr(*flat).statistic)
    assert result.pooled_spearman.value == pytest.approx(spearmanr(*flat).statistic)


def test_pearson_and_spearman_differ_where_a_few_instances_rule():
    """The reason to print both: one strong instance decides Pearson alone."""
    loo = np.append(np.arange(20.0), 1e4)
    influence = np.append(-np.arange(20.0), 1e4)
    result = loo_correlation(influence, loo)
    assert result.pooled_pearson.value > 0.99
    assert result.pooled_spearman.value < 0
    assert len(repr(result).splitlines()) == 4


def test_joint_influence_is_one_row(rng):
    influence, loo = pair(rng, n_test=1)
    row = loo_correlation(influence[0], loo[0])
    assert row.mean_pearson.value == pytest.approx(row.pooled_pearson.value)
    assert list(row.table().index) == ["pooled"]
    joint = loo_correlation(Influence(influence[0]), Influence(loo[0]))
    assert joint.pooled_spearman == row.pooled_spearman


def test_rows_and_columns_are_matched_by_id(rng):
    """dattri ignores the ids it is handed and compares whatever stands in the same place."""
    influence, loo = pair(rng)
    tests, trains = np.array(list("vwxyz")), np.arange(60) * 7
    a, b = rng.permutation(5), rng.permutation(60)
    named = Influence(influence, test_ids=tests, train_ids=trains)
    shuffled = Influence(loo[np.ix_(a, b)], test_ids=tests[a], train_ids=trains[b])
    matched = loo_correlation(named, shuffled)
    expected = loo_correlation(influence, loo)
    assert matched.mean_pearson == expected.mean_pearson
    assert matched.pooled_spearman == expected.pooled_spearman
    assert loo_correlation(named, loo).pooled_pearson == expected.pooled_pearson
    unmatched = loo_correlation(influence, loo[np.ix_(a, b)])
    assert abs(unmatched.pooled_pearson.value) < 0.5 < expected.pooled_pearson.value


def test_ids_that_only_one_has_are_refused(rng):
    influence, loo = pair(rng)
    named = Influence(influence, train_ids=np.arange(60))
    with pytest.raises(InvalidInputError, match="loo has no train id 0, which influence has"):
        loo_correlation(named, Influence(loo, train_ids=np.arange(1, 61)))
    with pytest.raises(InvalidInputError, match="influence has no train id 60"):
        loo_correlation(named, Influence(np.c_[loo, loo[:, :1]], train_ids=np.arange(61)))
    with pytest.raises(InvalidInputError, match="loo has no test id 4"):
        loo_correlation(named, Influence(loo[:4]))


def test_interval_is_as_wide_as_fresh_training_sets_scatter(rng):
    # One mean for all tests: their number is fixed, the training instances are a sample.
    shared = rng.normal(size=(4, 1))

    def draw():
        loo = rng.normal(size=120) * shared + 0.5 * rng.normal(size=(4, 120))
        return loo + 0.8 * rng.normal(size=loo.shape), loo

    results = [loo_correlation(*draw()) for _ in range(100)]
    for name in ("pooled_pearson", "pooled_spearman", "mean_pearson", "mean_spearman"):
        figures = [getattr(result, name) for result in results]
        spread = np.std([figure.value for figure in figures])
        width = np.mean([(f.high - f.low) / (2 * 1.96) for f in figures])
        assert width == pytest.approx(spread, rel=0.25), name


def test_every_instance_is_in_one_of_the_deleted_groups():
    for n_train in (3, 100, 101, 250):
        groups = _groups(n_train, seed=0)
        assert len(groups) == min(n_train, 100)
        np.testing.assert_array_equal(np.sort(np.concatenate(groups)), np.arange(n_train))
        assert np.ptp([len(group) for group in groups]) <= 1


def test_constant_rows_are_left_out_and_named(rng):
    influence, loo = pair(rng)
    expected = loo_correlation(influence, loo).per_test_spearman
    influence[3] = 0.1
    result = loo_correlation(
        Influence(influence, test_ids=list("vwxyz")), Influence(loo, test_ids=list("vwxyz"))
    )
    assert list(result.undefined) == ["y"]
    assert result.mean_spearman.value == pytest.approx(expected[[0, 1, 2, 4]].mean())
    assert "1 test instances (y)" in repr(result)
    with pytest.raises(InvalidInputError, match="No correlation is defined"):
        loo_correlation(np.ones((5, 60)), loo)


def test_table_and_text(rng):
    result = loo_correlation(*pair(rng))
    table = result.table()
    assert table.loc["pooled", "pearson"] == result.pooled_pearson.value
    assert table.loc["mean over tests", "spearman_high"] == result.mean_spearman.high
    assert str(result.mean_pearson) in repr(result)
    assert str(result.pooled_spearman) in result._repr_html_()


def test_unusable_arguments_are_refused(rng):
    influence, loo = pair(rng)
    with pytest.raises(InvalidInputError, match=r"\(60, 5\).*\(5, 60\)"):
        loo_correlation(influence, loo.T)
    with pytest.raises(InvalidInputError, match="at least 3"):
        loo_correlation(influence[:, :2], loo[:, :2])
    with pytest.raises(InvalidInputError, match="1-D or 2-D"):
        loo_correlation(influence[None], loo[None])
    holed = influence.copy()
    holed[1, 8] = np.nan
    with pytest.raises(NonFiniteError, match=r"influence .*instance 18 "):
        loo_correlation(
            Influence(holed, train_ids=np.arange(10, 70)),
            Influence(loo, train_ids=np.arange(10, 70)),
        )
    with pytest.raises(NonFiniteError, match=r"loo .*instance 8 "):
        loo_correlation(influence, holed)
