"""Representer points against dense algebra, scikit-learn and closed forms."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from static.head_examples import Example, M, N, example, refitted, slopes
from torch import nn
from torch.nn import functional

import proponent as pp
from proponent.exceptions import (
    InvalidInputError,
    MethodCapabilityError,
    NonFiniteError,
    NotFittedError,
    SolveError,
)
from proponent.static.representer_point import RepresenterPoint

KINDS = ["multi-class", "soft labels", "binary", "multi-label", "regression"]
DECAY = 0.05


def close(found, expected, tolerance: float = 1e-10) -> bool:
    found, expected = np.asarray(found), np.asarray(expected)
    assert found.shape == expected.shape
    return bool(np.linalg.norm(found - expected) <= tolerance * np.linalg.norm(expected))


def fitted(case: Example, **settings) -> RepresenterPoint:
    return RepresenterPoint(DECAY, **settings).fit(case.model, case.train)


def truth(case: Example, targets: str, signed: str):
    """Return theta, the alphas, and the directions and inputs of the test set."""
    inputs = case.inputs(case.train[0])
    wanted = case.own(inputs @ case.theta.T) if targets == "outputs" else case.train[1]
    loss = lambda outputs: case.loss(outputs, wanted)  # noqa: E731
    theta = refitted(loss, inputs, case.theta, DECAY)
    alphas = -slopes(loss, inputs @ theta.T) / (DECAY * len(inputs))
    test, y = case.inputs(case.test[0]), case.test[1]
    if signed == "logit":
        return theta, alphas, case.direction(y), test
    return theta, alphas, -slopes(lambda z: case.loss(z, y), test @ theta.T), test


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("targets", ["outputs", "labels"])
@pytest.mark.parametrize("kind", KINDS)
def test_scores_by_dense_algebra(kind, targets, bias) -> None:
    case = example(kind, bias=bias)
    inputs = case.inputs(case.train[0])
    for signed in ["loss"] if kind == "regression" else ["logit", "loss"]:
        theta, alphas, directions, test = truth(case, targets, signed)
        method = fitted(case, targets=targets, signed=signed, tolerance=1e-13)
        assert close(method.alphas_, alphas)
        influence = method.influence(case.test)
        assert close(influence.values, (directions @ alphas.T) * (test @ inputs.T))
        # The training instances together are the prediction.
        outputs = test @ theta.T
        sums = (directions * outputs).sum(1)
        assert abs(influence.values.sum(1) - sums.numpy()).max() < 1e-10
        rebuilt = method.reconstruction(case.test)
        assert close(rebuilt.refitted, outputs)
        assert abs(rebuilt.representers - rebuilt.refitted).max() < 1e-10
        assert close(rebuilt.network, case.model.module(case.test[0]).detach())
        assert influence.diagnostics["converged"]
        assert influence.diagnostics["signed"] == signed
        assert influence.diagnostics["decomposition_error_bound"] < 1e-9


@pytest.mark.parametrize("kind", KINDS)
def test_the_sign_by_default(kind) -> None:
    case = example(kind)
    expected = "loss" if kind == "regression" else "logit"
    assert fitted(case).influence(case.test).diagnostics["signed"] == expected


def test_labels_against_scikit_learn() -> None:
    case = example("multi-class")
    x, y = case.train
    inputs, test = case.inputs(x).numpy(), case.inputs(case.test[0]).numpy()
    regression = LogisticRegression(
        C=1 / (N * DECAY), fit_intercept=False, tol=1e-12, max_iter=10_000, solver="newton-cg"
    ).fit(inputs, y.numpy())
    alphas = (np.eye(3)[y] - regression.predict_proba(inputs)) / (DECAY * N)
    expected = alphas.T[case.test[1]] * (test @ inputs.T)
    assert close(fitted(case, targets="labels").influence(case.test).values, expected, 1e-6)


def test_a_linear_regression_in_closed_form() -> None:
    """The risk is the mean over three outputs: a ridge regression with 3/2 of the decay."""
    case = example("regression")
    inputs, test = case.inputs(case.train[0]), case.inputs(case.test[0])
    matrix = inputs.T @ inputs / N + 1.5 * DECAY * torch.eye(inputs.shape[1], dtype=inputs.dtype)
    theta = torch.linalg.solve(matrix, inputs.T @ case.train[1] / N).T
    alphas = (case.train[1] - inputs @ theta.T) / (1.5 * DECAY * N)
    directions = (case.test[1] - test @ theta.T) * 2 / 3
    found = fitted(case, targets="labels").influence(case.test).values
    assert close(found, (directions @ alphas.T) * (test @ inputs.T))


def test_a_single_logit_raised_is_a_risk_lowered() -> None:
    """On a binary problem the two signs differ by how wrong the test instance is."""
    case = example("binary")
    logit = fitted(case, signed="logit")
    probabilities = torch.sigmoid(torch.tensor(logit.reconstruction(case.test).refitted))
    wrong = (case.test[1] - probabilities).abs().numpy()
    loss = fitted(case, signed="loss").influence(case.test).values
    assert close(loss, logit.influence(case.test).values * wrong)
    x, y = case.test
    flat = pp.TorchModel(_Squeezed(case.model.module), loss="bce_with_logits")
    method = RepresenterPoint(DECAY).fit(flat, (case.train[0], case.train[1][:, 0]))
    assert close(method.influence((x, y[:, 0])).values, logit.influence(case.test).values)


class _Squeezed(nn.Module):
    def __init__(self, inner) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x)[:, 0]


def paper_descent(objective, theta):
    """Yeh et al.'s training loop, as their code has it."""

    def at(weights):
        free = weights.clone().requires_grad_()
        value = objective(free)
        return float(value.detach()), torch.autograd.grad(value, free)[0]

    smallest, best, first = float("inf"), None, None
    for epoch in range(3000):
        value, gradient = at(theta)
        size = float(gradient.abs().mean())
        if size < smallest:
            first = size if epoch == 0 else first
            smallest, best = size, theta
            if smallest < first / 200:
                break
        t = 10.0
        while at(theta - t * gradient)[0] - value + t * float(gradient.norm()) ** 2 / 2 > 0:
            t *= 0.5
        theta = theta - t * gradient
    return best


