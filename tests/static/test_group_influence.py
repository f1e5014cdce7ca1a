"""Group influence against retraining, closed forms and the formulas written out densely."""

from functools import cached_property

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal
from sklearn.linear_model import LogisticRegression
from static.networks import M, N, Network, close
from torch import nn
from torch.func import functional_call, jacrev
from torch.nn import functional

import proponent as pp
from proponent.exceptions import (
    InvalidInputError,
    MethodCapabilityError,
    NonFiniteError,
    NotFittedError,
    SolveError,
)
from proponent.gradients.gauss_newton import GaussNewton
from proponent.gradients.remaining import Remaining, Restricted
from proponent.gradients.solvers.conjugate_gradients import ConjugateGradients
from proponent.gradients.solvers.lissa import LiSSA
from proponent.influence import Influence
from proponent.static.group_influence import GroupIF, SecondOrderGroupIF

CONVENTIONS = ["fixed_divisor", "renormalised"]
GROUPS = {"first": [0, 1, 2, 3], "odd": list(range(1, 12, 2)), "one": [22]}
DECAY, DAMPING = 0.03, 0.02


class Removals(Network):
    """A network, and what removing groups does by each formula, from dense matrices alone."""

    @cached_property
    def each(self) -> torch.Tensor:
        """The Gauss-Newton matrix of each instance, (n, p, p)."""
        X = self.train[0]
        jacobian = jacrev(lambda p: functional_call(self.module, p, (X,)))(self.parameters)
        J = torch.cat([part.flatten(2) for part in jacobian.values()], 2)
        p = torch.softmax(self.module(X).detach(), 1)
        D = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
        return torch.einsum("nap,nab,nbq->npq", J, D, J)

    @cached_property
    def penalties(self) -> dict[str, float]:
        """A weight decay for each parameter, all different."""
        return {name: DECAY * (i + 1) for i, name in enumerate(self.parameters)}

    def decay(self, weight_decay: float | dict[str, float]) -> torch.Tensor:
        if not isinstance(weight_decay, dict):
            return torch.full_like(self.theta, weight_decay)
        parts = [torch.full_like(v, weight_decay[n]) for n, v in self.parameters.items()]
        return torch.cat([part.flatten() for part in parts])

    def change(self, kind: str, members, convention: str, weight_decay) -> torch.Tensor:
        """theta_{-U} - theta of one group, (p,), by the formulas of the docstrings."""
        decay, members = self.decay(weight_decay), list(members)
        gradients, curvatures = self.gradients(self.train)[members], self.each[members]
        whole = self.each.mean(0) + torch.diag(decay + DAMPING)
        if convention == "renormalised":  # each risk carries its penalty
            gradients = gradients + decay * self.theta
            curvatures = curvatures + torch.diag(decay + DAMPING)
        total, bent, q = gradients.sum(0), curvatures.sum(0), len(members) / N
        if kind == "newton":
            return torch.linalg.solve(N * whole - bent, total)
        inverse = torch.linalg.inv(whole)
        if kind == "additive":
            return inverse @ total / N
        if convention == "fixed_divisor":
            first = inverse @ total / N
            return first + inverse @ (bent / N) @ first
        # Basu et al., with the minus sign, step by step
        theta1 = inverse @ total / N / (1 - q)
        mean = bent / len(members)
        eye = torch.eye(len(total)).double()
        return theta1 - q / (1 - q) * (eye - inverse @ mean) @ theta1


def make(kind: str, **settings) -> GroupIF | SecondOrderGroupIF:
    return SecondOrderGroupIF(**settings) if kind == "second" else GroupIF(kind, **settings)


@pytest.fixture(scope="module")
def network() -> Removals:
    return Removals(4)


