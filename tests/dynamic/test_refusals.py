"""What the gradient methods refuse, naming the instances, and what they put back after it."""

import numpy as np
import pytest
import torch
from contract import ROWS, Task, state_of
from contract_studies import NoisyCrossEntropy, word_run
from numpy.testing import assert_array_equal
from torch import nn
from torch.nn import functional
from traced_runs import (
    as_batch,
    copied,
    cross_entropies,
    error,
    in_batches,
    make_set,
    mlp,
    trace,
)

import proponent as pp
from proponent.exceptions import InvalidInputError, NonFiniteError, RunError
from proponent.gradients.products import GradientQuery
from proponent.gradients.projection import Projection

# These study other runs or risks, or go through a whole run: below they have tests of their own.
OTHERS = {"IdealTracIn", "TracInWE", "VAETracIn", "HyDRA", "SGDInfluence", "SOURCE"}
METHODS = sorted(
    name for name in ROWS if getattr(pp, name).card.family == "dynamic" and name not in OTHERS
)
AT_MODEL = ("GradientDot", "GradientCosine")
NORMALISED = ("GAS", "GradientCosine", "RenormalizedTracIn")
BAD = 7  # not among the first instances, on which fit tries the model

TRAIN, TEST = make_set(), make_set(1, n=9)
TRAIN_IDS = [f"train-{i}" for i in range(13)]
TEST_IDS = [f"test-{i}" for i in range(9)]


