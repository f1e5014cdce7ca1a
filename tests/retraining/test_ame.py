"""Average marginal effects, by every estimator, and the selection with knockoffs."""

from fractions import Fraction

import numpy as np
import pytest
from retraining.games import FROZEN, all_masks, enumerated, random_worth, table_game
from retraining.sampled import assert_calibrated, deviations, user_game
from scipy.stats import binom
from sklearn.linear_model import LogisticRegression

from proponent.exceptions import InvalidInputError
from proponent.retraining.ame import AME
from proponent.retraining.coalitions import Coalitions, Table
from proponent.retraining.designs import AMEGrid
from proponent.retraining.estimators.knockoffs import statistics, threshold
from proponent.retraining.estimators.marginal_effects import LeastSquaresEffects, effect_features
from proponent.retraining.game import Game

GRID = (0.2, 0.4, 0.6, 0.8)


def law(n, grid=GRID):
    return np.mean([binom.pmf(np.arange(n), n - 1, q) for q in grid], axis=0)


def sparse_game(n, effects, noise=0.3, seed=0):
    """Some players add something, more where the next one is in; and there is noise."""
    rng = np.random.default_rng(seed)

    def game(masks):
        found = np.zeros(len(masks))
        for player, effect in effects.items():
            found += effect * masks[:, player] * (1 + 0.2 * masks[:, (player + 1) % n])
        return found + masks.mean(axis=1) + noise * rng.normal(size=len(masks))

    return game


def test_features_have_mean_zero_variance_one_and_no_correlation():
    """Over all coalitions with their probabilities, exactly."""
    n = 4
    masks = all_masks(n)
    q = np.repeat(GRID, len(masks))
    every = np.tile(masks, (len(GRID), 1))
    weight = np.prod(np.where(every, q[:, None], 1 - q[:, None]), axis=1) / len(GRID)
    features = effect_features(every, q)
    assert weight @ features == pytest.approx(0, abs=1e-14)
    assert (features * weight[:, None]).T @ features == pytest.approx(np.eye(n), abs=1e-14)


def test_the_game_of_three_players_has_the_known_effects():
    found = AME(estimator="exact").fit(user_game(table_game(FROZEN), 3)).influence()
    expected = [float(Fraction(text)) for text in ("9/5", "33/10", "4/5")]
    assert found.values[0] == pytest.approx(expected, abs=1e-14)


def test_least_squares_on_all_coalitions_is_the_effect():
    """Each coalition as often as its probability says: the population's regression."""
    n, grid = 4, (0.25, 0.75)
    masks = all_masks(n)
    worth = random_worth(n, 2)
    size = masks.sum(axis=1)
    rows, chances = [], []
    for q in grid:
        times = np.rint((4 * q) ** size * (4 * (1 - q)) ** (n - size)).astype(int)
        rows.append(np.repeat(np.arange(len(masks)), times))
        chances.append(np.full(times.sum(), q))
    rows = np.concatenate(rows)
    coalitions = Coalitions(masks[rows], np.zeros(len(rows), int), np.concatenate(chances))
    found = LeastSquaresEffects().on(Table(coalitions, worth[rows])).players(range(n))
    assert found.values == pytest.approx(enumerated(worth, law(n, grid)), abs=1e-12)


@pytest.mark.parametrize("estimator", ["least_squares", "regression", "means"])
def test_sampled_effects_are_within_their_errors(estimator):
    n = 7
    worth = random_worth(n, 2) + 5 + 2 * all_masks(n).sum(axis=1)[:, None]
    truth = enumerated(worth, law(n))
    z = deviations(
        lambda seed: AME(1200, estimator=estimator, seed=seed),
        user_game(table_game(worth), n),
        truth,
        repeats=30,
    )
    assert_calibrated(z)


@pytest.mark.parametrize("debias", ["support", "one_step"])
def test_the_lasso_finds_the_few_effects_with_fewer_models_than_instances(debias):
    n, effects = 150, {3: 4.0, 20: -3.0, 77: 2.5}
    # A player that the next one adds 20 % to half of the time, and the share that is in.
    z = []
    for seed in range(5):
        ame = AME(120, debias=debias, seed=seed).fit(
            user_game(sparse_game(n, effects, seed=seed), n)
        )
        found = ame.influence()
        strongest = np.argsort(-np.abs(found.values[0]))[:3]
        assert set(strongest.tolist()) == set(effects)
        for player, effect in effects.items():
            true = effect * 1.1 + 1 / n
            z.append((found.values[0, player] - true) / found.std_error[0, player])
    assert np.abs(z).max() < 4


def test_without_debiasing_effects_are_too_small():
    n, effects = 60, {3: 4.0, 20: -3.0}
    game = user_game(sparse_game(n, effects), n)
    found = AME(300, debias=None, seed=0).fit(game).influence().values[0]
    assert 0 < found[3] < 4.4
    assert -3.3 < found[20] < 0


def test_a_coalition_of_the_first_player_alone_counts():
    """OpenDataVal skips it: it asks whether any of the members' positions is not 0."""
    masks = np.array([[True, False]] * 3 + [[False, True]] * 3 + [[False, False]] * 3)
    coalitions = Coalitions(masks, np.zeros(9, int), np.full(9, 0.5))
    utilities = np.repeat([1.0, 0.0, 0.0], 3)[:, None] + np.tile([0.0, 1e-9, -1e-9], 3)[:, None]
    found = LeastSquaresEffects().on(Table(coalitions, utilities)).players(range(2)).values
    assert found == pytest.approx(np.array([[1.0, 0.0]]), abs=1e-6)


