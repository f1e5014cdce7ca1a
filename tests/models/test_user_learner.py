"""Objects of a user's own as learners: whatever has fit and risk, copied before it is trained."""

import copy
import pickle
import warnings

import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm
from sklearn.base import BaseEstimator

from proponent.data import Instances
from proponent.exceptions import InvalidInputError, MethodCapabilityError, NonFiniteError
from proponent.models.user_learner import UserLearner

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(12, 2)), RNG.normal(size=12)
MASKS = RNG.random((4, 12)) < 0.5
SEEDS = np.array([3, 5, 3, 2**40])
TRAIN, TEST = Instances.of((X, Y)), Instances.of((X[:3], Y[:3]), ids=["p", "q", "r"])


class Centre:
    """Predicts the mean of what it was trained on, and remembers what it was given."""

    def __init__(self, shift=0.0):
        self.shift = shift

    def fit(self, X, y):
        self.mean = y.mean() + self.shift

    def risk(self, X, y):
        return (y - self.mean) ** 2

    def predict(self, X):
        return np.full(len(X), self.mean)


def make_centre():
    return Centre(1.0)


class Cloned(Centre):
    def clone(self):
        return type(self)(self.shift)


class Estimator(Centre, BaseEstimator):
    pass


class Holding(Centre):
    """Grows what it holds with every training: copies must not share it."""

    def __init__(self, shift=0.0):
        super().__init__(shift)
        self.seen = []

    def fit(self, X, y):
        self.seen.extend(y.tolist())
        self.mean = np.mean(self.seen) + self.shift


class Slotted:
    __slots__ = ("mean", "shift")

    def __init__(self, shift):
        self.shift = shift

    fit, risk, predict = Centre.fit, Centre.risk, Centre.predict


KINDS = {
    "object": Centre(1.0),
    "function": make_centre,
    "function without a name": lambda: Centre(1.0),
    "own clone": Cloned(1.0),
    "scikit-learn's clone": Estimator(1.0),
    "object that holds a list": Holding(1.0),
    "slots": Slotted(1.0),
}


@pytest.mark.parametrize("model", KINDS.values(), ids=KINDS.keys())
def test_every_subset_trains_an_object_of_its_own(model):
    trainer = UserLearner(model).bind(TRAIN)
    fitted, test = trainer.fit(MASKS, SEEDS), trainer.prepare(TEST)
    means = [np.mean([y for y, member in zip(Y, row, strict=True) if member]) for row in MASKS]
    expected = (Y[:3] - (np.array(means) + 1.0)[:, None]) ** 2
    np.testing.assert_allclose(trainer.risks(fitted, test), expected, rtol=1e-12)
    np.testing.assert_allclose(trainer.outputs(fitted, test)[:, 0], np.array(means) + 1.0)
    assert len({id(one) for one in fitted.models}) == len(MASKS)
    assert not hasattr(model, "mean")
    # In another order, and beside what was trained before, they are the same.
    again = trainer.risks(trainer.fit(MASKS[::-1], SEEDS[::-1]), test)[::-1]
    np.testing.assert_array_equal(again, trainer.risks(fitted, test))


def test_training_the_users_object_later_changes_nothing():
    model = Holding()
    trainer = UserLearner(model).bind(TRAIN)
    before = trainer.risks(trainer.fit(MASKS, SEEDS), trainer.prepare(TEST))
    model.fit(X, Y + 100.0)
    after = trainer.risks(trainer.fit(MASKS, SEEDS), trainer.prepare(TEST))
    np.testing.assert_array_equal(before, after)


def test_a_fitted_object_is_cloned_without_what_it_learned_or_said_to_leak():
    class Grown(Holding, BaseEstimator):
        pass

    fitted = Grown()
    fitted.fit(X, Y + 100.0)
    trainer = UserLearner(fitted).bind(TRAIN)
    np.testing.assert_allclose(trainer.fit(MASKS[:1], SEEDS[:1]).models[0].mean, Y[MASKS[0]].mean())

    leaky = Centre()
    leaky.coef_ = 1.0
    with pytest.warns(UserWarning, match=r"Centre seems to be fitted \(it has 'coef_'\)"):
        UserLearner(leaky).bind(TRAIN)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        UserLearner(Centre).bind(TRAIN)


def test_an_object_is_copied_deeply_where_it_holds_what_can_change():
    class Custom(Centre):
        def __deepcopy__(self, memo):
            return Custom(self.shift + 7.0)

    trainer = UserLearner(Custom()).bind(TRAIN)
    # One copy when it is bound and one for the subset; what is in front of it is asked first.
    assert trainer.fit(MASKS[:1], SEEDS[:1]).models[0].shift == 14.0
    nested = Centre(np.zeros(1))
    copies = UserLearner(nested).bind(TRAIN).fit(MASKS[:2], SEEDS[:2]).models
    assert copies[0].shift is not copies[1].shift


class Seeded:
    def fit(self, X, y, seed):
        self.value = np.random.default_rng(seed).normal()

    def risk(self, X, y):
        return np.full(len(X), self.value)


