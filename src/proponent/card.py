"""A method's card: the survey's Table 1 and Table 6 as data."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from proponent.exceptions import InvalidInputError

FAMILIES = ("retraining", "static", "dynamic", "trees")
ASSUMPTIONS = ("differentiable", "convex", "stationary", "linear", "optimizer")

REQUIRED_TEXTS = (
    "name",
    "title",
    "family",
    "paper",
    "needs",
    "full_complexity",
    "incremental_complexity",
    "space_complexity",
    "storage_complexity",
)
OPTIONAL_TEXTS = ("section", "equations", "original_sign")
PLACES = {
    "section": re.compile(r"\d+(\.\d+)*(, \d+(\.\d+)*)*"),
    "equations": re.compile(r"\d+(-\d+)?(, \d+(-\d+)?)*"),
}
FLAGS = ("estimates_loo", "group", "generative", "any_model")
COLUMNS = (
    "survey_name",
    "title",
    "aliases",
    "family",
    "section",
    "equations",
    "paper",
    "full_complexity",
    "incremental_complexity",
    "space_complexity",
    "storage_complexity",
    "assumes",
    "needs",
    *FLAGS,
    "original_sign",
)


@dataclass(frozen=True, kw_only=True)
class MethodCard:
    """What a method is, in the survey's terms.

    Complexities are written in the survey's symbols: n training instances, p parameters, T
    training iterations (boosting iterations for trees), K submodels, b instances a batch; a card
    that needs another symbol says what it is. A complexity counts the first test instance
    (``full_complexity``) or each further one (``incremental_complexity``).

    Attributes
    ----------
    name : str
        The public name, which is the name of the class.
    title : str
        The long name.
    family : str
        One of ``FAMILIES``: the subpackage that holds the method.
    paper : str
        Authors, venue and year.
    needs : str
        What ``fit`` takes, in words that complete "needs ...".
    full_complexity, incremental_complexity : str
        Time for the first test instance, and for each further one.
    space_complexity, storage_complexity : str
        Working memory, and what is kept on disk or in memory between queries.
    survey_name : str or None
        The abbreviation as the survey's Table 6 prints it; None for a method beyond the survey.
    aliases : tuple of str
        Other names in use.
    section, equations : str
        Where the survey defines it, such as ``"5.2.1"`` and ``"27-34"`` or ``"14, 15"``.
    assumes : tuple of str
        A subset of ``ASSUMPTIONS``, kept in their order.
    estimates_loo : bool
        Whether the numbers are leave-one-out differences in risk, comparable across methods.
    group, generative, any_model : bool
        Whether it supports group influence, generative models, any model class.
    original_sign : str
        What the original code returned, by this library's rule that positive is helpful; empty
        where it is not known.
    cost : callable or None
        Called with keywords (``n``, ``n_test``, ``p``, ``T``, ``batch_size``, ``checkpoints``,
        ``submodels``, ...; it takes those it needs and ignores the rest), it returns the work as
        a number of forward-backward passes of one instance. None where it is not known yet.

    Raises
    ------
    InvalidInputError
        If a field is missing, of the wrong kind, or not one of the known words.
    """

    name: str
    title: str
    family: str
    paper: str
    needs: str
    full_complexity: str
    incremental_complexity: str
    space_complexity: str
    storage_complexity: str
    survey_name: str | None = None
    aliases: tuple[str, ...] = ()
    section: str = ""
    equations: str = ""
    assumes: Collection[str] = ()
    estimates_loo: bool = False
    group: bool = False
    generative: bool = False
    any_model: bool = False
    original_sign: str = ""
    cost: Callable[..., float] | None = None

    def __post_init__(self) -> None:
        """Check every field."""
        for field in REQUIRED_TEXTS + OPTIONAL_TEXTS:
            value = getattr(self, field)
            if not isinstance(value, str):
                raise self._invalid(field, "a string")
            if field in REQUIRED_TEXTS and not value.strip():
                raise self._invalid(field, "a text that is not empty")
        if not self.name.isidentifier():
            raise self._invalid("name", "the name of the class")
        if self.family not in FAMILIES:
            raise self._invalid("family", f"one of {', '.join(FAMILIES)}")
        if self.survey_name is not None:
            if not isinstance(self.survey_name, str) or not self.survey_name.strip():
                raise self._invalid("survey_name", "an abbreviation of Table 6 or None")
            if not self.section:
                raise self._invalid("section", "the section of the survey (it has a survey_name)")
        for field, pattern in PLACES.items():
            value = getattr(self, field)
            if value and not pattern.fullmatch(value):
                raise self._invalid(field, "numbers such as '5.2.1' or '27-34, 36', or empty")
        for flag in FLAGS:
            if not isinstance(getattr(self, flag), bool):
                raise self._invalid(flag, "True or False")
        if self.cost is not None and not callable(self.cost):
            raise self._invalid("cost", "a function of keywords that returns a number, or None")
        aliases, assumes = self._words("aliases"), self._words("assumes")
        if unknown := [word for word in assumes if word not in ASSUMPTIONS]:
            raise InvalidInputError(
                f"MethodCard {self.name!r}: assumes has the unknown word {unknown[0]!r}; "
                f"the known ones are {', '.join(ASSUMPTIONS)}."
            )
        object.__setattr__(self, "aliases", aliases)
        object.__setattr__(self, "assumes", tuple(word for word in ASSUMPTIONS if word in assumes))

    def _words(self, field: str) -> tuple[str, ...]:
        """Return a field as a tuple of strings; a lone string is refused, for it iterates."""
        value = getattr(self, field)
        if isinstance(value, str) or not isinstance(value, Collection):
            raise self._invalid(field, "a tuple of strings")
        if not all(isinstance(word, str) for word in value):
            raise self._invalid(field, "a tuple of strings")
        return tuple(value)

    def _invalid(self, field: str, expected: str) -> InvalidInputError:
        return InvalidInputError(
            f"MethodCard {self.name!r}: {field} must be {expected}; got {getattr(self, field)!r}."
        )

    def row(self) -> dict[str, Any]:
        """Return the card as one row of the table of methods, by ``COLUMNS``: texts and booleans.

        A list of words becomes one text, None an empty one.
        """
        cells = {column: getattr(self, column) for column in COLUMNS}
        return {
            column: ", ".join(cell) if isinstance(cell, tuple) else "" if cell is None else cell
            for column, cell in cells.items()
        }
