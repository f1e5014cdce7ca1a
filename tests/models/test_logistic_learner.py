"""Logistic regression on subsets: scikit-learn's minimum, whatever subsets are fitted together."""

import pickle
import warnings

import numpy as np
import pytest
from models.subset_examples import bootstraps, members, seeds, subsets
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from proponent.data import Instances
from proponent.exceptions import InvalidInputError, NonFiniteError
from proponent.models import gathered_rows
from proponent.models.logistic_learner import LogisticLearner

N, TESTS = 60, 20
NAMES = np.array(["ant", "bee", "cat", "dog", "elk"])
rng = np.random.default_rng(0)


def instances(n_classes, features=4, seed=0):
    """Return features of several scales and places, and labels that they nearly tell."""
    rng = np.random.default_rng(seed)
    points = rng.normal(size=(N + TESTS, features))
    scores = points @ rng.normal(size=(features, n_classes)) / np.sqrt(features)
    labels = NAMES[np.argmax(3 * scores + rng.gumbel(size=scores.shape), axis=1)]
    points = points * 10.0 ** rng.uniform(-0.7, 0.7, features) + 3 * rng.normal(size=features)
    return (points[:N], labels[:N]), (points[N:], labels[N:])


SUBSETS = subsets(N, 40)
COUNTS = {
    "subsets": SUBSETS,
    "bootstrap": bootstraps(N, 30),
    "small": np.array([np.isin(np.arange(N), rng.choice(N, s)) for s in range(1, 13)] * 3),
    "single": np.eye(N, dtype=bool)[:20],
    "all but one": ~np.eye(N, dtype=bool)[:20],
}


def outputs(learner, train, test, counts):
    trainer = learner.bind(Instances.of(train))
    fitted = trainer.fit(counts, seeds(counts))
    assert not fitted.failures
    return trainer.outputs(fitted, trainer.prepare(Instances.of(test)))


def expected_outputs(train, test, counts, **settings):
    """Return what scikit-learn predicts; 0 for classes that a subset lacks, 1 for its only one."""
    (points, labels), names = train, np.unique(train[1])
    found = np.zeros((len(counts), len(test[0]), len(names)))
    settings = {"solver": "newton-cholesky", "tol": 1e-12, "max_iter": 10_000, **settings}
    for row, counted in zip(found, counts, strict=True):
        chosen = members(counted)
        present = np.unique(labels[chosen])
        columns = np.searchsorted(names, present)
        if len(present) == 1:
            row[:, columns] = 1
            continue
        model = LogisticRegression(**settings)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            row[:, columns] = model.fit(points[chosen], labels[chosen]).predict_proba(test[0])
    return found


def close(found, expected, tolerance):
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("n_classes", [2, 3, 5])
@pytest.mark.parametrize("kind", COUNTS)
def test_it_is_scikit_learns(kind, n_classes):
    train, test = instances(n_classes)
    found = outputs(LogisticLearner(), train, test, COUNTS[kind])
    expected = expected_outputs(train, test, COUNTS[kind])
    close(found, expected, 1e-8)
    assert np.array_equal(found == 0, expected == 0)


@pytest.mark.parametrize("n_classes, features", [(2, 4), (3, 4), (3, 40)])
def test_coefficients(n_classes, features):
    (points, labels), _ = instances(n_classes, features)
    trainer = LogisticLearner(0.3).bind(Instances.of((points, labels)))
    counts = COUNTS["all but one"]
    models = trainer.fit(counts, seeds(counts)).models
    mean = points.mean(axis=0)
    for row, counted in enumerate(counts):
        model = LogisticRegression(C=0.3, solver="newton-cholesky", tol=1e-12, max_iter=1000)
        model.fit(points[counted], labels[counted])
        close(models["coefficients"][row], model.coef_, 1e-8)
        close(models["intercepts"][row], model.intercept_ + model.coef_ @ mean, 1e-8)


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("C", [1e-4, 0.1, 1e3])
@pytest.mark.parametrize("n_classes", [2, 3])
def test_settings(n_classes, C, intercept):
    """With C = 1,000 all small subsets are separable."""
    train, test = instances(n_classes)
    counts = np.concatenate([SUBSETS[:20], COUNTS["small"][:12]])
    found = outputs(LogisticLearner(C, fit_intercept=intercept), train, test, counts)
    expected = expected_outputs(train, test, counts, C=C, fit_intercept=intercept)
    close(found, expected, 1e-7)


