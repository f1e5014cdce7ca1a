"""What every submodel of a scikit-learn estimator is cloned from. scikit-learn is imported late."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from proponent.exceptions import InvalidInputError

# scikit-learn's limit for random states is 2^32 - 1, LightGBM's a signed 32-bit integer.
LARGEST_STATE = 2**31 - 1

THREADS = ("n_jobs", "nthread", "num_threads", "thread_count")
# Parameters that may name labels, which must then stay as they are.
NAME_LABELS = (
    *("class_weight", "class_weights", "classes", "labels", "pos_label", "neg_label", "scoring"),
    *("param_grid", "param_distributions"),
)
# Solvers that draw no random numbers, of classes that have others which do.
NOT_RANDOM = {
    "LogisticRegression": ("lbfgs", "newton-cg", "newton-cholesky"),
    "Ridge": ("auto", "svd", "cholesky", "lsqr", "sparse_cg", "lbfgs"),
    "RidgeClassifier": ("auto", "svd", "cholesky", "lsqr", "sparse_cg", "lbfgs"),
}


@dataclass(frozen=True)
class Template:
    """An unfitted estimator that asks for one thread, and what is known of it before it is fitted.

    Attributes
    ----------
    estimator : object
        A clone: fitting the user's own changes nothing here.
    states : tuple of str
        Parameters that are set from the seed.
    seeded : bool
        Whether one of them may change the model.
    kind : {"classifier", "regressor"}
    probabilistic : bool
        Whether it has ``predict_proba``.
    names_labels : bool
        Whether a parameter may name labels, such as the keys of ``class_weight``.
    """

    estimator: Any
    states: tuple[str, ...]
    seeded: bool
    kind: Literal["classifier", "regressor"]
    probabilistic: bool
    names_labels: bool

    @classmethod
    def of(cls, estimator: Any) -> Template:
        """Return the template of an estimator, fitted or not.

        Raises
        ------
        InvalidInputError
            If it cannot be cloned, or does not say whether it is a classifier or a regressor.
        """
        from sklearn.base import clone

        kind = kind_of(estimator)
        try:
            fresh = clone(estimator)
        except (TypeError, RuntimeError) as error:
            raise InvalidInputError(
                f"estimator: {type(estimator).__name__} cannot be cloned ({error}). Its __init__ "
                f"must store each parameter under its own name and do nothing else, as "
                f"scikit-learn's do; or give an object with fit and risk to pp.UserLearner."
            ) from error
        states, fixed, random = _nested_settings(fresh)
        settings = {**fixed, **dict.fromkeys(states, 0)}
        if settings:
            fresh.set_params(**settings)
        return cls(
            fresh,
            tuple(states),
            random,
            kind,
            hasattr(fresh, "predict_proba"),
            any(_names_labels(name, value) for name, value in _parameters(fresh).items()),
        )

    def fresh(self, seed: int) -> Any:
        """Return an unfitted estimator whose random states are the seed, modulo 2^31 - 1."""
        from sklearn.base import clone

        estimator = clone(self.estimator)
        if self.seeded:
            estimator.set_params(**dict.fromkeys(self.states, seed % LARGEST_STATE))
        return estimator


def kind_of(estimator: Any) -> Literal["classifier", "regressor"]:
    """Return what an estimator is by scikit-learn's tags.

    Raises
    ------
    InvalidInputError
        If it is neither.
    """
    from sklearn.base import is_classifier, is_regressor

    if isinstance(estimator, type):
        raise InvalidInputError(
            f"estimator: got the class {estimator.__name__}; pass an instance, such as "
            f"{estimator.__name__}()."
        )
    try:
        found = is_classifier(estimator), is_regressor(estimator)
    except Exception:  # no tags: an object of its own that follows the interface
        said = getattr(estimator, "_estimator_type", None)
        probabilities = said is None and hasattr(estimator, "predict_proba")
        found = said == "classifier" or probabilities, said == "regressor"
    if found[0]:
        return "classifier"
    if found[1]:
        return "regressor"
    raise InvalidInputError(
        f"estimator: {type(estimator).__name__} says neither that it is a classifier nor that it "
        f"is a regressor; let it inherit scikit-learn's ClassifierMixin or RegressorMixin (before "
        f"BaseEstimator), or give an object with fit and risk to pp.UserLearner."
    )


def _nested_settings(estimator: Any) -> tuple[list[str], dict[str, Any], bool]:
    """Return the parameters that take the seed, those that are set once, and if the seed counts."""
    parameters = _parameters(estimator)
    states: list[str] = []
    fixed: dict[str, Any] = {}
    random = False
    for name, value in parameters.items():
        prefix, last = _split(name)
        owner = parameters.get(prefix[:-2], estimator)
        if last.endswith("random_state"):
            states.append(name)
            random = random or _is_random(owner)
        elif last in THREADS and not type(owner).__module__.startswith("sklearn."):
            fixed[name] = 1  # None is all of them in XGBoost and LightGBM
        elif last in THREADS and value is not None:
            fixed[name] = None  # one; some classes warn of any number
    # An estimator alone is its own owner; those inside it stand under their names.
    owners = {"": estimator, **{f"{name}__": value for name, value in parameters.items()}}
    for prefix, owner in owners.items():
        package = _package(owner)
        if package == "catboost":
            more = _catboost(owner.get_params())
            states += [f"{prefix}{name}" for name in more.pop("states")]
            fixed |= {f"{prefix}{name}": value for name, value in more.items()}
            random = True
        elif package == "lightgbm" and not {"verbose", "verbosity"} & set(owner.get_params()):
            fixed[f"{prefix}verbosity"] = -1  # else it complains of every small subset
    return sorted(set(states)), fixed, random


def _catboost(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return CatBoost's settings; it lists only the parameters that were given."""
    found: dict[str, Any] = {"allow_writing_files": False}
    if not {"thread_count", "n_jobs", "nthread", "num_threads"} & set(given):
        found["thread_count"] = 1
    if not {"verbose", "logging_level", "silent", "verbose_eval"} & set(given):
        found["logging_level"] = "Silent"
    found["states"] = () if "random_state" in given else ("random_seed",)
    return found


def _is_random(owner: Any) -> bool:
    """Whether an estimator with a random state may use it."""
    kind = next((k for k in type(owner).__mro__ if k.__module__.startswith("sklearn.")), None)
    quiet = NOT_RANDOM.get(kind.__name__, ()) if kind else ()
    return getattr(owner, "solver", None) not in quiet


def _names_labels(name: str, value: Any) -> bool:
    last = _split(name)[1]
    if last not in NAME_LABELS or value is None:
        return False
    if isinstance(value, str) and value in ("balanced", "balanced_subsample", "loss"):
        return False
    if last.startswith("param_"):  # a search over class weights
        return any(inner in str(value) for inner in ("class_weight", "pos_label"))
    return True


def _split(name: str) -> tuple[str, str]:
    """Return the prefix of a nested parameter, ``outer__`` or nothing, and its own name."""
    before, separator, last = name.rpartition("__")
    return before + separator, last


def _parameters(estimator: Any) -> dict[str, Any]:
    takes_deep = "deep" in inspect.signature(estimator.get_params).parameters
    return dict(estimator.get_params(deep=True) if takes_deep else estimator.get_params())


def _package(owner: Any) -> str:
    """Return the package of a boosting estimator, also of a subclass of one."""
    if isinstance(owner, type) or not hasattr(owner, "get_params"):
        return ""
    packages = {kind.__module__.partition(".")[0] for kind in type(owner).__mro__}
    return next((name for name in ("catboost", "lightgbm") if name in packages), "")