@pytest.mark.parametrize("targets", ["outputs", "labels"])
def test_the_papers_descent_and_the_certified_error(targets) -> None:
    case = example("multi-class")
    inputs, test = case.inputs(case.train[0]), case.inputs(case.test[0])
    wanted = case.own(inputs @ case.theta.T) if targets == "outputs" else case.train[1]

    def objective(weights):  # their weight decay is half of ours, without the half in front
        return case.loss(inputs @ weights.T, wanted).mean() + DECAY / 2 * weights.square().sum()

    theta = paper_descent(objective, case.theta)
    method = fitted(case, targets=targets, solver="paper")
    rebuilt = method.reconstruction(case.test)
    assert close(rebuilt.refitted, test @ theta.T)
    # It stops early: the decomposition misses by the gradient, exactly.
    gradient = torch.autograd.functional.jacobian(objective, theta)
    error = rebuilt.representers - rebuilt.refitted
    assert np.linalg.norm(error) > 1e-3
    assert close(error, -test @ gradient.T / DECAY, 1e-9)
    influence = method.influence(case.test)
    missed = influence.values.sum(1) - rebuilt.refitted[range(M), case.test[1]]
    bound = float(gradient.norm() * test.norm(dim=1).max() / DECAY)
    diagnostics = influence.diagnostics
    assert diagnostics["decomposition_error_bound"] == pytest.approx(bound)
    assert 0 < abs(missed).max() <= bound
    assert diagnostics["objective_gradient_norm"] == pytest.approx(float(gradient.norm()))
    assert not diagnostics["converged"]
    assert 0.9 < diagnostics["reconstruction_correlation"] < 1
    assert "not stationary" in diagnostics["warnings"][0]


def test_renormalised() -> None:
    case = example("multi-class")
    plain, unit = fitted(case), fitted(case, renormalise=True)
    sizes = np.linalg.norm(plain.alphas_, axis=1)
    expected = plain.influence(case.test).values / sizes
    influence = unit.influence(case.test)
    assert close(influence.values, expected)
    assert close(unit.alphas_, plain.alphas_)
    assert close(unit.influence(case.test, joint=True).values, expected.sum(0))
    assert close(unit.memorization().values, plain.memorization().values / sizes)
    assert not influence.additive
    assert influence.diagnostics["decomposition_error_bound"] is None
    with pytest.raises(MethodCapabilityError):
        unit.group_influence({"all": range(N)}, case.test)
    everything = plain.group_influence({"all": range(N)}, case.test)
    assert close(everything.values[:, 0], plain.influence(case.test).values.sum(1))


def test_an_alpha_of_zero_stays_zero_renormalised() -> None:
    """An instance that the loss leaves out has no slope, and no direction either."""
    case = example("multi-class")
    case.train[1][4] = -100
    method = fitted(case, targets="labels", renormalise=True, signed="loss")
    values = method.influence(case.test).values
    assert (values[:, 4] == 0).all() and (values[:, :4] != 0).all()
    with pytest.raises(InvalidInputError, match=r"-100.*signed='loss'"):
        fitted(case, targets="labels").memorization()


