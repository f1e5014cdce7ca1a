"""Downsampling of densities: the logarithm of mean densities, however small, in a plain loop."""

from decimal import Decimal, localcontext

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from retraining.submodel_examples import in_less_out
from scipy.stats import norm

import proponent as pp
from proponent.exceptions import InvalidInputError, MethodCapabilityError, ProponentError
from proponent.retraining.coalitions import Coalitions, Table
from proponent.retraining.generative_downsampling import LogMeanExp

N = 12
rng = np.random.default_rng(5)
X = rng.normal(size=(N, 1))
X_TEST = np.array([[0.3], [-2.0], [6.0]])


class Normal:
    """A normal density; notes the positions that it was trained on."""

    masks: list = []  # noqa: RUF012

    def fit(self, X, positions, seed):
        mask = np.zeros(N, bool)
        mask[positions] = True
        Normal.masks.append(mask)
        self.mean, self.scale = X.mean(), X.std()

    def risk(self, X):
        return -norm.logpdf(X[:, 0], self.mean, self.scale)


class Listed(Normal):
    """Has a log density, for each test instance, that is listed for the number of the training."""

    table = np.zeros((0, 0))

    def fit(self, X, positions, seed):
        super().fit(X, positions, seed)
        self.number = len(Normal.masks) - 1

    def risk(self, X):
        return -Listed.table[self.number, : len(X)]


@pytest.fixture(autouse=True)
def _cleared():
    Normal.masks.clear()


def log_mean_exp(logs):
    """Return the logarithm of the mean of exponentials, with forty digits."""
    with localcontext() as context:
        context.prec = 40
        context.Emin, context.Emax = -(10**9), 10**9
        mean = sum(Decimal(float(log)).exp() for log in logs) / len(logs)
        return float(mean.ln())


def differences(masks, logs, mean=log_mean_exp):
    """Return the mean with each instance less that without, ``(T, N)``."""
    return np.array(
        [[mean(row[mask]) - mean(row[~mask]) for mask in masks.T] for row in np.transpose(logs)]
    )


def jackknifed(masks, logs, folds):
    """Return standard errors from the estimates without each of the splits."""
    splits = len(masks) // folds
    kept = []
    for split in range(splits):
        rows = np.ones(len(masks), bool)
        rows[split * folds : (split + 1) * folds] = False
        kept.append(differences(masks[rows], logs[rows]))
    kept = np.array(kept)
    return np.sqrt((splits - 1) / splits * ((kept - kept.mean(axis=0)) ** 2).sum(axis=0))


def densities(masks, points):
    return np.array([norm.logpdf(points[:, 0], X[m].mean(), X[m].std()) for m in masks])


@pytest.mark.parametrize(("folds", "repeats"), [(2, 2), (4, 5), (5, 3), (12, 2)])
def test_equal_to_a_plain_loop(folds, repeats):
    method = pp.GenerativeDownsampling(folds, repeats).fit(Normal(), X)
    masks = np.array(Normal.masks)
    assert masks.shape == (folds * repeats, N)
    found = method.influence(X_TEST)
    logs = densities(masks, X_TEST)
    expected = differences(masks, logs)
    assert_allclose(found.values, expected, atol=1e-10)
    assert_allclose(found.std_error, jackknifed(masks, logs, folds), atol=1e-10)
    joint = method.influence(X_TEST, joint=True)
    assert_allclose(joint.values, expected.sum(axis=0), atol=1e-10)
    on_themselves = differences(masks, densities(masks, X)).diagonal()
    assert_allclose(method.memorization().values, on_themselves, atol=1e-10)
    assert np.abs(expected).max() > 0.01


@pytest.mark.parametrize(("folds", "repeats"), [(3, 4), (5, 2), (12, 3)])
def test_each_instance_is_out_once_a_split(folds, repeats):
    pp.GenerativeDownsampling(folds, repeats).fit(Normal(), X)
    splits = np.array(Normal.masks).reshape(repeats, folds, N)
    assert_array_equal((~splits).sum(axis=1), 1)
    sizes = (~splits).sum(axis=2)
    assert sizes.max() - sizes.min() <= 1
    assert len({split.tobytes() for split in splits}) == repeats


