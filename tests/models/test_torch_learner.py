"""Training torch modules on subsets: equal to a plain loop, alone and many at once."""

import copy
import pickle
import random

import numpy as np
import pytest
import torch
from joblib import wrap_non_picklable_objects
from models.torch_learner_examples import (
    CLASSES,
    FEATURES,
    N,
    assert_same,
    batches_of,
    fitted,
    learner,
    mlp,
    plain_loop,
    sgd,
    subsets,
    table,
)
from torch import nn
from torch.utils.data import Dataset

from proponent.data import Instances
from proponent.models import torch_trainer


@pytest.fixture
def together(monkeypatch):
    """Count the submodels that were trained at once."""
    counted = []
    train_many = torch_trainer.train_many

    def counting(recipe, train, counts, seeds, exact):
        counted.append(len(seeds))
        return train_many(recipe, train, counts, seeds, exact)

    monkeypatch.setattr(torch_trainer, "train_many", counting)
    return counted


def both_ways(together, data, counts, seeds, **settings):
    """Train at once and one by one; return the parameters of both."""
    _, _, many = fitted(learner(vectorized=True, **settings), data, counts, seeds)
    assert sum(together) >= len(seeds) - 1  # one that is left over trains alone
    together.clear()
    _, _, alone = fitted(learner(vectorized=False, **settings), data, counts, seeds)
    assert not together
    return many, alone


@pytest.mark.parametrize("vectorized", [True, False])
def test_equals_a_plain_loop_on_each_subset(vectorized):
    features, labels = table()
    masks, seeds = subsets()
    _, _, found = fitted(learner(vectorized=vectorized), (features, labels), masks, seeds)
    for row, (mask, seed) in enumerate(zip(masks, seeds, strict=True)):
        torch.manual_seed(seed)
        batches = batches_of(np.flatnonzero(mask), seed, 4, epochs=3)
        module = plain_loop(mlp().double(), sgd, batches, features, labels)
        expected = {name: tensor.numpy() for name, tensor in module.state_dict().items()}
        assert_same({name: found[name][row] for name in found}, expected)


@pytest.mark.parametrize("vectorized", [True, False])
def test_common_batches_take_what_a_subset_has_of_them(vectorized):
    features, labels = table()
    masks, _ = subsets()
    seeds = np.full(len(masks), 7)
    setup = learner(batches="common", vectorized=vectorized)
    _, _, found = fitted(setup, (features, labels), masks, seeds)
    for row, mask in enumerate(masks):
        torch.manual_seed(7)
        whole = batches_of(np.arange(N), 7, 4, epochs=3)
        inside = [batch[mask[batch]] for batch in whole]
        batches = [batch for batch in inside if len(batch)]
        module = plain_loop(mlp().double(), sgd, batches, features, labels)
        expected = {name: tensor.numpy() for name, tensor in module.state_dict().items()}
        assert_same({name: found[name][row] for name in found}, expected)


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.05, weight_decay=0.1),
    "amsgrad": lambda p: torch.optim.Adam(p, lr=0.05, amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.05, weight_decay=0.1),
    "nadam": lambda p: torch.optim.NAdam(p, lr=0.05),
    "radam": lambda p: torch.optim.RAdam(p, lr=0.05),
    "adamax": lambda p: torch.optim.Adamax(p, lr=0.05),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.5, centered=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.1, initial_accumulator_value=0.3),
    "adadelta": lambda p: torch.optim.Adadelta(p, lr=1.0),
    "rprop": lambda p: torch.optim.Rprop(p, lr=0.01),
    # As one would write it for one module: the rank of a parameter must not change.
    "groups": lambda p: torch.optim.SGD(
        [
            {"params": [part for part in p if part.ndim > 1], "weight_decay": 0.1},
            {"params": [part for part in p if part.ndim < 2], "lr": 0.3},
        ],
        lr=0.1,
    ),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_optimizers_step_many_modules_as_each_alone(optimizer, together):
    counts, seeds = subsets()
    many, alone = both_ways(
        together, table(), counts, seeds, optimizer=OPTIMIZERS[optimizer], epochs=5
    )
    assert_same(many, alone)