@pytest.mark.parametrize("signed", ["logit", "loss"])
@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_every_way_of_asking_gives_the_same(signed, batch_size) -> None:
    case = example("multi-class")
    expected = fitted(case, signed=signed).influence(case.test)
    method = fitted(case, signed=signed, batch_size=batch_size)
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
    assert close(method.memorization(shard=(1, 3)).values, diagonal[7:13], 1e-12)


def test_a_loss_that_is_not_known_by_name() -> None:
    """It is differentiated; what its own targets or classes would be is not known."""
    case = example("multi-class")
    named = fitted(case, targets="labels", signed="loss").influence(case.test).values
    own = pp.TorchModel(case.model.module, loss=lambda z, y: -z.log_softmax(1)[range(len(y)), y])
    method = RepresenterPoint(DECAY, targets="labels").fit(own, case.train)
    assert close(method.influence(case.test).values, named)
    with pytest.raises(InvalidInputError, match="targets='labels'"):
        RepresenterPoint(DECAY).fit(own, case.train)
    with pytest.raises(InvalidInputError, match="signed='loss'"):
        RepresenterPoint(DECAY, targets="labels", signed="logit").fit(own, case.train)
    module = pp.TorchModel(case.model.module, loss=nn.CrossEntropyLoss(reduction="sum"))
    by_module = RepresenterPoint(DECAY).fit(module, case.train).influence(case.test).values
    assert close(by_module, fitted(case).influence(case.test).values)


def test_a_loss_with_weights_in_single_precision() -> None:
    case = example("multi-class")
    net = case.model.module.float()
    weight = torch.tensor([1.0, 2.0, 0.5])
    model = pp.TorchModel(net, loss=nn.CrossEntropyLoss(weight=weight))
    settings = {"targets": "labels", "signed": "loss"}
    with pytest.raises(InvalidInputError, match="dtype='float32'"):
        RepresenterPoint(DECAY, **settings).fit(model, case.train)
    method = RepresenterPoint(DECAY, dtype="float32", tolerance=1e-3, **settings)
    method.fit(model, case.train)
    net.double()
    wide = pp.TorchModel(net, loss=nn.CrossEntropyLoss(weight=weight.double()))
    expected = RepresenterPoint(DECAY, **settings).fit(wide, case.train).influence(case.test)
    net.float()
    influence = method.influence(case.test)
    assert influence.values.dtype == np.float32
    assert influence.diagnostics["converged"]
    assert close(influence.values, expected.values, 1e-3)
    # What the precision does not allow is said, not claimed.
    strict = RepresenterPoint(DECAY, dtype="float32", **settings).fit(model, case.train)
    diagnostics = strict.influence(case.test).diagnostics
    assert not diagnostics["converged"]
    assert diagnostics["relative_residual"] > 1e-10
    assert diagnostics["warnings"]


def test_regressions_have_no_logit() -> None:
    with pytest.raises(InvalidInputError, match=r"signed='logit'.*regression.*signed='loss'"):
        fitted(example("regression"), signed="logit")


@pytest.mark.parametrize("weight_decay", [0, 0.0, -1.0, float("nan"), float("inf"), "0.1", None])
def test_no_weight_decay_no_representers(weight_decay) -> None:
    case = example("multi-class")
    with pytest.raises(InvalidInputError, match="weight_decay"):
        RepresenterPoint(weight_decay).fit(case.model, case.train)


def test_refusals() -> None:
    case = example("multi-class")
    with pytest.raises(NotFittedError):
        RepresenterPoint().influence(case.test)
    with pytest.raises(NotFittedError):
        RepresenterPoint().reconstruction(case.test)
    wrong = {"targets": "both", "solver": "lbfgs", "signed": "up", "dtype": "float16"}
    for name, value in (wrong | {"tolerance": 0.0, "batch_size": 0}).items():
        with pytest.raises(InvalidInputError, match=name):
            fitted(case, **{name: value})
    for name in wrong:
        with pytest.raises(InvalidInputError, match=name):
            fitted(case, **{name: None if name != "signed" else 3})
    ended = pp.TorchModel(nn.Sequential(case.model.module, nn.Softmax(1)), loss="cross_entropy")
    with pytest.raises(InvalidInputError, match="not the module's output"):
        RepresenterPoint().fit(ended, case.train)
    free = pp.TorchModel(case.model.module, risk=lambda net, batch: net(batch[0])[:, 0] ** 2)
    with pytest.raises(InvalidInputError, match="outputs and a loss"):
        RepresenterPoint(targets="labels").fit(free, case.train)