@pytest.mark.parametrize(
    ("spread", "level"),
    [(1.0, 0.0), (50.0, -1e5), (720.0, 0.0), (745.0, 3e3), (1500.0, -1e5), (40_000.0, 3e3)],
)
def test_log_densities_of_any_range(spread, level):
    folds, repeats = 4, 6
    Listed.table = level + np.random.default_rng(1).uniform(-spread, 0, size=(24, 3))
    found = pp.GenerativeDownsampling(folds, repeats).fit(Listed(), X).influence(X_TEST)
    masks = np.array(Normal.masks)
    expected = differences(masks, Listed.table)
    assert np.isfinite(found.values).all()
    assert_allclose(found.values, expected, rtol=1e-9, atol=1e-9)
    assert_allclose(found.std_error, jackknifed(masks, Listed.table, folds), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("gap", [700.0, 715.0, 735.0, 744.0, 746.0, 5000.0])
def test_a_density_that_vanishes_beside_another(gap):
    # Instance 0 in: a density of 1; out: exp(-gap), where floating-point numbers lose digits.
    pp.GenerativeDownsampling(3, 4).fit(Normal(), X)
    out = ~np.array(Normal.masks)[:, 0]
    Normal.masks.clear()
    Listed.table = np.where(out, -gap + 0.123456789, 0.0)[:, None]
    found = pp.GenerativeDownsampling(3, 4).fit(Listed(), X).influence(X_TEST[:1])
    assert_array_equal(~np.array(Normal.masks)[:, 0], out)
    assert found.values[0, 0] == pytest.approx(gap - 0.123456789, rel=1e-13)


def test_equal_densities_have_no_influence():
    Listed.table = np.full((30, 3), -123.0)
    found = pp.GenerativeDownsampling(6, 5).fit(Listed(), X).influence(X_TEST)
    assert_allclose(found.values, 0.0, atol=1e-13)
    assert_allclose(found.std_error, 0.0, atol=1e-13)
    assert found.diagnostics["smallest_effective_models"] == pytest.approx(30)


def test_the_effective_number_of_models():
    logs = np.random.default_rng(2).normal(scale=3.0, size=(20, 3)) - 1000
    Listed.table = logs
    noticed = pp.GenerativeDownsampling(5, 4).fit(Listed(), X).influence(X_TEST).diagnostics
    p = np.exp(logs + 1000)
    expected = (p.sum(axis=0) ** 2 / (p**2).sum(axis=0)).min()
    assert 1 < expected < 10
    assert noticed["smallest_effective_models"] == pytest.approx(expected)


def test_the_mean_of_logarithms_is_another_quantity():
    method = pp.GenerativeDownsampling(4, 3, aggregate="mean").fit(Normal(), X)
    masks = np.array(Normal.masks)
    logs = densities(masks, X_TEST)
    found = method.influence(X_TEST)
    assert_allclose(found.values, differences(masks, logs, mean=np.mean), atol=1e-10)
    assert_allclose(found.std_error, in_less_out(masks, logs)[1], atol=1e-10)
    assert np.abs(found.values - differences(masks, logs)).max() > 1e-3


def test_what_stands_alone_is_memorized():
    data = X.copy()
    data[7] = 8.0
    found = pp.GenerativeDownsampling(4, 5).fit(Normal(), data).memorization()
    assert found.proponents(1).ids.tolist() == [7]
    # Without it the others are a normal of their own, and it stands many deviations off.
    others = np.delete(data, 7)
    expected = norm.logpdf(8.0, data.mean(), data.std()) - norm.logpdf(
        8.0, others.mean(), others.std()
    )
    assert found.values[7] == pytest.approx(expected, rel=0.5)


def test_a_single_split_has_no_standard_error():
    found = pp.GenerativeDownsampling(4, 1).fit(Normal(), X).influence(X_TEST)
    masks = np.array(Normal.masks)
    assert found.std_error is None
    assert_allclose(found.values, differences(masks, densities(masks, X_TEST)), atol=1e-10)


def test_one_player_without_an_error_leaves_those_of_the_others():
    """Only the models of one split know an instance that all others failed without."""
    n, blocks = 6, np.repeat(np.arange(3), 2)
    rng = np.random.default_rng(0)
    masks = np.ones((6, n), dtype=bool)
    masks[::2, :3] = masks[1::2, 3:] = False
    masks[2:, 0] = True  # out in the first split alone
    logs = rng.normal(size=(6, 2))
    table = Table(Coalitions(masks, np.arange(6), blocks=blocks), logs)
    found = LogMeanExp().on(table).players(range(n))
    assert np.isnan(found.std_errors[:, 0]).all()
    assert np.isfinite(found.std_errors[:, 1:]).all()
    assert np.isfinite(found.values).all()


class Unlucky(Normal):
    def fit(self, X, positions, seed):
        if 3 not in positions.tolist():
            raise ValueError("needs number 3")
        super().fit(X, positions, seed)


def test_who_is_never_out_is_not_scored():
    method = pp.GenerativeDownsampling(4, 3).fit(Unlucky(), X)
    found = method.influence(X_TEST)
    masks = np.array(Normal.masks)
    assert len(masks) == 9 and found.diagnostics["failed"] == 3
    known = np.arange(N) != 3
    assert np.isnan(found.values[:, 3]).all()
    expected = differences(masks[:, known], densities(masks, X_TEST))
    assert_allclose(found.values[:, known], expected, atol=1e-10)


def test_if_all_fail_the_reason_is_raised():
    class Never(Normal):
        def fit(self, X, positions, seed):
            raise ValueError("no density")

    with pytest.raises(ProponentError, match="no density"):
        pp.GenerativeDownsampling(4, 2).fit(Never(), X)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"folds": 1}, r"folds: 1 folds of 12 instances; use 2 to 12"),
        ({"folds": 13}, r"folds: 13 folds"),
        ({"folds": 2.5}, "folds"),
        ({"repeats": 0}, "repeats"),
        ({"aggregate": "max"}, "aggregate must be 'logmeanexp' or 'mean'"),
        ({"utility": "accuracy"}, "utility: the density is"),
    ],
)
def test_a_setting_that_makes_no_sense(settings, message):
    with pytest.raises((InvalidInputError, MethodCapabilityError), match=message):
        pp.GenerativeDownsampling(**settings).fit(Normal(), X)
