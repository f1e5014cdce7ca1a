"""Does differentiating a training predict what the training would have been without an image?

A small network is trained on scikit-learn's digits for 500 recorded steps, by SGD and by Adam.
Then it is trained anew without each of the training images: from the same first parameters, by
the same batches, the image's weight 0 and the divisor of its batch kept. For some test images the
true changes of the risk are ranked, and so is what each method predicts from the recorded run.
About a minute on one core; `--quick` takes some seconds, and fewer images (`--n-train`) less time.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.functional import cross_entropy

import proponent as pp
from proponent.datasets import digits
from proponent.evaluation import loo_correlation
from proponent.progress import progress

BATCH = 25
RESAMPLES = 10_000
STATES = 10  # that TracInCP and SOURCE look at, beside the final one
TRAININGS: dict[str, Callable[[Iterable[Tensor]], torch.optim.Optimizer]] = {
    "SGD": lambda parameters: torch.optim.SGD(parameters, lr=0.1),
    "momentum": lambda parameters: torch.optim.SGD(parameters, lr=0.02, momentum=0.9),
    "Adam": lambda parameters: torch.optim.Adam(parameters, lr=0.002),
}
HYDRA, FAST, SGD_INFLUENCE = "HyDRA", "HyDRA, fast", "SGD-Influence"
Matrix = NDArray[np.float64]


class Data(NamedTuple):
    train: pp.Instances
    test: pp.Instances


def load_data(n_train: int, n_test: int, seed: int) -> Data:
    images, labels = digits()
    order = np.random.default_rng(seed).permutation(len(labels))[: n_train + n_test]
    pixels = images.reshape(-1, 64).astype(float)  # float64: one image of many makes little odds
    train, test = (
        pp.Instances.of((pixels[rows], labels[rows]), ids=rows)
        for rows in (order[:n_train], order[n_train:])
    )
    return Data(train, test)


def new_network(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)).double()


def draw_batches(n_train: int, steps: int, seed: int) -> list[Tensor]:
    """Return the positions of each step's images: epoch after epoch, in random order."""
    generator = torch.Generator().manual_seed(seed)
    found: list[Tensor] = []
    while len(found) < steps:
        found += torch.randperm(n_train, generator=generator).split(BATCH)
    return found[:steps]


def train_recorded(
    training: str, data: Data, batches: Sequence[Tensor], path: Path, seed: int
) -> pp.TrainingRun:
    network = new_network(seed)
    optimizer = TRAININGS[training](network.parameters())
    images, labels = data.train.batch(slice(None))
    recorder = pp.Recorder(
        path, network, optimizer, loss="cross_entropy", train=data.train, every=1, overwrite=True
    )
    with recorder as run:
        for batch in batches:
            optimizer.zero_grad()
            cross_entropy(network(images[batch]), labels[batch]).backward()
            run.step(batch)
            optimizer.step()
    return pp.TrainingRun.load(path, network)


def train_without(
    training: str, data: Data, batches: Sequence[Tensor], left_out: Tensor, seed: int
) -> dict[str, Tensor]:
    """Return the parameters (k, *shape) of k networks, trained without an image each.

    ``left_out`` (k,) are positions in the training set; -1 leaves nothing out. All are trained at
    once: these optimizers do not mix the entries of a tensor.
    """
    network = new_network(seed)
    first = dict(network.named_parameters())
    parameters = {
        name: value.detach().repeat(len(left_out), *[1] * value.ndim)
        for name, value in first.items()
    }
    optimizer = TRAININGS[training](parameters.values())
    images, labels = data.train.batch(slice(None))

    def loss(own: Mapping[str, Tensor], x: Tensor, y: Tensor, weights: Tensor) -> Tensor:
        risks = cross_entropy(functional_call(network, own, (x,)), y, reduction="none")
        return (weights * risks).sum() / len(y)

    gradient = vmap(grad(loss), in_dims=(0, None, None, 0))
    for batch in progress(batches, description=f"{training}, without each image"):
        weights = (batch != left_out[:, None]).double()
        found = gradient(parameters, images[batch], labels[batch], weights)
        for name, value in parameters.items():
            value.grad = found[name]
        optimizer.step()
    return parameters


def leave_one_out(
    training: str, data: Data, batches: Sequence[Tensor], seed: int
) -> tuple[Matrix, dict[str, Tensor]]:
    """Return what each image's absence adds to the test risks, (n_test, n_train).

    And the parameters of the network that was trained on all images beside the others.
    """
    network = new_network(seed)
    images, labels = data.test.batch(slice(None))
    left_out = torch.arange(-1, len(data.train))
    parameters = train_without(training, data, batches, left_out, seed)
    with torch.no_grad():
        outputs = vmap(lambda own: functional_call(network, own, (images,)))(parameters)
        risks = vmap(lambda output: cross_entropy(output, labels, reduction="none"))(outputs)
    whole = {name: value[0] for name, value in parameters.items()}
    return (risks[1:] - risks[0]).T.numpy(), whole


