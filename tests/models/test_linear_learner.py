"""Linear regression on subsets: scikit-learn's of each, whatever subsets are fitted together."""

import pickle

import numpy as np
import pytest
from models.subset_examples import bootstraps, members, seeds, subsets
from sklearn.linear_model import LinearRegression, Ridge

from proponent.data import Instances
from proponent.exceptions import InvalidInputError, MethodCapabilityError, NonFiniteError
from proponent.models import gathered_rows, least_squares
from proponent.models.linear_learner import LinearLearner

N, TESTS, FEATURES = 60, 20, 6
rng = np.random.default_rng(0)
SUBSETS = subsets(N, 60)
COUNTS = {
    "subsets": SUBSETS,
    "bootstrap": bootstraps(N, 40),
    "small": np.array([np.isin(np.arange(N), rng.choice(N, s)) for s in range(1, 13)] * 3),
    "small bootstrap": np.array(
        [np.bincount(rng.integers(0, 9, s), minlength=N) for s in range(1, 30)]
    ),
    "all but one": ~np.eye(N, dtype=bool)[:20],
}


def instances(features=FEATURES, outputs=None, seed=0):
    """Return features of several scales and places, and targets that depend on them."""
    rng = np.random.default_rng(seed)
    points = rng.normal(size=(N + TESTS, features))
    shape = (features,) if outputs is None else (features, outputs)
    targets = points @ rng.normal(size=shape) + 5
    targets += 0.3 * rng.normal(size=targets.shape)
    points = points * 10.0 ** rng.uniform(-0.5, 0.5, features) + 10 * rng.normal(size=features)
    return (points[:N], targets[:N]), (points[N:], targets[N:])


def outputs(learner, train, test, counts):
    trainer = learner.bind(Instances.of(train))
    fitted = trainer.fit(counts, seeds(counts))
    assert not fitted.failures
    return trainer.outputs(fitted, trainer.prepare(Instances.of(test)))


def expected_outputs(train, test, counts, alpha=0.0, fit_intercept=True, averaged=False):
    """Return what scikit-learn predicts that is fitted to the members of each subset."""
    found = []
    for counted in counts:
        chosen = members(counted)
        model = LinearRegression(fit_intercept=fit_intercept)
        if alpha:
            strength = alpha * len(chosen) if averaged else alpha
            model = Ridge(strength, fit_intercept=fit_intercept, solver="svd")
        model.fit(train[0][chosen], train[1][chosen])
        found.append(model.predict(test[0]))
    return np.array(found)


def close(found, expected, tolerance=1e-10):
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("several", [None, 3])
@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("alpha", [0.0, 1e-6, 0.5, 1e4])
@pytest.mark.parametrize("kind", COUNTS)
def test_it_is_scikit_learns(kind, alpha, intercept, several):
    train, test = instances(outputs=several)
    learner = LinearLearner(alpha, fit_intercept=intercept)
    found = outputs(learner, train, test, COUNTS[kind])
    close(found, expected_outputs(train, test, COUNTS[kind], alpha, intercept))


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("alpha", [0.0, 0.5])
@pytest.mark.parametrize("kind", ["subsets", "bootstrap", "small"])
def test_more_features_than_instances(kind, alpha, intercept):
    train, test = instances(features=100)
    learner = LinearLearner(alpha, fit_intercept=intercept)
    found = outputs(learner, train, test, COUNTS[kind])
    close(found, expected_outputs(train, test, COUNTS[kind], alpha, intercept))


@pytest.mark.parametrize("kind", ["subsets", "bootstrap"])
def test_averaged_errors(kind):
    train, test = instances()
    found = outputs(LinearLearner(0.01, penalty="mean"), train, test, COUNTS[kind])
    close(found, expected_outputs(train, test, COUNTS[kind], 0.01, averaged=True))
    summed = outputs(LinearLearner(0.01), train, test, COUNTS[kind])
    assert np.abs(found - summed).max() > 0.01


