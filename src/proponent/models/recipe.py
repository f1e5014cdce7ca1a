"""A text for what a submodel was trained by: the same where, and only where, the recipe is.

Stored submodels are found again by it, so it may not depend on memory addresses, on the order of a
set or on the process; and it must change with everything that changes the training: settings, the
versions of packages, the code of the user's own functions and classes and what these refer to.
"""

from __future__ import annotations

import copyreg
import functools
import hashlib
import types
from collections.abc import Callable, Iterator, Mapping
from enum import Enum
from typing import Any

import numpy as np

from proponent._content import as_numpy
from proponent.exceptions import InvalidInputError
from proponent.models.source import code_text, file_hash, global_names, is_installed, version_of

PLAIN = (bool, int, float, complex, str, bytes, type(None), type(Ellipsis), type(NotImplemented))
LONGEST = 2_000  # characters of one part; a longer one is hashed
# What Python and its libraries keep in a class, none of which is a setting of it.
BOOKKEEPING = frozenset(
    {
        *("__dict__", "__weakref__", "__doc__", "__module__", "__qualname__", "__annotations__"),
        *("__firstlineno__", "__static_attributes__", "__annotate_func__", "_abc_impl"),
        *("__annotations_cache__", "__abstractmethods__", "__parameters__"),
    }
)


def recipe_of(value: Any) -> str:
    """Return a stable text for hyperparameters, estimators, arrays, functions and objects.

    - Numbers, text and containers of them: themselves.
    - Arrays, data frames, sparse matrices and tensors: a hash of dtype, shape and every value.
    - Estimators (anything with ``get_params``): class, version of its package, parameters.
    - Functions: module, name, and a hash of bytecode, constants, defaults, closure and the
      globals that it reads; of installed packages the version stands for the globals.
    - Classes: module, name and version; the user's own with all of their functions.
    - Other objects: their class and what ``pickle`` would take of them (``__reduce_ex__``).

    An object decides for itself by a method ``recipe()`` that returns a text.

    Parameters
    ----------
    value : object

    Returns
    -------
    str

    Raises
    ------
    InvalidInputError
        If something is known by its address only, such as a lock or an open file; the message
        says where it was found.
    """
    return _Writer().text(value, type(value).__name__)


