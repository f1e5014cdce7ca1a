"""The study object: which parameters are chosen, what the risks are, and what it gives back."""

import pytest
import torch
from gradient_checks import Written
from torch import nn
from torch.nn import functional

from proponent.data import Instances
from proponent.exceptions import InvalidInputError, NonFiniteError
from proponent.models.torch import TorchModel, check_finite

N = 6


def network():
    return nn.Sequential(
        nn.Embedding(11, 3), nn.Flatten(), nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Dropout(0.5),
        nn.Linear(5, 4),
    )  # fmt: skip


def data():
    return torch.randint(0, 11, (N, 2)), torch.randint(0, 4, (N,))


EVERYTHING = [
    "0.weight", "2.weight", "2.bias", "3.weight", "3.bias", "5.weight", "5.bias",
]  # fmt: skip


@pytest.mark.parametrize(
    "choice, names",
    [
        ("all", EVERYTHING),
        ("last", ["5.weight", "5.bias"]),
        ("embedding", ["0.weight"]),
        ("2.weight", ["2.weight"]),
        ("*.bias", ["2.bias", "3.bias", "5.bias"]),
        (["5.bias", "embedding", "2.*"], ["0.weight", "2.weight", "2.bias", "5.bias"]),
        (["*.weight", "all"], EVERYTHING),
        (lambda module: module[3], ["3.weight", "3.bias"]),
        (lambda module: [module[5], "0.*", module[5]], ["0.weight", "5.weight", "5.bias"]),
        (lambda module: module, EVERYTHING),
    ],
)
def test_choice_of_parameters(choice, names):
    module = network()
    choice = choice(module) if callable(choice) else choice
    model = TorchModel(module, loss="cross_entropy", parameters=choice)
    assert list(model.selected) == names
    own = dict(module.named_parameters())
    assert all(model.selected[name] is own[name] for name in names)
    again = TorchModel(module, loss="mse").with_parameters(choice)
    assert list(again.selected) == names
    assert again.loss_name == "mse"


def test_frozen_parameters_are_left_out():
    module = network()
    module[2].requires_grad_(False)
    module[5].bias.requires_grad_(False)
    names = ["0.weight", "3.weight", "3.bias", "5.weight"]
    assert list(TorchModel(module, loss="cross_entropy").selected) == names
    assert list(TorchModel(module, loss="mse", parameters="last").selected) == ["5.weight"]


def test_tied_parameters_stand_once():
    first, second = nn.Linear(3, 3), nn.Linear(3, 3)
    second.weight = first.weight
    module = nn.Sequential(first, second)
    names = ["0.weight", "0.bias", "1.bias"]
    assert list(TorchModel(module, loss="mse").selected) == names
    for choice in ("1.weight", "0.weight", ["0.weight", "1.weight"]):
        selected = TorchModel(module, loss="mse", parameters=choice).selected
        assert list(selected) == ["0.weight"]
    last = TorchModel(module, loss="mse", parameters="last").selected
    assert list(last) == ["0.weight", "1.bias"]


@pytest.mark.parametrize(
    "choice, message",
    [
        ("head.*", r"no parameter matches 'head\.\*'; there are 0\.weight, .*5\.bias"),
        (["2.weight", "9.weight"], "no parameter matches '9.weight'"),
        ([], "selects no trainable parameter: nothing matches"),
        (nn.Linear(2, 2), "Linear is not a part of the module under study"),
        ("3.*", r"all of them are frozen \(requires_grad is False\)"),
    ],
)
def test_choices_that_select_nothing(choice, message):
    module = network()
    module[3].requires_grad_(False)
    with pytest.raises(InvalidInputError, match=message):
        TorchModel(module, loss="cross_entropy", parameters=choice)


def test_kinds_of_layer_that_are_not_there():
    with pytest.raises(InvalidInputError, match="the module has no Embedding"):
        TorchModel(nn.Linear(2, 2), loss="mse", parameters="embedding")
    with pytest.raises(InvalidInputError, match="the module has no Linear"):
        TorchModel(nn.Conv1d(2, 2, 1), loss="mse", parameters="last")
    with pytest.raises(InvalidInputError, match="no parameters"):
        TorchModel(nn.Tanh(), loss="mse")


def test_all_frozen():
    with pytest.raises(InvalidInputError, match="all of them are frozen"):
        TorchModel(network().requires_grad_(False), loss="mse")


def test_what_is_no_module():
    with pytest.raises(InvalidInputError, match=r"module: expected a torch.nn.Module; got funct"):
        TorchModel(lambda x: x, loss="mse")


