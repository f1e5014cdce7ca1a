"""The five gaps: closed forms on least squares, dense algebra on networks, and what is said."""

import copy
from itertools import pairwise

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import Ridge
from torch import Tensor, nn
from torch.func import functional_call, jacrev
from torch.nn import functional

import proponent as pp
from proponent.data import Instances
from proponent.evaluation.diagnose import diagnose
from proponent.evaluation.gaps import GAPS, RESPONSES
from proponent.exceptions import InvalidInputError, NotFittedError, ProponentError
from proponent.gradients.kfac.factors import KroneckerFactors
from proponent.gradients.solvers.arnoldi import Arnoldi
from proponent.gradients.solvers.lissa import LiSSA
from proponent.static.fastif import FastIF
from proponent.static.relatif import RelatIF

N, D, K = 40, 6, [3, 17, 29, 38]


def half_squared(output: Tensor, target: Tensor) -> Tensor:
    return 0.5 * (output[:, 0] - target) ** 2


class LeastSquares:
    """J = (1/2n) ||X theta - y||^2 + (decay / 2) ||theta||^2, at its minimum."""

    def __init__(self, decay: float) -> None:
        generator = torch.Generator().manual_seed(0)
        self.decay = decay
        self.X = torch.randn(N, D, generator=generator, dtype=torch.float64)
        self.y = self.X.sum(1) + torch.randn(N, generator=generator, dtype=torch.float64)
        self.X_test = torch.randn(5, D, generator=generator, dtype=torch.float64)
        self.y_test = torch.randn(5, generator=generator, dtype=torch.float64)
        self.train, self.test = (self.X, self.y), (self.X_test, self.y_test)
        self.theta = self.solve(np.arange(N), N)
        self.model = pp.TorchModel(self.module(self.theta), loss=half_squared)

    def solve(self, kept, divisor: int) -> Tensor:
        X, y = self.X[kept], self.y[kept]
        hessian = X.T @ X / divisor + self.decay * torch.eye(D, dtype=torch.float64)
        return torch.linalg.solve(hessian, X.T @ y / divisor)

    def module(self, theta: Tensor) -> nn.Module:
        layer = nn.Linear(D, 1, bias=False).double()
        layer.weight.data = theta[None].clone()
        return layer

    def risks(self, theta: Tensor) -> np.ndarray:
        return (0.5 * (self.X_test @ theta - self.y_test) ** 2).numpy()

    def fitted(self, *settings, **more) -> pp.InfluenceFunctions:
        method = pp.InfluenceFunctions(*settings, weight_decay=self.decay, **more)
        return method.fit(self.model, self.train)


def without(i: int) -> np.ndarray:
    return np.delete(np.arange(N), i)


@pytest.mark.parametrize("convention, divisor", [("fixed_divisor", N), ("renormalised", N - 1)])
def test_least_squares_at_the_optimum_has_a_linearisation_gap_alone(convention, divisor) -> None:
    problem = LeastSquares(decay=0.3)
    method = problem.fitted("explicit", damping=0.0, loo_convention=convention)
    found = diagnose(
        method, K, problem.test, tolerance=1e-9,
        retrain=lambda kept, seed: problem.module(problem.solve(kept, divisor)),
    )  # fmt: skip
    # Nothing left out, the divisor of the other convention moves the model: a drift of retraining.
    drift = problem.risks(problem.solve(np.arange(N), divisor)) - problem.risks(problem.theta)
    np.testing.assert_allclose(found.cold_drift, drift, rtol=1e-8, atol=1e-14)
    moved = [problem.solve(without(i), divisor) for i in K]
    exact = np.stack([problem.risks(theta) for theta in moved], 1)
    exact -= problem.risks(problem.theta)[:, None]
    for response in (found.cold, found.warm, found.proximal):
        np.testing.assert_allclose(response, exact, rtol=1e-7)
    inverse = torch.linalg.inv(problem.X.T @ problem.X / N + 0.3 * torch.eye(D).double())
    g = (problem.X @ problem.theta - problem.y)[K, None] * problem.X[K]
    if convention == "renormalised":
        g = g + 0.3 * problem.theta
    g_test = (problem.X_test @ problem.theta - problem.y_test)[:, None] * problem.X_test
    influence = g_test @ inverse @ g.T / N
    np.testing.assert_allclose(found.linear, influence, rtol=1e-9)
    assert found.sizes["solver"].value < 1e-9
    if convention == "fixed_divisor":
        # LOO = I / (1 - h) + (x_te . change)^2 / 2, exactly.
        h = ((problem.X[K] @ inverse) * problem.X[K]).sum(1) / N
        curved = 0.5 * (problem.X_test @ inverse @ (g / (1 - h)[:, None] / N).T) ** 2
        expected = influence * h / (1 - h) + curved
        np.testing.assert_allclose(found.gaps["linearisation"], expected, rtol=1e-6)
        np.testing.assert_allclose(found.pbrf, exact, rtol=1e-7)
        assert found.largest == "linearisation"
        for gap in ("warm_start", "proximity", "non_convergence", "solver"):
            assert found.sizes[gap].value < 1e-7 * found.sizes["linearisation"].value, gap
        assert found.remedies["linearisation"] in found.advice