@pytest.fixture(scope="module")
def traced(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "mlp"
    return trace(path, mlp(), TRAIN, in_batches(13, 5))


def nan_gradient(module, batch):
    """A risk that is finite, whose gradient is NaN where the last feature is 0."""
    output, flags = module(batch[0]), batch[0][:, 3]
    sound = functional.cross_entropy(output, batch[1], reduction="none")
    return sound + torch.sqrt(flags.abs() + 0 * output[:, 0]) - flags.abs().sqrt()


def infinite_gradient(module, batch):
    """A risk that is finite, whose gradient is infinite where the last feature is 0."""
    output, flags = module(batch[0]), batch[0][:, 3]
    sound = functional.cross_entropy(output, batch[1], reduction="none")
    return sound + torch.sqrt(flags.square() + output[:, 0] - output[:, 0].detach())


def with_zero(data, position=BAD):
    X, y = data
    X = X.copy()
    X[position, 3] = 0.0
    return X, y


def with_nan(data, position=BAD):
    X, y = data
    X = X.copy()
    X[position, 1] = np.nan
    return X, y


def study(name, path, train, risk=None):
    """Return what the method takes; the run was trained on a risk without faults."""
    if name in AT_MODEL:
        chosen = {"risk": risk} if risk else {"loss": "cross_entropy"}
        return pp.TorchModel(mlp(), **chosen)
    traced = trace(path, mlp(), train, in_batches(13, 5), load={"risk": risk} if risk else None)
    return traced.run


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("risk", [nan_gradient, infinite_gradient], ids=["NaN", "infinite"])
def test_a_gradient_that_is_not_finite_is_named(name, risk, tmp_path):
    net = mlp()
    train, test = with_zero(TRAIN), with_zero(TEST)
    batch = as_batch(net, train)
    assert risk(net, batch).isfinite().all()
    (gradient,) = torch.autograd.grad(risk(net, batch)[BAD], [net[2].bias])
    assert not gradient.isfinite().all()

    settings = (
        {"checkpoints": [1]} if name not in (*AT_MODEL, "TracIn", "RenormalizedTracIn") else {}
    )
    method = getattr(pp, name)(**settings)
    method.fit(study(name, tmp_path / "bad", train, risk), train, ids=TRAIN_IDS)
    for asked in ({}, {"joint": True}, {"top_k": 1}):
        with pytest.raises(NonFiniteError, match=rf"\btrain-{BAD}\b"):
            method.influence(TEST, **asked)
    with pytest.raises(NonFiniteError, match=rf"\btrain-{BAD}\b"):
        method.memorization()

    sound = getattr(pp, name)(**settings)
    sound.fit(study(name, tmp_path / "good", TRAIN, risk), TRAIN, ids=TRAIN_IDS)
    for asked in ({}, {"top_k": 1}):
        with pytest.raises(NonFiniteError, match=rf"\btest-{BAD}\b"):
            sound.influence(test, ids=TEST_IDS, **asked)
    with pytest.raises(NonFiniteError, match="test"):
        sound.influence(test, ids=TEST_IDS, joint=True)
    # Without it, all is well.
    rest = tuple(np.delete(column, BAD, axis=0) for column in test)
    assert np.isfinite(sound.influence(rest).values).all()


@pytest.mark.parametrize("name", METHODS)
def test_a_risk_that_is_not_finite_is_named(name, tmp_path):
    # Trained before the fault: a fingerprint looks at the content.
    train, test = with_nan(TRAIN), with_nan(TEST)
    if name in AT_MODEL:
        model = pp.TorchModel(mlp(), loss="cross_entropy")
    else:
        net = mlp()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        with pp.Recorder(
            tmp_path, net, optimizer, loss="cross_entropy", train=train, every=1
        ) as recorder:
            recorder.step(range(13))
            cross_entropies(net, as_batch(net, TRAIN)).mean().backward()
            optimizer.step()
        model = pp.TrainingRun.load(tmp_path, net)
    method = getattr(pp, name)().fit(model, train, ids=TRAIN_IDS)
    for asked in ({}, {"joint": True}, {"top_k": 1}):
        with pytest.raises(NonFiniteError, match=rf"risk.*\btrain-{BAD}\b"):
            method.influence(TEST, **asked)
        with pytest.raises(NonFiniteError, match=rf"risk.*\btest-{BAD}\b"):
            method.influence(test, ids=TEST_IDS, **asked)
    with pytest.raises(NonFiniteError, match=rf"risk.*\btrain-{BAD}\b"):
        method.memorization()


UNROLLED = {
    "HyDRA": lambda: pp.HyDRA(),
    "HyDRA, fast": lambda: pp.HyDRA("fast"),
    "HyDRA, tracked": lambda: pp.HyDRA(track=["train-1"]),
    "SGDInfluence": lambda: pp.SGDInfluence(),
    "SGDInfluence, first order": lambda: pp.SGDInfluence(hessian=False),
}


@pytest.mark.parametrize("name", UNROLLED)
@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam])
@pytest.mark.parametrize("risk", [nan_gradient, infinite_gradient], ids=["NaN", "infinite"])
def test_a_replayed_gradient_that_is_not_finite_is_named(name, optimizer, risk, tmp_path):
    train, test = with_zero(TRAIN), with_zero(TEST)

    def run(path, train):
        net = mlp()
        options = {"optimizer": optimizer(net.parameters(), lr=0.05), "optimizer_state": True}
        return trace(path, net, train, in_batches(13, 5), load={"risk": risk}, **options).run

    bad = run(tmp_path / "bad", train)
    (step,) = [step.index for step in bad.steps if BAD in step.indices]
    named = rf"training instances train-{BAD} at step {step}\b"
    if "tracked" in name:
        with pytest.raises(NonFiniteError, match=named):
            UNROLLED[name]().fit(bad, train, ids=TRAIN_IDS)
    else:
        method = UNROLLED[name]().fit(bad, train, ids=TRAIN_IDS)
        for asked in ({}, {"joint": True}, {"top_k": 1}, {"by_checkpoint": True}):
            with pytest.raises(NonFiniteError, match=named):
                method.influence(TEST, **asked)
        with pytest.raises(NonFiniteError, match=rf"\btrain-{BAD}\b"):
            method.memorization()

    sound = UNROLLED[name]().fit(run(tmp_path / "good", TRAIN), TRAIN, ids=TRAIN_IDS)
    for asked in ({}, {"joint": True}, {"top_k": 1}):
        with pytest.raises(NonFiniteError, match=rf"end of training .*\btest-{BAD}\b"):
            sound.influence(test, ids=TEST_IDS, **asked)
    rest = tuple(np.delete(column, BAD, axis=0) for column in test)
    scored = [1] if "tracked" in name else range(13)
    assert np.isfinite(sound.influence(rest).values[:, scored]).all()


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"curvature": "empirical_fisher"}, rf"\btrain-{BAD}\b"),
        ({"curvature": "hessian", "solver": "explicit"}, rf"\btrain-{BAD}\b"),
        ({"curvature": "empirical_fisher", "solver": "explicit"}, "segment of steps 2 to 3"),
    ],
)
def test_a_segments_gradient_that_is_not_finite_is_refused(settings, named, tmp_path):
    train, test = with_zero(TRAIN), with_zero(TEST)
    with pytest.raises(NonFiniteError, match=named):
        pp.SOURCE(2, **settings).fit(
            study("SOURCE", tmp_path / "bad", train, nan_gradient), train, ids=TRAIN_IDS
        )
    sound = pp.SOURCE(2, **settings)
    sound.fit(study("SOURCE", tmp_path / "good", TRAIN, nan_gradient), TRAIN, ids=TRAIN_IDS)
    for asked in ({}, {"top_k": 1}, {"by_checkpoint": True}):
        with pytest.raises(NonFiniteError, match=rf"\btest-{BAD}\b"):
            sound.influence(test, ids=TEST_IDS, **asked)
    with pytest.raises(NonFiniteError, match="end of training"):
        sound.influence(test, joint=True)


