"""Any object of the user's own, with ``fit`` and ``risk``, as a learner."""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from proponent._content import as_numpy
from proponent.data import Instances
from proponent.exceptions import InvalidInputError, MethodCapabilityError, NonFiniteError
from proponent.models.labels import Values, listed
from proponent.models.learner import Empty, Fitted, Learner, Prepared, SerialTrainer
from proponent.models.recipe import recipe_of
from proponent.models.rows import check_features, same_kind, take_rows
from proponent.models.sklearn_template import LARGEST_STATE

Labels = Literal["no", "optional", "required"]

SEEDS = ("seed", "random_state")
LABELS = ("y", "label", "labels", "target", "targets")  # names of an argument that may be left out
POSITIONS = "positions"
# Types of what copies may share, for nothing can change it.
UNCHANGING = (bool, int, float, complex, str, bytes, type(None), type, type(len), type(lambda: 0))


class UserLearner(Learner):
    """Trains copies of an object of the user's own on subsets.

    The object needs two methods, and may have a third:

    - ``fit(X, y)`` trains it. It may also take ``seed`` (or ``random_state``), an integer that
      decides everything random, and ``positions``, those of the rows in the training set,
      ``(rows,)``. A density model has ``fit(X)``.
    - ``risk(X, y)`` returns the risk of each instance, ``(T,)``, smaller is better; or ``risk(X)``.
    - ``predict(X)`` returns numbers, ``(T, ...)``, for utilities that are made from predictions.

    X is a data frame if one was given, else an array; y is as it was given.

    Every subset is given an object as it was before any training: what a class or function
    returns, where one was given; else what the object's own ``clone()`` returns, or scikit-learn's
    ``clone`` where it has ``get_params`` (its random states are then set to the seed); else a deep
    copy of the object as it was when it was bound. A deep copy of an object that was fitted before
    starts from what it learned then: give an unfitted one, or the class.

    A model that draws random numbers must take them from the seed. Where none of these takes one,
    the model counts as deterministic, and is trained once a subset.

    Parameters
    ----------
    model : object, class or callable
        An object with ``fit`` and ``risk``, or what makes one: called without arguments, or with
        the seed if it takes ``seed`` or ``random_state``.

    Notes
    -----
    Beside the object's own work a submodel costs some 10 microseconds at n = 100: a class or
    function, or an object that holds only numbers and text, is the fastest to copy; an object that
    holds containers is copied deeply, which costs some 10 microseconds more, and what it holds.

    Examples
    --------
    >>> import numpy as np
    >>> from proponent.data import Instances
    >>> class Mean:
    ...     def fit(self, X, y):
    ...         self.mean = y.mean()
    ...     def risk(self, X, y):
    ...         return (y - self.mean) ** 2
    >>> train = Instances.of((np.zeros((3, 1)), np.array([1.0, 2.0, 6.0])))
    >>> trainer = UserLearner(Mean).bind(train)
    >>> fitted = trainer.fit(np.array([[True, True, False]]), np.array([0]))
    >>> trainer.risks(fitted, trainer.prepare(train))
    array([[ 0.25,  0.25, 20.25]])
    """

    def __init__(self, model: Any) -> None:
        self.model = model

    def bind(self, train: Instances) -> UserTrainer:
        """Return a trainer of copies of the object.

        Raises
        ------
        InvalidInputError
            If the object has not the methods it needs, or they need labels and there are none.
        """
        return UserTrainer(self.model, train)

    def recipe(self) -> str:
        """Return what the object holds and the code of its class, or of what makes it.

        Raises
        ------
        InvalidInputError
            If it holds something that is known by its address only.
        """
        return f"UserLearner({recipe_of(self.model)})"