def test_a_loss_that_is_not_convex_is_refused_by_newton(monkeypatch) -> None:
    case = example("regression")
    wave = pp.TorchModel(case.model.module, loss=lambda z, y: 5 * (3 * (z - y)).cos().sum(1))
    with pytest.raises(SolveError, match=r"not convex.*solver='paper'"):
        RepresenterPoint(DECAY, targets="labels").fit(wave, case.train)
    monkeypatch.setattr("proponent.static.head_fit.PAPER_EPOCHS", 20)
    method = RepresenterPoint(DECAY, targets="labels", solver="paper").fit(wave, case.train)
    assert method.influence(case.test).diagnostics["iterations"] > 0


@pytest.mark.parametrize("targets", ["outputs", "labels"])
def test_what_is_not_finite_is_named(targets) -> None:
    case = example("multi-class")
    case.train[0][8, 2] = torch.inf
    ids = [f"instance-{i}" for i in range(N)]
    with pytest.raises(NonFiniteError, match=r"instance-8"):
        RepresenterPoint(targets=targets).fit(case.model, case.train, ids=ids)
    case = example("multi-class")
    method = fitted(case, targets=targets)
    case.test[0][3] = torch.nan
    with pytest.raises(NonFiniteError, match=r"test-3"):
        method.influence(case.test, ids=[f"test-{i}" for i in range(M)])


def test_one_class_only() -> None:
    """Everything speaks for the class that there is, and the fit is stationary."""
    case = example("multi-class")
    case.train[1][:] = 1
    method = fitted(case, targets="labels")
    influence = method.influence(case.test)
    assert influence.diagnostics["converged"]
    assert (method.alphas_[:, 1] > 0).all() and (method.alphas_[:, [0, 2]] < 0).all()
    sums = method.reconstruction(case.test).refitted[range(M), case.test[1]]
    assert abs(influence.values.sum(1) - sums).max() < 1e-10


def test_one_instance() -> None:
    case = example("multi-class", n=1)
    influence = fitted(case).influence(case.test)
    sums = fitted(case).reconstruction(case.test).refitted[range(M), case.test[1]]
    assert close(influence.values[:, 0], sums)


def test_a_refit_that_is_another_classifier_is_said() -> None:
    case = example("multi-class")
    tame = fitted(case).influence(case.test).diagnostics
    assert tame["network_agreement"] > 0.9 and not tame["warnings"]
    case.model.module[1].bias.data[:] = torch.tensor([-3.0, 0.0, 3.0])
    strong = RepresenterPoint(1e3, targets="labels").fit(case.model, case.train)
    diagnostics = strong.influence(case.test).diagnostics
    network = case.model.module(case.train[0]).argmax(1).numpy()
    again = strong.reconstruction(case.train).refitted.argmax(1)
    assert diagnostics["network_agreement"] == pytest.approx((network == again).mean())
    assert diagnostics["network_agreement"] < 0.9
    assert "lower weight_decay" in diagnostics["warnings"][0]


def test_digits() -> None:
    """On a trained network: the sums are the logits, and what speaks for a digit is that digit."""
    X, y = load_digits(return_X_y=True)
    X, y = torch.tensor(X / 16, dtype=torch.float32), torch.tensor(y)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.3, momentum=0.9)
    for _ in range(10):
        for batch in torch.randperm(600).split(50):
            optimizer.zero_grad()
            functional.cross_entropy(net(X[batch]), y[batch]).backward()
            optimizer.step()
    train, test = (X[:600], y[:600]), (X[600:800], y[600:800])
    method = RepresenterPoint().fit(pp.TorchModel(net, loss="cross_entropy"), train)
    influence, rebuilt = method.influence(test), method.reconstruction(test)
    assert influence.diagnostics["converged"]
    assert influence.diagnostics["network_agreement"] > 0.98
    assert (rebuilt.network.argmax(1) == rebuilt.refitted.argmax(1)).mean() > 0.95
    assert abs(rebuilt.representers - rebuilt.refitted).max() < 1e-9
    logits = rebuilt.refitted[range(200), test[1]]
    assert abs(influence.values.sum(1) - logits).max() < 1e-9
    nearest = train[1].numpy()[influence.proponents(5).positions]
    assert (nearest == test[1].numpy()[:, None]).mean() > 0.9
