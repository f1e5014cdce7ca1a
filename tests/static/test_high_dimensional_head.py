"""Representers of a torch module whose last linear layer has a sparse penalty."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from sklearn.linear_model import ElasticNet
from static.sparse_estimators import sparse_logistic
from torch import nn

import proponent as pp
from proponent.exceptions import InvalidInputError
from proponent.static.high_dimensional.models import SparseLastLayer
from proponent.static.high_dimensional_representer import HighDimensionalRepresenter

N, FEATURES = 60, 7


def network(outputs, *, bias=True):
    torch.manual_seed(0)
    body = nn.Linear(4, FEATURES), nn.Tanh(), nn.Dropout(0.5)
    return nn.Sequential(*body, nn.Linear(FEATURES, outputs, bias=bias)).double()


def features_of(module, X):
    with torch.no_grad():
        return module[:2](X).numpy()


@pytest.fixture(scope="module")
def inputs():
    return torch.randn(N, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def fitted(module, loss, train, penalty=0.01, l1_ratio=1.0, *, refine=True, **settings):
    bias = settings.pop("penalise_bias", False)
    model = SparseLastLayer(pp.TorchModel(module, loss=loss), penalty, l1_ratio, bias)
    return HighDimensionalRepresenter(refine=refine, **settings).fit(model, train)


def test_three_classes_are_the_softmax_regression_of_the_features(inputs):
    module, labels = network(3), torch.arange(N) % 3
    features = features_of(module, inputs)
    exact = sparse_logistic(0.6, C=1 / (0.01 * N), tol=1e-10, max_iter=100_000)
    exact.fit(features, labels.numpy())
    method = fitted(module, "cross_entropy", (inputs, labels), 0.01, 0.6)
    same = HighDimensionalRepresenter().fit(exact, (features, labels.numpy()))
    for ours, theirs in (
        (method.influence((inputs, labels)), same.influence((features, labels.numpy()))),
        (method.memorization(), same.memorization()),
    ):
        assert ours.diagnostics["signed"] == "logit"
        assert ours.diagnostics["kkt_residual"] <= 1e-10
        assert_allclose(ours.values, theirs.values, atol=1e-6)


@pytest.mark.parametrize("batch_size", [None, 7])
def test_regression_is_the_elastic_net_of_the_features(inputs, batch_size):
    """torch's mse has no 1/2: the penalty is twice scikit-learn's."""
    module, targets = network(1), inputs[:, :1].square() + inputs[:, 1:2]
    features = features_of(module, inputs)
    exact = ElasticNet(0.02, l1_ratio=0.5, tol=1e-13, max_iter=100_000)
    exact.fit(features, targets[:, 0].numpy())
    settings = {"signed": "prediction", "batch_size": batch_size}
    method = fitted(module, "mse", (inputs, targets), 0.04, 0.5, **settings)
    influence = method.influence((inputs, targets))
    assert_allclose(
        influence.values.sum(axis=1), exact.predict(features) - exact.intercept_, atol=1e-8
    )
    alphas = (targets[:, 0].numpy() - exact.predict(features)) / (0.02 * N)
    assert_allclose(method.alphas_[:, 0], alphas, atol=1e-8)


@pytest.mark.parametrize("penalise_bias", [False, True])
@pytest.mark.parametrize("loss", ["bce_with_logits", nn.BCEWithLogitsLoss(), nn.SoftMarginLoss()])
def test_one_logit_sums_to_that_of_the_label(inputs, loss, penalise_bias):
    """A penalised bias is part of the sum; SoftMarginLoss knows classes -1 and 1 only."""
    labels = (inputs[:, :1] > 0).double()
    targets = 2 * labels - 1 if isinstance(loss, nn.SoftMarginLoss) else labels
    method = fitted(network(1), loss, (inputs, targets), penalise_bias=penalise_bias)
    influence = method.influence((inputs, targets))
    known = not isinstance(loss, nn.SoftMarginLoss)
    assert influence.diagnostics["signed"] == ("logit" if known else "loss")
    assert (influence.diagnostics["intercept_share"] == 0) == penalise_bias
    assert influence.diagnostics["decomposition_error"] < 1e-9
    prediction = fitted(
        network(1), loss, (inputs, targets), penalise_bias=penalise_bias, signed="prediction"
    )
    outputs = prediction.influence((inputs, targets)).values.sum(axis=1)
    if known:
        signs = 2 * labels[:, 0].numpy() - 1
        assert_allclose(influence.values.sum(axis=1), signs * outputs, atol=1e-9)
    # The refitted logits tell most labels.
    intercept = prediction.influence((inputs, targets)).diagnostics["intercept"][0]
    assert ((outputs + intercept > 0) == (labels[:, 0].numpy() > 0)).mean() > 0.9


def test_several_labels_at_once_sum_to_the_margins(inputs):
    labels = (inputs[:, :2] > 0).double()
    train = inputs, labels
    method = fitted(network(2), "bce_with_logits", train, 0.005, penalise_bias=True)
    influence = method.influence((inputs, labels))
    assert influence.diagnostics["signed"] == "logit"
    assert influence.diagnostics["training_decomposition_error"] < 1e-9
    assert (influence.values.sum(axis=1) > 0).mean() > 0.9


def test_a_layer_as_it_is_given(inputs):
    """Untrained under the penalty, its scores sum to nothing, and that is said."""
    labels = torch.arange(N) % 3
    influence = fitted(network(3), "cross_entropy", (inputs, labels), refine=False).influence(
        (inputs, labels)
    )
    [warning] = influence.diagnostics["warnings"]
    assert "not at the minimum" in warning
    assert influence.diagnostics["kkt_residual"] > 0.1
    # Weights that are at it give the sums exactly, without refinement.
    module = network(3, bias=False)
    features = features_of(module, inputs)
    settings = {"tol": 1e-11, "max_iter": 100_000, "fit_intercept": False}
    exact = sparse_logistic(C=1 / (0.01 * N), **settings)
    exact.fit(features, labels.numpy())
    with torch.no_grad():
        module[3].weight.copy_(torch.as_tensor(exact.coef_))
    method = fitted(module, "cross_entropy", (inputs, labels), refine=False)
    influence = method.influence((inputs, labels))
    logits = exact.decision_function(features)[np.arange(N), labels]
    assert_allclose(influence.values.sum(axis=1), logits, atol=1e-6)
    assert not influence.diagnostics["warnings"]


def test_refusals(inputs):
    model = pp.TorchModel(network(2), loss="mse")
    with pytest.raises(InvalidInputError, match=r"expected a pp\.TorchModel.*got Sequential"):
        SparseLastLayer(network(2), 0.1)
    with pytest.raises(InvalidInputError, match="l1_ratio must be larger than 0"):
        SparseLastLayer(model, 0.1, 0.0)
    with pytest.raises(InvalidInputError, match="penalty must be larger than 0"):
        SparseLastLayer(model, 0.0)
    with pytest.raises(InvalidInputError, match=r"needs a model fitted .* pp\.SparseLastLayer"):
        HighDimensionalRepresenter().fit(model, (inputs, inputs[:, :2]))
    with pytest.raises(InvalidInputError, match=r"signed='logit'.*no logits"):
        fitted(network(2), "mse", (inputs, inputs[:, :2]), signed="logit")
    ignored = torch.where(torch.arange(N) == 4, -100, torch.arange(N) % 3)
    with pytest.raises(InvalidInputError, match=r"not in 0 \.\. 2"):
        fitted(network(3), "cross_entropy", (inputs, ignored))
