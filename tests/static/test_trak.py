"""TRAK against the formula written out, influence functions, and the defects of its peers."""

import copy

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal
from static.projected_examples import Study, binary, classifier, close, images, log_odds, matrix
from static.projected_examples import sequence as tokens
from torch import nn
from torch.overrides import TorchFunctionMode

import proponent as pp
from proponent.exceptions import InvalidInputError, NonFiniteError, SolveError
from proponent.gradients.forms import Dense
from proponent.static.trak import TRAK

KINDS = ("factored", "rademacher", "gaussian")
P = 21  # parameters of the binary study


def kernel(study: Study, damping: float = 0.0, weighted: bool = False):
    """Return ``phi_te^T (Phi^T R Phi + n damping)^{-1} phi_i`` without a projection, and 1 - p."""
    train, test = (matrix(study.gradients(log_odds, part)) for part in (study.train, study.test))
    with torch.no_grad():
        p = torch.sigmoid(log_odds(study.module, study.train))
    weights = p * (1 - p) if weighted else torch.ones_like(p)
    n = len(train)
    moment = train.T @ (weights[:, None] * train) + n * damping * torch.eye(train.shape[1]).double()
    return (test @ torch.linalg.solve(moment, train.T)), 1 - p


# The formula


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("batch_size", [None, 7])
def test_a_projection_of_full_rank_changes_nothing(kind, weighted, batch_size):
    """Without damping the scores are the same for every invertible projection, and for none."""
    study = binary()
    products, residuals = kernel(study, weighted=weighted)
    method = TRAK(
        P, projection=kind, damping=0.0, curvature_weights=weighted, batch_size=batch_size
    )
    influence = method.fit(study.model, study.train).influence(study.test)
    assert close(influence.values, products * residuals, 1e-6)
    # 1 - p stands on the training side alone.
    assert not close(influence.values, products, 0.1)
    assert influence.diagnostics["output"] == "log-odds of the label"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("make, k", [(classifier, 9), (classifier, 200), (binary, 16)])
