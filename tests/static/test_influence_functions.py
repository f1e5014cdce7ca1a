"""Influence functions against closed forms, dense Hessians and retraining."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional

import proponent as pp
from proponent.exceptions import InvalidInputError, NotFittedError, SolveError
from proponent.gradients.solvers.conjugate_gradients import ConjugateGradients

N, D, WEIGHT_DECAY = 40, 6, 0.3


class Ridge:
    """J = (1/2n) ||X theta - y||^2 + (weight_decay / 2) ||theta||^2, solved exactly."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.X = torch.randn(N, D, generator=generator, dtype=torch.float64)
        self.y = self.X @ torch.arange(1.0, D + 1).double() + torch.randn(N, generator=generator)
        self.X_test = torch.randn(5, D, generator=generator, dtype=torch.float64)
        self.y_test = torch.randn(5, generator=generator, dtype=torch.float64)
        self.theta = self.solve(range(N), N)
        self.module = nn.Linear(D, 1, bias=False).double()
        self.module.weight.data = self.theta[None].clone()
        self.model = pp.TorchModel(self.module, loss=lambda out, y: 0.5 * (out[:, 0] - y) ** 2)
        self.train, self.test = (self.X, self.y), (self.X_test, self.y_test)

    def solve(self, kept, divisor: int) -> torch.Tensor:
        X, y = self.X[list(kept)], self.y[list(kept)]
        hessian = X.T @ X / divisor + WEIGHT_DECAY * torch.eye(D, dtype=torch.float64)
        return torch.linalg.solve(hessian, X.T @ y / divisor)

    @property
    def inverse(self) -> torch.Tensor:
        eye = torch.eye(D, dtype=torch.float64)
        return torch.linalg.inv(self.X.T @ self.X / N + WEIGHT_DECAY * eye)

    @property
    def gradients(self) -> torch.Tensor:
        return (self.X @ self.theta - self.y)[:, None] * self.X

    @property
    def test_gradients(self) -> torch.Tensor:
        return (self.X_test @ self.theta - self.y_test)[:, None] * self.X_test


@pytest.fixture
def ridge() -> Ridge:
    return Ridge()


def close(found, expected, tolerance: float = 1e-12) -> bool:
    expected = np.asarray(expected)
    difference = np.asarray(found) - expected
    return bool(np.linalg.norm(difference) <= tolerance * np.linalg.norm(expected))


@pytest.mark.parametrize("solver", ["auto", "explicit", "cg"])
@pytest.mark.parametrize("curvature", ["ggn", "hessian"])
@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_ridge_closed_form(ridge, solver, curvature, batch_size) -> None:
    method = pp.InfluenceFunctions(
        solver, curvature=curvature, weight_decay=WEIGHT_DECAY, batch_size=batch_size
    ).fit(ridge.model, ridge.train)
    expected = ridge.test_gradients @ ridge.inverse @ ridge.gradients.T / N
    tolerance = 1e-12 if solver != "cg" else 1e-6  # the tolerance that cg is asked for
    assert close(method.influence(ridge.test).values, expected, tolerance)
    assert close(method.influence(ridge.test, joint=True).values, expected.sum(0), tolerance)
    itself = ((ridge.gradients @ ridge.inverse) * ridge.gradients).sum(1) / N
    assert close(method.memorization().values, itself, tolerance)


@pytest.mark.parametrize("convention, divisor", [("fixed_divisor", N), ("renormalised", N - 1)])
def test_ridge_leave_one_out(ridge, convention, divisor) -> None:
    """The parameters move by the estimate over 1 - leverage, exactly or nearly.

    With the divisor n kept the identity is exact; renormalised it holds to first order in 1/n.
    """
    method = pp.InfluenceFunctions(weight_decay=WEIGHT_DECAY, loo_convention=convention)
    scores = method.fit(ridge.model, ridge.train).influence(ridge.test).values
    leverage = ((ridge.X @ ridge.inverse) * ridge.X).sum(1) / N
    exact = np.empty_like(scores)
    for i in range(N):
        moved = ridge.solve([j for j in range(N) if j != i], divisor) - ridge.theta
        exact[:, i] = ridge.test_gradients @ moved
    if convention == "fixed_divisor":
        assert close(scores / (1 - leverage).numpy(), exact, 1e-12)
    else:
        assert np.corrcoef(scores.ravel(), exact.ravel())[0, 1] > 0.99
        assert close(scores, exact, 0.25)
        # all others together undo what one does: the sum over the training set vanishes
        assert abs(scores.sum(1)).max() < 1e-12


