"""Parts of an Influence, and shards put together."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from influence_examples import labelled

from proponent.exceptions import InvalidInputError
from proponent.influence import Influence

# --- selecting


MASK = np.array([True, False, False, True])


@pytest.mark.parametrize(
    ("test", "rows"),
    [
        (2, [2]),
        (-1, [3]),
        (np.int8(1), [1]),
        (slice(None), [0, 1, 2, 3]),
        (slice(3, 0, -2), [3, 1]),
        ([3, 0], [3, 0]),
        ([-1], [3]),
        (np.array([1, 3]), [1, 3]),
        (MASK, [0, 3]),
        (MASK.tolist(), [0, 3]),
        ([], []),
        (slice(2, 2), []),
    ],
)
@pytest.mark.parametrize(
    ("train", "columns"),
    [
        (0, [0]),
        (slice(1, None, 2), [1, 3, 5]),
        ([6, 2, 4], [6, 2, 4]),
        (np.arange(7) > 4, [5, 6]),
        ([], []),
        (slice(None, None, -1), [6, 5, 4, 3, 2, 1, 0]),
    ],
)
def test_positions(test: Any, rows: list[int], train: Any, columns: list[int]) -> None:
    whole = labelled()
    part = whole[test, train]
    assert part.shape == (len(rows), len(columns))
    assert part.test_ids is not None
    assert part.std_error is not None
    assert part.test_ids.tolist() == [10 + row for row in rows]
    assert part.train_ids.tolist() == ["abcdefg"[column] for column in columns]
    assert whole.std_error is not None
    for i, row in enumerate(rows):
        for j, column in enumerate(columns):
            assert part.values[i, j] == whole.values[row, column]
            assert part.std_error[i, j] == whole.std_error[row, column]
    assert (part.method, part.settings, part.diagnostics) == ("M", {"a": 1}, {"b": 2})
    assert part.additive is False
    assert not part.values.flags.writeable


def test_positions_of_tests_alone_and_of_one_dimension() -> None:
    whole = labelled()
    np.testing.assert_array_equal(whole[1].values, whole.values[1:2])
    np.testing.assert_array_equal(whole[[0, 2]].values, whole.values[[0, 2]])
    joint = whole.joint()
    assert joint[2].train_ids.tolist() == ["c"]
    np.testing.assert_array_equal(joint[[3, 1]].values, joint.values[[3, 1]])
    assert [row.test_ids.tolist() for row in whole if row.test_ids is not None] == [
        [10],
        [11],
        [12],
        [13],
    ]


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ((4, 0), "position 4 is out of range for the test axis, which has length 4"),
        ((0, -8), "position -8 is out of range for the train axis"),
        ((0, [1, 7]), "position 7 is out of range"),
        ((MASK[:3], 0), "the mask has length 3, but the test axis 4"),
        ((True, 0), "the test axis takes an integer"),
        ((0, "a"), r"to select by id use select\(train=...\)"),
        ((0, 1.5), "the train axis takes"),
        ((0, [0.0, 1.0]), "the train axis takes"),
        ((None, 0), "the test axis takes"),
        ((..., 0), "the test axis takes"),
        ((0, [[1]]), "the train axis takes"),
        ((0, 0, 0), "3 keys for the axes"),
    ],
)
def test_positions_refused(key: Any, message: str) -> None:
    with pytest.raises(IndexError, match=message):
        labelled()[key]


def test_a_position_twice_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="train axis is asked for more than once"):
        labelled()[0, [1, -6]]


def test_slices_are_views() -> None:
    whole = labelled()
    assert np.shares_memory(whole[1:3, ::2].values, whole.values)


def test_select_by_id() -> None:
    whole = labelled()
    part = whole.select(test=[13, 10], train=["g", "a", "c"])
    np.testing.assert_array_equal(part.values, whole.values[[3, 0]][:, [6, 0, 2]])
    assert part.train_ids.tolist() == ["g", "a", "c"]
    assert part.test_ids is not None
    assert part.test_ids.tolist() == [13, 10]
    np.testing.assert_array_equal(whole.select(train="d").values, whole.values[:, 3:4])
    np.testing.assert_array_equal(whole.select(test=np.int64(12)).values, whole.values[2:3])
    np.testing.assert_array_equal(whole.select(test=[]).values, np.empty((0, 7)))
    np.testing.assert_array_equal(
        whole.joint().select(train=["b", "a"]).values, whole.joint().values[[1, 0]]
    )


def test_select_refusals() -> None:
    whole = labelled()
    with pytest.raises(InvalidInputError, match="train has unknown ids: 'x', 'aa'"):
        whole.select(train=["a", "x", "aa"])
    with pytest.raises(InvalidInputError, match="test has unknown ids: 9"):
        whole.select(test=9)
    with pytest.raises(InvalidInputError, match="such as 'a': there the ids are integers"):
        whole.select(test="a")
    with pytest.raises(InvalidInputError, match="train must be unique"):
        whole.select(train=["a", "a"])
    with pytest.raises(InvalidInputError, match="no tests"):
        whole.joint().select(test=[10])
    with pytest.raises(InvalidInputError, match="there are no ids"):
        whole[:, []].select(train=["a"])


# --- shards


def test_join() -> None:
    whole = labelled()
    parts = [whole[:, 4:], whole[:, :1], whole[:, 1:4]]
    joined = Influence.join(parts)
    order = [4, 5, 6, 0, 1, 2, 3]
    np.testing.assert_array_equal(joined.values, whole.values[:, order])
    assert whole.std_error is not None
    assert joined.std_error is not None
    np.testing.assert_array_equal(joined.std_error, whole.std_error[:, order])
    assert joined.train_ids.tolist() == list("efgabcd")
    assert joined.test_ids is not None
    assert joined.test_ids.tolist() == [10, 11, 12, 13]
    assert joined.diagnostics == {"shards": [{"b": 2}] * 3}
    assert joined.settings == {"a": 1}
    assert joined.additive is False
    again = Influence.join(iter([joined[:, 3:], joined[:, :3]]))
    np.testing.assert_array_equal(again.values, whole.values)
    np.testing.assert_array_equal(
        Influence.join([whole.joint()[2:], whole.joint()[:2]]).values,
        np.roll(whole.joint().values, -2),
    )


def test_join_of_settings_with_nan_and_of_an_empty_shard() -> None:
    parts = [
        Influence([[1.0]], train_ids=["a"], settings={"x": float("nan")}),
        Influence(np.empty((1, 0)), settings={"x": float("nan")}),
        Influence([[2.0]], train_ids=["b"], settings={"x": float("nan")}),
    ]
    assert Influence.join(parts).train_ids.tolist() == ["a", "b"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"test_ids": [10, 11, 12, 14]}, "differs from part 0 in its test ids"),
        ({"test_ids": list("wxyz")}, "differs from part 0 in its test ids"),
        ({"method": "N"}, "differs from part 0 in its method"),
        ({"settings": {"a": 2}}, "differs from part 0 in its settings"),
        ({"train_ids": [1, 2, 3]}, "differs from part 0 in its kind of train ids"),
        ({"train_ids": ["x", "d", "y"]}, "the parts overlap.*'d' stands at positions 3 and 5"),
        ({"additive": True}, "differs from part 0 in being additive"),
        ({"std_error": None}, "no standard errors"),
    ],
)
def test_join_refusals(changes: dict[str, Any], message: str) -> None:
    whole = labelled()
    last: dict[str, Any] = {
        "values": whole.values[:, 4:],
        "train_ids": list("efg"),
        "test_ids": whole.test_ids,
        "method": "M",
        "settings": {"a": 1},
        "std_error": whole.values[:, 4:] ** 2,
        "additive": False,
    }
    Influence.join([whole[:, :4], Influence(**last)])
    with pytest.raises(InvalidInputError, match=message):
        Influence.join([whole[:, :4], Influence(**{**last, **changes})])


def test_join_takes_results_only() -> None:
    with pytest.raises(InvalidInputError, match="at least one part"):
        Influence.join([])
    with pytest.raises(InvalidInputError, match="part 1 is of type ndarray"):
        Influence.join([labelled(), np.zeros((4, 1))])  # type: ignore[list-item]
    with pytest.raises(InvalidInputError, match="test ids"):
        Influence.join([labelled(), labelled().joint()])
