"""The TracIn methods with the risks of generative models, against loops, in float64."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from traced_runs import error, in_batches, influence_by_loops, per_batch, trace
from vae_examples import VAE, risk_for

from proponent.dynamic.gas import GAS
from proponent.dynamic.tracin import TracIn
from proponent.dynamic.tracincp import TracInCP
from proponent.models.beta_vae import BetaVAERisk

EXACT = 1e-12


def pixels(seed, n):
    return (np.random.default_rng(seed).random((n, 5)),)


def sentences(seed, n):
    return (np.random.default_rng(seed).integers(0, 7, (n, 6)),)


class Recurrent(nn.Module):
    """A language model: each word from those before it."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.words = nn.Embedding(7, 4)
        self.mix = nn.Linear(8, 4)
        self.out = nn.Linear(4, 7)
        self.double()

    def forward(self, text):
        state, states = text.new_zeros(len(text), 4).double(), []
        for rows in self.words(text).unbind(1):
            state = torch.tanh(self.mix(torch.cat([state, rows], 1)))
            states.append(state)
        return self.out(torch.stack(states, 1))


def autoencoder():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(5, 2), nn.Tanh(), nn.Linear(2, 5)).double()


def reconstruction(module, batch):
    return (module(batch[0]) - batch[0]).square().sum(1)


def next_words(module, batch):
    logits = module(batch[0])[:, :-1]
    return functional.cross_entropy(logits.mT, batch[0][:, 1:], reduction="none").sum(1)


def written_out(module, batch):
    """The risk of a VAE with the three draws that evaluation mode gives to all instances."""
    noise = torch.as_tensor(np.random.default_rng(4).standard_normal((3, 2)))
    return torch.stack([risk_for(module, x, noise, 2.0) for x in batch[0]])


CASES = {
    "autoencoder": (autoencoder, pixels, reconstruction, reconstruction),
    "variational": (VAE, pixels, BetaVAERisk(beta=2.0, draws=3, seed=4), written_out),
    "language": (Recurrent, sentences, next_words, next_words),
}


@pytest.fixture(params=CASES)
def case(request, tmp_path):
    make, data, risk, plain = CASES[request.param]
    traced = trace(
        tmp_path,
        make(),
        data(0, 9),
        in_batches(9, 4),
        rate=0.05,
        loss=None,
        risk=risk,
        load={"risk": risk},
    )
    traced.risk = plain
    return traced, data(1, 4)


def test_every_sum_over_the_path(case):
    traced, test = case
    for method, weights, unit in (
        (TracInCP(), traced.steps, False),
        (TracIn(), per_batch(traced), False),
        (GAS(), traced.steps, True),
    ):
        found = method.fit(traced.run, traced.train).influence(test)
        if unit:
            expected = influence_by_loops(traced, test, traced.steps, unit=True)
        else:
            expected = influence_by_loops(traced, test, weights)
        assert error(found.values, expected) < EXACT, method


def test_memorization(case):
    traced, _ = case
    found = TracInCP().fit(traced.run, traced.train).memorization()
    expected = influence_by_loops(traced, traced.train, traced.steps).diagonal()
    assert error(found.values, expected) < EXACT
