"""Influence on adversarial training: the adjoint against retraining with other weights."""

import copy
import json

import numpy as np
import pytest
import torch
from adversarial_runs import (
    PROBE,
    N,
    adam,
    adamw,
    alternating,
    by_differences,
    make_data,
    make_players,
    moments,
    record,
    retrain,
    sgd,
    simultaneous,
)
from numpy.testing import assert_allclose

from proponent.dynamic.gan_influence import GANInfluence
from proponent.exceptions import (
    InvalidInputError,
    NonFiniteError,
    NotFittedError,
    RunError,
)


def relative(found, expected):
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


CASES = {
    "alternating": (alternating(), sgd(), {}),
    "three discriminator steps": (alternating(2, 3), sgd(), {}),
    "simultaneous": (simultaneous(), sgd(), {}),
    "momentum": (alternating(), sgd(momentum=0.8, weight_decay=0.05), {}),
    "dampened, simultaneous": (simultaneous(), sgd(momentum=0.8, dampening=0.3), {}),
    "Nesterov": (alternating(), sgd(momentum=0.8, nesterov=True), {}),
    "Adam": (alternating(), adam(betas=(0.5, 0.9), eps=1e-3), {}),
    "Adam, simultaneous": (simultaneous(), adam(weight_decay=0.1, eps=1e-3), {}),
    "AdamW": (alternating(), adamw(weight_decay=0.3, eps=1e-3), {}),
    "clipped": (alternating(), sgd(momentum=0.5), {"max_norm": 0.3}),
    "clipped Adam": (simultaneous(), adam(eps=1e-3), {"max_norm": 0.3}),
}


@pytest.mark.parametrize("case", CASES)
def test_it_is_the_derivative_of_retraining(case, tmp_path):
    plan, optimizer, options = CASES[case]
    recorded = record(tmp_path / "run", plan, optimizer, **options)
    method = GANInfluence(moments, greater_is_better=True).fit(recorded.run, recorded.train)
    found = method.influence()
    expected = by_differences(recorded, moments, **options)
    assert found.shape == (2, N)
    assert relative(found.values, expected) < 1e-7
    assert found.diagnostics["replay"]["bit_exact"]
    assert not found.diagnostics["warnings"]
    plain = retrain(recorded, np.ones(N), **options)[0]
    assert_allclose(found.diagnostics["metric"], moments(plain).detach(), rtol=1e-12)


def test_the_jacobian_is_transposed(tmp_path):
    """The same recursion with the Jacobian itself, as Hessian-vector products have it, is off."""
    recorded = record(tmp_path / "run", simultaneous(8), sgd(lr=0.3))
    found = GANInfluence(moments, greater_is_better=True)
    found = found.fit(recorded.run, recorded.train).influence().values
    transposed, not_transposed = (dense_recursion(recorded, transposed=t) for t in (True, False))
    assert relative(found, transposed) < 1e-10
    assert relative(found, not_transposed) > 0.1


def dense_recursion(recorded, *, transposed, rate=0.3):
    """Return the influence from the joint Jacobian of every step, written out."""
    players = copy.deepcopy(recorded.start)
    sizes = [sum(p.numel() for p in player.parameters()) for player in players]

    def called(player, vector, *inputs):
        named = dict(player.named_parameters())
        parts = vector.split([p.numel() for p in named.values()])
        values = {
            name: part.view(p.shape) for (name, p), part in zip(named.items(), parts, strict=True)
        }
        return torch.func.functional_call(player, values, inputs)

    def field(omega, weights, indices, noise):
        """Return both players' gradients at once, (p,)."""

        def losses(generator, discriminator):
            fake = called(players[1], discriminator, called(players[0], generator, noise))[:, 0]
            real = called(players[1], discriminator, recorded.train[0][indices])[:, 0]
            softplus = torch.nn.functional.softplus
            of_real = (weights[indices] * softplus(-real)).mean()
            return softplus(-fake).mean(), of_real + softplus(fake).mean()

        generator, discriminator = omega.split(sizes)
        by_generator = torch.func.grad(lambda g: losses(g, discriminator)[0])(generator)
        by_discriminator = torch.func.grad(lambda d: losses(generator, d)[1])(discriminator)
        return torch.cat([by_generator, by_discriminator])

    omega = torch.cat([p.detach().flatten() for player in players for p in player.parameters()])
    weights = torch.ones(N, dtype=torch.float64)
    path = []
    for (_, indices), noise in zip(recorded.plan, recorded.noises, strict=True):
        path.append((omega, indices, noise))
        omega = omega - rate * field(omega, weights, indices, noise)
    generator = omega[: sizes[0]]

    def metric(vector):
        made = called(players[0], vector, PROBE)
        return torch.stack([made[:, 0].mean() - made[:, 1].square().mean(), made.var(0).sum()])

    gradient = torch.func.jacrev(metric)(generator)
    adjoint = torch.cat([gradient, torch.zeros(2, sizes[1], dtype=torch.float64)], dim=1)
    influence = torch.zeros(2, N, dtype=torch.float64)
    for omega, indices, noise in reversed(path):
        by_omega, by_weights = torch.func.jacrev(field, (0, 1))(omega, weights, indices, noise)
        influence -= rate * adjoint @ by_weights
        adjoint = adjoint - rate * adjoint @ (by_omega if transposed else by_omega.T)
    return influence.numpy()