KINDS = ["additive", "newton", "second"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize("batch_size, each", [(1, False), (7, True), (None, False)])
def test_the_formulas(network, kind, convention, batch_size, each) -> None:
    weight_decay = network.penalties if each else DECAY
    method = make(
        kind,
        weight_decay=weight_decay,
        damping=DAMPING,
        loo_convention=convention,
        batch_size=batch_size,
    ).fit(network.model, network.train)
    changes = torch.stack(
        [network.change(kind, members, convention, weight_decay) for members in GROUPS.values()]
    )
    answer = method.group_influence(GROUPS, network.test, ids=[f"test-{i}" for i in range(M)])
    assert close(answer.values, network.gradients(network.test) @ changes.T)
    assert_array_equal(answer.train_ids, list(GROUPS))
    assert answer.test_ids[0] == "test-0"
    assert answer.additive == (kind == "additive")
    assert answer.diagnostics["group_sizes"] == [4, 6, 1]
    assert answer.diagnostics["why_solver"].startswith("explicit: exact")
    moved = method.group_parameter_changes(GROUPS)
    flat = np.concatenate([part.reshape(3, -1) for part in moved.values()], 1)
    assert close(flat, -changes)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "solver", ["explicit", ConjugateGradients(tolerance=1e-12), ConjugateGradients(coupled=False)]
)
def test_the_solver_does_not_matter(network, kind, solver) -> None:
    settings = {"weight_decay": DECAY, "damping": DAMPING}
    method = make(kind, solver=solver, **settings).fit(network.model, network.train)
    changes = torch.stack([network.change(kind, m, CONVENTIONS[0], DECAY) for m in GROUPS.values()])
    answer = method.group_influence(GROUPS, network.test)
    rough = isinstance(solver, ConjugateGradients) and solver.tolerance > 1e-12
    tolerance = 1e-5 if rough else 1e-9
    assert close(answer.values, network.gradients(network.test) @ changes.T, tolerance)
    assert answer.diagnostics["converged"]


@pytest.mark.parametrize("kind", ["newton", "second"])
@pytest.mark.parametrize("curvature", ["fisher", "empirical_fisher", "hessian"])
def test_other_curvatures(network, kind, curvature) -> None:
    """Explicit and by products alone; the empirical Fisher matrix also by hand."""
    settings = {"curvature": curvature, "damping": 1.0, "seed": 3}
    found = make(kind, solver="explicit", **settings).fit(network.model, network.train)
    other = make(kind, solver=ConjugateGradients(tolerance=1e-12), **settings)
    other.fit(network.model, network.train)
    values = found.group_influence(GROUPS, network.test).values
    assert close(other.group_influence(GROUPS, network.test).values, values, 1e-9)
    if curvature == "empirical_fisher" and kind == "newton":
        G, eye = network.gradients(network.train), torch.eye(len(network.theta)).double()
        expected = []
        for members in GROUPS.values():
            rest = np.setdiff1d(np.arange(N), members)
            matrix = G[rest].T @ G[rest] / N + eye
            expected.append(torch.linalg.solve(matrix, G[members].sum(0) / N))
        assert close(values, network.gradients(network.test) @ torch.stack(expected).T)


# Retraining


class Logistic:
    """Logistic regression of 200 instances, trained to 1e-12 by Newton's method."""

    def __init__(self, d: int = 8, weight_decay: float = 0.01) -> None:
        generator = torch.Generator().manual_seed(0)
        self.n, self.weight_decay = 200, weight_decay
        self.X = torch.randn(self.n, d, generator=generator, dtype=torch.float64)
        theta = torch.randn(d, generator=generator, dtype=torch.float64)
        drawn = torch.rand(self.n, generator=generator).double()
        self.y = (drawn < torch.sigmoid(self.X @ theta)).double()
        self.theta = self.train(np.arange(self.n), self.n)
        module = nn.Linear(d, 1, bias=False).double()
        module.weight.data = self.theta[None].clone()

        def loss(output, target):
            logits = output[:, 0]
            return functional.binary_cross_entropy_with_logits(logits, target, reduction="none")

        self.model = pp.TorchModel(module, loss=loss)

    def train(self, kept, divisor: int) -> torch.Tensor:
        X, y = self.X[kept], self.y[kept]
        theta = torch.zeros(X.shape[1]).double()
        for _ in range(50):
            p = torch.sigmoid(X @ theta)
            gradient = X.T @ (p - y) / divisor + self.weight_decay * theta
            hessian = (X * (p * (1 - p))[:, None]).T @ X / divisor
            hessian += self.weight_decay * torch.eye(len(theta)).double()
            step = torch.linalg.solve(hessian, gradient)
            theta = theta - step
            if step.norm() < 1e-12:
                return theta
        raise AssertionError("Newton's method did not converge")

    def removed(self, members, convention: str) -> torch.Tensor:
        """theta - theta_{-U} by retraining, (d,)."""
        kept = np.setdiff1d(np.arange(self.n), members)
        return self.theta - self.train(kept, len(kept) if convention == "renormalised" else self.n)