class RandomState(Seeded):
    def fit(self, X, y, sample_weight=None, *, random_state=0):
        super().fit(X, y, random_state)


class Parameter(Seeded, BaseEstimator):
    def __init__(self, random_state=None):
        self.random_state = random_state

    def fit(self, X, y):
        super().fit(X, y, self.random_state)


class Made(Seeded):
    def __init__(self, seed):
        self.seed = seed

    def fit(self, X, y):
        super().fit(X, y, self.seed)


@pytest.mark.parametrize("model", [Seeded(), RandomState(), Parameter(), Made])
def test_the_seed_reaches_what_asks_for_it(model):
    trainer = UserLearner(model).bind(TRAIN)
    assert trainer.seeded
    risks = trainer.risks(trainer.fit(MASKS, SEEDS), trainer.prepare(TEST))
    limit = 2**31 - 1 if isinstance(model, Parameter) else 2**63
    expected = [np.random.default_rng(seed % limit).normal() for seed in SEEDS.tolist()]
    np.testing.assert_array_equal(risks[:, 0], expected)


def test_what_takes_no_seed_is_the_same_for_all():
    assert not UserLearner(Centre()).bind(TRAIN).seeded
    assert not UserLearner(make_centre).bind(TRAIN).seeded


def test_positions_tell_where_the_rows_are_from():
    class Weighted:
        def fit(self, X, y, positions):
            self.positions = positions.tolist()
            np.testing.assert_array_equal(X, TRAIN.features()[positions])

        def risk(self, X, y):
            return np.zeros(len(X))

    counts = np.zeros((1, 12), np.uint8)
    counts[0, [2, 5]] = [1, 3]
    fitted = UserLearner(Weighted()).bind(TRAIN).fit(counts, SEEDS[:1])
    assert not fitted.failures
    assert fitted.models[0].positions == [2, 5, 5, 5]


class Density:
    """A Gaussian density: no labels."""

    def fit(self, X):
        self.mean, self.scale = X.mean(), X.std()

    def risk(self, X):
        return -norm.logpdf(X[:, 0], self.mean, self.scale)


class OptionalLabels(Density):
    def fit(self, X, y=None, epochs=3):
        assert y is None and epochs == 3
        super().fit(X)

    def risk(self, X, y=None):
        return super().risk(X)


@pytest.mark.parametrize("model", [Density(), OptionalLabels()])
def test_a_density_model_needs_no_labels(model):
    train, test = Instances.of(X[:, :1]), Instances.of(X[:3, :1])
    trainer = UserLearner(model).bind(train)
    risks = trainer.risks(trainer.fit(MASKS, SEEDS), trainer.prepare(test))
    for row, mask in zip(risks, MASKS, strict=True):
        chosen = X[mask, 0]
        np.testing.assert_allclose(row, -norm(chosen.mean(), chosen.std()).logpdf(X[:3, 0]))


def test_a_density_model_leaves_labels_that_are_there_alone():
    trainer = UserLearner(Density()).bind(Instances.of((X[:, :1], Y)))
    risks = trainer.risks(
        trainer.fit(MASKS, SEEDS), trainer.prepare(Instances.of((X[:3, :1], Y[:3])))
    )
    alone = UserLearner(Density()).bind(Instances.of(X[:, :1]))
    expected = alone.risks(alone.fit(MASKS, SEEDS), alone.prepare(Instances.of(X[:3, :1])))
    np.testing.assert_array_equal(risks, expected)


def test_labels_come_as_they_were_given_and_features_as_a_frame():
    class Checks:
        def fit(self, X, y):
            assert isinstance(X, pd.DataFrame) and list(X.columns) == ["a", "b"]
            self.known = set(y)

        def risk(self, X, y):
            assert isinstance(X, pd.DataFrame)
            return np.array([float(label not in self.known) for label in y])

    frame, labels = pd.DataFrame(X, columns=["a", "b"]), np.array(["u", "v", "w"] * 4)
    trainer = UserLearner(Checks()).bind(Instances.of((frame, labels)))
    fitted = trainer.fit((labels != "v")[None], SEEDS[:1])
    assert not fitted.failures
    test = trainer.prepare(Instances.of((frame[:3], labels[:3])))
    assert trainer.risks(fitted, test).tolist() == [[0.0, 1.0, 0.0]]
    with pytest.raises(InvalidInputError, match="test: the columns"):
        trainer.prepare(Instances.of((frame[["b", "a"]], labels)))


def test_a_training_that_fails_is_recorded():
    class Picky(Centre):
        def fit(self, X, y):
            if len(y) < 3:
                raise ValueError("too few")
            super().fit(X, y)

    masks = np.stack([MASKS[0], np.arange(12) < 2])
    trainer = UserLearner(Picky()).bind(TRAIN)
    fitted = trainer.fit(masks, SEEDS[:2])
    assert fitted.failures == {1: "ValueError: too few"}
    risks = trainer.risks(fitted, trainer.prepare(TEST))
    assert np.isfinite(risks[0]).all() and np.isnan(risks[1]).all()


