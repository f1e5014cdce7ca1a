"""TopInfluence and TopAccumulator: exactly what the whole matrix would answer."""

from __future__ import annotations

import copy
import itertools
import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from influence_examples import NAN, TIED_ROWS, matrix
from numpy.typing import NDArray

from proponent._results.strongest import Strongest
from proponent.exceptions import InvalidInputError, NonFiniteError
from proponent.influence import Influence
from proponent.top import TopAccumulator, TopInfluence


def streamed(
    values: NDArray[Any], k: int, blocks: list[NDArray[np.intp]], **labels: Any
) -> TopInfluence:
    top = TopAccumulator(len(values), k)
    for block in blocks:
        top.add(block, values[:, block])
    return top.result(**labels)


def assert_same(found: Strongest, expected: Strongest) -> None:
    for mine, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(mine, theirs)
        assert mine.dtype == theirs.dtype


def assert_answers_as(top: TopInfluence, whole: Influence) -> None:
    for k in range(1, top.k + 1):
        assert_same(top.proponents(k), whole.proponents(k))
        assert_same(top.opponents(k), whole.opponents(k))


# --- streaming


@given(TIED_ROWS, st.data())
def test_streaming_equals_the_whole_matrix(rows: list[list[float]], data: st.DataObject) -> None:
    values = np.array(rows, dtype=data.draw(st.sampled_from([np.float32, np.float64])))
    n = values.shape[1]
    order = np.array(data.draw(st.permutations(range(n))))
    cuts = sorted(data.draw(st.lists(st.integers(0, n), max_size=5)))
    k = data.draw(st.integers(1, n))
    blocks = np.split(order, cuts)  # some of them empty
    scored = (~np.isnan(values)).sum(axis=1)
    if (scored < k).any():
        row = int(np.argmax(scored < k))
        message = rf"k={k}: only {scored[row]} of the {n} .* test row {row} "
        with pytest.raises(InvalidInputError, match=message):
            streamed(values, k, blocks)
        return
    assert_answers_as(streamed(values, k, blocks), Influence(values))


@pytest.mark.parametrize("size", [1, 7, 100, 1000])
@pytest.mark.parametrize("levels", [1, 20, 10**9])
def test_streaming_of_many(size: int, levels: int) -> None:
    values = matrix(1, (5, 1000), levels)
    values[2, ::4] = NAN
    blocks = [np.arange(start, min(start + size, 1000)) for start in range(0, 1000, size)]
    ids = [f"t{i}" for i in range(1000)]
    top = streamed(values, 13, blocks, train_ids=ids, test_ids=list("abcde"), method="M")
    whole = Influence(values, train_ids=ids)
    assert_answers_as(top, whole)
    assert top.test_ids.tolist() == list("abcde")
    assert top.train_ids.tolist() == ids
    assert top.method == "M"


def test_unscored_blocks_before_and_after() -> None:
    values = np.full((2, 12), NAN)
    values[0, 5:8] = [1.0, 3.0, 2.0]
    values[1, [5, 11]] = [-1.0, 4.0]
    top = streamed(values, 2, np.split(np.arange(12), 6))
    assert top.proponents().positions.tolist() == [[6, 7], [11, 5]]
    assert top.opponents().values.tolist() == [[1.0, 2.0], [-1.0, 4.0]]


def test_negative_nan_is_not_ranked() -> None:
    values = np.copysign(np.array([[NAN, 1.0, NAN, 2.0]]), [[-1.0, 1.0, 1.0, 1.0]])
    for blocks in ([np.arange(4)], np.split(np.arange(4), 4)):
        assert streamed(values, 2, blocks).proponents().positions.tolist() == [[3, 1]]
        assert streamed(values, 2, blocks).opponents().positions.tolist() == [[1, 3]]
    assert Influence(values).proponents(2).positions.tolist() == [[3, 1]]
    assert Influence(values).opponents(2).positions.tolist() == [[1, 3]]


def test_blocks_of_two_precisions() -> None:
    top = TopAccumulator(1, 2)
    top.add([0], np.array([[0.1]], dtype=np.float32))
    top.add([1], np.array([[0.1]], dtype=np.float64))
    found = top.result().proponents()
    assert found.positions.tolist() == [[0, 1]]  # float32's 0.1 is the larger
    assert found.values.tolist() == [[float(np.float32(0.1)), 0.1]]


