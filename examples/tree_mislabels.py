"""Which labels of a table are wrong? A boosted ensemble that learnt them says so in a second.

A tenth of the training labels of scikit-learn's breast cancer table (569 cells, 30 measurements
each) is flipped. Gradient-boosted trees are trained on them as ever, by scikit-learn or by
LightGBM, XGBoost or CatBoost where they are installed; no training is recorded.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from importlib.util import find_spec
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_breast_cancer

import proponent as pp
from proponent.evaluation import (
    MislabelDetection,
    by_memorization,
    by_opponents,
    flip_labels,
    mislabel_detection,
)

LIBRARIES = ("scikit-learn", "lightgbm", "xgboost", "catboost")
SHARE = 0.1  # of the training labels: so many are flipped, and so many are checked
SHOWN = "BoostIn, itself"
SPLITS = 10  # of the table, for the accuracies after retraining
METHODS = {
    "BoostIn": pp.BoostIn(),
    "LeafInfluence": pp.LeafInfluence(),
    "LeafRefit": pp.LeafRefit(),
    "TREX": pp.TREX(),
}


class Data(NamedTuple):
    train: pp.Instances  # with some labels flipped; its ids are rows of the table
    validation: pp.Instances
    test: pp.Instances
    right: NDArray[np.int64]  # the true labels of train
    flipped: NDArray[np.bool_]  # which labels of train are wrong


def load_data(seed: int) -> Data:
    table, labels = load_breast_cancer(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(labels))
    train, *others = np.split(order, [300, 400])
    noisy, flipped = flip_labels(labels[train], SHARE, n_classes=2, seed=seed)
    validation, test = (pp.Instances.of((table[ids], labels[ids]), ids=ids) for ids in others)
    given = pp.Instances.of((table[train], noisy), ids=train)
    return Data(given, validation, test, labels[train], flipped)


def new_model(library: str) -> Any:
    """Return a classifier of a library, with the same few settings for all."""
    if library == "lightgbm":
        from lightgbm import LGBMClassifier

        return LGBMClassifier(n_estimators=30, num_leaves=8, n_jobs=1, verbose=-1)
    if library == "xgboost":
        from xgboost import XGBClassifier

        return XGBClassifier(n_estimators=30, max_depth=3, learning_rate=0.1, n_jobs=1)
    if library == "catboost":
        from catboost import CatBoostClassifier

        settings: dict[str, Any] = {"verbose": False, "allow_writing_files": False}
        return CatBoostClassifier(n_estimators=30, depth=3, learning_rate=0.1, **settings)
    from sklearn.ensemble import HistGradientBoostingClassifier

    return HistGradientBoostingClassifier(max_iter=30, max_leaf_nodes=8, random_state=0)


def fitted(library: str, rows: pp.Instances) -> Any:
    return new_model(library).fit(rows.features("train"), rows.labels())


def accuracy(model: Any, rows: pp.Instances) -> float:
    predicted = np.ravel(model.predict(rows.features("test")))
    return float((predicted == rows.labels()).mean())


def find_flipped(
    model: Any, data: Data
) -> tuple[dict[str, NDArray[np.float64]], MislabelDetection]:
    """Return how suspicious each method makes each label, and how right that is."""
    suspicion, seconds = {}, {}
    for name, method in METHODS.items():
        for of in ("itself", "validation"):
            start = perf_counter()
            method.fit(model, data.train)  # reads the trees: everything is in the time
            if of == "itself":  # a wrong label is learnt from its own row alone ...
                found = by_memorization(method.memorization())
            else:  # ... and harms rows whose labels are known to be right
                found = by_opponents(method.influence(data.validation, joint=True))
            suspicion[f"{name}, {of}"] = found
            seconds[f"{name}, {of}"] = perf_counter() - start
    chances = model.predict_proba(data.train.features("train"))
    given = data.train.labels()
    losses = -np.log(chances[np.arange(len(given)), given])
    detection = mislabel_detection(
        suspicion, data.flipped, losses=losses, seconds=seconds, checked=SHARE
    )
    return suspicion, detection


def accuracies_without(library: str, seed: int) -> dict[str, float]:
    """Return the test accuracy of one split with and without the most suspicious rows."""
    data = load_data(seed)
    n = len(data.train)
    count = round(SHARE * n)
    model = fitted(library, data.train)
    boost_in = pp.BoostIn().fit(model, data.train)
    itself = by_memorization(boost_in.memorization())
    validation = by_opponents(boost_in.influence(data.validation, joint=True))
    removed = {
        "nothing": np.array([], dtype=int),
        f"{count} at random": np.random.default_rng(seed).permutation(n)[:count],
        f"the worst {count} by BoostIn, itself": np.argsort(-itself)[:count],
        f"the worst {count} by BoostIn, validation": np.argsort(-validation)[:count],
        f"the {data.flipped.sum()} that were flipped": np.flatnonzero(data.flipped),
    }
    found = {}
    for what, rows in removed.items():
        kept = data.train.select(np.setdiff1d(np.arange(n), rows))
        found[what] = accuracy(fitted(library, kept), data.test)
    return found


def compare_retraining(library: str, seeds: Sequence[int]) -> None:
    """Print the mean test accuracy with and without the most suspicious rows."""
    splits = [accuracies_without(library, seed) for seed in seeds]
    print(f"Test accuracy when trained without (mean of {len(splits)} splits)")
    for what in splits[0]:
        gains = np.array([found[what] - found["nothing"] for found in splits])
        mean = np.mean([found[what] for found in splits])
        error = gains.std(ddof=1) / np.sqrt(len(gains))
        against = "" if what == "nothing" else f"  {100 * gains.mean():+.1f} ± {100 * error:.1f}"
        print(f"  {what:40} {mean:.1%}{against}")
    print("[± a standard error. Trees take so few wrong labels in their stride: compare the last")
    print("line, which knows them all. What is found here is the labels, not the accuracy.]")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="of the split and the flips")
    parser.add_argument(
        "--library",
        choices=[name for name in LIBRARIES if name == "scikit-learn" or find_spec(name)],
        default="scikit-learn",
        help="of those that are installed",
    )
    options = parser.parse_args(arguments)
    data = load_data(options.seed)
    model = fitted(options.library, data.train)
    print(f"{len(data.train)} rows, {data.flipped.sum()} of them with a wrong label.")
    print(f"Trees of {options.library}: {accuracy(model, data.train):.1%} of the labels as given,")
    print(f"{accuracy(model, data.test):.1%} of {len(data.test)} test rows.\n")

    suspicion, detection = find_flipped(model, data)
    print(detection)
    print("'itself': influence of a row on its own risk; 'validation': on 100 rows that are right.")
    print("On a table as small as this the loss of each row does about as well.\n")

    worst = np.argsort(-suspicion[SHOWN])[:8]
    names = load_breast_cancer().target_names
    print(f"The eight most suspicious labels by {SHOWN}")
    for at in worst:
        given, right = names[data.train.labels()[at]], names[data.right[at]]
        print(
            f"  row {data.train.ids[at]:3}  {given:9}  {'flipped' if given != right else 'right'}"
        )
    print()
    compare_retraining(options.library, range(options.seed, options.seed + SPLITS))


if __name__ == "__main__":
    main()
