"""Results on disk: what comes back, and what is refused."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from proponent._results import files
from proponent.exceptions import InvalidInputError, NonFiniteError
from proponent.influence import Influence
from proponent.top import TopInfluence

NAN = float("nan")


def result(**changes: Any) -> Influence:
    generator = np.random.default_rng(0)
    values = generator.normal(size=(4, 6)).astype(np.float32)
    values[1, 2] = NAN
    given: dict[str, Any] = {
        "values": values,
        "train_ids": ["ä", "b\nc", "d", "<e>", "", "日本"],
        "test_ids": [-3, 2**62, 0, 7],
        "method": "Méthode \ud800",
        "settings": {"rate": NAN, "limit": float("inf"), "low": -float("inf"), "steps": [1, None]},
        "std_error": generator.random((4, 6)),
        "diagnostics": {"residual": 0.1 + 0.2, "warnings": ["w"], "nested": {"deep": [NAN]}},
        "additive": False,
    }
    return Influence(**{**given, **changes})


def top() -> TopInfluence:
    return TopInfluence(
        [[2, 0], [1, 2]],
        [[0.5, 0.25], [3.0, 3.0]],
        [[1, 0], [0, 1]],
        [[-1.0, 0.25], [0.0, 3.0]],
        train_ids=["a", "b", "c"],
        test_ids=[8, 9],
        method="M",
        settings={"x": NAN},
        diagnostics={"y": [1]},
    )


@pytest.mark.parametrize("mmap", [True, False])
def test_round_trip(tmp_path: Path, mmap: bool) -> None:
    saved = result()
    saved.save(tmp_path / "deep" / "er" / "one")
    loaded = Influence.load(tmp_path / "deep" / "er" / "one", mmap=mmap)
    assert loaded.values.dtype == np.float32
    np.testing.assert_array_equal(loaded.values, saved.values)
    assert saved.std_error is not None
    assert loaded.std_error is not None
    assert loaded.std_error.dtype == np.float64
    np.testing.assert_array_equal(loaded.std_error, saved.std_error)
    assert saved.test_ids is not None
    assert loaded.test_ids is not None
    assert loaded.train_ids.tolist() == saved.train_ids.tolist()
    assert loaded.test_ids.tolist() == saved.test_ids.tolist()
    assert loaded.method == saved.method
    assert repr(dict(loaded.settings)) == repr(dict(saved.settings))
    assert repr(dict(loaded.diagnostics)) == repr(dict(saved.diagnostics))
    assert loaded.additive is False
    assert repr(loaded) == repr(saved)
    for array in (loaded.values, loaded.std_error, loaded.train_ids):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = array[1]
    joined = loaded.joint("mean")
    np.testing.assert_array_equal(joined.values, saved.joint("mean").values)


@pytest.mark.parametrize("mmap", [True, False])
@pytest.mark.parametrize(
    "saved",
    [
        Influence([1.5, NAN, 2.5], train_ids=["a", "b", "c"]),
        Influence([[1, 2], [3, 4]]),
        Influence(np.zeros((0, 3))),
        Influence(np.zeros((3, 0))),
        Influence(np.asfortranarray(np.arange(12.0).reshape(3, 4)))[::-1, ::2],
        result()[1:, [3, 1]],
    ],
    ids=["joint", "plain", "no tests", "no training", "strided", "part"],
)
def test_round_trip_of_shapes(tmp_path: Path, saved: Influence, mmap: bool) -> None:
    saved.save(tmp_path / "one")
    loaded = Influence.load(str(tmp_path / "one"), mmap=mmap)
    np.testing.assert_array_equal(loaded.values, saved.values)
    assert loaded.shape == saved.shape
    np.testing.assert_array_equal(loaded.train_ids, saved.train_ids)
    assert (loaded.test_ids is None) == (saved.test_ids is None)
    assert (loaded.std_error is None) == (saved.std_error is None)


def test_what_is_on_disk(tmp_path: Path) -> None:
    result().save(tmp_path / "one")
    names = {entry.name for entry in (tmp_path / "one").iterdir()}
    assert names == {"values.npy", "std_error.npy", "labels.npz", "meta.json"}
    assert [entry.name for entry in tmp_path.iterdir()] == ["one"]
    np.testing.assert_array_equal(np.load(tmp_path / "one" / "values.npy"), result().values)

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    text = (tmp_path / "one" / "meta.json").read_text(encoding="utf-8")
    meta = json.loads(text, parse_constant=refuse)
    assert meta["format_version"] == 1
    assert meta["kind"] == "Influence"
    assert meta["arrays"]["values"] == {"shape": [4, 6], "dtype": "<f4"}
    assert meta["labels"]["train_ids"]["shape"] == [6]
    assert "library_version" in meta
    Influence([1.0]).save(tmp_path / "two")
    assert "std_error.npy" not in os.listdir(tmp_path / "two")


def test_the_directory_has_ordinary_permissions(tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    result().save(tmp_path / "one")
    modes = {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("plain", "one")}
    assert len(modes) == 1


def test_loading_maps_the_file(tmp_path: Path) -> None:
    result().save(tmp_path / "one")
    loaded = Influence.load(tmp_path / "one")
    part: Any = loaded[1:3].values
    while isinstance(part, np.ndarray) and not isinstance(part, np.memmap):
        part = part.base
    assert isinstance(part, np.memmap)
    assert type(loaded.values) is np.ndarray
    copied = pickle.loads(pickle.dumps(loaded))
    np.testing.assert_array_equal(copied.values, loaded.values)


def test_infinite_values_on_disk_are_found_when_read(tmp_path: Path) -> None:
    result().save(tmp_path / "one")
    values = np.array(result().values)
    values[0, 3] = np.inf
    np.save(tmp_path / "one" / "values.npy", values)
    with pytest.raises(NonFiniteError, match="test -3, train <e>"):
        Influence.load(tmp_path / "one", mmap=False)


# --- overwriting


def test_an_existing_path_is_refused(tmp_path: Path) -> None:
    result().save(tmp_path / "one")
    before = (tmp_path / "one" / "meta.json").read_bytes()
    with pytest.raises(InvalidInputError, match=r"one exists already.*overwrite=True"):
        Influence([1.0]).save(tmp_path / "one")
    assert (tmp_path / "one" / "meta.json").read_bytes() == before


def test_overwrite(tmp_path: Path) -> None:
    result().save(tmp_path / "one")
    Influence([1.0, 2.0]).save(tmp_path / "one", overwrite=True)
    assert Influence.load(tmp_path / "one").values.tolist() == [1.0, 2.0]
    assert sorted(os.listdir(tmp_path / "one")) == ["labels.npz", "meta.json", "values.npy"]
    assert os.listdir(tmp_path) == ["one"]
    top().save(tmp_path / "one", overwrite=True)
    assert TopInfluence.load(tmp_path / "one").k == 2
    Influence([1.0]).save(tmp_path / "new", overwrite=True)
    (tmp_path / "empty").mkdir()
    Influence([1.0]).save(tmp_path / "empty", overwrite=True)
    assert Influence.load(tmp_path / "empty").shape == (1,)


def test_a_result_may_overwrite_the_file_it_is_mapped_from(tmp_path: Path) -> None:
    result().save(tmp_path / "one")
    Influence.load(tmp_path / "one")[:2].save(tmp_path / "one", overwrite=True)
    np.testing.assert_array_equal(Influence.load(tmp_path / "one").values, result().values[:2])


def test_overwrite_through_a_link_keeps_the_link(tmp_path: Path) -> None:
    result().save(tmp_path / "one")
    (tmp_path / "link").symlink_to(tmp_path / "one")
    Influence([1.0]).save(tmp_path / "link", overwrite=True)
    assert (tmp_path / "link").is_symlink()
    assert Influence.load(tmp_path / "one").shape == (1,)


def test_nothing_else_is_ever_overwritten(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "thesis.tex").write_text("precious")
    result().save(tmp_path / "one")
    (tmp_path / "one" / "notes.txt").write_text("precious")
    for name, message in (
        ("file", "is not a directory"),
        ("folder", "not a saved result"),
        ("one", r"also holds 'notes\.txt'"),
    ):
        with pytest.raises(InvalidInputError, match=message):
            result().save(tmp_path / name, overwrite=True)
    assert (tmp_path / "file").read_text() == "precious"
    assert (tmp_path / "folder" / "thesis.tex").read_text() == "precious"
    assert (tmp_path / "one" / "notes.txt").read_text() == "precious"


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_a_failed_write_leaves_the_old_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    result().save(tmp_path / "one")

    def fail(*args: Any, **kwargs: Any) -> None:
        raise error

    monkeypatch.setattr(np, "savez", fail)
    for name in ("one", "two"):
        with pytest.raises(type(error)):
            Influence([1.0]).save(tmp_path / name, overwrite=True)
    assert os.listdir(tmp_path) == ["one"]
    np.testing.assert_array_equal(Influence.load(tmp_path / "one").values, result().values)


def test_a_failed_rename_puts_the_old_result_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result().save(tmp_path / "one")
    rename = os.rename

    def fail(source: Any, target: Any) -> None:
        if str(source).endswith(".tmp"):
            raise OSError("no")
        rename(source, target)

    monkeypatch.setattr(os, "rename", fail)
    with pytest.raises(OSError, match="no"):
        Influence([1.0]).save(tmp_path / "one", overwrite=True)
    assert os.listdir(tmp_path) == ["one"]
    np.testing.assert_array_equal(Influence.load(tmp_path / "one").values, result().values)


# --- damage


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-5])


def empty(file: Path) -> None:
    file.write_bytes(b"")


def garble(file: Path) -> None:
    file.write_bytes(b"\x00\xff" * 200)


@pytest.mark.parametrize("mmap", [True, False])
@pytest.mark.parametrize("damage", [Path.unlink, truncate, empty, garble])
@pytest.mark.parametrize("name", ["values.npy", "std_error.npy", "labels.npz", "meta.json"])
def test_damage_is_named(
    tmp_path: Path, name: str, damage: Callable[[Path], None], mmap: bool
) -> None:
    result().save(tmp_path / "one")
    damage(tmp_path / "one" / name)
    with pytest.raises(InvalidInputError, match=rf"{name}.*save the result again") as caught:
        Influence.load(tmp_path / "one", mmap=mmap)
    if damage is Path.unlink:
        assert "is missing" in str(caught.value)


class Trap:
    """Would run on unpickling."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("trapped",)


