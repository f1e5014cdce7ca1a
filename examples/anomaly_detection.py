"""Does the influence of the training set tell which test images are of a class never seen?

One class of scikit-learn's digits is held out; a variational autoencoder is trained on the others
by a recorded loop, and TracInAD scores test images of all classes: a high score is to mark an
anomaly. Beside it stand two detectors that need no record: the autoencoder's own risk, and an
isolation forest. Every class is held out once. TracInAD does not do well here; see the table.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy.stats import t as student
from sklearn.ensemble import IsolationForest
from sklearn.metrics import roc_auc_score
from torch import nn
from torch.utils.data import DataLoader

import proponent as pp
from proponent.datasets import digits
from proponent.progress import progress

TRAINED_ON = 1000  # images of the other classes
RISK = pp.BetaVAERisk(likelihood="bernoulli", draws=16)
RISK_DETECTOR, FOREST = "risk of the VAE", "isolation forest"


class Data(NamedTuple):
    train: pp.Instances  # without the class that is held out
    test: pp.Instances
    anomalous: NDArray[np.bool_]  # which of the test images are of that class


class VAE(nn.Module):
    """Images of 64 pixels from 8 latent numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 16))
        self.up = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 64))

    def encode(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return self.down(images).chunk(2, 1)

    def decode(self, latent: torch.Tensor) -> torch.Tensor:
        return self.up(latent)


def load_data(held_out: int, seed: int) -> Data:
    images, labels = digits()
    order = np.random.default_rng([seed, held_out]).permutation(len(labels))
    ordinary = order[labels[order] != held_out]
    test = np.concatenate([ordinary[TRAINED_ON:], order[labels[order] == held_out]])
    train, test_set = (
        pp.Instances.of(images[rows].reshape(-1, 64), ids=rows)
        for rows in (ordinary[:TRAINED_ON], test)
    )
    return Data(train, test_set, labels[test] == held_out)


def train_vae(train: pp.Instances, path: Path, *, epochs: int, seed: int) -> pp.TrainingRun:
    torch.manual_seed(seed)
    net = VAE()
    adam = torch.optim.Adam(net.parameters(), lr=2e-3)
    loader = DataLoader(pp.indexed(train), batch_size=50, shuffle=True)
    with pp.Recorder(path, net, adam, train=train, overwrite=True) as run:
        for _ in range(epochs):
            for indices, images in loader:
                adam.zero_grad()
                RISK(net, images).mean().backward()  # in training mode its draws are fresh
                run.step(indices)
                adam.step()
    return pp.TrainingRun.load(path, net, risk=RISK)


def detectors(run: pp.TrainingRun, seed: int) -> dict[str, pp.TracInAD]:
    """Return TracInAD along all of the training, and along its second half, for some layers."""
    steps = [checkpoint.t for checkpoint in run.checkpoints if not checkpoint.final]
    late = steps[len(steps) // 2 :: 2]
    return {
        "TracInAD": pp.TracInAD(seed=seed, checkpoints=steps[::2]),
        "TracInAD, late": pp.TracInAD(seed=seed, checkpoints=late),
        "TracInAD, late, last layer": pp.TracInAD(seed=seed, checkpoints=late, parameters="last"),
    }


def suspicion(
    run: pp.TrainingRun, data: Data, seed: int
) -> tuple[dict[str, NDArray[np.float64]], dict[str, pp.AnomalyScores]]:
    """Return how anomalous each detector finds the test images, and the answers of TracInAD."""
    pixels, others = (part.features() for part in (data.train, data.test))
    forest = IsolationForest(random_state=seed).fit(pixels)
    found = {
        RISK_DETECTOR: run.model.risks(data.test).numpy(),
        FOREST: -forest.score_samples(others),
    }
    answers = {
        name: method.fit(run, data.train).anomaly_scores(data.test)
        for name, method in detectors(run, seed).items()
    }
    return found | {name: answer.values for name, answer in answers.items()}, answers


def table_of(aurocs: Mapping[int, Mapping[str, float]]) -> pd.DataFrame:
    """Return each detector's mean AUROC over held-out classes, with a 95 % interval of the mean."""
    by_class = pd.DataFrame(aurocs)  # a row a detector, a column a held-out class
    count = by_class.shape[1]
    mean = by_class.mean(axis=1)
    half = by_class.std(axis=1) / np.sqrt(count) * student.ppf(0.975, count - 1)
    summary = pd.DataFrame({"mean": mean, "low": mean - half, "high": mean + half})
    return summary.join(by_class).rename_axis("detector")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="of splits, training and samples")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--out", type=Path, default=Path("results/anomalies"), help="a directory")
    parser.add_argument("--quick", action="store_true", help="three classes, 6 epochs")
    options = parser.parse_args(arguments)
    classes, epochs = (range(3), 6) if options.quick else (range(10), options.epochs)
    out: Path = options.out
    torch.set_num_threads(1)  # more threads only slow so small a network down

    aurocs: dict[int, dict[str, float]] = {}
    start = perf_counter()
    for held_out in progress(classes, description="held-out classes"):
        data = load_data(held_out, options.seed)
        run = train_vae(data.train, out / f"run-{held_out}", epochs=epochs, seed=options.seed)
        scores, answers = suspicion(run, data, options.seed)
        aurocs[held_out] = {
            name: float(roc_auc_score(data.anomalous, values)) for name, values in scores.items()
        }
        frame = pd.DataFrame({**scores, "anomalous": data.anomalous}, index=data.test.ids)
        errors = {f"{name}, std_error": answer.std_error for name, answer in answers.items()}
        frame.assign(**errors).rename_axis("image").to_csv(out / f"scores-{held_out}.csv")
    table = table_of(aurocs)
    table.to_csv(out / "auroc.csv")
    print(f"{len(classes)} held-out classes, {epochs} epochs each: {perf_counter() - start:.0f} s.")
    print("\nAUROC for images of a held-out class (0.5: chance; above: a high score marks them)")
    each = "".join(f"{held_out:5}" for held_out in classes)
    print(f"{'':26}  mean  95 % interval  by held-out class\n{'':47}{each}")
    for name, row in table.iterrows():
        cells = "".join(f"{row[held_out]:5.2f}" for held_out in classes)
        interval = f"[{row['low']:.2f}, {row['high']:.2f}]"
        print(f"{name:26}  {row['mean']:.2f}  {interval:>13}{cells}")
    print(
        "\nThe mean gradient of the training set points to what is still to be learnt of ordinary\n"
        "images. Early in training it helps them more than it helps an image of another kind,\n"
        "whose score is then the lower one, against what the method supposes."
    )
    print(f"\nSaved in {out}:")
    print("  run-*/        the recorded trainings")
    print("  scores-*.csv  what each detector said of each test image")
    print("  auroc.csv     the table")


if __name__ == "__main__":
    main()