def test_another_solver_of_scikit_learn_agrees():
    """Its tolerance is that of a gradient, so that its coefficients are a little off."""
    train, test = instances(3)
    found = outputs(LogisticLearner(), train, test, SUBSETS[:10])
    close(found, expected_outputs(train, test, SUBSETS[:10], solver="lbfgs"), 2e-5)


@pytest.mark.parametrize(
    "n_classes, features", [(2, 100), (3, 100), (3, 30), (5, 15)], ids=lambda value: str(value)
)
@pytest.mark.parametrize("kind", ["subsets", "bootstrap", "small"])
def test_many_coefficients(kind, n_classes, features):
    """Directions by conjugate gradients, and subsets in the space of their rows."""
    train, test = instances(n_classes, features)
    counts = COUNTS[kind][:12]
    found = outputs(LogisticLearner(), train, test, counts)
    close(found, expected_outputs(train, test, counts), 1e-8)


def test_more_features_than_instances_and_no_intercept():
    train, test = instances(3, 100)
    found = outputs(LogisticLearner(fit_intercept=False), train, test, SUBSETS[:12])
    close(found, expected_outputs(train, test, SUBSETS[:12], fit_intercept=False), 1e-8)


def minimum(points, labels, C):
    """Minimise the binary objective in extended precision: Newton's method, halved steps."""
    points = np.hstack([np.ones((len(points), 1)), points]).astype(np.longdouble)
    signs = np.where(labels, 1, -1).astype(np.longdouble)
    ridge = np.r_[0, np.ones(points.shape[1] - 1)].astype(np.longdouble) / C

    def objective(theta):
        return np.logaddexp(0, -signs * (points @ theta)).sum() + ridge @ theta**2 / 2

    theta = np.zeros(points.shape[1], np.longdouble)
    for _ in range(200):
        wrong = 1 / (1 + np.exp(signs * (points @ theta)))
        gradient = -points.T @ (signs * wrong) + ridge * theta
        hessian = (points.T * (wrong * (1 - wrong))) @ points + np.diag(ridge)
        step = np.linalg.solve(hessian.astype(float), -gradient.astype(float))
        part = np.longdouble(1)
        while objective(theta + part * step) > objective(theta) and part > 1e-12:
            part /= 2
        theta = theta + part * step
    return theta


@pytest.mark.parametrize("C", [1e6, 1e9])
def test_separable_with_hardly_a_penalty(C):
    """The coefficients are where probabilities of the wrong class are of the order of 1 / C."""
    points = rng.normal(size=(12, 2))
    labels = points[:, 0] + 0.3 * points[:, 1] > 0
    trainer = LogisticLearner(C).bind(Instances.of((points, labels)))
    fitted = trainer.fit(np.ones((1, 12), dtype=bool), np.zeros(1, dtype=np.int64))
    assert not fitted.failures
    expected = minimum(points - points.mean(axis=0), labels, C).astype(float)
    np.testing.assert_allclose(fitted.models["intercepts"][0], expected[:1], rtol=1e-6)
    np.testing.assert_allclose(fitted.models["coefficients"][0, 0], expected[1:], rtol=1e-6)


