"""What goes wrong in practice ends in a right answer, or a message with cause and remedy."""

import numpy as np
import pytest
import torch
from static.networks import Network, close
from torch import nn

import proponent as pp
from proponent.exceptions import InvalidInputError, NonFiniteError, SolveError

SOLVERS = ["explicit", "cg", "ekfac", "kfac", "arnoldi", "lissa"]


@pytest.fixture(scope="module")
def network() -> Network:
    return Network(5)


@pytest.mark.parametrize("solver", ["explicit", "cg", "arnoldi", "lissa"])
def test_an_indefinite_hessian(network, solver) -> None:
    """Refused, or solved with the damping that the library finds; never a flipped direction."""
    smallest = float(torch.linalg.eigvalsh(network.hessian)[0])
    assert smallest < -0.01
    settings = {"curvature": "hessian", "weight_decay": 1e-4}
    if solver == "arnoldi":  # leaves the negative directions out, and says so
        method = pp.InfluenceFunctions(solver, damping=1e-3, **settings)
        influence = method.fit(network.model, network.train).influence(network.test)
        assert any("indefinite" in warning for warning in influence.diagnostics["warnings"])
    else:
        with pytest.raises(SolveError, match=r"damping|Gauss-Newton"):
            method = pp.InfluenceFunctions(solver, damping=1e-6, **settings)
            method.fit(network.model, network.train).influence(network.test)
    chosen = pp.InfluenceFunctions(solver, **settings).fit(network.model, network.train)
    assert chosen.damping_ + 1e-4 > -smallest
    matrix = network.hessian + (chosen.damping_ + 1e-4) * torch.eye(len(network.theta)).double()
    train, test = network.gradients(network.train), network.gradients(network.test)
    expected = test @ torch.linalg.solve(matrix, train.T) / len(train)
    found = chosen.influence(network.test)
    if solver in ("explicit", "cg"):
        assert close(found.values, expected, 1e-4)
    else:  # approximate; Arnoldi takes negative eigenvalues for zero
        found = np.corrcoef(found.values.ravel(), expected.numpy().ravel())[0, 1]
        assert found > (0.8 if solver == "arnoldi" else 0.99)


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_singular_softmax_head_without_weight_decay(solver) -> None:
    torch.manual_seed(0)
    X, y = torch.randn(30, 4).double(), torch.arange(30) % 3
    model = pp.TorchModel(nn.Linear(4, 3).double(), loss="cross_entropy")
    method = pp.InfluenceFunctions(solver).fit(model, (X, y))
    assert np.isfinite(method.influence((X, y)).values).all()
    amounts = method.damping_.values() if isinstance(method.damping_, dict) else [method.damping_]
    assert all(amount > 0 for amount in amounts)


@pytest.mark.parametrize("solver", ["explicit", "ekfac", "arnoldi", "gram_dual"])
def test_no_damping_at_all_is_refused_with_the_remedy(solver) -> None:
    torch.manual_seed(0)
    X, y = torch.randn(30, 4).double(), torch.arange(30) % 3
    model = pp.TorchModel(nn.Linear(4, 3).double(), loss="cross_entropy")
    curvature = "fisher" if solver == "gram_dual" else "ggn"
    with pytest.raises((SolveError, InvalidInputError), match=r"damping|shift"):
        pp.InfluenceFunctions(solver, damping=0.0, curvature=curvature).fit(model, (X, y))


@pytest.mark.parametrize("solver", SOLVERS)
def test_one_class_alone(solver) -> None:
    """All labels the same: curvature and gradients are small, and the answer is still right."""
    torch.manual_seed(1)
    X, y = torch.randn(20, 3).double(), torch.zeros(20, dtype=torch.long)
    model = pp.TorchModel(nn.Linear(3, 2).double(), loss="cross_entropy")
    method = pp.InfluenceFunctions(solver, damping=0.1).fit(model, (X, y))
    influence = method.influence((X[:5], y[:5]))
    assert np.isfinite(influence.values).all()
    assert (np.diag(influence.values[:, :5]) > 0).all()


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_gradient_that_is_not_a_number_is_named(network, solver) -> None:
    X, y = (part.clone() for part in network.train)
    X[7] = torch.nan
    with pytest.raises(NonFiniteError, match=r"\b7\b"):
        pp.InfluenceFunctions(solver, damping=0.1).fit(network.model, (X, y)).influence((X, y))
    method = pp.InfluenceFunctions(solver, damping=0.1).fit(network.model, network.train)
    with pytest.raises(NonFiniteError, match=r"\b7\b"):
        method.influence((X, y))


@pytest.mark.parametrize(
    "settings",
    [
        {"solver": "explicit"},
        {"solver": "arnoldi"},
        {"solver": "gram_dual", "curvature": "fisher"},
    ],
)
def test_too_little_memory_is_said_before_the_work(network, settings) -> None:
    from proponent.gradients.solvers import arnoldi, explicit, gram_dual

    solver = settings["solver"]
    kind = {"explicit": explicit.Explicit, "arnoldi": arnoldi.Arnoldi}.get(
        solver, gram_dual.GramDual
    )
    tight = kind(memory=1000)
    with pytest.raises(SolveError, match=r"GiB.*memory"):
        pp.InfluenceFunctions(**{**settings, "solver": tight}, damping=0.1).fit(
            network.model, network.train
        )


def test_the_empty_direction_of_a_dead_unit_is_no_obstacle() -> None:
    """A unit that never fires has no gradient: its influence is zero, and nothing divides by it."""
    torch.manual_seed(2)
    module = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).double()
    module[0].weight.data[1], module[0].bias.data[1] = 0.0, -1.0
    X, y = torch.randn(20, 3).double(), torch.arange(20) % 2
    model = pp.TorchModel(module, loss="cross_entropy")
    for solver in SOLVERS:
        method = pp.InfluenceFunctions(solver, damping=0.05).fit(model, (X, y))
        assert np.isfinite(method.influence((X, y)).values).all()
        assert np.isfinite(method.memorization().values).all()