class NoisyAndBad(NoisyCrossEntropy):
    """A mean over draws whose gradient is NaN where the last feature is 0."""

    def with_draws(self, module, batch, draw):
        output, flags = module(batch[0]), batch[0][:, 3]
        bad = torch.sqrt(flags.abs() + 0 * output[:, 0]) - flags.abs().sqrt()
        return super().with_draws(module, batch, draw) + bad


@pytest.mark.parametrize("name", ["TracInWE", "VAETracIn"])
def test_words_and_draws_whose_gradient_is_not_finite_are_named(name, tmp_path):
    def fitted(folder, train):
        task = Task(folder, train, TEST, hidden=6, epochs=1)
        recorded = word_run(task) if name == "TracInWE" else task.run()
        risk = nan_gradient if name == "TracInWE" else NoisyAndBad()
        run = pp.TrainingRun.load(recorded.path, recorded.model.module, risk=risk)
        return getattr(pp, name)().fit(run, train, ids=TRAIN_IDS)

    bad, sound = fitted(tmp_path / "bad", with_zero(TRAIN)), fitted(tmp_path / "good", TRAIN)
    for asked in ({}, {"joint": True}, {"top_k": 1}):
        with pytest.raises(NonFiniteError, match=rf"\btrain-{BAD}\b.* step \d"):
            bad.influence(TEST, **asked)
    with pytest.raises(NonFiniteError, match=rf"\btrain-{BAD}\b"):
        bad.memorization()
    with pytest.raises(NonFiniteError, match=rf"\btest-{BAD}\b"):
        sound.influence(with_zero(TEST), ids=TEST_IDS)
    with pytest.raises(NonFiniteError, match="test"):
        sound.influence(with_zero(TEST), joint=True)
    rest = tuple(np.delete(column, BAD, axis=0) for column in with_zero(TEST))
    assert np.isfinite(sound.influence(rest).values).all()


def test_a_recorded_test_risk_that_is_not_finite_is_named(tmp_path):
    """Ideal TracIn takes no gradients: its numbers are the recorded risks."""
    test = pp.Instances.of(with_nan(TEST), ids=TEST_IDS, role="test")
    run = trace(tmp_path, mlp(), TRAIN, in_batches(13, 1), test=test).run
    with pytest.raises(NonFiniteError, match=rf"first that of test instance test-{BAD} after"):
        pp.IdealTracIn().fit(run, TRAIN)