class UserTrainer(SerialTrainer):
    """Trains copies of an object; made by :meth:`UserLearner.bind`.

    Parameters
    ----------
    model : object, class or callable
        As :class:`UserLearner` takes it.
    train : Instances
    """

    def __init__(self, model: Any, train: Instances) -> None:
        self.n = len(train)
        self._features = train.features("train")
        self._labels = train.labels()
        self._make, self._make_seed = _maker(model)
        example = self._fresh(0)
        fit, risk = (_method(example, name) for name in ("fit", "risk"))
        self._fit_labels = _takes_labels(fit, "fit")
        self._risk_labels = _takes_labels(risk, "risk")
        self._fit_parts = [self._features]
        if self._labels is not None and self._fit_labels != "no":
            self._fit_parts.append(self._labels)
        self._fit_seed = _seed_of(fit)
        self._fit_positions = POSITIONS in inspect.signature(fit).parameters
        self.seeded = self._fit_seed is not None or self._make_seed is not None
        self.output = "values" if callable(getattr(example, "predict", None)) else None
        if self._labels is None and "required" in (self._fit_labels, self._risk_labels):
            raise InvalidInputError(
                f"train: {type(example).__name__} takes labels, and the set has none; pass an "
                f"(X, y) pair, or let its fit and risk take X only."
            )

    def fit_one(self, positions: NDArray[np.intp], seed: int) -> Any:
        """Train a copy; what it is given are copies of the rows."""
        model = self._fresh(seed)
        given = [take_rows(part, positions) for part in self._fit_parts]
        if self._fit_seed is None and not self._fit_positions:
            model.fit(*given)
            return model
        named: dict[str, Any] = {}
        if self._fit_seed is not None:
            named[self._fit_seed] = seed
        if self._fit_positions:
            named[POSITIONS] = positions
        model.fit(*given, **named)
        return model

    def prepare(self, test: Instances, role: str = "test") -> Prepared:
        """Return features and labels as ``risk`` takes them.

        Raises
        ------
        InvalidInputError
            If the features are not in the training set's form, or labels are missing.
        """
        features = same_kind(test.features(role), self._features, role)
        check_features(features, self._features, role)
        labels = test.labels()
        if labels is None and self._risk_labels == "required":
            raise InvalidInputError(f"{role}: the set has no labels; pass an (X, y) pair.")
        numbers = labels is not None and labels.dtype.kind in "biuf"
        given = (features,) if labels is None or self._risk_labels == "no" else (features, labels)
        inputs = tuple(_protected(part) for part in given)
        return Prepared(inputs, labels if numbers else None, test.ids)

    def risks_one(self, model: Any, test: Prepared) -> Values:
        """Return what ``risk`` says, ``(T,)``; :meth:`risks` sees to it that it is finite.

        Raises
        ------
        InvalidInputError
            If it is not one number an instance.
        """
        risks = as_numpy(model.risk(*test.inputs))
        if risks.shape != test.ids.shape or risks.dtype.kind not in "biuf":
            raise InvalidInputError(
                f"{type(model).__name__}.risk must return one number for each of the "
                f"{len(test)} instances, of shape ({len(test)},); got {risks.dtype} of shape "
                f"{risks.shape}. Do not reduce it."
            )
        return risks

    def risks(self, fitted: Fitted, test: Prepared) -> Values:
        """Return what ``risk`` says of each, ``(K, T)``; NaN: failed.

        Raises
        ------
        InvalidInputError
            If it is not one number an instance.
        NonFiniteError
            If one is NaN or infinite.
        """
        risks = super().risks(fitted, test)
        finite = np.isfinite(risks)
        if finite.all():
            return risks
        for model, row in zip(fitted.models, finite, strict=True):
            if model is not None and not row.all():
                raise NonFiniteError(
                    f"{type(model).__name__}.risk is NaN or infinite on the instances "
                    f"{listed(test.ids[~row].tolist())}; bound it, or let fit raise an exception "
                    f"where training diverges: such submodels are left out and counted."
                )
        return risks

    def outputs_one(self, model: Any, test: Prepared) -> Values:
        """Return what ``predict`` says, ``(T, ...)``.

        Raises
        ------
        MethodCapabilityError
            If there is no such method, or it does not return numbers.
        """
        if self.output is None:
            return super().outputs_one(model, test)
        found = as_numpy(model.predict(test.inputs[0]))
        if found.dtype.kind not in "biuf" or found.shape[:1] != (len(test),):
            raise MethodCapabilityError(
                f"{type(model).__name__}.predict must return numbers, with one entry for each of "
                f"the {len(test)} instances; got {found.dtype} of shape {found.shape}. Use "
                f"utility='risk'."
            )
        return found.astype(np.float64)

    def constant(self, kind: Empty) -> Fitted:
        """Return an untrained copy for ``"init"``.

        Raises
        ------
        MethodCapabilityError
            For the others: the object's risk is its own.
        """
        if kind == "init":
            return Fitted([self._fresh(0)], 1)
        raise MethodCapabilityError(
            f"empty={kind!r}: what a model of the user's own is worth without training instances "
            f"is not known. Give the utility of the empty set as a number (minus its risk), or "
            f"empty='init' if risk can be asked of an untrained object."
        )

    def _fresh(self, seed: int) -> Any:
        """Return an object that was not trained."""
        return self._make() if self._make_seed is None else self._make(**{self._make_seed: seed})