def test_the_formula_in_the_projected_space(kind, make, k):
    study = make()
    method = TRAK(k, projection=kind, damping=0.02).fit(study.model, study.train)
    project = method._projection(0, method._capture)
    train, test = (study.gradients(log_odds, part) for part in (study.train, study.test))
    rows = [
        project({name: Dense(g) for name, g in part.items()}, len(next(iter(part.values()))))
        for part in (train, test)
    ]
    n = len(rows[0])
    moment = rows[0].T @ rows[0] + n * 0.02 * torch.eye(k).double()
    p = torch.sigmoid(log_odds(study.module, study.train)).detach()
    expected = rows[1] @ torch.linalg.solve(moment, rows[0].T) * (1 - p)
    assert close(method.influence(study.test).values, expected)
    own = (rows[0] * torch.linalg.solve(moment, rows[0].T).T).sum(1) * (1 - p)
    assert close(method.memorization().values, own)
    assert close(method.influence(study.test, joint=True).values, expected.sum(0))
    shard = method.influence(study.test, shard=(0, 2)).values
    assert close(shard, expected[:, : n // 2])
    top = method.influence(study.test, top_k=2).proponents().ids
    assert_array_equal(top, np.argsort(-expected.numpy(), 1)[:, :2])


def test_with_curvature_weights_it_is_leave_one_out_on_the_output():
    """Logistic regression without a penalty, trained to the end, retrained without each."""
    torch.manual_seed(1)
    X = torch.randn(60, 3).double()
    y = (torch.sigmoid(X @ torch.tensor([1.0, -1.0, 0.5]).double()) > torch.rand(60)).double()
    X_test, y_test = torch.randn(9, 3).double(), torch.randint(2, (9,)).double()

    def trained(kept):
        theta = torch.zeros(3).double()
        for _ in range(30):  # Newton
            p = torch.sigmoid(X[kept] @ theta)
            hessian = X[kept].T @ ((p * (1 - p))[:, None] * X[kept])
            theta = theta - torch.linalg.solve(hessian, X[kept].T @ (p - y[kept]))
        return theta

    module = nn.Linear(3, 1, bias=False).double()
    everything = torch.ones(60, dtype=torch.bool)
    module.weight.data = trained(everything)[None]
    model = pp.TorchModel(module, loss=nn.BCEWithLogitsLoss())
    method = TRAK(3, damping=0.0, curvature_weights=True).fit(model, (X, y[:, None]))
    found = method.influence((X_test, y_test[:, None])).values
    hessian = X.T @ ((p := torch.sigmoid(X @ module.weight.data[0])) * (1 - p) * X.T).T
    signs = 2 * y_test - 1
    by_influence = (signs[:, None] * X_test) @ torch.linalg.solve(hessian, X.T) * (y - p)
    assert close(found, by_influence, 1e-8)
    exact = np.empty_like(found)
    for i in range(60):
        kept = everything.clone()
        kept[i] = False
        exact[:, i] = signs * (X_test @ (module.weight.data[0] - trained(kept)))
    # Up to the leverage, by which a first-order estimate is too small.
    leverage = p * (1 - p) * (X * torch.linalg.solve(hessian, X.T).T).sum(1)
    corrected = (found / (1 - leverage.numpy())).ravel()
    assert np.corrcoef(corrected, exact.ravel())[0, 1] > 0.995
    assert np.polyfit(corrected, exact.ravel(), 1)[0] == pytest.approx(1, abs=0.1)


def test_an_ensemble_averages_the_kernels_and_the_residuals_apart():
    studies = [binary(seed=0), binary(seed=1)]
    for study in studies[1:]:
        study.train, study.test = studies[0].train, studies[0].test
    parts = [kernel(study) for study in studies]
    expected = (parts[0][0] + parts[1][0]) / 2 * (parts[0][1] + parts[1][1]) / 2
    wrong = (parts[0][0] * parts[0][1] + parts[1][0] * parts[1][1]) / 2
    assert not close(wrong, expected, 1e-2)
    settings = {"projection_dim": P, "damping": 0.0, "seed": 3}  # a seed of a good condition
    models = [study.model for study in studies]
    train, test = studies[0].train, studies[0].test
    by_models = TRAK(**settings).fit(models, train)
    assert close(by_models.influence(test).values, expected, 1e-5)
    own = [kernel(Study(s.module, s.loss, train, train))[0].diagonal() for s in studies]
    itself = (own[0] + own[1]) / 2 * (parts[0][1] + parts[1][1]) / 2
    assert close(by_models.memorization().values, itself, 1e-5)
    states = [study.module.state_dict() for study in studies]
    by_states = TRAK(**settings).fit(models[0], train, states=states)
    assert close(by_states.influence(test).values, by_models.influence(test).values, 1e-12)
    assert by_states.influence(test).diagnostics["models"] == 2
    assert_array_equal(studies[0].module.state_dict()["0.weight"], states[0]["0.weight"])


def test_the_soft_threshold():
    study = classifier()
    plain = TRAK(64).fit(study.model, study.train)
    values = plain.influence(study.test).values
    level = float(np.median(np.abs(values)))
    method = TRAK(64, soft_threshold=level).fit(study.model, study.train)
    expected = np.sign(values) * np.maximum(np.abs(values) - level, 0)
    assert close(method.influence(study.test).values, expected)
    assert 0.3 < (expected == 0).mean() < 0.7
    assert close(method.influence(study.test, joint=True).values, expected.sum(0))
    own = plain.memorization().values
    assert close(method.memorization().values, np.sign(own) * np.maximum(abs(own) - level, 0))


# The output


def test_other_losses_have_minus_the_risk_for_output():
    study = images()
    method = TRAK(500, projection="gaussian", damping=0.05).fit(study.model, study.train)
    influence = method.influence(study.test)
    assert influence.diagnostics["output"] == "minus the risk"
    train, test = (matrix(study.risk_gradients(part)) for part in (study.train, study.test))
    # In so many dimensions the projection keeps inner products, nearly.
    n = len(train)
    gram = train @ train.T
    expected = test @ train.T @ torch.linalg.inv(gram + n * 0.05 * torch.eye(n).double())
    assert np.corrcoef(influence.values.ravel(), expected.numpy().ravel())[0, 1] > 0.95
    with pytest.raises(InvalidInputError, match=r"curvature_weights: .*minus the risk"):
        TRAK(8, curvature_weights=True).fit(study.model, study.train)


def test_an_output_and_a_residual_of_ones_own():
    """Least squares by its output: the residual is y - f, the curvature 1."""
    torch.manual_seed(0)
    X, X_test = torch.randn(20, 3).double(), torch.randn(4, 3).double()
    module = nn.Linear(3, 1, bias=False).double()
    model = pp.TorchModel(module, loss="mse")
    settings = {"output": lambda net, batch: net(batch[0])[:, 0], "damping": 0.0}
    with torch.no_grad():
        f = module(X)[:, 0]
    for residual, expected in ((None, torch.sigmoid(-f)), (lambda f: 3 - f, 3 - f)):
        for weighted in (False, True):
            method = TRAK(3, residual=residual, curvature_weights=weighted, **settings)
            R = torch.ones(20) if not weighted or residual else expected * (1 - expected)
            found = method.fit(model, (X, f[:, None])).influence((X_test, f[:4, None]))
            moment = X.T @ (R[:, None] * X)
            assert close(found.values, X_test @ torch.linalg.solve(moment, X.T) * expected, 1e-8)
            assert found.diagnostics["output"] == "as given"


def test_what_a_residual_may_be():
    study = binary()
    wrong = {"output": log_odds, "residual": lambda f: f.sum()}
    with pytest.raises(InvalidInputError, match=r"residual: expected \(40,\).* returned \(\)"):
        TRAK(8, **wrong).fit(study.model, study.train)
    growing = {"output": log_odds, "residual": lambda f: f, "curvature_weights": True}
    with pytest.raises(InvalidInputError, match="no positive curvature"):
        TRAK(8, **growing).fit(study.model, study.train)


def test_the_log_odds_do_not_saturate():
    """A margin of 60 is 60, and its gradient is there, where p is 1 to rounding."""
    module = nn.Linear(1, 3, bias=False)
    module.weight.data = torch.tensor([[60.0], [0.0], [-5.0]])
    train = torch.tensor([[1.0], [1.0], [0.1]]), torch.tensor([0, 1, 0])
    method = TRAK(3).fit(pp.TorchModel(module, loss="cross_entropy"), train)
    outputs = torch.cat([v["output"] for _, v in method._sets[0].rows.read(range(3))])[:, 0]
    others = [0.0, np.log(np.exp(60.0) + np.exp(-5.0)), np.log(1 + np.exp(-0.5))]
    assert np.allclose(outputs, [60.0 - np.log(1 + np.exp(-5.0)), 0 - others[1], 6.0 - others[2]])
    assert (method.influence(train).values[0] != 0).any()


@pytest.mark.parametrize(
    "study, message",
    [
        (tokens(), r"log-odds of the label need logits \(batch, classes\)"),
        (
            Study(
                nn.Linear(2, 2).double(), "bce_with_logits",
                (torch.randn(5, 2).double(), torch.ones(5, 2).double()), (),
            ),
            "one logit and one label",
        ),
        (
            Study(
                nn.Linear(2, 1).double(), "bce_with_logits",
                (torch.randn(5, 2).double(), torch.full((5, 1), 0.5).double()), (),
            ),
            "must be 0 or 1",
        ),
        (
            Study(
                nn.Linear(2, 3).double(), "cross_entropy",
                (torch.randn(5, 2).double(), torch.tensor([0, 1, -100, 2, 1])), (),
            ),
            r"labels must be in 0 \.\. 2",
        ),
    ],
)  # fmt: skip
def test_labels_without_log_odds_are_refused(study, message):
    with pytest.raises(InvalidInputError, match=message):
        TRAK(8).fit(study.model, study.train)


def test_sequences_by_an_output_of_ones_own():
    study = tokens()

    def mean_margin(module, batch):
        logits = module(batch[0]).flatten(0, 1)
        labels = batch[1].flatten()
        return log_odds(lambda _: logits, (None, labels)).view(batch[1].shape).mean(1)

    method = TRAK(256, output=mean_margin, damping=0.1).fit(study.model, study.train)
    rows = matrix(study.gradients(mean_margin, study.train))
    n = len(rows)
    gram = rows @ rows.T
    exact = torch.linalg.solve(gram + 0.1 * n * torch.eye(n).double(), gram).T
    residuals = torch.sigmoid(-mean_margin(study.module, study.train)).detach()
    found = method.influence(study.train).values
    assert np.corrcoef(found.ravel(), (exact * residuals).numpy().ravel())[0, 1] > 0.95


# Damping


def test_more_dimensions_than_instances():
    """Without damping that is silent garbage elsewhere: refused here, and damped by default."""
    study = binary(n=12)
    with pytest.raises(SolveError, match=r"12 training instances span at most 12 of 64"):
        TRAK(64, damping=0.0).fit(study.model, study.train)
    method = TRAK(64).fit(study.model, study.train)
    influence = method.influence(study.test)
    assert "12 training instances for 64 dimensions" in influence.diagnostics["warnings"][0]
    (damping,) = influence.diagnostics["damping"]
    ((_, rows),) = method._sets[0].rows.read(range(12))
    squares = rows["gradient"].square().sum() / 12
    assert damping == pytest.approx(0.3 * float(squares) / 12)
    assert not TRAK(8).fit(study.model, study.train).influence(study.test).diagnostics["warnings"]


def test_a_singular_second_moment_is_refused():
    """The log-odds of three classes do not change with all logits: the head is singular."""
    study = classifier(n=100)
    p = sum(parameter.numel() for parameter in study.module.parameters())
    with pytest.raises(SolveError, match=r"singular to rounding.*Raise the damping"):
        TRAK(p, damping=0.0).fit(study.model, study.train)


# What peers get wrong


def test_few_dimensions_work():
    """trak 0.3.2: AttributeError at scoring for 100 dimensions or fewer."""
    study = classifier()
    for k in (1, 3, 64, 100):
        assert np.isfinite(TRAK(k).fit(study.model, study.train).influence(study.test).values).all()


def test_single_precision_is_as_good_as_double():
    """trak 0.3.2 stores float16: correlation 0.993."""
    study = classifier()
    double = TRAK(64).fit(study.model, study.train).influence(study.test).values
    model = pp.TorchModel(copy.deepcopy(study.module).float(), loss="cross_entropy")
    single = TRAK(64).fit(model, study.train).influence(study.test).values
    assert single.dtype == np.float32
    assert close(single, double, 1e-4)


@pytest.mark.parametrize("where", ["train", "test"])
def test_a_value_that_is_not_a_number_is_named(where):
    """trak: all scores NaN. dattri: a row of zeros."""
    study = classifier()
    X, y = (part.clone() for part in getattr(study, where))
    X[4, 1] = float("nan")
    ids = [f"{where}-{i}" for i in range(len(X))]
    method = TRAK(16).fit(study.model, study.train)
    before = method.influence(study.test).values
    with pytest.raises(NonFiniteError, match=rf"{where}-4\b"):
        if where == "train":
            method.fit(study.model, (X, y), ids=ids)
        else:
            method.influence((X, y), ids=ids)
    assert_array_equal(method.influence(study.test).values, before)


def test_no_matrix_of_all_pairs_of_training_instances():
    """dattri: n x n for a diagonal."""

    class Largest(TorchFunctionMode):
        entries = 0

        def __torch_function__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            for tensor in result if isinstance(result, tuple) else (result,):
                if isinstance(tensor, torch.Tensor):
                    self.entries = max(self.entries, tensor.numel())
            return result

    torch.manual_seed(0)
    n = 1000
    train = torch.randn(n, 3), torch.randint(2, (n,))
    model = pp.TorchModel(nn.Linear(3, 2), loss="cross_entropy")
    with Largest() as largest:
        method = TRAK(16).fit(model, train)
        method.memorization()
        method.influence((train[0][:2], train[1][:2]))
    assert 16 * n <= largest.entries < n * n / 10


def test_projected_gradients_are_never_those_of_other_weights(tmp_path):
    """trak reuses ./trak_results whatever the weights."""
    study, other = classifier(seed=0), classifier(seed=1)
    method = TRAK(16, path=tmp_path / "store").fit(study.model, study.train)
    expected = method.influence(study.test).values
    again = TRAK(16, path=tmp_path / "store", batch_size=4).fit(study.model, study.train)
    assert close(again.influence(study.test).values, expected)
    with pytest.raises(InvalidInputError, match=r"its module differ"):
        TRAK(16, path=tmp_path / "store").fit(other.model, study.train)
    with pytest.raises(InvalidInputError, match=r"its train differ"):
        TRAK(16, path=tmp_path / "store").fit(study.model, other.train)
    with pytest.raises(InvalidInputError, match=r"its seed differ"):
        TRAK(16, seed=1, path=tmp_path / "store").fit(study.model, study.train)
    # The same weights and data, and another function of them.
    TRAK(16, path=tmp_path / "own", output=log_odds).fit(study.model, study.train)
    doubled = lambda *given: 2 * log_odds(*given)  # noqa: E731
    with pytest.raises(InvalidInputError, match=r"not those of this risk \(or model output\)"):
        TRAK(16, path=tmp_path / "own", output=doubled).fit(study.model, study.train)
    study.module[0].weight.data += 0.1
    with pytest.raises(InvalidInputError, match="have changed since TRAK was fitted"):
        method.influence(study.test)


def test_live_states_are_refused():
    """dattri#97: [model.state_dict(), ...] is the live weights, several times."""
    study = classifier()
    states = []
    for _ in range(2):
        states.append(study.module.state_dict())
        study.module[0].weight.data += 1
    with pytest.raises(
        InvalidInputError, match=r"two of the models have the same parameters.*copy"
    ):
        TRAK(16).fit(study.model, study.train, states=states)
    with pytest.raises(InvalidInputError, match="two of the models have the same parameters"):
        TRAK(16).fit([study.model, study.model], study.train)


def test_dict_batches_and_batch_normalisation():
    torch.manual_seed(0)

    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))

        def forward(self, features):
            return self.net(features)

    module = Named().double()
    X, y = torch.randn(20, 3).double(), torch.randint(3, (20,))
    module(X)
    by_name = {"features": X, "labels": y}
    model = pp.TorchModel(module, loss="cross_entropy")
    expected = TRAK(32).fit(model, by_name).influence(by_name).values
    plain = pp.TorchModel(module.net, loss="cross_entropy")
    found = TRAK(32, projection="gaussian").fit(plain, (X, y), ids=None)
    assert np.corrcoef(found.influence((X, y)).values.ravel(), expected.ravel())[0, 1] > 0.8
    for size in (1, 7):  # training-mode statistics would depend on the batch
        again = TRAK(32, batch_size=size).fit(model, by_name).influence(by_name).values
        assert close(again, expected)