def test_the_block_may_be_reused_by_the_caller() -> None:
    top = TopAccumulator(1, 3)
    block = np.array([[1.0, 2.0, 3.0]])
    top.add([0, 1, 2], block)
    block[:] = 9.0
    assert top.result().proponents().values.tolist() == [[3.0, 2.0, 1.0]]


def test_memory_does_not_grow_with_the_training_set() -> None:
    top = TopAccumulator(3, 2)
    for start in range(0, 4000, 100):
        top.add(np.arange(start, start + 100), matrix(start, (3, 100)))
        for side in (top._proponents, top._opponents):
            assert [array.shape for array in side] == [(3, 2), (3, 2)]
            assert all(array.base is None or array.base.size <= 3 * 4 for array in side)


def test_no_tests_at_all() -> None:
    top = streamed(np.empty((0, 5)), 2, [np.arange(5)])
    assert len(top) == 0
    assert top.proponents().ids.shape == (0, 2)
    assert repr(top).endswith("on 0 test instances")


@pytest.mark.parametrize(
    ("positions", "values", "message"),
    [
        ([0, 1], [[1.0, 2.0]], r"values have shape \(1, 2\); for 2 test instances and 2 positions"),
        ([0], [[1.0, 2.0], [1.0, 2.0]], r"they need shape \(2, 1\)"),
        ([0.0], [[1.0], [1.0]], "positions must be integers"),
        ([[0]], [[1.0], [1.0]], r"shape \(b,\), but have dtype int64 and shape \(1, 1\)"),
        ([True], [[1.0], [1.0]], "positions must be integers"),
        ([-1], [[1.0], [1.0]], "0 or more"),
        ([3, 4, 3], [[1.0] * 3] * 2, "each once"),
        ([0], [["a"], ["b"]], "values has dtype"),
    ],
)
def test_blocks_refused(positions: Any, values: Any, message: str) -> None:
    top = TopAccumulator(2, 1)
    with pytest.raises(InvalidInputError, match=message):
        top.add(positions, values)


def test_infinite_scores_are_named() -> None:
    top = TopAccumulator(2, 1)
    with pytest.raises(NonFiniteError, match="test 1, train 17"):
        top.add([16, 17], [[0.0, 1.0], [2.0, -np.inf]])


def test_too_few_were_added() -> None:
    top = TopAccumulator(1, 3)
    top.add([0, 1], [[1.0, 2.0]])
    with pytest.raises(InvalidInputError, match="k=3: only 2 training instances were added"):
        top.result()
    top.add([2], [[NAN]])
    with pytest.raises(InvalidInputError, match=r"k=3: only 2 of the 3 .* test row 0 are scored"):
        top.result()
    top.add([3], [[0.0]])
    assert top.result().proponents().positions.tolist() == [[1, 0, 3]]


def test_an_instance_added_twice_is_noticed() -> None:
    top = TopAccumulator(1, 2)
    top.add([0, 1], [[1.0, 0.0]])
    top.add([0, 2], [[1.0, 0.0]])
    with pytest.raises(InvalidInputError, match="proponent_positions of test row 0 repeat"):
        top.result()


def test_ids_must_reach_the_positions() -> None:
    top = TopAccumulator(1, 1)
    top.add([7], [[1.0]])
    with pytest.raises(InvalidInputError, match=r"must be in 0 \.\.\. 0"):
        top.result()
    assert top.result(train_ids=np.arange(8) * 2).proponents().ids.tolist() == [[14]]


@pytest.mark.parametrize(("n_test", "k"), [(1, 0), (1, True), (1, 1.0), (-1, 1)])
def test_accumulator_arguments(n_test: Any, k: Any) -> None:
    with pytest.raises(InvalidInputError, match="must"):
        TopAccumulator(n_test, k)


# --- the result


def labelled(k: int = 3) -> TopInfluence:
    return streamed(
        matrix(2, (4, 30)),
        k,
        [np.arange(30)],
        train_ids=np.arange(30) * 10,
        test_ids=list("wxyz"),
        method="M",
        settings={"a": [1]},
        diagnostics={"warnings": ["careful"]},
    )


def test_fewer_than_were_kept() -> None:
    top = labelled()
    assert (top.k, len(top)) == (3, 4)
    assert top.proponents().ids.shape == (4, 3)
    assert_same(top.opponents(), top.opponents(3))
    with pytest.raises(InvalidInputError, match=r"proponents\(k=4\): only the 3 strongest"):
        top.proponents(4)
    with pytest.raises(InvalidInputError, match="k must be an integer of at least 1"):
        top.opponents(0)


