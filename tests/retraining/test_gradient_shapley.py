"""Gradient Shapley against a plain loop of single steps, and what holds of any pass."""

import copy

import numpy as np
import pytest
import torch
from models.torch_learner_examples import CLASSES, FEATURES, N, learner, mlp, table
from torch import nn

from proponent.exceptions import (
    InvalidInputError,
    MethodCapabilityError,
    NonFiniteError,
    ProponentError,
)
from proponent.models import torch_online
from proponent.retraining import gradient_shapley
from proponent.retraining.gradient_shapley import GradientShapley
from proponent.retraining.passes import steps_of

TEST = table(6, seed=3)


def risks(module, data=TEST):
    with torch.no_grad():
        logits = module(torch.from_numpy(data[0]))
        return nn.functional.cross_entropy(
            logits, torch.from_numpy(data[1]), reduction="none"
        ).numpy()


def plain(method, rate, train, test=TEST, make=mlp):
    """The marginals of each pass, by a plain loop: (passes, T, n)."""
    found = []
    for orders, seeds in method._passes(0, method.n_permutations, 1):
        torch.manual_seed(int(seeds[0]) % 2**32)
        module = make().double()
        marginals = np.full((len(test[1]), len(train[1])), np.nan)
        before = risks(module, test)
        for position in orders[0]:
            module.zero_grad()
            x, y = (torch.from_numpy(part[position : position + 1]) for part in train)
            nn.functional.cross_entropy(module(x), y).backward()
            with torch.no_grad():
                for parameter in module.parameters():
                    parameter -= rate * parameter.grad
            after = risks(module, test)
            marginals[:, position] = before - after
            before = after
        found.append(marginals)
    return np.stack(found)


@pytest.mark.parametrize("vectorized", [True, False])
@pytest.mark.parametrize("memory", [None, 8 * (N + 1) * 6 * 2])
def test_equals_a_plain_loop(vectorized, memory, monkeypatch):
    walked = []
    together = torch_online._together

    def counting(recipe, trainer, orders, seeds, see):
        walked.append(len(orders))
        together(recipe, trainer, orders, seeds, see)

    monkeypatch.setattr(torch_online, "_together", counting)
    if memory:
        monkeypatch.setattr(gradient_shapley, "MEMORY", memory)
    method = GradientShapley(7, learning_rate=0.2, seed=4)
    method.fit(learner(vectorized=vectorized), table())
    found = method.influence(TEST, ids=[f"t{i}" for i in range(6)])
    assert walked == ([] if not vectorized else [2, 2, 2] if memory else [7])
    passes = plain(method, 0.2, table())
    np.testing.assert_allclose(found.values, passes.mean(0), atol=1e-13)
    np.testing.assert_allclose(found.std_error, passes.std(0, ddof=1) / np.sqrt(7), atol=1e-13)
    assert found.test_ids[0] == "t0"
    joint = method.influence(TEST, joint=True)
    summed = passes.sum(1)
    np.testing.assert_allclose(joint.values, summed.mean(0), atol=1e-13)
    np.testing.assert_allclose(joint.std_error, summed.std(0, ddof=1) / np.sqrt(7), atol=1e-13)


def test_the_values_sum_to_what_a_pass_changes():
    method = GradientShapley(5, learning_rate=0.3).fit(learner(), table())
    found = method.influence(TEST)
    changes = []
    for orders, seeds in method._passes(0, 5, 1):
        torch.manual_seed(int(seeds[0]) % 2**32)
        module = mlp().double()
        start = risks(module)
        optimizer = torch.optim.SGD(module.parameters(), lr=0.3)
        for position in orders[0]:
            optimizer.zero_grad()
            x, y = (torch.from_numpy(part[position : position + 1]) for part in table())
            nn.functional.cross_entropy(module(x), y).backward()
            optimizer.step()
        changes.append(start - risks(module))
    np.testing.assert_allclose(found.values.sum(1), np.mean(changes, axis=0), atol=1e-12)


def test_without_a_step_nothing_changes():
    found = GradientShapley(3, learning_rate=0.0).fit(learner(), table()).influence(TEST)
    assert np.all(found.values == 0) and np.all(found.std_error == 0)


def test_a_single_instance_is_credited_against_the_untrained_network():
    features, labels = table()
    train = features[:1], labels[:1]
    method = GradientShapley(4, learning_rate=0.5).fit(learner(), train)
    found = method.influence(TEST)
    assert found.values.shape == (6, 1)
    np.testing.assert_allclose(found.values, plain(method, 0.5, train).mean(0), atol=1e-13)
    assert np.abs(found.values).max() > 1e-3


def test_memorization_is_the_diagonal(monkeypatch):
    monkeypatch.setattr(gradient_shapley, "BLOCK", 5)
    method = GradientShapley(4, learning_rate=0.2).fit(learner(), table())
    diagonal = method.influence(table()).values.diagonal()
    np.testing.assert_allclose(method.memorization().values, diagonal, atol=1e-14)
    part = method.memorization(shard=(1, 3))
    np.testing.assert_allclose(part.values, diagonal[8:16], atol=1e-14)
    rows = method.influence(TEST, shard=(1, 3)).values
    np.testing.assert_array_equal(rows, method.influence(TEST).values[:, 8:16])


