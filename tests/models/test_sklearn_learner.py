"""scikit-learn estimators as learners, against plain loops over scikit-learn."""

import pickle
import warnings

import numpy as np
import pandas as pd
import pytest
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin, clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.cluster import KMeans
from sklearn.compose import make_column_transformer
from sklearn.datasets import load_iris
from sklearn.ensemble import (
    BaggingClassifier,
    ExtraTreesRegressor,
    HistGradientBoostingClassifier,
    RandomForestClassifier,
)
from sklearn.linear_model import (
    LinearRegression,
    LogisticRegression,
    LogisticRegressionCV,
    Ridge,
    RidgeClassifier,
    SGDClassifier,
)
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from sklearn.svm import SVC, LinearSVC
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor

from proponent.data import Instances
from proponent.exceptions import InvalidInputError, MethodCapabilityError
from proponent.models.learner import Fitted
from proponent.models.sklearn_learner import SklearnLearner

SMOOTHING = 1e-3


def three_classes(n=36):
    X, y = load_iris(return_X_y=True)
    chosen = np.random.default_rng(0).permutation(150)[:n]
    return X[chosen], y[chosen]


X, CODES = three_classes()
X_TEST, CODES_TEST = (part[-6:] for part in three_classes(60))
MASKS = np.random.default_rng(1).random((5, len(X))) < 0.6
SEEDS = np.arange(5, dtype=np.int64) * 1_000_003
LABELS = {
    "from zero": np.array([0, 1, 2]),
    "from one": np.array([1, 2, 3]),
    "far apart": np.array([-7, 40, 1000]),
    "text, in another order": np.array(["virginica", "setosa", "versicolor"]),
    "objects of text": np.array(["b", "c", "a"], dtype=object),
    "whole floats": np.array([3.0, 1.0, 2.0]),
}


def bound(estimator, data, **settings):
    return SklearnLearner(estimator, **settings).bind(Instances.of(data))


def loop(estimator, X, y, masks, seeds, X_test, names):
    """Return probabilities ``(K, T, C)`` by plain scikit-learn on the labels as they are."""
    found = np.zeros((len(masks), len(X_test), len(names)))
    for k, (mask, seed) in enumerate(zip(masks, seeds.tolist(), strict=True)):
        model = clone(estimator)
        if "random_state" in model.get_params():
            model.set_params(random_state=seed)
        model.fit(X[mask], y[mask])
        for column, name in enumerate(model.classes_):
            place = list(names).index(name)
            found[k, :, place] = model.predict_proba(X_test)[:, column]
    return found


