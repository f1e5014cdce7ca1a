"""Gaussian naive Bayes on subsets: scikit-learn's, far from 0 and where variances vanish too."""

import pickle

import numpy as np
import pytest
from models.subset_examples import bootstraps, members, seeds, subsets
from numpy.testing import assert_array_equal
from sklearn.datasets import load_digits
from sklearn.naive_bayes import GaussianNB

from proponent.data import Instances
from proponent.exceptions import InvalidInputError, NonFiniteError
from proponent.models import bayes_learner
from proponent.models.bayes_learner import GaussianNaiveBayesLearner
from proponent.models.class_gaussians import ClassGaussians

CLOSE = {"rel": 1e-9, "abs": 1e-9}

rng = np.random.default_rng(0)
NAMES = np.array(["ant", "bee", "cat"])
CODES, TEST_CODES = rng.integers(0, 3, 60), rng.integers(0, 3, 20)
Y, Y_TEST = NAMES[CODES], NAMES[TEST_CODES]


def exact(values):
    """Round to multiples of 2^-20, so that a multiple of it can be added without rounding."""
    return np.rint(values * 2**20) / 2**20


X = exact(rng.normal(size=(60, 4)) + CODES[:, None])
X_TEST = exact(rng.normal(size=(20, 4)) + TEST_CODES[:, None])
COUNTS = {
    "subsets": subsets(60, 40, smallest=2),
    "bootstrap": bootstraps(60, 40),
}
COUNTS["small subsets"] = np.array(
    [np.isin(np.arange(60), rng.choice(60, rng.integers(2, 8), replace=False)) for _ in range(60)]
)


def trained(learner, train, counts):
    trainer = learner.bind(Instances.of(train))
    return trainer, trainer.fit(counts, seeds(counts))


def outputs(learner, train, test, counts):
    trainer, fitted = trained(learner, train, counts)
    return trainer.outputs(fitted, trainer.prepare(Instances.of(test)))


def expected_outputs(X, y, tests, counts, **settings):
    """Return what scikit-learn predicts, 0 for classes that a subset lacks."""
    names, found = np.unique(y), np.zeros((len(counts), len(tests), len(np.unique(y))))
    for row, counted in zip(found, counts, strict=True):
        chosen = members(counted)
        model = GaussianNB(**settings).fit(X[chosen], y[chosen])
        row[:, np.searchsorted(names, model.classes_)] = model.predict_proba(tests)
    return found


@pytest.mark.parametrize("offset", [0, 2.0**24])
@pytest.mark.parametrize("kind", COUNTS)
def test_it_is_scikit_learns(kind, offset):
    """Far from 0 it is scikit-learn's near 0, where that loses nothing."""
    expected = expected_outputs(X, Y, X_TEST, COUNTS[kind])
    train, test = (X + offset, Y), (X_TEST + offset, Y_TEST)
    found = outputs(GaussianNaiveBayesLearner(), train, test, COUNTS[kind])
    assert found == pytest.approx(expected, **CLOSE)
    assert np.count_nonzero(expected == 0) == np.count_nonzero(found == 0)


def test_each_feature_and_class_may_have_a_scale_and_a_place_of_its_own():
    scales, places = 10.0 ** np.arange(-3, 1), 1e3 * np.arange(4)
    points, tests = X * scales + places + 50 * CODES[:, None], X_TEST * scales + places
    found = outputs(GaussianNaiveBayesLearner(), (points, Y), (tests, Y_TEST), COUNTS["subsets"])
    expected = expected_outputs(points, Y, tests, COUNTS["subsets"])
    assert found == pytest.approx(expected, **CLOSE)


@pytest.mark.parametrize("apart", [1e-3, 1e-6, 0])
def test_a_subset_whose_members_are_close_together(apart):
    """Its variances are far below the squares that they are differences of."""
    points = X.copy()
    points[:12] = points[0] + apart * rng.normal(size=(12, 4))
    labels = Y.copy()
    labels[:6], labels[6:12] = NAMES[0], NAMES[1]
    masks = np.zeros((3, 60), dtype=bool)
    masks[0, :12] = masks[1, :6] = masks[2, 2:9] = True
    masks[1, 30] = True
    tests = np.concatenate([points, X_TEST])
    found = outputs(
        GaussianNaiveBayesLearner(), (points, labels), (tests, np.full(80, "ant")), masks
    )
    rows = slice(1, 2) if apart == 0 else slice(None)
    expected = expected_outputs(points, labels, tests, masks[rows])
    assert found[rows] == pytest.approx(expected, **CLOSE)
    if apart == 0:  # scikit-learn divides 0 by 0
        assert found[0] == pytest.approx(np.tile([0.5, 0.5, 0], (80, 1)))
        assert found[2] == pytest.approx(np.tile([4 / 7, 3 / 7, 0], (80, 1)))