def steep(module, batch):
    """A risk with a finite gradient, whose square overflows where the last feature is 0."""
    risk = functional.cross_entropy(module(batch[0]), batch[1], reduction="none")
    return torch.where(batch[0][:, 3] == 0, 1e25 * risk, risk)


@pytest.mark.parametrize("name", METHODS)
def test_products_that_overflow_are_refused(name, tmp_path):
    train = with_zero(TRAIN)
    if name in AT_MODEL:
        model = pp.TorchModel(mlp().float(), risk=steep)
    else:
        model = trace(tmp_path, mlp().float(), train, in_batches(13, 5), load={"risk": steep}).run
    method = getattr(pp, name)().fit(model, train, ids=TRAIN_IDS)
    if name in NORMALISED:
        expected = getattr(pp, name)(dtype="float64").fit(model, train).influence(TEST).values
        assert (expected[:, BAD] != 0).all()
        # A cosine must not come out as 0 because a norm overflowed: right, or refused.
        try:
            found = method.influence(TEST).values
        except NonFiniteError:
            return
        assert error(found, expected) < 1e-4
    else:
        with pytest.raises(NonFiniteError, match=rf"\btrain-{BAD}\b|overflow"):
            method.influence(train)
        with pytest.raises(NonFiniteError, match=rf"\btrain-{BAD}\b"):
            method.memorization()


def test_other_training_sets_are_refused(traced):
    X, y = TRAIN
    others = [make_set(5), (X[:12], y[:12]), (X, (y + 1) % 3), (X[::-1].copy(), y[::-1].copy())]
    for name in METHODS:
        if name in AT_MODEL:
            continue
        for other in others:
            with pytest.raises(RunError, match="another training set"):
                getattr(pp, name)().fit(traced.run, other)


def test_a_run_without_its_training_set_is_checked_for_its_instances(tmp_path):
    net = mlp()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.2)
    with pp.Recorder(tmp_path, net, optimizer, loss="cross_entropy", every=1) as recorder:
        cross_entropies(net, as_batch(net, TRAIN)).mean().backward()
        recorder.step(range(13))
        optimizer.step()
    run = pp.TrainingRun.load(tmp_path, net)
    X, y = TRAIN
    with pytest.raises(RunError, match=r"another training set: it has used instance 12.*has 12"):
        pp.TracInCP().fit(run, (X[:12], y[:12]))
    assert pp.TracInCP().fit(run, TRAIN).influence(TEST).shape == (9, 13)


@pytest.mark.parametrize(
    ("risk", "message"),
    [
        (lambda module, batch: functional.cross_entropy(module(batch[0]), batch[1]), "reduction"),
        (
            lambda module, batch: (
                cross_entropies(module, batch) / cross_entropies(module, batch).mean()
            ),
            "changes with the other instances of its batch",
        ),
        (
            lambda module, batch: functional.cross_entropy(
                module(batch[0]), batch[1], reduction="none"
            )[:, None].expand(-1, 2),
            r"must have shape \(batch,\)",
        ),
    ],
    ids=["scalar", "normalised over the batch", "matrix"],
)
def test_a_risk_that_is_not_one_an_instance_is_refused(traced, risk, message):
    run = pp.TrainingRun.load(traced.path, mlp(), risk=risk)
    with pytest.raises(InvalidInputError, match=message):
        pp.TracInCP().fit(run, TRAIN)
    with pytest.raises(InvalidInputError, match=message):
        pp.GradientDot().fit(pp.TorchModel(mlp(), risk=risk), TRAIN)


def test_a_label_out_of_range_is_named(traced):
    X, y = TEST
    method = pp.TracInCP().fit(traced.run, TRAIN)
    with pytest.raises(InvalidInputError, match="label 3 is out of range for 3 classes"):
        method.influence((X, np.where(np.arange(9) == 4, 3, y)))


