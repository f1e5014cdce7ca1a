"""What all methods that train submodels take, and where it does not go with what they are given."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypedDict

from proponent.exceptions import InvalidInputError
from proponent.parameters import Parameterised, defaults
from proponent.retraining.stopping import StoppingRule
from proponent.retraining.utility import Utility

NEEDS = (
    "a scikit-learn estimator, pp.TorchLearner, an object with fit and risk, pp.Submodels that "
    "another method trained, or a pp.Game"
)
HOW = ("n_jobs", "store", "memory", "progress")  # what the numbers do not depend on


NO_USE: Any = object()


class Settings(TypedDict, total=False):
    """What all these methods take; :class:`SubmodelMethod` says what each does."""

    utility: str | Utility | Callable[[Any, Any], Any]
    empty: str | float
    stop: StoppingRule | None
    seed: int
    n_jobs: int | None
    store: str | Path | None
    memory: int
    progress: bool | None


def refuse_ignored(method: Parameterised, own: Mapping[str, Any], owner: str) -> None:
    """Refuse hyperparameters that were set, and that what the method is fitted to decides.

    Parameters
    ----------
    method : Parameterised
        The method.
    own : mapping
        The hyperparameters that do not count, with what counts instead; ``NO_USE``: nothing does.
    owner : str
        Who decides them, such as "the Submodels have".

    Raises
    ------
    InvalidInputError
        If one is neither the default nor what counts instead.
    """
    preset = defaults(type(method))
    for name, value in own.items():
        given = getattr(method, name)
        if not (_same(given, preset[name]) or _same(given, value)):
            instead = "no use for it" if value is NO_USE else f"their own, {name}={value!r}"
            raise InvalidInputError(
                f"{name}: {owner} {instead}, so that {name}={given!r} would be ignored; leave it "
                f"out."
            )


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Path) or isinstance(other, Path):
        return (
            isinstance(one, (str, Path))
            and isinstance(other, (str, Path))
            and Path(one).resolve() == Path(other).resolve()
        )
    return one is other or bool(one == other)
