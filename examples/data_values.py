"""Which of the labels that we bought are worth their money, and which do harm?

Six vendors label scikit-learn's table of breast cancer; one of them is careless. A logistic
regression is trained on thousands of subsets of the labels, and what it gets right on a validation
set says what each label, and each vendor, is worth. All methods share the models in a store.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_breast_cancer
from sklearn.dummy import DummyClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

import proponent as pp
from proponent.evaluation import (
    MislabelDetectionRow,
    by_opponents,
    flip_labels,
    mislabel_detection,
)

VENDORS = "ABCDEF"
EACH = 40  # labels of a vendor
CARELESS, WRONG, WRONG_ELSEWHERE = "C", 0.4, 0.05  # shares of wrong labels
CHECKED = 0.1  # of the labels: the worst, which are looked at again

Values = NDArray[np.float64]


class Data(NamedTuple):
    train: pp.Instances  # with the labels as the vendors give them; its ids are rows of the table
    validation: pp.Instances  # whose labels are right, as those of test are
    test: pp.Instances
    given: NDArray[np.int64]  # the labels of train
    truth: NDArray[np.int64]  # what they should be
    vendor: NDArray[np.str_]  # of each label of train

    @property
    def wrong(self) -> NDArray[np.bool_]:
        return np.asarray(self.given != self.truth)


class Answer(NamedTuple):
    influence: pp.Influence
    seconds: float


def load_data(seed: int) -> Data:
    table, labels = load_breast_cancer(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(labels))
    bought, *others = np.split(order, [len(VENDORS) * EACH, len(VENDORS) * EACH + 165])
    features = StandardScaler().fit(table[bought]).transform(table)
    vendor = np.repeat(list(VENDORS), EACH)
    given = labels[bought].copy()
    for number, name in enumerate(VENDORS):
        its, share = vendor == name, WRONG if name == CARELESS else WRONG_ELSEWHERE
        given[its] = flip_labels(given[its], share, n_classes=2, seed=10 * seed + number)[0]
    validation, test = (pp.Instances.of((features[ids], labels[ids]), ids=ids) for ids in others)
    train = pp.Instances.of((features[bought], given), ids=bought)
    return Data(train, validation, test, given, labels[bought], vendor)


def accuracy(model: Any, train: pp.Instances, test: pp.Instances) -> float:
    """Train with scikit-learn alone, and return the accuracy in percent."""
    fitted = model.fit(train.features("train"), train.labels())
    return 100 * float(fitted.score(test.features("test"), test.labels()))


def value_labels(
    model: LogisticRegression, data: Data, store: Path, *, n_models: int, seed: int
) -> dict[str, Answer]:
    """Return what each method says each label does to the whole validation set."""
    shared: dict[str, Any] = {"store": store, "seed": seed}
    methods = {
        "LeaveOneOut, Newton": pp.LeaveOneOut(shortcut="newton"),
        "LeaveOneOut, retrained": pp.LeaveOneOut(shortcut=None, **shared),
        "Shapley": pp.Shapley(n_models, utility="accuracy", **shared),
        # These look at the risk, the cross-entropy, of the same models as the one above, ...
        "Shapley of the risk": pp.Shapley(n_models, **shared),
        "BetaShapley(1, 4)": pp.BetaShapley(1, 4, sizes="uniform", n_models=n_models, **shared),
        # ... and these need subsets of other sizes.
        "Banzhaf": pp.Banzhaf(n_models // 4, **shared),
        "DataOOB": pp.DataOOB(n_models // 20, **shared),
    }
    answers = {}
    for name, method in methods.items():
        start = perf_counter()
        method.fit(model, data.train)
        found = (
            method.memorization()  # it asks the labels themselves, and no validation set
            if name == "DataOOB"
            else method.influence(data.validation, joint=True)
        )
        answers[name] = Answer(found, perf_counter() - start)
    return answers


def points(sums: Any, data: Data) -> Values:
    """Return sums over the validation set as points of the accuracy."""
    return np.asarray(100 / len(data.validation) * sums)


def show_methods(answers: dict[str, Answer], data: Data) -> None:
    suspicion = {name: by_opponents(answer.influence) for name, answer in answers.items()}
    detection = mislabel_detection(suspicion, data.wrong, checked=CHECKED)
    count = round(CHECKED * len(data.train))
    print(f"{'':22}  models:           seconds   wrong labels   area under")
    print(f"{'':22}  trained   reused            in worst {count}    the curve")
    for name, (influence, seconds) in answers.items():
        done, row = influence.diagnostics, detection[name]
        trained, reused = done.get("trained", 1), done.get("reused", 0)
        print(f"{name:22} {trained:8,} {reused:8,} {seconds:9.2f}", found_line(row, data))
    print(f"{'by chance':22} {'':27}", found_line(detection["random"], data))


def found_line(row: MislabelDetectionRow, data: Data) -> str:
    return f"{row.found.value * data.wrong.sum():12.1f} {row.auroc.value:14.2f}"


def show_worst(influence: pp.Influence, data: Data) -> None:
    values, errors = points(influence.values, data), points(influence.std_error, data)
    print("  row   vendor   label   is     points of accuracy")
    for at in np.argsort(values)[:8]:
        row, label, truth = data.train.ids[at], data.given[at], data.truth[at]
        verdict = "wrong" if label != truth else "right"
        print(
            f"{row:5}   {data.vendor[at]:6} {label:7}   {verdict}   "
            f"{values[at]:+.3f} ± {errors[at]:.3f}"
        )


def show_vendors(model: LogisticRegression, values: Values, data: Data, store: Path) -> None:
    """Print each vendor's value as one player, exactly, and the mean of its labels' values."""
    as_players = pp.Shapley(utility="accuracy", store=store)
    as_players.fit(model, data.train, groups=data.vendor)
    each = 100 * as_players.influence(data.validation).values  # (validation, vendors)
    errors = each.std(axis=0, ddof=1) / np.sqrt(len(each))
    print("vendor   wrong labels   value of the vendor   mean value of its labels")
    for column, name in enumerate(VENDORS):
        its = data.vendor == name
        mean, error = values[its].mean(), values[its].std(ddof=1) / np.sqrt(its.sum())
        print(
            f"{name:6} {data.wrong[its].sum():7} of {its.sum()}"
            f" {each[:, column].mean():+14.2f} ± {errors[column]:.2f}"
            f" {mean:+18.3f} ± {error:.3f}"
        )
    gain = accuracy(model, data.train, data.validation) - accuracy(
        DummyClassifier(strategy="prior"), data.train, data.validation
    )
    print(f"{'sum':6} {each.mean(axis=0).sum():+25.2f} {values.sum():+26.2f} (of all labels)")
    print(f"What the labels add to the accuracy, by scikit-learn alone: {gain:+.2f}")


def show_retraining(
    model: LogisticRegression, answers: dict[str, Answer], data: Data, *, seed: int
) -> None:
    n, count = len(data.train), round(CHECKED * len(data.train))
    removed = {
        "nothing": np.array([], dtype=int),
        f"{count} at random": np.random.default_rng(seed).permutation(n)[:count],
        **{
            f"the worst {count} by {name}": np.argsort(answers[name].influence.values)[:count]
            for name in ("LeaveOneOut, Newton", "Shapley", "BetaShapley(1, 4)", "DataOOB")
        },
        f"the {data.wrong.sum()} wrong ones": np.flatnonzero(data.wrong),
    }
    print(f"Accuracy on {len(data.test)} test instances when trained without\n")
    for what, rows in removed.items():
        kept = data.train.select(np.setdiff1d(np.arange(n), rows))
        print(f"  {what:40} {accuracy(model, kept, data.test):.1f} %")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="of the split, the flips, the subsets")
    parser.add_argument("--models", type=int, default=8000, help="for each Shapley value")
    options = parser.parse_args(arguments)
    seed = options.seed
    data = load_data(seed)
    model = LogisticRegression(C=0.1, tol=1e-8)
    print(
        f"{len(data.train)} labels from {len(VENDORS)} vendors, {data.wrong.sum()} of them wrong; "
        f"{len(data.validation)} validation instances.\n"
    )
    with TemporaryDirectory() as folder:
        store = Path(folder, "store")
        answers = value_labels(model, data, store, n_models=options.models, seed=seed)
        show_methods(answers, data)
        one, other = (answers[f"LeaveOneOut, {how}"] for how in ("Newton", "retrained"))
        pair = one.influence.values, other.influence.values
        print(
            f"Leave-one-out by a Newton step against {len(data.train)} retrainings: "
            f"correlation {np.corrcoef(*pair)[0, 1]:.4f}"
        )
        shapley = answers["Shapley"].influence
        values, errors = points(shapley.values, data), points(shapley.std_error, data)
        print(
            f"Shapley values have a standard deviation of {values.std():.3f} points; their mean "
            f"standard error is {errors.mean():.3f}.\n"
        )
        print("The worst labels by their Shapley values\n")
        show_worst(shapley, data)
        print("\nThe vendors, in points of accuracy\n")
        show_vendors(model, values, data, store)
    print()
    show_retraining(model, answers, data, seed=seed)


if __name__ == "__main__":
    main()