@pytest.mark.parametrize(
    "settings",
    [
        {"steps": 11},
        {"steps": 2},
        {"batch_size": 1, "epochs": 2},
        {"batch_size": 100},
        {"batches": "common"},
        {"batches": "common", "steps": 9},
        {"batches": "common", "batch_size": 1},
        {"chunk": 2},
    ],
    ids=str,
)
@pytest.mark.parametrize("draw", ["subsets", "one seed", "bootstrap"])
def test_many_at_once_equal_each_alone(settings, draw, together):
    counts, seeds = subsets()
    if draw == "one seed":
        seeds = np.full(len(counts), 5)
    if draw == "bootstrap":
        counts = np.random.default_rng(0).poisson(1.0, counts.shape).astype(np.uint8)
    many, alone = both_ways(together, table(), counts, seeds, **settings)
    assert_same(many, alone)


class Frozen(nn.Module):
    """Tied weights, a frozen layer, a parameter that is not used, a scalar one."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(FEATURES, FEATURES)
        self.second = nn.Linear(FEATURES, FEATURES)
        self.second.weight = self.first.weight
        self.frozen = nn.Linear(FEATURES, FEATURES).requires_grad_(False)
        self.unused = nn.Parameter(torch.ones(2))
        self.scale = nn.Parameter(torch.tensor(1.5))
        self.head = nn.Linear(FEATURES, CLASSES)

    def forward(self, features):
        hidden = torch.tanh(self.frozen(self.second(torch.tanh(self.first(features)))))
        return self.head(self.scale * hidden)


class Convolutional(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv1d(1, 2, 3, padding=1), nn.GroupNorm(1, 2), nn.ReLU(), nn.MaxPool1d(2),
            nn.Flatten(), nn.Linear(FEATURES, CLASSES),
        )  # fmt: skip

    def forward(self, features):
        return self.layers(features[:, None])


@pytest.mark.parametrize("module", [Frozen, Convolutional])
@pytest.mark.parametrize("optimizer", ["nesterov", "adam", "adagrad"])
def test_modules_of_other_kinds(module, optimizer, together):
    counts, seeds = subsets()
    settings = {"module": module, "optimizer": OPTIMIZERS[optimizer]}
    many, alone = both_ways(together, table(), counts, seeds, **settings)
    assert_same(many, alone)
    if module is Frozen:
        assert "second.weight" not in many  # it stands under its first name
        np.testing.assert_array_equal(many["unused"], np.ones((6, 2)))


class Normalised(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(FEATURES, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, CLASSES)
        )

    def forward(self, features):
        return self.layers(features)


def test_batch_normalisation_at_once_where_subsets_have_the_same_size(together):
    random = np.random.default_rng(0)
    counts = np.zeros((6, N), bool)
    for row, size in enumerate([10, 10, 14, 10, 14, 10]):
        counts[row, random.permutation(N)[:size]] = True
    many, alone = both_ways(together, table(), counts, np.arange(6), module=Normalised)
    assert_same(many, alone)
    assert np.all(many["layers.1.num_batches_tracked"] == [9, 9, 12, 9, 12, 9])
    setup = learner(Normalised, vectorized=True)
    fitted(setup, table(), counts, np.arange(6))
    assert together == [2, 4]


def test_batch_normalisation_does_not_see_who_is_left_out():
    features, labels = table()
    mask = np.ones((1, N), bool)
    mask[0, 5] = False
    setup = learner(Normalised, batches="common", batch_size=8)
    _, _, found = fitted(setup, (features, labels), mask, [3])
    features[5] = 1e6
    _, _, again = fitted(setup, (features, labels), mask, [3])
    assert_same(found, again, 0)


def test_leaving_out_one_keeps_the_steps_of_the_others():
    features, labels = table()
    counts = np.ones((N + 1, N), bool)
    counts[1:] ^= np.eye(N, dtype=bool)
    # An instance without a gradient: its batch is then the mean over the others times 7/8.
    weights = np.ones(N)
    weights[4] = 0.0
    setup = learner(
        risk=lambda module, batch: nn.functional.cross_entropy(
            module(batch[0]), batch[1], reduction="none") * batch[2],
        optimizer=lambda p: torch.optim.SGD(p, lr=0.1), batch_size=1, batches="common",
    )  # fmt: skip
    _, _, found = fitted(setup, (features, labels, weights), counts, np.zeros(N + 1))
    moved = np.abs(found["0.weight"] - found["0.weight"][0]).max((1, 2))
    assert moved[5] == 0.0
    assert np.all(np.delete(moved, [0, 5]) > 1e-6)


class Items(Dataset):
    """Items as dictionaries."""

    def __init__(self, features, labels):
        self.features, self.labels = features, labels

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, position):
        return {"input": self.features[position], "labels": self.labels[position]}


@pytest.mark.parametrize("kind", ["dict", "frame", "tensors", "dataset", "list of pairs"])
def test_instances_of_any_kind(kind, together):
    features, labels = table()
    data = {
        "dict": {"input": features, "labels": labels},
        "tensors": (torch.from_numpy(features), torch.from_numpy(labels)),
        "dataset": Items(features, labels),
        "list of pairs": list(zip(features, labels, strict=True)),
    }
    if kind == "frame":
        import pandas as pd

        data[kind] = (pd.DataFrame(features), pd.Series(labels))
    counts, seeds = subsets()
    trainer, found, arrays = fitted(learner(vectorized=True), data[kind], counts, seeds)
    assert together == [6]
    expected, reference, parameters = fitted(learner(), (features, labels), counts, seeds)
    assert_same(arrays, parameters, 0)
    test = trainer.prepare(Instances.of(data[kind]))
    risks = expected.risks(reference, expected.prepare(Instances.of((features, labels))))
    np.testing.assert_allclose(trainer.risks(found, test), risks, atol=1e-14)
    np.testing.assert_array_equal(test.targets, labels)


class Padded(Dataset):
    """Sequences of several lengths."""

    def __len__(self):
        return 8

    def __getitem__(self, position):
        return torch.arange(1.0, 2.0 + position), position % 2


def pad(items):
    sequences = nn.utils.rnn.pad_sequence([item[0] for item in items], batch_first=True)
    return sequences, torch.tensor([item[1] for item in items])


class Summing(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(1, 2)

    def forward(self, sequences):
        return self.linear(sequences.sum(1, keepdim=True) / 10)


def test_instances_of_several_lengths_are_read_batch_by_batch(together):
    instances = Instances.of(Padded(), collate=pad)
    counts, seeds = subsets(n=8)
    setup = learner(Summing, dtype=torch.float32)
    trainer = setup.bind(instances)
    found = trainer.fit(counts, seeds)
    assert not together and not found.failures
    sums = np.array([np.arange(1.0, 2 + i).sum() for i in range(8)], np.float32)
    same = learner(Summing, dtype=torch.float32, vectorized=False)
    data = (sums[:, None], np.arange(8) % 2)
    _, _, expected = fitted(same, data, counts, seeds)
    assert_same(trainer.to_arrays(found), expected, 1e-6)
    risks = trainer.risks(found, trainer.prepare(instances))
    assert risks.shape == (6, 8)


class Augmented(Dataset):
    """Noise is added whenever an item is read."""

    def __init__(self):
        self.features, self.labels = table()

    def __len__(self):
        return N

    def __getitem__(self, position):
        noise = torch.randn(FEATURES, dtype=torch.float64)
        return torch.from_numpy(self.features[position]) + noise, int(self.labels[position])


def test_augmented_instances_are_drawn_anew_at_each_step_from_the_seed(together):
    counts, seeds = subsets(3)
    _, _, first = fitted(learner(), Augmented(), counts, seeds)
    torch.manual_seed(99)
    trainer, found, again = fitted(learner(), Augmented(), counts[::-1], seeds[::-1])
    assert not together
    assert_same(first, {name: array[::-1] for name, array in again.items()}, 0)
    mask = np.zeros((1, N), bool)
    mask[0, 4] = True
    _, _, longer = fitted(learner(epochs=2), Augmented(), mask, [1])
    torch.manual_seed(1)
    module, noise = mlp().double(), []
    optimizer = sgd(module.parameters())
    for _ in range(2):
        noise.append(torch.randn(FEATURES, dtype=torch.float64))
        x = torch.from_numpy(table()[0][4]) + noise[-1]
        optimizer.zero_grad()
        label = torch.tensor([int(table()[1][4])])
        nn.functional.cross_entropy(module(x[None]), label).backward()
        optimizer.step()
    assert not torch.equal(*noise)
    np.testing.assert_allclose(longer["0.weight"][0], module[0].weight.detach(), atol=1e-14)
    test = trainer.prepare(Instances.of(Augmented()))
    np.testing.assert_array_equal(trainer.risks(found, test), trainer.risks(found, test))


def test_dropout_is_drawn_from_the_seed_alone(together):
    def module():
        return nn.Sequential(nn.Linear(FEATURES, 8), nn.Dropout(0.5), nn.Linear(8, CLASSES))

    counts, seeds = subsets()
    _, _, first = fitted(learner(module), table(), counts, seeds)
    torch.manual_seed(5)
    _, _, again = fitted(learner(module), table(), counts[3:4], seeds[3:4])
    assert not together
    assert_same({name: array[3:4] for name, array in first.items()}, again, 0)
    _, _, other = fitted(learner(module), table(), counts[[3, 3]], [1, 2])
    torch.manual_seed(1)
    start = module().double()
    assert not np.allclose(other["0.weight"][0], start[0].weight.detach())
    assert not np.allclose(other["0.weight"][0], other["0.weight"][1])


class Autoencoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.encode, self.decode = nn.Linear(FEATURES, 4), nn.Linear(2, FEATURES)


def evidence(module, batch):
    """The negative evidence lower bound of a variational autoencoder, with one sample."""
    (features,) = batch
    mean, log_variance = module.encode(features).chunk(2, dim=1)
    latent = mean + torch.randn_like(mean) * (log_variance / 2).exp()
    error = (module.decode(latent) - features).square().sum(1) / 2
    return error + (mean**2 + log_variance.exp() - 1 - log_variance).sum(1) / 2


def test_a_variational_autoencoder(together):
    features, _ = table()
    setup = learner(Autoencoder, lambda p: torch.optim.Adam(p, lr=0.02), risk=evidence, epochs=20)
    counts, seeds = subsets()
    trainer, found, arrays = fitted(setup, features, counts, seeds)
    assert not together and trainer.output is None
    test = trainer.prepare(Instances.of(features))
    risks = trainer.risks(found, test)
    untrained = trainer.risks(trainer.constant("init"), test)
    assert risks[0].mean() < 0.9 * untrained.mean()
    # The same noise for each submodel, whoever it is evaluated with.
    alone = trainer.from_arrays({name: array[2:3] for name, array in arrays.items()}, 1, {})
    np.testing.assert_array_equal(trainer.risks(alone, test)[0], risks[2])


def test_a_generative_risk_without_sampling_is_trained_at_once(together):
    def log_density(module, batch):
        return (module.decode(module.encode(batch[0])[:, :2]) - batch[0]).square().sum(1)

    counts, seeds = subsets()
    settings = {"module": Autoencoder, "optimizer": OPTIMIZERS["adam"], "risk": log_density}
    many, alone = both_ways(together, table()[0], counts, seeds, **settings)
    assert_same(many, alone)


@pytest.mark.parametrize("loss", ["mse", "bce_with_logits", nn.SmoothL1Loss()])
def test_other_losses(loss, together):
    features, labels = table()
    data = (features, (labels == 1).astype(float))
    counts, seeds = subsets()
    settings = {"module": lambda: nn.Sequential(nn.Linear(FEATURES, 1), nn.Flatten(0))}
    many, alone = both_ways(together, data, counts, seeds, loss=loss, **settings)
    assert_same(many, alone)


def test_an_optimizer_with_closures_trains_one_by_one(together):
    features, labels = table()
    counts, seeds = subsets(3)
    setup = learner(
        optimizer=lambda p: torch.optim.LBFGS(p, max_iter=20, line_search_fn="strong_wolfe"),
        batch_size=N, epochs=30,
        risk=lambda module, batch: nn.functional.cross_entropy(
            module(batch[0]), batch[1], reduction="none")
        + 0.05 * sum(part.square().sum() for part in module.parameters()),
        module=lambda: nn.Linear(FEATURES, CLASSES),
    )  # fmt: skip
    _, _, found = fitted(setup, (features, labels), counts[:1], seeds[:1])
    assert not together
    weight = torch.tensor(found["weight"][0], requires_grad=True)
    bias = torch.tensor(found["bias"][0], requires_grad=True)
    logits = torch.from_numpy(features) @ weight.T + bias
    risk = nn.functional.cross_entropy(logits, torch.from_numpy(labels))
    (risk + 0.05 * (weight.square().sum() + bias.square().sum())).backward()
    assert weight.grad.abs().max() < 1e-5  # at the minimum


def test_the_seed_fixes_the_numbers_whoever_else_is_trained():
    counts, seeds = subsets(12)
    setup = learner(vectorized=True, dtype=torch.float32)
    _, _, all_of_them = fitted(setup, table(), counts, seeds)
    for rows in (slice(0, 5), slice(5, 12), [2], [11, 3, 7]):
        _, _, some = fitted(setup, table(), counts[rows], seeds[rows])
        assert_same({name: array[rows] for name, array in all_of_them.items()}, some, 1e-6)


def test_everything_global_is_as_before():
    random.seed(3)
    np.random.seed(4)
    torch.manual_seed(5)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    torch.set_num_threads(2)
    try:
        counts, seeds = subsets()
        module = lambda: nn.Sequential(mlp(), nn.Dropout(0.1))  # noqa: E731
        trainer, found, _ = fitted(learner(module), table(), counts, seeds)
        trainer.risks(found, trainer.prepare(Instances.of(table())))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    assert random.getstate() == before[0]
    assert np.random.get_state()[1].tolist() == before[1]
    assert torch.equal(torch.get_rng_state(), before[2])


def test_a_pretrained_module_starts_from_its_parameters():
    pretrained = mlp()
    setup = learner(lambda: copy.deepcopy(pretrained), lambda p: torch.optim.SGD(p, lr=0.0))
    counts, seeds = subsets()
    _, _, found = fitted(setup, table(), counts, seeds)
    for row in range(len(counts)):
        np.testing.assert_array_equal(
            found["0.weight"][row], pretrained[0].weight.detach().double()
        )
    assert pretrained.training and pretrained[0].weight.dtype == torch.float32


def test_a_worker_gets_the_same(together):
    counts, seeds = subsets()
    trainer, _, expected = fitted(learner(), table(), counts, seeds)
    sent = pickle.loads(pickle.dumps(wrap_non_picklable_objects(trainer, keep_wrapper=False)))
    assert_same(sent.to_arrays(sent.fit(counts, seeds)), expected, 0)
