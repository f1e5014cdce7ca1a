"""Hyperparameters as scikit-learn has them: what ``__init__`` names is what can be read and set."""

from __future__ import annotations

import inspect
import reprlib
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from proponent.exceptions import InvalidInputError

if TYPE_CHECKING:
    from typing_extensions import Self

UNSET = inspect.Parameter.empty

_short = reprlib.Repr()
_short.maxstring = _short.maxother = 100
_short.maxlist = _short.maxtuple = _short.maxset = _short.maxdict = 10


def defaults(kind: type) -> dict[str, Any]:
    """Return the hyperparameters of a class with their defaults (``UNSET`` where none).

    An ``__init__`` that ends in ``**settings`` takes those of its base too, and hands them on.

    Raises
    ------
    TypeError
        If ``__init__`` takes ``*args``, or ``**kwargs`` that no base names: these cannot be listed
        or cloned.
    """
    return {parameter.name: parameter.default for parameter in _parameters(kind)}


def _parameters(kind: type) -> list[inspect.Parameter]:
    owner = next(base for base in kind.__mro__ if "__init__" in vars(base))
    if owner is object:
        return []
    parameters = list(inspect.signature(owner.__init__).parameters.values())[1:]  # type: ignore[misc]
    found: list[inspect.Parameter] = []
    for parameter in parameters:
        inherited = None
        if parameter.kind is parameter.VAR_KEYWORD:
            after = owner.__mro__[1:]
            inherited = next((base for base in after if "__init__" in vars(base)), object)
        if parameter.kind is parameter.VAR_POSITIONAL or inherited is object:
            raise TypeError(
                f"{kind.__name__}.__init__ takes {parameter}; name every hyperparameter, so that "
                f"the method can be listed, set and cloned."
            )
        if inherited is None:
            found.append(parameter)
        else:
            named = {parameter.name for parameter in found}
            more = (entry for entry in _parameters(inherited) if entry.name not in named)
            found += [entry.replace(kind=entry.KEYWORD_ONLY) for entry in more]
    return found


class Parameterised:
    """Base of what is set up as scikit-learn's estimators are, so that it can be cloned.

    ``__init__`` names every hyperparameter and stores each under its own name; or it ends in
    ``**settings``, hands them to the ``__init__`` of its base, and has its hyperparameters too.
    """

    __signature__: ClassVar[inspect.Signature]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Show all hyperparameters in ``help()``, those of a base too."""
        super().__init_subclass__(**kwargs)
        if "__init__" in vars(cls):
            with suppress(TypeError):  # said where the class is registered
                cls.__signature__ = inspect.Signature(_parameters(cls))

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return the hyperparameters by name.

        Parameters
        ----------
        deep : bool
            Add those of hyperparameters that have their own, as ``outer__inner``.

        Raises
        ------
        AttributeError
            If ``__init__`` did not store one under its own name.
        """
        values: dict[str, Any] = {}
        for name in defaults(type(self)):
            if not hasattr(self, name):
                raise AttributeError(
                    f"{type(self).__name__}.__init__ must store the hyperparameter {name!r} "
                    f"as self.{name}."
                )
            value = values[name] = getattr(self, name)
            if deep and hasattr(value, "get_params") and not isinstance(value, type):
                nested = value.get_params(deep=True)
                values |= {f"{name}__{inner}": nested[inner] for inner in nested}
        return values

    def set_params(self, **values: Any) -> Self:
        """Set hyperparameters by name, ``outer__inner`` for one of a nested object.

        A method keeps what it was fitted to: fit it again for the new settings to count.

        Raises
        ------
        InvalidInputError
            If a name is not a hyperparameter; the message lists those that are.
        """
        kind, known = type(self).__name__, list(defaults(type(self)))
        for name in values:
            outer, nested, _ = name.partition("__")
            if outer not in known:
                valid = ", ".join(known) or "none (it has no hyperparameters)"
                raise InvalidInputError(
                    f"{kind} has no hyperparameter {outer!r}; valid are: {valid}."
                )
            if nested and not hasattr(values.get(outer, getattr(self, outer)), "set_params"):
                raise InvalidInputError(
                    f"{name}: {kind}.{outer} is not an object with hyperparameters; set {outer!r}."
                )
        # The outer ones first, so that an inner one is set on the object that stays.
        for name in sorted(values, key=lambda name: "__" in name):
            outer, nested, inner = name.partition("__")
            if nested:
                getattr(self, outer).set_params(**{inner: values[name]})
            else:
                setattr(self, name, values[name])
        return self

    def __repr__(self) -> str:
        """Show ``Name(parameter=value)`` with the hyperparameters that differ from the default."""
        shown = []
        for name, default in defaults(type(self)).items():
            value = getattr(self, name, default)
            if default is UNSET or not _same(value, default):
                shown.append(f"{name}={_one_line(value)}")
        return f"{type(self).__name__}({', '.join(shown)})"


def _same(value: Any, default: Any) -> bool:
    # By repr, as arrays and NaN have no plain equality; the type tells 1 from True and 1.0.
    return value is default or (type(value) is type(default) and repr(value) == repr(default))


def _one_line(value: Any) -> str:
    return " ".join(_short.repr(value).split())


def as_json(value: Any) -> Any:
    """Return a value as JSON can hold it; what JSON does not know becomes its short ``repr``."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Mapping):
        return {str(key): as_json(part) for key, part in value.items()}
    if isinstance(value, (set, frozenset)):
        return [as_json(part) for part in sorted(value, key=repr)]
    if isinstance(value, (list, tuple)):
        return [as_json(part) for part in value]
    if isinstance(value, np.ndarray) and value.size <= 100:
        return as_json(value.tolist())
    return _one_line(value)
