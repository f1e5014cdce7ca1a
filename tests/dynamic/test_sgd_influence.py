"""SGD-Influence against HyDRA, central differences of retraining, and single exact steps."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal
from retrained_runs import TEST, TRAIN, N, Setup, relative_error
from traced_runs import in_batches

from proponent.dynamic.hydra import HyDRA
from proponent.dynamic.sgd_influence import SGDInfluence
from proponent.exceptions import InvalidInputError, RunError

EXACT = 1e-12
DIFFERENCED = 1e-8
SGD = torch.optim.SGD


@pytest.fixture(scope="module")
def setup():
    return Setup(lambda m: SGD(m.parameters(), lr=0.2, momentum=0.5, weight_decay=0.02))


@pytest.fixture(scope="module")
def run(setup, tmp_path_factory):
    return setup.recorded(tmp_path_factory.mktemp("runs") / "run")


def test_it_is_the_standard_hydra(run):
    for divisor in ("kept", "reduced"):
        found = SGDInfluence(divisor=divisor).fit(run, TRAIN).influence(TEST)
        expected = HyDRA(divisor=divisor).fit(run, TRAIN).influence(TEST)
        assert_array_equal(found.values, expected.values)
        forward = HyDRA(divisor=divisor, track=range(N)).fit(run, TRAIN).influence(TEST)
        assert relative_error(forward.values, expected.values) < EXACT
    without = SGDInfluence(hessian=False).fit(run, TRAIN).influence(TEST)
    assert_array_equal(without.values, HyDRA("fast").fit(run, TRAIN).influence(TEST).values)


def test_algorithm_1_of_the_paper(tmp_path):
    """Plain SGD: the recursion of Hara et al., with dense Hessians."""
    setup = Setup(lambda m: SGD(m.parameters(), lr=0.3), record={"every": 1})
    run = setup.recorded(tmp_path)
    module = setup.module()
    names = [name for name, _ in module.named_parameters()]
    shapes = [p.shape for p in module.parameters()]

    def risks(theta, data):
        cut = theta.split([shape.numel() for shape in shapes])
        values = {n: c.view(s) for n, c, s in zip(names, cut, shapes, strict=True)}
        x, y = torch.as_tensor(data[0]), torch.as_tensor(data[1])
        output = torch.func.functional_call(module, values, (x,))
        return torch.nn.functional.cross_entropy(output, y, reduction="none")

    thetas = []
    for checkpoint in run.checkpoints:
        state = checkpoint.load()
        thetas.append(torch.cat([state[name].flatten() for name in names]))
    u = torch.func.jacrev(lambda t: risks(t, TEST))(thetas[-1])
    expected = torch.zeros(len(u), N, dtype=torch.float64)
    for step, theta in reversed(list(zip(run.steps, thetas, strict=False))):
        batch = tuple(column[step.indices] for column in TRAIN)
        gradients = torch.func.jacrev(lambda t, b=batch: risks(t, b))(theta)
        expected[:, step.indices.tolist()] += 0.3 / len(step.indices) * u @ gradients.T
        u = u - 0.3 * u @ torch.func.hessian(lambda t, b=batch: risks(t, b).mean())(theta)
    found = SGDInfluence().fit(run, TRAIN).influence(TEST).values
    assert relative_error(found, expected) < EXACT


def test_the_reduced_divisor_is_the_mean_over_the_others(setup, run):
    influence = SGDInfluence(divisor="reduced").fit(run, TRAIN).influence(TEST)
    expected = [setup.differences(i, reduced=True)[0] for i in (0, 8)]
    assert relative_error(influence.values[:, [0, 8]], np.stack(expected, 1)) < DIFFERENCED


def test_one_step_without_an_instance_is_exact(tmp_path):
    setup = Setup(lambda m: SGD(m.parameters(), lr=0.3), batches=[[4, 1, 4, 7]])
    run = setup.recorded(tmp_path)
    trained = dict(setup.steps(lambda t, risks, batch: risks.mean()).named_parameters())
    losses = {
        "kept": lambda t, risks, batch: (risks * torch.tensor([0.0, 1.0, 0.0, 1.0])).mean(),
        "reduced": lambda t, risks, batch: risks[[1, 3]].mean(),
    }
    for divisor, loss in losses.items():
        without = dict(setup.steps(loss).named_parameters())
        method = SGDInfluence(divisor=divisor).fit(run, TRAIN)
        changes = method.parameter_changes([4, 0])
        square = 0.0
        for name, change in changes.items():
            expected = (trained[name] - without[name]).detach().numpy()
            assert relative_error(change[0], expected) < EXACT
            assert not change[1].any()
            square += np.square(expected).sum()
        distance = method.cooks_distance([4, 0])
        assert abs(distance.values[4] - square) < EXACT * square and distance.values[0] == 0
        assert np.isnan(np.delete(distance.values, [4, 0])).all()


def test_parameter_changes_are_differences_of_retraining(setup, run):
    method = SGDInfluence().fit(run, TRAIN)
    changes = method.parameter_changes([3, 11])
    for row, instance in enumerate((3, 11)):
        for name, slope in setup.differences(instance)[1].items():
            assert relative_error(-changes[name][row], slope) < DIFFERENCED
    distance = method.cooks_distance().values
    for row, instance in enumerate((3, 11)):
        square = sum(np.square(part[row]).sum() for part in changes.values())
        assert abs(distance[instance] - square) < EXACT * square


def test_the_reduced_divisor_is_refused_where_the_loss_is_no_mean(tmp_path):
    setup = Setup(lambda m: SGD(m.parameters(), lr=0.1), batches=[*in_batches(N, 5), [6]])
    run = setup.recorded(tmp_path)
    with pytest.raises(RunError, match=r"step 4 instance 6 has the batch to itself"):
        SGDInfluence(divisor="reduced").fit(run, TRAIN)
    for positions in ([13], [-1], [1, 1], [0.5]):
        with pytest.raises(InvalidInputError, match="instances"):
            SGDInfluence().fit(run, TRAIN).parameter_changes(positions)
