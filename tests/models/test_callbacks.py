"""Recording inside the training loops of Lightning and transformers."""

import sys
import warnings

import numpy as np
import pytest
import torch
from recorded_runs import assert_same_state, copy_state, make_set
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader

from proponent.dynamic.replay import Replay
from proponent.exceptions import InvalidInputError
from proponent.models.callbacks import LightningRecorder, TransformersRecorder
from proponent.models.recorder import indexed
from proponent.models.run import TrainingRun

N, BATCH = 22, 4  # the last batch of an epoch has two instances


def cross_entropies(logits, y):
    return functional.cross_entropy(logits, y, reduction="none")


def mlp(values, x):
    """Return the logits of a network of two layers, whatever its names start with."""
    first, first_bias, second, second_bias = values.values()
    return functional.linear(
        torch.tanh(functional.linear(x, first, first_bias)), second, second_bias
    )


def replay_sgd(run, forward, data, loss):
    """Follow the logged steps by hand; return the parameters after each."""
    x, y = map(torch.as_tensor, data)
    theta = run.checkpoints[0].load()
    states = [theta]
    for step in run.steps:
        values = {name: value.clone().requires_grad_() for name, value in theta.items()}
        rows = torch.tensor(step.indices)
        risks = loss(forward(values, x[rows]), y[rows])
        total = step.clip_scale * (risks * torch.tensor(step.weights)).sum()
        gradients = torch.autograd.grad(total, list(values.values()))
        rates = step.learning_rate_of(theta)
        theta = {
            name: values[name].detach() - rates[name] * gradient
            for name, gradient in zip(values, gradients, strict=True)
        }
        states.append(theta)
    return states


def assert_replay_agrees(run, data, tolerance, loss=cross_entropies, forward=mlp):
    states = replay_sgd(run, forward, data, loss)
    for checkpoint in run.checkpoints:
        for name, value in checkpoint.load().items():
            found = states[checkpoint.t - 1][name]
            assert (found - value).norm() <= tolerance * value.norm(), (checkpoint.t, name)


@pytest.mark.parametrize(
    ("recorder", "packages"),
    [
        (LightningRecorder, ["lightning.pytorch", "pytorch_lightning"]),
        (TransformersRecorder, ["transformers"]),
    ],
)
def test_a_missing_framework_is_named(monkeypatch, tmp_path, recorder, packages):
    for name in packages:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match="pip install"):
        recorder(tmp_path)


class Lightning:
    """A Lightning module over a small network, and trainers for it."""

    def __init__(self, package):
        torch.manual_seed(1)
        self.package = package

        class Module(package.LightningModule):
            def __init__(self):
                super().__init__()
                self.net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()
                self.skipped = ()
                self.before = []

            def forward(self, x):
                return self.net(x)

            def training_step(self, batch, batch_idx):
                if self.global_step in self.skipped:
                    self.skipped = ()
                    return None
                x, y = (batch["x"], batch["y"]) if isinstance(batch, dict) else batch[1:]
                return functional.cross_entropy(self(x), y)

            def on_before_optimizer_step(self, optimizer):
                self.before.append(copy_state(self))

            def configure_optimizers(self):
                optimizer = torch.optim.SGD(self.parameters(), lr=0.2)
                return [optimizer], [torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)]

        self.module_class = Module

    def fit(self, recorder, module, data, index=indexed, **options):
        loader = DataLoader(
            index(data),
            batch_size=BATCH,
            shuffle=True,
            generator=torch.Generator().manual_seed(2),
        )
        quiet = {
            "accelerator": "cpu",
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
        }
        trainer = self.package.Trainer(
            callbacks=[recorder] if recorder else [], max_epochs=2, **quiet, **options
        )
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="(pytorch_)?lightning")
            warnings.filterwarnings("ignore", category=DeprecationWarning, module="torch")
            trainer.fit(module, loader)
        return trainer