@pytest.mark.parametrize("memory", [1, 15_000, 2**26])
def test_states_are_computed_again_within_the_memory(memory, tmp_path):
    """From two stored states, or all of them, the numbers are the same bit by bit."""
    found = []
    for every in (1, 1000):
        recorded = record(tmp_path / f"{every}", alternating(8), adam(), every=every)
        method = GANInfluence(moments, greater_is_better=True, memory=memory)
        found.append(method.fit(recorded.run, recorded.train).influence())
    assert len(recorded.run.states) == 2
    np.testing.assert_array_equal(found[0].values, found[1].values)
    assert [each.diagnostics["replay"]["bit_exact"] for each in found] == [True, True]
    assert [each.diagnostics["replay"]["states_compared"] for each in found] == [16, 1]


def test_a_metric_of_each_test_instance(tmp_path):
    recorded = record(tmp_path / "run", alternating(), adam())
    test = torch.from_numpy(np.random.default_rng(5).normal(size=(5, 2)))

    def closeness(generator, batch):
        (real,) = batch
        return (generator(PROBE)[None] - real[:, None]).square().sum(2).logsumexp(1)

    method = GANInfluence(closeness, greater_is_better=False, memory=20_000)
    method.fit(recorded.run, recorded.train)
    assert method._rows_at_once() < 5  # several passes back
    found = method.influence((test,), ids=list("abcde"))
    assert found.test_ids.tolist() == list("abcde")

    def all_of_them(generator):
        return closeness(generator, (test,))

    expected = -by_differences(recorded, all_of_them)
    assert relative(found.values, expected) < 1e-7
    assert relative(method.influence((test,), joint=True).values, expected.sum(0)) < 1e-7
    best = method.influence((test,), top_k=2).proponents(2)
    np.testing.assert_array_equal(best.ids[0], np.argsort(-expected[0])[:2])
    again = GANInfluence(all_of_them, greater_is_better=True).fit(recorded.run, recorded.train)
    assert_allclose(again.influence().values, -found.values, rtol=1e-10)
    groups = again.group_influence({"first": [0, 1, 2], "others": [3, 4, 5]})
    assert_allclose(groups.values[:, 0], again.influence().values[:, :3].sum(1))


def test_only_the_last_steps_within_the_horizon(tmp_path):
    recorded = record(tmp_path / "run", simultaneous(), sgd())
    short = GANInfluence(moments, greater_is_better=True, horizon=2)
    found = short.fit(recorded.run, recorded.train).influence()

    def from_there(recorded, weights):
        """Return what the weights do in the last two steps alone."""
        state = recorded.run.moves
        assert len(state) == len(recorded.plan)
        begun = copy.copy(recorded)
        begun.plan, begun.noises = recorded.plan[:-2], recorded.noises[:-2]
        ended = copy.copy(recorded)
        ended.plan, ended.noises = recorded.plan[-2:], recorded.noises[-2:]
        ended.start = retrain(begun, np.ones(N))
        return retrain(ended, weights)

    assert relative(found.values, by_differences(recorded, moments, retrain=from_there)) < 1e-7
    assert found.diagnostics["steps"] == 2
    assert "before step 5" in found.diagnostics["warnings"][0]