def _maker(model: Any) -> tuple[Callable[..., Any], str | None]:
    """Return what makes an untrained object, and the name of the seed that it takes."""
    if isinstance(model, type) or (callable(model) and not hasattr(model, "fit")):
        return model, _seed_of(model)
    if callable(getattr(model, "clone", None)):
        return copy.deepcopy(model).clone, None
    if callable(getattr(model, "get_params", None)):
        from sklearn.base import clone

        given = model.get_params()
        states = [name for name in given if name == "seed" or name.endswith("random_state")]
        cloner = _Cloner(clone(model), clone, tuple(states))
        return cloner, "seed" if states else None
    learned = [name for name in getattr(model, "__dict__", {}) if name.endswith("_")]
    if any(not name.startswith("_") for name in learned):
        warnings.warn(
            f"{type(model).__name__} seems to be fitted (it has {listed(learned)}): every copy "
            f"starts from what it learned. Give an unfitted object, or its class.",
            UserWarning,
            stacklevel=4,
        )
    copier = _SimpleCloner if _is_simple(model) else _Cloner
    return copier(copy.deepcopy(model), copy.deepcopy), None


def _is_simple(model: Any) -> bool:
    """Whether an object is no more than its attributes, none of which anything can change."""
    kind = type(model)
    usual = ("__new__", "__reduce__", "__reduce_ex__", "__getstate__", "__setattr__")
    return (
        all(getattr(kind, name, None) is getattr(object, name, None) for name in usual)
        and not any(
            "__slots__" in vars(base) or "__copy__" in vars(base) or "__deepcopy__" in vars(base)
            for base in kind.__mro__
        )
        and all(type(value) in UNCHANGING for value in vars(model).values())
    )


class _Cloner:
    """Copies one object, and can be sent to a worker."""

    def __init__(
        self, model: Any, copier: Callable[[Any], Any], states: tuple[str, ...] = ()
    ) -> None:
        self._model = model
        self._copier = copier
        self._states = states

    def __call__(self, seed: int = 0) -> Any:
        model = self._copier(self._model)
        if self._states:
            model.set_params(**dict.fromkeys(self._states, seed % LARGEST_STATE))
        return model


class _SimpleCloner(_Cloner):
    """Copies a simple object, ten times faster than a deep copy."""

    def __call__(self, seed: int = 0) -> Any:
        new = object.__new__(type(self._model))
        new.__dict__.update(self._model.__dict__)
        return new


def _protected(part: Any) -> Any:
    """Return a view that cannot be written to: every submodel is given the same test set."""
    if isinstance(part, np.ndarray):
        part = part.view()
        part.setflags(write=False)
    return part


def _method(model: Any, name: str) -> Callable[..., Any]:
    method = getattr(model, name, None)
    if callable(method):
        return method  # type: ignore[no-any-return]
    raise InvalidInputError(
        f"model: {type(model).__name__} has no method {name!r}; it needs fit(X, y) and risk(X, y), "
        f"which returns the risk of each instance, (T,)."
    )


def _takes_labels(method: Callable[..., Any], name: str) -> Labels:
    """Return whether a method takes a second argument beside X, the labels."""
    given = [
        parameter
        for parameter in inspect.signature(method).parameters.values()
        if parameter.kind is not parameter.VAR_KEYWORD
        and parameter.kind is not parameter.KEYWORD_ONLY
        and parameter.name not in (*SEEDS, POSITIONS)
    ]
    if not given:
        raise InvalidInputError(f"model: its method {name!r} must take X, or X and y.")
    second = given[1] if len(given) > 1 else given[0]
    if second.kind is second.VAR_POSITIONAL:
        return "optional"
    if len(given) == 1:
        return "no"
    if second.default is second.empty:
        return "required"
    return "optional" if second.name.lower() in LABELS else "no"


def _seed_of(function: Callable[..., Any]) -> str | None:
    """Return the name of the seed that a function takes."""
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):  # a built-in without a signature
        return None
    return next((name for name in SEEDS if name in parameters), None)
