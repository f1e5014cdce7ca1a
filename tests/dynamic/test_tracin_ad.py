"""TracInAD against the slow double sum over checkpoints and sampled instances, in float64."""

import numpy as np
import pytest
import torch
from references import flat, gradients_by_loop
from torch import nn
from traced_runs import as_batch, error, in_batches, influence_by_loops, mlp, trace
from vae_examples import FEATURES, VAE

from proponent.dynamic.instance_noise import generator
from proponent.dynamic.tracin_ad import TracInAD
from proponent.dynamic.tracincp import TracInCP
from proponent.dynamic.vae_tracin import VAETracIn
from proponent.exceptions import InvalidInputError, NonFiniteError, NotFittedError
from proponent.models.beta_vae import BetaVAERisk

EXACT = 1e-12
N = 20


def points(seed=0, n=N):
    return (np.random.default_rng(seed).random((n, FEATURES)),)


TRAIN, TEST = points(), points(1, n=6)


def reconstruction(module, batch):
    return (module(batch[0]) - batch[0]).square().sum(1)


def autoencoder():
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(FEATURES, 2), nn.Tanh(), nn.Linear(2, FEATURES))
    return net.double()


@pytest.fixture(scope="module")
def traced(tmp_path_factory):
    net = autoencoder()
    folder = tmp_path_factory.mktemp("runs") / "autoencoder"
    groups = [{"params": net[0].parameters(), "lr": 0.05}, {"params": net[2].parameters()}]
    optimizer = torch.optim.SGD(groups, lr=0.02)
    return trace(
        folder,
        net,
        TRAIN,
        in_batches(N, 6),
        optimizer=optimizer,
        loss=None,
        risk=reconstruction,
        load={"risk": reconstruction},
    )


def sampled(t, size, seed):
    return generator(seed, "sample", f"step {t}").permutation(N)[:size]


def double_sum(traced, test, size, seed=0, steps=None):
    """Return the scores one product at a time."""
    scores = np.zeros(len(test[0]))
    for t in steps or traced.steps:
        rates = traced.rates[t - 1]
        train, others = traced.gradients(t, TRAIN), traced.gradients(t, test)
        for x in range(len(scores)):
            for j in sampled(t, size, seed):
                for name, rate in rates.items():
                    product = (train[name][j] * others[name][x]).sum()
                    scores[x] += rate * float(product) / size
    return scores


@pytest.mark.parametrize(("sample", "size"), [(1, 1), (5, 5), (13, 13), (64, N), (None, N)])
def test_it_is_the_slow_double_sum(traced, sample, size):
    found = TracInAD(sample, seed=2).fit(traced.run, TRAIN).anomaly_scores(TEST)
    assert error(found.values, double_sum(traced, TEST, size, seed=2)) < EXACT
    assert found.diagnostics["sample"] == size
    assert found.method == "TracInAD"


def test_of_all_training_instances_it_is_the_mean_influence(traced):
    method = TracInAD(None).fit(traced.run, TRAIN)
    influence = method.influence(TEST)
    expected = influence_by_loops(traced, TEST, traced.steps)
    assert error(influence.values, expected) < EXACT
    found = method.anomaly_scores(TEST)
    assert error(found.values, expected.mean(1)) < EXACT
    assert (found.std_error == 0.0).all()
    own = TracInCP().fit(traced.run, TRAIN).memorization().values
    assert error(method.memorization().values, own) < EXACT


@pytest.mark.parametrize("settings", [{"batch_size": 1}, {"batch_size": 7}, {"memory": 3000}])
def test_neither_batches_nor_memory_change_the_scores(traced, settings):
    expected = TracInAD(9).fit(traced.run, TRAIN).anomaly_scores(TEST)
    found = TracInAD(9, **settings).fit(traced.run, TRAIN).anomaly_scores(TEST)
    assert error(found.values, expected.values) < EXACT
    some = TracInAD(9).fit(traced.run, TRAIN).anomaly_scores((TEST[0][[4, 0]],))
    assert error(some.values, expected.values[[4, 0]]) < EXACT


def test_memory_for_one_mean_gradient_leaves_no_standard_error(traced):
    found = TracInAD(9, memory=1).fit(traced.run, TRAIN).anomaly_scores(TEST)
    assert error(found.values, double_sum(traced, TEST, 9)) < EXACT
    assert np.isnan(found.std_error).all()


