"""VAE-TracIn against loops over instances and draws, and against closed forms, in float64."""

import numpy as np
import pytest
import torch
from references import gradients_by_loop
from torch import nn
from traced_runs import RATE, error, in_batches, influence_by_loops, trace
from vae_examples import FEATURES, LATENT, VAE, LinearVAE, expected_risk, risk_for

from proponent.data import Instances
from proponent.dynamic.instance_noise import DrawnInstances, InstanceNoise
from proponent.dynamic.tracincp import TracInCP
from proponent.dynamic.vae_tracin import VAETracIn
from proponent.exceptions import InvalidInputError, NotFittedError
from proponent.models.beta_vae import BetaVAERisk
from proponent.models.run import TrainingRun
from proponent.models.sampled_risk import SampledRisk

EXACT = 1e-12
BETA = 1.5


def points(seed=0, n=8):
    return (np.random.default_rng(seed).random((n, FEATURES)),)


TRAIN, TEST = points(), points(1, n=4)


def traced_vae(folder, module, risk, rate=RATE):
    return trace(
        folder,
        module,
        TRAIN,
        in_batches(8, 3),
        loss=None,
        risk=risk,
        rate=rate,
        load={"risk": risk},
    )


@pytest.fixture(scope="module")
def traced(tmp_path_factory):
    return traced_vae(tmp_path_factory.mktemp("runs") / "vae", VAE(), BetaVAERisk(beta=BETA))


