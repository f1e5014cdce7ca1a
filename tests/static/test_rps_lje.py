"""RPS-LJE against dense algebra: a Newton step, cut up, and an influence function."""

import numpy as np
import pytest
import torch
from static.head_examples import Example, M, N, example, hessian, slopes
from torch import nn

import proponent as pp
from proponent.exceptions import InvalidInputError, NonFiniteError, NotFittedError, SolveError
from proponent.gradients.solvers.conjugate_gradients import ConjugateGradients
from proponent.static.rps_lje import RPSLJE

KINDS = ["multi-class", "soft labels", "binary", "multi-label", "regression"]
DAMPING = 0.02


def close(found, expected, tolerance: float = 1e-10) -> bool:
    found, expected = np.asarray(found), np.asarray(expected)
    assert found.shape == expected.shape
    return bool(np.linalg.norm(found - expected) <= tolerance * np.linalg.norm(expected))


class Truth:
    """Everything at the weights after one step of ascent, dense."""

    def __init__(self, case: Example, learning_rate: float, damping: float) -> None:
        self.inputs, self.test = case.inputs(case.train[0]), case.inputs(case.test[0])
        loss = lambda outputs: case.loss(outputs, case.train[1])  # noqa: E731
        risk_gradient = torch.autograd.functional.jacobian(
            lambda theta: loss(self.inputs @ theta.T).mean(), case.theta
        )
        self.theta = case.theta + learning_rate * risk_gradient
        d = slopes(loss, self.inputs @ self.theta.T)
        self.gradients = torch.einsum("nc,nd->ncd", d, self.inputs).flatten(1)
        matrix = hessian(loss, self.inputs, self.theta)
        self.matrix = matrix + damping * torch.eye(len(matrix), dtype=matrix.dtype)
        self.loss_directions = -slopes(
            lambda z: case.loss(z, case.test[1]), self.test @ self.theta.T
        )

    @property
    def weights(self) -> torch.Tensor:
        """The w_i, (n, p)."""
        return (self.theta.flatten() - torch.linalg.solve(self.matrix, self.gradients.T).T) / N

    def scores(self, directions: torch.Tensor) -> torch.Tensor:
        outer = torch.einsum("mc,md->mcd", directions, self.test).flatten(1)
        return outer @ self.weights.T

    def stepped(self) -> torch.Tensor:
        """The weights after a Newton step."""
        step = torch.linalg.solve(self.matrix, self.gradients.mean(0))
        return (self.theta.flatten() - step).view_as(self.theta)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_scores_by_dense_algebra(kind, bias) -> None:
    case = example(kind, bias=bias)
    truth = Truth(case, 0.1, DAMPING)
    for signed in ["loss"] if kind == "regression" else ["logit", "loss"]:
        directions = truth.loss_directions
        if signed == "logit":
            directions = case.direction(case.test[1])
        method = RPSLJE(0.1, damping=DAMPING, signed=signed).fit(case.model, case.train)
        influence = method.influence(case.test)
        assert close(influence.values, truth.scores(directions))
        # All w_i together are the layer after a Newton step.
        outputs = truth.test @ truth.stepped().T
        assert close(influence.values.sum(1), (directions * outputs).sum(1))
        assert influence.diagnostics["effective_damping"] == pytest.approx(DAMPING)
        assert influence.diagnostics["signed"] == signed


def test_the_ranking_is_that_of_the_last_layers_influence_function() -> None:
    """On the logit, by InfluenceFunctions' own curvature and gradients of the risk.

    The influence of leaving i out on the logit is ``(1/n) grad logit . H^{-1} g_i``; as a test
    risk whose gradient is minus that of the logit it is a row of influence functions.
    """
    case = example("multi-class")
    x, y = case.test
    model = case.model.with_parameters("last")
    # Of a test instance (x, -y - 1) the risk is the negative logit of class y.
    both = pp.TorchModel(
        case.model.module,
        loss=lambda z, t: torch.where(
            t < 0,
            -z.gather(1, torch.where(t < 0, -t - 1, t)[:, None])[:, 0],
            nn.functional.cross_entropy(z, t.clamp(min=0), reduction="none"),
        ),
        parameters="last",
    )
    influence = pp.InfluenceFunctions("explicit", damping=DAMPING).fit(both, case.train)
    expected = influence.influence((x, -y - 1)).values
    found = RPSLJE(0.0, damping=DAMPING).fit(model, case.train).influence(case.test)
    constants = model.module(x).detach()[range(M), y].numpy()[:, None] / N
    assert close(found.values - constants, expected)
    assert (found.ranking() == np.argsort(-expected, axis=1, kind="stable")).all()


def test_stationary_weights_are_what_they_sum_up_to() -> None:
    """Without the step, a stationary layer is the sum of its w_i."""
    case = example("regression")
    inputs = case.inputs(case.train[0])
    theta = torch.linalg.lstsq(inputs, case.train[1]).solution.T
    head = case.model.module[1]
    head.weight.data, head.bias.data = theta[:, :-1].clone(), theta[:, -1].clone()
    method = RPSLJE(0.0, damping=0.0).fit(case.model, case.train)
    test = case.inputs(case.test[0])
    outputs = test @ theta.T
    directions = 2 / 3 * (case.test[1] - outputs)
    sums = method.influence(case.test).values.sum(1)
    assert close(sums, (directions * outputs).sum(1))