class _Writer:
    """Writes one recipe; what is met again within itself is named by its depth."""

    def __init__(self) -> None:
        self._above: list[int] = []  # addresses of what is being written
        self._written: dict[int, tuple[Any, str]] = {}  # the objects too: they keep their address

    def text(self, value: Any, path: str) -> str:
        """Return the text of anything found at ``path``."""
        if isinstance(value, PLAIN) and type(value) in PLAIN:
            return repr(value)
        key = id(value)
        if key in self._written:
            return self._written[key][1]
        if key in self._above:
            return f"<within {len(self._above) - self._above.index(key)}>"
        self._above.append(key)
        try:
            found = self._text(value, path)
        finally:
            self._above.pop()
        if len(found) > LONGEST:
            found = f"{found[:80]}...#{_hash(found)}"
        if "<within " not in found:  # else it is another text at another depth
            self._written[key] = value, found
        return found

    def _text(self, value: Any, path: str) -> str:
        if isinstance(value, type):
            return self._class(value, path)
        if isinstance(value, types.ModuleType):
            return self._module(value)
        if callable(getattr(value, "recipe", None)):
            return f"{self.text(type(value), path)}:{value.recipe()}"
        if callable(getattr(value, "get_params", None)):
            return self._estimator(value, path)
        if isinstance(value, types.FunctionType):
            return self._function(value, path)
        if isinstance(value, types.MethodType):
            inner = self.text(value.__self__, f"{path}.__self__")
            return f"{inner}.{self.text(value.__func__, path)}"
        if isinstance(value, functools.partial):
            parts = (value.func, value.args, value.keywords)
            return f"partial{self.text(parts, path)}"
        if isinstance(value, np.generic):
            return f"{value.dtype}({value.item()!r})" if value.dtype != object else repr(value)
        if isinstance(value, np.ndarray) or _is_tensor(value):
            return self._array(value, path)
        return self._container(value, path)

    def _container(self, value: Any, path: str) -> str:
        if isinstance(value, Enum):
            return f"{self.text(type(value), path)}.{value.name}"
        if type(value) in (list, tuple):
            inner = ", ".join(self.text(part, f"{path}[{i}]") for i, part in enumerate(value))
            return f"{type(value).__name__}({inner})"
        if type(value) in (set, frozenset):
            members = sorted(self.text(part, f"{path}{{}}") for part in value)
            return f"{type(value).__name__}({', '.join(members)})"
        if type(value) in (dict, types.MappingProxyType):
            return self._mapping(value, path)
        return self._object(value, path)

    def _mapping(self, value: Mapping[Any, Any], path: str) -> str:
        """Return a mapping's text, whatever the order of its keys."""
        items = [
            f"{self.text(key, path)}: {self.text(inner, f'{path}[{key!r}]')}"
            for key, inner in value.items()
        ]
        return f"{{{', '.join(sorted(items))}}}"

    def _array(self, value: Any, path: str) -> str:
        array = as_numpy(value)
        if array.dtype == object:
            content = self.text(array.ravel().tolist(), path).encode()
        else:
            content = np.ascontiguousarray(array).tobytes()
        kind = "" if isinstance(value, np.ndarray) else f"{type(value).__name__} {value.dtype} "
        return f"array({kind}{array.dtype} {array.shape} #{_hash(content)})"

    def _estimator(self, value: Any, path: str) -> str:
        """Return class, version and parameters, as ``sklearn.base.clone`` takes them over."""
        if type(value).__name__ == "FrozenEstimator":  # clone keeps what it was fitted to
            return f"{self.text(type(value), path)}{self._object(value.estimator, path)}"
        try:
            parameters = value.get_params(deep=False)
        except TypeError:
            parameters = value.get_params()
        inner = ", ".join(
            f"{name}={self.text(parameters[name], f'{path}.{name}')}" for name in sorted(parameters)
        )
        return f"{self.text(type(value), path)}({inner})"

    def _module(self, module: types.ModuleType) -> str:
        """Return a module's name and version; the user's own by the content of its file."""
        known = is_installed(module.__name__)
        return f"{module.__name__}@{version_of(module) if known else file_hash(module)}"

    def _class(self, kind: type, path: str) -> str:
        """Return a class's name and version; the user's own with what its body holds."""
        name = f"{kind.__module__}.{kind.__qualname__}"
        if is_installed(kind.__module__):
            version = version_of(kind)
            return f"{name}@{version}" if version else name
        members = {key: item for key, item in vars(kind).items() if key not in BOOKKEEPING}
        parts = [
            f"{key}={self._member(item, f'{path}.{key}')}"
            for key, item in sorted(members.items())
            if not isinstance(item, (types.GetSetDescriptorType, types.MemberDescriptorType))
        ]
        bases = [self.text(base, path) for base in kind.__bases__ if base is not object]
        return f"{name}#{_hash('; '.join([*bases, *parts]))}"

    def _member(self, item: Any, path: str) -> str:
        """Return the text of what a class holds: functions behind their descriptors."""
        if isinstance(item, property):
            item = (item.fget, item.fset, item.fdel)
        if isinstance(item, (staticmethod, classmethod)):
            item = (type(item).__name__, item.__func__)
        return self.text(item, path)

    def _function(self, function: types.FunctionType, path: str) -> str:
        """Return a function's name and a hash of what it does."""
        cells = [_content_of(cell) for cell in function.__closure__ or ()]
        held: list[Any] = [function.__defaults__, function.__kwdefaults__]
        parts = [code_text(function.__code__), self.text(held, f"{path}'s defaults")]
        for name, cell in zip(function.__code__.co_freevars, cells, strict=True):
            parts.append(f"{name}={self.text(cell, f'{path}, its variable {name!r}')}")
        if not is_installed(function.__module__):
            for name in global_names(function.__code__):
                if name in function.__globals__:
                    found = function.__globals__[name]
                    parts.append(f"{name}={self.text(found, f'{path}, its global {name!r}')}")
            version = ""
        else:
            version = f"@{version_of(function)}"
        name = f"{function.__module__}.{function.__qualname__}{version}"
        return f"{name}#{_hash('; '.join(parts))}"

    def _object(self, value: Any, path: str) -> str:
        """Return class and content of any object, as ``pickle`` would take it apart."""
        wrapped = getattr(value, "__wrapped__", None)
        try:
            reducer = copyreg.dispatch_table.get(type(value))
            reduced = reducer(value) if reducer else value.__reduce_ex__(4)
        except Exception as error:
            if wrapped is not None:
                return f"{type(value).__name__}({self.text(wrapped, path)})"
            raise InvalidInputError(
                f"{path}: {_shown(value)} is known by its address only ({error}), so stored "
                f"submodels could not be found again. Make it inside the function that needs it, "
                f"pass plain values, or give it a method recipe() that returns a text which "
                f"changes whenever the training would."
            ) from error
        inner = "" if wrapped is None else f"({self.text(wrapped, path)})"
        if isinstance(reduced, str):  # the name of something that its module holds
            module = getattr(value, "__module__", None) or type(value).__module__
            version = version_of(value)
            return f"{module}.{reduced}{f'@{version}' if version else ''}{inner}"
        function, arguments, *rest = reduced
        state: list[Any] = [list(part) if isinstance(part, Iterator) else part for part in rest[:3]]
        made = [_maker(function), arguments, *state]
        parts = [self.text(part, f"{path}'s content") for part in made]
        return f"{self.text(type(value), path)}#{_hash('; '.join(parts))}{inner}"


def _maker(function: Callable[..., Any]) -> Any:
    """Return the name of what would make the object anew: its class is written beside it."""
    return getattr(function, "__qualname__", type(function).__qualname__)


def _is_tensor(value: Any) -> bool:
    return hasattr(value, "detach") and hasattr(value, "dtype")


def _content_of(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        return "<empty>"  # a name that the enclosing function has not bound yet


def _shown(value: Any) -> str:
    return repr(value)[:100]


def _hash(content: str | bytes) -> str:
    content = content.encode(errors="surrogatepass") if isinstance(content, str) else content
    return hashlib.blake2b(content, digest_size=16).hexdigest()
