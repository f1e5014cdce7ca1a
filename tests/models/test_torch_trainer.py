"""What trained torch submodels say of test instances, what fails, and what is refused."""

import copy
import dataclasses

import numpy as np
import pytest
import torch
from models.torch_learner_examples import (
    CLASSES,
    FEATURES,
    N,
    assert_same,
    fitted,
    learner,
    mlp,
    sgd,
    subsets,
    table,
)
from torch import nn

from proponent.data import Instances
from proponent.exceptions import InvalidInputError, MethodCapabilityError, NonFiniteError
from proponent.models import torch_evaluation
from proponent.models.learner import Fitted
from proponent.models.torch_learner import TorchLearner
from proponent.models.torch_rows import HeldRows

TEST = table(9, seed=3)


def module_of(arrays, row, make=mlp):
    module = make().double()
    module.load_state_dict({name: torch.tensor(array[row]) for name, array in arrays.items()})
    return module.eval()


@pytest.mark.parametrize("alone", [True, False])
@pytest.mark.parametrize("block", [1, 4, 100])
def test_risks_and_logits_are_those_of_each_module(alone, block, monkeypatch):
    monkeypatch.setattr(torch_evaluation, "BLOCK", block)
    monkeypatch.setattr(torch_evaluation, "AT_ONCE", 4)
    monkeypatch.setattr(torch_evaluation, "ACTIVATIONS", {"cpu": block * 4 * 8 * 13})
    counts, seeds = subsets()
    trainer, found, arrays = fitted(learner(), table(), counts, seeds)
    trainer.traits = dataclasses.replace(trainer.traits, evaluated_alone=alone)
    assert trainer.traits.activations == 5 + 5 + CLASSES
    test = trainer.prepare(Instances.of(TEST, ids=[f"t{i}" for i in range(9)]))
    assert test.ids.tolist() == [f"t{i}" for i in range(9)]
    assert trainer.output == "logits" and test.targets.tolist() == TEST[1].tolist()
    risks, logits = trainer.risks(found, test), trainer.outputs(found, test)
    for row in range(len(seeds)):
        expected = module_of(arrays, row)(torch.from_numpy(TEST[0]))
        np.testing.assert_allclose(logits[row], expected.detach(), atol=1e-14)
        loss = nn.functional.cross_entropy(expected, torch.from_numpy(TEST[1]), reduction="none")
        np.testing.assert_allclose(risks[row], loss.detach(), atol=1e-14)


def test_dropout_and_running_statistics_are_in_evaluation_mode():
    def module():
        return nn.Sequential(
            nn.Linear(FEATURES, 5), nn.BatchNorm1d(5), nn.Dropout(0.5), nn.Linear(5, CLASSES)
        )

    counts, seeds = subsets()
    counts[1] = ~counts[1]  # one instance has no variance
    trainer, found, arrays = fitted(learner(module, batch_size=50), table(), counts, seeds)
    logits = trainer.outputs(found, trainer.prepare(Instances.of(TEST)))
    for row in range(len(seeds)):
        expected = module_of(arrays, row, module)(torch.from_numpy(TEST[0]))
        np.testing.assert_allclose(logits[row], expected.detach(), atol=1e-14)


def test_a_risk_with_gradients_of_its_own_can_be_evaluated():
    def risk(module, batch):
        features = batch[0].detach().requires_grad_()
        (gradient,) = torch.autograd.grad(module(features).sum(), features, create_graph=True)
        return gradient.square().sum(1)  # fmt: skip

    counts, seeds = subsets(2)
    setup = learner(lambda: nn.Sequential(nn.Linear(FEATURES, 1), nn.Tanh()), risk=risk)
    trainer, found, arrays = fitted(setup, table(), counts, seeds)
    risks = trainer.risks(found, trainer.prepare(Instances.of(TEST)))
    weight, bias = arrays["0.weight"][:, 0], arrays["0.bias"]
    slope = 1 - np.tanh(weight @ TEST[0].T + bias) ** 2
    np.testing.assert_allclose(risks, (weight**2).sum(1)[:, None] * slope**2, atol=1e-12)