GOOD: dict[str, Any] = {
    "proponent_positions": [[2, 0]],
    "proponent_values": [[1.0, 0.5]],
    "opponent_positions": [[1, 0]],
    "opponent_values": [[-1.0, 0.5]],
    "train_ids": [5, 6, 7],
}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"proponent_positions": [[3, 0]]}, r"proponent_positions must be in 0 \.\.\. 2"),
        ({"opponent_positions": [[-1, 0]]}, "opponent_positions must be in"),
        ({"opponent_positions": [[1, 1]]}, "opponent_positions of test row 0 repeat a position"),
        ({"opponent_positions": [[1.0, 0.0]]}, "opponent_positions must be integers, not float64"),
        ({"proponent_values": [[0.5, 1.0]]}, "proponent_values of test row 0 are not in order"),
        ({"opponent_values": [[0.5, -1.0]]}, "opponent_values of test row 0 are not in order"),
        ({"proponent_values": [[1.0, 1.0]]}, "equal values by position"),
        ({"proponent_values": [[1.0, 0.5, 0.0]]}, r"have shapes \(1, 2\) and \(1, 3\)"),
        ({"proponent_values": [1.0, 0.5], "proponent_positions": [2, 0]}, "shape .n_test, k."),
        (
            {"proponent_values": [[]], "proponent_positions": np.empty((1, 0), int)},
            "k of at least 1",
        ),
        ({"proponent_values": [[1.0]], "proponent_positions": [[2]]}, "the same k on both sides"),
        ({"train_ids": [5, 5, 7]}, "train_ids must be unique"),
        ({"train_ids": None}, "train_ids must be given"),
        ({"test_ids": [1, 2]}, "test_ids has 2 ids for 1 row"),
    ],
)
def test_parts_refused(changes: dict[str, Any], message: str) -> None:
    TopInfluence(**GOOD)
    with pytest.raises(InvalidInputError, match=message):
        TopInfluence(**{**GOOD, **changes})


@pytest.mark.parametrize("value", [NAN, np.inf])
def test_values_must_be_finite(value: float) -> None:
    with pytest.raises(NonFiniteError, match="proponent_values of test row 0 are not finite"):
        TopInfluence(**{**GOOD, "proponent_values": [[value, 0.5]]})


def test_nothing_can_be_changed() -> None:
    given: dict[str, Any] = {name: np.array(value) for name, value in GOOD.items()}
    top = TopInfluence(**given)
    for array in given.values():
        array[...] = 1
    assert_same(top.proponents(), TopInfluence(**GOOD).proponents())
    with pytest.raises(AttributeError, match="immutable"):
        top.method = "N"  # type: ignore[misc]
    for array in (top.proponents().values, top.opponents().positions, top.train_ids, top.test_ids):
        if array.base is not None or array is top.train_ids:
            assert not array.flags.writeable


@pytest.mark.parametrize(
    "name",
    ["values", "std_error", "shape", "joint", "group", "ranking", "select", "to_xarray"],
)
def test_what_needs_the_whole_matrix(name: str) -> None:
    with pytest.raises(AttributeError, match=r"only the 3 strongest were kept; call"):
        getattr(labelled(), name)
    assert not hasattr(labelled(), name)


def test_other_attributes_and_numpy() -> None:
    with pytest.raises(AttributeError, match=r"no attribute 'nonsense'$"):
        labelled().nonsense  # type: ignore[attr-defined]  # noqa: B018
    with pytest.raises(TypeError, match="only the 3 strongest were kept"):
        np.asarray(labelled())


@pytest.mark.parametrize("how", ["pickle", "copy", "deepcopy"])
def test_copies_and_pickles(how: str) -> None:
    top = labelled()
    other = pickle.loads(pickle.dumps(top)) if how == "pickle" else getattr(copy, how)(top)
    assert_same(other.proponents(), top.proponents())
    assert_same(other.opponents(), top.opponents())
    assert other.train_ids.tolist() == top.train_ids.tolist()
    assert other.test_ids.tolist() == list("wxyz")
    assert (other.method, other.settings) == ("M", {"a": [1]})


