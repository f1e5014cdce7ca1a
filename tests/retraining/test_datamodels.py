"""Datamodels: what their slopes are, and what they predict."""

import numpy as np
import pytest
from retraining.games import all_masks, difference_at, random_worth, smooth_game, table_game
from retraining.sampled import user_game
from scipy.stats import spearmanr
from sklearn.linear_model import LogisticRegression, Ridge

from proponent.exceptions import InvalidInputError
from proponent.retraining.banzhaf import Banzhaf
from proponent.retraining.coalitions import Coalitions, Table
from proponent.retraining.datamodels import Datamodels
from proponent.retraining.estimators.datamodel_fits import LeastSquaresFit
from proponent.retraining.submodels import Submodels


@pytest.mark.parametrize("size", [1, 3, 5])
def test_on_all_subsets_of_a_size_slopes_are_downsampling_s_less_a_share(size):
    n = 6
    worth = random_worth(n, 2)
    masks = all_masks(n)
    masks = np.repeat(masks[masks.sum(axis=1) == size], 2, axis=0)
    table = Table(Coalitions(masks, np.zeros(len(masks), int)), table_game(worth)(masks))
    slopes = LeastSquaresFit().on(table).players(range(n)).values
    assert slopes == pytest.approx((n - 1) / n * difference_at(worth, size), abs=1e-12)
    assert slopes.sum(axis=1) == pytest.approx(0, abs=1e-12)


def test_on_all_subsets_slopes_are_banzhaf_values():
    n = 5
    worth = random_worth(n, 2)
    masks = np.repeat(all_masks(n), 2, axis=0)
    table = Table(Coalitions(masks, np.zeros(len(masks), int)), table_game(worth)(masks))
    slopes = LeastSquaresFit().on(table).players(range(n)).values
    exact = Banzhaf(estimator="exact").fit(user_game(table_game(worth), n)).influence().values
    assert slopes == pytest.approx(exact, abs=1e-12)


@pytest.mark.parametrize("estimator", ["lasso", "ridge", "least_squares"])
@pytest.mark.parametrize("sampling", ["uniform", "bernoulli"])
def test_predictions_are_those_of_the_scores_and_rank_other_submodels(estimator, sampling):
    n = 25
    game = user_game(smooth_game(n, 3), n)
    method = Datamodels(400, estimator=estimator, sampling=sampling).fit(game)
    assert (method.lds(n_models=200) > 0.9).all()
    scores = method.influence()
    fitted = method.datamodel()
    assert scores.values == pytest.approx(fitted.weights, abs=0)
    masks = np.random.default_rng(0).random((50, n)) < 0.5
    predicted = method.predict(masks)
    expected = fitted.intercepts[:, None] + scores.values @ masks.T
    assert predicted == pytest.approx(expected, abs=1e-12)
    # A group's score is what the prediction loses without it.
    group = scores.group({"some": [0, 1, 2]}).values[:, 0]
    everyone = np.ones((2, n), bool)
    everyone[1, :3] = False
    whole, without = method.predict(everyone).T
    assert group == pytest.approx(whole - without, abs=1e-12)


def test_lds_is_spearman_s_correlation_on_further_subsets():
    n = 12
    game = smooth_game(n, 2)
    method = Datamodels(100, estimator="ridge", seed=3).fit(user_game(game, n))
    masks = method._design(n).draw(n, 100, 140, 3).masks
    expected = [
        spearmanr(*pair).statistic
        for pair in zip(method.predict(masks), game(masks).T, strict=True)
    ]
    assert method.lds(n_models=40) == pytest.approx(expected, abs=1e-12)


def test_least_squares_errors_hold_for_noise():
    n = 40
    weights = np.random.default_rng(0).normal(size=n)
    truth = weights - weights.mean()  # what subsets of one size can tell
    z = []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        game = user_game(lambda m, rng=rng: m @ weights + rng.normal(size=len(m)), n)
        found = Datamodels(500, estimator="least_squares", seed=seed).fit(game).influence()
        z.append((found.values - truth) / found.std_error)
    assert 0.9 < (np.abs(z) < 1.96).mean() < 0.99


def classes(n=24, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, 2))
    return X, (X[:, 0] + 0.3 * rng.normal(size=n) > 0).astype(int)


def test_a_classifier_s_margin_and_a_regression_s_risk_are_predicted():
    X, y = classes()
    test = X[:3] + 0.1, y[:3]
    default = Datamodels(60, estimator="ridge").fit(LogisticRegression(), (X, y)).influence(test)
    from proponent.retraining.utility import Margin

    margin = Datamodels(60, estimator="ridge", utility=Margin(1e-3))
    expected = margin.fit(LogisticRegression(), (X, y)).influence(test)
    assert default.values == pytest.approx(expected.values, abs=0)
    default = Datamodels(60, estimator="ridge").fit(Ridge(), (X, 1.0 * y)).influence(test)
    risk = Datamodels(60, estimator="ridge", utility="risk")
    expected = risk.fit(Ridge(), (X, 1.0 * y)).influence(test)
    assert default.values == pytest.approx(expected.values, abs=0)


def test_held_out_submodels_are_trained_once_and_shared():
    X, y = classes()
    submodels = Submodels(LogisticRegression(), (X, y))
    method = Datamodels(40, estimator="ridge").fit(submodels)
    assert submodels.report()["trained"] == 40
    method.lds((X[:2], y[:2]), n_models=10)
    assert submodels.report()["trained"] == 50
    method.lds((X[:2], y[:2]), n_models=10)
    assert submodels.report()["trained"] == 50


def test_an_instance_that_is_never_in_is_not_scored():
    found = Datamodels(12, fraction=0.1, estimator="ridge").fit(user_game(smooth_game(30, 1), 30))
    masks = found._coalitions.masks
    never = ~masks.any(axis=0)
    assert never.any()
    result = found.influence()
    assert (np.isnan(result.values[0]) == never).all()
    assert result.diagnostics["never_or_always_in"] == never.sum()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"fraction": 1.0}, "fraction must be"),
        ({"fraction": 0.01}, "makes subsets of 0"),
        ({"sampling": "balanced"}, "sampling must be"),
        ({"estimator": "ols"}, "estimator must be"),
        ({"ratio": 2.0}, "ratio must be"),
        ({"estimator": "least_squares", "n_models": 10}, "at least 12 coalitions"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(InvalidInputError, match=message):
        Datamodels(**settings).fit(user_game(smooth_game(10, 1), 10)).influence()


def test_masks_of_another_width_are_refused():
    method = Datamodels(50).fit(user_game(smooth_game(10, 1), 10))
    with pytest.raises(InvalidInputError, match=r"shape \(K, 10\)"):
        method.predict(np.ones((3, 9), bool))
    with pytest.raises(InvalidInputError, match="2 or more"):
        method.lds(n_models=1)
