"""The table of all methods: a row each, and the small tasks that every method has to manage.

A new method gets a row in ``ROWS``. What a row studies is made by a :class:`Task`: a training
set, a test set, and a network whose training was recorded.
"""

import copy
import hashlib
import pickle
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from contract_studies import Spread, adversarial_run, noisy_run, word_run
from numpy.typing import NDArray
from sklearn.ensemble import GradientBoostingClassifier
from sklearn.linear_model import LogisticRegression, Ridge
from torch import nn
from torch.nn import functional

import proponent as pp

Data = tuple[NDArray[Any], NDArray[Any]]


@dataclass(frozen=True)
class Row:
    """A method in the contract.

    Parameters
    ----------
    study : callable
        Returns what ``fit`` takes, of a task.
    settings : mapping
        Hyperparameters that suit the tasks; the defaults where none is named.
    memorizes : bool
        Whether the method has ``memorization()``.
    diagonal : bool
        Whether that is the diagonal of the influence of the training set on itself.
    any_test : bool
        Whether it answers for any test set; otherwise only for the one given before training.
    seeded : mapping
        Settings under which its seed, where it has one, changes the numbers; None: it decides only
        what is random in a training, and that of the study is not.
    replays : bool
        Whether it replays the recorded batches, in the mode they were trained in.
    own_groups : bool
        Whether it answers for groups although their influence is no sum.
    tolerance : float
        How far numbers may be apart that are to be the same, norm-wise and relatively.
    """

    study: Callable[["Task"], Any]
    settings: Mapping[str, Any] = field(default_factory=dict)
    memorizes: bool = True
    diagonal: bool = True
    any_test: bool = True
    seeded: Mapping[str, Any] | None = field(default_factory=dict)
    replays: bool = False
    own_groups: bool = False
    tolerance: float = 1e-12


class Task:
    """A network trained on a set; its training was recorded with ordinary and singleton batches.

    Everything is in float64. The network has a batch normalisation with statistics of its own
    and a dropout, and is left in training mode, as a user might.
    """

    def __init__(self, folder: Path, train: Data, test: Data, *, hidden: int, epochs: int) -> None:
        self.folder = folder
        self.train = train
        self.test = test
        self._hidden = hidden
        self._epochs = epochs
        self._trained: dict[int, nn.Module] = {}

    def run(self, batch_size: int = 5) -> pp.TrainingRun:
        """Return the recorded run, loaded into a network of its own."""
        return pp.TrainingRun.load(self._path(batch_size), self._network(batch_size))

    def model(self) -> pp.TorchModel:
        """Return the trained network with its risk."""
        return pp.TorchModel(self._network(5), loss="cross_entropy")

    def _path(self, batch_size: int) -> Path:
        return self.folder / f"batches of {batch_size}"

    def _network(self, batch_size: int) -> nn.Module:
        if batch_size not in self._trained:
            self._trained[batch_size] = self._train(batch_size)
        return copy.deepcopy(self._trained[batch_size])

    def _train(self, batch_size: int) -> nn.Module:
        torch.manual_seed(1)
        features, hidden = self.train[0].shape[1], self._hidden
        normalisation = nn.BatchNorm1d(hidden)
        net = nn.Sequential(
            nn.Linear(features, hidden),
            normalisation,
            nn.Tanh(),
            nn.Dropout(0.2),
            nn.Linear(hidden, 3),
        ).double()
        with torch.no_grad():
            net(torch.as_tensor(self.train[0]))  # gives the normalisation its statistics
        normalisation.eval()  # batches of one have none
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        order = torch.Generator().manual_seed(2)
        loader = torch.utils.data.DataLoader(
            pp.indexed(self.train), batch_size=batch_size, shuffle=True, generator=order
        )
        options: dict[str, Any] = {"train": self.train, "test": self.test, "every": 1}
        with pp.Recorder(
            self._path(batch_size), net, optimizer, loss="cross_entropy", **options
        ) as recorder:
            for _ in range(self._epochs):
                for indices, x, y in loader:
                    optimizer.zero_grad()
                    functional.cross_entropy(net(x), y).backward()
                    recorder.step(indices)
                    optimizer.step()
        optimizer.zero_grad()
        return net.train()