def test_an_answer_is_json_and_the_players_are_untouched(tmp_path):
    recorded = record(tmp_path / "run", alternating(), adam())
    before = [copy.deepcopy(player.state_dict()) for player in recorded.trained]
    random = torch.get_rng_state()
    found = GANInfluence(moments, greater_is_better=True).fit(recorded.run, recorded.train)
    found = found.influence()
    json.dumps(dict(found.diagnostics), allow_nan=False)
    for player, state in zip(recorded.trained, before, strict=True):
        assert all(torch.equal(player.state_dict()[name], state[name]) for name in state)
        assert all(p.requires_grad and p.grad is None for p in player.parameters())
    assert torch.equal(torch.get_rng_state(), random)


def test_running_statistics_are_said_not_to_be_differentiated(tmp_path):
    players = make_players(normalised=True)
    recorded = record(tmp_path / "run", alternating(), sgd(), players=players)

    def training(generator):
        return moments(generator.train())

    method = GANInfluence(training, greater_is_better=True, generator_mode="train")
    found = method.fit(recorded.run, recorded.train).influence()
    assert found.diagnostics["replay"]["bit_exact"] and not found.diagnostics["warnings"]
    assert relative(found.values, by_differences(recorded, training)) < 1e-7
    method.set_params(generator_mode="eval", metric=moments)
    noted = method.fit(recorded.run, recorded.train).influence().diagnostics
    assert any("running statistics" in line for line in noted["warnings"])


def test_a_replay_that_is_another_training_is_reported(tmp_path):
    recorded = record(tmp_path / "run", alternating(), adam())
    recorded.run.noise = lambda n: torch.ones(n, 2, dtype=torch.float64)
    method = GANInfluence(moments, greater_is_better=True).fit(recorded.run, recorded.train)
    noted = method.influence().diagnostics
    assert not noted["replay"]["bit_exact"]
    assert noted["replay"]["largest_difference"] > 1e-3
    assert "before step 5" in noted["warnings"][0]


def test_an_exploding_adjoint_is_reported(tmp_path):
    recorded = record(tmp_path / "run", simultaneous(20), sgd(lr=2.0))
    noted = GANInfluence(moments, greater_is_better=True).fit(recorded.run, recorded.train)
    noted = noted.influence().diagnostics
    assert noted["growth"]["largest"] > 1e3
    assert any("grew" in line for line in noted["warnings"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"metric": None}, "metric: expected a callable"),
        ({"greater_is_better": None}, "greater_is_better: say whether"),
        ({"horizon": 0}, "horizon: expected an integer"),
        ({"memory": 0}, "memory: expected an integer"),
        ({"generator_mode": "both"}, "generator_mode: expected"),
    ],
)
def test_settings_are_refused(settings, message, tmp_path):
    recorded = record(tmp_path / "run", simultaneous(1), sgd())
    method = GANInfluence(**{"metric": moments, "greater_is_better": True, **settings})
    with pytest.raises(InvalidInputError, match=message):
        method.fit(recorded.run, recorded.train)


def test_metrics_are_refused(tmp_path):
    recorded = record(tmp_path / "run", simultaneous(1), sgd())
    cases = [
        (lambda g: g(PROBE), None, "a number or a vector"),
        (lambda g: g(PROBE).mean().detach(), None, "does not depend"),
        (lambda g: 1.0, None, "a number or a vector"),
        (lambda g: g(PROBE).mean() / 0, None, "not finite"),
        (lambda g, batch: g(PROBE).mean(), recorded.train, "one value a test instance"),
        (lambda g: g(PROBE).mean(), recorded.train, r"takes \(generator, batch\)"),
        (lambda g, batch: g(PROBE).mean(), None, "takes the generator alone"),
    ]
    for metric, test, message in cases:
        method = GANInfluence(metric, greater_is_better=True).fit(recorded.run, recorded.train)
        with pytest.raises((InvalidInputError, NonFiniteError), match=message):
            method.influence(test)


def test_runs_and_sets_are_refused(tmp_path):
    recorded = record(tmp_path / "run", simultaneous(1), sgd())
    method = GANInfluence(moments, greater_is_better=True)
    with pytest.raises(NotFittedError, match="GANInfluence is not fitted"):
        method.influence()
    with pytest.raises(InvalidInputError, match=r"model: GANInfluence needs .*Adversarial"):
        method.fit(recorded.trained[0], recorded.train)
    with pytest.raises(RunError, match="another training set"):
        method.fit(recorded.run, (make_data(seed=1),))
    with pytest.raises(InvalidInputError, match="train: the set is empty"):
        method.fit(recorded.run, (make_data()[:0],))
    recorded.run.complete = False
    with pytest.raises(RunError, match="needs the final parameters"):
        method.fit(recorded.run, recorded.train)
