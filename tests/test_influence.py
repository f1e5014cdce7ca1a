"""Influence: what it takes, what it refuses, and that it never changes."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from influence_examples import NAN, matrix

from proponent.exceptions import InvalidInputError, NonFiniteError
from proponent.influence import Influence

# --- what goes in


def test_defaults_number_the_instances() -> None:
    influence = Influence([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    assert influence.train_ids.tolist() == [0, 1, 2]
    assert influence.test_ids is not None
    assert influence.test_ids.tolist() == [0, 1]
    assert influence.shape == (2, 3)
    assert len(influence) == 2
    assert influence.method == ""
    assert dict(influence.settings) == {}
    assert dict(influence.diagnostics) == {}
    assert influence.std_error is None
    assert influence.additive is True


def test_one_dimension_has_no_tests() -> None:
    influence = Influence([1.0, 2.0, 3.0], train_ids=["a", "b", "c"])
    assert influence.test_ids is None
    assert influence.shape == (3,)
    assert len(influence) == 3
    with pytest.raises(InvalidInputError, match="test_ids were given, but values are 1-D"):
        Influence([1.0, 2.0], test_ids=[0])


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (np.float32, np.float32),
        (np.float64, np.float64),
        (">f8", np.float64),
        (np.float16, np.float32),
        (np.int8, np.float64),
        (np.uint64, np.float64),
    ],
)
def test_number_types(given: Any, kept: Any) -> None:
    influence = Influence(np.array([[1, 2], [3, 4]], dtype=given))
    assert influence.values.dtype == np.dtype(kept)
    assert influence.values.tolist() == [[1, 2], [3, 4]]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([[True, False]], "values has dtype bool"),
        ([[1j, 2]], "values has dtype complex128"),
        ([["a", "b"]], "values has dtype"),
        ([[1.0, 2.0], [3.0]], "values cannot be read as an array"),
        (3.0, r"values must have shape .* have shape \(\)"),
        (np.zeros((2, 2, 2)), r"have shape \(2, 2, 2\)"),
        (np.ma.masked_array([[1.0, 2.0]], [[True, False]]), "masked"),
        (np.zeros((1, 2), dtype=np.longdouble), "values has dtype"),
    ],
)
def test_values_refused(values: Any, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        Influence(values)


def test_infinite_values_are_named() -> None:
    values = matrix()
    values[1, 2], values[3, 0] = np.inf, -np.inf
    with pytest.raises(NonFiniteError) as caught:
        Influence(values, train_ids=list("abcdefg"), test_ids=[10, 11, 12, 13])
    message = str(caught.value)
    assert "test 11, train c (column 2)" in message
    assert "test 13, train a (column 0)" in message
    with pytest.raises(NonFiniteError, match=r"train 4 \(column 4\).* and 2 more"):
        Influence([0.0, 1.0, np.inf, np.inf, np.inf, np.inf, np.inf])
    with pytest.raises(NonFiniteError, match="std_error is infinite"):
        Influence([[1.0]], std_error=[[np.inf]])


def test_infinite_values_are_found_beyond_the_first_chunk() -> None:
    values = np.zeros((3, 2**20), dtype=np.float32)
    values[2, 1_000_000] = np.inf
    with pytest.raises(NonFiniteError, match="test 2, train 1000000"):
        Influence(values)


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        ([3, 1, 2], [3, 1, 2]),
        (np.array([3, 1, 2], dtype=np.uint8), [3, 1, 2]),
        (np.array([3, 1, 2], dtype=">i4"), [3, 1, 2]),
        (range(5, 8), [5, 6, 7]),
        (("x", "y", "z"), ["x", "y", "z"]),
        (np.array(["x", "y", "zz"], dtype=object), ["x", "y", "zz"]),
        (pd.Index(["x", "y", "z"]), ["x", "y", "z"]),
        (pd.Series([3, 1, 2], index=[9, 8, 7]), [3, 1, 2]),
    ],
)
def test_ids_accepted(ids: Any, expected: list[Any]) -> None:
    influence = Influence([[1.0, 2.0, 3.0]], train_ids=ids)
    assert influence.train_ids.tolist() == expected
    assert influence.train_ids.dtype.kind in "iU"


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([0, 1], "train_ids has 2 ids for 3 columns of values"),
        ([0, 7, 7], "train_ids must be unique, but 7 stands at positions 1 and 2"),
        (["a", "b", "a"], "'a' stands at positions 0 and 2"),
        ([0, 1, "a"], r"mixes strings with int \(position 0\)"),
        (np.array([0, "a", None], dtype=object), "mixes strings with int"),
        (np.array([0, 1, 2], dtype=object), "dtype object"),
        ([0.0, 1.0, 2.0], "dtype float64"),
        ([True, False, True], "dtype bool"),
        ([b"a", b"b", b"c"], "dtype"),
        ([[0], [1], [2]], r"must be 1-D, but has shape \(3, 1\)"),
        ("abc", "train_ids is of type str"),
        ({0, 1, 2}, "train_ids is of type set"),
        (5, "train_ids is of type int"),
        (["a", "a\0", "b"], "null character"),
        (np.array([0, 1, 2**63], dtype=np.uint64), "beyond 64 bits"),
        (pd.to_datetime(["2020-01-01", "2020-01-02", "2020-01-03"]), "dtype datetime64"),
    ],
)
def test_ids_refused(ids: Any, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        Influence([[1.0, 2.0, 3.0]], train_ids=ids)


def test_test_ids_length() -> None:
    with pytest.raises(InvalidInputError, match="test_ids has 1 id for 2 rows of values"):
        Influence([[1.0], [2.0]], test_ids=["a"])


def test_std_error_is_checked() -> None:
    with pytest.raises(InvalidInputError, match=r"std_error has shape \(1,\)"):
        Influence([[1.0, 2.0]], std_error=[1.0])
    with pytest.raises(InvalidInputError, match="negative"):
        Influence([[1.0, 2.0]], std_error=[[NAN, -0.1]])
    kept = Influence([[1.0, 2.0]], std_error=[[NAN, 0.1]]).std_error
    assert kept is not None
    np.testing.assert_array_equal(kept, [[NAN, 0.1]])


def test_metadata_is_copied_and_converted() -> None:
    steps = [np.int64(3), (1.5, None)]
    settings = {"steps": steps, "seed": np.int32(4), "rate": np.array([0.5]), "on": np.bool_(True)}
    influence = Influence([[1.0]], settings=settings, diagnostics={"a": {"b": [1]}})
    steps.append(9)
    assert influence.settings == {"steps": [3, [1.5, None]], "seed": 4, "rate": [0.5], "on": True}
    json.dumps(dict(influence.settings))
    influence.diagnostics["a"]["b"].append(2)
    assert influence.diagnostics == {"a": {"b": [1]}}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"a": {"b": [1, object()]}}, r"settings\['a'\]\['b'\]\[1\] is of type object"),
        ({"a": {1, 2}}, r"settings\['a'\] is of type set"),
        ({"a": {1: 2}}, r"settings\['a'\] has the key 1; keys must be strings"),
        ({"$float": 1}, "keys must be strings other than"),
        ([1], "settings must be a mapping, not list"),
    ],
)
def test_metadata_refused(settings: Any, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        Influence([[1.0]], settings=settings)


def test_method_and_additive_are_checked() -> None:
    with pytest.raises(InvalidInputError, match="method must be a string, not int"):
        Influence([[1.0]], method=3)  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="additive must be True or False"):
        Influence([[1.0]], additive="no")  # type: ignore[arg-type]


# --- it never changes


def test_nothing_can_be_changed() -> None:
    influence = Influence(matrix(), std_error=np.abs(matrix(1)), settings={"a": 1})
    for array in (influence.values, influence.std_error, influence.train_ids, influence.test_ids):
        assert array is not None
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0
    for name in ("values", "method", "other"):
        with pytest.raises(AttributeError, match="immutable"):
            setattr(influence, name, 0)
    with pytest.raises(AttributeError, match="immutable"):
        del influence._values
    with pytest.raises(TypeError):
        influence.settings["a"] = 2  # type: ignore[index]


def test_the_callers_array_is_not_shared() -> None:
    values = matrix()
    ids = np.arange(7)
    influence = Influence(values, train_ids=ids)
    before = values.copy()
    values[:] = 9
    ids[:] = 9
    np.testing.assert_array_equal(influence.values, before)
    assert influence.train_ids.tolist() == list(range(7))
    assert values.flags.writeable


def test_a_read_only_view_of_a_writable_array_is_copied() -> None:
    values = matrix()
    view = values[:2]
    view.flags.writeable = False
    influence = Influence(view)
    values[:] = 9
    assert not np.any(influence.values == 9)


def test_a_read_only_array_is_taken_without_a_copy() -> None:
    values = matrix()
    values.flags.writeable = False
    assert Influence(values).values is values


def test_pandas_and_torch_values_are_not_shared() -> None:
    torch = pytest.importorskip("torch")
    tensor = torch.zeros(2, 3)
    influence = Influence(tensor)
    tensor += 1
    assert not influence.values.any()
    with pytest.raises(InvalidInputError, match="values cannot be read as an array"):
        Influence(torch.zeros(2, 3, requires_grad=True))
    frame = pd.DataFrame(np.zeros((2, 3)))
    influence = Influence(frame)
    frame.iloc[0, 0] = 1
    assert not influence.values.any()


def test_numpy_protocol() -> None:
    influence = Influence(matrix())
    assert np.asarray(influence) is influence.values
    copied = np.array(influence)
    assert copied.flags.writeable
    np.testing.assert_array_equal(copied, influence.values)
    assert np.asarray(influence, dtype=np.float32).dtype == np.float32
    assert float(np.abs(influence).max()) == 1.0
    with pytest.raises(ValueError, match="needs a copy"):
        influence.__array__(np.dtype(np.float32), copy=False)


def test_equality_is_identity() -> None:
    first, second = Influence(matrix()), Influence(matrix())
    assert first == first
    assert first != second
    assert len({first, second}) == 2


@pytest.mark.parametrize("how", ["pickle", "copy", "deepcopy", "joblib"])
def test_copies_and_pickles(how: str, tmp_path: Path) -> None:
    influence = Influence(
        matrix(),
        train_ids=list("abcdefg"),
        test_ids=[5, 6, 7, 8],
        method="M",
        settings={"a": [1]},
        diagnostics={"b": 2},
        std_error=np.abs(matrix(1)),
        additive=False,
    )
    if how == "pickle":
        other = pickle.loads(pickle.dumps(influence))
    elif how == "joblib":
        import joblib

        joblib.dump(influence, tmp_path / "influence.joblib")
        other = joblib.load(tmp_path / "influence.joblib", mmap_mode="r")
    else:
        other = getattr(copy, how)(influence)
    np.testing.assert_array_equal(other.values, influence.values)
    np.testing.assert_array_equal(other.std_error, influence.std_error)
    assert other.train_ids.tolist() == list("abcdefg")
    assert other.test_ids.tolist() == [5, 6, 7, 8]
    assert (other.method, other.settings, other.diagnostics) == ("M", {"a": [1]}, {"b": 2})
    assert other.additive is False
    assert not other.values.flags.writeable
    assert not other.train_ids.flags.writeable
