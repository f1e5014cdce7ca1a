"""Rescaled influence functions against retraining, dense Newton steps and scikit-learn refits."""

from functools import partial

import numpy as np
import pytest
import torch
from sklearn.datasets import load_breast_cancer, load_diabetes, load_iris, load_wine
from sklearn.linear_model import LinearRegression, LogisticRegression, Ridge, RidgeClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn
from torch.autograd.functional import hessian, jacobian
from torch.func import functional_call
from torch.nn import functional

import proponent as pp
from proponent.exceptions import InvalidInputError, MethodCapabilityError, SolveError

N, M, D = 40, 6, 4
WEIGHT_DECAY = 0.1
DIVISORS = {"fixed_divisor": N, "renormalised": N - 1}
NEWTON = {"tol": 1e-12, "max_iter": 100_000, "solver": "newton-cholesky"}


def close(found, expected, tolerance) -> bool:
    found, expected = np.asarray(found), np.asarray(expected)
    assert found.shape == expected.shape
    return bool(np.linalg.norm(found - expected) <= tolerance * np.linalg.norm(expected))


class RidgeTask:
    """Ridge regression without intercept, solved again without each instance."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)

        def normal(*shape):
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        self.X, self.X_test = normal(N, D), normal(M, D)
        self.y, self.y_test = self.X @ normal(D) + normal(N), normal(M)
        self.theta = self.solve(range(N), N)
        self.module = nn.Linear(D, 1, bias=False).double()
        self.module.weight.data = self.theta[None].clone()
        self.model = pp.TorchModel(self.module, loss="mse")
        self.train, self.test = (self.X, self.y), (self.X_test, self.y_test)

    def solve(self, rows, divisor):
        X, y = self.X[list(rows)], self.y[list(rows)]
        matrix = 2 * X.T @ X / divisor + WEIGHT_DECAY * torch.eye(D, dtype=torch.float64)
        return torch.linalg.solve(matrix, 2 * X.T @ y / divisor)

    def without_each(self, divisor):
        return torch.stack([self.solve([j for j in range(N) if j != i], divisor) for i in range(N)])

    def change(self, thetas, X, y):
        """Exact change of the squared errors, (len(y), n)."""
        before = (X @ self.theta - y) ** 2
        return ((X @ thetas.T - y[:, None]) ** 2 - before[:, None]).numpy()


@pytest.fixture(scope="module")
def ridge():
    return RidgeTask()


@pytest.mark.parametrize("convention", DIVISORS)
@pytest.mark.parametrize(
    "solver, batch_size", [("explicit", 1), ("explicit", 7), ("explicit", None), ("cg", None)]
)
def test_ridge_parameters_and_predictions_are_those_of_retraining(
    ridge, convention, solver, batch_size
) -> None:
    settings = {"weight_decay": WEIGHT_DECAY, "loo_convention": convention, "solver": solver}
    method = pp.RescaledIF(batch_size=batch_size, **settings).fit(ridge.model, ridge.train)
    thetas = ridge.without_each(DIVISORS[convention])
    tolerance = 1e-12 if solver == "explicit" else 1e-5
    moved = method.parameter_changes()["weight"][:, 0]
    assert close(moved, ridge.theta - thetas, tolerance)
    slopes = 2 * (ridge.X_test @ ridge.theta - ridge.y_test)
    linear = slopes[:, None] * (ridge.X_test @ (thetas - ridge.theta).T)
    assert close(method.influence(ridge.test).values, linear, tolerance)
    assert close(method.influence(ridge.test, joint=True).values, linear.sum(0), tolerance)


@pytest.mark.parametrize("convention", DIVISORS)
@pytest.mark.parametrize("memory", [2**29, 1200])
def test_ridge_risks_are_those_of_retraining(ridge, convention, memory) -> None:
    method = pp.RescaledIF(
        "evaluated", weight_decay=WEIGHT_DECAY, loo_convention=convention, memory=memory
    ).fit(ridge.model, ridge.train)
    thetas = ridge.without_each(DIVISORS[convention])
    exact = ridge.change(thetas, *ridge.test)
    assert close(method.influence(ridge.test).values, exact, 1e-12)
    assert close(method.influence(ridge.test, joint=True).values, exact.sum(0), 1e-12)
    halves = [method.influence(ridge.test, shard=(i, 3)).values for i in range(3)]
    assert close(np.concatenate(halves, 1), exact, 1e-12)
    itself = ridge.change(thetas, *ridge.train)
    assert close(method.memorization().values, np.diag(itself), 1e-12)
    assert close(method.influence(method.train_).values, itself, 1e-12)
    top = method.influence(ridge.test, top_k=2)
    np.testing.assert_allclose(top.proponents(2).values, -np.sort(-exact, 1)[:, :2], rtol=1e-10)


def test_one_output_is_the_influence_function_over_one_minus_leverage(ridge) -> None:
    plain = pp.InfluenceFunctions(weight_decay=WEIGHT_DECAY).fit(ridge.model, ridge.train)
    method = pp.RescaledIF(weight_decay=WEIGHT_DECAY).fit(ridge.model, ridge.train)
    eye = torch.eye(D, dtype=torch.float64)
    inverse = torch.linalg.inv(2 * ridge.X.T @ ridge.X / N + WEIGHT_DECAY * eye)
    leverage = 2 * ((ridge.X @ inverse) * ridge.X).sum(1) / N
    assert close(method.leverages_, leverage, 1e-12)
    expected = plain.influence(ridge.test).values / (1 - leverage.numpy())
    influence = method.influence(ridge.test)
    assert close(influence.values, expected, 1e-12)
    assert influence.diagnostics["largest_leverage"] == pytest.approx(float(leverage.max()))
    moved = pp.RescaledIF(weight_decay=WEIGHT_DECAY, loo_convention="renormalised")
    noticed = moved.fit(ridge.model, ridge.train).influence(ridge.test).diagnostics
    assert noticed["weight_decay"] == influence.diagnostics["weight_decay"] == WEIGHT_DECAY
    assert noticed["objective_gradient_norm"] < 1e-12
    itself = method.influence(ridge.train).values
    assert close(method.memorization().values, np.diag(itself), 1e-12)
    groups = {"odd": np.arange(1, N, 2), "first": [0]}
    found = method.group_influence(groups, ridge.test).values
    assert close(found, np.stack([expected[:, 1::2].sum(1), expected[:, 0]], 1), 1e-12)


@pytest.mark.parametrize("convention", DIVISORS)
def test_cooks_distance(ridge, convention) -> None:
    """The quadratic form of the retrained parameters; without a penalty Cook's own formula."""
    settings = {"weight_decay": WEIGHT_DECAY, "loo_convention": convention}
    method = pp.RescaledIF(**settings).fit(ridge.model, ridge.train)
    kept = WEIGHT_DECAY * (1 if convention == "fixed_divisor" else (N - 1) / N)
    matrix = 2 * ridge.X.T @ ridge.X / N + kept * torch.eye(D, dtype=torch.float64)
    moved = ridge.without_each(DIVISORS[convention]) - ridge.theta
    expected = N / D * ((moved @ matrix) * moved).sum(1)
    assert close(method.cooks_distance().values, expected, 1e-11)

    X, y = load_diabetes(return_X_y=True)
    X, y = StandardScaler().fit_transform(X)[:60, :3], y[:60]
    least_squares = LinearRegression().fit(X, y)
    distance = pp.RescaledIF().fit(least_squares, (X, y)).cooks_distance().values
    design = np.hstack([X, np.ones((60, 1))])
    leverage = np.diag(design @ np.linalg.pinv(design))
    residuals = y - least_squares.predict(X)
    cook = residuals**2 * leverage / (1 - leverage) ** 2 / 4  # times s^2
    assert close(distance, 2 * cook, 1e-10)  # the risk here is without the half


