"""Do influences predict what training on half of the images does?

A small network is trained on scikit-learn's digits, and anew on many random halves of them. A
good influence estimate, made from the one network alone, sums over each half to what the networks
that were trained on it say of each test image, up to order: the linear datamodeling score.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call, grad, stack_module_state, vmap
from torch.nn.functional import cross_entropy

import proponent as pp
from proponent.datasets import digits
from proponent.evaluation import (
    LinearDatamodelingScore,
    flip_labels,
    linear_datamodeling_score,
    random_subsets,
)
from proponent.progress import progress

TOGETHER = 250  # networks that are trained at once
DAMPINGS = (0.0, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3)
GGN = "influence functions, GGN"
Outputs = NDArray[np.float64]


@dataclass(frozen=True)
class Recipe:
    """How a network is trained: SGD with momentum, the learning rate falling to 0."""

    hidden: tuple[int, ...] = (64,)
    epochs: int = 60
    batch_size: int = 50
    learning_rate: float = 0.1
    weight_decay: float = 1e-3

    def network(self, seed: int) -> nn.Sequential:
        torch.manual_seed(seed)
        widths = [64, *self.hidden, 10]
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(widths):
            layers += [nn.Linear(inputs, outputs), nn.ReLU()]
        return nn.Sequential(*layers[:-1])

    def optimizer(self, parameters: Any) -> torch.optim.SGD:
        return torch.optim.SGD(
            parameters, lr=self.learning_rate, momentum=0.9, weight_decay=self.weight_decay
        )

    def batches(self, size: int, seed: int) -> Iterator[tuple[Tensor, float]]:
        """Go through the batches' positions in a training set, with the learning rates."""
        generator = torch.Generator().manual_seed(seed)
        steps, step = -(-size // self.batch_size) * self.epochs, 0
        for _ in range(self.epochs):
            for positions in torch.randperm(size, generator=generator).split(self.batch_size):
                yield positions, self.learning_rate * (1 - step / steps)
                step += 1


class Data(NamedTuple):
    train: pp.Instances
    test: pp.Instances


def load_data(n_train: int, n_test: int, *, noise: float, seed: int) -> Data:
    images, labels = digits()
    images, order = images.reshape(-1, 64), np.random.default_rng(seed).permutation(len(images))
    train, test = order[:n_train], order[n_train : n_train + n_test]
    given = flip_labels(labels[train], noise, seed=seed)[0] if noise else labels[train]
    return Data(
        pp.Instances.of((images[train], given), ids=train),
        pp.Instances.of((images[test], labels[test]), ids=test),
    )


def train_network(recipe: Recipe, data: Data, path: Path, seed: int) -> pp.TrainingRun:
    """Train on all images by an ordinary loop, recorded for TracInCP."""
    network = recipe.network(seed)
    sgd = recipe.optimizer(network.parameters())
    images, labels = data.train.batch(slice(None))
    with pp.Recorder(path, network, sgd, loss="cross_entropy", train=data.train) as run:
        for positions, sgd.param_groups[0]["lr"] in recipe.batches(len(images), seed):
            sgd.zero_grad()
            cross_entropy(network(images[positions]), labels[positions]).backward()
            run.step(positions)
            sgd.step()
    return pp.TrainingRun.load(path, network)


def train_many(
    recipe: Recipe, data: Data, rows: NDArray[np.integer[Any]], seeds: Sequence[int]
) -> dict[str, Tensor]:
    """Train as many networks side by side as there are rows, each on the images of its row.

    The same steps as those of :func:`train_network`: SGD does not mix the entries of a tensor.
    """
    networks = [recipe.network(seed) for seed in seeds]
    stacked, _ = stack_module_state(networks)  # of each parameter (k, *shape)
    parameters = {name: value.detach() for name, value in stacked.items()}
    sgd = recipe.optimizer(parameters.values())

    def risk(own: Mapping[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return cross_entropy(functional_call(networks[0], own, (x,)), y)

    images, labels = data.train.batch(slice(None))
    chosen = torch.from_numpy(rows)
    steps = zip(*(recipe.batches(chosen.shape[1], seed) for seed in seeds), strict=True)
    for each in steps:
        batch = chosen.gather(1, torch.stack([positions for positions, _ in each]))
        sgd.param_groups[0]["lr"] = each[0][1]
        gradients = vmap(grad(risk))(parameters, images[batch], labels[batch])
        for name, value in parameters.items():
            value.grad = gradients[name]
        sgd.step()
    return parameters


def margins(recipe: Recipe, data: Data, parameters: Mapping[str, Tensor]) -> Outputs:
    """Return log(p / (1 - p)) of the true class, (k, n_test), of k networks side by side."""
    images, labels = data.test.batch(slice(None))
    network = recipe.network(0)
    with torch.no_grad():
        scores = vmap(lambda own: functional_call(network, own, (images,)))(parameters).double()
    true = labels.expand(len(scores), -1)[..., None]
    others = scores.scatter(-1, true, -torch.inf).logsumexp(-1)
    return (scores.gather(-1, true)[..., 0] - others).numpy()


def measure(
    recipe: Recipe, data: Data, subsets: NDArray[np.bool_], repeats: int, first_seed: int
) -> Outputs:
    """Train ``repeats`` networks on each subset, and return their margins (m, r, n_test)."""
    rows = np.stack([np.flatnonzero(subset) for subset in subsets]).repeat(repeats, axis=0)
    seeds = range(first_seed, first_seed + len(rows))
    found = []
    for start in progress(range(0, len(rows), TOGETHER), description="retraining"):
        part = slice(start, start + TOGETHER)
        parameters = train_many(recipe, data, rows[part], seeds[part])
        found.append(margins(recipe, data, parameters))
    return np.concatenate(found).reshape(len(subsets), repeats, -1)


def methods(recipe: Recipe) -> dict[str, pp.InfluenceMethod]:
    decay = recipe.weight_decay
    return {
        GGN: pp.InfluenceFunctions(weight_decay=decay),
        "influence functions, EK-FAC": pp.InfluenceFunctions("ekfac", weight_decay=decay),
        "influence functions, last layer": pp.InfluenceFunctions(
            weight_decay=decay, parameters="last"
        ),
        "TracInCP": pp.TracInCP(),
        "gradient cosine": pp.GradientCosine(),
        "gradient dot product": pp.GradientDot(),
    }


class Explained(NamedTuple):
    """What a method said of the networks that were trained on all images, one after the other."""

    influences: list[NDArray[np.floating[Any]]]
    damping: str  # for the first of them
    seconds: float  # on average


def as_text(damping: Any) -> str:
    """Return the damping that a method chose: one number, or one a layer."""
    if damping is None:
        return ""
    numbers = damping.values() if isinstance(damping, Mapping) else [damping]
    return ", ".join(f"{number:.1e}" if number else "0" for number in numbers)


def explain(recipe: Recipe, data: Data, runs: Sequence[pp.TrainingRun]) -> dict[str, Explained]:
    explained = {}
    for name, method in methods(recipe).items():
        influences, dampings, start = [], [], perf_counter()
        for run in runs:
            method.fit(run if isinstance(method, pp.TracInCP) else run.model, data.train)
            influences.append(method.influence(data.test).values)
            dampings.append(as_text(getattr(method, "damping_", None)))
        seconds = (perf_counter() - start) / len(runs)
        explained[name] = Explained(influences, dampings[0], seconds)
    shape = (len(runs), len(data.test), len(data.train))
    explained["random"] = Explained(list(np.random.default_rng(0).normal(size=shape)), "", 0.0)
    return explained


def show(
    explained: Mapping[str, Explained], subsets: NDArray[np.bool_], measured: Outputs
) -> dict[str, tuple[LinearDatamodelingScore, LinearDatamodelingScore]]:
    """Print and return how well each method's sums rank what was measured."""

    def score(influences: Sequence[NDArray[np.floating[Any]]]) -> LinearDatamodelingScore:
        return linear_datamodeling_score(np.mean(influences, axis=0), subsets, margins=measured)

    scores = {}
    print(f"{'':32} {'one network':21}  {'mean of networks':21}  seconds  damping")
    for name, (influences, damping, seconds) in explained.items():
        scores[name] = score(influences[:1]), score(influences)
        one, several = (str(found.score) for found in scores[name])
        print(f"{name:32} {one:21}  {several:21}  {seconds:7.1f}  {damping}".rstrip())
    return scores


def sweep(
    recipe: Recipe,
    data: Data,
    run: pp.TrainingRun,
    subsets: NDArray[np.bool_],
    measured: Outputs,
) -> None:
    """Print the score of GGN influence with other dampings than the library's."""
    print("\nGGN influence of one network, by damping added to the weight decay")
    for damping in DAMPINGS:
        if not damping + recipe.weight_decay:
            continue  # the matrix alone is singular
        method = pp.InfluenceFunctions(weight_decay=recipe.weight_decay, damping=damping)
        influence = method.fit(run.model, data.train).influence(data.test)
        found = linear_datamodeling_score(influence, subsets, margins=measured)
        print(f"{damping:8.1e}  {found.score}")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="of the images and all trainings")
    parser.add_argument("--hidden", type=int, nargs="+", default=[64], help="widths of the layers")
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--weight-decay", type=float, default=1e-3)
    parser.add_argument("--noise", type=float, default=0.0, help="share of labels to flip")
    parser.add_argument("--sweep", action="store_true", help="try other dampings too")
    parser.add_argument("--quick", action="store_true", help="few images, subsets and trainings")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)  # more threads only slow so small a network down
    n_train, n_test, m, repeats, networks = 800, 200, 200, 5, 5
    if options.quick:
        n_train, n_test, m, repeats, networks = 150, 40, 30, 2, 2
    recipe = Recipe(
        hidden=tuple(options.hidden), epochs=options.epochs, weight_decay=options.weight_decay
    )
    data = load_data(n_train, n_test, noise=options.noise, seed=options.seed)
    seeds = range(1000 * options.seed, 1000 * options.seed + networks)

    print(f"{len(data.train)} training and {len(data.test)} test images; {recipe}")
    subsets = random_subsets(n_train, m, seed=options.seed)
    start = perf_counter()
    measured = measure(recipe, data, subsets, repeats, first_seed=seeds.stop)
    print(
        f"Trained {repeats} networks on each of {m} random halves: {perf_counter() - start:.0f} s"
    )
    with TemporaryDirectory() as folder:
        runs = [train_network(recipe, data, Path(folder) / str(seed), seed) for seed in seeds]
        explained = explain(recipe, data, runs)
        print("\nLinear datamodeling score [95 % interval, over subsets and test images]")
        scores = show(explained, subsets, measured)
        ceiling = scores[GGN][0].noise_ceiling
        print(f"\nNoise ceiling, what a perfect prediction would score: {ceiling:.3f}")
        if options.sweep:
            sweep(recipe, data, runs[0], subsets, measured)


if __name__ == "__main__":
    main()