def test_the_gauge_of_a_softmax_needs_damping() -> None:
    case = example("multi-class")
    with pytest.raises(SolveError, match=r"singular.*damping"):
        RPSLJE(damping=0.0).fit(case.model, case.train)
    method = RPSLJE().fit(case.model, case.train)
    largest = float(torch.linalg.eigvalsh(Truth(case, 0.01, 0.0).matrix)[-1])
    assert method.damping_ == pytest.approx(1e-3 * largest, rel=1e-6)
    assert method.influence(case.test).diagnostics["damping"] == method.damping_
    # The loss never asks for more of all logits at once, whatever the damping.
    tiny = RPSLJE(damping=1e-9).fit(case.model, case.train).influence(case.test)
    truth = Truth(case, 0.01, 0.0)
    inverse = torch.linalg.pinv(truth.matrix, hermitian=True)
    weights = (truth.theta.flatten() - truth.gradients @ inverse) / N
    outer = torch.einsum("mc,md->mcd", case.direction(case.test[1]), truth.test).flatten(1)
    assert close(tiny.values, outer @ weights.T, 1e-4)


@pytest.mark.parametrize("signed", ["logit", "loss"])
@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_every_way_of_asking_gives_the_same(signed, batch_size, monkeypatch) -> None:
    case = example("multi-class")
    settings = {"damping": DAMPING, "signed": signed}
    expected = RPSLJE(**settings).fit(case.model, case.train).influence(case.test)
    monkeypatch.setattr("proponent.static.head_method.SELF_BLOCK", 8)
    method = RPSLJE(**settings, batch_size=batch_size).fit(case.model, case.train)
    assert close(method.influence(case.test).values, expected.values, 1e-12)
    joint = method.influence(case.test, joint=True)
    assert close(joint.values, expected.values.sum(0), 1e-12)
    parts = [method.influence(case.test, shard=(i, 3)).values for i in range(3)]
    assert close(np.concatenate(parts, axis=1), expected.values, 1e-12)
    top = method.influence(case.test, top_k=4)
    assert (top.proponents().ids == expected.proponents(4).ids).all()
    assert (top.opponents().ids == expected.opponents(4).ids).all()
    diagonal = method.influence(case.train).values.diagonal()
    assert close(method.memorization().values, diagonal, 1e-12)
    assert close(method.memorization(shard=(2, 3)).values, diagonal[13:], 1e-12)
    groups = method.group_influence({"some": range(5)}, case.test)
    assert close(groups.values[:, 0], expected.values[:, :5].sum(1), 1e-12)


def test_a_solver_may_be_given_and_large_layers_get_another(monkeypatch) -> None:
    case = example("multi-class")
    expected = RPSLJE(damping=DAMPING).fit(case.model, case.train).influence(case.test)
    solver = ConjugateGradients(tolerance=1e-12)
    found = RPSLJE(damping=DAMPING, solver=solver).fit(case.model, case.train)
    influence = found.influence(case.test)
    assert close(influence.values, expected.values)
    assert influence.diagnostics["solver"] == "conjugate gradients"
    monkeypatch.setattr("proponent.static.rps_lje.FACTORISED", 3)
    chosen = RPSLJE(damping=DAMPING).fit(case.model, case.train).influence(case.test)
    assert chosen.diagnostics["solver"] == "conjugate gradients"
    assert close(chosen.values, expected.values, 1e-5)
    short = ConjugateGradients(tolerance=1e-12, max_iterations=1)
    cut = RPSLJE(damping=DAMPING, solver=short).fit(case.model, case.train).influence(case.test)
    assert not cut.diagnostics["converged"] and cut.diagnostics["warnings"]


def test_a_feature_of_zero_is_no_matter() -> None:
    """The paper's alpha_i divides by the features; after a ReLU some of them are 0."""
    case = example("multi-class")
    inputs = case.inputs(case.train[0])
    assert (inputs == 0).any()
    values = RPSLJE(damping=DAMPING).fit(case.model, case.train).influence(case.test).values
    assert np.isfinite(values).all()


def test_refusals() -> None:
    case = example("multi-class")
    with pytest.raises(NotFittedError):
        RPSLJE().influence(case.test)
    wrong = {"learning_rate": -1.0, "damping": -1.0, "solver": "magic", "signed": "up"}
    for name, value in wrong.items():
        with pytest.raises(InvalidInputError, match=name):
            RPSLJE(**{name: value}).fit(case.model, case.train)
    with pytest.raises(InvalidInputError, match=r"regression.*signed='loss'"):
        regression = example("regression")
        RPSLJE(signed="logit").fit(regression.model, regression.train)
    ended = pp.TorchModel(nn.Sequential(case.model.module, nn.Softmax(1)), loss="cross_entropy")
    with pytest.raises(InvalidInputError, match="not the module's output"):
        RPSLJE().fit(ended, case.train)
    case.train[0][8, 2] = torch.nan
    ids = [f"instance-{i}" for i in range(N)]
    with pytest.raises(NonFiniteError, match="instance-8"):
        RPSLJE().fit(case.model, case.train, ids=ids)
