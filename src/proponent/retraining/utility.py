"""Utilities: what a submodel is worth on each test instance; larger is better."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from proponent._content import as_numpy
from proponent.exceptions import InvalidInputError, MethodCapabilityError, NonFiniteError
from proponent.models.learner import Fitted, Prepared, Trainer

Values = NDArray[np.float64]

SMOOTHING = 1e-3  # of probabilities, as for the risk of a classifier


class Utility(ABC):
    """What submodels are worth on test instances; utilities that are equal compare equal.

    Attributes
    ----------
    of_classes : bool
        Whether it is made of the outputs of a classifier.
    """

    of_classes: ClassVar[bool] = False

    @property
    @abstractmethod
    def name(self) -> str:
        """What it is called."""

    @abstractmethod
    def of(self, trainer: Trainer, fitted: Fitted, test: Prepared) -> Values:
        """Return the utility of each submodel on each test instance, ``(K, T)``; NaN: failed.

        Raises
        ------
        MethodCapabilityError
            If the trainer's models have not what the utility is made from.
        """

    def recipe(self) -> str:
        """Return a text that is the same where the utility is the same: its key in a store.

        Raises
        ------
        InvalidInputError
            If there is no such text.
        """
        return self.name

    def width(self, test: Prepared) -> int | None:
        """Return the number of columns T; None where it is not known before the first row."""
        return len(test)

    def check(self, trainer: Trainer) -> None:
        """Refuse a trainer whose models have not what the utility is made from.

        Raises
        ------
        MethodCapabilityError
            If they have not.
        """
        if self.of_classes:
            _check_classes(self.name, trainer)


@dataclass(frozen=True)
class Risk(Utility):
    """Minus the risk that the learner is judged by, ``-L(z_te)``."""

    @property
    def name(self) -> str:
        """Return ``"risk"``."""
        return "risk"

    def of(self, trainer: Trainer, fitted: Fitted, test: Prepared) -> Values:
        """Return minus the risks, ``(K, T)``."""
        return np.asarray(-trainer.risks(fitted, test), np.float64)


@dataclass(frozen=True)
class Accuracy(Utility):
    """One where the class with the largest output is the label, else zero.

    Of classes that are level, the first counts.
    """

    of_classes: ClassVar[bool] = True

    @property
    def name(self) -> str:
        """Return ``"accuracy"``."""
        return "accuracy"

    def of(self, trainer: Trainer, fitted: Fitted, test: Prepared) -> Values:
        """Return 1.0 where the label is predicted and 0.0 where not, ``(K, T)``."""
        outputs, labels = _classes(self.name, trainer, fitted, test)
        correct = np.asarray(outputs.argmax(axis=-1) == labels, np.float64)
        correct[np.isnan(outputs).any(axis=-1)] = np.nan
        return correct


@dataclass(frozen=True)
class Margin(Utility):
    """How far the label leads, ``log p_y - max log p_c`` over the other classes c.

    It is the difference of the logits where the model has logits.

    **Source**: Ilyas et al. 2022, whose datamodels predict it.

    Parameters
    ----------
    smoothing : float
        Probabilities become ``(1 - smoothing) p + smoothing / C`` first, so that the margin of a
        model that gives a class no chance at all (a tree, a forest, or one whose subset lacks the
        class) is finite. Logits are taken as they are.
    """

    of_classes: ClassVar[bool] = True
    smoothing: float = SMOOTHING

    def __post_init__(self) -> None:
        """Check the smoothing."""
        if not 0 <= self.smoothing < 1:
            raise InvalidInputError(
                f"smoothing: expected a number in [0, 1); got {self.smoothing!r}."
            )

    @property
    def name(self) -> str:
        """Return ``"margin"``, with the smoothing where there is some."""
        return f"margin(smoothing={self.smoothing!r})" if self.smoothing else "margin"

    def of(self, trainer: Trainer, fitted: Fitted, test: Prepared) -> Values:
        """Return the margins, ``(K, T)``.

        Raises
        ------
        NonFiniteError
            If a class has probability zero and there is no smoothing.
        """
        outputs, labels = _classes(self.name, trainer, fitted, test)
        if outputs.shape[-1] < 2:
            raise InvalidInputError("utility='margin' needs two classes or more.")
        if trainer.output == "probabilities":
            smoothed = (1 - self.smoothing) * outputs + self.smoothing / outputs.shape[-1]
            with np.errstate(divide="ignore"):
                outputs = np.log(smoothed)
        where = labels[None, :, None]
        own = np.take_along_axis(outputs, where, axis=-1)[..., 0]
        others = outputs.copy()
        np.put_along_axis(others, where, -np.inf, axis=-1)
        best = others.max(axis=-1)
        if np.isneginf(own).any() or np.isneginf(best).any():
            column = int(np.flatnonzero((np.isneginf(own) | np.isneginf(best)).any(axis=0))[0])
            raise NonFiniteError(
                f"utility='margin' is infinite on test instance {test.ids.tolist()[column]!r}: a "
                f"submodel gives a class probability zero. Smooth the probabilities: "
                f"utility=Margin(smoothing=1e-3)."
            )
        return np.asarray(own - best)


@dataclass(frozen=True)
class FromPredictions(Utility):
    """A function of what a submodel predicts.

    Parameters
    ----------
    function : callable
        ``function(outputs, targets)`` takes the predictions of one submodel, ``(T, C)``
        probabilities or logits or ``(T,)`` values, and the targets, ``(T,)``: positions of the
        classes among the sorted labels of the whole training set, or numbers. It returns the
        utility of each test instance, ``(T,)``, or of the whole test set, one number (then
        T = 1); larger is better.
    """

    function: Callable[[Any, Any], Any]

    @property
    def name(self) -> str:
        """Return the function's name."""
        return str(getattr(self.function, "__qualname__", type(self.function).__name__))

    def recipe(self) -> str:
        """Return the code of the function and what it refers to.

        Raises
        ------
        InvalidInputError
            If it refers to something whose content is not known.
        """
        from proponent.models.recipe import recipe_of

        return f"predictions {recipe_of(self.function)}"

    def width(self, test: Prepared) -> int | None:
        """Return None: the function decides."""
        return None

    def of(self, trainer: Trainer, fitted: Fitted, test: Prepared) -> Values:
        """Return what the function says, ``(K, T)`` or ``(K, 1)``.

        Raises
        ------
        InvalidInputError
            If it does not return T numbers, or one.
        """
        outputs = trainer.outputs(fitted, test)
        rows: list[Any] = [None] * fitted.size
        for position in range(fitted.size):
            if position not in fitted.failures:
                rows[position] = self._row(outputs[position], test)
        widths = {len(row) for row in rows if row is not None}
        if len(widths) > 1:
            raise InvalidInputError(
                f"utility: {self.name} returned one number for some submodels and one a test "
                f"instance for others."
            )
        missing = np.full(widths.pop() if widths else 1, np.nan)
        return np.stack([missing if row is None else row for row in rows])

    def _row(self, outputs: Values, test: Prepared) -> Values:
        found = as_numpy(self.function(outputs, test.targets))
        if found.shape not in ((), (1,), (len(test),)) or found.dtype.kind not in "biuf":
            raise InvalidInputError(
                f"utility: {self.name} must return one number, or one for each of the "
                f"{len(test)} test instances; got {found.dtype} of shape {found.shape}."
            )
        return found.reshape(-1).astype(np.float64)