@pytest.mark.parametrize(
    "options, message",
    [
        ({}, "give exactly one of loss="),
        ({"loss": "mse", "risk": lambda module, batch: 0}, "give exactly one of loss="),
        ({"loss": "logistic"}, "unknown name 'logistic'; known names: cross_entropy, mse"),
    ],
)
def test_losses_that_cannot_be(options, message):
    with pytest.raises(InvalidInputError, match=message):
        TorchModel(network(), **options)


def test_repr():
    assert (
        repr(TorchModel(network(), loss="mse")) == "TorchModel(Sequential, 102 parameters selected)"
    )


def test_compiled_module_is_seen_through():
    plain = network()
    compiled = torch.compile(plain, backend="eager")
    model = TorchModel(compiled, loss="mse", parameters=compiled)
    assert model.module is plain
    assert list(model.selected) == EVERYTHING


def test_type_and_device_follow_the_module():
    model = TorchModel(network().double(), loss="cross_entropy")
    assert (model.dtype, model.device) == (torch.float64, torch.device("cpu"))
    batch = (torch.zeros(2), {"x": torch.zeros(2, dtype=torch.float16), "y": torch.ones(2).int()})
    prepared = model.prepare(batch)
    assert prepared[0].dtype == prepared[1]["x"].dtype == torch.float64
    assert prepared[1]["y"].dtype == torch.int32
    assert model.prepare(torch.ones(2).bool()).dtype == torch.bool
    assert isinstance(model.prepare([torch.zeros(2)]), tuple)
    assert model.prepare("text") == "text"


@pytest.mark.parametrize("batch_size", [1, 4, 6, 100])
def test_risks(batch_size):
    module, (x, y) = network(), data()
    module(x)
    before = module[3].running_mean.clone()
    model = TorchModel(module, loss="cross_entropy")
    found = model.risks((x, y), batch_size=batch_size)
    assert torch.equal(module[3].running_mean, before)
    module.eval()
    expected = functional.cross_entropy(module(x), y, reduction="none")
    torch.testing.assert_close(found, expected)
    assert not found.requires_grad
    assert found.shape == (N,)


def test_risks_of_an_empty_set():
    x, y = data()
    assert TorchModel(network(), loss="cross_entropy").risks((x[:0], y[:0])).shape == (0,)


def test_risks_of_a_risk_that_differentiates_the_inputs():
    def risk(module, batch):
        x = batch[0].detach().requires_grad_(True)
        (slope,) = torch.autograd.grad(module(x).sum(), x)
        return slope.square().sum(1)

    module, x = nn.Linear(3, 1), torch.randn(N, 3)
    found = TorchModel(module, risk=risk).risks((x, x))
    torch.testing.assert_close(found, module.weight.detach().square().sum().expand(N))
    assert not found.requires_grad


def test_non_finite_risks_are_named():
    x, y = torch.randn(N, 3), torch.randn(N, 2)
    x[1, 0], x[4, 2] = float("nan"), float("inf")
    instances = Instances.of((x, y), ids=list("abcdef"))
    model = TorchModel(nn.Linear(3, 2), loss="mse")
    message = r"the risk of 2 instance\(s\) is not finite: ids b, e\. Look at their features"
    with pytest.raises(NonFiniteError, match=message):
        model.risks(instances)
    with pytest.raises(NonFiniteError, match=r"1 instance\(s\).*ids b\."):
        model.risks(instances, batch_size=2)


def test_many_non_finite_values_are_not_all_listed():
    values = torch.full((15, 2), float("nan"))
    values[3] = 0
    ids = torch.arange(15).numpy()
    with pytest.raises(NonFiniteError, match=r"gradient of 14 .*ids 0, 1, 2, 4.*10, \.\.\.\."):
        check_finite(values, ids, "gradient")
    finite = torch.full((4,), 3e38)  # whose sum is not
    assert check_finite(finite, ids, "risk") is finite


@pytest.mark.parametrize(
    "risk, message",
    [
        (lambda module, batch: module(batch[0]).mean(), r"returned \(\)\. a reduced loss hides"),
        (lambda module, batch: module(batch[0]), r"\(batch,\) = \(6,\); it returned \(6, 2\)\. re"),
        (lambda module, batch: module(batch[0])[:3, 0], r"it returned \(3,\)"),
        (lambda module, batch: 0.5, "it returned float"),
    ],
)
def test_risks_of_the_wrong_shape(risk, message):
    model = TorchModel(nn.Linear(3, 2), risk=risk)
    with pytest.raises(InvalidInputError, match=message):
        model.risks(torch.randn(N, 3))


