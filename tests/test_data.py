"""Training and test sets of every kind: the same instances, in order, with their ids."""

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from proponent.data import Instances
from proponent.exceptions import InvalidInputError

N = 6


def arrays():
    return np.arange(2.0 * N).reshape(N, 2), np.arange(N) % 3


class Pairs(Dataset):
    """A map-style data set that counts what it is asked for."""

    def __init__(self) -> None:
        self.asked = []

    def __len__(self):
        return N

    def __getitem__(self, position):
        self.asked.append(position)
        features, labels = arrays()
        return torch.as_tensor(features[position]), int(labels[position])


def kinds():
    x, y = arrays()
    return {
        "arrays": (x, y),
        "list": [x, y],
        "tensors": (torch.as_tensor(x), torch.as_tensor(y)),
        "mixed": (torch.as_tensor(x), y),
        "frames": (pd.DataFrame(x, columns=["a", "b"]), pd.Series(y)),
        "sparse": (sparse.csr_matrix(x), y),
        "lists of numbers": (x.tolist(), y.tolist()),
        "array and list": (x, y.tolist()),
        "data set": Pairs(),
        "tensor data set": TensorDataset(torch.as_tensor(x), torch.as_tensor(y)),
        "list of items": list(zip(torch.as_tensor(x), y.tolist(), strict=True)),
    }


@pytest.mark.parametrize("kind", kinds())
@pytest.mark.parametrize("where", [slice(0, 3), slice(3, 6), slice(2, 3), [4, 1, 1, 5]])
def test_batches_of_every_kind(kind, where):
    where = np.array(where) if isinstance(where, list) else where
    instances = Instances.of(kinds()[kind])
    x, y = arrays()
    assert len(instances) == N
    batch = instances.batch(where)
    assert isinstance(batch, tuple)
    assert all(isinstance(part, torch.Tensor) for part in batch)
    assert torch.equal(batch[0].double(), torch.as_tensor(x[where]))
    assert torch.equal(batch[1].long(), torch.as_tensor(y[where]))


@pytest.mark.parametrize("kind", kinds())
def test_labels_ids_and_selection(kind):
    instances = Instances.of(kinds()[kind])
    x, y = arrays()
    np.testing.assert_array_equal(instances.labels(), y)
    np.testing.assert_array_equal(instances.ids, np.arange(N))
    chosen = instances.select(np.array([5, 0, 3]))
    np.testing.assert_array_equal(chosen.ids, [5, 0, 3])
    np.testing.assert_array_equal(chosen.labels(), y[[5, 0, 3]])
    assert torch.equal(chosen.batch(slice(1, 3))[0].double(), torch.as_tensor(x[[0, 3]]))
    again = chosen.select(slice(1, 3))
    np.testing.assert_array_equal(again.ids, [0, 3])
    assert torch.equal(again.batch(slice(0, 1))[0].double(), torch.as_tensor(x[[0]]))


@pytest.mark.parametrize("name", ["labels", "label", "y", "target"])
def test_dict_of_columns(name):
    x, y = arrays()
    data = {"input": x, "mask": torch.ones(N, 2, dtype=torch.bool), name: y.tolist()}
    instances = Instances.of(data)
    batch = instances.batch(np.array([2, 4]))
    assert list(batch) == ["input", "mask", name]
    assert torch.equal(batch["input"], torch.as_tensor(x[[2, 4]]))
    assert batch["mask"].dtype == torch.bool
    assert batch[name].tolist() == y[[2, 4]].tolist()
    np.testing.assert_array_equal(instances.labels(), y)
    chosen = instances.select(np.array([3, 1]))
    assert torch.equal(chosen.batch(slice(0, 2))["input"], torch.as_tensor(x[[3, 1]]))


def test_dict_without_labels():
    assert Instances.of({"input": arrays()[0]}).labels() is None