# Settings


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"projection_dim": 0}, "projection_dim must be an integer of at least 1"),
        ({"projection_dim": 2.5}, "projection_dim must be an integer"),
        ({"seed": -1}, "seed must be an integer of at least 0"),
        ({"projection": "sparse"}, "projection='sparse': expected one of factored, rademacher"),
        ({"damping": -1.0}, "damping must be a finite number"),
        ({"soft_threshold": -1.0}, "soft_threshold must be"),
        ({"output": 3}, "output: expected a callable"),
        ({"residual": torch.sigmoid}, "residual= belongs to an output="),
        ({"memory": 1000}, "training instances take .* Give path="),
    ],
)
def test_settings_that_cannot_be_used(settings, message):
    study = classifier()
    with pytest.raises(InvalidInputError, match=message):
        TRAK(**{"projection_dim": 16, **settings}).fit(study.model, study.train)


def test_ensembles_that_cannot_be_used():
    study = classifier()
    for wrong in ([], [study.model, study.module]):
        with pytest.raises(InvalidInputError, match=r"model: TRAK needs"):
            TRAK(8).fit(wrong, study.train)
    states = [study.module.state_dict()]
    for models, given in (([study.model, study.model], states), (study.model, [])):
        with pytest.raises(InvalidInputError, match="states: expected at least one"):
            TRAK(8).fit(models, study.train, states=given)
    with pytest.raises(InvalidInputError, match=r"state: 0\.weight has shape"):
        TRAK(8).fit(study.model, study.train, states=[{"0.weight": torch.zeros(1)}])
