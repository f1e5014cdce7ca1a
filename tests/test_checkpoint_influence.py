"""The result that tells when influence was made: what it adds up, selects, shows and stores."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from proponent.checkpoint_influence import (
    CheckpointInfluence,
    CheckpointSummary,
    StepColumns,
    StepSums,
    SummedSums,
)
from proponent.exceptions import InvalidInputError, NonFiniteError
from proponent.influence import Influence

STEPS, LAST = [1, 11, 21, 31], [10, 20, 30, 40]


def phased(**changes: Any) -> CheckpointInfluence:
    """Three tests, five training instances, four phases of ten steps."""
    values = np.random.default_rng(0).normal(size=(3, 5, 4))
    given: dict[str, Any] = {
        "values": values,
        "steps": STEPS,
        "last_steps": LAST,
        "train_ids": list("abcde"),
        "test_ids": [7, 8, 9],
        "method": "M",
        "settings": {"rate": float("nan")},
        "diagnostics": {"warnings": ["w"], "x": [1]},
        "additive": True,
    }
    return CheckpointInfluence(**{**given, **changes})


def test_sums_over_steps() -> None:
    whole = phased()
    values = whole.values
    total = whole.total()
    assert isinstance(total, Influence)
    assert_allclose(total.values, values.sum(-1), rtol=1e-14)
    assert (total.method, total.train_ids.tolist(), total.test_ids.tolist()) == (  # type: ignore[union-attr]
        "M",
        list("abcde"),
        [7, 8, 9],
    )
    early = whole.phase(last=20)
    assert_allclose(early.values, values[..., :2].sum(-1), rtol=1e-14)
    assert early.diagnostics["phase"] == [1, 20]
    assert_allclose(whole.phase(21, 30).values, values[..., 2], rtol=1e-14)
    assert_allclose(whole.phase(-5, 99).values, total.values, rtol=1e-14)
    each = list(whole.phases())
    assert [part.diagnostics["phase"] for part in each] == [[1, 10], [11, 20], [21, 30], [31, 40]]
    assert_allclose(sum(part.values for part in each), total.values, rtol=1e-12)
    order = np.argsort(-values[..., 2:].sum(-1), axis=1)[:, :2]
    assert_array_equal(whole.proponents(2, first=21).positions, order)
    order = np.argsort(values[..., 0], axis=1)[:, :2]
    assert_array_equal(whole.opponents(2, last=10).positions, order)


def test_early_or_late() -> None:
    values = np.array([[[0.1, -0.3, 0.0, 0.6], [0.0, 0.0, 0.0, 0.0], [-2.0, 1.0, 0.0, 0.0]]])
    found = CheckpointInfluence(values, steps=[1, 5, 9, 12])
    assert_allclose(found.shares()[0, 0], [0.1, 0.3, 0.0, 0.6])
    assert np.isnan(found.shares()[0, 1]).all()
    assert_allclose(found.shares()[0, 2], [2 / 3, 1 / 3, 0, 0])
    assert_array_equal(found.median_step(), [[12, np.nan, 1]])
    summary = found.summary()
    assert_allclose(summary.helped, [[0.1, 1.0, 0.0, 0.6]])
    assert_allclose(summary.harmed, [[-2.0, -0.3, 0.0, 0.0]])
    assert_allclose(summary.net(), values.sum(1))
    assert_allclose(summary.shares(), np.array([[2.1, 1.3, 0.0, 0.6]]) / 4.0)
    assert_array_equal(summary.median_step(), [1])
    joint = found.joint("sum")
    assert_allclose(joint.shares(), found.shares()[0])
    assert_array_equal(joint.median_step(), [12, np.nan, 1])
    assert_allclose(joint.summary().helped, summary.helped[0])


@given(
    st.lists(
        st.lists(st.floats(-1e6, 1e6, width=32), min_size=3, max_size=3), min_size=1, max_size=5
    )
)
def test_shares_are_fractions_of_one(rows: list[list[float]]) -> None:
    found = CheckpointInfluence(rows, steps=[2, 4, 6])
    made = np.abs(np.asarray(rows)).sum(1) > 0
    assert_allclose(found.shares()[made].sum(-1), 1.0)
    assert (found.shares()[made] >= 0).all()
    assert np.isnan(found.shares()[~made]).all()
    cumulated = np.cumsum(np.abs(rows), axis=1)
    for row, step in zip(cumulated[made], found.median_step()[made], strict=True):
        column = [2, 4, 6].index(step)
        assert row[column] >= row[-1] / 2
        assert column == 0 or row[column - 1] < row[-1] / 2


def test_sums_over_instances_and_selecting() -> None:
    whole = phased()
    mean = whole.joint("mean")
    assert_allclose(mean.values, whole.values.mean(0))
    assert mean.diagnostics["joint"] == {"reduction": "mean", "n_test": 3}
    assert mean.test_ids is None
    group = whole.group({"early": ["a", "c"], "rest": ["b"]})
    assert_allclose(group.values[:, 0], whole.values[:, [0, 2]].sum(1))
    assert group.train_ids.tolist() == ["early", "rest"]
    assert_allclose(group.total().values, whole.total().group({"x": ["a", "c"], "y": ["b"]}).values)
    part = whole.select(test=9, train=["d", "a"])
    assert_array_equal(part.values, whole.values[[2]][:, [3, 0]])
    assert (part.test_ids.tolist(), part.train_ids.tolist()) == ([9], ["d", "a"])  # type: ignore[union-attr]
    halves = [whole.select(train=list(ids)) for ids in ("ab", "cde")]
    joined = CheckpointInfluence.join(halves)
    assert_array_equal(joined.values, whole.values)
    assert_array_equal(joined.last_steps, LAST)
    other = phased(steps=[1, 11, 21, 32]).select(train=["e"])
    with pytest.raises(InvalidInputError, match="differs from part 0 in its steps"):
        CheckpointInfluence.join([halves[0], other])
    with pytest.raises(InvalidInputError, match="not additive"):
        phased(additive=False).group({"x": ["a"]})
    with pytest.raises(InvalidInputError, match="no test instances"):
        mean.joint()
    with pytest.raises(InvalidInputError, match="no test instances to select"):
        mean.select(test=7)


def test_nothing_can_be_changed() -> None:
    values = np.zeros((2, 3, 4))
    found = CheckpointInfluence(values, steps=STEPS)
    values[:] = 1.0
    assert not found.values.any()
    for array in (found.values, found.steps, found.last_steps, found.summary().helped):
        with pytest.raises(ValueError, match="read-only"):
            array[..., 0] = 1.0
    with pytest.raises(AttributeError, match="immutable"):
        found.method = "x"  # type: ignore[misc]
    assert np.asarray(found, dtype=np.float32).dtype == np.float32


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"values": np.zeros(3)}, r"\(n_test, n_train, K\)"),
        ({"steps": [1, 2, 3]}, r"steps must be integers of shape \(4,\)"),
        ({"steps": [1.0, 2.0, 3.0, 4.0]}, "steps must be integers"),
        ({"steps": [1, 21, 11, 31]}, "order of training"),
        ({"last_steps": [10, 25, 30, 40]}, "each checkpoint's last step before"),
        ({"last_steps": [10, 20, 30, 30]}, "order of training"),
        ({"train_ids": ["a"]}, "train_ids has 1 id"),
        ({"test_ids": [1, 1, 2]}, "unique"),
        ({"additive": "no"}, "additive must be True or False"),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        phased(**changes)


def test_infinite_contributions_are_refused() -> None:
    values = np.zeros((3, 5, 4))
    values[1, 2, 3] = np.inf
    with pytest.raises(NonFiniteError, match="test 8, train c"):
        phased(values=values)
    with pytest.raises(NonFiniteError, match="test 8"):
        CheckpointSummary([[0.0], [np.nan]], [[0.0]] * 2, steps=[1], train_ids=[0], test_ids=[7, 8])
    with pytest.raises(InvalidInputError, match="helped must not be below 0"):
        CheckpointSummary([-1.0], [0.0], steps=[1], train_ids=[0])


def test_phases_are_not_cut_in_two() -> None:
    whole = phased()
    with pytest.raises(InvalidInputError, match=r"within steps 11-20; the phases are steps 1-10,"):
        whole.phase(1, 15)
    with pytest.raises(InvalidInputError, match="no checkpoint in steps 41 to 50"):
        whole.phase(41, 50)
    with pytest.raises(InvalidInputError, match="no checkpoint in steps 2 to 4"):
        CheckpointInfluence([[1.0, 2.0]], steps=[1, 5]).phase(2, 4)


@pytest.mark.parametrize("mmap", [True, False])
@pytest.mark.parametrize("joint", [True, False])
def test_round_trip(tmp_path: Path, mmap: bool, joint: bool) -> None:
    saved = phased().joint() if joint else phased()
    saved.save(tmp_path / "one")
    found = CheckpointInfluence.load(tmp_path / "one", mmap=mmap)
    assert_array_equal(found.values, saved.values)
    assert_array_equal(found.last_steps, LAST)
    assert repr(found) == repr(saved)
    assert (found.test_ids is None) == joint
    assert found.additive is True
    summary = saved.summary()
    summary.save(tmp_path / "two")
    again = CheckpointSummary.load(tmp_path / "two", mmap=mmap)
    assert_array_equal(again.helped, summary.helped)
    assert_array_equal(again.harmed, summary.harmed)
    assert repr(again) == repr(summary)
    with pytest.raises(InvalidInputError, match=r"load it with CheckpointSummary\.load"):
        CheckpointInfluence.load(tmp_path / "two")
    with pytest.raises(InvalidInputError, match="exists already"):
        saved.save(tmp_path / "one")
    phased(method="other").save(tmp_path / "one", overwrite=True)
    assert CheckpointInfluence.load(tmp_path / "one").method == "other"


def test_files_are_open_and_damage_is_named(tmp_path: Path) -> None:
    whole = phased()
    whole.save(tmp_path / "one")
    stored = np.load(tmp_path / "one" / "contributions.npy", allow_pickle=False)
    assert_array_equal(stored[2], whole.values[..., 2])  # checkpoint by checkpoint
    meta = json.loads((tmp_path / "one" / "meta.json").read_text())
    assert (meta["kind"], meta["method"]) == ("CheckpointInfluence", "M")
    (tmp_path / "one" / "steps.npy").unlink()
    with pytest.raises(InvalidInputError, match=r"steps\.npy is missing"):
        CheckpointInfluence.load(tmp_path / "one")
    whole.save(tmp_path / "two")
    np.save(tmp_path / "two" / "steps.npy", np.array(STEPS[::-1]))
    with pytest.raises(InvalidInputError, match=r"do not fit together .*order of training"):
        CheckpointInfluence.load(tmp_path / "two")


@pytest.mark.parametrize(
    "again", [copy.copy, copy.deepcopy, lambda r: pickle.loads(pickle.dumps(r))]
)
def test_copies(again: Any) -> None:
    for result in (phased(), phased().joint(), phased().summary()):
        found = again(result)
        assert type(found) is type(result)
        assert repr(found) == repr(result)
        assert_array_equal(found.shares(), result.shares())


def test_to_dataframe() -> None:
    whole = phased()
    frame = whole.to_dataframe()
    assert frame.columns.tolist() == ["test", "train", "step", "last_step", "influence"]
    row = frame[(frame.test == 8) & (frame.train == "d") & (frame.step == 21)].iloc[0]
    assert (row.last_step, row.influence) == (30, whole.values[1, 3, 2])
    wide = frame.pivot_table(index=["test", "train"], columns="step", values="influence")
    assert_array_equal(wide.to_numpy(), whole.values.reshape(15, 4))
    assert whole.joint().to_dataframe().columns.tolist() == frame.columns.tolist()[1:]
    summary = whole.summary().to_dataframe()
    row = summary[(summary.test == 9) & (summary.step == 31)].iloc[0]
    assert_allclose(row.helped + row.harmed, whole.values[2, :, 3].sum())
    assert_allclose(summary.groupby("test").share.sum(), 1.0)


def test_to_xarray() -> None:
    pytest.importorskip("xarray")
    whole = phased()
    array = whole.to_xarray()
    assert array.dims == ("test", "train", "step")
    assert float(array.sel(test=8, train="d", step=21)) == whole.values[1, 3, 2]
    assert int(array.last_step.sel(step=21)) == 30
    assert_allclose(array.sum("step"), whole.total().values)
    assert whole.joint().to_xarray().dims == ("train", "step")


def test_shown_when_it_was_made() -> None:
    values = np.zeros((2, 2, 4))
    values[0, 0] = [0.5, 0.25, -0.25, 0.0]
    result = phased(values=values, train_ids=["a", "b"], test_ids=["<x>", "y"])
    lines = repr(result).splitlines()
    assert lines[0] == "Influence of 2 training instances on 2 test instances (M) in 4 phases"
    assert lines[1].split("  ")[0] == "test"
    assert lines[2].split() == ["<x>", "step", "10", "50%", "25%", "25%", "0%"]
    assert lines[3].split() == ["y", "nothing"]
    assert lines[4] == "Warning: w"
    page = result._repr_html_()
    assert "<td>&lt;x&gt;</td><td>step 10</td><td>50%</td>" in page
    assert "<x>" not in page
    assert repr(result.summary()).splitlines()[1:] == lines[1:]
    assert "at 4 checkpoints" in repr(CheckpointInfluence(values, steps=STEPS))


def test_many_checkpoints_are_shown_as_phases() -> None:
    values = np.ones((9, 2, 100))
    lines = repr(CheckpointInfluence(values, steps=np.arange(1, 101))).splitlines()
    assert "steps 1-17" in lines[1]
    assert "steps 85-100" in lines[1]
    assert lines[2].split()[-1] == "16%"
    assert lines[-1] == "... and 4 more test instances"


# What methods add to


def test_the_accumulator_of_steps() -> None:
    columns = StepColumns.of([4, 2, 9, 7, 5], phases=2)
    assert (columns.first.tolist(), columns.last.tolist()) == ([2, 7], [5, 9])
    contributions = {
        step: np.random.default_rng(step).normal(size=(2, 3)) for step in (2, 4, 5, 7, 9)
    }
    early = contributions[2] + contributions[4] + contributions[5]
    late = contributions[7] + contributions[9]
    for order in (sorted(contributions), sorted(contributions, reverse=True)):
        full, summed = StepSums(columns, 2, 3, np.float64), SummedSums(columns, 2, np.float64)
        for block in (slice(0, 2), slice(2, 3)):
            summed.begin(len(range(*block.indices(3))))
            for step in order:
                full.at(step)[:, block] += contributions[step][:, block]
                summed.at(step)[:] += contributions[step][:, block]
            summed.end()
        assert_allclose(full.result(), [early, late])
        both = np.stack([early, late], -1)
        assert_allclose(summed.result(), [np.maximum(both, 0).sum(1), np.minimum(both, 0).sum(1)])
    with pytest.raises(KeyError):
        full.at(6)
    summed = SummedSums(columns, 2, np.float64)
    summed.begin(1)
    summed.at(2)
    summed.at(9)
    with pytest.raises(RuntimeError, match="came again"):
        summed.at(4)