def methods(training: str, steps: int, explicit: bool) -> dict[str, pp.InfluenceMethod]:
    """Return what is compared; all but influence functions are given the recorded run."""
    states = list(range(1, steps + 1, max(1, steps // STATES)))
    found: dict[str, pp.InfluenceMethod] = {
        HYDRA: pp.HyDRA(),
        FAST: pp.HyDRA("fast"),
        SGD_INFLUENCE: pp.SGDInfluence(),
        "SOURCE": pp.SOURCE(checkpoints=states),
        "influence functions": pp.InfluenceFunctions(),
        "TracIn": pp.TracIn(),
        "TracInCP": pp.TracInCP(checkpoints=states),
    }
    if training == "Adam":
        del found["SOURCE"]  # is for SGD alone
    elif explicit:
        found["SOURCE, explicit"] = pp.SOURCE(solver="explicit", checkpoints=states)
    return found


def predict(
    run: pp.TrainingRun, data: Data, training: str, *, explicit: bool, seed: int
) -> tuple[dict[str, Matrix], dict[str, float]]:
    """Return what each method predicts, (n_test, n_train), and how many seconds it took."""
    predicted, seconds = {}, {}
    for name, method in methods(training, len(run.steps), explicit).items():
        start = perf_counter()
        recorded = not isinstance(method, pp.InfluenceFunctions)
        method.fit(run if recorded else run.model, data.train)
        predicted[name] = np.asarray(method.influence(data.test).values, dtype=float)
        seconds[name] = perf_counter() - start
    shape = len(data.test), len(data.train)
    predicted["random"] = np.random.default_rng(seed).normal(size=shape)
    return predicted, seconds | {"random": 0.0}


def rank_correlations(predicted: Mapping[str, Matrix], truth: Matrix) -> pd.DataFrame:
    """Return Spearman's correlation over training images: a row a test image, a column a method."""
    return pd.DataFrame(
        {
            name: loo_correlation(values, truth).per_test_spearman
            for name, values in predicted.items()
        }
    )


def interval(values: Matrix, seed: int) -> tuple[float, float, float]:
    """Return the mean over test images, and a 95 % bootstrap interval over them."""
    drawn = np.random.default_rng(seed).integers(len(values), size=(RESAMPLES, len(values)))
    low, high = np.quantile(values[drawn].mean(axis=1), [0.025, 0.975])
    return float(values.mean()), float(low), float(high)


def table_of(correlations: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Return each method's mean correlation, and by how much the unrolled ones are ahead of it.

    The differences are paired: of the same test images.
    """
    rows = {}
    for name in correlations:
        rows[name] = _named(("mean", "low", "high"), interval(_of(correlations, name), seed))
        for ahead in (HYDRA, FAST):
            if name in (HYDRA, SGD_INFLUENCE, ahead):
                continue
            paired = _of(correlations, ahead) - _of(correlations, name)
            columns = (f"{ahead} ahead", f"{ahead} ahead, low", f"{ahead} ahead, high")
            rows[name] |= _named(columns, interval(paired, seed))
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("method")


def _named(columns: Sequence[str], values: Sequence[float]) -> dict[str, float]:
    return dict(zip(columns, values, strict=True))


def _of(correlations: pd.DataFrame, name: str) -> Matrix:
    return correlations[name].to_numpy(dtype=float)


def show(table: pd.DataFrame, seconds: Mapping[str, float]) -> None:
    def cell(row: pd.Series, *columns: str) -> str:
        mean, low, high = (row[column] for column in columns)
        return "" if np.isnan(mean) else f"{mean:.3f} [{low:.3f}, {high:.3f}]"

    print(f"{'':20} {'correlation':23} {'HyDRA ahead by':23} {'fast HyDRA ahead by':23} seconds")
    for name, row in table.iterrows():
        cells = [cell(row, "mean", "low", "high")]
        for ahead in (HYDRA, FAST):
            cells.append(cell(row, *(f"{ahead} ahead{end}" for end in ("", ", low", ", high"))))
        print(f"{name:20} {''.join(f'{text:24}' for text in cells)}{seconds[str(name)]:7.1f}")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="of images, networks and batches")
    parser.add_argument("--n-train", type=int, default=500, help="images, each left out once")
    parser.add_argument("--n-test", type=int, default=50)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--training", nargs="+", choices=list(TRAININGS), default=["SGD", "Adam"])
    parser.add_argument("--explicit", action="store_true", help="SOURCE with whole matrices too")
    parser.add_argument("--out", type=Path, default=Path("results/unrolled"), help="a directory")
    parser.add_argument("--quick", action="store_true", help="SGD alone, 100 images, 100 steps")
    options = parser.parse_args(arguments)
    if options.quick:
        options.n_train, options.n_test, options.steps = 100, 20, 100
        options.training = ["SGD"]
    out, seed = options.out, options.seed
    torch.set_num_threads(1)  # more threads only slow so small a network down
    out.mkdir(parents=True, exist_ok=True)

    data = load_data(options.n_train, options.n_test, seed)
    batches = draw_batches(len(data.train), options.steps, seed)
    print(
        f"{len(data.train)} training images, {len(data.test)} test images; MLP 64-32-10, float64, "
        f"{len(batches)} steps of {BATCH}."
    )
    for training in options.training:
        run = train_recorded(training, data, batches, out / f"run-{training}", seed)
        start = perf_counter()
        truth, whole = leave_one_out(training, data, batches, seed)
        took = perf_counter() - start
        apart = max(
            float((value - whole[name]).abs().max().detach())
            for name, value in run.model.module.named_parameters()
        )
        predicted, seconds = predict(run, data, training, explicit=options.explicit, seed=seed)
        correlations = rank_correlations(predicted, truth)
        table = table_of(correlations, seed)
        correlations.set_index(data.test.ids).rename_axis("image").to_csv(
            out / f"correlations-{training}.csv"
        )
        table.to_csv(out / f"table-{training}.csv")
        risk, test_risk = (float(run.model.risks(part).mean()) for part in data)
        print(
            f"\n{training}: mean risk {risk:.3f} in training, {test_risk:.3f} in test; "
            f"{len(data.train)} trainings without an image: {took:.0f} s.\n"
            f"Trained beside them on all images, the network is the recorded one to {apart:.0e}."
        )
        print("Spearman correlation with leave-one-out, mean [95 % bootstrap] over test images")
        show(table, seconds)
    print(f"\nSaved in {out}: the runs, the correlation of each test image, and the tables.")


if __name__ == "__main__":
    main()