def test_a_fit_that_fails_leaves_the_method_as_it_was(traced, tmp_path):
    other = trace(tmp_path, mlp(), make_set(4), in_batches(13, 5), rate=0.9)
    method = pp.TracInCP().fit(traced.run, TRAIN)
    expected = method.influence(TEST).values
    method.set_params(dtype="float16")
    with pytest.raises(InvalidInputError, match="dtype"):
        method.fit(other.run, other.train)
    method.set_params(dtype=None)
    assert_array_equal(method.influence(TEST).values, expected)


# What is put back


class Interrupting(nn.Module):
    """Raises at the n-th forward pass."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Dropout(0.5), nn.Linear(5, 3)
        )
        self.left = 10**9

    def forward(self, x):
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return self.net(x)


@pytest.mark.parametrize("name", METHODS)
def test_an_interrupt_at_any_pass_puts_everything_back(name, tmp_path):
    net = Interrupting().double()
    if name in AT_MODEL:
        model, target = pp.TorchModel(net, loss="cross_entropy"), net
    else:
        traced = trace(tmp_path, net, TRAIN, in_batches(13, 7))
        model, target = traced.run, traced.module
    target.train()
    target.net[0].bias.requires_grad_(False)
    before = state_of(target)
    method = getattr(pp, name)(batch_size=4).fit(model, TRAIN)
    expected = method.influence(TEST).values
    assert state_of(target) == before

    def fitting():
        getattr(pp, name)().fit(model, TRAIN)

    def influence():
        method.influence(TEST)

    for ask in (fitting, influence, method.memorization):
        for passes in range(100):
            target.left = passes
            try:
                ask()
            except KeyboardInterrupt:
                assert state_of(target) == before, (ask, passes)
            else:
                break
        assert 4 <= passes < 100, "it was not interrupted at every one of its passes"
    target.left = 10**9
    assert_array_equal(method.influence(TEST).values, expected)


@pytest.mark.parametrize("name", METHODS)
def test_an_interrupt_between_the_passes_puts_everything_back(name, traced, monkeypatch):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    model = pp.TorchModel(mlp(), loss="cross_entropy") if name in AT_MODEL else traced.run
    target = model.module if name in AT_MODEL else traced.module
    method = getattr(pp, name)().fit(model, TRAIN)
    target.train()
    before = state_of(target)
    with monkeypatch.context() as patch:
        patch.setattr(Projection, "__call__", interrupt)
        patch.setattr(GradientQuery, "meet", interrupt)
        with pytest.raises(KeyboardInterrupt) as caught:
            method.influence(TEST)
        # Also while the error, and with it the frames, is still held.
        assert caught.value is not None
        assert state_of(target) == before
    assert np.isfinite(method.influence(TEST).values).all()


class Counting(nn.Linear):
    """Counts its passes in a buffer, in evaluation mode too, and writes another anew."""

    def __init__(self):
        super().__init__(4, 3)
        self.register_buffer("passes", torch.zeros(1))
        self.register_buffer("latest", torch.zeros(1))

    def forward(self, x):
        self.passes += 1
        self.latest = x.detach().mean(0)[:1]
        return super().forward(x)


@pytest.mark.parametrize("name", METHODS)
def test_buffers_that_move_in_evaluation_mode_are_put_back(name, tmp_path):
    net = Counting().double()
    if name in AT_MODEL:
        model = pp.TorchModel(net, loss="cross_entropy")
    else:
        traced = trace(tmp_path, net, TRAIN, in_batches(13, 5))
        model, net = traced.run, traced.module
    before = state_of(net)
    method = getattr(pp, name)().fit(model, TRAIN)
    assert state_of(net) == before
    method.influence(TEST), method.memorization()
    assert state_of(net) == before


def test_the_parameters_of_the_run_are_put_aside_not_written_to(traced):
    before = copied(traced.module)
    pp.TracInCP().fit(traced.run, TRAIN).influence(TEST)
    for name, tensor in traced.module.state_dict().items():
        assert torch.equal(tensor, before[name])
        assert not torch.equal(tensor, traced.states[0][name])