def test_to_dataframe() -> None:
    top = TopInfluence(**GOOD, test_ids=["t"])
    frame = top.to_dataframe()
    assert frame.to_dict("list") == {
        "side": ["proponent", "proponent", "opponent", "opponent"],
        "test": ["t"] * 4,
        "rank": [1, 2, 1, 2],
        "train": [7, 5, 6, 5],
        "influence": [1.0, 0.5, -1.0, 0.5],
        "position": [2, 0, 1, 0],
    }
    assert frame.index.tolist() == [0, 1, 2, 3]


# --- shards


@pytest.mark.parametrize("sizes", [(15, 15), (3, 20, 7), (1, 2, 27), (5, 5, 5, 5, 5, 5)])
def test_join(sizes: tuple[int, ...]) -> None:
    values = matrix(3, (4, 30))
    ids = [f"t{i}" for i in range(30)]
    starts = np.cumsum([0, *sizes])
    parts = [
        streamed(
            values[:, a:b],
            min(3, b - a),
            [np.arange(b - a)],
            train_ids=ids[a:b],
            method="M",
            diagnostics={"part": int(a)},
        )
        for a, b in itertools.pairwise(starts)
    ]
    joined = TopInfluence.join(parts)
    assert joined.train_ids.tolist() == ids
    assert joined.diagnostics == {"shards": [{"part": int(a)} for a in starts[:-1]]}
    assert_answers_as(joined, Influence(values, train_ids=ids))
    merged = parts[0]
    for part in parts[1:]:
        if merged.k == part.k == 3:
            merged = merged.merge(part)
            assert merged.k == 3


def test_merge() -> None:
    values = matrix(4, (4, 30))
    halves = [
        streamed(values[:, a : a + 15], 4, [np.arange(15)], train_ids=np.arange(a, a + 15))
        for a in (0, 15)
    ]
    assert_answers_as(halves[0].merge(halves[1]), Influence(values))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_ids": [3, 4]}, "the parts overlap"),
        ({"method": "N"}, "differs from part 0 in its method"),
        ({"settings": {"b": 1}}, "differs from part 0 in its settings"),
        ({"test_ids": list("zyxw")}, "differs from part 0 in its test ids"),
    ],
)
def test_join_refusals(changes: dict[str, Any], message: str) -> None:
    whole = matrix(5, (4, 30))

    def part(start: int, **labels: Any) -> TopInfluence:
        given = {"train_ids": [start, start + 1], "method": "M", "settings": {"b": 0}}
        return streamed(whole[:, start : start + 2], 2, [np.arange(2)], **{**given, **labels})

    assert part(0).merge(part(2)).train_ids.tolist() == [0, 1, 2, 3]
    first = part(4, test_ids=[0, 1, 2, 3])
    with pytest.raises(InvalidInputError, match=message):
        first.merge(part(2, **changes))


def test_shards_that_kept_too_few_are_refused() -> None:
    values = matrix(6, (4, 30))
    parts = [
        streamed(values[:, a : a + 15], k, [np.arange(15)], train_ids=np.arange(a, a + 15))
        for a, k in ((0, 4), (15, 3))
    ]
    with pytest.raises(InvalidInputError, match=r"part 1 kept 3 of its 15 .* another part 4"):
        TopInfluence.join(parts)
    with pytest.raises(InvalidInputError, match="at least one part"):
        TopInfluence.join([])


# --- how it looks


def test_repr() -> None:
    top = TopInfluence(**GOOD, test_ids=["t"], method="M", diagnostics={"warnings": ["careful"]})
    assert repr(top).splitlines() == [
        "The 2 strongest proponents and opponents among 3 training instances "
        "on 1 test instance (M)",
        "test  strongest proponents  strongest opponents",
        "t     7 (+1), 5 (+0.5)      6 (-1), 5 (+0.5)",
        "Warning: careful",
    ]
    many = streamed(matrix(7, (8, 30)), 10, [np.arange(30)])
    lines = repr(many).splitlines()
    assert len(lines) == 8
    assert lines[-1] == "... and 3 more test instances"
    assert lines[1 + 1].count("(") == 6


def test_html_is_escaped() -> None:
    top = TopInfluence(
        **{**GOOD, "train_ids": ["<script>", "&", "\x1b[31m"]}, test_ids=["<b>"], method="<i>"
    )
    page = top._repr_html_()
    for hostile in ("<script", "<b></", "<i>", "\x1b"):
        assert hostile not in page
    assert "&lt;script&gt; (+0.5)" in page
    assert "<th>&lt;b&gt;</th>" in page