def returning(risks):
    class Fixed(Centre):
        def risk(self, X, y):
            return risks

    return Fixed()


@pytest.mark.parametrize("risks", [0.5, np.zeros(2), np.zeros((3, 1)), ["a", "b", "c"], [None] * 3])
def test_risks_are_one_number_an_instance(risks):
    trainer = UserLearner(returning(risks)).bind(TRAIN)
    fitted = trainer.fit(MASKS[:1], SEEDS[:1])
    with pytest.raises(InvalidInputError, match=r"one number for each of the 3 instances"):
        trainer.risks(fitted, trainer.prepare(TEST))


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_risks_that_are_not_finite_name_their_instance(wrong):
    trainer = UserLearner(returning([0.0, wrong, 1.0])).bind(TRAIN)
    fitted = trainer.fit(MASKS[:1], SEEDS[:1])
    with pytest.raises(NonFiniteError, match="NaN or infinite on the instances 'q'"):
        trainer.risks(fitted, trainer.prepare(TEST))


def test_large_but_finite_risks_and_whole_numbers_pass():
    for risks in ([1e300, -1e300, 0.0], [1, 2, 3], [True, False, True]):
        trainer = UserLearner(returning(risks)).bind(TRAIN)
        fitted = trainer.fit(MASKS[:1], SEEDS[:1])
        np.testing.assert_array_equal(trainer.risks(fitted, trainer.prepare(TEST)), [risks])


def test_a_test_set_cannot_be_written_to_by_a_model():
    class Vandal(Centre):
        def risk(self, X, y):
            X *= 0
            return y

    trainer = UserLearner(Vandal()).bind(TRAIN)
    fitted = trainer.fit(MASKS[:1], SEEDS[:1])
    with pytest.raises(ValueError, match="read-only"):
        trainer.risks(fitted, trainer.prepare(TEST))


def test_predictions_are_optional_and_numbers():
    class Words(Centre):
        def predict(self, X):
            return np.array(["a"] * len(X))

    class Without:
        fit, risk = Centre.fit, Centre.risk

        def __init__(self):
            self.shift = 0.0

    trainer = UserLearner(Without()).bind(TRAIN)
    assert trainer.output is None
    test = trainer.prepare(TEST)
    with pytest.raises(MethodCapabilityError, match="no predictions"):
        trainer.outputs(trainer.fit(MASKS[:1], SEEDS[:1]), test)
    words = UserLearner(Words()).bind(TRAIN)
    with pytest.raises(MethodCapabilityError, match="must return numbers"):
        words.outputs(words.fit(MASKS[:1], SEEDS[:1]), test)


def test_what_stands_for_no_training_instance():
    class Started(Centre):
        mean = 0.25

    trainer = UserLearner(Started()).bind(TRAIN)
    risks = trainer.risks(trainer.constant("init"), trainer.prepare(TEST))
    np.testing.assert_allclose(risks, [(Y[:3] - 0.25) ** 2])
    with pytest.raises(MethodCapabilityError, match="as a number"):
        trainer.constant("prior")


@pytest.mark.parametrize(
    ("model", "train", "words"),
    [
        (type("NoRisk", (), {"fit": lambda self, X, y: None})(), TRAIN, "has no method 'risk'"),
        (lambda: object(), TRAIN, "object has no method 'fit'"),
        (Centre(), Instances.of(X), "takes labels, and the set has none"),
        (type("N", (Centre,), {"fit": lambda self: 0})(), TRAIN, "'fit' must take X"),
        (Centre(), Instances.of({"x": X, "y": Y}), "columns by name"),
    ],
)
def test_what_cannot_be_trained_is_refused(model, train, words):
    with pytest.raises(InvalidInputError, match=words):
        UserLearner(model).bind(train)


def test_a_test_set_that_does_not_fit_is_refused():
    trainer = UserLearner(Centre()).bind(TRAIN)
    with pytest.raises(InvalidInputError, match=r"shape \(12, 1\) do not fit"):
        trainer.prepare(Instances.of((X[:, :1], Y)))
    with pytest.raises(InvalidInputError, match="valid: the set has no labels"):
        trainer.prepare(Instances.of(X), role="valid")


def test_recipes_change_with_what_the_object_holds_and_does():
    recipes = [
        UserLearner(model).recipe()
        for model in (Centre(), Centre(1.0), Centre, Holding(), Estimator(), make_centre)
    ]
    assert len(set(recipes)) == len(recipes)
    assert UserLearner(Centre()).recipe() == recipes[0] == UserLearner(copy.copy(Centre())).recipe()


@pytest.mark.parametrize("model", [Centre(), Centre, make_centre, Cloned(), Estimator(), Holding()])
def test_a_trainer_can_be_sent_to_a_worker(model):
    trainer = UserLearner(model).bind(TRAIN)
    sent = pickle.loads(pickle.dumps(trainer))
    here = trainer.risks(trainer.fit(MASKS, SEEDS), trainer.prepare(TEST))
    there = sent.risks(sent.fit(MASKS, SEEDS), trainer.prepare(TEST))
    np.testing.assert_array_equal(here, there)