@pytest.fixture(scope="module")
def logistic() -> Logistic:
    return Logistic()


def error(found, true) -> float:
    """Mean over groups of ||found - true|| / ||true||."""
    found, true = torch.as_tensor(found).flatten(1), torch.stack(true)
    return float(((found - true).norm(dim=1) / true.norm(dim=1)).mean())


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_second_order_and_newton_are_closer_to_retraining(logistic, convention) -> None:
    """The spec's table for random groups: .096 .156 .252 .317 -> .030 .049 .078 .094, roughly."""
    settings = {"weight_decay": logistic.weight_decay, "loo_convention": convention}
    data = logistic.X, logistic.y
    methods = {kind: make(kind, **settings).fit(logistic.model, data) for kind in KINDS}
    rng, errors = np.random.default_rng(0), []
    for fraction in (0.05, 0.1, 0.2, 0.3):
        size = int(fraction * logistic.n)
        groups = {i: rng.choice(logistic.n, size, replace=False) for i in range(15)}
        true = [logistic.removed(members, convention) for members in groups.values()]
        changes = {k: m.group_parameter_changes(groups)["weight"] for k, m in methods.items()}
        errors.append([error(changes[kind], true) for kind in KINDS])
        # With the other sign in Basu's term the estimate is worse than that of first order by
        # far: theta1 + (q / (1 - q)) (1 - A^{-1} mean C) theta1, where theta1 = additive / (1 - q).
        if convention == "renormalised":
            theta1 = changes["additive"] / (1 - fraction)
            assert error(2 * theta1 - changes["second"], true) > 2.5 * errors[-1][2]
    additive, newton, second = np.transpose(errors)
    assert (second < 0.5 * additive).all()
    assert (newton < 0.4 * additive).all()
    assert (np.diff(additive) > 0).all()
    assert 0.05 < additive[0] < 0.15 and 0.2 < additive[-1] < 0.45
    assert second[0] < 0.06 and second[-1] < 0.16


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_the_additive_estimate_comes_out_small_for_groups_of_one_kind(logistic, convention) -> None:
    """Koh et al. (2019): on the members' own risk, and the groups' ranking is kept."""
    data = logistic.X, logistic.y
    settings = {"weight_decay": logistic.weight_decay, "loo_convention": convention}
    method = GroupIF(**settings).fit(logistic.model, data)
    rng, found, true = np.random.default_rng(1), [], []
    for _ in range(10):
        direction = torch.as_tensor(rng.normal(size=logistic.X.shape[1]))
        for label in (0, 1):  # 25 alike of one class
            likeness = (logistic.X @ direction).masked_fill(logistic.y != label, -np.inf)
            members = torch.topk(likeness, 25).indices.numpy()
            X, y = logistic.X[members], logistic.y[members]
            found.append(method.group_influence({0: members}, (X, y)).values.sum())
            theta = logistic.theta - logistic.removed(members, convention)
            risks = [
                functional.binary_cross_entropy_with_logits(X @ at, y, reduction="sum")
                for at in (theta, logistic.theta)
            ]
            true.append(float(risks[0] - risks[1]))
    assert (np.abs(found) < np.abs(true)).all()
    assert np.corrcoef(found, true)[0, 1] > 0.95


