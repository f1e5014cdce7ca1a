"""What an Influence answers, against plain loops."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from influence_examples import NAN, TIED_ROWS, matrix, plain_strongest

from proponent.exceptions import InvalidInputError, NonFiniteError
from proponent.influence import Influence

# --- proponents, opponents, ranking


@given(TIED_ROWS, st.data())
def test_strongest_equal_a_full_stable_sort(rows: list[list[float]], data: st.DataObject) -> None:
    values = np.array(rows)
    counts = (~np.isnan(values)).sum(axis=1)
    influence = Influence(values, train_ids=[f"t{i}" for i in range(values.shape[1])])
    k = data.draw(st.integers(1, values.shape[1]))
    for side, largest in ((influence.proponents, True), (influence.opponents, False)):
        if (counts < k).any():
            row = int(np.argmax(counts < k))
            with pytest.raises(
                InvalidInputError, match=rf"k={k}.*only {counts[row]} of .*row {row}\)"
            ):
                side(k)
            continue
        found = side(k)
        expected = [plain_strongest(row, k, largest=largest) for row in values]
        assert found.positions.tolist() == expected
        assert found.ids.tolist() == [[f"t{i}" for i in row] for row in expected]
        np.testing.assert_array_equal(
            found.values, [values[i, row] for i, row in enumerate(expected)]
        )


@pytest.mark.parametrize("levels", [2, 50, 10**9])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_strongest_of_many(levels: int, dtype: Any) -> None:
    values = matrix(3, (3, 20_000), levels).astype(dtype)
    values[1, ::3] = NAN
    influence = Influence(values)
    for k in (1, 17, 5000):
        for row in range(3):
            keys = np.where(np.isnan(values[row]), np.inf, -values[row])
            expected = np.argsort(keys, kind="stable")[:k]
            np.testing.assert_array_equal(influence.proponents(k).positions[row], expected)
            keys = np.where(np.isnan(values[row]), np.inf, values[row])
            expected = np.argsort(keys, kind="stable")[:k]
            np.testing.assert_array_equal(influence.opponents(k).positions[row], expected)


def test_rows_beyond_the_first_chunk() -> None:
    values = matrix(5, (1100, 1000), 20)  # more scores than are looked at together
    found = Influence(values).proponents(3).positions
    expected = np.argsort(-values, axis=1, kind="stable")[:, :3]
    np.testing.assert_array_equal(found, expected)


def test_strongest_of_one_dimension() -> None:
    influence = Influence([0.0, 2.0, NAN, 2.0, -1.0], train_ids=list("abcde"))
    found = influence.proponents(3)
    assert (found.ids.tolist(), found.values.tolist()) == (["b", "d", "a"], [2.0, 2.0, 0.0])
    ids, values, positions = influence.opponents(2)
    assert (ids.tolist(), values.tolist(), positions.tolist()) == (["e", "a"], [-1.0, 0.0], [4, 0])
    with pytest.raises(InvalidInputError, match="only 4 of the 5 training instances are scored"):
        influence.proponents(5)


def test_proponents_may_be_negative() -> None:
    found = Influence([[-3.0, -1.0, -2.0]]).proponents(2)
    assert found.ids.tolist() == [[1, 2]]
    assert found.values.tolist() == [[-1.0, -2.0]]


@pytest.mark.parametrize("k", [0, -1, 1.0, "2", True, None])
def test_k_must_be_a_count(k: Any) -> None:
    with pytest.raises(InvalidInputError, match="k must be an integer of at least 1"):
        Influence(matrix()).proponents(k)


def test_k_beyond_the_training_set() -> None:
    with pytest.raises(InvalidInputError, match=r"opponents\(k=8\).*only 7 training instances"):
        Influence(matrix()).opponents(8)


def test_too_few_scored_names_the_test() -> None:
    values = matrix()
    values[2, 1:] = NAN
    with pytest.raises(InvalidInputError, match=r"only 1 of the 7 .* of test z \(row 2\)"):
        Influence(values, test_ids=list("xyzw")).proponents(2)


def test_strongest_as_a_frame_and_as_text() -> None:
    influence = Influence(
        [[1.0, 3.0, 2.0], [0.5, 0.0, -1.0]], train_ids=["a", "b", "c"], test_ids=[7, 8]
    )
    found = influence.proponents(2)
    frame = found.to_dataframe(influence.test_ids)
    assert frame.to_dict("list") == {
        "test": [7, 7, 8, 8],
        "rank": [1, 2, 1, 2],
        "train": ["b", "c", "a", "b"],
        "influence": [3.0, 2.0, 0.5, 0.0],
        "position": [1, 2, 0, 1],
    }
    assert found.to_dataframe()["test"].tolist() == [0, 0, 1, 1]
    assert repr(found).splitlines() == [
        "Strongest 2 of each of 2 rows",
        "  0: b (+3), c (+2)",
        "  1: a (+0.5), b (+0)",
    ]
    alone = influence.joint().opponents(1)
    assert alone.to_dataframe().to_dict("list") == {
        "rank": [1],
        "train": ["c"],
        "influence": [1.0],
        "position": [2],
    }
    assert repr(alone) == "Strongest 1: c (+1)"
    many = Influence(matrix(0, (7, 30))).proponents(12)
    assert "... 2 more rows" in repr(many)
    assert repr(many).count("... 2 more\n") == 5


def test_ranking() -> None:
    values = matrix(2, (3, 40))
    expected = [plain_strongest(row, 40, largest=True) for row in values]
    ids = np.arange(40) * 10
    influence = Influence(values, train_ids=ids)
    assert influence.ranking().tolist() == [[10 * i for i in row] for row in expected]
    assert influence[1].joint().ranking().tolist() == [10 * i for i in expected[1]]
    values[0, 3] = NAN
    with pytest.raises(InvalidInputError, match="1 of 120 scores are NaN and cannot be ranked"):
        Influence(values).ranking()


# --- sums


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_joint(dtype: Any, reduction: Any) -> None:
    generator = np.random.default_rng(0)
    values = generator.normal(size=(5, 6)).astype(dtype)
    errors = np.abs(generator.normal(size=(5, 6))).astype(dtype)
    values[2, 4] = errors[0, 1] = NAN
    influence = Influence(
        values,
        std_error=errors,
        train_ids=list("abcdef"),
        method="M",
        settings={"a": 1},
        diagnostics={"seen": 3},
    )
    joint = influence.joint(reduction)
    divisor = 5 if reduction == "mean" else 1
    assert joint.test_ids is None
    assert joint.train_ids.tolist() == list("abcdef")
    assert joint.std_error is not None
    for column in range(6):
        expected = math.fsum(float(values[row, column]) for row in range(5)) / divisor
        bound = math.fsum(float(errors[row, column]) for row in range(5)) / divisor
        np.testing.assert_allclose(joint.values[column], expected, rtol=1e-13)
        np.testing.assert_allclose(joint.std_error[column], bound, rtol=1e-13)
    assert math.isnan(joint.values[4])  # not scored somewhere: not zero-filled
    assert math.isnan(joint.std_error[1])
    assert joint.settings == {"a": 1}
    assert joint.diagnostics == {"seen": 3, "joint": {"reduction": reduction, "n_test": 5}}


def test_the_joint_error_is_a_bound() -> None:
    """Reached where the errors of the tests go together, never passed."""
    generator = np.random.default_rng(1)
    for shared in (0.0, 0.5, 1.0):
        noise = generator.normal(size=(4000, 3, 1))
        noise = shared * noise[:, :1] + (1 - shared) * noise
        errors = noise.std(axis=0)
        influence = Influence(np.zeros((3, 1)), std_error=errors)
        bound = influence.joint().std_error
        assert bound is not None
        actual = noise.sum(axis=1).std(axis=0)
        assert actual <= bound + 1e-9
        if shared == 1.0:
            np.testing.assert_allclose(actual, bound, rtol=1e-9)


def test_joint_refusals() -> None:
    with pytest.raises(InvalidInputError, match="there are no tests to put together"):
        Influence([1.0]).joint()
    with pytest.raises(InvalidInputError, match="no test instance"):
        Influence(np.zeros((0, 3))).joint()
    with pytest.raises(InvalidInputError, match="reduction must be 'sum' or 'mean'"):
        Influence([[1.0]]).joint("max")  # type: ignore[arg-type]


def test_a_sum_that_overflows_is_refused() -> None:
    largest = np.full((2, 2), 1e308)
    with (
        pytest.warns(RuntimeWarning, match="overflow"),
        pytest.raises(NonFiniteError, match="the sum of values is infinite at train 0"),
    ):
        Influence(largest).joint()
    big = np.full((2, 2), 3e38, dtype=np.float32)
    np.testing.assert_allclose(Influence(big).joint().values, 6e38, rtol=1e-6)


def test_group_by_mapping() -> None:
    values, errors = matrix(4), np.abs(matrix(5))
    influence = Influence(values, std_error=errors, train_ids=list("abcdefg"), method="M")
    groups: dict[str, Any] = {
        "last": ["g", "c"],
        "all": list("abcdefg"),
        "one": "b",
        "set": {"a", "d"},
    }
    grouped = influence.group(groups)
    positions = [[6, 2], list(range(7)), [1], [0, 3]]
    assert grouped.train_ids.tolist() == ["last", "all", "one", "set"]
    assert grouped.test_ids is not None
    assert grouped.test_ids.tolist() == [0, 1, 2, 3]
    assert grouped.std_error is not None
    for row in range(4):
        for column, members in enumerate(positions):
            assert grouped.values[row, column] == sum(values[row, m] for m in members)
            assert grouped.std_error[row, column] == sum(errors[row, m] for m in members)
    assert grouped.method == "M"


def test_group_by_labels() -> None:
    values = matrix(6)
    labels = ["dog", "cat", "dog", "eel", "cat", "dog", "ant"]
    grouped = Influence(values).group(labels)
    assert grouped.train_ids.tolist() == ["dog", "cat", "eel", "ant"]
    for row in range(4):
        for column, name in enumerate(grouped.train_ids):
            expected = sum(v for v, label in zip(values[row], labels, strict=True) if label == name)
            assert grouped.values[row, column] == expected
    numbers = Influence(values).group(np.array([5, 1, 5, 9, 1, 5, 0]))
    assert numbers.train_ids.tolist() == [5, 1, 9, 0]
    np.testing.assert_array_equal(numbers.values, grouped.values)
    np.testing.assert_array_equal(Influence(values[0]).group(labels).values, grouped.values[0])


def test_group_with_an_unscored_member_is_nan() -> None:
    grouped = Influence([[1.0, NAN, 2.0]]).group({"a": [0, 1], "b": [0, 2]})
    np.testing.assert_array_equal(grouped.values, [[NAN, 3.0]])


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ({"a": [0, 99, 98]}, r"groups\['a'\] has unknown ids: 99, 98"),
        ({"a": ["0"]}, r"unknown ids, such as '0': there the ids are integers"),
        ({"a": []}, r"groups\['a'\] is empty"),
        ({"a": [1, 2, 1]}, r"groups\['a'\] must be unique, but 1 stands at positions 0 and 2"),
        ({"a": [1], 2: [3]}, "the names of groups mixes strings with int"),
        ({}, "groups is empty"),
        ([0, 1], "groups has 2 labels for 7 training instances"),
        ([0.5] * 7, "groups has dtype float64"),
    ],
)
def test_group_refusals(groups: Any, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        Influence(matrix()).group(groups)


def test_group_of_a_method_that_is_not_additive() -> None:
    influence = Influence(matrix(), method="LOO", additive=False)
    with pytest.raises(InvalidInputError, match=r"LOO are not additive.*method\.group_influence"):
        influence.group({"a": [1]})
    with pytest.raises(InvalidInputError, match="not additive"):
        influence.joint().group({"a": [1]})