def test_damping_makes_a_proximity_gap_with_its_closed_form() -> None:
    problem = LeastSquares(decay=0.3)
    found = diagnose(problem.fitted(damping=0.5), K, problem.test, tolerance=1e-9)
    eye = torch.eye(D, dtype=torch.float64)
    for column, i in enumerate(K):
        X, y = problem.X[without(i)], problem.y[without(i)]
        right = X.T @ y / N + 0.5 * problem.theta
        theta = torch.linalg.solve(X.T @ X / N + 0.8 * eye, right)
        expected = problem.risks(theta) - problem.risks(problem.theta)
        np.testing.assert_allclose(found.proximal[:, column], expected, rtol=1e-7)
        np.testing.assert_allclose(found.pbrf[:, column], expected, rtol=1e-7)
    assert found.largest == "proximity" and "0.5" in found.advice


def test_a_model_that_was_not_trained_to_the_end_has_a_drift() -> None:
    problem = LeastSquares(decay=0.3)
    optimum = problem.theta
    problem.model.module.weight.data += 0.2
    start = optimum + 0.2
    found = diagnose(problem.fitted(damping=0.1), K, problem.test, tolerance=1e-9)
    drift = problem.risks(optimum) - problem.risks(start)
    np.testing.assert_allclose(found.warm_drift, drift, rtol=1e-7)
    warm = [problem.risks(problem.solve(without(i), N)) - problem.risks(start) for i in K]
    np.testing.assert_allclose(found.warm, np.stack(warm, 1), rtol=1e-7)
    # The response of outputs to outputs does not feel it: what is left of PBRF is one term.
    assert np.abs(found.pbrf).max() < 0.2 * np.abs(drift).max()
    assert found.largest == "non_convergence"
    assert "although nothing is left out" in found.advice
    beyond = found.gaps["non_convergence"] - found.drift["non_convergence"][:, None]
    size = found.sizes_beyond_drift["non_convergence"]
    assert size.value == pytest.approx(np.abs(beyond).mean())
    assert size.value < 0.5 * found.sizes["non_convergence"].value