def test_the_test_set_of_fit_is_walked_once(monkeypatch):
    method = GradientShapley(4, learning_rate=0.2)
    method.fit(learner(), table(), test=TEST)
    again = GradientShapley(4, learning_rate=0.2).fit(learner(), table()).influence(TEST)
    monkeypatch.setattr(method, "_marginals", None)
    found = method.influence()
    np.testing.assert_array_equal(found.values, again.values)
    assert found.joint().values.shape == (N,)
    with pytest.raises(InvalidInputError, match="pass the test set"):
        GradientShapley(4, learning_rate=0.2).fit(learner(), table()).influence()


def test_the_seed_fixes_the_numbers():
    def values(seed):
        return GradientShapley(4, learning_rate=0.2, seed=seed).fit(learner(), table()).influence(
            TEST).values  # fmt: skip

    first = values(1)
    torch.manual_seed(77)
    np.testing.assert_array_equal(values(1), first)
    assert np.abs(values(2) - first).max() > 1e-3


def test_passes_are_nested():
    few = GradientShapley(3, learning_rate=0.2).fit(learner(vectorized=False), table())
    many = GradientShapley(6, learning_rate=0.2).fit(learner(vectorized=False), table())
    np.testing.assert_allclose(plain(few, 0.2, table()), plain(many, 0.2, table())[:3])


def test_a_network_with_dropout_walks_alone_and_from_its_seed():
    make = lambda: nn.Sequential(mlp(), nn.Dropout(0.5))  # noqa: E731
    method = GradientShapley(3, learning_rate=0.2).fit(learner(make), table())
    assert method._trainer.chunk == 0
    found = method.influence(TEST)
    again = GradientShapley(3, learning_rate=0.2).fit(learner(make), table())
    np.testing.assert_array_equal(found.values, again.influence(TEST).values)
    assert not np.allclose(found.values, plain(method, 0.2, table(), make=mlp).mean(0))


def test_other_utilities():
    method = GradientShapley(5, learning_rate=0.5, utility="accuracy").fit(learner(), table())
    found = method.influence(TEST).values * 5
    np.testing.assert_allclose(found, found.round(), atol=1e-12)
    assert found.any()
    joined = GradientShapley(2, learning_rate=0.1, utility=lambda outputs, targets: 1.0)
    with pytest.raises(InvalidInputError, match="a number for each of the 6 test instances"):
        joined.fit(learner(), table()).influence(TEST)
    risk_only = learner(risk=lambda module, batch: module(batch[0]).square().sum(1))
    with pytest.raises(MethodCapabilityError, match="utility='accuracy' needs a classifier"):
        method.fit(risk_only, table()).influence(TEST)


def test_the_rate_is_that_with_the_best_end(monkeypatch):
    method = GradientShapley(3).fit(learner(), table(), test=TEST)
    ends = {}
    for rate in 10.0 ** -np.arange(1, 5, 0.5):
        sums = []
        for orders, seeds in method._passes(1, 10, 1):
            torch.manual_seed(int(seeds[0]) % 2**32)
            module = mlp().double()
            optimizer = torch.optim.SGD(module.parameters(), lr=rate)
            for position in orders[0]:
                optimizer.zero_grad()
                x, y = (torch.from_numpy(part[position : position + 1]) for part in table())
                nn.functional.cross_entropy(module(x), y).backward()
                optimizer.step()
            sums.append(-risks(module).mean())
        ends[rate] = np.mean(sums) - np.std(sums)
    assert method.learning_rate_ == max(ends, key=ends.get)
    assert method.influence().diagnostics["learning_rate"] == method.learning_rate_


def test_rates_that_diverge_are_not_chosen_and_passes_that_do_are_counted():
    features, _ = table()
    data = features * 30, features[:, 0]
    setup = learner(lambda: nn.Linear(FEATURES, 1), loss="mse", dtype=torch.float32)
    method = GradientShapley(2).fit(setup, data, test=data)
    assert method.learning_rate_ < 1e-3
    with pytest.raises(ProponentError, match=r"All 2 passes diverged at learning_rate=0\.1"):
        GradientShapley(2, learning_rate=0.1).fit(setup, data, test=data)
    hopeless = features * 1e6, features[:, 0]
    with pytest.raises(ProponentError, match="at every rate of the grid"):
        GradientShapley(2).fit(setup, hopeless, test=hopeless)
    broken = features, np.where(np.arange(N) == 2, np.inf, 0.0)
    with pytest.raises(NonFiniteError, match="ids 2"):
        GradientShapley(2, learning_rate=0.1).fit(setup, data).influence(broken)