def test_values_of_a_regression():
    features, _ = table()
    targets = features[:, :2] ** 2
    counts, seeds = subsets()
    one = nn.Linear(FEATURES, 1), targets[:, 0], targets[:, :1]
    for target in one[1:]:
        setup = learner(lambda: nn.Linear(FEATURES, 1), loss="mse")
        trainer, found, arrays = fitted(setup, (features, target), counts, seeds)
        test = trainer.prepare(Instances.of((features, target)))
        values = trainer.outputs(found, test)
        assert trainer.output == "values" and test.targets.shape == (N,)
        expected = features @ arrays["weight"][2, 0] + arrays["bias"][2]
        np.testing.assert_allclose(values[2], expected, atol=1e-14)
        risks = trainer.risks(found, test)
        np.testing.assert_allclose(risks, (values - targets[:, 0]) ** 2, atol=1e-12)
    setup = learner(lambda: nn.Linear(FEATURES, 2), loss=nn.MSELoss())
    trainer, found, _ = fitted(setup, (features, targets), counts, seeds)
    test = trainer.prepare(Instances.of((features, targets)))
    values = trainer.outputs(found, test)
    risks = trainer.risks(found, test)
    np.testing.assert_allclose(risks, ((values - test.targets) ** 2).mean(2), atol=1e-12)


def test_a_single_logit_is_read_as_two_classes():
    features, labels = table(classes=2)
    setup = learner(lambda: nn.Linear(FEATURES, 1), loss="bce_with_logits")
    counts, seeds = subsets()
    trainer, found, _ = fitted(setup, (features, labels), counts, seeds)
    test = trainer.prepare(Instances.of((features, labels)))
    logits = trainer.outputs(found, test)
    assert trainer.output == "logits" and logits.shape == (6, N, 2)
    logp = logits - np.log(np.exp(logits).sum(2, keepdims=True))
    np.testing.assert_allclose(
        trainer.risks(found, test), -logp[:, np.arange(N), test.targets], atol=1e-12
    )


@pytest.mark.parametrize(
    "settings",
    [
        {"loss": lambda output, target: (output[:, 0] - target).square()},
        {"loss": None, "risk": lambda module, batch: module(batch[0])[:, 0].square()},
        {
            "loss": nn.SmoothL1Loss(),
            "module": lambda: nn.Sequential(nn.Linear(FEATURES, 1), nn.Flatten(0)),
        },
    ],
    ids=["callable", "risk", "loss module"],
)
def test_outputs_of_unknown_losses_are_refused(settings):
    counts, seeds = subsets(2)
    trainer, found, _ = fitted(learner(**settings), table(), counts, seeds)
    test = trainer.prepare(Instances.of(TEST))
    assert trainer.output is None and test.targets is None
    with pytest.raises(MethodCapabilityError, match="utility='risk'"):
        trainer.outputs(found, test)
    for kind in ("prior", "uniform"):
        with pytest.raises(MethodCapabilityError, match="empty='init'"):
            trainer.constant(kind)
    assert trainer.risks(trainer.constant("init"), test).shape == (1, 9)


