"""What the Gauss-Newton matrix leaves out of the Hessian."""

import pytest
import torch
from gradients.solver_examples import network
from torch import nn

import proponent as pp
from proponent.data import Instances
from proponent.exceptions import InvalidInputError
from proponent.gradients.curvature import Hessian
from proponent.gradients.gauss_newton import GaussNewton
from proponent.gradients.neglected import Neglected, neglected_shift
from proponent.models.torch import TorchModel


@pytest.mark.parametrize("batch_size", [1, 7, 50])
def test_it_is_the_hessian_less_the_gauss_newton_matrix(batch_size) -> None:
    model, data = network()
    settings = {"batch_size": batch_size}
    expected = Hessian(model, data, **settings).dense() - GaussNewton(model, data).dense()
    found = Neglected(model, data, **settings).dense()
    assert torch.linalg.norm(found - expected) < 1e-12 * torch.linalg.norm(expected)
    assert torch.linalg.norm(expected) > 0.1 * torch.linalg.norm(GaussNewton(model, data).dense())


def test_the_shift_makes_the_hessian_positive() -> None:
    model, data = network()
    shift = neglected_shift(model, data)
    difference = Hessian(model, data).dense() - GaussNewton(model, data).dense()
    assert shift == pytest.approx(-float(torch.linalg.eigvalsh(difference)[0]), rel=1e-3)
    assert shift > 0
    assert torch.linalg.eigvalsh(Hessian(model, data).dense())[0] + 1.01 * shift > 0


def test_nothing_is_neglected_where_outputs_are_linear() -> None:
    data = Instances.of((torch.randn(12, 4), torch.randint(0, 3, (12,))))
    assert neglected_shift(TorchModel(nn.Linear(4, 3), loss="cross_entropy"), data) == 0.0
    deep = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    last = TorchModel(deep, loss="cross_entropy", parameters="last")
    assert neglected_shift(last, data) == 0.0


def test_a_large_set_is_sampled() -> None:
    model, _ = network()
    X, y = torch.randn(9000, 4), torch.randint(0, 3, (9000,))
    sampled = neglected_shift(model, Instances.of((X, y)))
    difference = Neglected(model, Instances.of((X, y))).dense()
    assert sampled == pytest.approx(-float(torch.linalg.eigvalsh(difference)[0]), rel=0.3)


@pytest.mark.parametrize("curvature", ["ggn", "hessian", "fisher", "empirical_fisher"])
@pytest.mark.parametrize("weight_decay", [0.0, 1e-3, 10.0])
def test_the_library_damps_by_it(curvature, weight_decay) -> None:
    model, data = network()
    method = pp.InfluenceFunctions("explicit", curvature=curvature, weight_decay=weight_decay)
    method.fit(model, data)
    shift = neglected_shift(model, data)
    if weight_decay == 0:
        assert method.damping_ >= shift  # or a thousandth of the largest eigenvalue
        assert method.damping_ == pytest.approx(shift, rel=1e-6) or curvature != "ggn"
    else:
        assert method.damping_ == pytest.approx(max(0.0, shift - weight_decay))


def test_a_risk_that_cannot_be_split_is_refused_here_and_no_matter_to_methods() -> None:
    _, data = network()
    model = TorchModel(nn.Linear(4, 1), risk=lambda net, batch: net(batch[0])[:, 0] ** 2)
    with pytest.raises(InvalidInputError, match="outputs and a loss"):
        neglected_shift(model, data)
    method = pp.InfluenceFunctions(curvature="hessian", weight_decay=0.1).fit(model, data)
    assert method.damping_ == 0.0
