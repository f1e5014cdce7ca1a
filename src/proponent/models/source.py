"""Where code comes from: which package and version, or which bytecode of the user's own."""

from __future__ import annotations

import dis
import hashlib
import sys
import sysconfig
import types
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any


@lru_cache(maxsize=4096)
def is_installed(name: str | None) -> bool:
    """Whether a module belongs to Python or to an installed package, whose version tells it."""
    top = (name or "").partition(".")[0]
    if top in sys.stdlib_module_names or top == "proponent":
        return True
    if name == "__main__":
        return False
    module = sys.modules.get(name or "") or sys.modules.get(top)
    file = getattr(module, "__file__", None) or getattr(sys.modules.get(top), "__file__", None)
    if file is None:
        # No file: what was typed in, or a module that a package makes of itself.
        return module is not None and _version(top) != ""
    kinds = ("stdlib", "platstdlib", "purelib", "platlib")
    places = {Path(sysconfig.get_path(kind)).resolve() for kind in kinds}
    return any(Path(file).resolve().is_relative_to(place) for place in places)


def version_of(thing: Any) -> str:
    """Return the version of the package that a module, class, function or object is of."""
    name = thing.__name__ if isinstance(thing, types.ModuleType) else None
    name = name or getattr(thing, "__module__", None) or type(thing).__module__
    return _version(str(name).partition(".")[0])


@lru_cache(maxsize=4096)
def _version(top: str) -> str:
    if top == "builtins":
        return ""
    if top in sys.stdlib_module_names:
        return f"{sys.version_info.major}.{sys.version_info.minor}"
    said = getattr(sys.modules.get(top), "__version__", None)
    if said is not None:
        return str(said)
    try:
        return metadata.version(top)
    except (metadata.PackageNotFoundError, ValueError):
        return ""


def file_hash(module: types.ModuleType) -> str:
    """Return a hash of the file that a module of the user's own stands in."""
    file = getattr(module, "__file__", None)
    content = Path(file).read_bytes() if file and Path(file).is_file() else b""
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def code_text(code: types.CodeType) -> str:
    """Return what a piece of code does, as a text: no file names and no line numbers."""
    constants = ", ".join(map(_constant, code.co_consts))
    names = (code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars)
    counts = (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags)
    return f"{code.co_name} {counts} {names} {code.co_code.hex()} [{constants}]"


def global_names(code: types.CodeType) -> list[str]:
    """Return the globals that a piece of code reads, those of functions inside it included."""
    found = {
        step.argval
        for step in dis.get_instructions(code)
        if step.opname in ("LOAD_GLOBAL", "LOAD_NAME")
    }
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            found.update(global_names(constant))
    return sorted(found)


def _constant(constant: Any) -> str:
    if isinstance(constant, types.CodeType):
        return code_text(constant)
    if isinstance(constant, frozenset):
        return f"frozenset({sorted(map(_constant, constant))})"
    if isinstance(constant, tuple):
        return f"({', '.join(map(_constant, constant))})"
    return repr(constant)