def test_constant_models():
    features, labels = table()
    trainer = learner().bind(Instances.of((features, labels)))
    test = trainer.prepare(Instances.of(TEST))
    frequencies = (np.bincount(labels) + 1) / (N + CLASSES)
    risks = trainer.risks(trainer.constant("prior"), test)
    np.testing.assert_allclose(risks[0], -np.log(frequencies[TEST[1]]), atol=1e-12)
    logits = trainer.outputs(trainer.constant("prior"), test)
    np.testing.assert_allclose(logits[0], np.tile(np.log(frequencies), (9, 1)), atol=1e-12)
    risks = trainer.risks(trainer.constant("uniform"), test)
    np.testing.assert_allclose(risks[0], np.log(3), atol=1e-12)
    torch.manual_seed(0)
    untrained = mlp().double()(torch.from_numpy(TEST[0]))
    logits = trainer.outputs(trainer.constant("init"), test)
    np.testing.assert_allclose(logits[0], untrained.detach(), atol=1e-14)

    regression = learner(lambda: nn.Linear(FEATURES, 1), loss="mse")
    trainer = regression.bind(Instances.of((features, features[:, 0])))
    test = trainer.prepare(Instances.of((TEST[0], TEST[0][:, 0])))
    risks = trainer.risks(trainer.constant("prior"), test)
    np.testing.assert_allclose(risks[0], (TEST[0][:, 0] - features[:, 0].mean()) ** 2, atol=1e-12)
    with pytest.raises(MethodCapabilityError, match="init"):
        trainer.constant("uniform")

    several = learner(lambda: nn.Linear(FEATURES, 2), loss="bce_with_logits")
    on = (features[:, :2] > 0.3).astype(float)
    trainer = several.bind(Instances.of((features, on)))
    test = trainer.prepare(Instances.of((features, on)))
    chance = (on.sum(0) + 1) / (N + 2)
    expected = -(on * np.log(chance) + (1 - on) * np.log(1 - chance)).mean(1)
    risks = trainer.risks(trainer.constant("prior"), test)
    np.testing.assert_allclose(risks[0], expected, atol=1e-12)
    assert trainer.output is None


@pytest.mark.parametrize("vectorized", ["auto", False])
def test_what_diverges_is_a_failure_and_its_risks_are_nan(vectorized):
    features, labels = table()
    features[7] *= 1e200
    features[8] *= 1e200  # a step on either overflows
    setup = learner(
        lambda: nn.Linear(FEATURES, 1), loss="mse", vectorized=vectorized, chunk=8, batch_size=2
    )
    masks = np.random.default_rng(0).random((6, N)) < 0.7
    masks[:, 7:9] = False
    masks[[1, 4], 7] = True
    trainer = setup.bind(Instances.of((features / 1e200, labels * 1.0)))
    trainer.train._leaves[0] = features
    found = trainer.fit(masks, np.arange(6))
    assert list(found.failures) == [1, 4]
    assert "diverged" in found.failures[1]
    risks = trainer.risks(found, trainer.prepare(Instances.of((TEST[0], TEST[1] * 1.0))))
    assert np.isnan(risks[[1, 4]]).all() and np.isfinite(risks[[0, 2, 3, 5]]).all()
    assert np.isnan(trainer.to_arrays(found)["weight"][[1, 4]]).all()
    values = trainer.outputs(found, trainer.prepare(Instances.of((TEST[0], TEST[1] * 1.0))))
    assert np.isnan(values).any(1).tolist() == [False, True, False, False, True, False]


def test_an_instance_that_is_left_out_cannot_spoil_common_batches():
    features, labels = table()
    setup = learner(
        lambda: nn.Linear(FEATURES, 1), loss="mse", vectorized=True, batches="common"
    )  # fmt: skip
    masks = np.ones((5, N), bool)
    masks[:, 7] = False
    trainer = setup.bind(Instances.of((features, labels * 1.0)))
    expected = trainer.to_arrays(trainer.fit(masks, np.zeros(5, np.int64)))
    trainer.train._leaves[0] = features * np.where(np.arange(N) == 7, 1e200, 1.0)[:, None]
    found = trainer.fit(masks, np.zeros(5, np.int64))
    assert not found.failures
    assert_same(trainer.to_arrays(found), expected)


