"""Data-OOB: equal to a plain loop over bags; what other packages get wrong about it."""

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_array_equal
from sklearn.datasets import load_iris, make_classification
from sklearn.ensemble import BaggingClassifier
from sklearn.linear_model import Ridge
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier
from sklearn.tree import DecisionTreeClassifier

import proponent as pp
from proponent.exceptions import InvalidInputError, MethodCapabilityError, NotFittedError
from proponent.models.nearest_learner import NearestNeighboursLearner
from proponent.retraining.data_oob import DataOOB, out_of_bag
from proponent.retraining.game import Game
from proponent.retraining.stopping import MaxModels, TargetStdError
from proponent.retraining.submodels import Submodels
from proponent.retraining.utility import Accuracy

X, Y = make_classification(70, 5, n_informative=3, flip_y=0.1, random_state=0)


def by_loop(masks, utility):
    """Return value, standard error and number of bags of each instance, one by one."""
    found = [[] for _ in range(masks.shape[1])]
    for mask in masks:
        drawn = np.repeat(np.arange(len(mask)), mask)
        worth = utility(drawn)
        for i in range(len(mask)):
            if i not in drawn:
                found[i].append(float(worth[i]))
    values = [np.mean(entry) if entry else np.nan for entry in found]
    errors = [np.std(e, ddof=1) / np.sqrt(len(e)) if len(e) > 1 else np.nan for e in found]
    return np.array(values), np.array(errors), [len(entry) for entry in found]


def test_it_is_the_mean_over_the_models_that_did_not_draw_an_instance():
    method = DataOOB(40).fit(GaussianNB(), (X, Y))
    masks = method._coalitions.masks
    assert_array_equal(masks.sum(axis=1), 70)
    assert masks.max() > 1
    values, errors, counts = by_loop(
        masks, lambda drawn: GaussianNB().fit(X[drawn], Y[drawn]).predict(X) == Y
    )
    found = method.memorization()
    assert found.values == pytest.approx(values, abs=1e-12)
    assert found.std_error == pytest.approx(errors, abs=1e-12)
    assert found.test_ids is None
    noticed = found.diagnostics
    assert noticed["out_of_bag_score"] == pytest.approx(values.mean(), abs=1e-12)
    assert noticed["models_out_of_bag"] == {
        "fewest": min(counts),
        "mean": pytest.approx(np.mean(counts)),
    }
    assert noticed["never_out_of_bag"] == 0
    assert "warnings" not in noticed


def test_errors_of_the_accuracy_are_binomial():
    found = DataOOB(60).fit(GaussianNB(), (X, Y)).memorization()
    method = DataOOB(60).fit(GaussianNB(), (X, Y))
    models = (method._coalitions.masks == 0).sum(axis=0)
    p = found.values
    assert found.std_error == pytest.approx(np.sqrt(p * (1 - p) / (models - 1)), abs=1e-12)


def test_a_regression_takes_minus_the_squared_error():
    target = X @ np.arange(5.0) + Y
    method = DataOOB(30, utility="risk").fit(Ridge(), (X, target))
    values, errors, _ = by_loop(
        method._coalitions.masks,
        lambda drawn: -((Ridge().fit(X[drawn], target[drawn]).predict(X) - target) ** 2),
    )
    found = method.memorization()
    assert found.values == pytest.approx(values, rel=1e-9)
    assert found.std_error == pytest.approx(errors, rel=1e-9)


@pytest.mark.parametrize(
    "model", [GaussianNB(), DecisionTreeClassifier(max_features="sqrt"), KNeighborsClassifier(3)]
)
@pytest.mark.parametrize("names", [[1, 2], ["no", "yes"], [-1, 1], [False, True]])
def test_the_names_of_the_classes_change_nothing(names, model):
    expected = DataOOB(15).fit(model, (X, Y)).memorization().values
    assert 0.5 < np.nanmean(expected) < 1
    found = DataOOB(15).fit(model, (X, np.array(names)[Y])).memorization().values
    assert_array_equal(found, expected)