# Several outputs, networks


def network(outputs: int) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, outputs)).double()


def pairs(n: int, outputs: int, loss: str, seed: int = 1):
    generator = torch.Generator().manual_seed(seed)
    X = torch.randn(n, 3, generator=generator, dtype=torch.float64)
    if loss == "cross_entropy":
        return X, torch.randint(outputs, (n,), generator=generator)
    y = torch.randn(n, outputs, generator=generator, dtype=torch.float64)
    return X, y.sigmoid() if loss == "bce_with_logits" else y


class Dense:
    """Jacobians, slopes and curvatures of each instance by functional derivatives."""

    def __init__(self, module, loss, data, chosen) -> None:
        names = [name for name, _ in module.named_parameters() if name.startswith(chosen)]
        values = [module.get_parameter(name).detach() for name in names]
        X, y = data

        def outputs(x):
            return lambda *parts: functional_call(
                module, dict(zip(names, parts, strict=True)), (x[None],)
            )[0]

        def risk(z, target):
            if loss == "cross_entropy":
                return functional.cross_entropy(z[None], target[None])
            if loss == "bce_with_logits":
                return functional.binary_cross_entropy_with_logits(z, target)
            return functional.mse_loss(z, target)

        self.J, self.d, self.D = [], [], []
        for x, target in zip(X, y, strict=True):
            parts = jacobian(outputs(x), tuple(values))
            self.J.append(torch.cat([part.flatten(1) for part in parts], 1))
            z = outputs(x)(*values).detach()
            self.d.append(jacobian(partial(risk, target=target), z))
            self.D.append(hessian(partial(risk, target=target), z))
        self.theta = torch.cat([value.flatten() for value in values])

    def shares(self):
        return [J.T @ D @ J for J, D in zip(self.J, self.D, strict=True)]

    def gradients(self):
        return [J.T @ d for J, d in zip(self.J, self.d, strict=True)]


