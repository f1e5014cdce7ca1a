"""Which training images made a prediction wrong, and which training labels are wrong?

A tenth of the training labels of scikit-learn's digits is flipped. A small network is trained on
them by an ordinary loop that two added lines record, and the record answers both questions.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn.functional import cross_entropy, interpolate
from torch.utils.data import DataLoader

import proponent as pp
from proponent.datasets import digits
from proponent.evaluation import (
    MislabelDetection,
    by_memorization,
    by_opponents,
    flip_labels,
    mislabel_detection,
    retrain_on_subsets,
)
from proponent.progress import progress

SHARE = 0.1  # of the training labels: so many are flipped, and so many are checked
SELF_INFLUENCE = {
    "TracInCP self-influence": pp.TracInCP(),
    "TracInLast self-influence": pp.TracInLast(),
}
ON_VALIDATION = {
    "TracInCP on validation": pp.TracInCP(),
    "TracInLast on validation": pp.TracInLast(),
    "GAS on validation": pp.GAS(),
}
REMOVED_BY = "TracInCP self-influence"  # as the paper of TracIn finds wrong labels


class Data(NamedTuple):
    images: NDArray[np.float32]
    labels: NDArray[np.int64]  # all of them right
    train: pp.Instances  # with some labels flipped; its ids are positions in images
    validation: pp.Instances
    test: pp.Instances
    flipped: NDArray[np.bool_]  # which labels of train are wrong


def load_data(seed: int) -> Data:
    images, labels = digits()
    order = np.random.default_rng(seed).permutation(len(labels))
    train, *others = np.split(order, [1000, 1297])
    noisy, flipped = flip_labels(labels[train], SHARE, seed=seed)
    validation, test = (pp.Instances.of((images[ids], labels[ids]), ids=ids) for ids in others)
    noisy_train = pp.Instances.of((images[train], noisy), ids=train)
    return Data(images, labels, noisy_train, validation, test, flipped)


def new_network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.Flatten()),
        *(nn.Linear(512, 64), nn.ReLU(), nn.Linear(64, 10)),
    )


def train_network(train: pp.Instances, path: Path, *, epochs: int, seed: int) -> nn.Module:
    net = new_network(seed)
    sgd = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    loader = DataLoader(pp.indexed(train), batch_size=64, shuffle=True)
    # Recording adds this line ...
    with pp.Recorder(path, net, sgd, loss="cross_entropy", train=train, overwrite=True) as run:
        for _ in progress(range(epochs), description="training"):
            for indices, images, labels in loader:
                sgd.zero_grad()
                cross_entropy(net(images), labels).backward()
                run.step(indices)  # ... and this one
                sgd.step()
    return net


def predict(network: nn.Module, instances: pp.Instances) -> NDArray[np.int64]:
    images, _ = instances.batch(slice(None))
    with torch.no_grad():
        return network(images).argmax(1).numpy()


def hits(network: nn.Module, instances: pp.Instances) -> NDArray[np.float64]:
    return (predict(network, instances) == instances.labels()).astype(float)


def find_flipped(
    run: pp.TrainingRun, data: Data
) -> tuple[dict[str, pp.Influence], dict[str, NDArray[np.float64]], MislabelDetection]:
    """Return each method's answer, how suspicious it makes each label, and how right that is."""
    answers, suspicion, seconds = {}, {}, {}
    for name, method in SELF_INFLUENCE.items():
        start = perf_counter()
        answers[name] = method.fit(run, data.train).memorization()
        seconds[name] = perf_counter() - start
        # A wrong label is learnt from its own image alone ...
        suspicion[name] = by_memorization(answers[name])
    for name, method in ON_VALIDATION.items():
        start = perf_counter()
        answers[name] = method.fit(run, data.train).influence(data.validation, joint=True)
        seconds[name] = perf_counter() - start
        # ... and harms images whose labels are known to be right.
        suspicion[name] = by_opponents(answers[name])
    start = perf_counter()
    losses = run.model.risks(data.train).numpy()
    seconds["loss"] = perf_counter() - start
    detection = mislabel_detection(
        suspicion, data.flipped, losses=losses, seconds=seconds, checked=SHARE
    )
    return answers, suspicion, detection


def accuracies_without(
    rows: NDArray[np.intp], data: Data, *, epochs: int, seeds: Sequence[int]
) -> NDArray[np.float64]:
    """Remove some training images, train anew with each seed, and return the test accuracies."""
    kept = np.setdiff1d(np.arange(len(data.train)), rows)
    with TemporaryDirectory() as folder:

        def train(rows: NDArray[np.intp], seed: int) -> nn.Module:
            return train_network(data.train.select(rows), Path(folder), epochs=epochs, seed=seed)

        return retrain_on_subsets(
            train, lambda network: hits(network, data.test), [kept], seeds=seeds
        ).mean(axis=(0, 2))


