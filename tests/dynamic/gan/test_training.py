"""Adversarial training: what is recorded, and that it replays bit by bit."""

import copy

import numpy as np
import pytest
import torch
from adversarial_runs import (
    N,
    adam,
    alternating,
    by_differences,
    make_data,
    make_players,
    moments,
    record,
    retrain,
    sgd,
    simultaneous,
)
from torch import nn
from torch.nn import functional

from proponent.data import Instances
from proponent.dynamic.gan.losses import LOSSES, AdversarialLoss, wasserstein_gp
from proponent.dynamic.gan.replay import AdversarialReplay
from proponent.dynamic.gan.run import AdversarialRun
from proponent.dynamic.gan.training import AdversarialTraining
from proponent.dynamic.gan_influence import GANInfluence
from proponent.exceptions import InvalidInputError, NonFiniteError, RunError
from proponent.models.run import TrainingRun


def make(path, *, players=None, optimizer=None, **options):
    generator, discriminator = players or make_players()
    optimizers = [(optimizer or sgd())(module) for module in (generator, discriminator)]
    given = {"train": (make_data(),), "noise": 2, **options}
    return AdversarialTraining(path, generator, discriminator, *optimizers, **given)


def replayed(run, train):
    """Go back through a run; return the parameters before each step, by step, and the report."""
    replay = AdversarialReplay(run, Instances.of(train), memory=4_000)
    states = {move.index: replay.adversaries.snapshot() for move in replay.backward()}
    return states, replay.report()


@pytest.mark.parametrize("plan", [alternating(), simultaneous()], ids=["alternating", "joint"])
@pytest.mark.parametrize("optimizer", [sgd(momentum=0.9), adam()], ids=["SGD", "Adam"])
def test_it_trains_as_a_plain_loop_does(plan, optimizer, tmp_path):
    recorded = record(tmp_path / "run", plan, optimizer)
    plain = retrain(recorded, np.ones(N))
    for module, expected in zip(recorded.trained, plain, strict=True):
        for found, wanted in zip(module.parameters(), expected.parameters(), strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-13)
    final = recorded.run.final_state("discriminator")
    assert all(torch.equal(final[k], v) for k, v in recorded.trained[1].state_dict().items())


class Augmented:
    """A data set whose items carry noise of torch's generator."""

    def __len__(self):
        return N

    def __getitem__(self, position):
        return (make_data()[position] + 0.1 * torch.randn(2, dtype=torch.float64),)


def test_dropout_augmentation_modes_and_schedules_are_replayed_bit_by_bit(tmp_path):
    torch.manual_seed(0)
    generator = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 2))
    discriminator = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 1))
    players = generator.double(), discriminator.double()
    optimizers = [adam()(module) for module in players]
    states = {}
    with AdversarialTraining(
        tmp_path / "run", *players, *optimizers, train=Augmented(), noise=2, seed=3, every=4
    ) as training:
        for t in range(1, 11):
            states[t] = copy.deepcopy([player.state_dict() for player in players])
            torch.rand(t)  # what happens outside does not matter
            if t == 4:
                optimizers[0].param_groups[0]["lr"] = 0.5
            if t == 7:
                generator[1].eval()
            if t % 2:
                training.discriminator_step([t % N, 2, 5])
            else:
                training.generator_step(4)
    run = AdversarialRun.load(tmp_path / "run", *players)
    found, report = replayed(run, Augmented())
    assert report == {
        "states_compared": 3,
        "bit_exact": True,
        "diverged_before_step": None,
        "largest_difference": None,
    }
    for t, (of_generator, of_discriminator) in states.items():
        for name, value in of_generator.items():
            assert torch.equal(found[t][f"generator/parameters/{name}"], value)
        for name, value in of_discriminator.items():
            assert torch.equal(found[t][f"discriminator/parameters/{name}"], value)
    assert [move.settings["generator"][0]["lr"] for move in run.moves] == [0.02] * 3 + [0.5] * 7
    assert generator.training and not generator[1].training


def conditional_training(path, loss):
    torch.manual_seed(0)

    class Generator(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2))

        def forward(self, noise, label):
            return self.layers(torch.cat([noise, functional.one_hot(label, 2)], 1))

    class Discriminator(Generator):
        def __init__(self):
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 1))

    def noise(n):
        return torch.randn(n, 2, dtype=torch.float64), torch.randint(2, (n,))

    players = Generator().double(), Discriminator().double()
    train = make_data(), np.array([0, 1, 0, 1, 1, 0])
    optimizers = [adam(eps=1e-3)(module) for module in players]
    with AdversarialTraining(
        path, *players, *optimizers, train=train, noise=noise, loss=loss
    ) as training:
        for indices in ([0, 1, 2], [3, 4, 5], [1, 3, 5]):
            training.discriminator_step(indices)
            training.generator_step(3)
    run = AdversarialRun.load(path, *players, noise=noise, loss=loss)
    return run, train


