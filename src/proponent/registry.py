"""Every method by its name, and the table of them all."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from proponent.card import COLUMNS, FAMILIES, FLAGS, MethodCard
from proponent.parameters import defaults

if TYPE_CHECKING:
    import pandas as pd

    from proponent.method import InfluenceMethod

# Optional dependency -> the extra that installs it.
EXTRAS = {
    "torch": "torch",
    "safetensors": "torch",
    "xgboost": "trees",
    "lightgbm": "trees",
    "catboost": "trees",
}

ROOT = Path(__file__).parent

_registry: dict[str, type[InfluenceMethod]] = {}


def register(method: type[InfluenceMethod]) -> None:
    """Enter a method under the name on its card.

    Raises
    ------
    TypeError
        If the card is not a ``MethodCard``, names another class, or names one that another
        module has entered. The same class imported again takes its own place.
    """
    card: object = method.__dict__["card"]
    where = f"{method.__module__}.{method.__qualname__}"
    if not isinstance(card, MethodCard):
        raise TypeError(f"{where}.card must be a MethodCard; got {type(card).__name__}.")
    if card.name != method.__name__:
        raise TypeError(
            f"{where} has a card for {card.name!r}; the name on a card is the name of its class."
        )
    defaults(method)  # refuses a constructor whose hyperparameters cannot be listed
    other = _registry.get(card.name)
    if other is not None and where != f"{other.__module__}.{other.__qualname__}":
        raise TypeError(
            f"{where}: the name {card.name!r} is taken by {other.__module__}."
            f"{other.__qualname__}; give one of them another name, on its card too."
        )
    _registry[card.name] = method


def registered() -> dict[str, type[InfluenceMethod]]:
    """Return the methods whose modules have been imported, by name."""
    return dict(_registry)


def load_families() -> dict[str, str]:
    """Import the modules of all public methods, so that the registry is full.

    Returns
    -------
    dict
        Public name -> what to install, for the methods whose modules need an optional
        dependency that is missing here.

    Raises
    ------
    ImportError
        If a module cannot be imported for any other reason.
    """
    from proponent import _EXPORTS

    notes = {}
    for family in FAMILIES:
        package = f"proponent.{family}"
        extra = _missing_extra(package)
        for name, module in _EXPORTS.items():
            if f"{module}.".startswith(f"{package}."):
                needed = extra or _missing_extra(module)
                if needed and _has_card(name, module):
                    notes[name] = f"needs {needed}: pip install 'proponent[{EXTRAS[needed]}]'"
    return notes


def _missing_extra(module: str) -> str | None:
    """Import a module; return the optional dependency that it lacks, if it lacks one."""
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if missing.partition(".")[0] in EXTRAS:
            return missing.partition(".")[0]
        # A family to come: its package is not there yet.
        if missing != module or module.count(".") != 1:
            raise
    return None


def _has_card(name: str, module: str) -> bool:
    """Whether a module that cannot be imported here has a method of this name, by its source."""
    source = ROOT.joinpath(*module.split(".")[1:]).with_suffix(".py").read_text(encoding="utf-8")
    for statement in ast.parse(source).body:
        if isinstance(statement, ast.ClassDef) and statement.name == name:
            assigned = [part for part in statement.body if isinstance(part, ast.Assign)]
            targets = [target for part in assigned for target in part.targets]
            targets += [part.target for part in statement.body if isinstance(part, ast.AnnAssign)]
            return any(isinstance(part, ast.Name) and part.id == "card" for part in targets)
    return False


def methods(available: bool | None = None) -> pd.DataFrame:
    """List every method of the survey and beyond: its Tables 1 and 6 as a data frame.

    Parameters
    ----------
    available : bool, optional
        True for the methods that can be used here and now, False for the others.

    Returns
    -------
    pandas.DataFrame
        One row a method, by its public name: the methods of the survey in the order of its
        Table 6, then the ones beyond it by family and name. Columns are the fields of
        :class:`MethodCard` and two more: ``available``, and ``note``, which says why not. Where
        the module of a method cannot be imported, its card is not known and its cells are empty.

    Raises
    ------
    ImportError
        If a module of a family cannot be imported although its dependencies are there.
    """
    import pandas as pd

    from proponent.catalogue import PLANNED, SURVEY_ORDER

    notes = load_families()
    cards = PLANNED | {name: method.card for name, method in _registry.items()}
    rows: dict[str, dict[str, Any]] = {}
    for name in {*cards, *notes}:
        row = cards[name].row() if name in cards else {}
        usable = name in _registry
        note = "" if usable else notes.get(name, "planned")
        rows[name] = {**row, "available": usable, "note": note}

    survey = [name for _, names in SURVEY_ORDER for name in names]

    def place(name: str) -> tuple[int, int, str]:
        family = rows[name].get("family")
        beyond = FAMILIES.index(family) if family in FAMILIES else len(FAMILIES)
        return survey.index(name) if name in survey else len(survey), beyond, name

    order = sorted(rows, key=place)
    table = pd.DataFrame(
        [rows[name] for name in order],
        index=pd.Index(order, name="method"),
        columns=[*COLUMNS, "available", "note"],
    )
    # Types that keep an unknown cell apart from an empty text and from False.
    types = {column: "boolean" if column in FLAGS else "string" for column in COLUMNS}
    table = table.astype(types | {"available": "bool", "note": "string"})
    return table if available is None else table[table["available"] == available]