def test_one_column():
    x, _ = arrays()
    for data in (x, torch.as_tensor(x), pd.DataFrame(x), (x,)):
        instances = Instances.of(data)
        (batch,) = instances.batch(slice(1, 3))
        assert torch.equal(batch, torch.as_tensor(x[1:3]))
        assert instances.labels() is None


def test_data_set_of_dicts_and_of_single_tensors():
    x, y = arrays()
    items = [{"x": torch.as_tensor(row), "y": int(label)} for row, label in zip(x, y, strict=True)]
    batch = Instances.of(items).batch(slice(1, 4))
    assert torch.equal(batch["x"], torch.as_tensor(x[1:4]))
    assert batch["y"].tolist() == y[1:4].tolist()

    class Rows(Dataset):
        def __len__(self):
            return N

        def __getitem__(self, position):
            return torch.as_tensor(x[position])

    instances = Instances.of(Rows())
    assert torch.equal(instances.batch(slice(0, 2)), torch.as_tensor(x[:2]))
    assert instances.labels() is None


def test_collate():
    def collate(items):
        return {"total": torch.stack([x.sum() for x, _ in items])}

    instances = Instances.of(Pairs(), collate=collate)
    x, _ = arrays()
    for seen in (instances, instances.select(slice(0, N)), Instances.of(instances, ids=range(N))):
        batch = seen.batch(np.array([5, 2]))
        assert torch.equal(batch["total"], torch.as_tensor(x[[5, 2]].sum(1)))


def test_data_set_is_asked_for_plain_integers_and_only_what_is_needed():
    data = Pairs()
    instances = Instances.of(data)
    assert data.asked == []
    instances.batch(np.array([4, 2]))
    assert data.asked == [4, 2]
    assert all(type(position) is int for position in data.asked)


def test_types_are_kept():
    columns = (
        np.zeros((N, 1), np.float32),
        np.zeros(N, np.int64),
        np.zeros(N, bool),
        np.zeros(N, np.uint8),
        torch.zeros(N, dtype=torch.bfloat16),
    )
    batch = Instances.of(columns).batch(slice(0, 2))
    types = [torch.float32, torch.int64, torch.bool, torch.uint8, torch.bfloat16]
    assert [part.dtype for part in batch] == types


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x[::-1],
        lambda x: x[:, ::-1],
        lambda x: np.asfortranarray(x),
        lambda x: x.astype(">f4"),
        lambda x: x.view(np.recarray).view(np.ndarray),
    ],
    ids=["backwards", "columns backwards", "by columns", "big-endian", "view"],
)
def test_arrays_in_any_layout(change):
    x, y = arrays()
    x = change(x)
    for where in (slice(1, 4), np.array([3, 0])):
        batch = Instances.of((x, y)).batch(where)[0]
        assert torch.equal(batch.double(), torch.tensor(x[where].tolist()).double())


def test_read_only_array():
    x, y = arrays()
    x.setflags(write=False)
    batch = Instances.of((x, y)).batch(slice(0, 3))[0]
    batch += 1  # a copy, or this would write to the user's array
    assert x[0, 0] == 0


def test_ids():
    x, y = arrays()
    names = [f"row {i}" for i in range(N)]
    instances = Instances.of((x, y), ids=names)
    assert instances.ids.tolist() == names
    assert instances.ids.dtype.kind == "U"
    assert Instances.of((x, y), ids=pd.Index(names)).ids.tolist() == names
    assert Instances.of((x, y), ids=torch.arange(N)).ids.tolist() == list(range(N))
    assert Instances.of(Pairs(), ids=range(10, 10 + N)).ids.tolist() == list(range(10, 10 + N))
    again = Instances.of(instances, ids=range(N))
    assert again.ids.tolist() == list(range(N))
    assert Instances.of(instances) is instances
    with pytest.raises(ValueError, match="read-only"):
        instances.ids[0] = "other"


