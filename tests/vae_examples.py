"""Variational autoencoders for the tests, and their risks written out a second time."""

import torch
from torch import nn
from torch.distributions import Bernoulli, Normal, kl_divergence

FEATURES, LATENT = 5, 2


class LinearVAE(nn.Module):
    """Linear both ways, with a variance that does not depend on x: its risk is in closed form."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.mean = nn.Linear(FEATURES, LATENT)
        self.log_variance = nn.Parameter(torch.tensor([0.3, -0.5]))
        self.decode = nn.Linear(LATENT, FEATURES)
        self.double()

    def encode(self, x):
        mean = self.mean(x)
        return mean, self.log_variance.expand_as(mean)


class VAE(nn.Module):
    """Nonlinear both ways."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.encoder = nn.Sequential(
            nn.Linear(FEATURES, 6), nn.Tanh(), nn.Linear(6, 2 * LATENT)
        ).double()
        self.decoder = nn.Sequential(
            nn.Linear(LATENT, 6), nn.Tanh(), nn.Linear(6, FEATURES)
        ).double()

    def encode(self, x):
        return self.encoder(x).chunk(2, 1)

    def decode(self, z):
        return self.decoder(z)


def risk_for(module, x, noise, beta=1.0, likelihood="gaussian"):
    """Return one instance's risk for noise (draws, latent), draw by draw."""
    mean, log_variance = (part[0] for part in module.encode(x[None]))
    deviation = (log_variance / 2).exp()
    posterior = Normal(mean, deviation)
    prior = Normal(torch.zeros_like(mean), torch.ones_like(mean))
    errors = []
    for draw in noise:
        decoded = module.decode((mean + deviation * draw)[None])[0]
        if likelihood == "gaussian":
            errors.append((x - decoded).square().sum() / 2)
        else:
            errors.append(-Bernoulli(logits=decoded, validate_args=False).log_prob(x).sum())
    return beta * kl_divergence(posterior, prior).sum() + torch.stack(errors).mean()


def expected_risk(module, batch, beta=1.0):
    """Return the risks of a linear VAE in closed form: the expectation over all draws."""
    mean, log_variance = module.encode(batch[0])
    variance = log_variance.exp()
    error = (batch[0] - module.decode(mean)).square().sum(1) / 2
    spread = (variance * module.decode.weight.square().sum(0)).sum(1) / 2
    divergence = (mean.square() + variance - 1 - log_variance).sum(1) / 2
    return error + spread + beta * divergence