def weighted(loss, change):
    """Return the loss with other weights on the terms of instances: those of known features."""
    data = make_data()

    def discriminator_loss(discriminator, batch, generated):
        real, fake = loss.discriminator(discriminator, batch, generated)
        which = [int((data == row).all(1).nonzero()[0, 0]) for row in batch[0]]
        return real * torch.from_numpy(1.0 + change[which]), fake

    return AdversarialLoss(discriminator_loss, loss.generator)


@pytest.mark.parametrize("loss", ["wasserstein_gp", "least_squares"])
def test_conditions_and_penalties_on_gradients_are_differentiated(loss, tmp_path):
    run, train = conditional_training(tmp_path / "run", LOSSES[loss])
    probe = torch.randn(9, 2, dtype=torch.float64), torch.arange(9) % 2

    def metric(generator):
        return generator(*probe).square().sum(1)[:2]

    method = GANInfluence(metric, greater_is_better=True).fit(run, train)
    found = method.influence()
    assert found.diagnostics["replay"]["bit_exact"]

    def at(instance, step):
        change = np.zeros(N)
        change[instance] = step
        again = weighted(LOSSES[loss], change)
        path = tmp_path / f"{instance} {step}"
        other, _ = conditional_training(path, again)
        copied = copy.deepcopy(other.modules["generator"])
        return metric(copied).detach().numpy()

    h = 3e-4
    for i in range(N):
        near, far = at(i, h) - at(i, -h), at(i, 2 * h) - at(i, -2 * h)
        expected = (8 * near - far) / (12 * h)
        np.testing.assert_allclose(found.values[:, i], expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("loss", sorted(LOSSES))
def test_every_named_loss_is_that_of_its_definition(loss):
    torch.manual_seed(0)
    discriminator = nn.Linear(2, 1).double()
    x, fake = torch.randn(2, 5, 2, dtype=torch.float64)
    d, f = discriminator(x)[:, 0], discriminator(fake)[:, 0]
    expected = {
        "bce": (-d.sigmoid().log(), -(1 - f.sigmoid()).log(), -f.sigmoid().log()),
        "minimax": (-d.sigmoid().log(), -(1 - f.sigmoid()).log(), (1 - f.sigmoid()).log()),
        "least_squares": ((d - 1) ** 2 / 2, f**2 / 2, (f - 1) ** 2 / 2),
        "hinge": ((1 - d).clamp(min=0), (1 + f).clamp(min=0), -f),
        "wasserstein": (-d, f, -f),
        "wasserstein_gp": (-d + 10 * (discriminator.weight.norm() - 1) ** 2, f, -f),
    }[loss]
    real, generated = LOSSES[loss].discriminator(discriminator, (x,), (fake,))
    found = real, generated, LOSSES[loss].generator(discriminator, (fake,))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_the_loop_goes_through_every_instance_of_an_epoch(tmp_path):
    with make(tmp_path / "run") as training:
        training.run(3, batch_size=3, discriminator_steps=2)
        training.run(2, batch_size=2, simultaneous=True)
    run = AdversarialRun.load(tmp_path / "run", *make_players())
    kinds = [move.players for move in run.moves]
    one = [("discriminator",), ("discriminator",), ("generator",)]
    assert kinds == one * 3 + [("generator", "discriminator")] * 2
    for epoch in range(3):
        pair = run.moves[3 * epoch : 3 * epoch + 2]
        assert sorted(np.concatenate([move.indices for move in pair])) == list(range(N))


def test_an_interrupted_training_is_read_up_to_its_last_step(tmp_path):
    with pytest.raises(KeyboardInterrupt), make(tmp_path / "run", every=2) as training:
        training.run(2, batch_size=3)
        raise KeyboardInterrupt
    run = AdversarialRun.load(tmp_path / "run", *make_players())
    assert not run.complete and len(run.moves) == 4
    assert [state.t for state in run.states] == [1, 3]
    with pytest.raises(RunError, match="interrupted after step 4"):
        run.final_state()
    steps = tmp_path / "run" / "steps.jsonl"
    steps.write_bytes(steps.read_bytes()[:-5])
    assert len(AdversarialRun.load(tmp_path / "run", *make_players()).moves) == 3


def test_parameters_changed_between_steps_are_refused(tmp_path):
    players = make_players()
    with make(tmp_path / "run", players=players) as training:
        training.generator_step(3)
        with pytest.raises(RunError, match="changed between two steps"):
            with torch.no_grad():
                players[1][0].weight.clamp_(-0.01, 0.01)
            training.generator_step(3)
        training._versions = training._parameter_versions()
        players[0][0].weight.requires_grad_(False)
        with pytest.raises(RunError, match="which parameters are frozen"):
            training.generator_step(3)
        players[0][0].weight.requires_grad_(True)


def test_a_loss_that_is_not_finite_is_named_with_its_step(tmp_path):
    data = make_data()
    data[3] = torch.nan
    with make(tmp_path / "run", train=(data,)) as training:
        training.discriminator_step([0, 1])
        with pytest.raises(NonFiniteError, match="discriminator's loss is not finite at step 2"):
            training.discriminator_step([2, 3])


def test_arguments_are_refused(tmp_path):
    players = make_players()
    shared = nn.Sequential(players[0][0], nn.Linear(4, 1)).double()
    cases = [
        ({"loss": "gan"}, "loss: expected one of"),
        ({"noise": 0}, "noise: expected"),
        ({"noise": "two"}, "noise: expected"),
        ({"train": None}, "train: give"),
        ({"train": (make_data()[:0],)}, "train: the set is empty"),
        ({"seed": -1}, "seed: expected"),
        ({"every": "epoch"}, "every: expected a number"),
        ({"max_norm": 0.0}, "max_norm: expected"),
        ({"players": (players[0], shared)}, "discriminator: it shares parameters"),
        ({"optimizer": lambda m: torch.optim.RMSprop(m.parameters())}, "SGD, Adam, AdamW"),
        ({"optimizer": adam(amsgrad=True)}, "amsgrad=True is not supported"),
        ({"optimizer": lambda m: sgd()(players[0])}, "discriminator_optimizer: 4 of its param"),
    ]
    for options, message in cases:
        with pytest.raises(InvalidInputError, match=message):
            make(tmp_path / "run", **{"players": players, **options})
    with make(tmp_path / "run") as training:
        for call, message in [
            (lambda: training.discriminator_step([N]), "out of range"),
            (lambda: training.discriminator_step([]), "non-empty"),
            (lambda: training.generator_step(0), "generated: expected 1 or more"),
            (lambda: training.run(1, batch_size=N + 1), "batch_size: 7 is more"),
            (lambda: training.run(1, batch_size=0), "batch_size: expected 1"),
        ]:
            with pytest.raises(InvalidInputError, match=message):
                call()
    with pytest.raises(RunError, match="not open"):
        training.generator_step(1)
    with pytest.raises(RunError, match="already holds a run"), make(tmp_path / "run"):
        pass


def test_runs_are_refused(tmp_path):
    record(tmp_path / "run", simultaneous(1), sgd(), loss=wasserstein_gp(1.0))
    players = make_players()
    load = AdversarialRun.load
    with pytest.raises(RunError, match=r"an AdversarialLoss as its loss.*give loss="):
        load(tmp_path / "run", *players, noise=2)
    with pytest.raises(RunError, match="give noise="):
        load(tmp_path / "run", *players, loss="bce")
    with pytest.raises(RunError, match="another generator"):
        load(tmp_path / "run", players[1], players[1], loss="bce", noise=2)
    with pytest.raises(RunError, match="there is no recorded run"):
        load(tmp_path, *players)
    with pytest.raises(RunError, match="not the header of a recorded run"):
        TrainingRun.load(tmp_path / "run", players[0], loss="mse")
    stored = next((tmp_path / "run" / "checkpoints").glob("*00001.safetensors"))
    stored.write_bytes(stored.read_bytes()[:-1])
    with pytest.raises(RunError, match="truncated or damaged"):
        load(tmp_path / "run", *players, loss="bce", noise=2)


def test_terms_that_are_reduced_are_refused(tmp_path):
    reduced = AdversarialLoss(
        lambda d, batch, made: (d(batch[0]).mean(), d(made[0])[:, 0]), LOSSES["bce"].generator
    )
    training = make(tmp_path / "run", loss=reduced)
    with pytest.raises(InvalidInputError, match="vector of 2 terms"), training:
        training.discriminator_step([0, 1])


def test_the_weights_of_the_plain_loop_matter(tmp_path):
    """The oracle of the other tests is no constant."""
    recorded = record(tmp_path / "run", alternating(2), sgd())
    assert np.abs(by_differences(recorded, moments)).max() > 1e-3