@pytest.fixture(params=["lightning.pytorch", "pytorch_lightning"])
def lightning(request):
    return Lightning(pytest.importorskip(request.param))


def test_lightning_steps_are_recorded(lightning, tmp_path):
    data = make_set(n=N)
    module = lightning.module_class()
    recorder = LightningRecorder(tmp_path, loss="cross_entropy", train=data, every=1)
    lightning.fit(recorder, module, data)
    run = TrainingRun.load(tmp_path, lightning.module_class())
    assert run.complete and len(run.steps) == 12
    for checkpoint, state in zip(run.checkpoints, module.before, strict=False):
        assert_same_state(checkpoint.load(), state)
    assert_same_state(run.final_state(), copy_state(module))
    assert [step.learning_rates for step in run.steps] == [(0.2,)] * 6 + [(0.1,)] * 6
    seen = np.concatenate([step.indices for step in run.steps[:6]])
    assert sorted(seen) == list(range(N))
    assert_replay_agrees(run, data, 1e-12)
    torch.manual_seed(1)
    unrecorded = lightning.module_class()
    unrecorded.load_state_dict(run.checkpoints[0].load())
    lightning.fit(None, unrecorded, data)
    assert_same_state(copy_state(unrecorded), copy_state(module))


def test_lightning_training_with_a_seed_is_replayed_bit_for_bit(lightning, tmp_path):
    data = make_set(n=N)
    module = lightning.module_class()
    module.net.append(nn.Dropout(0.3))
    recorder = LightningRecorder(tmp_path, loss="cross_entropy", train=data, every=3, seed=6)
    lightning.fit(recorder, module, data)
    again = lightning.module_class()
    again.net.append(nn.Dropout(0.3))
    replay = Replay(TrainingRun.load(tmp_path, again), data, by="the test")
    assert len(list(replay.forward())) == 12
    assert replay.report["exact"] and replay.report["states_compared"] == 4


@pytest.mark.parametrize("limit", [None, 0.05])
def test_lightning_accumulation_and_clipping_are_recorded(lightning, tmp_path, limit):
    data = {"x": make_set(n=N)[0], "y": make_set(n=N)[1]}
    module = lightning.module_class()
    module.skipped = (1,)  # a batch without a loss takes no part in its step
    recorder = LightningRecorder(tmp_path, loss="cross_entropy", every=1, module="net")
    lightning.fit(recorder, module, data, accumulate_grad_batches=2, gradient_clip_val=limit)
    run = TrainingRun.load(tmp_path, lightning.module_class().net)
    assert [len(step.indices) for step in run.steps] == [8, 4, 6, 8, 8, 6]
    assert run.steps[2].divisor.tolist() == [8, 8, 8, 8, 4, 4]
    assert all((step.clip_scale < 1) == (limit is not None) for step in run.steps)
    rows = data["x"], data["y"]
    tolerance = 1e-12 if limit is None else 1e-6  # torch clips with a factor in float32
    assert_replay_agrees(run, rows, tolerance)


def test_lightning_clipping_without_a_factor_is_recorded_as_unknown(lightning, tmp_path):
    data = make_set(n=N)

    class Own(lightning.module_class):
        def configure_gradient_clipping(self, optimizer, **options):
            self.clip_gradients(optimizer, gradient_clip_val=0.1, gradient_clip_algorithm="norm")

    for number, (module, options) in enumerate(
        [
            (lightning.module_class(), {"gradient_clip_algorithm": "value"}),
            (Own(), {}),
        ]
    ):
        recorder = LightningRecorder(tmp_path / str(number), loss="cross_entropy")
        with pytest.warns(RuntimeWarning, match="no factor that can be recorded"):
            lightning.fit(recorder, module, data, gradient_clip_val=0.1, **options)
        run = TrainingRun.load(tmp_path / str(number), module)
        assert [step.clip_scale for step in run.steps] == [None] * 12