@pytest.mark.parametrize("apart", [0.0, 1e-9, 1e-4, 1e-2])
def test_features_that_are_nearly_the_same(apart):
    """At 1e-9 scikit-learn takes them for the same, at 1e-4 for two: the shortest, or the best."""
    (points, targets), (tests, test_targets) = instances()
    noise = apart * np.random.default_rng(1).normal(size=N + TESTS)
    points = np.column_stack([points, points[:, 0] + noise[:N], np.full(N, 3.0)])
    tests = np.column_stack([tests, tests[:, 0] + noise[N:], np.full(TESTS, 3.0)])
    train, test = (points, targets), (tests, test_targets)
    found = outputs(LinearLearner(), train, test, SUBSETS)
    # What two such features tell apart has 1 / apart as many digits fewer, whatever the method.
    close(found, expected_outputs(train, test, SUBSETS), 1e-10 if apart in (0.0, 1e-2) else 1e-7)


def test_coefficients_of_undetermined_subsets_are_the_shortest():
    (points, targets), _ = instances()
    points = np.column_stack([points, points[:, 0]])
    trainer = LinearLearner().bind(Instances.of((points, targets)))
    coefficients = trainer.fit(SUBSETS, seeds(SUBSETS)).models["coefficients"][:, 0]
    for found, counted in zip(coefficients, SUBSETS, strict=True):
        centred = points[counted] - points[counted].mean(axis=0)
        wanted = targets[counted] - targets[counted].mean()
        close(found, np.linalg.pinv(centred, rcond=1e-6) @ wanted)
    close(coefficients[:, 0], coefficients[:, -1])


def test_far_from_zero():
    """Sums of squares of such features have no digit left for their variances."""
    (points, targets), (tests, test_targets) = instances()
    for offset in (1e6, 1e9):
        # Rounded, so that the offset can be added and subtracted without rounding.
        train, test = (points + offset, targets + offset), (tests + offset, test_targets)
        rounded = (train[0] - offset, targets), (test[0] - offset, None)
        near = expected_outputs(*rounded, SUBSETS)
        found = outputs(LinearLearner(), train, test, SUBSETS) - offset
        determined = SUBSETS.sum(axis=1) > FEATURES + 3
        close(found[determined], near[determined], 1e-5 if offset == 1e9 else 1e-8)


def test_it_does_not_matter_what_is_fitted_together():
    for learner in (LinearLearner(), LinearLearner(0.1), LinearLearner(0.1, penalty="mean")):
        train, test = instances()
        trainer = learner.bind(Instances.of(train))
        prepared = trainer.prepare(Instances.of(test))

        def fit(rows, trainer=trainer, prepared=prepared):
            return trainer.outputs(trainer.fit(rows, seeds(rows)), prepared)

        counts = np.concatenate([SUBSETS, COUNTS["small"]])
        # Of those that hardly determine their coefficients the last digits are not the same.
        counts = counts[np.abs(counts.sum(axis=1) - FEATURES) > 2]
        together = fit(counts)
        for size in (1, 7):
            parts = [fit(counts[row : row + size]) for row in range(0, len(counts), size)]
            close(np.concatenate(parts), together, 1e-12)
        close(fit(counts[::-1])[::-1], together, 1e-12)
        trainer.at_once = 5
        close(fit(counts), together, 1e-12)


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("alpha", [0.0, 0.5])
def test_rows_that_are_shared_and_rows_of_their_own(own, alpha, monkeypatch):
    monkeypatch.setattr(gathered_rows, "GRAM_COST", 0 if own else np.inf)
    for features in (FEATURES, 100):
        train, test = instances(features=features)
        found = outputs(LinearLearner(alpha), train, test, SUBSETS)
        close(found, expected_outputs(train, test, SUBSETS, alpha))


def test_a_table_of_products_that_would_be_too_large(monkeypatch):
    monkeypatch.setattr(gathered_rows, "LARGEST_TABLE", 0)
    train, test = instances()
    found = outputs(LinearLearner(), train, test, SUBSETS)
    close(found, expected_outputs(train, test, SUBSETS))


def test_risks():
    train, test = instances(outputs=2)
    trainer = LinearLearner(0.5).bind(Instances.of(train))
    fitted = trainer.fit(SUBSETS, seeds(SUBSETS))
    found = trainer.risks(fitted, trainer.prepare(Instances.of(test)))
    expected = expected_outputs(train, test, SUBSETS, 0.5) - test[1]
    close(found, (expected**2).sum(axis=2), 1e-9)
    absolute = LinearLearner(0.5, risk="absolute").bind(Instances.of(train))
    found = absolute.risks(fitted, absolute.prepare(Instances.of(test)))
    close(found, np.abs(expected).sum(axis=2), 1e-9)


