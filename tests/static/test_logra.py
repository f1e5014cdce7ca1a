"""LoGra against dense Fisher matrices, layer by layer, and the defects of its peers."""

import copy

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal
from sklearn.datasets import load_digits
from static.projected_examples import Study, classifier, close, images, matrix, sequence
from torch import nn
from torch.nn import functional

import proponent as pp
from proponent.exceptions import InvalidInputError, NonFiniteError, SolveError
from proponent.gradients import row_store
from proponent.gradients.labels import with_fisher_labels
from proponent.static.logra import LoGra

FULL = 100  # a rank that no side of the small studies reaches

# The parameters that share a block: a weight with its bias, and what is no matrix on its own.
BLOCKS = {
    classifier: (("0.weight", "0.bias"), ("2.weight", "2.bias")),
    sequence: (
        ("0.weight",), ("1.weight", "1.bias"), ("3.weight",), ("3.bias",), ("4.weight", "4.bias"),
    ),
    images: (
        ("0.weight", "0.bias"), ("1.weight",), ("1.bias",), ("3.weight",), ("3.bias",),
        ("6.weight", "6.bias"),
    ),
}  # fmt: skip


def by_blocks(study: Study, blocks, damping, weight_decay=0.0, fisher=None):
    """Return the scores with each block's dense Fisher matrix inverted, (m, n)."""
    train, test = study.risk_gradients(study.train), study.risk_gradients(study.test)
    total = torch.zeros(len(study.test[0]), len(study.train[0])).double()
    n = len(study.train[0])
    for block in blocks:
        rows, tests = (matrix({name: part[name] for name in block}) for part in (train, test))
        drawn = rows if fisher is None else matrix({name: fisher[name] for name in block})
        moment = drawn.T @ drawn / n
        shift = 0.3 * moment.trace() / min(moment.shape[0], n) if damping is None else damping
        moment = moment + (shift + weight_decay) * torch.eye(len(moment)).double()
        total += tests @ torch.linalg.solve(moment, rows.T) / n
    return total


@pytest.mark.parametrize("make", BLOCKS, ids=lambda make: make.__name__)
@pytest.mark.parametrize("projection", ["random", "pca"])
@pytest.mark.parametrize("damping", [None, 0.05])
def test_full_rank_is_the_dense_inverse_of_each_layer(make, projection, damping):
    """Every parameter counts: biases, norms, embeddings, grouped kernels; any loss, any rank."""
    study = make()
    assert {name for block in BLOCKS[make] for name in block} == set(study.model.selected)
    method = LoGra(FULL, projection=projection, damping=damping, batch_size=4)
    influence = method.fit(study.model, study.train).influence(study.test)
    expected = by_blocks(study, BLOCKS[make], damping)
    assert close(influence.values, expected, 1e-9)
    assert close(method.influence(study.test, joint=True).values, expected.sum(0), 1e-9)
    itself = by_blocks(Study(study.module, study.loss, study.train, study.train), BLOCKS[make],
                       damping)  # fmt: skip
    assert close(method.memorization().values, itself.diagonal(), 1e-9)
    listed = [tuple(layer["parameters"]) for layer in influence.diagnostics["layers"]]
    assert sorted(listed) == sorted(BLOCKS[make])


def test_weight_decay_is_part_of_the_curvature():
    study = classifier()
    method = LoGra(FULL, damping=0.02, weight_decay=0.1).fit(study.model, study.train)
    expected = by_blocks(study, BLOCKS[classifier], 0.02, 0.1)
    assert close(method.influence(study.test).values, expected, 1e-9)


def test_the_fisher_of_labels_drawn_from_the_model():
    study = classifier()
    relabelled, instances = with_fisher_labels(study.model, study.train, seed=3)
    batch = instances.batch(slice(0, len(instances)))
    n = len(instances)
    found = {name: [] for name in study.model.selected}
    for i in range(n):
        alone = ((batch[0][0][i : i + 1], batch[0][1][i : i + 1]), batch[1][i : i + 1])
        risk = relabelled.risk(study.module, alone)
        for name, g in zip(
            found, torch.autograd.grad(risk.sum(), list(study.module.parameters())), strict=True
        ):
            found[name].append(g)
    fisher = {name: torch.stack(parts) for name, parts in found.items()}
    method = LoGra(FULL, curvature="fisher", seed=3, damping=0.05).fit(study.model, study.train)
    expected = by_blocks(study, BLOCKS[classifier], 0.05, fisher=fisher)
    assert close(method.influence(study.test).values, expected, 1e-9)
    other = LoGra(FULL, curvature="fisher", seed=4, damping=0.05).fit(study.model, study.train)
    assert not close(other.influence(study.test).values, expected, 1e-3)


