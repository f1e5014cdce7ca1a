"""RelatIF against the formula written out, and against the paper's bounds."""

import numpy as np
import pytest
import torch
from static.networks import N, Network, close

import proponent as pp
from proponent.exceptions import InvalidInputError
from proponent.gradients.kfac.factors import KroneckerFactors
from proponent.gradients.solvers.conjugate_gradients import ConjugateGradients

SHIFT = 0.05
SOLVERS = ["auto", "explicit", ConjugateGradients(tolerance=1e-12), "ekfac"]


@pytest.fixture(scope="module")
def network() -> Network:
    return Network(1)


def inverse_of(network, solver) -> torch.Tensor:
    if solver != "ekfac":
        return network.inverse(SHIFT)
    prepared = KroneckerFactors.fit(network.model, network.train, seed=0).prepare(SHIFT)
    return prepared.solve(torch.eye(len(network.theta)).double()).vectors


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("relative", ["loss", "theta"])
@pytest.mark.parametrize("batch_size", [None, 4])
def test_the_formula(network, solver, relative, batch_size) -> None:
    inverse = inverse_of(network, solver)
    train, test = network.gradients(network.train), network.gradients(network.test)
    if relative == "theta":
        sizes = (train @ inverse).norm(dim=1)
    else:
        sizes = (train @ inverse * train).sum(1).sqrt()
    expected = test @ inverse @ train.T / N / sizes
    method = pp.RelatIF(relative, solver=solver, damping=SHIFT, batch_size=batch_size)
    method.fit(network.model, network.train)
    assert close(method.influence(network.test).values, expected, 1e-9)
    assert close(method.influence(network.test, joint=True).values, expected.sum(0), 1e-9)
    own = (train @ inverse * train).sum(1) / N / sizes
    assert close(method.memorization().values, own, 1e-9)
    half = method.influence(network.test, shard=(1, 2)).values
    assert close(half, expected[:, -half.shape[1] :], 1e-9)


def test_the_bounds(network) -> None:
    """n |theta-relative| <= ||g_te||, n |loss-relative| <= sqrt(g_te^T A^{-1} g_te)."""
    test = network.gradients(network.test)
    theta = pp.RelatIF("theta", damping=SHIFT).fit(network.model, network.train)
    bound = test.norm(dim=1)
    assert (N * np.abs(theta.influence(network.test).values) <= bound[:, None].numpy()).all()
    loss = pp.RelatIF("loss", damping=SHIFT).fit(network.model, network.train)
    bound = (test @ network.inverse(SHIFT) * test).sum(1).sqrt()
    assert (N * np.abs(loss.influence(network.test).values) <= bound[:, None].numpy()).all()


@pytest.mark.parametrize("relative", ["loss", "theta"])
@pytest.mark.parametrize("scale", [1e-25, 1e10])
def test_the_length_of_a_training_gradient_does_not_matter(relative, scale) -> None:
    """In float32, where squares of such gradients underflow or overflow; zero stays zero."""
    torch.manual_seed(0)
    module = torch.nn.Linear(3, 2)
    X, y, weights = torch.randn(6, 3), torch.arange(6) % 2, torch.ones(6)
    weights[5] = 0.0
    scaled = weights.clone()
    scaled[2] = scale

    def risk(net, batch):
        losses = torch.nn.functional.cross_entropy(net(batch[0]), batch[1], reduction="none")
        return losses * batch[2]

    found = []
    for weight in (weights, scaled):
        model = pp.TorchModel(module, risk=risk)
        curvature = pp.RelatIF(relative, solver="explicit", curvature="hessian", damping=1.0)
        # The same matrix for both: that of the unscaled set.
        curvature.curvature = _hessian(pp.TorchModel(module, risk=risk), (X, y, weights))
        method = curvature.fit(model, (X, y, weight))
        found.append(method.influence((X, y, weights)).values)
    assert np.isfinite(found[1]).all()
    assert close(found[1][:, 2], found[0][:, 2], 1e-4)
    assert (found[0][:, 5] == 0).all()


def _hessian(model, train):
    from proponent.data import Instances
    from proponent.gradients.curvature import Hessian

    return Hessian(model, Instances.of(train))


def test_groups_do_not_add_up_and_unknown_settings_are_refused(network) -> None:
    method = pp.RelatIF(damping=SHIFT).fit(network.model, network.train)
    with pytest.raises(Exception, match="group"):
        method.group_influence({"a": [0, 1]}, network.test)
    with pytest.raises(InvalidInputError, match="relative"):
        pp.RelatIF("size").fit(network.model, network.train)


def test_auto_takes_kronecker_factors_where_the_matrix_does_not_fit(network, monkeypatch) -> None:
    """A solve for every instance has to be cheap; so has a pass in every step, on large sets."""
    entries = len(network.theta)
    tight = pp.RelatIF(damping=SHIFT, memory=16 * entries).fit(network.model, network.train)
    given = pp.RelatIF(solver="ekfac", damping=SHIFT).fit(network.model, network.train)
    influence = tight.influence(network.test)
    assert influence.diagnostics["why_solver"].startswith("ekfac")
    assert close(influence.values, given.influence(network.test).values)
    monkeypatch.setattr("proponent.static.chosen_inverse.FACTORED", N * entries - 1)
    large = pp.InfluenceFunctions(damping=SHIFT).fit(network.model, network.train)
    assert "too many for passes" in large.influence(network.test).diagnostics["why_solver"]
    kept = pp.InfluenceFunctions(curvature="hessian", damping=1.0)
    kept.fit(network.model, network.train)
    assert "explicit" in kept.influence(network.test).diagnostics["why_solver"]
