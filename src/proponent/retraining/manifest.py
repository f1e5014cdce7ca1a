"""The manifest of a store: whose submodels it holds."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from proponent.exceptions import InvalidInputError
from proponent.retraining.journal import not_written

FORMAT = "proponent-submodels"
VERSION = 1

MANIFEST = "manifest.json"
WHAT_DIFFERS = {
    "data": "the training set",
    "n": "the number of training instances",
    "recipe": "the recipe of the learner",
    "training": "the version of the learner's training code",
}
SHOWN = 300  # characters of a recipe in a message


def check_manifest(path: Path, data: str, recipe: str, n: int, training: int = 1) -> None:
    """Write the manifest of a new store; refuse a directory that holds another.

    Raises
    ------
    InvalidInputError
        If it holds submodels of another training set or recipe, or something else.
    ProponentError
        If it cannot be written to.
    """
    wanted = {
        **{"format": FORMAT, "version": VERSION, "data": data, "n": n},
        **{"recipe": recipe, "training": training},
    }
    file = path / MANIFEST
    if not file.exists():
        other = path.exists() and (not path.is_dir() or any(path.iterdir()))
        # Another process may be writing the manifest of the same new store just now.
        if other and not file.exists() and not [*path.glob(f"{MANIFEST}.*.tmp")]:
            raise InvalidInputError(
                f"path: {path} is no store of submodels; choose an empty or a new directory."
            )
        _write_new(file, json.dumps(wanted, indent=1).encode())
    try:
        found = json.loads(file.read_bytes())
        kind, version = found["format"], int(found["version"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InvalidInputError(
            f"path: {file} cannot be read ({error}); choose another directory."
        ) from error
    if kind != FORMAT or version != VERSION:
        raise InvalidInputError(
            f"path: {path} was written in the format {kind!r}, version {version}, and "
            f"this release reads {FORMAT!r}, version {VERSION}; choose another directory."
        )
    differing = [name for name in WHAT_DIFFERS if found.get(name) != wanted[name]]
    if differing:
        what = " and ".join(WHAT_DIFFERS[name] for name in differing)
        raise InvalidInputError(
            f"path: {path} holds submodels of another study: {what} "
            f"{'differs' if len(differing) == 1 else 'differ'}"
            f"{_shown(found, wanted) if 'recipe' in differing else ''}. Choose another "
            f"directory, one for each training set and recipe, and for each release of this "
            f"library that trains otherwise."
        )


def _shown(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """Return the recipes from where they differ."""
    texts = str(found.get("recipe")), str(wanted["recipe"])
    pairs = enumerate(zip(*texts, strict=False))
    same = next((position for position, (one, other) in pairs if one != other), 0)
    start = max(0, same - 40) if max(map(len, texts)) > SHOWN else 0
    stored, given = (("..." if start else "") + text[start : start + SHOWN] for text in texts)
    return f" (stored: {stored}; given: {given})"


def _write_new(path: Path, content: bytes) -> None:
    """Write a file that no other process has written; where one has, theirs stays."""
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(content)
        try:
            os.link(temporary, path)
        except FileExistsError:
            pass
        except OSError:  # a file system without links
            os.replace(temporary, path)
    except OSError as error:
        raise not_written(path.parent, error) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