def test_groups_of_a_scikit_learn_model() -> None:
    """Its objective is a sum of risks with a fixed penalty: the others keep their weight."""
    rng = np.random.default_rng(3)
    X = rng.normal(size=(120, 4))
    y = (X[:, 0] + rng.normal(size=120) > 0).astype(int)
    train, test = (X[:90], y[:90]), (X[90:], y[90:])

    def fit(kept) -> LogisticRegression:
        return LogisticRegression(tol=1e-10, max_iter=1000).fit(train[0][kept], train[1][kept])

    def risks(model) -> np.ndarray:
        return -np.log(model.predict_proba(test[0])[np.arange(30), test[1]])

    whole, groups = fit(slice(None)), {"a": np.arange(12), "b": np.arange(40, 50)}
    rest = [np.setdiff1d(np.arange(90), members) for members in groups.values()]
    true = np.stack([risks(fit(kept)) - risks(whole) for kept in rest], 1)
    for kind, most in (("additive", 0.5), ("second", 0.25), ("newton", 0.2)):
        found = make(kind).fit(whole, train).group_influence(groups, test).values
        assert np.linalg.norm(found - true) < most * np.linalg.norm(true)


class Ridge:
    """(1/2n) ||X theta - y||^2 + (weight_decay / 2) ||theta||^2, solved exactly."""

    def __init__(self, n: int = 30, d: int = 5, weight_decay: float = 0.2) -> None:
        generator = torch.Generator().manual_seed(2)
        self.n, self.d, self.weight_decay = n, d, weight_decay
        self.X = torch.randn(n, d, generator=generator, dtype=torch.float64)
        self.y = torch.randn(n, generator=generator, dtype=torch.float64)
        module = nn.Linear(d, 1, bias=False).double()
        module.weight.data = self.train(np.arange(n), n)[None].clone()
        self.model = pp.TorchModel(module, loss=lambda out, y: 0.5 * (out[:, 0] - y) ** 2)

    def train(self, kept, divisor: int) -> torch.Tensor:
        X, y = self.X[kept], self.y[kept]
        hessian = X.T @ X / divisor + self.weight_decay * torch.eye(self.d).double()
        return torch.linalg.solve(hessian, X.T @ y / divisor)


@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize("solver", ["explicit", ConjugateGradients(tolerance=1e-14)])
def test_a_newton_step_is_exact_on_ridge(convention, solver) -> None:
    ridge, groups = Ridge(), {"a": [0, 3, 4], "b": list(range(5, 25))}
    method = GroupIF(
        "newton", solver=solver, weight_decay=ridge.weight_decay, loo_convention=convention
    ).fit(ridge.model, (ridge.X, ridge.y))
    whole = ridge.train(np.arange(ridge.n), ridge.n)
    true = []
    for members in groups.values():
        kept = np.setdiff1d(np.arange(ridge.n), members)
        divisor = ridge.n if convention == "fixed_divisor" else len(kept)
        true.append(whole - ridge.train(kept, divisor))
    changes = method.group_parameter_changes(groups)["weight"][:, 0]
    assert close(changes, torch.stack(true), 1e-12)


# Single instances and the frame


@pytest.mark.parametrize("kind", KINDS)
def test_single_instances_are_groups_of_one(network, kind) -> None:
    settings = {"weight_decay": DECAY, "damping": DAMPING, "loo_convention": "renormalised"}
    method = make(kind, **settings).fit(network.model, network.train)
    influence = method.influence(network.test)
    alone = method.group_influence(np.arange(N), network.test)
    assert close(influence.values, alone.values)
    assert influence.additive == (kind == "additive")
    assert close(method.influence(network.test, joint=True).values, influence.values.sum(0))
    own = method.influence(network.train).values.diagonal()
    # The test gradient has no weight decay, the training gradient has.
    assert close(method.memorization().values, own)
    parts = [method.influence(network.test, shard=(i, 2)) for i in range(2)]
    assert close(Influence.join(parts).values, influence.values)
    top = method.influence(network.test, top_k=4)
    assert_array_equal(top.proponents().ids, influence.proponents(4).ids)