def test_a_training_that_raises_is_a_failure():
    counts, seeds = subsets()
    setup = learner(
        lambda: nn.Sequential(nn.Linear(FEATURES, 5), nn.BatchNorm1d(5), nn.Linear(5, CLASSES)),
        batch_size=N,
    )  # fmt: skip
    trainer = setup.bind(Instances.of(table()))
    found = trainer.fit(counts, seeds)
    assert list(found.failures) == [1]  # one instance cannot be normalised
    assert "ValueError: Expected more than 1 value per channel" in found.failures[1]
    everything_failed = trainer.fit(counts[[1, 1]], seeds[:2])
    test = trainer.prepare(Instances.of(TEST))
    assert np.isnan(trainer.risks(everything_failed, test)).all()
    assert trainer.outputs(everything_failed, test).shape == (2, 9, CLASSES)


def test_stored_and_read_again():
    counts, seeds = subsets()
    trainer, found, arrays = fitted(learner(), table(), counts, seeds)
    assert {name: array.shape for name, array in arrays.items()} == {
        "0.weight": (6, 5, 4), "0.bias": (6, 5), "2.weight": (6, 3, 5), "2.bias": (6, 3),
    }  # fmt: skip
    assert trainer.nbytes(found) == 8 * 6 * (20 + 5 + 15 + 3)
    test = trainer.prepare(Instances.of(TEST))
    again = trainer.from_arrays(arrays, 6, {2: "for a reason"})
    risks = trainer.risks(found, test)
    risks[2] = np.nan
    np.testing.assert_array_equal(trainer.risks(again, test), risks)
    constant = trainer.constant("prior")
    kept = trainer.from_arrays(trainer.to_arrays(constant), 1, {})
    np.testing.assert_array_equal(trainer.risks(kept, test), trainer.risks(constant, test))
    other = learner(lambda: nn.Linear(FEATURES, CLASSES)).bind(Instances.of(table()))
    with pytest.raises(InvalidInputError, match="another module"):
        other.from_arrays(arrays, 6, {})


def test_half_precision_is_kept():
    counts, seeds = subsets()
    trainer, found, arrays = fitted(learner(dtype=torch.bfloat16), table(), counts, seeds)
    assert arrays["0.weight"].dtype == np.float32  # numpy has no bfloat16
    test = trainer.prepare(Instances.of(TEST))
    module = mlp().bfloat16()
    module.load_state_dict({name: torch.tensor(array[0]) for name, array in arrays.items()})
    logits = module(torch.from_numpy(TEST[0]).bfloat16())
    np.testing.assert_allclose(trainer.outputs(found, test)[0], logits.detach().float(), atol=0.05)


def test_a_test_risk_that_is_not_finite_is_said_with_its_id():
    counts, seeds = subsets()
    setup = learner(lambda: nn.Linear(FEATURES, 1), loss="mse")
    trainer, found, _ = fitted(setup, (table()[0], table()[0][:, 0]), counts, seeds)
    targets = np.where(np.arange(9) == 4, np.inf, 1.0)
    test = trainer.prepare(Instances.of((TEST[0], targets), ids=[f"t{i}" for i in range(9)]))
    with pytest.raises(NonFiniteError, match="t4"):
        trainer.risks(found, test)
    assert np.isnan(trainer.risks(Fitted(found.models, 6, dict.fromkeys(range(6), "")), test)).all()