def log_densities(X, y, tests):
    """Return those of each class, in extended precision."""
    X, tests = X.astype(np.longdouble), tests.astype(np.longdouble)
    smoothing = 1e-9 * X.var(axis=0).max()
    found = []
    for label in np.unique(y):
        of_class = X[y == label]
        mean, variance = of_class.mean(axis=0), of_class.var(axis=0) + smoothing
        exponents = np.log(2 * np.pi * variance) + (tests - mean) ** 2 / variance
        found.append(-exponents.sum(axis=1) / 2)
    return np.stack(found, axis=1)


def test_digits():
    """Where many pixels hardly vary, log densities go to -1e9, and scikit-learn's are 1e-7 off."""
    images, labels = load_digits(return_X_y=True)
    points, codes, tests = images[:600], labels[:600], images[600:700]
    counts = subsets(600, 6, smallest=100)
    gaussians = ClassGaussians(points, codes)
    found = gaussians.log_densities(gaussians.of(counts, 1e-9, None), tests)
    for row, counted in zip(found, counts, strict=True):
        expected = log_densities(points[counted], codes[counted], tests)
        assert row[:, np.unique(codes[counted])] == pytest.approx(
            expected.astype(np.float64), rel=1e-13
        )
    counts = subsets(600, 4, smallest=400)
    found = outputs(
        GaussianNaiveBayesLearner(1e-3), (points, codes), (tests, labels[600:700]), counts
    )
    expected = expected_outputs(points, codes, tests, counts, var_smoothing=1e-3)
    assert found == pytest.approx(expected, **CLOSE)


def test_a_single_instance():
    found = outputs(GaussianNaiveBayesLearner(), (X, Y), (X_TEST, Y_TEST), np.eye(60, dtype=bool))
    assert_array_equal(found, np.repeat(np.eye(3)[CODES][:, None], 20, axis=1))


@pytest.mark.parametrize("settings", [{"var_smoothing": 1e-2}, {"priors": [0.2, 0.5, 0.3]}])
def test_settings(settings):
    counts = COUNTS["bootstrap"]
    found = outputs(GaussianNaiveBayesLearner(**settings), (X, Y), (X_TEST, Y_TEST), counts)
    assert found == pytest.approx(expected_outputs(X, Y, X_TEST, counts, **settings), **CLOSE)


def test_priors_of_classes_that_are_there():
    """scikit-learn refuses priors for a class that a subset lacks; told of the others it agrees."""
    masks = np.array([CODES != 1, CODES == 1])
    learner = GaussianNaiveBayesLearner(priors=[0.2, 0.8, 0.0])
    trainer, fitted = trained(learner, (X, Y), masks)
    found = trainer.outputs(fitted, trainer.prepare(Instances.of((X_TEST, Y_TEST))))
    assert_array_equal(found, np.repeat(np.eye(3)[[0, 1]][:, None], 20, axis=1))
    lacking = GaussianNaiveBayesLearner(priors=[0.2, 0.5, 0.3])
    found = outputs(lacking, (X, Y), (X_TEST, Y_TEST), masks[:1])
    model = GaussianNB(priors=[0.4, 0.6]).fit(X[masks[0]], Y[masks[0]])
    assert found[0][:, [0, 2]] == pytest.approx(model.predict_proba(X_TEST), **CLOSE)
    trainer, fitted = trained(learner, (X, Y), np.array([CODES == 2, CODES < 3]))
    assert list(fitted.failures) == [0] and "priors" in fitted.failures[0]
    risks = trainer.risks(fitted, trainer.prepare(Instances.of((X_TEST, Y_TEST))))
    assert np.isnan(risks[0]).all() and np.isfinite(risks[1]).all()


def test_what_does_not_vary_fails_without_smoothing():
    counts = np.array([np.arange(60) < 50, np.isin(np.arange(60), [0, 1])])
    trainer, fitted = trained(GaussianNaiveBayesLearner(0), (X, Y), counts)
    assert list(fitted.failures) == [1] and "var_smoothing" in fitted.failures[1]
    test = trainer.prepare(Instances.of((X_TEST, Y_TEST)))
    found = trainer.outputs(fitted, test)
    expected = expected_outputs(X, Y, X_TEST, counts[:1], var_smoothing=0)
    assert found[0] == pytest.approx(expected[0], **CLOSE)
    assert np.isnan(found[1]).all() and np.isnan(trainer.risks(fitted, test)[1]).all()