def test_ids_are_a_copy():
    given_ids = np.arange(N)
    instances = Instances.of(arrays(), ids=given_ids)
    given_ids[0] = 99
    assert instances.ids[0] == 0


@pytest.mark.parametrize(
    "index, expected",
    [
        (list("abcdef"), list("abcdef")),
        ([10, 11, 12, 13, 14, 15], [10, 11, 12, 13, 14, 15]),
        ([1, 1, 2, 3, 4, 5], list(range(N))),
        ([0.5, 1.5, 2.5, 3.5, 4.5, 5.5], list(range(N))),
        (pd.date_range("2024", periods=N), list(range(N))),
    ],
    ids=["names", "numbers", "repeated", "fractions", "dates"],
)
def test_index_of_a_data_frame(index, expected):
    x, y = arrays()
    frame = pd.DataFrame(x, index=index)
    for data in ((frame, y), {"x": frame, "y": y}, (x, pd.Series(y, index=index)), frame):
        assert Instances.of(data).ids.tolist() == expected


@pytest.mark.parametrize(
    "ids, message",
    [
        (range(N - 1), rf"ids: expected {N} labels.*of validation; got shape \({N - 1},\)"),
        (np.zeros((N, 1)), r"got shape \(6, 1\)"),
        ([0, 1, 2, 3, 4, 4], "ids: labels must be unique; 4 stands more than once"),
        (["a", "b", "c", "d", "e", "b"], "'b' stands more than once"),
        (np.linspace(0, 1, N), "ids: labels must be integers or strings; got float64"),
        ([True] * N, "integers or strings; got bool"),
        ([None] * N, "integers or strings; got object"),
        (["a", 1, "c", "d", "e", None], "integers or strings; got object"),
    ],
)
def test_ids_that_cannot_be(ids, message):
    with pytest.raises(InvalidInputError, match=message):
        Instances.of(arrays(), ids=ids, role="validation")


def test_columns_of_different_lengths():
    x, y = arrays()
    message = rf"test: the columns have different numbers of instances \(0: {N}, 1: {N - 1}\)"
    for data in ((x, y[:-1]), [x, y[:-1]], (x.tolist(), y[:-1].tolist())):
        with pytest.raises(InvalidInputError, match=message):
            Instances.of(data, role="test")
    with pytest.raises(InvalidInputError, match=r"different.*\(input: 6, labels: 5\)"):
        Instances.of({"input": x, "labels": y[:-1]})


class Stream(IterableDataset):
    def __iter__(self):
        return iter(())


class MeasuredStream(Stream):
    def __len__(self):
        return N


@pytest.mark.parametrize(
    "make",
    [
        Stream,
        MeasuredStream,
        lambda: DataLoader(Pairs()),
        lambda: DataLoader(Pairs(), shuffle=True),
        lambda: iter([1, 2]),
        lambda: (item for item in [1, 2]),
        lambda: {1, 2},
        lambda: None,
        lambda: 3,
        lambda: "a text",
        lambda: b"a text",
        lambda: ["first text", "second text"],
    ],
    ids=[
        "stream", "stream with a length", "loader", "shuffled loader", "iterator", "generator",
        "set", "None", "number", "text", "bytes", "texts",
    ],
)  # fmt: skip
def test_what_is_no_data_set(make):
    with pytest.raises(InvalidInputError, match=r"train: expected an \(X, y\) pair"):
        Instances.of(make())


@pytest.mark.parametrize(
    "column",
    [
        np.array(["a", "b"] * 3),
        np.array([["a", 1.0]] * N, dtype=object),
        np.array(["2024-01-01"] * N, dtype="datetime64[D]"),
        pd.DataFrame({"a": ["x"] * N, "b": range(N)}),
    ],
    ids=["text", "objects", "dates", "mixed frame"],
)
def test_columns_that_a_module_cannot_take(column):
    instances = Instances.of((column, arrays()[1]))
    with pytest.raises(InvalidInputError, match=r"a column.*dtype.*encode it as numbers first"):
        instances.batch(slice(0, 2))