def test_standard_errors_are_those_of_the_sample(traced):
    """Squared errors, averaged over seeds, are the variance of the scores over seeds."""
    answers = [
        TracInAD(10, seed=seed, checkpoints=[1, 3]).fit(traced.run, TRAIN).anomaly_scores(TEST)
        for seed in range(80)
    ]
    scores = np.stack([answer.values for answer in answers])
    claimed = np.stack([answer.std_error for answer in answers])
    assert (claimed**2).mean(0) == pytest.approx(scores.var(0, ddof=1), rel=0.5)
    truth = double_sum(traced, TEST, N, steps=[1, 3])
    spread = scores.std(0, ddof=1) / np.sqrt(len(scores))
    assert (np.abs(scores.mean(0) - truth) < 4 * spread).all()


def test_a_variational_autoencoder_with_independent_draws(tmp_path):
    risk = BetaVAERisk()
    traced = trace(
        tmp_path, VAE(), TRAIN, in_batches(N, 6), loss=None, risk=risk, load={"risk": risk}
    )
    found = TracInAD(None, draws=3, seed=1).fit(traced.run, TRAIN).anomaly_scores(TEST)
    matrix = VAETracIn(3, seed=1).fit(traced.run, TRAIN).influence(TEST).values
    assert error(found.values, matrix.mean(1)) < EXACT
    assert (found.std_error > 0).all()
    method = TracInAD(7, draws=3, seed=1).fit(traced.run, TRAIN)
    partial = np.zeros(6)
    for t in traced.steps:
        at = VAETracIn(3, seed=1, checkpoints=[t]).fit(traced.run, TRAIN).influence(TEST)
        partial += at.values[:, sampled(t, 7, 1)].mean(1)
    assert error(method.anomaly_scores(TEST).values, partial) < EXACT


def test_a_classifier_and_a_choice_of_parameters(tmp_path):
    generator = np.random.default_rng(0)
    train, test = ((generator.normal(size=(n, 4)), generator.integers(0, 3, n)) for n in (13, 5))
    traced = trace(tmp_path, mlp(), train, in_batches(13, 5))
    found = TracInAD(None, parameters="last").fit(traced.run, train).anomaly_scores(test)
    expected = influence_by_loops(
        traced, test, traced.steps, names=lambda name: name.startswith("2.")
    )
    assert error(found.values, expected.mean(1)) < EXACT


def test_the_answer_ranks_and_keeps_ids(traced):
    ids = list("abcdef")
    method = TracInAD(None).fit(traced.run, TRAIN)
    answer = method.anomaly_scores(TEST, ids=ids)
    order = np.argsort(-answer.values)
    assert answer.ranking().tolist() == [ids[i] for i in order]
    assert answer.highest(2).tolist() == [ids[i] for i in order[:2]]
    assert len(answer) == 6
    table = answer.to_dataframe()
    assert table["score"].to_dict() == dict(zip(ids, answer.values, strict=True))
    assert (method.score_samples(TEST) == -answer.values).all()  # the lower, the more anomalous
    assert str(answer).startswith(
        f"AnomalyScores(TracInAD, 6 instances, most anomalous: {ids[order[0]]}"
    )
    with pytest.raises(ValueError, match="read-only"):
        answer.values[0] = 0
    with pytest.raises(InvalidInputError, match=r"1 \.\. 6"):
        answer.highest(7)


def test_what_it_needs_is_said(traced):
    for sample in (0, 2.5, True):
        with pytest.raises(InvalidInputError, match="sample must be a positive integer or None"):
            TracInAD(sample).fit(traced.run, TRAIN)
    with pytest.raises(NotFittedError):
        TracInAD().anomaly_scores(TEST)
    method = TracInAD().fit(traced.run, TRAIN)
    with pytest.raises(InvalidInputError, match="empty"):
        method.anomaly_scores((TEST[0][:0],))
    broken = TEST[0].copy()
    broken[2, 0] = np.inf
    with pytest.raises(NonFiniteError, match="2"):
        method.anomaly_scores((broken,))


def test_the_reference_is_what_it_claims(traced):
    """The double sum's gradients are those of plain backward passes."""
    batch = as_batch(traced.at(1), TRAIN)
    found = flat(gradients_by_loop(traced.at(1), reconstruction, batch, N))
    for i in (0, 7):
        net = traced.at(1)
        reconstruction(net, (batch[0][i : i + 1],)).sum().backward()
        own = torch.cat([parameter.grad.flatten() for parameter in net.parameters()])
        assert torch.allclose(found[i], own, rtol=1e-12)
