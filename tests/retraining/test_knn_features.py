"""What neighbours are neighbours in: features as they are, a function of them, a network's."""

import random
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.testing import assert_array_equal
from sklearn.cluster import KMeans
from sklearn.preprocessing import StandardScaler
from torch import nn

import proponent as pp
from proponent.exceptions import InvalidInputError, NonFiniteError, NotFittedError
from proponent.retraining.neighbours.leave_one_out import KNNLeaveOneOut
from proponent.retraining.neighbours.shapley import KNNShapley
from proponent.retraining.neighbours.threshold_shapley import ThresholdKNNShapley
from proponent.retraining.neighbours.weighted_shapley import WeightedKNNShapley

METHODS = [KNNShapley, KNNLeaveOneOut, ThresholdKNNShapley, WeightedKNNShapley]

rng = np.random.default_rng(0)
TRAIN = rng.normal(size=(30, 4)) * [1, 1, 100, 1], rng.integers(0, 3, 30)
TEST = rng.normal(size=(6, 4)) * [1, 1, 100, 1], rng.integers(0, 3, 6)


def values(method, *study):
    return method.fit(*study, TRAIN).influence(TEST).values


def plain(features, **settings):
    """Return the values with features that are made beforehand."""
    train, test = (features(TRAIN[0]), TRAIN[1]), (features(TEST[0]), TEST[1])
    return KNNShapley(**settings).fit(train).influence(test).values


@pytest.mark.parametrize("kind", METHODS)
def test_without_a_model(kind):
    assert_array_equal(values(kind()), values(kind(), None))
    assert np.isfinite(values(kind())).all()


def test_a_function_makes_the_features():
    scaler = StandardScaler().fit(TRAIN[0])
    assert_array_equal(values(KNNShapley(), scaler.transform), plain(scaler.transform))
    assert (values(KNNShapley(), scaler.transform) != values(KNNShapley())).any()

    def embedding(X):
        return torch.as_tensor(X[:, :2, None], dtype=torch.float32).requires_grad_()

    expected = plain(lambda X: X[:, :2].astype(np.float32))
    assert_array_equal(values(KNNShapley(), embedding), expected)


def network():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Dropout(0.5), nn.Linear(5, 3)).double()
    return net.train()


@pytest.mark.parametrize("kind", METHODS)
def test_a_networks_features_enter_its_last_layer(kind):
    net = network()

    def hidden(X):
        with torch.no_grad():
            return torch.tanh(net[0](torch.as_tensor(X))).numpy()

    method = kind().fit(pp.TorchModel(net, loss="cross_entropy"), TRAIN)
    expected = kind().fit(hidden, TRAIN)
    assert_array_equal(method.influence(TEST).values, expected.influence(TEST).values)
    assert_array_equal(method.memorization().values, expected.memorization().values)
    assert method.influence(TEST).diagnostics["features"] == 5
    assert net.training


def test_images_are_flattened():
    X, X_test = TRAIN[0].reshape(30, 1, 2, 2), TEST[0].reshape(6, 1, 2, 2)
    found = KNNShapley().fit((X, TRAIN[1])).influence((X_test, TEST[1])).values
    assert_array_equal(found, values(KNNShapley()))


class Drawing:
    """A data set whose items draw from the global generators, and have to come out the same."""

    def __init__(self, data):
        self.data = data

    def __len__(self):
        return len(self.data[1])

    def __getitem__(self, position):
        _ = random.random(), np.random.rand(), torch.rand(())
        return torch.as_tensor(self.data[0][position]), int(self.data[1][position])


def test_a_data_set_of_items():
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    found = KNNShapley().fit(Drawing(TRAIN)).influence(Drawing(TEST)).values
    after = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    assert before == after
    assert_array_equal(found, values(KNNShapley()))
    embedded = KNNShapley().fit(lambda X: X[:, :2], Drawing(TRAIN)).influence(Drawing(TEST))
    assert_array_equal(embedded.values, plain(lambda X: X[:, :2]))


def test_forms_and_ids():
    frame = pd.DataFrame(TRAIN[0], index=[f"row {i}" for i in range(30)])
    tensors = torch.as_tensor(TEST[0]), torch.as_tensor(TEST[1])
    influence = KNNShapley().fit((frame, pd.Series(TRAIN[1]))).influence(tensors)
    assert_array_equal(influence.values, values(KNNShapley()))
    assert_array_equal(influence.train_ids, frame.index)
    named = KNNShapley().fit(TRAIN, ids=np.arange(100, 130)).influence(TEST)
    assert_array_equal(named.train_ids, np.arange(100, 130))
    assert named.settings == {
        "k": 5,
        "utility": "classification",
        "divide_by": "k",
        "semivalue": "shapley",
        "max_error": None,
        "empty": None,
    }