class Steep(nn.Module):
    """Half of them, by the seed, are far too steep for the rate."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(FEATURES, 1)
        self.register_buffer("steepness", torch.where(torch.rand(()) > 0.5, 30.0, 0.01))

    def forward(self, features):
        return self.steepness * self.linear(features)


@pytest.mark.parametrize("vectorized", [True, False])
def test_a_pass_that_diverges_is_left_out(vectorized):
    features, _ = table()
    data = features, features[:, 0]
    setup = learner(Steep, loss="mse", dtype=torch.float32, vectorized=vectorized)
    method = GradientShapley(12, learning_rate=0.1).fit(setup, data)
    found = method.influence(data)
    steep = []
    for _, seeds in method._passes(0, 12, 1):
        torch.manual_seed(int(seeds[0]) % 2**32)
        steep.append(Steep().steepness.item() > 1)
    assert found.diagnostics["diverged"] == sum(steep) > 0
    assert found.diagnostics["permutations"] == 12 - sum(steep) > 0
    assert np.isfinite(found.values).all() and np.abs(found.values).max() < 1
    itself = method.memorization().diagnostics
    assert (itself["diverged"], itself["permutations"]) == (sum(steep), 12 - sum(steep))


@pytest.mark.parametrize(
    "settings, message",
    [
        ({}, "learning_rate='auto' is chosen by the utility on a test set"),
        ({"learning_rate": -1.0}, "learning_rate: expected 'auto' or a number"),
        ({"learning_rate": "best"}, "learning_rate: expected 'auto' or a number"),
        ({"learning_rate": 0.1, "n_permutations": 0}, "n_permutations"),
        ({"learning_rate": 0.1, "seed": -1}, "seed"),
        ({"learning_rate": 0.1, "utility": "f1"}, "utility: expected"),
    ],
)
def test_refusals(settings, message):
    with pytest.raises(InvalidInputError, match=message):
        GradientShapley(**settings).fit(learner(), table())


def test_models_of_another_kind_are_refused():
    with pytest.raises(InvalidInputError, match=r"pp\.TorchLearner"):
        GradientShapley(learning_rate=0.1).fit(mlp(), table())
    normalised = learner(lambda: nn.Sequential(mlp(), nn.BatchNorm1d(CLASSES)))
    with pytest.raises(InvalidInputError, match="a step on a single instance failed"):
        GradientShapley(learning_rate=0.1).fit(normalised, table(), test=TEST)


def test_the_learner_is_as_it_was():
    setup = learner()
    before = copy.copy(setup.get_params())
    GradientShapley(2, learning_rate=0.1).fit(setup, table(), test=TEST)
    assert setup.get_params() == before


@pytest.mark.parametrize("vectorized", [True, False])
def test_groups_are_credited_with_the_steps_on_their_instances(vectorized):
    """By a plain loop over the groups of each pass."""
    train, rate = table(N), 0.1
    names = np.array(["c", "a", "b", "a"])[np.arange(N) % 4]
    method = GradientShapley(4, learning_rate=rate, progress=False)
    found = method.fit(learner(vectorized=vectorized), train, groups=names).influence(TEST)
    assert found.train_ids.tolist() == ["a", "b", "c"]
    expected = np.zeros((len(TEST[1]), 3))
    for orders, seeds in method._passes(0, 4, 1):
        torch.manual_seed(int(seeds[0]) % 2**32)
        module = mlp().double()
        before = risks(module)
        (steps,), _ = steps_of(orders, seeds, method._players.members)
        for player in orders[0]:
            mine = steps[names[steps] == "abc"[player]]
            assert len(mine) == (names == "abc"[player]).sum()
            for position in mine:
                module.zero_grad()
                x, y = (torch.from_numpy(part[position : position + 1]) for part in train)
                nn.functional.cross_entropy(module(x), y).backward()
                with torch.no_grad():
                    for parameter in module.parameters():
                        parameter -= rate * parameter.grad
            after = risks(module)
            expected[:, player] += (before - after) / 4
            before = after
    np.testing.assert_allclose(found.values, expected, atol=1e-10)
    with pytest.raises(MethodCapabilityError, match="groups"):
        method.memorization()


def test_expected_influence_is_the_mean_over_runs_of_other_seeds():
    method = GradientShapley(6, learning_rate=0.1, progress=False).fit(learner(), table(N))
    found = method.expected(TEST, repeats=3)
    first = method.influence(TEST)
    runs = [first.values]
    for purpose in (2, 3):
        runs.append(method._marginals(method._tests(TEST, None), purpose).mean[:, :-1].T)
    assert not np.allclose(runs[1], runs[0]) and not np.allclose(runs[1], runs[2])
    np.testing.assert_allclose(found.values, np.mean(runs, axis=0), rtol=1e-10, atol=1e-14)
    errors = np.std(runs, axis=0, ddof=1) / np.sqrt(3)
    np.testing.assert_allclose(found.std_error, errors, rtol=1e-8, atol=1e-14)
    assert found.diagnostics["repeats"] == 3 and -1 <= found.diagnostics["rank_stability"] <= 1
    with pytest.raises(InvalidInputError, match="repeats"):
        method.expected(TEST, repeats=1)