def test_a_decomposition_that_does_not_converge_fails_alone(monkeypatch):
    train, test = instances()
    decompose = np.linalg.svd

    def stubborn(matrices, **settings):
        if (np.abs(matrices).sum(axis=(-2, -1)) > limit).any():
            raise np.linalg.LinAlgError("SVD did not converge")
        return decompose(matrices, **settings)

    monkeypatch.setattr(least_squares, "LARGEST_RATIO", 0.0)  # all are decomposed
    counts = COUNTS["small"][:5]
    limit = np.inf
    monkeypatch.setattr(least_squares.np.linalg, "svd", stubborn)
    expected = outputs(LinearLearner(), train, test, counts)
    chosen = [np.abs(train[0][row] - train[0][row].mean(axis=0)).sum() for row in counts]
    limit = np.sort(chosen)[-2] + 1e-9
    trainer = LinearLearner().bind(Instances.of(train))
    fitted = trainer.fit(counts, seeds(counts))
    worst = int(np.argmax(chosen))
    assert list(fitted.failures) == [worst]
    found = trainer.risks(fitted, trainer.prepare(Instances.of(test)))
    assert np.isnan(found[worst]).all()
    kept = np.arange(5) != worst
    close(found[kept], ((expected - test[1]) ** 2)[kept])


def test_what_stands_for_no_training_instance():
    train, test = instances(outputs=2)
    trainer = LinearLearner().bind(Instances.of(train))
    found = trainer.outputs(trainer.constant("prior"), trainer.prepare(Instances.of(test)))
    close(found, np.tile(train[1].mean(axis=0), (1, TESTS, 1)))
    with pytest.raises(MethodCapabilityError, match="'prior'"):
        trainer.constant("uniform")


@pytest.mark.parametrize("several", [None, 3])
def test_stored_and_sent_to_a_worker(several):
    train, test = instances(outputs=several)
    trainer = LinearLearner().bind(Instances.of(train))
    prepared = trainer.prepare(Instances.of(test))
    fitted = trainer.fit(SUBSETS, seeds(SUBSETS))
    expected = trainer.outputs(fitted, prepared)
    arrays = trainer.to_arrays(fitted)
    assert trainer.nbytes(fitted) == 8 * len(SUBSETS) * (several or 1) * (FEATURES + 1)
    worker = pickle.loads(pickle.dumps(trainer))
    stored = worker.from_arrays(arrays, fitted.size, fitted.failures)
    assert np.array_equal(worker.outputs(stored, prepared), expected)
    assert np.array_equal(worker.outputs(worker.fit(SUBSETS, seeds(SUBSETS)), prepared), expected)
    assert not trainer.seeded


def test_recipe():
    settings = [{}, {"alpha": 1.0}, {"fit_intercept": False}, {"penalty": "mean"}]
    assert len({LinearLearner(**given).recipe() for given in settings}) == len(settings)
    assert repr(LinearLearner(1.0, penalty="mean")) == "LinearLearner(alpha=1.0, penalty='mean')"


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"alpha": -1.0}, "alpha: expected a finite number that is not negative"),
        ({"alpha": np.nan}, "alpha: expected"),
        ({"alpha": "1"}, "alpha: expected"),
        ({"penalty": "median"}, "penalty: expected one of 'sum', 'mean'"),
        ({"risk": "cross_entropy"}, "risk of a regressor"),
    ],
)
def test_hyperparameters_that_are_none(settings, message):
    with pytest.raises(InvalidInputError, match=message):
        LinearLearner(**settings).bind(Instances.of(instances()[0]))


def test_sets_that_do_not_fit():
    (points, targets), (tests, test_targets) = instances()
    with pytest.raises(InvalidInputError, match="need a classifier"):
        LinearLearner().bind(Instances.of((points, np.full(N, "ant"))))
    holes = points.copy()
    holes[3, 1] = np.inf
    with pytest.raises(NonFiniteError, match="train: features of 1 instances"):
        LinearLearner().bind(Instances.of((holes, targets)))
    trainer = LinearLearner().bind(Instances.of((points, targets)))
    with pytest.raises(InvalidInputError, match="test: instances have 3 features"):
        trainer.prepare(Instances.of((tests[:, :3], test_targets)))
    with pytest.raises(InvalidInputError, match="targets of shape"):
        trainer.prepare(Instances.of((tests, np.zeros((TESTS, 2)))))