@pytest.mark.parametrize("projection", ["random", "pca"])
def test_the_influence_of_a_model_that_moves_in_the_subspaces_alone(projection):
    """W + L B R^T with B for parameters: influence functions by B's own gradients."""
    study = classifier()
    method = LoGra(2, projection=projection, damping=0.05).fit(study.model, study.train)
    project = method._sets[0].gradients.project
    spaces = {space.layer.name: space for space in project.args[0]}
    assert {name: space.width for name, space in spaces.items()} == {"0": 4, "2": 4}

    class Branched(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = copy.deepcopy(study.module)
            for name in spaces:
                self.register_parameter(f"b{name}", nn.Parameter(torch.zeros(2, 2).double()))

        def forward(self, x):
            for index, layer in enumerate(self.net):
                y = layer(x)
                if str(index) in spaces:
                    space, b = spaces[str(index)], getattr(self, f"b{index}")
                    ones = x.new_ones(len(x), 1)
                    y = y + torch.cat([x, ones], 1) @ space.right @ b.T @ space.left.T
                x = y
            return x

    branched = Branched()
    for parameter in branched.net.parameters():
        parameter.requires_grad_(False)
    moved = Study(branched, study.loss, study.train, study.test)
    expected = by_blocks(moved, (("b0",), ("b2",)), 0.05)
    assert close(method.influence(study.test).values, expected, 1e-9)


@pytest.mark.parametrize("settings", [{}, {"projection": "pca"}])
def test_moderate_ranks_keep_most_on_real_data(settings):
    """Digits, a perceptron of 2,410 parameters: correlation with the full rank."""
    X, y = load_digits(return_X_y=True)
    X, y = torch.tensor(X[:250] / 16, dtype=torch.float32), torch.tensor(y[:250])
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.2, momentum=0.9)
    for _ in range(40):
        optimizer.zero_grad()
        functional.cross_entropy(net(X[:200]), y[:200]).backward()
        optimizer.step()
    model = pp.TorchModel(net, loss="cross_entropy")
    train, test = (X[:200], y[:200]), (X[200:], y[200:])
    full = LoGra(65, damping=0.05).fit(model, train).influence(test).values
    found = []
    for rank in (4, 16):
        method = LoGra(rank, damping=0.05, **settings).fit(model, train)
        values = method.influence(test).values
        found.append(np.corrcoef(values.ravel(), full.ravel())[0, 1])
    least = (0.6, 0.9) if not settings else (0.75, 0.97)
    assert found[0] > least[0] and found[1] > least[1], found
    assert found[0] < found[1]


# Log once, query often


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr(row_store, "SHARD_BYTES", 8 * 18 * 7)  # seven rows of rank 3


def test_a_query_from_a_store_costs_no_pass_over_the_training_set(tmp_path, small_shards):
    study, seen = classifier(n=100), []
    study.module.register_forward_hook(lambda module, inputs, _: seen.append(len(inputs[0])))
    settings = {"rank": 3}
    for projection, curvature in (("pca", "fisher"), ("random", "empirical_fisher")):
        settings |= {"projection": projection, "curvature": curvature,
                     "path": tmp_path / projection}  # fmt: skip
        expected = LoGra(**{**settings, "path": None}).fit(study.model, study.train)
        first = LoGra(**settings).fit(study.model, study.train)
        assert close(first.influence(study.test).values, expected.influence(study.test).values)
        seen.clear()
        again = LoGra(**settings).fit(study.model, study.train)
        values = again.influence(study.test).values
        assert sum(seen) < len(study.train[0]), "the training set was passed again"
        assert_array_equal(values, first.influence(study.test).values)
        assert_array_equal(again.memorization().values, first.memorization().values)
        shards = sorted(path.name for path in settings["path"].glob("rows-*"))
        assert len(shards) == 15


def test_a_stopped_fit_goes_on(tmp_path, small_shards, monkeypatch):
    study = classifier()
    expected = LoGra(3).fit(study.model, study.train).influence(study.test).values
    write = row_store.StoredRows.write

    def stopping(self, rows, values):
        if rows.start >= 14:
            raise KeyboardInterrupt
        write(self, rows, values)

    with monkeypatch.context() as patch:
        patch.setattr(row_store.StoredRows, "write", stopping)
        with pytest.raises(KeyboardInterrupt):
            LoGra(3, path=tmp_path).fit(study.model, study.train)
    written = {path: path.stat().st_mtime_ns for path in tmp_path.glob("rows-*")}
    assert len(written) == 2
    method = LoGra(3, path=tmp_path, batch_size=5).fit(study.model, study.train)
    assert close(method.influence(study.test).values, expected)
    assert all(path.stat().st_mtime_ns == time for path, time in written.items())


