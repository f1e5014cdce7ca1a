"""The places where a public name stands agree, and what the docstrings show runs."""

import ast
import doctest
import importlib
import inspect
import pkgutil
import re
from pathlib import Path

import pytest
import torch
from contract import APART, ROWS

import proponent as pp
from proponent.card import FAMILIES
from proponent.catalogue import PLANNED
from proponent.method import InfluenceMethod
from proponent.registry import load_families, registered

ROOT = Path(__file__).resolve().parent.parent


def modules() -> list[str]:
    """Return the names of all modules of the library, found as files."""
    found = pkgutil.walk_packages(pp.__path__, "proponent.")
    return ["proponent", *(module.name for module in found)]


def family_of(kind: type) -> str:
    return kind.__module__.split(".")[1]


@pytest.fixture(scope="module")
def methods() -> dict[str, type[InfluenceMethod]]:
    """Return every method that some file of the library defines, whether it is public or not."""
    for module in modules():
        if module.startswith(tuple(f"proponent.{family}" for family in FAMILIES)):
            importlib.import_module(module)
    return {
        name: kind
        for name, kind in registered().items()
        if kind.__module__.startswith("proponent.")
    }


def type_checked_names() -> dict[str, str]:
    """Return the names that type checkers are told of, and their modules."""
    tree = ast.parse((ROOT / "src/proponent/__init__.py").read_text(encoding="utf-8"))
    blocks = [
        statement
        for statement in tree.body
        if isinstance(statement, ast.If) and getattr(statement.test, "id", "") == "TYPE_CHECKING"
    ]
    imports = [part for block in blocks for part in block.body if isinstance(part, ast.ImportFrom)]
    return {alias.name: str(part.module) for part in imports for alias in part.names}


def test_the_three_lists_of_public_names_agree() -> None:
    assert type_checked_names() == pp._EXPORTS
    assert sorted(pp.__all__) == sorted(pp._EXPORTS)
    assert len(set(pp.__all__)) == len(pp.__all__)
    assert set(pp.__all__) <= set(dir(pp))


@pytest.mark.parametrize("name", sorted(pp._EXPORTS))
def test_a_public_name_is_what_its_module_has(name: str) -> None:
    value = getattr(pp, name)
    assert value is getattr(importlib.import_module(pp._EXPORTS[name]), name)
    assert inspect.getdoc(value)
    assert value.__name__ == name


def test_an_unknown_name_is_refused_and_a_planned_one_said_to_be() -> None:
    with pytest.raises(AttributeError, match="no 'NoSuchMethod'"):
        _ = pp.NoSuchMethod
    name, card = next(iter(PLANNED.items()))
    with pytest.raises(AttributeError, match=re.escape(f"{card.title} is planned")):
        getattr(pp, name)


def test_every_method_is_public_and_has_a_row_in_the_contract(
    methods: dict[str, type[InfluenceMethod]],
) -> None:
    assert methods.keys() <= pp._EXPORTS.keys()
    assert methods.keys() == ROWS.keys() | APART.keys()
    assert not ROWS.keys() & APART.keys()
    for name, kind in methods.items():
        assert getattr(pp, name) is kind
        assert pp._EXPORTS[name] == kind.__module__
        assert kind.card.name == name
        assert kind.card.family == family_of(kind)
        assert name not in PLANNED


def test_every_method_is_in_the_table_of_methods(
    methods: dict[str, type[InfluenceMethod]],
) -> None:
    assert load_families() == {}
    table = pp.methods()
    available = table.index[table["available"] & table.index.isin(pp._EXPORTS)]
    assert set(available) == methods.keys()
    assert methods.keys() | PLANNED.keys() <= set(table.index)


@pytest.mark.parametrize("name", [*ROWS, *APART])
def test_a_methods_docstring_follows_the_template(name: str) -> None:
    kind = getattr(pp, name)
    text = kind.__doc__ or ""
    first = text.splitlines()[0]
    assert first.endswith("."), first
    text = text.replace("I(U, z_te) =", "I(z_i, z_te) =")  # the influence of a group
    formula = APART[name].formula if name in APART else "I(z_i, z_te) ="
    parts = [formula, "**Source**", "**Differs from the paper in**", "**Cost**"]
    places = [text.find(part) for part in parts]
    assert -1 not in places, [part for part, place in zip(parts, places, strict=True) if place < 0]
    assert places == sorted(places)
    assert kind.card.paper.split(";")[0].split(",")[0] in text, "the paper is not named"


@pytest.mark.parametrize("name", [*ROWS, *APART])
def test_a_methods_docstring_has_an_example(name: str) -> None:
    assert ">>>" in (getattr(pp, name).__doc__ or "")


@pytest.mark.parametrize("name", [*ROWS, *APART])
def test_every_hyperparameter_is_described(name: str) -> None:
    kind = getattr(pp, name)
    assert set(kind().get_params()) <= described(kind)


def described(kind: type) -> set[str]:
    """Return the hyperparameters that a docstring, or one that it refers to, describes."""
    found: set[str] = set()
    for base in inspect.getmro(kind):
        text = base.__doc__ or ""
        for entry in re.findall(r"^ {4}([a-z_][\w, ]*) : ", text, re.MULTILINE):
            found |= names_in(entry)
        pattern = r"^ {4}([a-z_][\w, \n]*)\n {8}As in :class:`(?:~[\w.]*\.)?(\w+)`"
        for entry, other in re.findall(pattern, text, re.MULTILINE):
            elsewhere = getattr(pp, other, None)
            if elsewhere is not None and elsewhere is not kind:
                found |= names_in(entry) & described(elsewhere)
    return found


def names_in(entry: str) -> set[str]:
    return {part.strip() for part in entry.split(",")}


@pytest.mark.parametrize("module", modules())
def test_the_examples_of_the_docstrings_run(
    module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.import_module(module)
    monkeypatch.chdir(tmp_path)  # some examples write a run
    torch.manual_seed(0)
    result = doctest.testmod(found, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert result.failed == 0


def test_the_methods_have_examples_that_the_doctests_find() -> None:
    finder = doctest.DocTestFinder()
    module = importlib.import_module(pp._EXPORTS["TracInCP"])
    found = [test.name for test in finder.find(module) if test.examples]
    assert "proponent.dynamic.tracincp.TracInCP" in found