@pytest.mark.parametrize("names", LABELS.values(), ids=LABELS.keys())
@pytest.mark.parametrize(
    "estimator",
    [DecisionTreeClassifier(max_features=1), GaussianNB(), LogisticRegression(max_iter=500)],
    ids=lambda estimator: type(estimator).__name__,
)
def test_probabilities_and_risks_are_those_of_a_loop_over_scikit_learn(estimator, names):
    y, y_test = names[CODES], names[CODES_TEST]
    trainer = bound(estimator, (X, y))
    fitted, test = trainer.fit(MASKS, SEEDS), trainer.prepare(Instances.of((X_TEST, y_test)))
    order = sorted(names.tolist())
    expected = loop(estimator, X, y, MASKS, SEEDS, X_TEST, order)
    np.testing.assert_allclose(trainer.outputs(fitted, test), expected, rtol=1e-9, atol=1e-12)
    own = np.stack([expected[:, t, order.index(label)] for t, label in enumerate(y_test)], axis=1)
    risks = -np.log((1 - SMOOTHING) * own + SMOOTHING / 3)
    np.testing.assert_allclose(trainer.risks(fitted, test), risks, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("names", [np.array([1, 2, 3]), np.array(["u", "v", "w"])])
@pytest.mark.parametrize("missing", [0, 1, 2])
@pytest.mark.parametrize(
    "estimator",
    [
        *(DecisionTreeClassifier(), SVC(), LinearSVC(), RidgeClassifier(), KNeighborsClassifier(3)),
        *(HistGradientBoostingClassifier(min_samples_leaf=2, max_iter=10), SGDClassifier()),
    ],
    ids=lambda estimator: type(estimator).__name__,
)
def test_a_subset_without_a_class_never_predicts_it_nor_another_ones_index(
    estimator, missing, names
):
    y = names[CODES]
    mask = (y != names[missing])[None]
    trainer = bound(estimator, (X, y), risk="zero_one")
    test = trainer.prepare(Instances.of((X, y)))
    fitted = trainer.fit(mask, np.array([7]))
    model = clone(estimator)
    if "random_state" in model.get_params():
        model.set_params(random_state=7)
    expected = model.fit(X[mask[0]], y[mask[0]]).predict(X)
    outputs = trainer.outputs(fitted, test)[0]
    assert names[outputs.argmax(axis=1)].tolist() == expected.tolist()
    assert (outputs[:, missing] == 0).all()
    assert trainer.risks(fitted, test)[0].tolist() == (expected != y).astype(float).tolist()


class Refuses(ClassifierMixin, BaseEstimator):
    """A classifier that cannot be trained."""

    def fit(self, X, y):
        raise RuntimeError("no convergence")

    def predict_proba(self, X):
        raise AssertionError("was never trained")


def test_a_subset_of_one_class_is_that_class_without_training():
    y = np.array(["u", "v", "w"])[CODES]
    trainer = bound(Refuses(), (X, y))
    fitted = trainer.fit((y == "v")[None], np.array([0]))
    assert not fitted.failures
    test = trainer.prepare(Instances.of((X[:3], ["u", "v", "w"])))
    np.testing.assert_array_equal(trainer.outputs(fitted, test)[0], [[0, 1, 0]] * 3)
    expected = -np.log([SMOOTHING / 3, 1 - SMOOTHING + SMOOTHING / 3, SMOOTHING / 3])
    np.testing.assert_allclose(trainer.risks(fitted, test)[0], expected)


def test_a_training_set_of_one_class_can_be_valued():
    trainer = bound(LogisticRegression(), (X[:4], ["a"] * 4))
    test = trainer.prepare(Instances.of((X[:2], ["a", "a"])))
    assert trainer.risks(trainer.fit(MASKS[:1, :4], SEEDS[:1]), test).tolist() == [[0.0, 0.0]]


@pytest.mark.parametrize("policy", ["prior", "hold_empty"])
def test_the_other_policies_for_missing_classes_give_the_prior_and_train_the_rest(policy):
    masks = np.stack([CODES != 2, CODES == 0, np.ones(len(X), bool)])
    trainer = bound(GaussianNB(), (X, CODES), missing_classes=policy)
    test = trainer.prepare(Instances.of((X_TEST, CODES_TEST)))
    risks = trainer.risks(trainer.fit(masks, SEEDS[:3]), test)
    prior = trainer.risks(trainer.constant("prior"), test)[0]
    counts = np.bincount(CODES) + 1
    share = (counts / counts.sum())[CODES_TEST]
    np.testing.assert_allclose(prior, -np.log((1 - SMOOTHING) * share + SMOOTHING / 3))
    np.testing.assert_array_equal(risks[:2], [prior, prior])
    trained = bound(GaussianNB(), (X, CODES))
    np.testing.assert_array_equal(
        risks[2], trained.risks(trained.fit(masks[2:], SEEDS[:1]), test)[0]
    )
    found = [trainer.holds_empty(kind) for kind in (masks, masks.astype(np.uint8) * 2)]
    if policy == "hold_empty":
        assert [held.tolist() for held in found] == [[True, True, False]] * 2
    else:
        assert found == [None, None]


def test_estimators_without_probabilities_are_judged_by_their_decisions():
    for estimator in (LinearSVC(), RidgeClassifier(), SVC()):
        trainer = bound(estimator, (X, CODES))
        test = trainer.prepare(Instances.of((X, CODES)))
        fitted = trainer.fit(MASKS[:1], SEEDS[:1])
        risks, outputs = trainer.risks(fitted, test), trainer.outputs(fitted, test)
        expected = clone(estimator).fit(X[MASKS[0]], CODES[MASKS[0]]).predict(X)
        assert risks[0].tolist() == (expected != CODES).astype(float).tolist()
        assert np.unique(outputs).tolist() == [0.0, 1.0]
        with pytest.raises(InvalidInputError, match=r"needs probabilities.*CalibratedClassifierCV"):
            bound(estimator, (X, CODES), risk="cross_entropy")
    with_probabilities = CalibratedClassifierCV(LinearSVC(), cv=2, ensemble=False)
    calibrated = bound(with_probabilities, (X, CODES))
    test = calibrated.prepare(Instances.of((X_TEST, CODES_TEST)))
    outputs = calibrated.outputs(calibrated.fit(MASKS[:1], SEEDS[:1]), test)
    assert ((outputs > 0) & (outputs < 1)).any()


def test_regressors_of_one_and_of_several_outputs(rng):
    several = rng.normal(size=(len(X), 2))
    for estimator, targets in (
        (Ridge(alpha=2.0), several[:, 0]),
        (Ridge(alpha=2.0), several),
        (Ridge(alpha=2.0), several[:, :1]),
        (DecisionTreeRegressor(max_features=1), several[:, 0].astype(np.float32)),
    ):
        test_targets = targets[:4]
        trainer = bound(estimator, (X, targets), risk="absolute")
        test = trainer.prepare(Instances.of((X_TEST[:4], test_targets)))
        fitted = trainer.fit(MASKS, SEEDS)
        risks, outputs = trainer.risks(fitted, test), trainer.outputs(fitted, test)
        assert trainer.output == "values"
        for k, (mask, seed) in enumerate(zip(MASKS, SEEDS.tolist(), strict=True)):
            model = clone(estimator).set_params(random_state=seed).fit(X[mask], targets[mask])
            predicted = model.predict(X_TEST[:4])
            expected = np.abs(predicted.reshape(4, -1) - test_targets.reshape(4, -1)).sum(axis=1)
            np.testing.assert_allclose(risks[k], expected, rtol=1e-12)
            np.testing.assert_allclose(outputs[k].reshape(4, -1), predicted.reshape(4, -1))
    mean = trainer.risks(trainer.constant("prior"), test)[0]
    np.testing.assert_allclose(mean, np.abs(test_targets - targets.astype(float).mean()))
    with pytest.raises(MethodCapabilityError, match="mean target"):
        trainer.constant("uniform")


def test_a_bootstrap_holds_rows_twice(rng):
    counts = rng.multinomial(len(X), np.full(len(X), 1 / len(X)), size=3).astype(np.uint8)
    trainer = bound(DecisionTreeClassifier(max_features=1), (X, CODES))
    test = trainer.prepare(Instances.of((X_TEST, CODES_TEST)))
    outputs = trainer.outputs(trainer.fit(counts, SEEDS[:3]), test)
    for k, row in enumerate(counts):
        twice = [i for i, count in enumerate(row) for _ in range(count)]
        model = DecisionTreeClassifier(max_features=1, random_state=int(SEEDS[k]))
        model.fit(X[twice], CODES[twice])
        np.testing.assert_array_equal(outputs[k], model.predict_proba(X_TEST))


def test_every_random_state_is_the_seed_and_the_global_one_is_left_alone():
    nested = make_pipeline(
        StandardScaler(),
        BaggingClassifier(DecisionTreeClassifier(random_state=3), 3, random_state=None),
    )
    trainer = bound(nested, (X, CODES))
    before = np.random.get_state()[1].copy()
    seeds = np.array([5, 2**31 + 4, 2**62])
    models = trainer.fit(MASKS[:3], seeds).models
    np.testing.assert_array_equal(np.random.get_state()[1], before)
    for model, seed in zip(models, seeds.tolist(), strict=True):
        parameters = model.estimator.get_params()
        assert parameters["baggingclassifier__random_state"] == seed % (2**31 - 1)
        assert parameters["baggingclassifier__estimator__random_state"] == seed % (2**31 - 1)
    test = trainer.prepare(Instances.of((X_TEST, CODES_TEST)))
    again = trainer.outputs(trainer.fit(MASKS[:3][::-1], seeds[::-1]), test)[::-1]
    np.testing.assert_array_equal(trainer.outputs(Fitted(models, 3), test), again)
    assert nested.get_params()["baggingclassifier__estimator__random_state"] == 3


@pytest.mark.parametrize(
    ("estimator", "seeded"),
    [
        (GaussianNB(), False),
        (make_pipeline(StandardScaler(), KNeighborsClassifier()), False),
        (LogisticRegression(), False),
        (LogisticRegression(solver="saga"), True),
        (make_pipeline(StandardScaler(), LogisticRegression()), False),
        (make_pipeline(StandardScaler(), LogisticRegression(solver="liblinear")), True),
        (RandomForestClassifier(random_state=np.random.RandomState(0)), True),
        (BaggingClassifier(GaussianNB()), True),
    ],
    ids=lambda value: str(value).split(" at 0x")[0],
)
def test_whether_the_seed_counts(estimator, seeded):
    assert bound(estimator, (X, CODES)).seeded is seeded


def test_fits_use_one_thread_and_leave_the_users_estimator_as_it_is():
    forest = RandomForestClassifier(3, n_jobs=2, random_state=1)
    nested = BaggingClassifier(forest, 2, n_jobs=2)
    model = bound(nested, (X, CODES)).fit(MASKS[:1], SEEDS[:1]).models[0].estimator
    assert model.n_jobs is model.estimator.n_jobs is None  # scikit-learn's one
    assert (nested.n_jobs, forest.n_jobs, forest.random_state) == (2, 2, 1)
    assert not hasattr(nested, "classes_")


def table(n=60):
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(
        {
            "height": rng.normal(size=n),
            "colour": pd.Categorical(rng.choice(["red", "green", "blue"], n)),
            "weight": rng.normal(size=n),
        },
        index=[f"row {i}" for i in range(n)],
    )
    labels = np.where((frame["colour"] == "red") ^ (frame["height"] > 0.5), "yes", "no")
    return frame, pd.Series(labels, index=frame.index)


@pytest.mark.parametrize(
    "estimator",
    [
        make_pipeline(
            make_column_transformer(
                (OneHotEncoder(handle_unknown="ignore"), ["colour"]),
                (StandardScaler(), ["weight", "height"]),
            ),
            LogisticRegression(),
        ),
        HistGradientBoostingClassifier(
            categorical_features="from_dtype", min_samples_leaf=2, max_iter=10
        ),
    ],
    ids=["columns by name", "categorical types"],
)
def test_data_frames_stay_data_frames(estimator):
    frame, labels = table()
    trainer = bound(estimator, (frame[:40], labels[:40]))
    test = trainer.prepare(Instances.of((frame[40:], labels[40:])))
    mask = np.arange(40) % 3 > 0
    outputs = trainer.outputs(trainer.fit(mask[None], np.array([0])), test)
    model = clone(estimator).fit(frame[:40][mask], labels[:40][mask])
    np.testing.assert_allclose(outputs[0], model.predict_proba(frame[40:]), rtol=1e-12)
    assert test.ids[0] == "row 40"
    with pytest.raises(InvalidInputError, match=r"test: the columns .*not, in this order"):
        trainer.prepare(Instances.of((frame[["weight", "colour", "height"]], labels)))
    with pytest.raises(InvalidInputError, match="training set is a data frame"):
        trainer.prepare(Instances.of((frame.to_numpy(), labels)))


def test_a_pipeline_that_takes_text():
    from sklearn.feature_extraction.text import CountVectorizer

    texts = np.array(["good film", "bad film", "good food", "bad food", "good", "bad"])
    trainer = bound(make_pipeline(CountVectorizer(), GaussianText()), (texts, [1, 0, 1, 0, 1, 0]))
    test = trainer.prepare(Instances.of((texts[:2], [1, 0])))
    fitted = trainer.fit(np.ones((1, 6), bool), np.array([0]))
    np.testing.assert_array_equal(trainer.outputs(fitted, test)[0].argmax(axis=1), [1, 0])


class GaussianText(GaussianNB):
    """Naive Bayes of a sparse matrix."""

    def fit(self, X, y):
        return super().fit(X.toarray(), y)

    def predict_proba(self, X):
        return super().predict_proba(X.toarray())


def test_a_test_set_of_another_width_or_with_unseen_labels_raises():
    trainer = bound(DecisionTreeClassifier(), (X, CODES))
    with pytest.raises(InvalidInputError, match=r"features of shape \(6, 3\) do not fit"):
        trainer.prepare(Instances.of((X_TEST[:, :3], CODES_TEST)))
    with pytest.raises(InvalidInputError, match="the labels 3 are none of"):
        trainer.prepare(Instances.of((X_TEST, CODES_TEST + 1)))
    with pytest.raises(InvalidInputError, match="valid: the set has no labels"):
        trainer.prepare(Instances.of(X_TEST), role="valid")


def test_class_weights_name_the_users_labels():
    y = np.array(["u", "v", "w"])[CODES]
    for weights in ({"u": 1.0, "v": 50.0, "w": 1.0}, "balanced"):
        estimator = LogisticRegression(class_weight=weights, max_iter=300)
        trainer = bound(estimator, (X, y))
        test = trainer.prepare(Instances.of((X_TEST, y[:6])))
        outputs = trainer.outputs(trainer.fit(MASKS, SEEDS), test)
        expected = loop(estimator, X, y, MASKS, SEEDS, X_TEST, ["u", "v", "w"])
        np.testing.assert_allclose(outputs, expected, rtol=1e-9)
    # Encoded labels would be 0 and 1, of which 2 is none; with those of the user it is the better.
    searched = LogisticRegressionCV(
        Cs=[1e-3, 1.0], cv=2, scoring="f1", l1_ratios=(0,), use_legacy_attributes=False
    )
    two = CODES != 0
    trainer = bound(searched, (X[two], CODES[two]))
    fitted = trainer.fit(np.ones((1, two.sum()), bool), np.array([0]))
    scored = clone(searched).fit(X[two], CODES[two]).scores_
    np.testing.assert_array_equal(fitted.models[0].estimator.scores_, scored)


def test_ridge_classifiers_weights_decide_on_the_users_labels_too():
    y = np.array(["u", "v"])[(CODES > 0).astype(int)]
    estimator = RidgeClassifier(class_weight={"u": 100.0, "v": 1.0}, alpha=100.0)
    trainer = bound(estimator, (X, y))
    test = trainer.prepare(Instances.of((X, y)))
    outputs = trainer.outputs(trainer.fit(MASKS[:1], SEEDS[:1]), test)[0]
    expected = clone(estimator).fit(X[MASKS[0]], y[MASKS[0]]).predict(X)
    assert np.array(["u", "v"])[outputs.argmax(axis=1)].tolist() == expected.tolist()


def test_failed_fits_are_recorded_and_never_zero():
    trainer = bound(KNeighborsClassifier(5), (X, CODES))
    masks = MASKS[:3].copy()
    masks[1] = False
    masks[1, [0, 1, 2, 3]] = True
    assert len(set(CODES[:4].tolist())) > 1
    fitted = trainer.fit(masks, SEEDS[:3])
    test = trainer.prepare(Instances.of((X_TEST, CODES_TEST)))
    with pytest.warns(RuntimeWarning, match="cannot predict.*n_neighbors <= n_samples"):
        risks = trainer.risks(fitted, test)
    assert np.isnan(risks[1]).all()
    assert np.isfinite(risks[[0, 2]]).all()
    refused = bound(Refuses(), (X, CODES))
    fitted = refused.fit(masks, SEEDS[:3])
    assert fitted.failures == dict.fromkeys(range(3), "RuntimeError: no convergence")
    assert np.isnan(refused.risks(fitted, test)).all()


class Infinite(RegressorMixin, BaseEstimator):
    """A regressor that diverges."""

    def fit(self, X, y):
        return self

    def predict(self, X):
        return np.where(np.arange(len(X)) == 1, np.inf, 0.0)


def test_a_submodel_that_predicts_infinity_is_left_out_whole_and_said_once():
    trainer = bound(Infinite(), (X, CODES))
    test = trainer.prepare(Instances.of((X_TEST, CODES_TEST)))
    with pytest.warns(RuntimeWarning, match="NaN or infinite") as said:
        risks = trainer.risks(trainer.fit(MASKS, SEEDS), test)
    assert np.isnan(risks).all()
    assert len(said) == 1


def test_what_fits_warn_of_is_counted_and_not_printed():
    trainer = bound(LogisticRegression(max_iter=2), (X, CODES))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fitted = trainer.fit(MASKS, SEEDS)
    assert trainer.warnings_of(fitted) == {"ConvergenceWarning": len(MASKS)}
    assert trainer.warnings_of(Fitted([None], 1, {0: "failed"})) == {}


def test_an_estimator_that_only_follows_the_interface():
    class Nearest:
        _estimator_type = "classifier"

        def __init__(self, power=2):
            self.power = power

        def get_params(self, deep=True):
            return {"power": self.power}

        def fit(self, X, y):
            self.X, self.y = X, y

        def predict(self, X):
            distances = (np.abs(X[:, None] - self.X) ** self.power).sum(-1)
            return self.y[distances.argmin(1)]

    y = np.array(["u", "v", "w"])[CODES]
    trainer = bound(Nearest(), (X, y))
    test = trainer.prepare(Instances.of((X_TEST, y[:6])))
    outputs = trainer.outputs(trainer.fit(MASKS[:1], SEEDS[:1]), test)[0]
    rows = np.flatnonzero(MASKS[0])
    own = Nearest()
    own.fit(X[rows], CODES[rows])
    np.testing.assert_array_equal(outputs.argmax(1), own.predict(X_TEST))


def test_a_trainer_and_its_submodels_can_be_sent_to_a_worker():
    frame, labels = table()
    for estimator in (LogisticRegression(), make_pipeline(StandardScaler(), GaussianNB())):
        trainer = bound(estimator, (frame[["height", "weight"]], labels))
        sent = pickle.loads(pickle.dumps(trainer))
        test = trainer.prepare(Instances.of((frame[["height", "weight"]], labels)))
        masks = np.arange(60)[None] % 2 == 0
        here = trainer.risks(trainer.fit(masks, SEEDS[:1]), test)
        there = trainer.risks(pickle.loads(pickle.dumps(sent.fit(masks, SEEDS[:1]))), test)
        np.testing.assert_array_equal(here, there)


def test_recipes_name_what_changes_the_training():
    base = SklearnLearner(RandomForestClassifier(5, random_state=0)).recipe()
    same = RandomForestClassifier(5, random_state=np.random.RandomState(3), n_jobs=4)
    assert SklearnLearner(same).recipe() == base
    assert SklearnLearner(same.fit(X, CODES)).recipe() == base
    others = {
        SklearnLearner(RandomForestClassifier(6)).recipe(),
        SklearnLearner(RandomForestClassifier(5), risk="brier").recipe(),
        SklearnLearner(RandomForestClassifier(5), smoothing=0.1).recipe(),
        SklearnLearner(RandomForestClassifier(5), missing_classes="prior").recipe(),
    }
    assert len(others | {base}) == 5


@pytest.mark.parametrize(
    ("estimator", "settings", "words"),
    [
        (LogisticRegression(), {"risk": "squared"}, "risk of a classifier"),
        (LinearRegression(), {"risk": "brier"}, "risk of a regressor"),
        (LinearRegression(), {"smoothing": 2.0}, "smoothing"),
        (LogisticRegression(), {"missing_classes": "drop"}, "'train_anyway', 'prior', 'hold_em"),
        (LogisticRegression, {}, "pass an instance"),
        (KMeans(), {}, "neither that it is a classifier"),
    ],
)
def test_what_cannot_be_is_refused(estimator, settings, words):
    with pytest.raises(InvalidInputError, match=words):
        bound(estimator, (X, CODES), **settings)


def test_an_estimator_that_cannot_be_cloned_is_refused():
    class Changed(ClassifierMixin, BaseEstimator):
        def __init__(self, depth=1):
            self.depth = [depth]

    with pytest.raises(InvalidInputError, match="Changed cannot be cloned"):
        bound(Changed(), (X, CODES))


def test_regression_targets_are_no_classes_of_a_classifier(rng):
    with pytest.raises(InvalidInputError, match="needs a regressor"):
        bound(DecisionTreeClassifier(), (X, rng.normal(size=len(X))))
    with pytest.raises(InvalidInputError, match="need a classifier"):
        bound(ExtraTreesRegressor(), (X, np.array(["u", "v", "w"])[CODES]))


def boosters():
    """Return the classifier and regressor of each boosting library that is installed."""
    makers = []
    for package, prefix, settings in (
        ("xgboost", "XGB", {"n_estimators": 5, "max_depth": 2, "subsample": 0.7}),
        (
            "lightgbm", "LGBM",
            {"n_estimators": 5, "min_child_samples": 2, "subsample": 0.7, "subsample_freq": 1},
        ),
        ("catboost", "CatBoost", {"iterations": 5, "depth": 2}),
    ):  # fmt: skip
        makers.append(pytest.param(package, prefix, settings, id=package))
    return makers


@pytest.mark.parametrize(("package", "prefix", "settings"), boosters())
def test_boosting_libraries(package, prefix, settings, tmp_path, monkeypatch, capfd):
    module = pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)  # nothing may be written beside the user's files
    classifier = getattr(module, f"{prefix}Classifier")(**settings)
    y = np.array(["v", "u", "w"])[CODES]
    trainer = bound(classifier, (X, y))
    assert trainer.seeded
    masks = np.stack([CODES != 0, CODES != 1, CODES != 2, MASKS[0]])
    fitted = trainer.fit(masks, SEEDS[:4])
    assert not fitted.failures
    test = trainer.prepare(Instances.of((X_TEST, y[:6])))
    outputs = trainer.outputs(fitted, test)
    state = "random_seed" if package == "catboost" else "random_state"
    for k, mask in enumerate(masks):
        present = np.unique(y[mask]).tolist()
        own = getattr(module, f"{prefix}Classifier")(**settings, **{state: int(SEEDS[k])})
        if package == "catboost":
            own.set_params(logging_level="Silent", allow_writing_files=False)
        own.fit(X[mask], np.searchsorted(present, y[mask]))
        expected = np.zeros((6, 3))
        expected[:, [["u", "v", "w"].index(name) for name in present]] = own.predict_proba(X_TEST)
        np.testing.assert_allclose(outputs[k], expected, atol=1e-6)
    regressor = getattr(module, f"{prefix}Regressor")(**settings)
    values = bound(make_pipeline(StandardScaler(), regressor), (X, X[:, 0]))
    test = values.prepare(Instances.of((X_TEST, X_TEST[:, 0])))
    seeds = np.array([1, 1, 2])
    risks = values.risks(values.fit(MASKS[[0, 0, 0]], seeds), test)
    np.testing.assert_array_equal(risks[0], risks[1])
    assert not np.array_equal(risks[0], risks[2])
    capfd.readouterr()
    trained = trainer.fit(MASKS, SEEDS).models[0].estimator.get_params()
    assert {trained[name] for name in ("n_jobs", "thread_count") if name in trained} == {1}
    assert capfd.readouterr() == ("", "")
    assert not list(tmp_path.iterdir())