def test_lightning_training_that_fails_leaves_a_run_that_loads(lightning, tmp_path):
    class Failing(lightning.module_class):
        def training_step(self, batch, batch_idx):
            if self.global_step == 3:
                raise RuntimeError("failed")
            return super().training_step(batch, batch_idx)

    module = Failing()
    recorder = LightningRecorder(tmp_path, loss="cross_entropy", train=make_set(n=N))
    with pytest.raises(RuntimeError, match="failed"):
        lightning.fit(recorder, module, make_set(n=N))
    run = TrainingRun.load(tmp_path, module)
    assert len(run.steps) == 3 and not run.complete


def test_lightning_loops_that_cannot_be_recorded_are_refused(lightning, tmp_path):
    class Two(lightning.module_class):
        automatic_optimization = False

    with pytest.raises(InvalidInputError, match="manual optimisation"):
        lightning.fit(LightningRecorder(tmp_path), Two(), make_set(n=N))
    with pytest.raises(InvalidInputError, match="no positions"):
        rows = [{"x": x, "y": y} for x, y in zip(*make_set(), strict=True)]
        lightning.fit(LightningRecorder(tmp_path), lightning.module_class(), rows, index=list)


def test_lightning_indices_can_be_read_otherwise(lightning, tmp_path):
    X, y = make_set(n=N)
    recorder = LightningRecorder(tmp_path, loss="mse", indices=lambda batch: batch[0] // 2)
    lightning.fit(recorder, lightning.module_class(), (X, y))
    run = TrainingRun.load(tmp_path, lightning.module_class())
    assert max(step.indices.max() for step in run.steps) == N // 2 - 1


class Classifier(nn.Module):
    """A model as the Trainer takes them: the loss is its first output."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()

    def forward(self, inputs, labels=None):
        logits = self.net(inputs)
        return functional.cross_entropy(logits, labels), logits


class TokenModel(nn.Module):
    """A language model whose loss is the sum over tokens by their number in the step."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.embedding = nn.Embedding(9, 5, dtype=torch.float64)
        self.head = nn.Linear(5, 9, bias=False, dtype=torch.float64)

    def logits(self, input_ids):
        return self.head(torch.tanh(self.embedding(input_ids)))

    def forward(self, input_ids, labels=None, num_items_in_batch=None, **kwargs):
        logits = self.logits(input_ids)
        losses = functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")
        return losses / num_items_in_batch, logits


def token_risks(logits, labels):
    losses = functional.cross_entropy(logits.transpose(1, 2), labels, reduction="none")
    return losses.sum(1) / (labels != -100).sum(1)


@pytest.fixture
def transformers():
    return pytest.importorskip("transformers")


def hf_fit(transformers, recorder, model, data, path, extra=(), **options):
    settings = {
        "learning_rate": 0.2,
        "optim": "sgd",
        "per_device_train_batch_size": BATCH,
        "num_train_epochs": 2,
        "remove_unused_columns": False,
        "report_to": [],
        "save_strategy": "no",
        "disable_tqdm": True,
        "use_cpu": True,
        "max_grad_norm": 0.0,
    }
    trainer = transformers.Trainer(
        model,
        transformers.TrainingArguments(str(path / "trainer"), **(settings | options)),
        train_dataset=data,
        eval_dataset=data,
        callbacks=[recorder, *extra],
    )
    trainer.train()
    return trainer


@pytest.mark.parametrize(
    ("options", "tolerance"),
    [
        ({}, 1e-12),
        ({"gradient_accumulation_steps": 2}, 1e-12),
        ({"max_grad_norm": 0.05}, 1e-6),
        ({"max_grad_norm": 0.05, "gradient_accumulation_steps": 3}, 1e-6),
        ({"eval_strategy": "steps", "eval_steps": 2}, 1e-12),
    ],
)
def test_transformers_steps_are_recorded(transformers, tmp_path, options, tolerance):
    X, y = make_set(n=N)
    model = Classifier()
    recorder = TransformersRecorder(tmp_path / "run", loss="cross_entropy", train=(X, y), every=1)
    data = indexed({"inputs": X, "labels": y})
    hf_fit(transformers, recorder, model, data, tmp_path, **options)
    assert not model._forward_pre_hooks
    assert not any(value._post_accumulate_grad_hooks for value in model.parameters())
    run = TrainingRun.load(tmp_path / "run", Classifier())
    accumulated = options.get("gradient_accumulation_steps", 1)
    assert run.complete and len(run.steps) == 2 * -(-6 // accumulated)
    assert_same_state(run.final_state(), copy_state(model))
    seen = np.concatenate([step.indices for step in run.steps])
    assert sorted(seen) == sorted([*range(N)] * 2)
    assert all((step.clip_scale < 1) == ("max_grad_norm" in options) for step in run.steps)
    assert run.steps[0].learning_rates[0] == 0.2 > run.steps[1].learning_rates[0]
    assert_replay_agrees(run, (X, y), tolerance)


def test_transformers_training_with_a_seed_is_replayed_bit_for_bit(transformers, tmp_path):
    X, y = make_set(n=N)
    model, again = Classifier(), Classifier()
    model.net.append(nn.Dropout(0.3))
    again.net.append(nn.Dropout(0.3))
    recorder = TransformersRecorder(
        tmp_path / "run", loss="cross_entropy", train=(X, y), every=3, seed=6
    )
    data = indexed({"inputs": X, "labels": y})
    hf_fit(transformers, recorder, model, data, tmp_path, optim="adamw_torch")

    def risk(module, batch):
        return functional.cross_entropy(module(*batch)[1], batch[1], reduction="none")

    replay = Replay(TrainingRun.load(tmp_path / "run", again, risk=risk), (X, y), by="the test")
    assert len(list(replay.forward())) == 12
    assert replay.report["exact"] and replay.report["states_compared"] == 4


@pytest.mark.parametrize("accumulated", [1, 2])
def test_transformers_token_losses_are_recorded_with_each_instances_tokens(
    transformers, tmp_path, accumulated
):
    generator = np.random.default_rng(0)
    tokens = generator.integers(0, 9, size=(N, 6))
    labels = np.where(generator.random((N, 6)) < 0.4, -100, generator.integers(0, 9, size=(N, 6)))
    labels[:, 0] = 3
    model = TokenModel()
    recorder = TransformersRecorder(tmp_path / "run", risk=lambda *_: None, every=1)
    data = indexed({"input_ids": tokens, "labels": labels})
    options = {"gradient_accumulation_steps": accumulated, "max_grad_norm": 0.5}
    hf_fit(transformers, recorder, model, data, tmp_path, **options)
    run = TrainingRun.load(tmp_path / "run", TokenModel(), loss="causal_lm")

    def logits(values, rows):
        return functional.linear(
            torch.tanh(functional.embedding(rows, values["embedding.weight"])),
            values["head.weight"],
        )

    assert_replay_agrees(run, (tokens, labels), 1e-6, token_risks, logits)
    counts = (labels[run.steps[0].indices] != -100).sum(1)
    np.testing.assert_allclose(run.steps[0].weights, counts / counts.sum(), rtol=1e-14)


def test_transformers_language_models_are_recorded(transformers, tmp_path):
    generator = np.random.default_rng(0)
    tokens = generator.integers(0, 11, size=(N, 7))
    labels = np.where(generator.random((N, 7)) < 0.4, -100, tokens)
    labels[:, 3] = tokens[:, 3]
    data = {"input_ids": tokens, "labels": labels}
    config = transformers.GPT2Config(
        vocab_size=11, n_positions=8, n_embd=8, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0
    )
    config.resid_pdrop = config.embd_pdrop = config.attn_pdrop = 0.0
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(config)
    recorder = TransformersRecorder(tmp_path / "run", loss="causal_lm", train=data, every=1)
    options = {"gradient_accumulation_steps": 2, "max_grad_norm": 0.5, "num_train_epochs": 1}
    hf_fit(transformers, recorder, model, indexed(data), tmp_path, **options)
    run = TrainingRun.load(tmp_path / "run", model)
    for step, before, after in zip(
        run.steps, run.checkpoints[:-1], run.checkpoints[1:], strict=True
    ):
        rows = torch.tensor(step.indices)
        batch = {name: torch.as_tensor(values)[rows] for name, values in data.items()}
        with run.at(before):
            risks = run.model.batch_risk(batch, len(rows))
            total = step.clip_scale * (risks * torch.tensor(step.weights)).sum()
            gradients = torch.autograd.grad(total, list(run.model.selected.values()))
        states = before.load(), after.load()
        for name, gradient in zip(run.model.selected, gradients, strict=True):
            moved = before.learning_rates[name] * gradient
            torch.testing.assert_close(
                states[0][name] - states[1][name], moved, rtol=1e-4, atol=1e-7
            )


def test_transformers_divisors_can_be_given(transformers, tmp_path):
    X, y = make_set(n=N)
    recorder = TransformersRecorder(
        tmp_path / "run", loss="mse", divisor=lambda inputs: inputs["labels"] + 1.0
    )
    data = indexed({"inputs": X, "labels": y})
    hf_fit(transformers, recorder, Classifier(), data, tmp_path)
    run = TrainingRun.load(tmp_path / "run", Classifier())
    for step in run.steps:
        np.testing.assert_allclose(step.weights, 1 / (y[step.indices] + 1.0), rtol=1e-14)


def test_transformers_final_state_is_that_before_the_best_is_loaded(transformers, tmp_path):
    X, y = make_set(n=N)
    model = Classifier()
    last = []

    class Watch(transformers.TrainerCallback):
        def on_optimizer_step(self, args, state, control, **kwargs):
            last[:] = [copy_state(model)]

    recorder = TransformersRecorder(tmp_path / "run", loss="mse")
    options = {
        "eval_strategy": "epoch",
        "save_strategy": "epoch",
        "load_best_model_at_end": True,
        "metric_for_best_model": "eval_loss",
        "greater_is_better": True,  # so that the first epoch is the best
    }
    data = indexed({"inputs": X, "labels": y})
    hf_fit(transformers, recorder, model, data, tmp_path, extra=[Watch()], **options)
    run = TrainingRun.load(tmp_path / "run", Classifier())
    assert_same_state(run.final_state(), last[0])
    assert not torch.equal(last[0]["net.0.weight"], model.net[0].weight)
    assert run.notes == ()


def test_transformers_training_that_fails_leaves_a_run_that_loads(transformers, tmp_path):
    X, y = make_set(n=N)
    model = Classifier()

    class Fail(transformers.TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 3:
                raise RuntimeError("failed")

    recorder = TransformersRecorder(tmp_path / "run", loss="mse")
    data = indexed({"inputs": X, "labels": y})
    with pytest.raises(RuntimeError, match="failed"):
        hf_fit(transformers, recorder, model, data, tmp_path, extra=[Fail()])
    assert model._forward_pre_hooks
    recorder.close()
    assert not model._forward_pre_hooks
    run = TrainingRun.load(tmp_path / "run", model)
    assert len(run.steps) == 3 and not run.complete


def test_transformers_loops_that_cannot_be_recorded_are_refused(transformers, tmp_path):
    X, y = make_set(n=N)
    data = indexed({"inputs": X, "labels": y})
    recorder = TransformersRecorder(tmp_path / "run", loss="mse")
    with pytest.raises(InvalidInputError, match="remove_unused_columns=False"):
        hf_fit(transformers, recorder, Classifier(), data, tmp_path, remove_unused_columns=True)
    rows = [{"inputs": x, "labels": int(label)} for x, label in zip(X, y, strict=True)]
    with pytest.raises(InvalidInputError, match=r"indexed\(dataset\)"):
        hf_fit(transformers, recorder, Classifier(), rows, tmp_path)