def test_scikit_learns_bags():
    """The same bags give the same values; bags of our own, values as near as they may be."""
    settings = {"bootstrap": True, "oob_score": True, "random_state": 0}
    bags = BaggingClassifier(GaussianNB(), 80, **settings).fit(X, Y)
    masks = np.array([np.bincount(drawn, minlength=70) for drawn in bags.estimators_samples_])
    right = np.array([model.predict(X) == Y for model in bags.estimators_])
    submodels = Submodels(GaussianNB(), (X, Y))
    seeds = np.zeros(80, dtype=np.int64)
    worth = submodels.utilities(masks.astype(np.uint8), seeds, pp.Instances.of((X, Y)), Accuracy())
    assert_array_equal(worth, right)
    found, errors, _ = out_of_bag(masks, worth)
    values, _, _ = by_loop(
        masks, lambda drawn: GaussianNB().fit(X[drawn], Y[drawn]).predict(X) == Y
    )
    assert found == pytest.approx(values, abs=1e-12)
    own = DataOOB(80, seed=5).fit(GaussianNB(), (X, Y)).memorization()
    unsure = np.hypot(errors, own.std_error)
    assert (np.abs(own.values - found) <= 4 * unsure + 1e-12).mean() > 0.95
    # scikit-learn's score is that of the models' vote: of stable models it is much the same.
    assert own.diagnostics["out_of_bag_score"] == pytest.approx(bags.oob_score_, abs=0.05)


def test_a_flipped_label_is_never_predicted_by_its_neighbour():
    points, labels = load_iris(return_X_y=True)
    chosen = np.r_[0:20, 100:120]
    points, labels = points[chosen], labels[chosen]
    labels[4] = 2
    found = DataOOB(100).fit(NearestNeighboursLearner(1), (points, labels)).memorization()
    assert found.values[4] == 0
    assert found.ranking()[-1] == 4
    assert np.median(found.values) == 1


def test_models_that_drew_an_instance_do_not_count():
    """1-NN is always right about what it drew: counted, no value would be below 0.6."""
    labels = np.random.default_rng(0).integers(0, 2, 70)
    found = DataOOB(100).fit(NearestNeighboursLearner(1), (X, labels)).memorization()
    assert found.values.min() < 0.2
    assert found.diagnostics["out_of_bag_score"] == pytest.approx(0.5, abs=0.15)


def test_a_bag_that_only_the_first_instance_is_out_of_counts():
    counts = np.array([[0, 2, 1], [0, 1, 2], [1, 0, 2]], dtype=np.uint8)
    utilities = np.array([[1.0, 7.0, 7.0], [0.0, 7.0, 7.0], [7.0, 3.0, 7.0]])
    values, errors, models = out_of_bag(counts, utilities)
    assert_array_equal(values, [0.5, 3, np.nan])
    assert errors == pytest.approx([0.5, np.nan, np.nan], nan_ok=True)
    assert_array_equal(models, [2, 1, 0])


def test_an_instance_that_is_in_every_bag_is_not_scored():
    ids = [f"row {i}" for i in range(70)]
    method = DataOOB(2).fit(GaussianNB(), (X, Y), ids=ids)
    found = method.memorization()
    never = (method._coalitions.masks > 0).all(axis=0)
    assert 10 < never.sum() < 40
    assert_array_equal(np.isnan(found.values), never)
    assert_array_equal(found.train_ids, ids)
    assert found.diagnostics["never_out_of_bag"] == never.sum()
    (warning,) = found.diagnostics["warnings"]
    assert f"{never.sum()} training instances" in warning
    assert f"row {np.flatnonzero(never)[0]}" in warning
    chance = (1 - (1 - 1 / 70) ** 70) ** 2
    assert never.mean() == pytest.approx(chance, abs=0.15)