def newton_steps(train: Dense, decay: float, damping: float, convention: str):
    """Solve with the matrix without each instance, written out: (n, p)."""
    n, p = len(train.J), len(train.theta)
    eye = torch.eye(p, dtype=torch.float64)
    total, shares, steps = sum(train.shares()), train.shares(), []
    for share, gradient in zip(shares, train.gradients(), strict=True):
        if convention == "fixed_divisor":
            matrix, right = (total - share) / n + (decay + damping) * eye, gradient
        else:
            matrix = (total - share) / n + ((n - 1) / n * decay + damping) * eye
            right = gradient + decay * train.theta
        steps.append(torch.linalg.solve(matrix, right) / n)
    return torch.stack(steps)


@pytest.mark.parametrize("loss, outputs", [
    ("cross_entropy", 3), ("bce_with_logits", 1), ("mse", 2),
])  # fmt: skip
@pytest.mark.parametrize("convention", DIVISORS)
@pytest.mark.parametrize("parameters", ["all", "last"])
def test_networks_take_the_newton_step_of_the_matrix_without_the_instance(
    loss, outputs, convention, parameters
) -> None:
    module = network(outputs)
    train, test = pairs(15, outputs, loss), pairs(4, outputs, loss, seed=2)
    chosen = "" if parameters == "all" else "2."
    dense = Dense(module, loss, train, chosen)
    steps = newton_steps(dense, 0.05, 0.01, convention)
    tested = Dense(module, loss, test, chosen)
    expected = torch.stack(tested.gradients()) @ steps.T
    settings = {"weight_decay": 0.05, "damping": 0.01, "loo_convention": convention}
    model = pp.TorchModel(module, loss=loss, parameters=parameters)
    method = pp.RescaledIF(batch_size=4, **settings).fit(model, train)
    assert close(method.influence(test).values, expected, 1e-10)
    itself = (torch.stack(dense.gradients()) * steps).sum(1)
    assert close(method.memorization().values, itself, 1e-10)
    changes = method.parameter_changes([3, 0])
    found = np.concatenate([part.reshape(2, -1) for part in changes.values()], 1)
    assert close(found, -steps[[3, 0]], 1e-10)