def test_the_additive_estimate_is_the_sum_of_influence_functions(network) -> None:
    settings = {"weight_decay": DECAY, "loo_convention": "renormalised"}
    method = GroupIF(**settings).fit(network.model, network.train)
    single = pp.InfluenceFunctions(**settings).fit(network.model, network.train)
    single = single.influence(network.test)
    assert_array_equal(method.influence(network.test).values, single.values)
    assert close(method.group_influence(GROUPS, network.test).values, single.group(GROUPS).values)
    # more groups than tests: the tests are solved for
    labels = np.arange(N) % (M + 2)
    expected = single.group(labels)
    found = method.group_influence(labels, network.test)
    assert_array_equal(found.values, expected.values)
    assert_array_equal(found.train_ids, expected.train_ids)


def test_kronecker_factors_serve_the_additive_estimate_alone(network) -> None:
    method = GroupIF(solver="ekfac", damping=0.1).fit(network.model, network.train)
    single = method.influence(network.test)
    assert close(method.group_influence(GROUPS, network.test).values, single.group(GROUPS).values)
    for kind in ("newton", "second"):
        with pytest.raises(InvalidInputError, match=r"ekfac.*'explicit' or 'cg'"):
            make(kind, solver="ekfac").fit(network.model, network.train)


@pytest.mark.parametrize("kind", KINDS)
def test_little_memory_gives_the_same(network, kind) -> None:
    settings = {"weight_decay": DECAY, "solver": "explicit"}
    plain = make(kind, **settings).fit(network.model, network.train)
    tight = make(kind, memory=16 * len(network.theta) * 2, **settings)
    tight.fit(network.model, network.train)
    for ask in (
        lambda m: m.group_influence(GROUPS, network.test),
        lambda m: m.influence(network.test),
        lambda m: m.memorization(),
    ):
        assert close(ask(tight).values, ask(plain).values)


def test_the_curvature_without_a_group(network) -> None:
    """Products, over all instances and over some, and the matrix; and LiSSA converges on it."""
    ggn = GaussNewton(network.model, pp.Instances.of(network.train), batch_size=4)
    removed, rest = np.array([1, 5, 6, 20]), np.setdiff1d(np.arange(N), [1, 5, 6, 20])
    left = Remaining(ggn, removed, ggn.dense)
    expected = network.each[rest].sum(0) / N
    vectors = torch.randn(3, ggn.size).double()
    assert close(left.matvec(vectors), vectors @ expected)
    assert close(left.dense(), expected)
    some = np.array([0, 1, 7, 5])
    assert close(left.matvec_on(vectors, some), vectors @ network.each[[0, 7]].sum(0) / 4)
    assert left.matvec_on(vectors, removed).abs().max() == 0
    assert close(Restricted(ggn, removed).dense(), network.each[removed].mean(0))
    solved = LiSSA(batch_size=8, steps=80).prepare(left, 1.0).solve(vectors)
    dense = expected + torch.eye(ggn.size).double()
    assert close(solved.vectors, torch.linalg.solve(dense, vectors.T).T, 0.05)


# What is noticed and refused


@pytest.mark.parametrize("kind", KINDS)
def test_large_groups_are_warned_of(network, kind) -> None:
    method = make(kind, weight_decay=DECAY).fit(network.model, network.train)
    fine = method.group_influence({"small": np.arange(6)}, network.test)
    assert not any("training set" in text for text in fine.diagnostics["warnings"])
    large = method.group_influence({"small": [1], "large": np.arange(7)}, network.test)
    (warning,) = [w for w in large.diagnostics["warnings"] if "of the training set" in w]
    assert "groups large are more than 30%" in warning


def test_the_whole_training_set_is_refused_by_what_is_not_additive(network) -> None:
    groups = {"some": [0, 1], "all": np.arange(N)}
    for kind in ("newton", "second"):
        method = make(kind, weight_decay=DECAY).fit(network.model, network.train)
        for ask in (
            lambda m: m.group_influence(groups, network.test),
            lambda m: m.group_parameter_changes(groups),
        ):
            with pytest.raises(InvalidInputError, match=r"'all' is the whole training set"):
                ask(method)
    additive = GroupIF(weight_decay=DECAY, loo_convention="fixed_divisor")
    additive.fit(network.model, network.train)
    total = additive.influence(network.test).values.sum(1)
    assert close(additive.group_influence(groups, network.test).values[:, 1], total)