class Network:
    """A tanh network in float32 on random data, and its derivatives in float64."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.module = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
        self.train = torch.randn(N, 4), torch.randint(3, (N,))
        self.test = torch.randn(6, 4), torch.randint(3, (6,))
        self.model = pp.TorchModel(self.module, loss="cross_entropy")

    def fitted(self, *settings, **more) -> pp.InfluenceFunctions:
        return pp.InfluenceFunctions(*settings, **more).fit(self.model, self.train)

    def doubled(self) -> "Network":
        twin = copy.deepcopy(self)
        twin.module.double()
        twin.train = self.train[0].double(), self.train[1]
        twin.test = self.test[0].double(), self.test[1]
        twin.model = pp.TorchModel(twin.module, loss="cross_entropy")
        return twin

    def linear_response(self, shifts: dict[str, float]) -> np.ndarray:
        """(1/n) g_te^T (G + shift)^{-1} g_i by dense matrices, with a shift for each parameter."""
        named = {name: value.detach() for name, value in self.module.named_parameters()}

        def rows(parts):
            return torch.cat([part.flatten(-named[name].ndim) for name, part in parts.items()], -1)

        def gradients(data):
            def risks(parameters):
                outputs = functional_call(self.module, parameters, (data[0],))
                return functional.cross_entropy(outputs, data[1], reduction="none")

            return rows(jacrev(risks)(named))

        X = self.train[0]
        J = rows(jacrev(lambda p: functional_call(self.module, p, (X,)))(named))
        p = torch.softmax(self.module(X).detach(), 1)
        D = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
        matrix = torch.einsum("nap,nab,nbq->pq", J, D, J) / N
        each = [torch.full((value.numel(),), shifts[name]) for name, value in named.items()]
        matrix = matrix + torch.diag(torch.cat(each).double())
        solved = torch.linalg.solve(matrix, gradients(self.train)[K[:2]].T)
        return (gradients(self.test) @ solved / N).numpy()


@pytest.fixture
def network() -> Network:
    return Network()


def test_the_gaps_add_up_exactly(network) -> None:
    def retrain(kept, seed):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))

    method = network.fitted("ekfac", weight_decay=0.05)
    found = diagnose(method, K, network.test, retrain=retrain, seeds=[4, 5], max_iterations=3)
    np.testing.assert_allclose(
        sum(found.gaps.values()), found.cold - found.estimate, rtol=0, atol=1e-15
    )
    for gap, (before, after) in zip(GAPS, pairwise(RESPONSES), strict=True):
        difference = found.responses[before] - found.responses[after]
        np.testing.assert_array_equal(found.gaps[gap], difference)
    np.testing.assert_allclose(sum(found.drift.values()), found.cold_drift, rtol=0, atol=1e-15)


def test_layers_damping_and_parameters_decay_are_in_every_response(network) -> None:
    """EK-FAC damps each layer by itself; weight decay may differ too."""
    damping = {"0": 0.2, "2": 0.03}
    decay = {"0.weight": 0.1, "0.bias": 0.1, "2.weight": 0.02, "2.bias": 0.02}
    method = network.fitted("ekfac", weight_decay=decay, damping=damping)
    found = diagnose(
        method, K[:2], network.test, dtype="float64", tolerance=1e-7, max_iterations=120
    )
    twin = network.doubled()
    shifts = {name: decay[name] + damping[name[0]] for name in decay}
    np.testing.assert_allclose(found.linear, twin.linear_response(shifts), rtol=1e-6)
    # The proximal response again, by plain torch in the objective's own words.
    start = {name: value.detach().clone() for name, value in twin.module.named_parameters()}
    kept = torch.as_tensor(without(K[0]))
    optimizer = torch.optim.LBFGS(
        twin.module.parameters(), max_iter=500, tolerance_grad=1e-11, tolerance_change=0,
        line_search_fn="strong_wolfe",
    )  # fmt: skip

    def objective():
        optimizer.zero_grad()
        outputs = twin.module(twin.train[0][kept])
        value = functional.cross_entropy(outputs, twin.train[1][kept], reduction="sum") / N
        for name, parameter in twin.module.named_parameters():
            value = value + 0.5 * decay[name] * parameter.square().sum()
            value = value + 0.5 * damping[name[0]] * (parameter - start[name]).square().sum()
        value.backward()
        return value

    before = twin.model.risks(twin.test)
    optimizer.step(objective)
    expected = (twin.model.risks(twin.test) - before).numpy()
    np.testing.assert_allclose(found.proximal[:, 0], expected, rtol=1e-5)
    assert "by layer" in found.remedies["proximity"]


def test_solver_gap_tells_good_solvers_from_bad_ones(network) -> None:
    network = network.doubled()
    size = {}
    for name, solver in {
        "explicit": "explicit",
        "cg": "cg",
        "hasty": LiSSA(steps=3, batch_size=4, average=False),
        "arnoldi": Arnoldi(iterations=4, rank=2, complement="drop"),
    }.items():
        method = network.fitted(solver, damping=0.05)
        found = diagnose(method, K, network.test, max_iterations=1)
        size[name] = found.sizes["solver"].value / np.abs(found.linear).mean()
    assert size["explicit"] < 1e-8
    assert size["cg"] < 1e-4  # its tolerance is 1e-6
    assert size["hasty"] > 0.05 and size["arnoldi"] > 0.05
    assert "solver (Arnoldi)" in found.remedies["solver"]
    other = network.fitted("explicit", curvature="empirical_fisher", damping=0.05)
    found = diagnose(other, K, network.test, max_iterations=1)
    assert found.sizes["solver"].value > 0.05 * np.abs(found.linear).mean()
    assert "curvature='ggn'" in found.remedies["solver"]


def test_only_the_chosen_parameters_move(network) -> None:
    """Influence of the last layer is that of a linear model on what comes before it."""
    network = network.doubled()
    settings = {"damping": 0.1, "weight_decay": 0.05}
    found = diagnose(
        network.fitted("explicit", parameters="last", **settings), K, network.test, tolerance=1e-8
    )
    body, head = network.module[:2], copy.deepcopy(network.module[2])
    with torch.no_grad():
        train = body(network.train[0]), network.train[1]
        test = body(network.test[0]), network.test[1]
    alone = pp.InfluenceFunctions("explicit", **settings)
    alone.fit(pp.TorchModel(head, loss="cross_entropy"), train)
    expected = diagnose(alone, K, test, tolerance=1e-8)
    for name in RESPONSES[1:]:
        np.testing.assert_allclose(found.responses[name], expected.responses[name], rtol=1e-5)


def test_batch_size_does_not_matter(network) -> None:
    network = network.doubled()
    whole, cut = (
        diagnose(
            network.fitted("explicit", weight_decay=0.05, damping=0.1, batch_size=size), K[:2],
            network.test, tolerance=1e-7, max_iterations=25,
        )
        for size in (64, 7)
    )  # fmt: skip
    for name in RESPONSES[1:]:
        np.testing.assert_allclose(cut.responses[name], whole.responses[name], rtol=1e-5)


def test_every_response_is_that_of_evaluation_mode(network) -> None:
    network = network.doubled()
    noisy = nn.Sequential(network.module, nn.Dropout(0.5)).train()
    plain, dropped = (
        diagnose(
            pp.InfluenceFunctions("explicit", damping=0.1).fit(model, network.train), K[:1],
            network.test, max_iterations=5,
        )
        for model in (network.model, pp.TorchModel(noisy, loss="cross_entropy"))
    )  # fmt: skip
    for name in RESPONSES[1:]:
        np.testing.assert_allclose(dropped.responses[name], plain.responses[name], rtol=1e-8)


def test_double_precision_studies_a_copy(network) -> None:
    settings = {"weight_decay": 0.05, "damping": 0.1}
    method, twin = network.fitted("explicit", **settings), network.doubled()
    quick = {"max_iterations": 40}  # enough for PBRF
    single = diagnose(method, K[:2], network.test, **quick)
    double = diagnose(method, K[:2], network.test, dtype="float64", **quick)
    truth = diagnose(twin.fitted("explicit", **settings), K[:2], twin.test, **quick)
    np.testing.assert_allclose(double.pbrf, truth.pbrf, rtol=1e-9)
    np.testing.assert_allclose(single.pbrf, truth.pbrf, rtol=0, atol=1e-5)
    assert single.resolution > 1e6 * double.resolution
    assert network.module[0].weight.dtype == torch.float32


def state_of(network: Network):
    module = network.module
    tensors = {name: value.clone() for name, value in module.state_dict().items()}
    flags = [(p.requires_grad, p.grad, id(p.data_ptr)) for p in module.parameters()]
    return tensors, [flag[:2] for flag in flags], module.training, torch.get_rng_state()


def same(before, after) -> bool:
    tensors = all(torch.equal(before[0][name], after[0][name]) for name in before[0])
    return tensors and before[1:3] == after[1:3] and torch.equal(before[3], after[3])


def test_the_model_is_untouched_also_by_an_interruption(network) -> None:
    network.module.train()
    network.module[0].bias.requires_grad_(False)
    network.model = pp.TorchModel(network.module, loss="cross_entropy")
    method, before = network.fitted("explicit", damping=0.1), state_of(network)
    diagnose(method, K[:1], network.test, max_iterations=3)
    assert same(before, state_of(network))

    calls = []

    def interrupted(output, target):
        calls.append(len(output))
        if len(calls) == limit:
            raise KeyboardInterrupt
        return functional.cross_entropy(output, target, reduction="none")

    limit, quick = 0, {"max_iterations": 3}
    network.model = pp.TorchModel(network.module, loss=interrupted)
    method = network.fitted("explicit", damping=0.1)
    calls.clear()
    diagnose(method, K[:1], network.test, **quick)
    total = len(calls)
    for share in (0.2, 0.4, 0.6, 0.8):
        calls.clear()
        limit = int(share * total)
        # The traceback, which the context holds, keeps what was going on alive.
        with pytest.raises(KeyboardInterrupt) as context:
            diagnose(method, K[:1], network.test, **quick)
        assert same(before, state_of(network)), share
        assert context.traceback


def test_an_unbounded_response_is_found(network) -> None:
    """Few instances and hardly any damping: leaving one out, the curvature is negative."""
    torch.manual_seed(3)
    module = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 1))
    data = torch.randn(8, 4), (torch.arange(8) % 2).float()[:, None]
    model = pp.TorchModel(module.double(), loss="bce_with_logits")
    method = pp.InfluenceFunctions("explicit", damping=1e-4).fit(model, data)
    found = diagnose(method, [0, 1, 2, 3], data, max_iterations=40)
    stops = [run.stop for run in found.optimisations if run.response == "pbrf"]
    gone = np.array([stop == "unbounded" for stop in stops[:4]])
    assert gone.any()
    np.testing.assert_array_equal(np.isnan(found.pbrf).all(0), gone)
    assert np.isfinite(found.linear).all() and np.isfinite(found.proximal).all()


# What is asked for


def test_instances_by_id_by_mask_and_drawn(network) -> None:
    ids = [f"i{j}" for j in range(N)]
    method = pp.InfluenceFunctions("explicit", damping=0.1)
    method.fit(network.model, network.train, ids=ids)
    quick = {"max_iterations": 1}
    named = diagnose(method, ["i29", "i3"], network.test, **quick)
    assert named.train_ids.tolist() == ["i29", "i3"]
    mask = np.isin(np.arange(N), [3, 29])
    masked = diagnose(method, mask, network.test, **quick)
    assert masked.train_ids.tolist() == ["i3", "i29"]
    np.testing.assert_allclose(masked.linear[:, ::-1], named.linear, rtol=0, atol=1e-7)
    np.testing.assert_array_equal(
        named.estimate, method.influence(network.test).values[:, [29, 3]].astype(float)
    )
    one, two, other = (
        diagnose(method, 3, network.test, seed=seed, **quick).train_ids.tolist()
        for seed in (0, 0, 1)
    )
    assert one == two and len(set(one)) == 3 and one != other
    labelled = Instances.of(network.test, ids=np.arange(6) + 100)
    assert diagnose(method, ["i3"], labelled, **quick).test_ids.tolist() == list(range(100, 106))


@pytest.mark.parametrize(
    "instances, message",
    [
        ([99], "unknown ids: 99"),
        ([3, 3], "more than once|twice|unique|repeated"),
        ([], "none is chosen"),
        (0, "instances must be an integer of at least 1"),
        (N + 1, "cannot be drawn"),
        (np.ones(3, dtype=bool), "3 entries for 40"),
    ],
)
def test_unusable_instances_are_refused(network, instances, message) -> None:
    with pytest.raises(InvalidInputError, match=message):
        diagnose(network.fitted(damping=0.1), instances, network.test)


def test_unusable_methods_are_refused(network) -> None:
    with pytest.raises(NotFittedError):
        diagnose(pp.InfluenceFunctions(), K, network.test)
    with pytest.raises(InvalidInputError, match="got GradientDot"):
        diagnose(pp.GradientDot().fit(network.model, network.train), K, network.test)
    with pytest.raises(InvalidInputError, match="do not estimate leaving"):
        method = RelatIF(solver="explicit", damping=0.1).fit(network.model, network.train)
        diagnose(method, K, network.test)

    def risk(module, batch):
        return functional.cross_entropy(module(batch[0]), batch[1], reduction="none")

    model = pp.TorchModel(network.module, risk=risk)
    method = pp.InfluenceFunctions(curvature="empirical_fisher", damping=0.1)
    with pytest.raises(InvalidInputError, match="no outputs apart from its loss"):
        diagnose(method.fit(model, network.train), K, network.test)
    factors = KroneckerFactors.fit(network.model, network.train, exclude=["2.bias"])
    with pytest.raises(InvalidInputError, match=r"leave out 2\.bias"):
        diagnose(network.fitted(factors, damping=0.1), K, network.test)


@pytest.mark.parametrize(
    "setting",
    [{"tolerance": 0.0}, {"max_iterations": 0}, {"confidence": 1.0}, {"dtype": "float16"}],
)
def test_unusable_settings_are_refused(network, setting) -> None:
    with pytest.raises(InvalidInputError, match=next(iter(setting))):
        diagnose(network.fitted(damping=0.1), K, network.test, **setting)


def test_a_retraining_that_fails_names_its_subset(network) -> None:
    def retrain(kept, seed):
        raise ValueError("no luck")

    with pytest.raises(ProponentError, match=r"Retraining failed for subset 0.*no luck"):
        diagnose(network.fitted(damping=0.1), K, network.test, retrain=retrain)


# Other methods and models


def test_pairs_that_were_not_scored_are_counted_and_left_out() -> None:
    problem = LeastSquares(decay=0.3)
    method = FastIF(k=20, weight_decay=0.3).fit(problem.model, problem.train)
    found = diagnose(method, list(range(12)), problem.test, max_iterations=1)
    missing = np.isnan(found.estimate)
    assert 0 < missing.sum() < missing.size
    seen = np.abs(found.linear - found.estimate)[~missing]
    assert found.sizes["solver"].value == pytest.approx(seen.mean())
    assert f"not in the solver gap: {missing.sum()} of 60 pairs" in str(found)


def test_scikit_learn_models_with_retrainings_that_return_risks() -> None:
    X, y = LeastSquares(0.0).train
    X_test, y_test = (part.numpy() for part in LeastSquares(0.0).test)
    X, y = X.numpy(), y.numpy()

    def fitted(kept):
        return Ridge(alpha=3.0, tol=1e-12).fit(X[kept], y[kept])

    method = pp.InfluenceFunctions(loo_convention="fixed_divisor").fit(fitted(range(N)), (X, y))
    found = diagnose(
        method, K, (X_test, y_test), tolerance=1e-9,
        retrain=lambda kept, seed: (fitted(kept).predict(X_test) - y_test) ** 2,
    )  # fmt: skip
    assert found.largest == "linearisation"
    assert found.sizes["warm_start"].value < 1e-6 * found.sizes["linearisation"].value


def test_digits_network() -> None:
    """Not trained to the end and damped: named gaps, and what the estimate is really of."""
    X, y = load_digits(return_X_y=True)
    X, y = torch.tensor(X[:240] / 16, dtype=torch.float32), torch.tensor(y[:240])
    train, test = (X[:200], y[:200]), (X[200:], y[200:])

    def trained(kept, seed):
        torch.manual_seed(seed)
        module = nn.Sequential(nn.Linear(64, 8), nn.Tanh(), nn.Linear(8, 10))
        optimizer = torch.optim.SGD(module.parameters(), 0.2, momentum=0.9, weight_decay=1e-3)
        for _ in range(60):
            optimizer.zero_grad()
            functional.cross_entropy(module(X[kept]), y[kept]).backward()
            optimizer.step()
        return module

    model = pp.TorchModel(trained(np.arange(200), 0), loss="cross_entropy")
    method = pp.InfluenceFunctions("explicit", weight_decay=1e-3, damping=0.02)
    found = diagnose(
        method.fit(model, train), 4, test, retrain=trained, dtype="float64", max_iterations=80
    )
    assert found.cold_drift == pytest.approx(0.0, abs=1e-6)  # the same seed, the same model
    assert found.largest in ("warm_start", "proximity", "non_convergence")
    assert found.advice.startswith("The largest gap is ")
    # Not retraining: the estimate answers for the proximal Bregman response.
    assert found.correlations["pbrf"].value > 0.9
    assert found.correlations["pbrf"].value > found.correlations["cold"].value
    assert found.sizes["solver"].value < 1e-4 * found.sizes["linearisation"].value
    assert found.sizes["linearisation"].value < found.sizes["non_convergence"].value