def test_evaluated_risks_move_every_output() -> None:
    module, loss = network(3), "cross_entropy"
    train, test = pairs(15, 3, loss), pairs(4, 3, loss, seed=2)
    dense, tested = (Dense(module, loss, data, "") for data in (train, test))
    for convention in DIVISORS:
        steps = newton_steps(dense, 0.05, 0.0, convention)
        outputs = module(test[0]).detach()
        moved = outputs[:, None] + torch.einsum("tcp,ip->tic", torch.stack(tested.J), steps)
        labels = test[1].repeat_interleave(15)
        after = functional.cross_entropy(moved.reshape(60, 3), labels, reduction="none")
        before = functional.cross_entropy(outputs, test[1], reduction="none")
        expected = after.reshape(4, 15) - before[:, None]
        settings = {"weight_decay": 0.05, "damping": 0.0, "loo_convention": convention}
        model = pp.TorchModel(module, loss=loss)
        method = pp.RescaledIF("evaluated", **settings).fit(model, train)
        assert close(method.influence(test).values, expected, 1e-10)
        with pytest.raises(MethodCapabilityError, match="group"):
            method.group_influence([0] * 15, test)
    assert pp.RescaledIF(weight_decay=0.05).fit(model, train).influence(test).additive
    assert not method.influence(test).additive


def test_leverages_of_several_outputs_are_eigenvalues() -> None:
    module, train = network(3), pairs(15, 3, "cross_entropy")
    dense = Dense(module, "cross_entropy", train, "")
    method = pp.RescaledIF(weight_decay=0.05, damping=0.0)
    method.fit(pp.TorchModel(module, loss="cross_entropy"), train)
    total, p = sum(dense.shares()) / 15, len(dense.theta)
    matrix = total + 0.05 * torch.eye(p, dtype=torch.float64)
    expected = [torch.linalg.eigvals(torch.linalg.solve(matrix, s / 15)).real.max()
                for s in dense.shares()]  # fmt: skip
    assert close(method.leverages_, expected, 1e-10)


def test_outputs_of_several_axes_and_batches_that_are_dicts() -> None:
    """A token classifier, outputs (batch, tokens, classes), equals its outputs side by side."""

    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 2).double()

        def forward(self, x):
            return self.layer(x)

    torch.manual_seed(3)
    module = Tokens()
    X, y = torch.randn(8, 4, 3, dtype=torch.float64), torch.randint(2, (8, 4))
    model = pp.TorchModel(module, loss="cross_entropy")
    method = pp.RescaledIF(weight_decay=0.1, batch_size=3).fit(model, {"x": X, "labels": y})
    found = method.influence({"x": X[:2], "labels": y[:2]}).values
    eye = torch.eye(2, dtype=torch.float64)
    J = torch.stack([
        torch.cat([torch.kron(eye, x[None]), eye], 1) for x in X.reshape(-1, 3)
    ]).reshape(8, 8, 8)  # fmt: skip
    p = module(X).detach().softmax(-1)
    d = ((p - functional.one_hot(y, 2)) / 4).reshape(8, 8)
    shares, gradients = [], torch.einsum("ncp,nc->np", J, d)
    for Ji, pi in zip(J, p, strict=True):
        blocks = [(torch.diag(row) - torch.outer(row, row)) / 4 for row in pi]
        shares.append(Ji.T @ torch.block_diag(*blocks) @ Ji)
    matrix = sum(shares) / 8 + 0.1 * torch.eye(8, dtype=torch.float64)
    steps = torch.stack([
        torch.linalg.solve(matrix - share / 8, g) / 8
        for share, g in zip(shares, gradients, strict=True)
    ])  # fmt: skip
    assert close(found, gradients[:2] @ steps.T, 1e-10)


