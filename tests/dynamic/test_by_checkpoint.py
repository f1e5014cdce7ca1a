"""When influence was made: contributions of steps and checkpoints against plain loops."""

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from traced_runs import error, in_batches, influence_by_loops, make_set, mlp, per_batch, trace

import proponent as pp
from proponent import stepwise
from proponent.checkpoint_influence import CheckpointInfluence
from proponent.exceptions import InvalidInputError, MethodCapabilityError, NotFittedError

EXACT = 1e-12
TRAIN, TEST = make_set(), make_set(1, n=4)
TEST_IDS = ["a", "b", "c", "d"]

METHODS = {
    "TracIn": lambda: pp.TracIn(),
    "update": lambda: pp.TracIn(update="optimizer"),
    "RenormalizedTracIn": lambda: pp.RenormalizedTracIn(),
    "TracInCP": lambda: pp.TracInCP(scale_by_batch=True),
    "TracInLast": lambda: pp.TracInLast(),
    "TracInRP": lambda: pp.TracInRP(k=16, seed=3),
    "GAS": lambda: pp.GAS(),
    "layerwise": lambda: pp.GAS(layerwise=True),
    "IdealTracIn": lambda: pp.IdealTracIn(share_batches=True),
    "HyDRA": lambda: pp.HyDRA(),
    "fast": lambda: pp.HyDRA("fast"),
    "SGDInfluence": lambda: pp.SGDInfluence(),
}


@pytest.fixture(scope="module")
def traced(tmp_path_factory):
    """Two epochs in batches of 5, 5 and 3: six steps."""
    path = tmp_path_factory.mktemp("runs") / "mlp"
    return trace(path, mlp(), TRAIN, in_batches(13, 5, epochs=2), test=TEST, optimizer_state=True)


@pytest.fixture(scope="module")
def fitted(traced):
    return pp.TracIn().fit(traced.run, TRAIN)


def test_each_step_of_equation_54(traced, fitted):
    found = fitted.influence(TEST, ids=TEST_IDS, by_checkpoint=True)
    assert found.shape == (4, 13, 6)
    assert_array_equal(found.steps, np.arange(1, 7))
    assert found.test_ids.tolist() == TEST_IDS
    for t, weight in per_batch(traced).items():
        expected = influence_by_loops(traced, TEST, {t: weight})
        assert error(found.values[:, :, t - 1], expected) < EXACT
        out = np.setdiff1d(np.arange(13), traced.batches[t - 1])
        assert not found.values[:, out, t - 1].any()


@pytest.mark.parametrize("name", METHODS)
def test_the_total_is_the_influence(traced, name):
    method = METHODS[name]().fit(traced.run, TRAIN)
    plain = method.influence(TEST)
    found = method.influence(TEST, by_checkpoint=True)
    total = found.total()
    assert error(total.values, plain.values) < EXACT
    assert (total.method, dict(total.settings)) == (plain.method, dict(plain.settings))
    assert dict(total.diagnostics) == dict(plain.diagnostics)
    joint = method.influence(TEST, joint=True, by_checkpoint=True)
    assert joint.shape == (13, 6)
    assert joint.diagnostics["joint"] == {"reduction": "sum", "n_test": 4}
    assert error(joint.values, found.values.sum(0)) < 1e-11
    assert error(joint.total().values, method.influence(TEST, joint=True).values) < EXACT
    shards = [method.influence(TEST, by_checkpoint=True, shard=(i, 3)) for i in range(3)]
    assert error(CheckpointInfluence.join(shards).values, found.values) < EXACT
    summary = method.influence(TEST, by_checkpoint="summary")
    assert error(summary.helped, np.maximum(found.values, 0).sum(1)) < EXACT
    if name != "GAS":
        assert error(summary.harmed, np.minimum(found.values, 0).sum(1)) < EXACT
    summed = method.influence(TEST, joint=True, by_checkpoint="summary")
    assert error(summed.net(), joint.values.sum(0)) < 1e-11


@pytest.mark.parametrize(
    ("phases", "cuts"), [(1, [6]), (3, [2, 4, 6]), (4, [2, 4, 5, 6]), (6, range(1, 7))]
)
def test_phases_are_of_equal_numbers_of_steps(fitted, phases, cuts):
    whole = fitted.influence(TEST, by_checkpoint=True).values
    found = fitted.influence(TEST, by_checkpoint=True, phases=phases)
    starts = [0, *list(cuts)[:-1]]
    assert found.steps.tolist() == [start + 1 for start in starts]
    assert found.last_steps.tolist() == list(cuts)
    expected = np.stack([whole[..., a:b].sum(-1) for a, b in zip(starts, cuts, strict=True)], -1)
    assert error(found.values, expected) < EXACT
    summary = fitted.influence(TEST, by_checkpoint="summary", phases=phases)
    # The contributions of a phase are put together before their sign is looked at.
    assert error(summary.helped, np.maximum(expected, 0).sum(1)) < EXACT
    assert error(summary.harmed, np.minimum(expected, 0).sum(1)) < EXACT