def small_task(folder: Path) -> Task:
    """Return 13 training and 9 test instances without meaning."""
    rng = np.random.default_rng(0)
    sets = [(rng.normal(size=(n, 4)), rng.integers(0, 3, size=n)) for n in (13, 9)]
    return Task(folder, *sets, hidden=6, epochs=2)


@dataclass(frozen=True)
class Flipped:
    """Handwritten digits, one of which has the label of another class."""

    task: Task
    position: int  # of the flipped instance in the training set
    alike: NDArray[np.int64]  # the training instances of its true class, itself among them


def flipped_task(folder: Path, position: int = 4) -> Flipped:
    """Return zeros, ones and twos with one wrong label; all tests are of its true class."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(n_class=3, return_X_y=True)
    images = images / 16
    train, true = images[:45], labels[:45]
    given = true.copy()
    given[position] = (true[position] + 1) % 3
    tests = np.flatnonzero(labels[60:] == true[position])[:12] + 60
    task = Task(folder, (train, given), (images[tests], labels[tests]), hidden=8, epochs=3)
    return Flipped(task, position, np.flatnonzero(true == true[position]))


def regression(task: Task) -> Any:
    """Return an estimator that is trained on subsets of the training set."""
    return LogisticRegression(C=1.0)


def recipe(task: Task) -> Any:
    """Return a network, not yet trained, and how it is."""
    features = task.train[0].shape[1]
    return pp.TorchLearner(
        partial(_small_network, features), _sgd, loss="cross_entropy", epochs=2, batch_size=5
    )


def _small_network(features: int) -> nn.Module:
    return nn.Sequential(nn.Linear(features, 6), nn.Tanh(), nn.Linear(6, 3)).double()


def _sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1)


def boosted(task: Task) -> Any:
    """Return boosted trees, trained, none of whose leaves is a single instance."""
    trees = GradientBoostingClassifier(n_estimators=8, min_samples_leaf=5, random_state=0)
    return trees.fit(*task.train)


ROWS: dict[str, Row] = {
    # Beyond the k nearest its values are 0, so that few neighbours say little.
    # Sums over tests and shards are rounded in another order.
    "LeaveOneOut": Row(regression, own_groups=True, seeded=None, tolerance=1e-9),
    "Downsampling": Row(regression, {"n_models": 240}, tolerance=1e-9),
    "GenerativeDownsampling": Row(regression, {"folds": 4, "aggregate": "mean"}, tolerance=1e-9),
    "Shapley": Row(regression, {"n_models": 600}, tolerance=1e-9),
    "TMCShapley": Row(regression, {"n_permutations": 100, "tolerance": 0}, tolerance=1e-9),
    "BetaShapley": Row(regression, {"n_models": 600}, tolerance=1e-9),
    "Banzhaf": Row(regression, {"n_models": 600}, tolerance=1e-9),
    "AME": Row(regression, {"n_models": 300, "estimator": "regression"}, tolerance=1e-9),
    "Datamodels": Row(regression, {"n_models": 300, "estimator": "ridge"}, tolerance=1e-9),
    "GroupTesting": Row(regression, {"n_models": 1500}, tolerance=1e-9),
    "OwenShapley": Row(regression, {"n_models": 1500}, tolerance=1e-9),
    "DeltaShapley": Row(regression, {"n_models": 1500}, tolerance=1e-9),
    "GradientShapley": Row(recipe, {"n_permutations": 12, "learning_rate": 0.05}, tolerance=1e-9),
    "KNNLeaveOneOut": Row(Task.model, {"k": 12}),
    "KNNShapley": Row(Task.model, {"k": 3}),
    "ThresholdKNNShapley": Row(Task.model, {"radius": 2.0}),
    "WeightedKNNShapley": Row(Task.model, {"k": 3}),
    "InfluenceFunctions": Row(
        Task.model, {"weight_decay": 0.05}, seeded={"curvature": "fisher"}, tolerance=1e-9
    ),
    "ArnoldiIF": Row(
        Task.model,
        {"rank": 20, "iterations": 40, "weight_decay": 0.05},
        seeded={"curvature": "fisher"},
        tolerance=1e-7,
    ),
    "RelatIF": Row(
        Task.model, {"weight_decay": 0.05}, seeded={"curvature": "fisher"}, tolerance=1e-9
    ),
    "RenormalizedIF": Row(
        Task.model, {"weight_decay": 0.05}, seeded={"curvature": "fisher"}, tolerance=1e-9
    ),
    "RescaledIF": Row(
        Task.model,
        {"weight_decay": 0.05},
        seeded={"solver": "ekfac", "damping": 1.0},
        tolerance=1e-9,
    ),
    "FastIF": Row(
        Task.model,
        {"weight_decay": 0.05, "solver": "explicit"},
        seeded={"curvature": "fisher"},
        tolerance=1e-9,
    ),
    "GroupIF": Row(
        Task.model, {"weight_decay": 0.05}, seeded={"curvature": "fisher"}, tolerance=1e-9
    ),
    "SecondOrderGroupIF": Row(
        Task.model,
        {"weight_decay": 0.05},
        seeded={"curvature": "fisher"},
        own_groups=True,
        tolerance=1e-9,
    ),
    # Refitted to the network's own outputs, the default, it never sees the labels.
    "RepresenterPoint": Row(Task.model, {"targets": "labels"}),
    "RPSLJE": Row(Task.model, {"damping": 0.05}),
    "HighDimensionalRepresenter": Row(
        lambda task: pp.SparseLastLayer(task.model(), 0.003, 0.5),
        {"refine": True},
        tolerance=1e-9,
    ),
    "TRAK": Row(Task.model, {"projection_dim": 1024, "damping": 1.0}, tolerance=1e-9),
    "LoGra": Row(Task.model, {"rank": 3}, tolerance=1e-9),
    "DataInf": Row(Task.model, tolerance=1e-9),
    "IdealTracIn": Row(lambda task: task.run(batch_size=1), memorizes=False, any_test=False),
    "TracIn": Row(Task.run),
    "TracInCP": Row(Task.run),
    "TracInLast": Row(Task.run),
    # Memorization is exact, the scores are projected.
    "TracInRP": Row(Task.run, {"k": 64}, diagonal=False),
    "GAS": Row(Task.run),
    "RenormalizedTracIn": Row(Task.run),
    "TracInWE": Row(word_run),
    "VAETracIn": Row(noisy_run, {"draws": 4}),
    "TracInAD": Row(Task.run, seeded=None),  # its seed decides the anomaly scores alone
    "HyDRA": Row(Task.run, replays=True),
    "SGDInfluence": Row(Task.run, replays=True),
    "SOURCE": Row(Task.run, {"segments": 2}, tolerance=1e-9),
    "BoostIn": Row(boosted, tolerance=1e-9),
    "LeafInfluence": Row(boosted, tolerance=1e-9),
    "LeafRefit": Row(boosted, own_groups=True, tolerance=1e-9),
    "TREX": Row(boosted, {"kernel": "lp"}, tolerance=1e-9),
    "TreeSim": Row(boosted, tolerance=1e-9),
    "GradientDot": Row(Task.model),
    "GradientCosine": Row(Task.model),
}


def make(name: str, **settings: Any) -> pp.InfluenceMethod:
    """Return a method, not fitted, with the settings of its row."""
    method: pp.InfluenceMethod = getattr(pp, name)(**{**ROWS[name].settings, **settings})
    return method


def fitted(name: str, task: Task, *, ids: Any = None, **settings: Any) -> pp.InfluenceMethod:
    """Return a method fitted to a task, to a network that nothing else holds."""
    return make(name, **settings).fit(ROWS[name].study(task), task.train, ids=ids)


def takes(name: str, setting: str) -> bool:
    """Whether a method has a hyperparameter."""
    return setting in make(name).get_params()


def network_of(study: Any) -> nn.Module | None:
    """Return the network of what a method studies; None where it is a recipe."""
    model = getattr(study, "model", study)
    module: nn.Module | None = model if isinstance(model, nn.Module) else None
    return module if module is not None else getattr(model, "module", None)


def random_states() -> tuple[Any, ...]:
    """Return the states of all global generators, short enough to be shown."""
    _, key, *position = np.random.get_state()
    parts = (
        repr(random.getstate()),
        f"{key.tolist()}, {position}",
        repr(torch.get_rng_state().tolist()),
    )
    return tuple(hashlib.sha256(part.encode()).hexdigest()[:12] for part in parts)


def state_of(study: Any) -> dict[str, Any]:
    """Return everything that a method has to leave as it was, to be compared by ``==``."""
    module = network_of(study)
    if module is None:
        return {"recipe": pickle.dumps(study), "random states": random_states()}
    tensors = [*module.named_parameters(), *module.named_buffers()]
    return {
        "tensors": {name: (id(t), t.data_ptr(), t.dtype, t.tolist()) for name, t in tensors},
        "flags": {name: p.requires_grad for name, p in module.named_parameters()},
        "gradients": {
            name: None if p.grad is None else (id(p.grad), p.grad.tolist())
            for name, p in module.named_parameters()
        },
        "modes": {name: part.training for name, part in module.named_modules()},
        "attributes": {name: sorted(vars(part)) for name, part in module.named_modules()},
        "tensor attributes": {name: sorted(vars(t)) for name, t in tensors},
        "hooks": {
            name: {key: list(value) for key, value in vars(part).items() if key.endswith("_hooks")}
            for name, part in module.named_modules()
        },
        "random states": random_states(),
        "autograd": (torch.is_grad_enabled(), torch.get_default_dtype()),
    }


@dataclass(frozen=True)
class Apart:
    """A method whose answer is not a matrix of tests and training instances.

    Parameters
    ----------
    ask : callable
        Returns the answer of a fitted method, of a task.
    settings : mapping
        Hyperparameters that suit the tasks.
    study : callable
        Returns what ``fit`` takes, of a task.
    columns : str
        What its columns are: ``"instances"`` of the training set, or something else.
    formula : str
        How its formula begins in the docstring.
    seeded : bool
        Whether its seed changes the numbers.
    lacks : str
        What it refuses to answer: the name of a method.
    """

    ask: Callable[[Any, Task], Any]
    settings: Mapping[str, Any] = field(default_factory=dict)
    study: Callable[[Task], Any] = regression
    columns: str = "instances"
    formula: str = "I("
    seeded: bool = True
    lacks: str = "influence"


APART: dict[str, Apart] = {
    "ConsistencyScore": Apart(
        lambda method, task: method.scores(),
        {"n_models": 90, "ratios": (0.3, 0.5, 0.7), "utility": "risk"},
        formula="C(",
    ),
    "DataOOB": Apart(
        lambda method, task: method.memorization(), {"n_models": 100}, formula=r"\psi_i"
    ),
    "ClassWiseShapley": Apart(
        lambda method, task: method.influence(task.test),
        {"n_permutations": 20, "tolerance": 0},
        formula=r"\psi_i",
        lacks="memorization",
    ),
    "GANInfluence": Apart(
        lambda method, task: method.influence(),
        {"metric": Spread(2.0), "greater_is_better": True},
        study=adversarial_run,
        lacks="memorization",
    ),
    "InfluenceSketching": Apart(
        lambda method, task: method.cooks_distance(),
        {"k": 2},
        study=lambda task: Ridge(),
        formula=r"D_i",
    ),
    "NeuronShapley": Apart(
        lambda method, task: method.influence(task.test),
        {"n_models": 60, "layers": ("0",), "estimator": "regression"},
        study=Task.model,
        columns="units",
        lacks="memorization",
    ),
    # The values for a sum of tests are not the sum of their values.
    "LeastCore": Apart(
        lambda method, task: method.influence(task.test, joint=True),
        {"n_models": 600},
        formula=r"\min_{x, e}",
        lacks="group_influence",
    ),
    "ShapleyInteraction": Apart(
        lambda method, task: method.influence(task.test),
        {"n_models": 3000, "tuples": [(0, 1), (2, 3)]},
        columns="tuples",
        lacks="memorization",
    ),
    "ShapleyTaylor": Apart(
        lambda method, task: method.influence(task.test),
        {"n_models": 3000, "tuples": [(0, 1), (2, 3)]},
        columns="tuples",
        lacks="memorization",
    ),
    "BanzhafInteraction": Apart(
        lambda method, task: method.influence(task.test),
        {"n_models": 3000, "tuples": [(0, 1), (2, 3)]},
        columns="tuples",
        lacks="memorization",
    ),
}
