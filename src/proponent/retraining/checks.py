"""Settings of the methods that train submodels, refused with a reason where they make no sense."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral

import numpy as np

from proponent.exceptions import InvalidInputError


def check_choice(name: str, value: object, choices: Sequence[object]) -> None:
    """Refuse a setting that is none of the choices."""
    if not any(value is choice or value == choice for choice in choices):
        raise InvalidInputError(f"{name} must be {' or '.join(map(repr, choices))}; got {value!r}.")


def check_seed(seed: object) -> None:
    """Refuse what is no integer of at least 0."""
    if not isinstance(seed, Integral) or isinstance(seed, bool) or seed < 0:
        raise InvalidInputError(f"seed must be an integer of at least 0; got {seed!r}.")


def check_fraction(name: str, value: object) -> float:
    """Return a number that lies between 0 and 1, both excluded."""
    if not isinstance(value, (int, float, np.number)) or not 0 < value < 1:
        raise InvalidInputError(f"{name} must be a number between 0 and 1; got {value!r}.")
    return float(value)