def test_single_precision_and_kronecker_factors() -> None:
    module, train = network(3), pairs(30, 3, "cross_entropy")
    double = pp.RescaledIF(weight_decay=0.05)
    double.fit(pp.TorchModel(module, loss="cross_entropy"), train)
    expected = double.influence(train).values
    single = module.float()
    model = pp.TorchModel(single, loss="cross_entropy")
    found = pp.RescaledIF(weight_decay=0.05).fit(model, train).influence(train)
    assert close(found.values, expected, 1e-4)
    module.double()
    factored = pp.RescaledIF(solver="ekfac", weight_decay=0.05)
    factored.fit(pp.TorchModel(module, loss="cross_entropy"), train)
    values = factored.influence(train).values
    assert np.corrcoef(values.ravel(), expected.ravel())[0, 1] > 0.9
    assert (factored.leverages_ > 0).all() and (factored.leverages_ < 1).all()


# scikit-learn: exact leave-one-out by refits


def split(load, n=80, m=25):
    X, y = load(return_X_y=True)
    rows = np.random.default_rng(0).permutation(len(y))
    X = StandardScaler().fit_transform(X)[rows]
    return (X[:n], y[rows][:n]), (X[n : n + m], y[rows][n : n + m])


def nats(model, X, y):
    return -np.log(model.predict_proba(X)[np.arange(len(y)), y])


def logistic_leave_one_out(train, test, C):
    """Exact changes of the risks, on the test set (m, n) and of each instance itself (n,)."""
    fitted = LogisticRegression(C=C, **NEWTON).fit(*train)
    (X, y), base = train, nats(fitted, *test)
    changes, own = np.empty((len(base), len(y))), np.empty(len(y))
    for i in range(len(y)):
        kept = np.arange(len(y)) != i
        refit = LogisticRegression(C=C, **NEWTON).fit(X[kept], y[kept])
        changes[:, i] = nats(refit, *test) - base
        own[i] = (nats(refit, X[[i]], y[[i]]) - nats(fitted, X[[i]], y[[i]]))[0]
    return fitted, changes, own


def error(found, exact) -> float:
    return float(np.linalg.norm(found.values - exact) / np.linalg.norm(exact))


@pytest.mark.parametrize(
    "load, plain, linear, evaluated",
    [
        # relative errors, on test risks and on memorization, that are to be beaten, or not
        (load_breast_cancer, (0.34, 0.60), (0.13, 0.37), (0.06, 0.04)),
        (load_iris, (0.16, 0.32), (0.06, 0.17), (0.03, 0.05)),
        (load_wine, (0.45, 0.75), (0.16, 0.55), (0.07, 0.09)),
    ],
)
def test_logistic_leave_one_out(load, plain, linear, evaluated) -> None:
    """Plain influence functions are off by more than ``plain``, rescaled ones by less."""
    train, test = split(load)
    fitted, exact, own = logistic_leave_one_out(train, test, 1.0)
    first = pp.InfluenceFunctions().fit(fitted, train)
    assert error(first.influence(test), exact) > plain[0]
    assert error(first.memorization(), own) > plain[1]
    for test_risk, bounds in {"linear": linear, "evaluated": evaluated}.items():
        method = pp.RescaledIF(test_risk).fit(fitted, train)
        assert error(method.influence(test), exact) < bounds[0]
        assert error(method.memorization(), own) < bounds[1]