def test_without_smoothing_a_lacking_class_is_no_failure_and_a_single_member_is():
    counts = np.array([CODES != 1, np.where(CODES == 1, 0, 1)], dtype=np.uint8)
    counts[1, CODES == 0] = 0
    counts[1, 7] = 7  # one instance, seven times: its variance is 0, not what is rounded
    counts = np.concatenate([counts, 7 * np.eye(60, dtype=np.uint8) + (CODES == 2)])
    chosen = np.array([len(set(CODES[row > 0])) > 1 for row in counts])
    alone = np.array(
        [any(np.count_nonzero(row[code == CODES]) == 1 for code in range(3)) for row in counts]
    )
    trainer, fitted = trained(GaussianNaiveBayesLearner(0), (X[:, :1], Y), counts)
    assert set(fitted.failures) == set(np.flatnonzero(alone & chosen).tolist())
    assert len(fitted.failures) > 10 and 0 not in fitted.failures
    found = trainer.outputs(fitted, trainer.prepare(Instances.of((X_TEST[:, :1], Y_TEST))))
    expected = expected_outputs(X[:, :1], Y, X_TEST[:, :1], counts[:1], var_smoothing=0)
    assert found[0] == pytest.approx(expected[0], **CLOSE)


def test_the_blocks_change_nothing(monkeypatch):
    counts = COUNTS["small subsets"]
    expected = outputs(GaussianNaiveBayesLearner(), (X, Y), (X_TEST, Y_TEST), counts)
    monkeypatch.setattr(bayes_learner, "ENTRIES_AT_ONCE", 7 * counts.shape[0] * 3)
    found = outputs(GaussianNaiveBayesLearner(), (X, Y), (X_TEST, Y_TEST), counts)
    assert found == pytest.approx(expected, rel=1e-12, abs=1e-15)


def test_risks_and_the_empty_set():
    learner = GaussianNaiveBayesLearner(smoothing=0.01)
    trainer, fitted = trained(learner, (X, Y), COUNTS["small subsets"])
    test = trainer.prepare(Instances.of((X_TEST, Y_TEST)))
    right = expected_outputs(X, Y, X_TEST, COUNTS["small subsets"])[:, np.arange(20), TEST_CODES]
    assert trainer.risks(fitted, test) == pytest.approx(-np.log(0.99 * right + 0.01 / 3))
    prior = (np.bincount(CODES) + 1) / 63
    expected = -np.log(0.99 * prior + 0.01 / 3)[TEST_CODES]
    assert trainer.risks(trainer.constant("prior"), test) == pytest.approx(expected[None])


def test_submodels_are_stored_as_arrays_and_sent_to_workers():
    trainer, fitted = trained(GaussianNaiveBayesLearner(), (X, Y), COUNTS["bootstrap"])
    test = trainer.prepare(Instances.of((X_TEST, Y_TEST)))
    again = pickle.loads(pickle.dumps(trainer))
    loaded = again.from_arrays(trainer.to_arrays(fitted), fitted.size, {})
    assert_array_equal(again.risks(loaded, test), trainer.risks(fitted, test))


def test_recipes():
    recipes = [
        GaussianNaiveBayesLearner(),
        GaussianNaiveBayesLearner(1e-8),
        GaussianNaiveBayesLearner(priors=[0.5, 0.25, 0.25]),
        GaussianNaiveBayesLearner(priors=np.array([0.25, 0.5, 0.25])),
        GaussianNaiveBayesLearner(risk="brier"),
    ]
    assert len({learner.recipe() for learner in recipes}) == len(recipes)


def test_refusals():
    train = Instances.of((X, Y))
    for wrong in (-1.0, np.inf, "small"):
        with pytest.raises(InvalidInputError, match="var_smoothing: expected a finite"):
            GaussianNaiveBayesLearner(wrong).bind(train)
    for priors in ([0.5, 0.5], [0.5, 0.5, 0.5], [1.5, -0.5, 0.0]):
        with pytest.raises(InvalidInputError, match="priors: expected"):
            GaussianNaiveBayesLearner(priors=priors).bind(train)
    with pytest.raises(InvalidInputError, match="risk"):
        GaussianNaiveBayesLearner(risk="squared").bind(train)
    with pytest.raises(NonFiniteError, match="train: features of 60 instances"):
        GaussianNaiveBayesLearner().bind(Instances.of((X + 1e200, Y)))
    with pytest.raises(InvalidInputError, match="are no classes"):
        GaussianNaiveBayesLearner().bind(Instances.of((X, X[:, 0])))