def test_a_scalar_is_no_column():
    with pytest.raises(InvalidInputError, match="a column of the set is a scalar"):
        Instances.of((arrays()[0], np.array(3)))
    with pytest.raises(InvalidInputError, match="no columns"):
        Instances.of({})


def test_empty_set():
    instances = Instances.of((np.empty((0, 2)), np.empty(0, int)))
    assert len(instances) == 0
    assert instances.batch(slice(0, 0))[0].shape == (0, 2)
    assert instances.labels().shape == (0,)
    assert instances.fingerprint() != Instances.of((np.empty((1, 2)), np.empty(1))).fingerprint()
    assert len(Instances.of(arrays()).select(slice(0, 0))) == 0


def test_repr():
    assert repr(Instances.of((np.zeros(12_345), np.zeros(12_345)))) == "Instances(n=12,345)"


def test_fingerprint_is_of_the_content():
    x, y = arrays()
    first = Instances.of((x, y)).fingerprint()
    assert first == Instances.of((x.copy(), y.copy())).fingerprint()
    assert first == Instances.of((x.astype(np.float32), torch.as_tensor(y))).fingerprint()
    assert first == Instances.of([x, y], ids=list("abcdef")).fingerprint()
    assert Instances.of(Pairs()).fingerprint() == first


@pytest.mark.parametrize("row", range(N))
@pytest.mark.parametrize("column", [0, 1])
def test_fingerprint_sees_every_row_of_a_small_set(row, column):
    x, y = arrays()
    first = Instances.of((x, y)).fingerprint()
    changed = x.copy(), y.copy()
    changed[column][row] += 1
    assert Instances.of(changed).fingerprint() != first


def test_fingerprint_sees_order_length_and_shape():
    x, y = arrays()
    others = [
        (x[::-1], y[::-1]),
        (x[:-1], y[:-1]),
        (x.reshape(N, 2, 1), y),
        (x, y, y),
        (np.concatenate([x, x]), np.concatenate([y, y])),
    ]
    prints = [Instances.of(data).fingerprint() for data in [(x, y), *others]]
    assert len(set(prints)) == len(prints)
    selected = Instances.of((x, y)).select(slice(1, 4))
    assert selected.fingerprint() == Instances.of((x[1:4], y[1:4])).fingerprint()


def test_fingerprint_of_dicts():
    x, y = arrays()
    first = Instances.of({"x": x, "y": y}).fingerprint()
    assert Instances.of({"y": y, "x": x}).fingerprint() == first
    assert Instances.of({"x": x, "z": y}).fingerprint() != first


def test_fingerprint_of_a_large_set_reads_a_sample():
    x = np.arange(100_000.0)
    first = Instances.of((x, x)).fingerprint()
    for row in (0, -1):
        changed = x.copy()
        changed[row] += 1
        assert Instances.of((changed, x)).fingerprint() != first

    class Large(Pairs):
        def __len__(self):
            return 100_000

        def __getitem__(self, position):
            self.asked.append(position)
            return torch.tensor(position), 0

    data = Large()
    Instances.of(data).fingerprint()
    assert len(data.asked) <= 64


@given(st.integers(1, 200), st.data())
def test_batches_put_together_are_the_set(n, data):
    x, y = np.arange(n) * 2, np.arange(n)
    instances = Instances.of((x, y))
    size = data.draw(st.integers(1, n))
    batches = [instances.batch(slice(start, start + size)) for start in range(0, n, size)]
    assert torch.equal(torch.cat([batch[0] for batch in batches]), torch.as_tensor(x))
    assert torch.equal(torch.cat([batch[1] for batch in batches]), torch.as_tensor(y))


def test_arrays_are_not_collated():
    with pytest.raises(InvalidInputError, match="collate: train is made of arrays"):
        Instances.of((np.zeros((3, 2)), np.zeros(3)), collate=list)
