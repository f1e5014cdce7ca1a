"""The risk of a beta-VAE against torch's distributions, draw by draw and in closed form."""

import numpy as np
import pytest
import torch
from vae_examples import FEATURES, LATENT, VAE, LinearVAE, expected_risk, risk_for

from proponent.exceptions import InvalidInputError
from proponent.models.beta_vae import BetaVAERisk
from proponent.models.sampled_risk import SampledRisk
from proponent.models.torch import TorchModel

X = torch.rand(7, FEATURES, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("likelihood", ["gaussian", "bernoulli"])
@pytest.mark.parametrize("beta", [0.0, 1.0, 4.0])
def test_it_is_the_mean_over_draws_of_the_evidence_bound(likelihood, beta):
    noise = torch.randn(7, 3, LATENT, dtype=torch.float64)
    risk = BetaVAERisk(beta=beta, likelihood=likelihood)
    module = VAE()
    asked = []

    def draw(shape):
        asked.append(shape)
        return noise

    found = risk.with_draws(module, (X, torch.zeros(7)), draw)
    expected = [risk_for(module, x, n, beta, likelihood) for x, n in zip(X, noise, strict=True)]
    assert torch.allclose(found, torch.stack(expected), rtol=1e-12, atol=0)
    assert asked == [(LATENT,)]


def test_its_mean_is_the_expectation():
    risk, module = BetaVAERisk(beta=2.0, draws=200_000), LinearVAE().train()
    with torch.no_grad():
        found = risk(module, X)
        expected = expected_risk(module, (X,), beta=2.0)
        wrong = expected_risk(module, (X,), beta=1.0)
    assert torch.allclose(found, expected, rtol=3e-3)
    assert not torch.allclose(found, wrong, rtol=3e-2)


def test_it_draws_afresh_while_training_and_keeps_its_draws_afterwards():
    risk, module = BetaVAERisk(draws=2, seed=5), VAE()
    first, second = risk(module.train(), X), risk(module, X)
    assert not torch.equal(first, second)
    torch.manual_seed(3)
    again = risk(module, X)
    torch.manual_seed(3)
    assert torch.equal(risk(module, X), again)
    state = torch.get_rng_state()
    kept = risk(module.eval(), X)
    assert torch.equal(risk(module, X), kept)
    assert torch.equal(torch.get_rng_state(), state)
    # An instance's risk is its own: the same alone and among others.
    alone = torch.cat([risk(module, X[i : i + 1]) for i in range(7)])
    assert torch.allclose(alone, kept, rtol=1e-12)
    assert not torch.allclose(BetaVAERisk(draws=2, seed=6)(module, X), kept, rtol=1e-3)


def test_images_and_halves_given_as_functions():
    images = X[:6, :4].reshape(6, 1, 2, 2)
    weight = torch.randn(4, 2, dtype=torch.float64)
    risk = BetaVAERisk(
        encode=lambda module, x: (x.flatten(1) @ weight, torch.zeros(len(x), 2).double()),
        decode=lambda module, z: (z @ weight.T).view(-1, 1, 2, 2),
    )
    mean = images.flatten(1) @ weight
    noise = torch.randn(6, 1, 2, dtype=torch.float64)
    found = risk.with_draws(torch.nn.Identity(), {"x": images}, lambda shape: noise)
    decoded = (mean + noise[:, 0]) @ weight.T
    errors = (images.flatten(1) - decoded).square().sum(1) / 2
    assert torch.allclose(found, errors + mean.square().sum(1) / 2, rtol=1e-12)


def test_it_is_a_risk_like_others():
    model = TorchModel(VAE(), risk=BetaVAERisk(draws=3))
    first, second = (model.risks((X.numpy(),), batch_size=size) for size in (2, 7))
    assert torch.allclose(first, second, rtol=1e-12)
    assert first.shape == (7,)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"likelihood": "poisson"}, "likelihood='poisson'"),
        ({"beta": -1.0}, "beta must be a finite number"),
        ({"draws": 0}, "draws must be a positive integer"),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(InvalidInputError, match=message):
        BetaVAERisk(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"encode": "encoding"}, "encode: VAE has no method 'encoding'"),
        ({"encode": lambda module, x: (x, x[:, :1])}, r"encode has to return a mean and a log-var"),
        ({"decode": lambda module, z: z}, r"decode returned \(7, 2\)"),
    ],
)
def test_halves_that_do_not_fit_are_refused(settings, message):
    with pytest.raises(InvalidInputError, match=message):
        BetaVAERisk(**settings)(VAE(), (X,))


class Twice(SampledRisk):
    def with_draws(self, module, batch, draw):
        return draw((1,)).sum((1, 2)) + draw((2,)).sum((1, 2))


def test_noise_is_asked_for_once():
    with pytest.raises(InvalidInputError, match="asked 2 times for noise"):
        Twice().noise_shape(VAE(), (X,))
    assert BetaVAERisk().noise_shape(VAE(), (X,)) == (LATENT,)
    with pytest.raises(InvalidInputError, match="one entry"):
        BetaVAERisk()(VAE(), {"x": X, "y": torch.zeros(7)})
    assert np.isfinite(BetaVAERisk()(VAE(), X).detach().numpy()).all()