def test_a_store_of_something_else_is_refused(tmp_path):
    study, other = classifier(), classifier(seed=1)
    LoGra(3, path=tmp_path).fit(study.model, study.train)
    for changes, model, train, named in (
        ({}, other.model, study.train, "module"),
        ({}, study.model, other.train, "train"),
        ({"rank": 2}, study.model, study.train, "rank"),
        ({"seed": 1}, study.model, study.train, "seed"),
        ({"projection": "pca"}, study.model, study.train, "projection"),
        ({"parameters": "last"}, study.model, study.train, "layers"),
        ({"dtype": "float32"}, study.model, study.train, "dtype"),
    ):
        with pytest.raises(InvalidInputError, match=rf"path: .*\(its .*{named}.*differ"):
            LoGra(**{"rank": 3, "path": tmp_path, **changes}).fit(model, train)


def test_a_store_of_another_loss_is_refused(tmp_path):
    """The same weights and data, of which a manifest tells no difference."""
    study = classifier()
    LoGra(3, path=tmp_path).fit(study.model, study.train)
    smoothed = pp.TorchModel(study.module, loss=nn.CrossEntropyLoss(label_smoothing=0.1))
    with pytest.raises(InvalidInputError, match=r"path: .* not those of this risk"):
        LoGra(3, path=tmp_path).fit(smoothed, study.train)


def test_another_damping_is_not_ignored(tmp_path):
    """LogIX keeps the inverse of the first damping it was asked for."""
    study = classifier()
    for damping in (0.05, 0.5):
        method = LoGra(FULL, damping=damping, path=tmp_path).fit(study.model, study.train)
        expected = by_blocks(study, BLOCKS[classifier], damping)
        assert close(method.influence(study.test).values, expected, 1e-9)


def test_the_default_damping_is_each_layers_own():
    """LogIX's K-FAC takes the first layer's for all."""
    study = classifier()
    found = LoGra(FULL).fit(study.model, study.train).influence(study.test).diagnostics["damping"]
    gradients, n = study.risk_gradients(study.train), len(study.train[0])
    for layer, block in zip(("0.weight", "2.weight"), BLOCKS[classifier], strict=True):
        rows = matrix({name: gradients[name] for name in block})
        mean = float(rows.square().sum()) / n / min(n, rows.shape[1])
        assert found[layer] == pytest.approx(0.3 * mean)
    assert found["0.weight"] != pytest.approx(found["2.weight"], rel=0.1)


def test_changed_parameters_are_noticed():
    study = classifier()
    method = LoGra(3).fit(study.model, study.train)
    study.module[2].bias.data += 1
    with pytest.raises(InvalidInputError, match="have changed since LoGra was fitted"):
        method.influence(study.test)


# Refusals


@pytest.mark.parametrize("projection", ["random", "pca"])
def test_a_value_that_is_not_a_number_is_named_and_the_first_fit_kept(projection):
    study = classifier()
    method = LoGra(3, projection=projection).fit(study.model, study.train)
    before = method.influence(study.test).values
    X = study.train[0].clone()
    X[5, 0] = float("inf")
    with pytest.raises(NonFiniteError, match=r"\b5\b"):
        method.fit(study.model, (X, study.train[1]))
    assert_array_equal(method.influence(study.test).values, before)
    with pytest.raises(NonFiniteError, match=r"ids 5\b"):
        method.influence((X[:6], study.train[1][:6]))


def test_no_damping_for_too_few_instances_is_refused():
    study = classifier(n=12)
    with pytest.raises(SolveError, match=r"layer '0.weight': 12 training instances span"):
        LoGra(6, damping=0.0).fit(study.model, study.train)
    LoGra(6, damping=0.0, weight_decay=0.1).fit(study.model, study.train)


def test_a_layer_without_gradients_is_said_to_have_no_influence():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 3)).double()
    module[1].weight.data.zero_()  # nothing reaches the first layer
    study = classifier()
    model = pp.TorchModel(module, loss="cross_entropy")
    influence = LoGra(FULL).fit(model, study.train).influence(study.test)
    assert influence.diagnostics["warnings"] == [
        "0.weight: no training gradient, and so no influence"
    ]
    moved = Study(module, "cross_entropy", study.train, study.test)
    assert close(influence.values, by_blocks(moved, (("1.weight", "1.bias"),), None), 1e-9)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"rank": 0}, "rank must be an integer of at least 1"),
        ({"seed": 0.5}, "seed must be an integer"),
        ({"projection": "svd"}, "projection='svd': expected one of random, pca"),
        ({"curvature": "hessian"}, "curvature='hessian': expected one of empirical_fisher, fisher"),
        ({"damping": float("nan")}, "damping must be a finite number"),
        ({"weight_decay": -1.0}, "weight_decay must be a finite number"),
        ({"memory": 1000}, r"rank=64: .* Choose a lower rank"),
        ({"rank": 1, "memory": 1000}, r"training instances take .* Give path="),
    ],
)
def test_settings_that_cannot_be_used(settings, message):
    study = classifier(n=100)
    with pytest.raises(InvalidInputError, match=message):
        LoGra(**settings).fit(study.model, study.train)