@pytest.mark.parametrize("n_classes", [2, 3])
def test_a_feature_may_be_constant_or_twice_there(n_classes):
    (points, labels), (tests, test_labels) = instances(n_classes)
    points = np.hstack([points, points[:, :1], np.full((N, 1), 7.0)])
    tests = np.hstack([tests, tests[:, :1], np.full((TESTS, 1), 7.0)])
    train, test = (points, labels), (tests, test_labels)
    found = outputs(LogisticLearner(), train, test, SUBSETS[:15])
    close(found, expected_outputs(train, test, SUBSETS[:15]), 1e-8)


@pytest.mark.parametrize("n_classes, features", [(2, 4), (3, 4), (3, 30)])
def test_it_does_not_matter_what_is_fitted_together(n_classes, features):
    train, test = instances(n_classes, features)
    trainer = LogisticLearner().bind(Instances.of(train))
    prepared = trainer.prepare(Instances.of(test))
    counts = np.concatenate([SUBSETS, COUNTS["small"]])

    def fit(rows):
        return trainer.outputs(trainer.fit(rows, seeds(rows)), prepared)

    together = fit(counts)
    # Conjugate gradients stop within tol, and not at the last digit.
    tolerance = 1e-12 if features == 4 else 1e-9
    for size in (1, 7):
        parts = [fit(counts[row : row + size]) for row in range(0, len(counts), size)]
        close(np.concatenate(parts), together, tolerance)
    close(fit(counts[::-1])[::-1], together, tolerance)
    trainer._width = lambda number: 5
    close(fit(counts), together, tolerance)


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("features", [4, 30])
def test_rows_that_are_shared_and_rows_of_their_own(own, features, monkeypatch):
    monkeypatch.setattr(gathered_rows, "GRAM_COST", 0 if own else np.inf)
    monkeypatch.setattr(gathered_rows, "PRODUCT_COST", 0 if own else np.inf)
    train, test = instances(3, features)
    found = outputs(LogisticLearner(), train, test, SUBSETS[:12])
    close(found, expected_outputs(train, test, SUBSETS[:12]), 1e-8)


def test_counts_and_repeated_instances_are_the_same():
    (points, labels), test = instances(3)
    counts = bootstraps(N, 5)
    found = outputs(LogisticLearner(), (points, labels), test, counts)
    for row, counted in zip(found, counts, strict=True):
        chosen = members(counted)
        whole = np.ones((1, len(chosen)), dtype=bool)
        # A class that the bootstrap lacks is none of the classes of this training set.
        present = np.isin(np.unique(labels), labels[chosen])
        train, tests = (points[chosen], labels[chosen]), (test[0], labels[chosen][:TESTS])
        repeated = outputs(LogisticLearner(), train, tests, whole)
        close(row[:, present], repeated[0], 1e-10)


def test_risks():
    train, test = instances(3)
    learner = LogisticLearner(smoothing=0.01)
    trainer = learner.bind(Instances.of(train))
    fitted = trainer.fit(SUBSETS, seeds(SUBSETS))
    found = trainer.risks(fitted, trainer.prepare(Instances.of(test)))
    chances = expected_outputs(train, test, SUBSETS)
    codes = np.searchsorted(NAMES[:3], test[1])
    own = chances[:, np.arange(TESTS), codes]
    close(found, -np.log(0.99 * own + 0.01 / 3), 1e-6)


def test_what_does_not_converge_fails():
    train, test = instances(3)
    trainer = LogisticLearner(C=100.0, max_iter=2).bind(Instances.of(train))
    fitted = trainer.fit(SUBSETS, seeds(SUBSETS))
    risks = trainer.risks(fitted, trainer.prepare(Instances.of(test)))
    assert len(fitted.failures) > 10
    assert "did not converge to tol=1e-10 in 2 steps" in next(iter(fitted.failures.values()))
    failed = np.isin(np.arange(len(SUBSETS)), list(fitted.failures))
    assert np.array_equal(np.isnan(risks).all(axis=1), failed)
    assert np.array_equal(np.isnan(risks).any(axis=1), failed)
    # One class alone needs no step.
    alone = np.eye(N, dtype=bool)[:3]
    assert not trainer.fit(alone, seeds(alone)).failures