def test_evaluating():
    module = network().train()
    module[3].eval()
    module[2].bias.requires_grad_(False)
    model = TorchModel(module, loss="cross_entropy", parameters="last")
    modes = [part.training for part in module.modules()]
    flags = [parameter.requires_grad for parameter in module.parameters()]
    with torch.no_grad(), model.evaluating():
        assert not any(part.training for part in module.modules())
        wanted = [name for name, p in module.named_parameters() if p.requires_grad]
        assert wanted == ["5.weight", "5.bias"]
        assert torch.is_grad_enabled()
    assert [part.training for part in module.modules()] == modes
    assert [parameter.requires_grad for parameter in module.parameters()] == flags


def test_evaluating_inside_evaluating():
    module = network().train()
    model = TorchModel(module, loss="cross_entropy", parameters="last")
    other = model.with_parameters("embedding")
    with model.evaluating():
        with other.evaluating():
            assert module[0].weight.requires_grad
            assert not module[5].weight.requires_grad
        assert not module.training
        assert module[5].weight.requires_grad
        assert not module[0].weight.requires_grad
    assert all(part.training for part in module.modules())
    assert all(parameter.requires_grad for parameter in module.parameters())


def state_of(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


@pytest.mark.parametrize("error", [None, ValueError, KeyboardInterrupt])
def test_at(error):
    """The module has other parameters for a while; its own tensors are not written to."""
    module, other = network(), network()
    model = TorchModel(module, loss="cross_entropy")
    own = state_of(module)
    places = [p.data_ptr() for p in [*module.parameters(), *module.buffers()]]
    versions = [p._version for p in module.parameters()]
    given = state_of(other)
    given["3.running_mean"] = torch.full((5,), 2.0)
    kept = {name: value.clone() for name, value in given.items()}
    x, y = data()
    before = model.risks((x, y))
    try:
        with model.at(given):
            for name, value in module.state_dict().items():
                assert torch.equal(value, given[name])
            other.load_state_dict(given)
            expected = TorchModel(other, loss="cross_entropy").risks((x, y))
            assert torch.equal(model.risks((x, y)), expected)
            if error is not None:
                raise error
    except (ValueError, KeyboardInterrupt) as raised:
        assert type(raised) is error
    assert [p.data_ptr() for p in [*module.parameters(), *module.buffers()]] == places
    assert [p._version for p in module.parameters()] == versions
    for name, value in module.state_dict().items():
        assert torch.equal(value, own[name])
    assert torch.equal(model.risks((x, y)), before)
    for name, value in given.items():
        assert torch.equal(value, kept[name]), "the state that was given has changed"


def test_at_part_of_a_state_and_in_another_type():
    module = nn.Linear(3, 2)
    model = TorchModel(module, loss="mse")
    bias = module.bias.detach().clone()
    with model.at({"weight": torch.ones(2, 3, dtype=torch.float64)}):
        assert module.weight.dtype == torch.float32
        assert torch.equal(module.weight, torch.ones(2, 3))
        assert torch.equal(module.bias, bias)


@pytest.mark.parametrize("name", ["first.weight", "second.weight"])
def test_at_a_tied_parameter_by_either_name(name):
    first, second = nn.Linear(3, 3), nn.Linear(3, 3)
    second.weight = first.weight
    module = Written(lambda self, x: self.second(self.first(x)), first=first, second=second)
    before = first.weight.detach().clone()
    model = TorchModel(module, loss="mse")
    with model.at({name: torch.ones(3, 3)}):
        assert torch.equal(first.weight, torch.ones(3, 3))
        assert second.weight is first.weight
    with model.at({"first.weight": torch.ones(3, 3), "second.weight": torch.ones(3, 3)}):
        assert torch.equal(second.weight, torch.ones(3, 3))
    assert torch.equal(first.weight, before)


@pytest.mark.parametrize(
    "state, message",
    [
        ({"bias": torch.zeros(2), "scale": torch.zeros(2)}, "scale.*no such"),
        ({"bias": torch.zeros(2), "weight": torch.zeros(3, 2)}, r"weight.*\(3, 2\).*\(2, 3\)"),
        ({"bias": torch.zeros(())}, r"bias.*\(\).*\(2,\)"),
    ],
)
def test_at_a_state_of_another_module(state, message):
    module = nn.Linear(3, 2)
    model = TorchModel(module, loss="mse")
    before = state_of(module)
    with pytest.raises(InvalidInputError, match=message), model.at(state):
        pytest.fail("entered")
    for name, value in module.state_dict().items():
        assert torch.equal(value, before[name])
