"""Renormalised influence functions against the formula written out."""

import pytest
import torch
from static.networks import N, Network, close

import proponent as pp
from proponent.exceptions import InvalidInputError
from proponent.gradients.kfac.factors import KroneckerFactors

SHIFT = 0.05


@pytest.fixture(scope="module")
def network() -> Network:
    return Network(2)


@pytest.mark.parametrize("solver", ["explicit", "ekfac"])
@pytest.mark.parametrize("normalise", ["train", "both"])
@pytest.mark.parametrize("batch_size", [None, 4])
def test_the_formula(network, solver, normalise, batch_size) -> None:
    inverse = network.inverse(SHIFT)
    if solver == "ekfac":
        prepared = KroneckerFactors.fit(network.model, network.train, seed=0).prepare(SHIFT)
        inverse = prepared.solve(torch.eye(len(network.theta)).double()).vectors
    train, test = network.gradients(network.train), network.gradients(network.test)
    unit = train / train.norm(dim=1, keepdim=True)
    others = test / test.norm(dim=1, keepdim=True) if normalise == "both" else test
    expected = others @ inverse @ unit.T / N
    method = pp.RenormalizedIF(normalise, solver=solver, damping=SHIFT, batch_size=batch_size)
    method.fit(network.model, network.train)
    assert close(method.influence(network.test).values, expected)
    assert close(method.influence(network.test, joint=True).values, expected.sum(0))
    own = (unit @ inverse * (unit if normalise == "both" else train)).sum(1) / N
    assert close(method.memorization().values, own)


def test_a_zero_gradient_has_influence_zero() -> None:
    torch.manual_seed(0)
    module = torch.nn.Linear(3, 2, bias=False)
    X, y = torch.randn(6, 3), torch.arange(6) % 2
    X[4] = 0.0
    for normalise in ("train", "both"):
        method = pp.RenormalizedIF(normalise, damping=0.1)
        method.fit(pp.TorchModel(module, loss="cross_entropy"), (X, y))
        scores = method.influence((X, y)).values
        assert (scores[:, 4] == 0).all()
        assert (scores[:, :4] != 0).any()
        assert method.memorization().values[4] == 0


def test_unknown_settings_are_refused(network) -> None:
    with pytest.raises(InvalidInputError, match="normalise"):
        pp.RenormalizedIF("test").fit(network.model, network.train)
