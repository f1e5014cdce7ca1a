"""Small modules, data and plain loops that the tests of the torch learner share."""

import numpy as np
import torch
from torch import nn

from proponent.data import Instances
from proponent.models.torch_learner import TorchLearner

N, FEATURES, CLASSES = 23, 4, 3


def table(n=N, classes=CLASSES, seed=0):
    """Features (float64) and labels that depend on them."""
    random = np.random.default_rng(seed)
    features = random.normal(size=(n, FEATURES))
    return features, np.abs(features[:, :classes]).argmax(1)


def mlp():
    return nn.Sequential(nn.Linear(FEATURES, 5), nn.Tanh(), nn.Linear(5, CLASSES))


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=0.01)


def learner(module=mlp, optimizer=sgd, **settings):
    settings.setdefault("batch_size", 4)
    if "steps" not in settings:
        settings.setdefault("epochs", 3)
    if "risk" not in settings:
        settings.setdefault("loss", "cross_entropy")
    settings.setdefault("dtype", torch.float64)
    return TorchLearner(module, optimizer, **settings)


def fitted(learner, data, counts, seeds):
    """Train and return the trainer, what it fitted, and the parameters by name."""
    trainer = learner.bind(Instances.of(data))
    found = trainer.fit(np.asarray(counts), np.asarray(seeds, np.int64))
    assert not found.failures, found.failures
    return trainer, found, trainer.to_arrays(found)


def subsets(k=6, n=N, seed=1):
    """Subsets of several sizes, the whole set and one instance among them; distinct seeds."""
    random = np.random.default_rng(seed)
    masks = random.random((k, n)) < np.linspace(0.2, 0.9, k)[:, None]
    masks[0], masks[1] = True, False
    masks[1, 3] = True
    return masks, np.arange(k) + 10


def batches_of(positions, seed, batch_size, epochs):
    """The batches of an ordinary training on a subset, epoch by epoch."""
    random = np.random.default_rng([seed, 1])
    for _ in range(epochs):
        order = random.permutation(positions)
        yield from (order[start : start + batch_size] for start in range(0, len(order), batch_size))


def plain_loop(module, optimizer, batches, features, labels):
    """An ordinary training loop; returns the trained module."""
    step = optimizer(list(module.parameters()))
    for batch in batches:
        step.zero_grad()
        logits = module(torch.from_numpy(features[batch]))
        nn.functional.cross_entropy(logits, torch.from_numpy(labels[batch])).backward()
        step.step()
    return module


def assert_same(left, right, tolerance=1e-12):
    assert left.keys() == right.keys()
    for name in left:
        np.testing.assert_allclose(left[name], right[name], rtol=0, atol=tolerance, err_msg=name)
