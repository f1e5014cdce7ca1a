"""Which training images does a variational autoencoder owe an image to, and which stand twice?

Some training images of scikit-learn's digits are planted a second time. A small beta-VAE is trained
on them by a recorded loop, and VAE-TracIn is asked for the proponents of the planted images: with
no label and no look at the pixels, it should name their twins.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.utils.data import DataLoader

import proponent as pp
from proponent.datasets import digits
from proponent.progress import progress

TOP = 5


class Data(NamedTuple):
    train: pp.Instances  # images (64,); the last ones are the copies
    originals: NDArray[np.int64]  # positions in train of the images that stand twice
    copies: NDArray[np.int64]  # positions of their twins


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


def load_data(seed: int, *, n: int, planted: int) -> Data:
    """Return n images, of which ``planted`` stand twice."""
    images = digits()[0].reshape(-1, 64)
    rows = np.random.default_rng(seed).permutation(len(images))[: n - planted]
    train = np.concatenate([images[rows], images[rows[:planted]]])
    return Data(pp.Instances.of(train), np.arange(planted), np.arange(n - planted, n))


def train_vae(data: Data, path: Path, *, beta: float, epochs: int, seed: int) -> VAE:
    torch.manual_seed(seed)
    net, risk = VAE(), pp.BetaVAERisk(beta=beta)
    adam = torch.optim.Adam(net.parameters(), lr=2e-3)
    loader = DataLoader(pp.indexed(data.train), batch_size=50, shuffle=True)
    with pp.Recorder(path, net, adam, train=data.train, overwrite=True) as run:
        for _ in progress(range(epochs), description="training"):
            for indices, images in loader:
                adam.zero_grad()
                risk(net, images).mean().backward()  # in training mode its draws are fresh
                run.step(indices)
                adam.step()
    return net


def ranks_of_twins(influence: pp.Influence, data: Data) -> NDArray[np.int64]:
    """Return each twin's place among the proponents of a planted image, other than itself."""
    scores = np.array(influence.values)
    rows = np.arange(len(scores))
    scores[rows, data.originals] = -np.inf  # an image is its own proponent
    twins = scores[rows, data.copies]
    return 1 + (scores > twins[:, None]).sum(1)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="of the images, training and draws")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--beta", type=float, default=1.0)
    parser.add_argument("--draws", type=int, default=16)
    parser.add_argument("--out", type=Path, default=Path("results/vae"), help="a directory")
    parser.add_argument("--quick", action="store_true", help="400 images, 32 draws")
    options = parser.parse_args(arguments)
    n, planted = (400, 20) if options.quick else (1000, 50)
    epochs, draws = options.epochs, 32 if options.quick else options.draws
    seed, out = options.seed, options.out
    torch.set_num_threads(1)  # more threads only slow so small a network down

    data = load_data(seed, n=n, planted=planted)
    start = perf_counter()
    net = train_vae(data, out / "run", beta=options.beta, epochs=epochs, seed=seed)
    print(f"{n} training images, {planted} of them planted a second time.")
    print(f"Trained and recorded {epochs} epochs in {perf_counter() - start:.1f} s.")

    run = pp.TrainingRun.load(out / "run", net, risk=pp.BetaVAERisk(beta=options.beta))
    asked = data.train.select(data.originals)
    methods = {
        "VAETracIn": pp.VAETracIn(draws, seed=seed, checkpoints=pp.EveryKth(5)),
        "VAETracIn, 1 draw": pp.VAETracIn(1, seed=seed, checkpoints=pp.EveryKth(5)),
        "TracInCP, 1 shared draw": pp.TracInCP(checkpoints=pp.EveryKth(5)),
    }
    print(f"\nThe twin of a planted image among its proponents, of {n - 1} other training images")
    print(f"{'':24}  first   in the {TOP} strongest   median place   seconds")
    for name, method in methods.items():
        start = perf_counter()
        influence = method.fit(run, data.train).influence(asked)
        seconds = perf_counter() - start
        influence.save(out / name.lower().replace(", ", "-").replace(" ", "-"), overwrite=True)
        ranks = ranks_of_twins(influence, data)
        first, top = (ranks == 1).mean(), (ranks <= TOP).mean()
        print(f"{name:24}  {first:5.0%}   {top:17.0%}   {np.median(ranks):12.0f}   {seconds:7.1f}")
    by_chance = TOP / (n - 1)
    print(f"{'at random':24}  {1 / (n - 1):5.0%}   {by_chance:17.0%}   {n // 2:12}")

    print("\nMedian influence of an image on itself; sharing draws adds the variance of gradients")
    for name, method in methods.items():
        memorization = method.fit(run, data.train).memorization()
        print(f"{name:24}  {np.median(memorization.values):.4f}")
    print(f"\nSaved in {out}:")
    print("  run/  the recorded training: pp.TrainingRun.load(path, VAE(), risk=pp.BetaVAERisk())")
    print("  ...   what each method said: pp.Influence.load(path)")


if __name__ == "__main__":
    main()