def test_weight_decay_enters_the_curvature(ridge) -> None:
    without = pp.InfluenceFunctions(damping=0.0).fit(ridge.model, ridge.train)
    inverse = torch.linalg.inv(ridge.X.T @ ridge.X / N)
    expected = ridge.test_gradients @ inverse @ ridge.gradients.T / N
    assert close(without.influence(ridge.test).values, expected)


def test_damping_is_added_and_reported(ridge) -> None:
    method = pp.InfluenceFunctions(damping=0.7, weight_decay=0.1).fit(ridge.model, ridge.train)
    eye = torch.eye(D, dtype=torch.float64)
    inverse = torch.linalg.inv(ridge.X.T @ ridge.X / N + 0.8 * eye)
    influence = method.influence(ridge.test)
    assert close(influence.values, ridge.test_gradients @ inverse @ ridge.gradients.T / N)
    assert influence.diagnostics["effective_damping"] == pytest.approx(0.8)
    assert influence.diagnostics["damping"] == 0.7


def test_default_damping_is_a_thousandth_of_the_largest_eigenvalue(ridge) -> None:
    method = pp.InfluenceFunctions().fit(ridge.model, ridge.train)
    largest = torch.linalg.eigvalsh(ridge.X.T @ ridge.X / N)[-1]
    assert method.damping_ == pytest.approx(1e-3 * float(largest), rel=1e-6)


def test_small_memory_and_many_tests_give_the_same(ridge) -> None:
    plain = pp.InfluenceFunctions(weight_decay=WEIGHT_DECAY).fit(ridge.model, ridge.train)
    tight = pp.InfluenceFunctions(weight_decay=WEIGHT_DECAY, memory=8 * D * 2)
    tight.fit(ridge.model, ridge.train)
    assert close(tight.influence(ridge.test).values, plain.influence(ridge.test).values)
    assert close(tight.memorization().values, plain.memorization().values)


def test_objective_gradient_is_reported(ridge) -> None:
    method = pp.InfluenceFunctions(weight_decay=WEIGHT_DECAY).fit(ridge.model, ridge.train)
    assert method.influence(ridge.test).diagnostics["objective_gradient_norm"] < 1e-12
    ridge.module.weight.data += 0.1
    moved = pp.InfluenceFunctions(weight_decay=WEIGHT_DECAY).fit(ridge.model, ridge.train)
    gradient = (ridge.X.T @ (ridge.X @ ridge.module.weight[0] - ridge.y)) / N
    gradient = gradient + WEIGHT_DECAY * ridge.module.weight[0]
    found = moved.influence(ridge.test).diagnostics["objective_gradient_norm"]
    assert found == pytest.approx(float(gradient.detach().norm()))


def softmax_regression(X, y, weight_decay: float, classes: int = 10) -> nn.Linear:
    """Fit to stationarity by L-BFGS in float64."""
    module = nn.Linear(X.shape[1], classes, bias=False).double()
    nn.init.zeros_(module.weight)
    optimizer = torch.optim.LBFGS(
        module.parameters(), max_iter=500, tolerance_grad=1e-12, tolerance_change=0,
        line_search_fn="strong_wolfe", history_size=30,
    )  # fmt: skip

    def objective():
        optimizer.zero_grad()
        loss = functional.cross_entropy(module(X), y)
        loss = loss + weight_decay / 2 * module.weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(objective)
    return module


def test_digits_against_retraining() -> None:
    """On real data, a sample of leave-one-out retrainings, both solvers and the GGN = Hessian."""
    X, y = load_digits(return_X_y=True)
    X, y = torch.tensor(X[:250] / 16), torch.tensor(y[:250])
    train, test = (X[:200], y[:200]), (X[200:], y[200:])
    weight_decay = 0.01
    module = softmax_regression(*train, weight_decay)
    model = pp.TorchModel(module, loss="cross_entropy")
    method = pp.InfluenceFunctions(weight_decay=weight_decay, loo_convention="renormalised")
    influence = method.fit(model, train).influence(test)
    cg = pp.InfluenceFunctions(
        ConjugateGradients(tolerance=1e-10), curvature="hessian", weight_decay=weight_decay,
        loo_convention="renormalised",
    )  # fmt: skip
    assert close(cg.fit(model, train).influence(test).values, influence.values, 1e-8)
    base = model.risks(test).numpy()
    found, measured = [], []
    for i in range(0, 200, 10):
        kept = torch.arange(200) != i
        retrained = softmax_regression(X[:200][kept], y[:200][kept], weight_decay)
        risks = pp.TorchModel(retrained, loss="cross_entropy").risks(test).numpy()
        measured.append(risks - base)
        found.append(influence.values[:, i])
    found, measured = np.ravel(found), np.ravel(measured)
    assert np.corrcoef(found, measured)[0, 1] > 0.99
    assert 0.8 < np.polyfit(found, measured, 1)[0] < 1.3  # the scale, not the order alone


