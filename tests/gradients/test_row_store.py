"""Rows in memory and on disk: the same, resumed after a stop, refused where they do not fit."""

import json
import os

import pytest
import torch

from proponent.exceptions import InvalidInputError
from proponent.gradients import row_store
from proponent.gradients.row_store import MemoryRows, StoredRows

N, WIDTHS, HEADER = 11, {"a": 3, "b": 1}, {"module": "m", "layers": [{"shape": [1, 2]}]}
LIKE = torch.zeros(0, dtype=torch.float32)


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    monkeypatch.setattr(row_store, "BLOCK_ROWS", 2)
    monkeypatch.setattr(row_store, "SHARD_BYTES", 4 * 4 * 4)  # four rows


@pytest.fixture
def table():
    return {name: torch.randn(N, width, dtype=torch.float32) for name, width in WIDTHS.items()}


def stored(path, **changes):
    given = {"path": path, "header": HEADER, "n": N, "widths": WIDTHS, "like": LIKE, **changes}
    return StoredRows(**given)


def fill(store, table):
    for rows in store.missing():
        store.write(rows, {name: v[rows.start : rows.stop] for name, v in table.items()})


def read(store, rows=range(N), tables=None):
    blocks = list(store.read(rows, tables))
    assert [i for block, _ in blocks for i in block] == list(rows)
    assert all(len(block) <= 2 for block, _ in blocks)
    return {name: torch.cat([part[name] for _, part in blocks]) for name in blocks[0][1]}


@pytest.mark.parametrize("kind", ["memory", "disk"])
def test_what_is_written_is_read(kind, table, tmp_path):
    store = MemoryRows(N, WIDTHS, LIKE, 10**6) if kind == "memory" else stored(tmp_path / "new")
    assert [i for rows in store.missing() for i in rows] == list(range(N))
    fill(store, table)
    assert store.missing() == []
    for rows in (range(N), range(3, 10), range(4, 5)):
        found = read(store, rows)
        for name, values in table.items():
            assert torch.equal(found[name], values[rows.start : rows.stop])
    assert set(read(store, tables=["b"])) == {"b"}
    assert read(store, tables=["a"])["a"].dtype == torch.float32


def test_a_stopped_fit_goes_on_where_it_was(table, tmp_path):
    first = stored(tmp_path)
    rows = first.missing()
    assert rows == [range(0, 4), range(4, 8), range(8, 11)]
    middle = {name: values[4:8] for name, values in table.items()}
    first.write(rows[1], middle)
    # A stop while a file is written leaves only a file that nothing reads.
    (tmp_path / "rows-0000000000.safetensors.1.tmp").write_bytes(b"half")
    again = stored(tmp_path)
    assert again.missing() == [range(0, 4), range(8, 11)]
    fill(again, table)
    assert torch.equal(read(stored(tmp_path))["a"], table["a"])


def test_the_size_of_shards_is_that_of_the_first_fit(table, tmp_path, monkeypatch):
    fill(stored(tmp_path), table)
    monkeypatch.setattr(row_store, "SHARD_BYTES", 10**6)
    assert stored(tmp_path).missing() == []
    assert torch.equal(read(stored(tmp_path))["a"], table["a"])


@pytest.mark.parametrize(
    "changes, named",
    [
        ({"header": {**HEADER, "module": "other"}}, "module"),
        ({"header": {**HEADER, "layers": []}}, "layers"),
        ({"n": 12}, "n"),
        ({"widths": {"a": 3, "b": 2}}, "tables"),
        ({"like": LIKE.double()}, "dtype"),
    ],
)
def test_rows_of_another_origin_are_refused(changes, named, tmp_path):
    stored(tmp_path)
    with pytest.raises(InvalidInputError, match=rf"path: .* of another fit \(its {named} differ"):
        stored(tmp_path, **changes)


def test_a_directory_of_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("...")
    with pytest.raises(InvalidInputError, match=r"path: .* is no directory of projected gradients"):
        stored(tmp_path)
    with pytest.raises(InvalidInputError, match="is no directory of projected gradients"):
        stored(tmp_path / "thesis.tex")
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(InvalidInputError, match=r"path: .* no manifest that can be read"):
        stored(tmp_path)


def test_a_damaged_shard_is_named(table, tmp_path):
    fill(stored(tmp_path), table)
    shard = tmp_path / "rows-0000000004.safetensors"
    shard.write_bytes(shard.read_bytes()[:-3])
    with pytest.raises(InvalidInputError, match=rf"{shard.name} cannot be read.*delete it"):
        read(stored(tmp_path))
    shard.unlink()
    assert stored(tmp_path).missing() == [range(4, 8)]


def test_what_is_kept_beside_the_rows(tmp_path):
    tensors = {"x/left": torch.randn(2, 3), "y": torch.randn(4, 2).T}
    store = stored(tmp_path)
    assert store.kept("bases") is None
    store.keep("bases", tensors)
    found = stored(tmp_path).kept("bases")
    assert set(found) == set(tensors)
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)
    assert MemoryRows(N, WIDTHS, LIKE, 10**6).kept("bases") is None
    (tmp_path / "bases.safetensors").write_bytes(b"")
    with pytest.raises(InvalidInputError, match=r"bases\.safetensors cannot be read"):
        stored(tmp_path).kept("bases")


def test_more_than_the_memory_is_refused():
    MemoryRows(N, WIDTHS, LIKE, N * 16)
    with pytest.raises(InvalidInputError, match=r"11 training instances take .* Give path="):
        MemoryRows(N, WIDTHS, LIKE, N * 16 - 1)


def test_only_plain_formats_are_on_disk(table, tmp_path):
    """No pickle; the manifest is JSON that says where the rows come from."""
    fill(stored(tmp_path), table)
    assert {name.rsplit(".", 1)[1] for name in os.listdir(tmp_path)} == {"json", "safetensors"}
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["module"] == "m" and manifest["n"] == N and manifest["dtype"] == "float32"
