"""The C-score: models that did not see an instance, in a plain loop over ratios."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from retraining.refit_examples import classification, regression
from retraining.submodel_examples import Failing, Logged, logged_masks, utilities
from sklearn.linear_model import Ridge
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier

import proponent as pp
from proponent.exceptions import (
    InvalidInputError,
    MethodCapabilityError,
    NotFittedError,
    ProponentError,
)

N = 20
RATIOS = (0.2, 0.5, 0.9)
NUMBERS = regression(N, 2, tests=6)
CLASSES = classification(N, 3, 2, tests=6)
NAMES = tuple((X, np.array(["yes", "no"])[y]) for X, y in CLASSES)
LOGGED = Ridge(alpha=1.0, fit_intercept=False)


@pytest.fixture(autouse=True)
def _cleared():
    Logged.trainings.clear()


def plain(masks, found, sizes, *, held_out):
    """Return means, their errors and counts, ``(m, G)``, instance by instance."""
    shape = (found.shape[1], len(sizes))
    values, errors, counts = np.full(shape, np.nan), np.full(shape, np.nan), np.zeros(shape, int)
    for i in range(shape[0]):
        for g, size in enumerate(sizes):
            rows = [
                utility[i]
                for mask, utility in zip(masks, found, strict=True)
                if mask.sum() == size and not (held_out and mask[i])
            ]
            counts[i, g] = len(rows)
            if rows:
                values[i, g] = np.mean(rows)
            if len(rows) > 1:
                errors[i, g] = np.std(rows, ddof=1) / np.sqrt(len(rows))
    return values, errors, counts


@pytest.mark.parametrize("held_out", [True, False])
def test_the_profile_is_that_of_a_plain_loop(held_out):
    train, test = NUMBERS
    method = pp.ConsistencyScore(120, ratios=RATIOS, utility="risk").fit(Logged(), train)
    masks = logged_masks(N)
    assert np.unique(masks.sum(axis=1), return_counts=True)[1].tolist() == [40, 40, 40]
    judged = train if held_out else test
    found = utilities(LOGGED, train, judged, masks)
    values, errors, counts = plain(masks, found, (4, 10, 18), held_out=held_out)
    given = () if held_out else (test,)
    profile = method.profile(*given)
    assert_allclose(profile.values, values, atol=1e-9)
    assert_allclose(profile.std_errors, errors, atol=1e-9)
    assert_array_equal(profile.counts, counts)
    assert profile.ratios.tolist() == list(RATIOS)
    assert counts[0, 0] == 40 or held_out
    scores = method.scores(*given)
    assert_allclose(scores.values, values.mean(axis=1), atol=1e-9)
    assert_allclose(scores.std_error, np.sqrt((errors**2).sum(axis=1)) / 3, atol=1e-9)
    assert scores.diagnostics["fewest_models"] == counts.min()
    assert len(Logged.trainings) == 120


def test_the_accuracy_of_a_classifier_with_names_for_labels():
    train, _ = NAMES
    method = pp.ConsistencyScore(90, ratios=RATIOS).fit(GaussianNB(), train, ids=np.arange(N) + 7)
    masks = method._coalitions.masks
    found = utilities(GaussianNB(), train, train, masks, "accuracy")
    values, _, counts = plain(masks, found, (4, 10, 18), held_out=True)
    profile = method.profile()
    assert_array_equal(profile.ids, np.arange(N) + 7)
    assert_array_equal(profile.counts, counts)
    assert_allclose(profile.values, values, atol=1e-12)
    assert_array_equal(method.scores().train_ids, np.arange(N) + 7)
    assert np.nanstd(method.scores().values) > 0.2


def test_a_test_set_has_ids_and_every_model():
    method = pp.ConsistencyScore(30, ratios=RATIOS).fit(GaussianNB(), CLASSES[0])
    profile = method.profile(CLASSES[1], ids=list("abcdef"))
    assert profile.ids.tolist() == list("abcdef")
    assert_array_equal(profile.counts, 10)


def two_clusters(n=60, seed=3):
    random = np.random.default_rng(seed)
    y = np.arange(n) % 2
    X = random.normal(size=(n, 2)) + 6 * y[:, None]
    wrong = [4, 11, 30]
    flipped = y.copy()
    flipped[wrong] = 1 - y[wrong]
    return X, flipped, np.isin(np.arange(n), wrong)


def test_a_wrong_label_scores_low_as_the_instance_is_held_out():
    X, y, wrong = two_clusters()
    method = pp.ConsistencyScore(180, ratios=(0.3, 0.6, 0.9)).fit(KNeighborsClassifier(1), (X, y))
    held_out = method.scores().values
    assert held_out[wrong].max() < 0.2 and np.median(held_out[~wrong]) > 0.9
    # As test instances they would be judged by models that had learned their labels by heart.
    seen = method.scores((X, y)).values
    assert seen[wrong].min() > 0.5


def test_a_constant_model_is_as_good_at_every_ratio():
    class Constant:
        def fit(self, X, y):
            pass

        def predict(self, X):
            return np.zeros(len(X))

        def risk(self, X, y):
            return y**2

    (X, y), _ = NUMBERS
    method = pp.ConsistencyScore(240, ratios=(0.25, 0.5, 0.75), utility="risk").fit(
        Constant(), (X, y)
    )
    assert_allclose(method.profile().values, np.repeat(-(y[:, None] ** 2), 3, axis=1), atol=1e-13)
    assert_allclose(method.scores().std_error, 0.0, atol=1e-7)


def test_who_is_never_held_out_has_no_score():
    train, _ = NUMBERS
    method = pp.ConsistencyScore(20, ratios=(0.5, 0.9), utility="risk").fit(Logged(), train)
    masks = logged_masks(N)
    always = masks[masks.sum(axis=1) == 18].all(axis=0)
    assert 0 < always.sum() < N
    profile, scores = method.profile(), method.scores()
    assert_array_equal(np.isnan(profile.values[:, 1]), always)
    assert_array_equal(np.isnan(scores.values), always)
    assert not np.isnan(profile.values[:, 0]).any()
    assert_array_equal(np.isnan(profile.std_errors[:, 1]), profile.counts[:, 1] < 2)
    assert scores.diagnostics["fewest_models"] == 0


def test_ratios_of_the_same_size_share_their_models():
    (X, y), _ = NUMBERS
    method = pp.ConsistencyScore(60, ratios=(0.5, 0.55, 0.01, 0.999), utility="risk")
    method.fit(Logged(), (X[:6], y[:6]))
    profile = method.profile()
    masks = logged_masks(6)
    assert set(masks.sum(axis=1)) == {3, 1, 5}  # never none, never all
    assert_array_equal(profile.values[:, 0], profile.values[:, 1])
    assert_array_equal(profile.counts[:, 0], (~masks[masks.sum(axis=1) == 3]).sum(axis=0))


def test_ratios_of_the_same_size_have_the_errors_of_one():
    """The mean over five ratios of the same models is no surer than one of them."""
    train, _ = regression(4, 2, tests=2)
    one, five = (
        pp.ConsistencyScore(60, ratios=ratios, utility="risk").fit(Ridge(), train)
        for ratios in ((0.5,), (0.48, 0.49, 0.5, 0.51, 0.52))
    )
    assert_allclose(five.scores().values, one.scores().values)
    assert_allclose(five.scores().std_error, one.scores().std_error)
    assert one.scores().std_error.min() > 0


def test_trainings_that_fail_are_left_out_and_counted():
    (X, y), _ = NUMBERS
    method = pp.ConsistencyScore(200, ratios=(0.25, 0.5), utility="risk")
    scores = method.fit(Failing(hates=[2]), (X, y)).scores()
    failed = method._coalitions.masks[:, 2].sum()
    assert scores.diagnostics["failed"] == failed > 20
    # Its own models are those that are left; of the others some are gone.
    assert method.profile().counts[2].sum() == 200 - failed
    assert not np.isnan(scores.values).any()
    with pytest.raises(ProponentError, match="cannot be trained"):
        pp.ConsistencyScore(10, ratios=(0.25,), utility="risk").fit(Failing(least=9), (X, y))


def test_what_it_is_not():
    method = pp.ConsistencyScore(20).fit(GaussianNB(), CLASSES[0])
    with pytest.raises(MethodCapabilityError, match="scores instances, not pairs"):
        method.influence(CLASSES[1])
    with pytest.raises(MethodCapabilityError, match=r"scores\(\)"):
        method.memorization()
    with pytest.raises(NotFittedError):
        pp.ConsistencyScore().scores()
    grouped = pp.ConsistencyScore(20).fit(GaussianNB(), CLASSES[0], groups=np.arange(N) // 2)
    game = pp.ConsistencyScore(20).fit(pp.Game(6, lambda mask: 0.0))
    for other in (grouped, game):
        with pytest.raises(MethodCapabilityError, match="without groups"):
            other.scores()


def test_one_number_for_all_instances_says_nothing_of_each():
    method = pp.ConsistencyScore(20, utility=lambda outputs, labels: outputs.mean())
    method.fit(Ridge(), NUMBERS[0])
    for given in ((), (NUMBERS[1],)):
        with pytest.raises(InvalidInputError, match="one number for all"):
            method.scores(*given)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_models": 0}, "n_models"),
        ({"ratios": (0.5, 1.0)}, r"ratios\[1\] must be a number between 0 and 1"),
        ({"ratios": (0.0, 0.5)}, r"ratios\[0\]"),
        ({"ratios": ()}, "ratios"),
        ({"ratios": 0.5}, "ratios"),
        ({"utility": "auc"}, "utility"),
    ],
)
def test_a_setting_that_makes_no_sense(settings, message):
    with pytest.raises(InvalidInputError, match=message):
        pp.ConsistencyScore(**settings).fit(GaussianNB(), CLASSES[0])


def test_a_single_instance_cannot_be_held_out():
    (X, y), _ = NUMBERS
    with pytest.raises(InvalidInputError):
        pp.ConsistencyScore(10, utility="risk").fit(Ridge(), (X[:1], y[:1]))