def test_softmax_without_regularisation_is_singular() -> None:
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(30, 4, generator=generator, dtype=torch.float64)
    model = pp.TorchModel(nn.Linear(4, 3).double(), loss="cross_entropy")
    train = X, torch.arange(30) % 3
    with pytest.raises(SolveError):
        pp.InfluenceFunctions("explicit", damping=0.0).fit(model, train)
    assert pp.InfluenceFunctions("explicit").fit(model, train).damping_ > 0


def test_indefinite_hessian_is_never_returned_as_if_right() -> None:
    generator = torch.Generator().manual_seed(1)
    X = torch.randn(20, 3, generator=generator, dtype=torch.float64)
    module = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    model = pp.TorchModel(module, loss="cross_entropy")
    train = X, torch.arange(20) % 2
    with pytest.raises(SolveError, match=r"ggn|GGN|Gauss|damping"):
        pp.InfluenceFunctions("explicit", curvature="hessian", damping=1e-6).fit(model, train)
    ok = pp.InfluenceFunctions("explicit", curvature="ggn", damping=1e-3).fit(model, train)
    assert (ok.memorization().values >= 0).all()


@pytest.mark.parametrize("curvature", ["fisher", "empirical_fisher"])
def test_fisher_matrices(curvature) -> None:
    """Explicit and conjugate gradients agree; the empirical one equals its dense form."""
    generator = torch.Generator().manual_seed(2)
    X = torch.randn(24, 3, generator=generator, dtype=torch.float64)
    y = torch.arange(24) % 3
    module = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    model = pp.TorchModel(module, loss="cross_entropy")
    settings = {"curvature": curvature, "damping": 0.1, "seed": 3}
    explicit = pp.InfluenceFunctions("explicit", **settings).fit(model, (X, y))
    cg = pp.InfluenceFunctions(ConjugateGradients(tolerance=1e-12), **settings)
    values = explicit.influence((X, y)).values
    assert close(cg.fit(model, (X, y)).influence((X, y)).values, values, 1e-9)
    if curvature == "empirical_fisher":
        rows = []
        for i in range(24):
            loss = functional.cross_entropy(module(X[i : i + 1]), y[i : i + 1])
            parts = torch.autograd.grad(loss, list(module.parameters()))
            rows.append(torch.cat([part.flatten() for part in parts]))
        G = torch.stack(rows)
        dense = torch.linalg.inv(G.T @ G / 24 + 0.1 * torch.eye(G.shape[1], dtype=torch.float64))
        assert close(values, G @ dense @ G.T / 24, 1e-10)


def test_refusals(ridge) -> None:
    with pytest.raises(NotFittedError):
        pp.InfluenceFunctions().influence(ridge.test)
    with pytest.raises(InvalidInputError, match=r"pp\.TorchModel"):
        pp.InfluenceFunctions().fit(ridge.module, ridge.train)
    with pytest.raises(InvalidInputError, match="solver"):
        pp.InfluenceFunctions("magic").fit(ridge.model, ridge.train)
    with pytest.raises(InvalidInputError, match="curvature"):
        pp.InfluenceFunctions(curvature="round").fit(ridge.model, ridge.train)
    with pytest.raises(InvalidInputError, match="damping"):
        pp.InfluenceFunctions(damping=-1.0).fit(ridge.model, ridge.train)
    with pytest.raises(InvalidInputError, match="loo_convention"):
        pp.InfluenceFunctions(loo_convention="C").fit(ridge.model, ridge.train)
    free = pp.TorchModel(ridge.module, risk=lambda net, batch: net(batch[0])[:, 0] ** 2)
    with pytest.raises(InvalidInputError):
        pp.InfluenceFunctions().fit(free, ridge.train)
    assert pp.InfluenceFunctions(curvature="hessian").fit(free, ridge.train)