@pytest.mark.parametrize("mmap", [True, False])
def test_no_pickle_is_ever_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mmap: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    trap = np.array([Trap()], dtype=object)
    plain = pickle.dumps(Trap())
    np.save(tmp_path / "array.npy", trap, allow_pickle=True)
    np.savez(tmp_path / "labels.npz", train_ids=trap, test_ids=trap)
    shutil.rmtree(tmp_path / "trapped", ignore_errors=True)
    for name, content in (
        ("values.npy", (tmp_path / "array.npy").read_bytes()),
        ("values.npy", plain),
        ("labels.npz", (tmp_path / "labels.npz").read_bytes()),
        ("labels.npz", plain),
        ("labels.npz", (tmp_path / "array.npy").read_bytes()),
    ):
        result().save(tmp_path / "one", overwrite=True)
        (tmp_path / "one" / name).write_bytes(content)
        with pytest.raises(InvalidInputError, match=name):
            Influence.load(tmp_path / "one", mmap=mmap)
    assert not (tmp_path / "trapped").exists()


def edit(folder: Path, **changes: Any) -> None:
    meta = json.loads((folder / "meta.json").read_text())
    for key, value in changes.items():
        if value is None:
            del meta[key]
        else:
            meta[key] = value
    (folder / "meta.json").write_text(json.dumps(meta))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": 2}, r"format version 2, this version of proponent reads 1"),
        ({"format": "other"}, "does not describe a saved Influence"),
        ({"kind": "Other"}, "describes a 'Other', not an Influence"),
        ({"method": None}, "lacks 'method'"),
        ({"settings": [1]}, "lacks 'settings' or holds it wrongly"),
        ({"arrays": None}, "lacks 'arrays'"),
        ({"additive": None}, "additive must be True or False"),
        ({"arrays": {"values": {"shape": [4, 7], "dtype": "<f4"}}}, r"values\.npy holds"),
        ({"arrays": {}}, r"values\.npy holds"),
        ({"labels": {"train_ids": {"shape": [6], "dtype": "<U3"}}}, r"labels\.npz holds"),
    ],
)
def test_wrong_metadata(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    result().save(tmp_path / "one")
    edit(tmp_path / "one", **changes)
    with pytest.raises(InvalidInputError, match=message) as caught:
        Influence.load(tmp_path / "one")
    assert str(tmp_path / "one") in str(caught.value)


def test_files_that_do_not_fit_together(tmp_path: Path) -> None:
    result().save(tmp_path / "one")
    result(train_ids=list("abcdef"), std_error=None)[:, :5].save(tmp_path / "two")
    for name in ("labels.npz", "values.npy"):
        shutil.copy(tmp_path / "two" / name, tmp_path / "one" / name)
        with pytest.raises(InvalidInputError, match=rf"{name} holds"):
            Influence.load(tmp_path / "one")


def repeated(array: NDArray[Any]) -> NDArray[Any]:
    return np.full_like(array, array[0])


def test_repeated_ids_on_disk_are_refused(tmp_path: Path) -> None:
    saved = result()
    saved.save(tmp_path / "one")
    np.savez(
        tmp_path / "one" / "labels.npz",
        train_ids=repeated(saved.train_ids),
        test_ids=np.asarray(saved.test_ids),
    )
    with pytest.raises(InvalidInputError, match=r"do not fit together \(train_ids must be uniq"):
        Influence.load(tmp_path / "one")


def test_not_a_directory(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="nothing is not a directory with a saved Influe"):
        Influence.load(tmp_path / "nothing")
    (tmp_path / "other").mkdir()
    with pytest.raises(InvalidInputError, match=r"other.meta\.json is missing"):
        Influence.load(tmp_path / "other")


# --- the streamed result


@pytest.mark.parametrize("mmap", [True, False])
def test_round_trip_of_the_strongest(tmp_path: Path, mmap: bool) -> None:
    top().save(tmp_path / "one")
    loaded = TopInfluence.load(tmp_path / "one", mmap=mmap)
    for side in ("proponents", "opponents"):
        for found, expected in zip(getattr(loaded, side)(), getattr(top(), side)(), strict=True):
            np.testing.assert_array_equal(found, expected)
    assert loaded.test_ids.tolist() == [8, 9]
    assert loaded.train_ids.tolist() == ["a", "b", "c"]
    assert (loaded.method, loaded.diagnostics) == ("M", {"y": [1]})
    assert repr(dict(loaded.settings)) == "{'x': nan}"


def test_kinds_are_not_mixed_up(tmp_path: Path) -> None:
    top().save(tmp_path / "top")
    result().save(tmp_path / "full")
    with pytest.raises(InvalidInputError, match=r"load it with TopInfluence\.load"):
        Influence.load(tmp_path / "top")
    with pytest.raises(InvalidInputError, match=r"load it with Influence\.load"):
        TopInfluence.load(tmp_path / "full")


@pytest.mark.parametrize("name", files.ARRAYS["TopInfluence"])
def test_damage_of_the_strongest_is_named(tmp_path: Path, name: str) -> None:
    top().save(tmp_path / "one")
    truncate(tmp_path / "one" / f"{name}.npy")
    with pytest.raises(InvalidInputError, match=name):
        TopInfluence.load(tmp_path / "one")


def test_positions_on_disk_are_checked(tmp_path: Path) -> None:
    top().save(tmp_path / "one")
    file = tmp_path / "one" / "opponent_positions.npy"
    np.save(file, np.full_like(np.load(file), 3))
    with pytest.raises(InvalidInputError, match=r"do not fit together \(opponent_positions must"):
        TopInfluence.load(tmp_path / "one")
