"""DataInf against its formula by brute force, and the exact inverse that it stands for."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal
from static.projected_examples import Study, classifier, close, images, sequence

import proponent as pp
from proponent.exceptions import InvalidInputError, NonFiniteError
from proponent.static.datainf import DataInf


def brute_force(study: Study, damping=None, tests=None):
    """Return the scores by explicit inverses, (m, n): one (p, p) matrix a training instance."""
    train = study.risk_gradients(study.train)
    test = train if tests == "train" else study.risk_gradients(study.test)
    n = len(study.train[0])
    total = 0
    for name, gradients in train.items():
        rows, others = gradients.flatten(1), test[name].flatten(1)
        p = rows.shape[1]
        shift = rows.square().sum(1).mean() / (10 * p) if damping is None else damping
        if isinstance(shift, dict):
            shift = shift[name]
        eye = torch.eye(p).double()
        inverse = sum(torch.linalg.inv(torch.outer(g, g) + shift * eye) for g in rows) / n
        total = total + others @ inverse @ rows.T / n
    return total


def exact(study: Study, damping):
    """Return the scores with the inverse of the mean."""
    train, test = study.risk_gradients(study.train), study.risk_gradients(study.test)
    n, total = len(study.train[0]), 0
    for name, gradients in train.items():
        rows, others = gradients.flatten(1), test[name].flatten(1)
        moment = rows.T @ rows / n + damping * torch.eye(rows.shape[1]).double()
        total = total + others @ torch.linalg.solve(moment, rows.T) / n
    return total


@pytest.mark.parametrize("make", [classifier, sequence, images], ids=lambda make: make.__name__)
@pytest.mark.parametrize("products", ["auto", "pair", "materialise"])
@pytest.mark.parametrize("memory", [2**29, 4000])  # the training gradients are kept, or not
@pytest.mark.parametrize("damping", [None, 0.3])
def test_the_formula(make, products, memory, damping):
    study = make()
    settings = {"products": products, "memory": memory, "damping": damping, "batch_size": 4}
    method = DataInf(**settings).fit(study.model, study.train)
    assert (method._kept is not None) == (memory > 4000)
    expected = brute_force(study, damping)
    assert close(method.influence(study.test).values, expected)
    assert close(method.influence(study.test, joint=True).values, expected.sum(0))
    part = method.influence(study.test, shard=(1, 2)).values
    assert close(part, expected[:, len(study.train[0]) // 2 :])
    own = brute_force(study, damping, "train").diagonal()
    assert close(method.memorization().values, own)
    n = len(study.train[0])
    assert close(method.memorization(shard=(0, 2)).values, own[: n // 2])
    top = method.influence(study.test, top_k=2)
    assert_array_equal(top.opponents().ids, np.argsort(expected.numpy(), 1)[:, :2])


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_neither_batches_nor_a_ragged_last_one_matter(batch_size):
    study = classifier()
    found = DataInf(batch_size=batch_size).fit(study.model, study.train).influence(study.test)
    assert close(found.values, brute_force(study))


def test_the_original_damping_is_each_parameters_own():
    study = classifier()
    gradients = study.risk_gradients(study.train)
    expected = {name: float(g.square().mean()) / 10 for name, g in gradients.items()}
    found = DataInf().fit(study.model, study.train).influence(study.test).diagnostics["damping"]
    assert found == pytest.approx(expected)
    given = {name: value * (index + 1) for index, (name, value) in enumerate(expected.items())}
    method = DataInf(damping=given).fit(study.model, study.train)
    assert close(method.influence(study.test).values, brute_force(study, given))


def test_one_training_instance_is_exact():
    study = classifier(n=1)
    method = DataInf(damping=0.2).fit(study.model, study.train)
    influence = method.influence(study.test)
    assert close(influence.values, exact(study, 0.2))
    assert influence.diagnostics["sample_error"] < 1e-12
    assert influence.diagnostics["sample_correlation"] is None


def test_several_are_not_and_it_is_said():
    study = classifier()
    for damping, small in ((1e-3, False), (20.0, True)):
        influence = DataInf(damping=damping).fit(study.model, study.train).influence(study.train)
        truth = exact(Study(study.module, study.loss, study.train, study.train), damping).numpy()
        error = np.linalg.norm(influence.values - truth) / np.linalg.norm(truth)
        noticed = influence.diagnostics
        # Of so few the sample is the whole training set: the stated error is the error.
        assert noticed["sample_error"] == pytest.approx(error, rel=1e-6)
        off = ~np.eye(len(truth), dtype=bool)
        correlation = np.corrcoef(influence.values[off], truth[off])[0, 1]
        assert noticed["sample_correlation"] == pytest.approx(correlation, abs=1e-6)
        assert bool(noticed["warnings"]) != small
        assert (error < 0.1) if small else (error > 1.0)


def test_a_parameter_without_gradients_has_no_influence():
    study = classifier()
    study.module[2].weight.data.zero_()  # nothing reaches the first layer
    influence = DataInf().fit(study.model, study.train).influence(study.test)
    assert set(influence.diagnostics["damping"]) == {"2.weight", "2.bias"}
    chosen = DataInf(parameters=["2.weight", "2.bias"]).fit(study.model, study.train)
    assert close(chosen.influence(study.test).values, influence.values)


def test_a_value_that_is_not_a_number_is_named_and_the_first_fit_kept():
    """dattri: a row of zeros, and all scores non-finite by its default."""
    study = classifier()
    method = DataInf().fit(study.model, study.train)
    before = method.influence(study.test).values
    assert np.isfinite(before).all()
    X = study.train[0].clone()
    X[3, 2] = float("nan")
    with pytest.raises(NonFiniteError, match=r"train-3\b"):
        method.fit(study.model, (X, study.train[1]), ids=[f"train-{i}" for i in range(len(X))])
    with pytest.raises(NonFiniteError, match=r"ids 3\b"):
        method.influence((X, study.train[1]))
    assert_array_equal(method.influence(study.test).values, before)


def test_changed_parameters_are_noticed():
    study = classifier()
    method = DataInf().fit(study.model, study.train)
    study.module[0].weight.data += 1
    with pytest.raises(InvalidInputError, match="have changed since DataInf was fitted"):
        method.influence(study.test)


@pytest.mark.parametrize(
    "damping, message",
    [
        (0.0, "damping must be a finite number above 0"),
        (-1.0, "damping must be a finite number above 0"),
        (float("nan"), "damping must be a finite number above 0"),
        ({"0.weight": 1.0}, r"damping: .* lacks \['0.bias', '2.bias', '2.weight'\]"),
        ({"0.weigth": 1.0}, r"has \['0.weigth'\] besides"),
    ],
)
def test_dampings_that_cannot_be_used(damping, message):
    study = classifier()
    with pytest.raises(InvalidInputError, match=message):
        DataInf(damping=damping).fit(study.model, study.train)


def test_single_precision():
    study = classifier()
    model = pp.TorchModel(study.module.float(), loss="cross_entropy")
    train, test = ((X.float(), y) for X, y in (study.train, study.test))
    single = DataInf(damping=0.1).fit(model, train).influence(test).values
    double = DataInf(damping=0.1, dtype="float64").fit(model, train).influence(test).values
    assert single.dtype == np.float32 and double.dtype == np.float64
    assert close(single, double, 1e-4)