def test_what_stands_for_no_training_instance():
    (points, labels), test = instances(3)
    trainer = LogisticLearner().bind(Instances.of((points, labels)))
    prepared = trainer.prepare(Instances.of(test))
    counts = np.unique(labels, return_counts=True)[1]
    prior = (counts + 1) / (N + 3)
    close(
        trainer.outputs(trainer.constant("prior"), prepared)[0], np.tile(prior, (TESTS, 1)), 1e-15
    )
    close(trainer.outputs(trainer.constant("uniform"), prepared), 1 / 3, 1e-15)


@pytest.mark.parametrize("n_classes, features", [(2, 4), (3, 4), (3, 30)])
def test_stored_and_sent_to_a_worker(n_classes, features):
    train, test = instances(n_classes, features)
    trainer = LogisticLearner().bind(Instances.of(train))
    prepared = trainer.prepare(Instances.of(test))
    fitted = trainer.fit(SUBSETS, seeds(SUBSETS))
    expected = trainer.outputs(fitted, prepared)
    arrays = trainer.to_arrays(fitted)
    assert trainer.nbytes(fitted) == sum(array.nbytes for array in arrays.values())
    columns = 1 if n_classes == 2 else n_classes
    assert trainer.nbytes(fitted) == 8 * len(SUBSETS) * columns * (features + 1)
    worker = pickle.loads(pickle.dumps(trainer))
    stored = worker.from_arrays(arrays, fitted.size, fitted.failures)
    assert np.array_equal(worker.outputs(stored, prepared), expected)
    close(worker.outputs(worker.fit(SUBSETS, seeds(SUBSETS)), prepared), expected, 1e-12)
    assert not trainer.seeded


def test_recipe():
    assert LogisticLearner().recipe() == LogisticLearner(1.0).recipe()
    settings = [{}, {"C": 2.0}, {"fit_intercept": False}, {"tol": 1e-8}, {"smoothing": 0.1}]
    assert len({LogisticLearner(**given).recipe() for given in settings}) == len(settings)
    assert repr(LogisticLearner(2.0)) == "LogisticLearner(C=2.0)"


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"C": 0.0}, "C: expected a positive, finite number"),
        ({"C": np.inf}, "without a penalty"),
        ({"C": True}, "C: expected"),
        ({"tol": -1.0}, "tol: expected"),
        ({"max_iter": 0}, "max_iter must be an integer of at least 1"),
        ({"risk": "squared"}, "risk of a classifier"),
        ({"smoothing": 1.0}, "smoothing"),
    ],
)
def test_hyperparameters_that_are_none(settings, message):
    with pytest.raises(InvalidInputError, match=message):
        LogisticLearner(**settings).bind(Instances.of(instances(2)[0]))


def test_sets_that_do_not_fit():
    (points, labels), (tests, test_labels) = instances(2)
    with pytest.raises(InvalidInputError, match="needs two classes; all labels are 'ant'"):
        LogisticLearner().bind(Instances.of((points, np.full(N, "ant"))))
    with pytest.raises(InvalidInputError, match="not all numbers"):
        LogisticLearner().bind(Instances.of((points.astype(str).astype(object) + "x", labels)))
    holes = points.copy()
    holes[3, 1] = np.nan
    with pytest.raises(NonFiniteError, match="train: features of 1 instances"):
        LogisticLearner().bind(Instances.of((holes, labels)))
    trainer = LogisticLearner().bind(Instances.of((points, labels)))
    with pytest.raises(InvalidInputError, match="test: instances have 3 features"):
        trainer.prepare(Instances.of((tests[:, :3], test_labels)))
    with pytest.raises(InvalidInputError, match="'wasp'"):
        trainer.prepare(Instances.of((tests[:1], np.array(["wasp"]))))
