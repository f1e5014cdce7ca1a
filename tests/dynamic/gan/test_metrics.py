"""Metrics of a generator against direct computations, and planted noise as a real example."""

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from scipy.stats import entropy, multivariate_normal
from sklearn.metrics import pairwise_distances, roc_auc_score
from torch import nn

from proponent.dynamic.gan.metrics import (
    FrechetDistance,
    InceptionScore,
    KernelDistance,
    ParzenLogLikelihood,
)
from proponent.dynamic.gan.run import AdversarialRun
from proponent.dynamic.gan.training import AdversarialTraining
from proponent.dynamic.gan_influence import GANInfluence
from proponent.exceptions import InvalidInputError

RANDOM = np.random.default_rng(0)
REAL = RANDOM.normal([1.0, -1.0, 0.5], [1.0, 0.5, 2.0], size=(40, 3))
NOISE = torch.from_numpy(RANDOM.normal(size=(30, 2)))


@pytest.fixture
def generator():
    torch.manual_seed(0)
    return nn.Linear(2, 3).double()


def given(n):
    return NOISE[:n]


def made_by(generator):
    return generator(NOISE).detach().numpy()


def test_kernel_distance(generator):
    found = KernelDistance(REAL, given, samples=30, bandwidth=1.5)(generator)
    made = made_by(generator)

    def kernel(left, right):
        return np.exp(-(pairwise_distances(left, right) ** 2) / (2 * 1.5**2))

    def within(rows):
        return kernel(rows, rows)[~np.eye(len(rows), dtype=bool)].mean()

    expected = within(made) + within(REAL) - 2 * kernel(made, REAL).mean()
    assert found.item() == pytest.approx(expected, rel=1e-10)
    median = np.median(pairwise_distances(REAL)[np.triu_indices(len(REAL), 1)])
    by_default = KernelDistance(REAL, given, samples=30)(generator)
    assert by_default.item() == pytest.approx(
        KernelDistance(REAL, given, samples=30, bandwidth=median)(generator).item(), rel=0.05
    )


def test_frechet_distance(generator):
    generator.weight.data += torch.eye(3, 2, dtype=torch.float64)

    def features(rows):
        return rows @ torch.tensor([[1.0, 0.2], [0.3, -1.0], [0.5, 2.0]], dtype=torch.float64)

    found = FrechetDistance(REAL, given, samples=30, features=features)(generator)
    left, right = (features(torch.as_tensor(r)).numpy() for r in (made_by(generator), REAL))
    one, other = np.cov(left.T), np.cov(right.T)
    shift = left.mean(0) - right.mean(0)
    expected = shift @ shift + np.trace(one + other - 2 * sqrtm(one @ other).real)
    assert found.item() == pytest.approx(expected, rel=1e-10)
    with pytest.raises(InvalidInputError, match="samples: 3 instances"):
        FrechetDistance(REAL, given, samples=3)(generator)


def test_inception_score(generator):
    found = InceptionScore(lambda rows: rows, given, samples=30)(generator)
    made = made_by(generator)
    shares = np.exp(made) / np.exp(made).sum(1, keepdims=True)
    mean = np.broadcast_to(shares.mean(0), shares.shape)
    assert found.item() == pytest.approx(np.exp(entropy(shares, mean, axis=1).mean()), rel=1e-10)


def test_parzen_log_likelihood(generator):
    metric = ParzenLogLikelihood(given, bandwidth=0.7, samples=30)
    found = metric(generator, (torch.from_numpy(REAL),)).detach().numpy()
    density = [
        np.mean([multivariate_normal.pdf(x, mean, 0.49 * np.eye(3)) for mean in made_by(generator)])
        for x in REAL
    ]
    np.testing.assert_allclose(found, np.log(density), rtol=1e-8)


def test_the_gradients_are_those_of_differences(generator):
    metrics = [
        KernelDistance(REAL, given, samples=30),
        FrechetDistance(REAL, given, samples=30),
        InceptionScore(lambda rows: rows, given, samples=30),
    ]
    for metric in metrics:
        (gradient,) = torch.autograd.grad(metric(generator), [generator.weight])
        for place in ((0, 0), (2, 1)):
            values = []
            for step in (1e-5, -1e-5):
                generator.weight.data[place] += step
                values.append(float(metric(generator).detach()))
                generator.weight.data[place] -= step
            slope = (values[0] - values[1]) / 2e-5
            assert float(gradient[place]) == pytest.approx(slope, rel=1e-5)


def test_a_metric_is_shown_as_it_was_made():
    metric = ParzenLogLikelihood(2, bandwidth=0.7)
    assert eval(repr(metric)) == metric
    assert "array" not in repr(KernelDistance(REAL, 2))


def test_arguments_are_refused():
    for wrong, message in [
        (lambda: KernelDistance(REAL, 2, samples=1), "samples: expected"),
        (lambda: KernelDistance(REAL, 2, bandwidth=0.0), "bandwidth: expected"),
        (lambda: ParzenLogLikelihood(2, bandwidth=-1.0), "bandwidth: expected"),
        (lambda: InceptionScore(None, -2), "noise: expected"),
    ]:
        with pytest.raises(InvalidInputError, match=message):
            wrong()


def mixture(random, n):
    centres = np.where(random.integers(0, 2, n)[:, None], [1.0, 0.5], [-1.0, -0.5])
    return centres + 0.15 * random.normal(size=(n, 2))


def test_planted_noise_comes_out_as_opponents(tmp_path):
    """Sixty-four points of two clusters, ten of them noise, by distance to clean test points."""
    random = np.random.default_rng(2)
    clean, test = mixture(random, 54), mixture(random, 200)
    noise = random.uniform([-2.0, 1.6], [-1.2, 2.4], size=(10, 2))
    train = (np.concatenate([clean, noise]),)
    torch.manual_seed(2)
    generator = nn.Linear(2, 2).double()
    discriminator = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 1)).double()
    optimizers = [
        torch.optim.Adam(module.parameters(), lr=0.01, betas=(0.5, 0.9), weight_decay=decay)
        for module, decay in ((generator, 0.0), (discriminator, 0.01))
    ]
    with AdversarialTraining(
        tmp_path / "run", generator, discriminator, *optimizers, train=train, noise=2, seed=2
    ) as training:
        training.run(150, batch_size=16)
    run = AdversarialRun.load(tmp_path / "run", generator, discriminator)
    metric = KernelDistance(test, 2, samples=128)
    found = GANInfluence(metric).fit(run, train).influence()
    assert roc_auc_score(np.arange(64) >= 54, -found.values[0]) > 0.9
    assert found.values[0, 54:].mean() < 0
    assert set(found.opponents(5).ids[0]) <= set(range(54, 64))