@pytest.fixture(scope="module")
def linear(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "linear"
    return traced_vae(folder, LinearVAE(), BetaVAERisk(beta=BETA), rate=0.05)


def gradients_with_noise(traced, data, side, draws, seed, t):
    """Return each instance's gradient, (n, p): its risk written out, with the library's noise."""
    noise = InstanceNoise((LATENT,), draws, seed)
    with noise.at(f"step {t}"):
        x, drawn = DrawnInstances(Instances.of(data), noise, side).batch(slice(None))
    module = traced.at(t)
    found = []
    for row, each in zip(x[0], drawn, strict=True):
        risk = risk_for(module, row, each, BETA)
        parts = torch.autograd.grad(risk, list(module.parameters()))
        found.append(torch.cat([part.flatten() for part in parts]))
    return torch.stack(found).numpy()


@pytest.mark.parametrize("draws", [1, 5])
def test_each_side_has_draws_of_its_own(traced, draws):
    method = VAETracIn(draws=draws, seed=3).fit(traced.run, TRAIN)
    expected, own = np.zeros((4, 8)), np.zeros(8)
    for t in traced.steps:
        train, test, other = (
            gradients_with_noise(traced, data, side, draws, 3, t)
            for data, side in ((TRAIN, "train"), (TEST, "test"), (TRAIN, "test"))
        )
        expected += RATE * test @ train.T
        own += RATE * (train * other).sum(1)
    assert error(method.influence(TEST).values, expected) < EXACT
    assert error(method.influence(TEST, joint=True).values, expected.sum(0)) < EXACT
    assert error(method.memorization().values, own) < EXACT
    assert error(method.influence(TRAIN).values.diagonal(), own) < EXACT
    assert f"{draws} for each gradient" in method.influence(TEST).diagnostics["draws"]


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_an_instance_has_its_draws_wherever_it_stands(traced, batch_size):
    expected = VAETracIn(draws=2).fit(traced.run, TRAIN).influence(TEST).values
    method = VAETracIn(draws=2, batch_size=batch_size).fit(traced.run, TRAIN)
    torch.manual_seed(batch_size)
    assert error(method.influence(TEST).values, expected) < EXACT
    some = (TEST[0][[3, 1]],)
    assert error(method.influence(some).values, expected[[3, 1]]) < EXACT
    assert error(method.influence(TEST, shard=(1, 3)).values, expected[:, 3:6]) < EXACT
    diagonal = VAETracIn(draws=2).fit(traced.run, TRAIN).memorization().values
    shards = [method.memorization(shard=(i, 2)).values for i in range(2)]
    assert error(np.concatenate(shards), diagonal) < EXACT
    other = VAETracIn(draws=2, seed=1).fit(traced.run, TRAIN).influence(TEST).values
    assert error(other, expected) > 0.01


def analytic(traced, test, steps):
    """Return the influence for the expected risk of a linear VAE, in closed form."""
    total = np.zeros((len(test[0]), len(TRAIN[0])))
    for t in steps:
        module = traced.at(t)
        sides = []
        for data in (TRAIN, test):
            batch = (torch.as_tensor(data[0]),)
            found = gradients_by_loop(
                module, lambda net, one: expected_risk(net, one, BETA), batch, len(data[0])
            )
            sides.append(torch.cat([part.flatten(1) for part in found.values()], 1).numpy())
        total += traced.rates[t - 1]["mean.weight"] * sides[1] @ sides[0].T
    return total


def z_scores(samples, truth):
    return (samples.mean(0) - truth) / (samples.std(0, ddof=1) / np.sqrt(len(samples)))


def test_memorization_is_unbiased_and_the_same_draws_on_both_sides_are_not(linear):
    truth = analytic(linear, TRAIN, [2]).diagonal()
    at = {"checkpoints": [2]}

    def naive(draws, seed):
        """TracInCP of the risk that draws the same for everyone: its own draws meet themselves."""
        risk = BetaVAERisk(beta=BETA, draws=draws, seed=seed)
        run = TrainingRun.load(linear.path, linear.module, risk=risk)
        return TracInCP(**at).fit(run, TRAIN).memorization().values

    apart = np.stack(
        [VAETracIn(1, seed=s, **at).fit(linear.run, TRAIN).memorization().values for s in range(60)]
    )
    assert np.abs(z_scores(apart, truth)).max() < 4
    together = np.stack([naive(1, seed) for seed in range(60)])
    assert z_scores(together, truth).mean() > 3
    assert (together.mean(0) > 1.5 * truth).all()
    assert error(naive(2_000, 0), truth) < 0.1  # the bias falls with the draws


def test_influence_is_unbiased(linear):
    truth = analytic(linear, TEST, linear.steps)
    methods = [VAETracIn(1, seed=seed).fit(linear.run, TRAIN) for seed in range(60)]
    samples = np.stack([method.influence(TEST).values for method in methods])
    assert np.abs(z_scores(samples, truth)).max() < 4.5
    precise = VAETracIn(3_000).fit(linear.run, TRAIN).influence(TEST).values
    assert error(precise, truth) < 0.03


def test_when_influence_happened(traced):
    method = VAETracIn(2).fit(traced.run, TRAIN)
    parts = method.influence(TEST, by_checkpoint=True)
    for column, t in enumerate(traced.steps):
        alone = VAETracIn(2, checkpoints=[t]).fit(traced.run, TRAIN).influence(TEST).values
        assert error(parts.values[:, :, column], alone) < EXACT


def test_twins_have_the_same_influence(traced):
    twice = (np.concatenate([TEST[0], TEST[0][:1]]),)
    values = VAETracIn(2).fit(traced.run, TRAIN).influence(twice).values
    assert error(values[0], values[4]) < EXACT


class Jitter(SampledRisk):
    """A regression on inputs that are perturbed: a sampled risk of a user's own."""

    def with_draws(self, module, batch, draw):
        x, y = batch
        noise = draw(tuple(x.shape[1:]))
        outputs = module((x[:, None] + 0.1 * noise).flatten(0, 1)).view(len(x), noise.shape[1])
        return (outputs - y[:, None]).square().mean(1)


def test_a_sampled_risk_of_the_users_own(tmp_path):
    data = (*TRAIN, np.linspace(-1, 1, 8))
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(FEATURES, 3), nn.Tanh(), nn.Linear(3, 1)).double()
    traced = trace(
        tmp_path, net, data, in_batches(8, 4), loss=None, risk=Jitter(), load={"risk": Jitter()}
    )
    many = VAETracIn(4_000).fit(traced.run, data).influence(data).values

    def averaged(module, batch):
        generator = np.random.default_rng(0)
        noise = torch.as_tensor(generator.standard_normal((4_000, FEATURES)))
        return Jitter().with_draws(module, batch, lambda shape: noise[None])

    traced.risk = averaged
    assert error(many, influence_by_loops(traced, data, traced.steps)) < 0.03


def global_noise(module, batch):
    mean, log_variance = module.encode(batch[0])
    z = mean + (log_variance / 2).exp() * torch.randn_like(mean)
    return (batch[0] - module.decode(z)).square().sum(1)


def test_a_risk_that_hides_its_draws_is_refused(traced):
    run = TrainingRun.load(traced.path, traced.module, risk=global_noise)
    with pytest.raises(InvalidInputError, match=r"risk=BetaVAERisk.*SampledRisk"):
        VAETracIn().fit(run, TRAIN)
    with pytest.raises(InvalidInputError, match="changes with the other instances"):
        TracInCP().fit(run, TRAIN)


def test_what_it_needs_is_said(traced):
    with pytest.raises(InvalidInputError, match="draws must be a positive integer"):
        VAETracIn(0).fit(traced.run, TRAIN)
    with pytest.raises(InvalidInputError, match=r"model: .*BetaVAERisk"):
        VAETracIn().fit(traced.module, TRAIN)
    with pytest.raises(InvalidInputError, match="empty"):
        VAETracIn().fit(traced.run, (TRAIN[0][:0],))
    with pytest.raises(NotFittedError):
        VAETracIn().influence(TEST)