@pytest.mark.parametrize("kind", METHODS)
@pytest.mark.parametrize("wrong", [3, nn.Linear(4, 3), KMeans(), KMeans], ids=repr)
def test_another_kind_of_model_is_refused(kind, wrong):
    with pytest.raises(InvalidInputError, match=r"^model: \w+ needs the training set alone"):
        kind().fit(wrong, TRAIN)


def test_x_and_y_apart_are_refused():
    with pytest.raises(InvalidInputError, match=r"X and y as one argument, fit\(\(X, y\)\)"):
        KNNShapley().fit(*TRAIN)


def test_refusals():
    X, y = TRAIN
    with pytest.raises(NotFittedError, match="KNNShapley is not fitted"):
        KNNShapley().influence(TEST)
    with pytest.raises(InvalidInputError, match=r"train.*empty"):
        KNNShapley().fit((X[:0], y[:0]))
    with pytest.raises(InvalidInputError, match=r"the set has no labels; pass an .X, y. pair"):
        KNNShapley().fit(X)
    unlabelled = pp.TorchModel(network(), risk=lambda module, x: module(x[0]).sum(1))
    with pytest.raises(InvalidInputError, match="train: the set has no labels"):
        KNNShapley().fit(unlabelled, X)
    with pytest.raises(InvalidInputError, match=r"expected an .X, y. pair; got 3 columns"):
        KNNShapley().fit((X, y, y))
    with pytest.raises(InvalidInputError, match=r"expected an .X, y. pair; got columns by name"):
        KNNShapley().fit({"x": X, "y": y})
    with pytest.raises(InvalidInputError, match=r"must be \(x, y\) pairs"):
        KNNShapley().fit([(1.0, 0, 0), (2.0, 1, 1)])
    with pytest.raises(InvalidInputError, match="train: the features are not all numbers"):
        KNNShapley().fit((np.array([["a"], ["b"]]), [0, 1]))
    with pytest.raises(InvalidInputError, match=r"shape \(n, d\) with n = 30; got \(30,\)"):
        KNNShapley().fit((X[:, 0], y))
    with pytest.raises(InvalidInputError, match=r"n = 30; got \(29, 4\)"):
        KNNShapley().fit(lambda X: X[1:], TRAIN)
    with pytest.raises(InvalidInputError, match=r"test: instances have 3 features, the .* 4"):
        KNNShapley().fit(TRAIN).influence((TEST[0][:, :3], TEST[1]))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_features_that_are_not_finite_are_refused(value):
    X = TRAIN[0].copy()
    X[[4, 9], 2] = value
    ids = [f"row {i}" for i in range(30)]
    with pytest.raises(NonFiniteError, match=r"train: features of 2 instances .* row 4, row 9"):
        KNNShapley().fit((X, TRAIN[1]), ids=ids)
    with pytest.raises(NonFiniteError, match=r"test: features of 2 instances .* ids 4, 9"):
        KNNShapley().fit(TRAIN).influence((X, TRAIN[1]))


WITHOUT_TORCH = """
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "typing_extensions"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Missing())
import numpy as np
from proponent.retraining.neighbours.leave_one_out import KNNLeaveOneOut
from proponent.retraining.neighbours.shapley import KNNShapley
from proponent.retraining.neighbours.threshold_shapley import ThresholdKNNShapley
from proponent.retraining.neighbours.weighted_shapley import WeightedKNNShapley
X, y = np.arange(6.0)[:, None], np.array(list("abbaab"))
for kind in (KNNLeaveOneOut, KNNShapley, ThresholdKNNShapley, WeightedKNNShapley):
    method = kind().fit((X, y))
    method.influence((X, y)), method.influence((X, y), top_k=2), method.memorization()
    assert kind().fit(lambda X: X, (X, y)).influence((X, y)).values.any()
pairs = [(np.array([x]), label) for (x,), label in zip(X, y)]
assert (KNNShapley().fit(pairs).influence(pairs).values.any())
assert not {"torch", "pandas", "sklearn"} & set(sys.modules)
"""


def test_torch_is_not_needed():
    finished = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH], capture_output=True, text=True, check=False
    )
    assert finished.returncode == 0, finished.stderr