def test_a_summary_in_blocks_of_training_instances(fitted, monkeypatch):
    whole = fitted.influence(TEST, by_checkpoint="summary")
    monkeypatch.setattr(type(fitted), "_block_rows", lambda self, n_test: 3)
    blocks = fitted.influence(TEST, by_checkpoint="summary")
    assert error(blocks.helped, whole.helped) < EXACT
    assert error(blocks.harmed, whole.harmed) < EXACT


def test_checkpoints_keep_the_steps_they_were_stored_before(tmp_path):
    traced = trace(tmp_path, mlp(), TRAIN, in_batches(13, 5, epochs=3), every=2)
    method = pp.TracInCP(checkpoints=[1, 5, 9]).fit(traced.run, TRAIN)
    found = method.influence(TEST, by_checkpoint=True)
    assert found.steps.tolist() == [1, 5, 9]
    for column, t in enumerate(found.steps):
        expected = influence_by_loops(traced, TEST, [int(t)])
        assert error(found.values[..., column], expected) < EXACT
    late = influence_by_loops(traced, TEST, [5, 9])
    assert error(found.phase(first=2).values, late) < EXACT


def test_a_float32_module_gives_float32_contributions(tmp_path):
    traced = trace(tmp_path, mlp().float(), TRAIN, in_batches(13, 5))
    method = pp.TracIn().fit(traced.run, TRAIN)
    found = method.influence(TEST, by_checkpoint=True)
    assert found.values.dtype == np.float32
    assert error(found.total().values, method.influence(TEST).values) < 1e-6


def test_refusals(traced, fitted, monkeypatch):
    with pytest.raises(InvalidInputError, match=r"phases=7: only 6 steps .* at most 6"):
        fitted.influence(TEST, by_checkpoint=True, phases=7)
    with pytest.raises(InvalidInputError, match="phases must be an integer"):
        fitted.influence(TEST, by_checkpoint=True, phases=0)
    with pytest.raises(InvalidInputError, match="where by_checkpoint is True"):
        fitted.influence(TEST, phases=2)
    with pytest.raises(InvalidInputError, match=r"top_k: .*\.phase\(first, last\)"):
        fitted.influence(TEST, by_checkpoint=True, top_k=2)
    with pytest.raises(InvalidInputError, match="expected False, True or 'summary'"):
        fitted.influence(TEST, by_checkpoint="steps")
    with pytest.raises(InvalidInputError, match="leave shard out"):
        fitted.influence(TEST, by_checkpoint="summary", shard=(0, 2))
    with pytest.raises(InvalidInputError, match="test: pass the test set"):
        fitted.influence(by_checkpoint=True)
    with pytest.raises(NotFittedError):
        pp.TracIn().influence(TEST, by_checkpoint=True)
    monkeypatch.setattr(stepwise, "_memory", lambda: 2 * (4 * 13 * 6 * 8 - 1))
    with pytest.raises(InvalidInputError, match=r"phases=10, for joint=True .*shard=\(i, of\)"):
        fitted.influence(TEST, by_checkpoint=True)
    assert fitted.influence(TEST, by_checkpoint=True, phases=5).shape == (4, 13, 5)
    assert fitted.influence(TEST, by_checkpoint="summary").helped.shape == (4, 6)
    frozen = trace_without_rates(traced)
    with pytest.raises(InvalidInputError, match="no step of the run contributes"):
        frozen.influence(TEST, by_checkpoint=True)


def trace_without_rates(traced):
    """Return a method fitted to a run whose learning rates are 0."""
    path = traced.path.with_name("still")
    return pp.TracIn().fit(trace(path, mlp(), TRAIN, in_batches(13, 5), rate=0.0).run, TRAIN)


def test_what_has_no_steps_cannot_tell_when(traced):
    model = pp.TorchModel(traced.at(3), loss="cross_entropy")
    method = pp.GradientDot().fit(model, TRAIN)
    names = ["GradientDot has no influence by step", "HyDRA", "SGDInfluence", "TracIn or", "SOURCE"]
    for asked in ({"by_checkpoint": True}, {"by_checkpoint": "summary"}, {"phases": 3}):
        with pytest.raises(MethodCapabilityError) as caught:
            method.influence(TEST, **asked)
        for name in names:
            assert name in str(caught.value)
        assert "InfluenceFunctions" not in str(caught.value)