@pytest.mark.parametrize(
    "settings, message",
    [
        ({}, "exactly one of epochs= and steps="),
        ({"epochs": 1, "steps": 2}, "exactly one of epochs= and steps="),
        ({"epochs": 0}, "epochs: expected a positive integer"),
        ({"steps": 2.5}, "steps: expected a positive integer"),
        ({"epochs": 1, "batch_size": True}, "batch_size: expected a positive integer"),
        ({"epochs": 1, "chunk": 0}, "chunk: expected a positive integer"),
        ({"epochs": 1, "batches": "masked"}, "batches: expected 'own' or 'common'"),
        ({"epochs": 1, "vectorized": "yes"}, "vectorized: expected True, False or 'auto'"),
        ({"epochs": 1, "loss": None}, "exactly one of loss= .* and risk="),
        ({"epochs": 1, "loss": "hinge"}, "unknown name 'hinge'"),
        ({"epochs": 1, "module_factory": mlp()}, "copy.deepcopy.*got Sequential"),
        ({"epochs": 1, "module_factory": "net"}, "module_factory: expected a function"),
        ({"epochs": 1, "optimizer_factory": None}, "optimizer_factory: expected a function"),
        ({"epochs": 1, "optimizer_factory": lambda p: 0.1}, "it returned float"),
        ({"epochs": 1, "module_factory": nn.ReLU}, "no parameters to train"),
        (
            {"epochs": 1, "optimizer_factory": lambda p: sgd(mlp().parameters())},
            "not parameters of the module",
        ),
        (
            {"epochs": 1, "loss": lambda output, target: output.mean()},
            r"must have shape \(batch,\)",
        ),
    ],
)
def test_what_cannot_be_used_is_refused(settings, message):
    settings = {"module_factory": mlp, "optimizer_factory": sgd, "loss": "cross_entropy"} | settings
    features, labels = table()
    setup = TorchLearner(settings.pop("module_factory"), settings.pop("optimizer_factory"),
                         **settings)  # fmt: skip
    with pytest.raises(InvalidInputError, match=message):
        setup.bind(Instances.of((features.astype(np.float32), labels)))


