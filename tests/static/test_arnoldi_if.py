"""Arnoldi influence functions against the formula, with eigenvectors from a dense matrix."""

import numpy as np
import pytest
import torch
from static.networks import N, Network, close

import proponent as pp
from proponent.exceptions import SolveError

SHIFT = 0.05


@pytest.fixture(scope="module")
def network() -> Network:
    return Network(3)


@pytest.mark.parametrize("complement", ["damped", "drop"])
@pytest.mark.parametrize("rank", [3, 8])
@pytest.mark.parametrize("batch_size", [None, 5])
def test_the_formula(network, complement, rank, batch_size) -> None:
    values, vectors = torch.linalg.eigh(network.gauss_newton)
    values, vectors = values[-rank:], vectors[:, -rank:]
    train, test = network.gradients(network.train), network.gradients(network.test)
    if complement == "damped":
        filtered = 1 / (values + SHIFT) - 1 / SHIFT
        rest = test @ train.T / SHIFT
    else:
        filtered, rest = 1 / (values + SHIFT), 0.0
    expected = (((test @ vectors) * filtered) @ (train @ vectors).T + rest) / N
    method = pp.ArnoldiIF(
        rank, iterations=40, complement=complement, damping=SHIFT, batch_size=batch_size
    ).fit(network.model, network.train)
    assert close(method.influence(network.test).values, expected, 1e-8)
    own = ((train @ vectors) ** 2 @ filtered + (
        train.square().sum(1) / SHIFT if complement == "damped" else 0.0
    )) / N  # fmt: skip
    assert close(method.memorization().values, own, 1e-8)


def test_the_complement_is_what_makes_it_near_the_inverse(network) -> None:
    """The directions that are dropped count most in an inverse."""
    train, test = network.gradients(network.train), network.gradients(network.test)
    damping, errors = 0.3, {}
    exact = (test @ network.inverse(damping) @ train.T / N).numpy()
    for complement in ("damped", "drop"):
        method = pp.ArnoldiIF(8, iterations=40, complement=complement, damping=damping)
        scores = method.fit(network.model, network.train).influence(network.test).values
        errors[complement] = np.linalg.norm(scores - exact) / np.linalg.norm(exact)
    assert errors["damped"] < 0.02
    assert errors["drop"] > 5 * errors["damped"]


def test_an_indefinite_hessian_gives_finite_scores_and_says_so(network) -> None:
    """Where dattri's are NaN and captum's paper form adds the negative eigenvalues in."""
    smallest = float(torch.linalg.eigvalsh(network.hessian)[0])
    assert smallest < -1e-3
    method = pp.ArnoldiIF(10, iterations=40, curvature="hessian", damping=1e-3)
    influence = method.fit(network.model, network.train).influence(network.test)
    assert np.isfinite(influence.values).all()
    assert any("indefinite" in warning for warning in influence.diagnostics["warnings"])


def test_a_krylov_space_that_is_exhausted_is_no_error() -> None:
    """More iterations than the curvature has directions: dattri's scores are NaN then."""
    torch.manual_seed(0)
    X, y = torch.randn(5, 3, dtype=torch.float64), torch.arange(5) % 2
    model = pp.TorchModel(torch.nn.Linear(3, 2).double(), loss="cross_entropy")
    arnoldi = pp.ArnoldiIF(50, iterations=50, damping=0.1).fit(model, (X, y))
    exact = pp.InfluenceFunctions("explicit", damping=0.1).fit(model, (X, y))
    assert close(arnoldi.influence((X, y)).values, exact.influence((X, y)).values, 1e-9)


def test_the_damped_complement_needs_a_damping(network) -> None:
    with pytest.raises(SolveError, match="damping"):
        pp.ArnoldiIF(5, iterations=20, damping=0.0).fit(network.model, network.train)
