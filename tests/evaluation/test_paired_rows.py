"""Weighted row correlations against SciPy on repeated columns."""

import numpy as np
import pytest
from scipy.stats import pearsonr, spearmanr

from proponent.evaluation.correlation import PairedRows, mean_of_defined
from proponent.evaluation.estimates import (
    correlation_estimate,
    jackknife_variance,
    percentile_estimate,
)
from proponent.evaluation.ranking import resample


def rows(rng, tied):
    first = rng.normal(size=(4, 30))
    second = 0.5 * first + rng.normal(size=(4, 30))
    return (np.round(first), np.round(second)) if tied else (first, second)


@pytest.mark.parametrize("tied", [False, True])
def test_equal_to_scipy(rng, tied):
    first, second = rows(rng, tied)
    paired = PairedRows(first, second)
    pairs = list(zip(first, second, strict=True))
    np.testing.assert_allclose(paired.pearson(), [pearsonr(*p).statistic for p in pairs])
    np.testing.assert_allclose(paired.spearman(), [spearmanr(*p).statistic for p in pairs])


@pytest.mark.parametrize("tied", [False, True])
def test_weights_repeat_columns(rng, tied):
    first, second = rows(rng, tied)
    weights = resample(rng, 30, 1)[0]
    repeats = weights.astype(int)
    repeated = PairedRows(np.repeat(first, repeats, axis=1), np.repeat(second, repeats, axis=1))
    paired = PairedRows(first, second)
    np.testing.assert_allclose(paired.pearson(weights), repeated.pearson(), atol=1e-12)
    np.testing.assert_allclose(paired.spearman(weights), repeated.spearman(), atol=1e-12)


@pytest.mark.parametrize("scale", [1e-150, 1e-9, 1e150])
def test_scale_does_not_matter(rng, scale):
    first, second = rows(rng, False)
    scaled = PairedRows(first * scale, second / scale)
    np.testing.assert_allclose(scaled.pearson(), PairedRows(first, second).pearson())
    np.testing.assert_allclose(scaled.spearman(), PairedRows(first, second).spearman())


def test_constant_rows_are_undefined(rng):
    first = np.stack([np.full(10, 0.1), rng.normal(size=10)])
    second = rng.normal(size=(2, 10))
    for correlations in (PairedRows(first, second).pearson(), PairedRows(second, first).spearman()):
        np.testing.assert_array_equal(np.isnan(correlations), [True, False])
    # A resample that holds one column only is constant too.
    single = np.eye(10)[3] * 10
    assert np.isnan(PairedRows(first, second).pearson(single)).all()
    assert np.isnan(PairedRows(first, second).spearman(single)).all()


def test_resamples_are_multinomial(rng):
    counts = resample(rng, 8, 50_000)
    assert (counts.sum(axis=1) == 8).all()
    np.testing.assert_allclose(counts.mean(axis=0), 1.0, atol=0.02)
    np.testing.assert_allclose(np.cov(counts.T), np.eye(8) - 1 / 8, atol=0.03)


def test_jackknife_variance_of_a_mean_is_the_textbook_one(rng):
    values = rng.normal(size=(25, 2))
    without = (values.sum(axis=0) - values) / 24
    np.testing.assert_allclose(jackknife_variance(without), values.var(axis=0, ddof=1) / 25)


def test_intervals():
    middle = percentile_estimate(40.0, np.arange(101.0), 0.9)
    assert (float(middle), middle.low, middle.high) == pytest.approx((40.0, 5.0, 95.0))
    # Fisher: artanh of a normal pair's correlation has variance 1/(n - 3).
    fisher = correlation_estimate(0.6, (1 - 0.36) ** 2 / 97, 0.95)
    expected = pearsonr_interval(0.6, 100)
    assert (fisher.low, fisher.high) == pytest.approx(expected, abs=1e-6)
    certain = correlation_estimate(1.0, 0.0, 0.95)
    assert (certain.low, certain.high) == (1.0, 1.0)
    assert np.isnan(correlation_estimate(0.5, float("nan"), 0.95).low)
    assert str(fisher).startswith("0.600 [0.4")


def pearsonr_interval(correlation, n):
    """SciPy's interval for a sample that has exactly this correlation."""
    basis = np.linalg.qr(np.c_[np.ones(n), np.random.default_rng(0).normal(size=(n, 2))])[0]
    first, other = basis[:, 1], basis[:, 2]
    second = correlation * first + np.sqrt(1 - correlation**2) * other
    return tuple(pearsonr(first, second).confidence_interval(0.95))


def test_mean_of_defined_leaves_out_what_is_undefined():
    assert mean_of_defined(np.array([1.0, np.nan, 4.0])) == 2.5
    assert np.isnan(mean_of_defined(np.array([np.nan])))