def test_features_are_not_scaled_row_by_row():
    """As OpenDataVal does: the same player would then count differently in each coalition."""
    coalitions = AMEGrid().draw(10, 0, 50, 0)
    features = effect_features(coalitions.masks, coalitions.chances)
    for q in GRID:
        mine = coalitions.chances == q
        for side in (True, False):
            values = features[mine][coalitions.masks[mine] == side]
            expected = (1 / q if side else -1 / (1 - q)) / np.sqrt(
                np.mean(1 / (coalitions.chances * (1 - coalitions.chances)))
            )
            assert values == pytest.approx(expected, rel=1e-12)


def test_an_empty_coalition_is_worth_what_the_empty_one_is():
    worth = random_worth(2, 1)
    seen = []

    def value(masks):
        seen.append(masks.copy())
        return table_game(worth)(masks)

    result = AME(400, estimator="means").fit(user_game(value, 2)).influence()
    assert any((~masks.any(axis=1)).any() for masks in seen)
    # (0.8^2 + 0.6^2 + 0.4^2 + 0.2^2) / 4 = 0.3 of the coalitions are empty.
    assert abs(result.diagnostics["empty_subsets"] - 120) < 40
    z = (result.values - enumerated(worth, law(2))) / result.std_error
    assert np.abs(z).max() < 4


@pytest.mark.parametrize(
    ("statistic", "plus", "plain"),
    [
        ([5, 4, 3, 2, 1, -1], 4.0 * 0 + 2.0, 1.0),
        ([3, 2, -2, 1], np.inf, 3.0),
        ([0, 0, 0], np.inf, np.inf),
    ],
)
def test_thresholds(statistic, plus, plain):
    """By hand, for a rate of 0.25: 1/4 <= 0.25 needs four selected with knockoff+."""
    values = np.array(statistic, float)
    assert threshold(values, 0.25) == plus
    assert threshold(values, 0.25, plus=False) == plain


def test_knockoffs_keep_the_rate_of_false_discoveries():
    n, true = 60, list(range(12))
    effects = {player: 2.0 * (-1) ** player for player in true}
    false, power = [], []
    for seed in range(8):
        game = user_game(sparse_game(n, effects, noise=1.0, seed=seed), n)
        found = AME(400, seed=seed).fit(game).select(fdr=0.2)
        chosen = set(found.ids[0].tolist())
        false.append(len(chosen - set(true)) / max(1, len(chosen)))
        power.append(len(chosen & set(true)) / len(true))
    assert np.mean(false) < 0.3
    assert np.mean(power) > 0.9


def test_statistics_of_players_without_effect_have_either_sign():
    n = 40
    coalitions = AMEGrid().draw(n, 0, 200, 1)
    # One player has an effect, so that the penalty lets others in.
    utilities = np.random.default_rng(1).normal(size=(200, 15)) + coalitions.masks[:, :1]
    found = statistics(Table(coalitions, utilities))
    assert (found[:, 0] > 0).all()
    up, down = (found[:, 1:] > 0).sum(), (found[:, 1:] < 0).sum()
    assert up + down > 40
    assert abs(int(up) - int(down)) < 4 * np.sqrt(up + down)


def test_harmful_labels_are_selected_in_a_model():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(30, 2))
    y = np.where(X[:, 0] > 0, "yes", "no")
    test = rng.normal(size=(40, 2))
    test = test, np.where(test[:, 0] > 0, "yes", "no")
    worst = int(np.argmax(X[:, 0]))
    y[worst] = "no"
    ame = AME(2000, estimator="regression").fit(LogisticRegression(), (X, y))
    joint = ame.influence(test, joint=True)
    assert joint.opponents(1).ids.tolist() == [worst]
    assert worst in ame.select(test, fdr=0.5, plus=False, joint=True).ids[0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"estimator": "best"}, "estimator must be"),
        ({"debias": "yes"}, "debias must be"),
        ({"probabilities": (0.5, 1.0)}, "q must be"),
        ({"folds": 1}, "folds must be 2"),
        ({"estimator": "least_squares", "n_models": 6}, r"at least \d coalitions, .* got 6"),
        ({"n_models": 5}, "5 folds need 10"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(InvalidInputError, match=message):
        AME(**settings).fit(user_game(table_game(random_worth(4, 1)), 4)).influence()


def test_a_rate_out_of_range_is_refused():
    method = AME(50).fit(user_game(table_game(random_worth(4, 1)), 4))
    with pytest.raises(InvalidInputError, match="fdr must be"):
        method.select(fdr=1.0)


def test_errors_after_the_lasso_say_what_they_are_of():
    """Those without a selection cover; those after it do not for whoever was selected falsely."""
    weights = np.random.default_rng(3).normal(size=40) * 1000

    def value(masks):
        return 3.0 * masks[:, 4] - 2.0 * masks[:, 7] + np.sin(masks @ weights)

    game, truth = Game(40, value, vectorized=True), np.zeros(40)
    truth[[4, 7]] = 3.0, -2.0
    covered = {"one_step": [], "support": []}
    for seed in range(8):
        for debias, found in covered.items():
            influence = AME(300, debias=debias, seed=seed).fit(game).influence()
            values, errors = influence.values[0], influence.std_error[0]
            chosen = (values != 0) & (truth == 0) if debias == "support" else np.ones(40, bool)
            found.append((np.abs(values - truth) <= 1.96 * errors)[chosen])
            noted = influence.diagnostics["std_errors"]
            assert ("selection is not in them" in noted) == (debias == "support")
    assert 0.9 <= np.concatenate(covered["one_step"]).mean() <= 0.98
    selected = np.concatenate(covered["support"])
    assert len(selected) >= 10 and selected.mean() < 0.8