class Unregistered(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(FEATURES, CLASSES)
        self.noise = torch.randn(CLASSES, dtype=torch.float64)

    def forward(self, features):
        return self.linear(features) + self.noise


def test_factories_that_would_give_wrong_submodels_are_refused():
    same = mlp()
    drawn = np.random.default_rng()

    def unseeded():
        module = mlp()
        module[0].weight.data.fill_(drawn.normal())
        return module

    for module, message in [
        (lambda: same, "the same module twice"),
        (unseeded, "two modules from the same seed differ"),
        (Unregistered, "register_buffer"),
    ]:
        with pytest.raises(InvalidInputError, match=message):
            learner(module).bind(Instances.of(table()))


def test_data_that_cannot_be_trained_on_are_refused():
    features, labels = table()
    bad = labels.copy()
    bad[5] = CLASSES
    with pytest.raises(InvalidInputError, match="label 3 is out of range"):
        learner().bind(Instances.of((features, bad)))
    trainer = learner().bind(Instances.of((features, labels)))
    with pytest.raises(InvalidInputError, match="validation: label 3 is not a class"):
        trainer.prepare(Instances.of((features, bad)), "validation")
    broken = features.copy()
    broken[6, 1] = np.nan
    ids = [f"i{i}" for i in range(N)]
    with pytest.raises(NonFiniteError, match="i6"):
        learner().bind(Instances.of((broken, labels), ids=ids))
    with pytest.raises(InvalidInputError, match="empty"):
        learner().bind(Instances.of((features[:0], labels[:0])))
    with pytest.raises(InvalidInputError, match="a step of training failed"):
        learner(risk=lambda module, batch: module(batch[0]).detach().sum(1)).bind(
            Instances.of((features, labels))
        )


class Clipped(torch.optim.SGD):
    """Clips the norm over all parameters."""

    def step(self, closure=None):
        torch.nn.utils.clip_grad_norm_(self.param_groups[0]["params"], 0.1)
        return super().step(closure)


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(FEATURES, CLASSES)

    def forward(self, features):
        output = self.linear(features)
        return output if output.sum() > 0 else 2 * output


def hooked(parameters):
    optimizer = sgd(parameters)
    optimizer.register_step_pre_hook(lambda *arguments: None)
    return optimizer


@pytest.mark.parametrize(
    "settings, reason",
    [
        ({"optimizer": lambda p: torch.optim.LBFGS(p)}, "LBFGS is not known to step each entry"),
        ({"optimizer": lambda p: Clipped(p, lr=0.1)}, "Clipped is not known"),
        ({"optimizer": hooked}, "hooks"),
        ({"module": lambda: nn.Sequential(mlp(), nn.Dropout(0.1))}, "draws random numbers"),
        ({"module": lambda: nn.Sequential(mlp(), nn.BatchNorm1d(3)), "batches": "common"},
         "would leak into common batches"),
        ({"module": lambda: Branching()}, "torch.func cannot vectorise it"),
        ({"loss": lambda output, target: (lambda risks: risks - risks.mean() / 2)(
            nn.functional.cross_entropy(output, target, reduction="none")), "batches": "common"},
         "depend on each other"),
    ],
)  # fmt: skip
def test_why_submodels_are_trained_one_by_one(settings, reason):
    instances = Instances.of(table())
    trainer = learner(**settings).bind(instances)
    assert trainer.chunk == 0 and reason in trainer.traits.alone
    with pytest.raises(InvalidInputError, match="vectorized=True: .*" + reason):
        learner(vectorized=True, **settings).bind(instances)


def test_how_many_are_trained_at_once_follows_from_the_memory_they_take():
    instances = Instances.of(table())
    small = learner(batch_size=8).bind(instances)
    assert small.chunk == small.at_once == 128
    wide = lambda: nn.Linear(FEATURES, 40_000)  # noqa: E731
    large = learner(wide, batch_size=8).bind(instances)
    assert large.chunk == 0  # too large to gain
    assert learner(wide, batch_size=8, chunk=3).bind(instances).chunk == 3
    assert learner(wide, batch_size=8, vectorized=True).bind(instances).chunk == 1
    entries = 3 * 10 * (3 * 5 * 1000 + 2 * 1000 * 8)
    middle = learner(lambda: nn.Linear(FEATURES, 1000), batch_size=8).bind(instances)
    assert middle.chunk == 12 * 2**20 // (8 * entries // 30)


def test_the_recipe_changes_with_what_decides_the_submodels():
    def recipe(**settings):
        return learner(**settings).recipe()

    wider = lambda: nn.Sequential(nn.Linear(FEATURES, 6), nn.Linear(6, CLASSES))  # noqa: E731
    start = mlp()
    moved = copy.deepcopy(start)
    moved[0].bias.data += 1
    recipes = [
        recipe(), recipe(epochs=4), recipe(steps=3), recipe(batch_size=5), recipe(module=wider),
        recipe(optimizer=lambda p: torch.optim.SGD(p, lr=0.1)),
        recipe(optimizer=lambda p: torch.optim.SGD(p, lr=0.2)),
        recipe(loss="mse"), recipe(risk=lambda module, batch: module(batch[0]).sum(1)),
        recipe(batches="common"), recipe(dtype=torch.float32),
        recipe(module=lambda: copy.deepcopy(start)), recipe(module=lambda: copy.deepcopy(moved)),
    ]  # fmt: skip
    assert len(set(recipes)) == len(recipes)
    assert recipe() == recipe(vectorized=False) == recipe(chunk=5)


def test_a_set_that_is_too_large_is_read_batch_by_batch(monkeypatch):
    from proponent.models import torch_rows

    counts, seeds = subsets()
    _, _, expected = fitted(learner(), table(), counts, seeds)
    monkeypatch.setattr(torch_rows, "LARGEST", 100)
    trainer, found, arrays = fitted(learner(), table(), counts, seeds)
    assert not isinstance(trainer.train, HeldRows) and trainer.chunk == 0
    assert_same(arrays, expected)
    assert trainer.risks(found, trainer.prepare(Instances.of(TEST))).shape == (6, 9)


def test_parameters_can_be_set_as_those_of_an_estimator():
    setup = learner()
    assert "batch_size=4" in repr(setup) and setup.get_params()["epochs"] == 3
    changed = copy.copy(setup).set_params(batches="common")
    assert (setup.batches, changed.batches) == ("own", "common")