def picture(image: NDArray[np.float32]) -> list[str]:
    """Draw an image (1, 8, 8) in 6 lines of 12 characters, two pixels in each."""
    ink = interpolate(torch.from_numpy(image)[None], (12, 12), mode="bicubic")[0, 0] > 0.55
    pairs = (2 * ink[::2].int() + ink[1::2].int()).tolist()
    return ["".join(" ▄▀█"[pair] for pair in line) for line in pairs]


def show(influence: pp.Influence, predicted: NDArray[np.int64], data: Data) -> None:
    """Draw each test image beside its three strongest proponents and opponents."""
    given = data.train.labels()
    sides = influence.proponents(k=3), influence.opponents(k=3)
    print(f"{'test image':13}│ {'strongest proponents':42}│ strongest opponents")
    for row, (test, guess) in enumerate(zip(influence.test_ids, predicted, strict=True)):
        label = data.labels[test]
        cells = [[*picture(data.images[test]), f"#{test}", f"label {label}", f"predicted {guess}"]]
        for side in sides:
            for index, score, position in zip(*(part[row] for part in side), strict=True):
                label, truth = given[position], data.labels[index]
                caption = f"label {label}" + (f", is {truth}" if label != truth else "")
                cells.append([*picture(data.images[index]), f"#{index}", caption, f"{score:+.3f}"])
        for line in zip(*cells, strict=True):
            first, *others = (text.ljust(13) for text in line)
            print(first, " ".join(others[:3]) + " ", " ".join(others[3:]).rstrip(), sep="│ ")
        print()


def compare_retraining(
    suspicion: NDArray[np.float64], data: Data, *, epochs: int, seeds: Sequence[int]
) -> None:
    """Print the test accuracy with and without the most suspicious training images."""
    n = len(data.train)
    count = round(SHARE * n)
    removed = {
        "nothing": np.array([], dtype=int),
        f"{count} at random": np.random.default_rng(seeds[0]).permutation(n)[:count],
        f"the worst {count} by {REMOVED_BY}": np.argsort(-suspicion)[:count],
        f"the {data.flipped.sum()} that were flipped": np.flatnonzero(data.flipped),
    }
    print(f"{'Test accuracy when trained without':42}  mean   each of {len(seeds)} seed(s)")
    for what, rows in removed.items():
        accuracies = accuracies_without(rows, data, epochs=epochs, seeds=seeds)
        each = "  ".join(f"{value:.1%}" for value in accuracies)
        print(f"{what:42}  {accuracies.mean():.1%}  {each}")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="of the split, flips and training")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--out", type=Path, default=Path("results/digits"), help="a directory")
    parser.add_argument("--quick", action="store_true", help="10 epochs, each retraining once")
    options = parser.parse_args(arguments)
    epochs, repeats = (10, 1) if options.quick else (options.epochs, 3)
    seed, out = options.seed, options.out
    torch.set_num_threads(1)  # more threads only slow so small a network down

    data = load_data(seed)
    print(f"{len(data.train)} training images, {data.flipped.sum()} of them with a wrong label.")
    start = perf_counter()
    network = train_network(data.train, out / "run", epochs=epochs, seed=seed)
    print(f"Trained and recorded {epochs} epochs in {perf_counter() - start:.1f} s.")
    print(f"Accuracy on the labels as given: {hits(network, data.train).mean():.1%}")
    print(f"Accuracy on {len(data.test)} test images:  {hits(network, data.test).mean():.1%}")

    print("\nWrong predictions, and the training images that helped and harmed them most, by GAS")
    print("(label 8, is 0: a 0 whose label was flipped to 8)\n")
    run = pp.TrainingRun.load(out / "run", network)
    mistakes = data.test.select(np.flatnonzero(hits(network, data.test) == 0)[:5])
    explained = pp.GAS().fit(run, data.train).influence(mistakes)
    show(explained, predict(network, mistakes), data)

    answers, suspicion, detection = find_flipped(run, data)
    print(detection)
    print("Until wrong labels are learnt by heart, loss does as well or better: try --epochs 10.\n")
    for name, answer in {"GAS on wrong predictions": explained, **answers}.items():
        answer.save(out / "influence" / name.lower().replace(" ", "-"), overwrite=True)
    detection.table().to_csv(out / "mislabel_detection.csv")

    seeds = range(seed, seed + repeats)
    compare_retraining(suspicion[REMOVED_BY], data, epochs=epochs, seeds=seeds)
    print(f"\nSaved in {out}:")
    print("  run/                    the recorded training: pp.TrainingRun.load(path, network)")
    print("  influence/              what each method said: pp.Influence.load(path)")
    print("  mislabel_detection.csv  the table")


if __name__ == "__main__":
    main()
