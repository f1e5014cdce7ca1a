"""The LASSO against scikit-learn's, least squares and ridge against plain formulas."""

import numpy as np
import pytest
from sklearn.linear_model import Lasso, LassoCV, LinearRegression, RidgeCV

from proponent.exceptions import InvalidInputError
from proponent.retraining.estimators.linear_fit import PENALTIES, least_squares, ridge
from proponent.retraining.estimators.sparse_regression import Selection, lasso


def example(rows=120, n=15, n_tests=3, seed=0):
    rng = np.random.default_rng(seed)
    masks = (rng.random((rows, n)) < 0.4).astype(float)
    slopes = np.where(rng.random((n, n_tests)) < 0.3, rng.normal(size=(n, n_tests)), 0)
    noise = rng.normal(size=(rows, n_tests)) * (0.3 + masks[:, :1])
    return masks, 5 + masks @ slopes + noise, slopes.T


@pytest.mark.parametrize(("rows", "n", "ratio"), [(120, 15, 1e-3), (40, 60, 0.1)])
def test_cross_validated_lasso_is_scikit_learn_s(rows, n, ratio):
    features, utilities, _ = example(rows, n)
    found = lasso(features, utilities, Selection.by_folds(rows, 5, 30, ratio))
    for test, y in enumerate(utilities.T):
        exact = LassoCV(eps=ratio, alphas=30, cv=5, tol=1e-9, max_iter=100_000).fit(features, y)
        assert found.weights[test] == pytest.approx(exact.coef_, abs=0.01)
        assert 0 < (found.weights[test] != 0).sum() < n
        assert found.intercepts[test] == pytest.approx(exact.intercept_, abs=0.02)


def test_a_held_out_split_chooses_the_penalty_with_the_smallest_error_on_it():
    features, utilities, _ = example()
    selection = Selection.held_out(120, 0.1, 40, 1e-4)
    assert [len(part) for part in selection.splits[0]] == [108, 12]
    found = lasso(features, utilities, selection)
    for test, y in enumerate(utilities.T):
        largest = np.abs((features - features.mean(0)).T @ (y - y.mean())).max() / 120
        errors, fits = [], []
        for penalty in largest * np.geomspace(1, 1e-4, 40):
            part = Lasso(penalty, tol=1e-9, max_iter=100_000).fit(features[:108], y[:108])
            errors.append(np.square(part.predict(features[108:]) - y[108:]).mean())
            fits.append(penalty)
        best = fits[int(np.argmin(errors))]
        expected = Lasso(best, tol=1e-9, max_iter=100_000).fit(features, y)
        assert found.weights[test] == pytest.approx(expected.coef_, abs=0.01)


def test_a_utility_that_does_not_depend_on_who_is_in_has_no_slopes():
    features, _, _ = example()
    found = lasso(features, np.full((120, 1), 3.0), Selection.by_folds(120, 5, 30, 1e-3))
    assert (found.weights == 0).all()
    assert found.predict(features[:4]) == pytest.approx(3.0)


def test_one_step_takes_the_penalty_s_bias_out():
    biased, stepped = [], []
    for seed in range(30):
        rng = np.random.default_rng(seed)
        features = (rng.random((400, 20)) < 0.5).astype(float)
        utilities = (2 * features[:, 0] + rng.normal(size=400))[:, None]
        selection = Selection.by_folds(400, 5, 30, 1e-3)
        biased.append(lasso(features, utilities, selection).weights[0, 0] - 2)
        found = lasso(features, utilities, selection, one_step=True)
        stepped.append((found.weights[0, 0] - 2) / found.std_errors[0, 0])
    assert np.mean(biased) < -0.05
    assert abs(np.mean(stepped)) < 3 / np.sqrt(30)
    assert 0.6 < np.std(stepped) < 1.5


def test_least_squares_and_its_robust_errors():
    features, utilities, _ = example()
    found = least_squares(features, utilities)
    for test, y in enumerate(utilities.T):
        fit = LinearRegression().fit(features, y)
        assert found.weights[test] == pytest.approx(fit.coef_, abs=1e-11)
        design = np.column_stack([np.ones(120), features])
        bread = np.linalg.inv(design.T @ design)
        left = np.square(y - fit.predict(features))
        sandwich = bread @ (design.T * left) @ design @ bread * 120 / (120 - 16)
        assert found.std_errors[test] == pytest.approx(np.sqrt(np.diag(sandwich))[1:], rel=1e-9)


def test_slopes_on_masks_of_one_size_sum_to_zero():
    rng = np.random.default_rng(0)
    masks = np.array([rng.permutation(10) < 4 for _ in range(80)]).astype(float)
    found = least_squares(masks, rng.normal(size=(80, 2)) + masks @ rng.normal(size=(10, 2)))
    assert found.weights.sum(axis=1) == pytest.approx(0, abs=1e-12)
    # Predictions are those of any other solution.
    other = LinearRegression().fit(masks[:, 1:], found.predict(masks).T)
    predicted = found.predict(masks)
    assert predicted == pytest.approx(other.predict(masks[:, 1:]).T, abs=1e-11)


def test_too_few_rows_are_refused():
    features, utilities, _ = example(rows=16)
    with pytest.raises(InvalidInputError, match=r"needs at least 17 coalitions, .* got 16"):
        least_squares(features, utilities)
    with pytest.raises(InvalidInputError, match="5 folds need 10"):
        Selection.by_folds(9, 5, 30, 1e-3)
    with pytest.raises(InvalidInputError, match="too few to hold some out"):
        Selection.held_out(2, 0.1, 30, 1e-3)


@pytest.mark.parametrize(("rows", "n"), [(120, 15), (30, 50)])
def test_ridge_is_scikit_learn_s_with_leave_one_out(rows, n):
    features, utilities, _ = example(rows, n)
    found = ridge(features, utilities)
    centred = features - features.mean(axis=0)
    grid = PENALTIES * np.linalg.norm(centred, 2) ** 2
    for test, y in enumerate(utilities.T):
        # Of a few penalties by definition, as scikit-learn centres the rows that are left in.
        errors = []
        for penalty in grid:
            hat = np.column_stack([np.ones(rows), centred])
            penalised = np.diag([0.0] + [penalty] * n)
            hat = hat @ np.linalg.solve(hat.T @ hat + penalised, hat.T)
            errors.append(np.square((y - hat @ y) / (1 - np.diag(hat))).mean())
        best = grid[int(np.argmin(errors))]
        expected = RidgeCV([best]).fit(features, y)
        assert found.weights[test] == pytest.approx(expected.coef_, rel=1e-6, abs=1e-9)
        assert found.intercepts[test] == pytest.approx(expected.intercept_, rel=1e-6)


def test_ridge_errors_are_those_of_repeated_noise():
    """Its slopes are linear in the utilities for a given penalty: their spread is known."""
    features, _, slopes = example()
    rng = np.random.default_rng(5)
    level = features @ slopes.T[:, :1]
    found = ridge(features, level + rng.normal(size=(120, 400)))
    spread = found.weights.std(axis=0)
    assert found.std_errors.mean(axis=0) == pytest.approx(spread, rel=0.2)