@pytest.mark.parametrize("solver", ["explicit", "cg"])
def test_what_remains_has_to_be_positive_definite(solver) -> None:
    """A risk c (theta . x)^2 / 2, with c negative for the first three."""
    X, sign = torch.eye(2).double().repeat(5, 1), torch.tensor([-1.0] * 3 + [1.0] * 7).double()
    module = nn.Linear(2, 1, bias=False).double()
    model = pp.TorchModel(module, risk=lambda net, b: b[1] * net(b[0])[:, 0] ** 2 / 2)
    settings = {"solver": solver, "curvature": "hessian", "damping": 0.01}
    method = GroupIF("newton", **settings).fit(model, (X, sign))
    groups = {"few": [3], "many": [5, 6, 7, 8, 9]}
    with pytest.raises(SolveError, match=r"group 'many': .*[Rr]aise the damping"):
        method.group_influence(groups, (X, sign))
    assert method.group_influence({"few": [3]}, (X, sign)).values.shape == (10, 1)


def test_too_few_that_remain_are_named() -> None:
    """Six instances determine five parameters, three do not."""
    ridge = Ridge(n=6, weight_decay=0.0)
    data = ridge.X, ridge.y
    method = GroupIF("newton", solver="explicit", damping=0.0).fit(ridge.model, data)
    with pytest.raises(SolveError, match=r"group 'three': .*(damping|weight decay)"):
        method.group_influence({"one": [0], "three": [1, 2, 3]}, data)


@pytest.mark.parametrize("kind", KINDS)
def test_a_gradient_that_is_not_finite_is_named(kind) -> None:
    """The root of a residual of zero has a risk, but no gradient."""
    ridge = Ridge(n=10)
    smooth = GaussNewton(ridge.model, pp.Instances.of((ridge.X, ridge.y)))
    rough = pp.TorchModel(ridge.model.module, loss=lambda out, y: (out[:, 0] - y).abs().sqrt())
    y = ridge.y.clone()
    y[3] = ridge.model.module(ridge.X)[3, 0].detach()
    method = make(kind, solver="explicit", curvature=smooth, weight_decay=0.1)
    method.fit(rough, (ridge.X, y))
    with pytest.raises(NonFiniteError, match=r"training instances 3 at the model"):
        method.group_influence({"with": [2, 3], "without": [4]}, (ridge.X, ridge.y))
    with pytest.raises(NonFiniteError, match=r"\(3, 4\)"):
        method.group_influence({4: [4]}, (ridge.X, y))


def test_refusals(network) -> None:
    with pytest.raises(NotFittedError):
        GroupIF().group_influence(GROUPS, network.test)
    with pytest.raises(InvalidInputError, match=r"estimate='best'.*additive, newton"):
        GroupIF("best").fit(network.model, network.train)
    method = GroupIF(weight_decay=DECAY).fit(network.model, network.train)
    with pytest.raises(InvalidInputError, match="empty"):
        method.group_influence(GROUPS, (network.test[0][:0], network.test[1][:0]))
    with pytest.raises(InvalidInputError, match="unknown ids"):
        method.group_influence({"far": [99]}, network.test)
    single = pp.InfluenceFunctions(weight_decay=DECAY).fit(network.model, network.train)
    assert_array_equal(method.cooks_distance().values, single.cooks_distance().values)
    newton = GroupIF("newton", weight_decay=DECAY).fit(network.model, network.train)
    for ask in (newton.cooks_distance, newton.parameter_changes):
        with pytest.raises(MethodCapabilityError, match="group_parameter_changes"):
            ask()
    with pytest.raises(InvalidInputError, match="not additive"):
        newton.influence(network.test).group(GROUPS)