def test_shards_ids_and_seeds():
    frame = pd.DataFrame(X, index=[f"row {i}" for i in range(70)])
    method = DataOOB(20).fit(GaussianNB(), (frame, Y))
    whole = method.memorization()
    parts = [method.memorization(shard=(i, 3)) for i in range(3)]
    assert_array_equal(np.concatenate([part.values for part in parts]), whole.values)
    assert_array_equal(np.concatenate([part.train_ids for part in parts]), frame.index)
    again = DataOOB(20, seed=0).fit(GaussianNB(), (X, Y)).memorization().values
    assert_array_equal(again, whole.values)
    other = DataOOB(20, seed=1).fit(GaussianNB(), (X, Y)).memorization().values
    assert np.abs(other - whole.values).max() > 0.05
    longer = DataOOB(30).fit(GaussianNB(), (X, Y))
    assert_array_equal(longer._coalitions.masks[:20], method._coalitions.masks)


def test_submodels_of_another_method_are_used_again():
    submodels = Submodels(GaussianNB(), (X, Y))
    expected = DataOOB(20).fit(submodels).memorization().values
    assert_array_equal(DataOOB(20).fit(submodels).memorization().values, expected)
    assert submodels.report()["trained"] == 20


def test_it_stops_when_it_is_sure_enough():
    rule = TargetStdError(0.1)
    for model, train in ((GaussianNB(), (X, Y)), (Submodels(GaussianNB(), (X, Y)), None)):
        method = DataOOB(1000, stop=rule).fit(model, train)
        found = method.memorization()
        assert 64 <= len(method._coalitions) < 1000
        assert found.std_error.max() <= 0.1
    counting = DataOOB(1000, stop=MaxModels(70)).fit(GaussianNB(), (X, Y))
    assert 70 <= len(counting._coalitions) < 200


def test_refusals():
    method = DataOOB(5)
    with pytest.raises(NotFittedError, match="DataOOB is not fitted"):
        method.memorization()
    with pytest.raises(InvalidInputError, match="groups: DataOOB scores each"):
        method.fit(GaussianNB(), (X, Y), groups=Y)
    with pytest.raises(InvalidInputError, match="test: DataOOB scores training instances"):
        method.fit(GaussianNB(), (X, Y), test=(X, Y))
    with pytest.raises(InvalidInputError, match=r"model: DataOOB needs .*; got a proponent Game"):
        method.fit(Game(3, lambda mask: 1.0))
    with pytest.raises(InvalidInputError, match="n_models"):
        DataOOB(0).fit(GaussianNB(), (X, Y))
    with pytest.raises(MethodCapabilityError, match="utility='risk'"):
        DataOOB(5).fit(Ridge(), (X, X[:, 0])).memorization()
    method.fit(GaussianNB(), (X, Y))
    for ask in (
        lambda: method.influence((X, Y)),
        lambda: method.influence((X, Y), joint=True),
        lambda: method.influence((X, Y), top_k=2),
        lambda: method.influence(),
        lambda: method.expected(),
    ):
        with pytest.raises(MethodCapabilityError, match=r"call memorization\(\)"):
            ask()


@pytest.mark.parametrize("stop", [None, MaxModels(40) | TargetStdError(0.1)])
def test_one_number_for_all_instances_is_refused(stop):
    def share(outputs, labels):
        return (outputs.argmax(axis=1) == labels).mean()

    with pytest.raises(InvalidInputError, match=r"utility: DataOOB .* returns one number for all"):
        DataOOB(50, utility=share, stop=stop).fit(GaussianNB(), (X, Y)).memorization()


def test_it_has_no_group_influence():
    method = DataOOB(5).fit(GaussianNB(), (X, Y))
    with pytest.raises(MethodCapabilityError, match="DataOOB has no group influence"):
        method.group_influence({"first": [0, 1]})


def test_it_is_listed_and_cloned():
    assert repr(DataOOB()) == "DataOOB()"
    assert (
        repr(DataOOB(50, utility="risk", seed=3)) == "DataOOB(n_models=50, utility='risk', seed=3)"
    )
    assert DataOOB().get_params()["utility"] == "accuracy"
    assert DataOOB.card.survey_name is None and not DataOOB.card.estimates_loo