NAMED: dict[str, Utility] = {"risk": Risk(), "accuracy": Accuracy(), "margin": Margin()}


def utility_of(given: Any) -> Utility:
    """Return the utility that is meant by a name, a function of predictions, or a utility.

    Raises
    ------
    InvalidInputError
        If it is none of these.
    """
    if isinstance(given, Utility):
        return given
    if isinstance(given, str) and given in NAMED:
        return NAMED[given]
    if callable(given) and not isinstance(given, type):
        return FromPredictions(given)
    raise InvalidInputError(
        f"utility: expected {', '.join(map(repr, NAMED))}, or a function of (outputs, targets) "
        f"where larger is better; got {given!r}."
    )


def _classes(
    name: str, trainer: Trainer, fitted: Fitted, test: Prepared
) -> tuple[Values, NDArray[Any]]:
    """Return the outputs for every class, ``(K, T, C)``, and the position of each label."""
    _check_classes(name, trainer)
    if test.targets is None:
        raise InvalidInputError(f"utility={name!r} needs the labels of the test instances.")
    return np.asarray(trainer.outputs(fitted, test), np.float64), test.targets


def _check_classes(name: str, trainer: Trainer) -> None:
    if trainer.output not in ("probabilities", "logits"):
        found = "predicts numbers" if trainer.output == "values" else "has no predictions"
        plain, _, _ = name.partition("(")
        raise MethodCapabilityError(
            f"utility={plain!r} needs a classifier; this model {found}. Use utility='risk'"
            + (", or a function of (outputs, targets)." if trainer.output else ".")
        )
