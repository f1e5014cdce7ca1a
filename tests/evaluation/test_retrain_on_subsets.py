"""Ground truth by retraining: fresh models, the right subsets, and loud failures."""

import numpy as np
import pytest

from proponent.evaluation import random_subsets, retrain_on_subsets
from proponent.exceptions import InvalidInputError, NonFiniteError, ProponentError

X = np.random.default_rng(0).normal(size=(12, 2))
Y = X @ [1.0, -2.0] + np.random.default_rng(1).normal(size=12)


class Mean:
    """Predicts the mean label of its subset, plus its seed."""

    def __init__(self, indices, seed):
        self.value = Y[indices].mean() + seed

    def risks(self):
        return (Y[:3] - self.value) ** 2


def test_rows_are_the_risks_of_each_subset():
    subsets = random_subsets(12, 5)
    risks = retrain_on_subsets(Mean, Mean.risks, subsets)
    for row, subset in zip(risks, subsets, strict=True):
        np.testing.assert_allclose(row, (Y[:3] - Y[subset].mean()) ** 2)
    lists = [np.flatnonzero(subset) for subset in subsets]
    np.testing.assert_array_equal(retrain_on_subsets(Mean, Mean.risks, lists), risks)


def test_several_seeds_have_an_axis_of_their_own():
    subsets = random_subsets(12, 4)
    risks = retrain_on_subsets(Mean, Mean.risks, subsets, seeds=[0, 5, 7])
    assert risks.shape == (4, 3, 3)
    np.testing.assert_array_equal(
        risks[:, 1], retrain_on_subsets(Mean, Mean.risks, subsets, seeds=5)
    )
    assert retrain_on_subsets(Mean, Mean.risks, subsets, seeds=[5]).shape == (4, 1, 3)


def test_leave_one_out_as_the_docstring_has_it():
    full = retrain_on_subsets(Mean, Mean.risks, np.ones((1, 12), dtype=bool))
    loo = (retrain_on_subsets(Mean, Mean.risks, ~np.eye(12, dtype=bool)) - full).T
    expected = (Y[2] - np.delete(Y, 4).mean()) ** 2 - (Y[2] - Y.mean()) ** 2
    assert loo[2, 4] == pytest.approx(expected)


def test_a_model_that_could_start_warm_is_refused():
    """quanda copies a model that may already hold the weights of the full training."""
    torch = pytest.importorskip("torch")
    module = torch.nn.Linear(2, 1)

    def train(indices, seed):
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
        x, y = torch.tensor(X[indices]).float(), torch.tensor(Y[indices]).float()
        ((module(x)[:, 0] - y) ** 2).mean().backward()
        optimizer.step()
        return module

    def risks(trained):
        return (trained(torch.tensor(X).float())[:, 0] - torch.tensor(Y)) ** 2

    with pytest.raises(InvalidInputError, match=r"same model object for subset 1.*inside"):
        retrain_on_subsets(train, risks, random_subsets(12, 3))

    def train_afresh(indices, seed):
        nonlocal module
        torch.manual_seed(seed)
        module = torch.nn.Linear(2, 1)
        return train(indices, seed)

    subsets = random_subsets(12, 3)
    forwards = retrain_on_subsets(train_afresh, risks, subsets)
    # Fresh models know nothing of the subsets before them.
    np.testing.assert_array_equal(
        retrain_on_subsets(train_afresh, risks, subsets[::-1]), forwards[::-1]
    )
    assert len(np.unique(forwards[:, 0])) == 3


def test_a_train_fn_that_shuffles_its_indices_changes_nothing():
    subsets = [[3, 1, 2]]
    seen = []

    def train(indices, seed):
        seen.append(indices.tolist())
        indices[:] = 0
        return object()

    retrain_on_subsets(train, lambda model: np.zeros(2), subsets, seeds=[0, 1])
    assert seen == [[3, 1, 2], [3, 1, 2]]


def test_failures_name_the_subset_and_keep_the_cause():
    def train(indices, seed):
        if len(indices) == 2:
            raise ZeroDivisionError("two")
        return object()

    with pytest.raises(ProponentError, match=r"subset 1 \(seed 3\).*two") as error:
        retrain_on_subsets(train, lambda model: np.zeros(2), [[0], [1, 2]], seeds=3)
    assert isinstance(error.value.__cause__, ZeroDivisionError)


def test_unusable_risks_are_refused():
    def train(indices, seed):
        return [len(indices)]

    subsets = [[0], [1, 2]]
    with pytest.raises(NonFiniteError, match=r"subset 1 .*test instance 2"):
        retrain_on_subsets(train, lambda m: np.array([0, 0, np.nan if m[0] == 2 else 1.0]), subsets)
    with pytest.raises(InvalidInputError, match=r"\(2,\) for subset 1 "):
        retrain_on_subsets(train, lambda m: np.zeros(m[0]), subsets)
    with pytest.raises(InvalidInputError, match=r"subset 0 .*must be 1-D"):
        retrain_on_subsets(train, lambda m: 0.5, subsets)
    with pytest.raises(InvalidInputError, match="seeds is empty"):
        retrain_on_subsets(train, lambda m: np.zeros(2), subsets, seeds=[])


def test_random_subsets_have_one_size_and_are_uniform():
    subsets = random_subsets(10, 20_000, fraction=0.3, seed=4)
    assert (subsets.sum(axis=1) == 3).all()
    np.testing.assert_allclose(subsets.mean(axis=0), 0.3, atol=0.015)
    together = (subsets[:, 0] & subsets[:, 9]).mean()
    assert together == pytest.approx(0.3 * 2 / 9, abs=0.01)
    np.testing.assert_array_equal(random_subsets(10, 5, seed=1), random_subsets(10, 5, seed=1))
    with pytest.raises(InvalidInputError, match="subsets of 0"):
        random_subsets(10, 5, fraction=0.01)
    with pytest.raises(InvalidInputError, match="fraction"):
        random_subsets(10, 5, fraction=1.0)
    with pytest.raises(InvalidInputError, match="n_train"):
        random_subsets(1, 5)