@pytest.mark.parametrize("outputs", [1, 2])
def test_ridge_with_intercept_equals_refits(outputs) -> None:
    (X, y), (X_test, y_test) = split(load_diabetes)
    if outputs == 2:
        y, y_test = np.stack([y, X[:, 0] * y], 1), np.stack([y_test, X_test[:, 0]], 1)
    ridge = make_pipeline(StandardScaler(), Ridge(2.0)).fit(X, y)
    method = pp.RescaledIF("evaluated").fit(ridge, (X, y))
    exact = np.empty((len(y_test), len(y)))
    scaled, scaled_test = ridge[0].transform(X), ridge[0].transform(X_test)
    before = ((ridge.predict(X_test) - y_test) ** 2).reshape(len(y_test), -1).mean(1)
    for i in range(len(y)):
        kept = np.arange(len(y)) != i
        refit = Ridge(2.0).fit(scaled[kept], y[kept])
        after = ((refit.predict(scaled_test) - y_test) ** 2).reshape(len(y_test), -1).mean(1)
        exact[:, i] = after - before
    assert close(method.influence((X_test, y_test)).values, exact, 1e-10)


def test_ridge_classifier_equals_refits_with_other_labels() -> None:
    (X, y), (X_test, y_test) = split(load_iris)
    names = np.array(["a", "b", "c"])
    method = pp.RescaledIF("evaluated")
    method.fit(RidgeClassifier().fit(X, names[y]), (X, names[y]))
    codes = 2 * np.eye(3) - 1

    def risks(model):
        return ((model.predict(X_test) - codes[y_test]) ** 2).mean(1)

    before = risks(Ridge().fit(X, codes[y]))
    for i in (0, 33):
        kept = np.arange(len(y)) != i
        expected = risks(Ridge().fit(X[kept], codes[y[kept]])) - before
        found = method.influence((X_test, names[y_test])).values[:, i]
        assert close(found, expected, 1e-10)


# Refusals


def test_leverage_of_one_is_refused_by_name() -> None:
    X, y = load_diabetes(return_X_y=True)
    X, y = X[:30, :3].copy(), y[:30]
    alone = np.zeros((30, 1))
    alone[7] = 1.0  # a feature that one instance alone has
    train = np.hstack([X, alone]), y
    ids = [f"patient {i}" for i in range(30)]
    least_squares = LinearRegression().fit(*train)
    with pytest.raises(SolveError, match=r"leverage of 1 training instance.*\(ids patient 7\)"):
        pp.RescaledIF().fit(least_squares, train, ids=ids)
    assert pp.InfluenceFunctions().fit(least_squares, train, ids=ids)
    method = pp.RescaledIF().fit(Ridge(0.1).fit(*train), train, ids=ids)
    assert 0.8 < method.leverages_[7] < 1


def test_refusals(ridge) -> None:
    with pytest.raises(InvalidInputError, match="test_risk='exact'"):
        pp.RescaledIF("exact").fit(ridge.model, ridge.train)
    free = pp.TorchModel(ridge.module, risk=lambda net, batch: net(batch[0])[:, 0] ** 2)
    with pytest.raises(InvalidInputError, match="outputs and a loss"):
        pp.RescaledIF(weight_decay=0.1).fit(free, ridge.train)
    with pytest.raises(SolveError, match="memory"):
        pp.RescaledIF(weight_decay=0.1, solver="cg", memory=50).fit(ridge.model, ridge.train)
    one = ridge.X[:1], ridge.y[:1]
    with pytest.raises(InvalidInputError, match="only instance"):
        pp.RescaledIF(weight_decay=0.1, loo_convention="renormalised").fit(ridge.model, one)
    flat = pp.TorchModel(nn.Sequential(nn.Linear(4, 2).double(), nn.Flatten(0)), loss="mse")
    with pytest.raises(InvalidInputError):
        pp.RescaledIF(weight_decay=0.1).fit(flat, ridge.train)


def test_model_is_left_as_it_was(ridge) -> None:
    ridge.module.train()
    weight = ridge.module.weight.detach().clone()
    state = torch.get_rng_state()
    method = pp.RescaledIF("evaluated", weight_decay=WEIGHT_DECAY).fit(ridge.model, ridge.train)
    method.influence(ridge.test)
    assert ridge.module.training and ridge.module.weight.grad is None
    assert torch.equal(ridge.module.weight, weight) and torch.equal(torch.get_rng_state(), state)
