"""Scores equal to kronfluence's where it is right, and right where it is not (peers)."""

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from gradient_checks import Written
from gradients.kfac_examples import basis, joint, matrix, second_moment
from kronfluence.analyzer import Analyzer, prepare_model
from kronfluence.arguments import FactorArguments, ScoreArguments
from kronfluence.task import Task
from references import Dense, flat, gradients_by_loop, relative_error
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from proponent.data import Instances
from proponent.gradients.capture import GradientCapture
from proponent.gradients.kfac import KroneckerFactors, Preconditioner, covariances
from proponent.models.torch import TorchModel

pytestmark = pytest.mark.filterwarnings("ignore:.*GradScaler:FutureWarning")

N, M, CLASSES = 19, 6, 3
SHIFT = 0.02


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Spare kronfluence its many garbage collections, nearly all of its time."""
    monkeypatch.setattr("kronfluence.utils.state.gc", SimpleNamespace(collect=lambda: 0))
    yield


@dataclass
class Case:
    """A module, its risk by torch's loss module, and Fisher labels that both libraries get."""

    module: nn.Module
    loss: nn.Module
    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    labels: Tensor = field(init=False)

    def __post_init__(self) -> None:
        classes = self.module(self.train[0]).detach().softmax(1).movedim(1, -1)
        drawn = torch.multinomial(classes.flatten(0, -2), 1).view(self.train[1].shape)
        self.labels = torch.where(self.train[1] == -100, -100, drawn)

    def risk(self, module: nn.Module, batch: Any) -> Tensor:
        """Return the cross-entropy, summed over what an instance consists of."""
        losses = nn.functional.cross_entropy(module(batch[0]), batch[1], reduction="none")
        return losses.flatten(1).sum(1) if losses.ndim > 1 else losses

    @property
    def model(self) -> TorchModel:
        """Only the parameters of the layers that kronfluence knows."""
        known = [part for part in self.module.modules() if isinstance(part, (nn.Linear, nn.Conv2d))]
        return TorchModel(self.module, loss=self.loss, parameters=known)

    def gradients(self, data: tuple[Tensor, ...]) -> Dense:
        """Return true gradients, one backward pass an instance."""
        return gradients_by_loop(self.module, self.risk, data, len(data[0]))

    def ready(self, method: Any, damping: float | None = SHIFT) -> Preconditioner:
        factors = KroneckerFactors.fit(self.model, self.train, method=method, labels=self.labels)
        return factors.prepare(factors.default_damping() if damping is None else damping)

    def scores(self, ready: Preconditioner) -> Tensor:
        """Return this library's products, (m, n)."""
        parts = [self._captured(self.test), self._captured(self.train)]
        return ready.query(parts[:1], [M]).meet(parts[1], N)[0].T

    def self_scores(self, ready: Preconditioner) -> Tensor:
        return ready.self_inner(self._captured(self.train), N)

    def _captured(self, data: tuple[Tensor, ...]) -> Any:
        model, instances = self.model, Instances.of(data)
        capture = GradientCapture(model, instances)
        with model.evaluating():
            return capture(model.prepare(instances.batch(slice(0, len(instances)))), instances.ids)


def mlp() -> Case:
    module = nn.Sequential(
        nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 5, bias=False), nn.Tanh(), nn.Linear(5, CLASSES)
    )
    return Case(module, nn.CrossEntropyLoss(), *_split(torch.randn(N + M, 5)))


def cnn() -> Case:
    module = nn.Sequential(
        nn.Conv2d(2, 3, 3, stride=2, padding=1),
        nn.Tanh(),
        nn.Conv2d(3, 4, 2, bias=False),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(16, CLASSES),
    )
    return Case(module, nn.CrossEntropyLoss(), *_split(torch.randn(N + M, 2, 5, 5)))


def sequence(*, masked: bool = False) -> Case:
    layers = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, CLASSES))
    module = Written(lambda self, x: self.layers(x).mT, layers=layers)  # classes on axis 1
    x, y = torch.randn(N + M, 7, 4), torch.randint(0, CLASSES, (N + M, 7))
    if masked:
        y[torch.arange(7) >= torch.randint(2, 8, (N + M, 1))] = -100
    return Case(module, nn.CrossEntropyLoss(reduction="sum"), (x[:N], y[:N]), (x[N:], y[N:]))


def called_twice() -> Case:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.shared(torch.tanh(self.shared(x)))))

    module = Written(forward, shared=nn.Linear(4, 4), head=nn.Linear(4, CLASSES))
    return Case(module, nn.CrossEntropyLoss(), *_split(2 * torch.randn(N + M, 4)))


def _split(x: Tensor) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    y = torch.randint(0, CLASSES, (len(x),))
    return (x[:N], y[:N]), (x[N:], y[N:])


def kronfluence(
    case: Case,
    folder: Path,
    method: str,
    damping: float | None = SHIFT,
    *,
    shared: bool = False,
    processed: bool = False,
    itself: bool = False,
) -> Tensor:
    """Return kronfluence's scores, (m, n), or self-influences, (n,), all in double precision."""

    class Given(Task):
        enable_post_process_per_sample_gradient = processed

        def compute_train_loss(self, batch: Any, model: nn.Module, sample: bool = False) -> Tensor:
            return case.risk(model, (batch[0], batch[2] if sample else batch[1])).sum()

        def compute_measurement(self, batch: Any, model: nn.Module) -> Tensor:
            return case.risk(model, batch).sum()

        def get_attention_mask(self, batch: Any) -> Any:
            return (batch[1] != -100).long() if batch[1].ndim > 1 else None

    module = prepare_model(copy.deepcopy(case.module), Given())
    analyzer = Analyzer("a", module, Given(), cpu=True, disable_tqdm=True, output_dir=str(folder))
    train, test = TensorDataset(*case.train, case.labels), TensorDataset(*case.test)
    kinds = ("activation_covariance", "gradient_covariance", "per_sample_gradient", "lambda")
    double = {f"{kind}_dtype": torch.float64 for kind in kinds}
    fitting = FactorArguments(strategy=method, has_shared_parameters=shared, **double)
    analyzer.fit_all_factors("f", train, per_device_batch_size=7, factor_args=fitting)
    kinds = ("per_sample_gradient", "precondition", "score")
    double = {f"{kind}_dtype": torch.float64 for kind in kinds}
    scoring = ScoreArguments(damping_factor=damping, **double)
    if itself:
        analyzer.compute_self_scores("s", "f", train, 7, score_args=scoring)
        return analyzer.load_self_scores("s")["all_modules"]
    analyzer.compute_pairwise_scores("s", "f", test, train, 4, 7, score_args=scoring)
    return analyzer.load_pairwise_scores("s")["all_modules"]


CASES: dict[str, Any] = {
    "mlp": mlp,
    "cnn": cnn,
    "sequence": sequence,
    "masked": lambda: sequence(masked=True),
}


@pytest.mark.parametrize("damping", [None, SHIFT])
@pytest.mark.parametrize("name", CASES)
def test_ekfac_scores_are_equal(name: str, damping: float | None, tmp_path: Path) -> None:
    """kronfluence's damping of None is a tenth of each layer's mean eigenvalue."""
    case = CASES[name]()
    theirs = kronfluence(case, tmp_path, "ekfac", damping)
    assert relative_error(case.scores(case.ready("ekfac", damping)), theirs) < 1e-10


@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_ekfac_self_influences_are_equal(name: str, tmp_path: Path) -> None:
    case = CASES[name]()
    theirs = kronfluence(case, tmp_path, "ekfac", itself=True)
    assert relative_error(case.self_scores(case.ready("ekfac")), theirs) < 1e-10


@pytest.mark.parametrize("damping", [None, SHIFT])
def test_kfac_scores_are_equal_for_one_position(damping: float | None, tmp_path: Path) -> None:
    case = mlp()
    theirs = kronfluence(case, tmp_path, "kfac", damping)
    assert relative_error(case.scores(case.ready("kfac", damping)), theirs) < 1e-10


@pytest.mark.parametrize("name", ["cnn", "sequence", "masked"])
def test_kfac_of_several_positions_differs_by_their_number(name: str, tmp_path: Path) -> None:
    """kronfluence divides both covariances by n times the positions S."""
    case = CASES[name]()
    theirs = kronfluence(case, tmp_path, "kfac")
    assert relative_error(case.scores(case.ready("kfac")), theirs) > 0.2
    sums = covariances(case.model, case.train, labels=case.labels)
    for part in sums.sums.values():
        part.left /= part.positions / N
    theirs_made_here = KroneckerFactors.from_covariances(case.model, sums).prepare(SHIFT)
    assert relative_error(case.scores(theirs_made_here), theirs) < 1e-10


def test_kfac_of_a_convolution_is_exact_where_it_can_be() -> None:
    """Where positions are independent it is the Gauss-Newton matrix, and theirs is too small."""
    net = nn.Conv2d(2, 1, 1)
    x = torch.randn(5, 2, 2, 2).repeat_interleave(4, 0)
    signs = torch.tensor([[1.0, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]])
    labels = net(x).detach() + signs.view(4, 1, 2, 2).repeat(5, 1, 1, 1) / 2**0.5
    model = TorchModel(net, loss=nn.MSELoss(reduction="sum"))
    factors = KroneckerFactors.fit(model, (x, labels), labels=labels, method="kfac")
    rows = x.flatten(2).mT.reshape(-1, 2)
    rows = torch.cat([rows, torch.ones(len(rows), 1)], 1)
    assert relative_error(matrix(factors.blocks[0]), 2 * rows.T @ rows / len(x)) < 1e-12


def _exact_scores(case: Case, ready: Preconditioner) -> Tensor:
    """Return scores by EK-FAC with per-instance gradients and dense matrices alone."""
    total = torch.zeros(M, N)
    fisher = case.gradients((case.train[0], case.labels))
    test, train = case.gradients(case.test), case.gradients(case.train)
    for block in ready.blocks:
        vectors = basis(block)
        rotated = vectors.T @ second_moment(block, fisher) @ vectors
        inverse = vectors @ torch.diag(1 / (rotated.diagonal() + SHIFT)) @ vectors.T
        total += joint(block, test) @ inverse @ joint(block, train).T
    return total


def test_a_module_that_is_called_twice(tmp_path: Path) -> None:
    """kronfluence keeps the products of one call only, whatever it is told of shared parameters."""
    case = called_twice()
    ready = case.ready("ekfac")
    found, exact = case.scores(ready), _exact_scores(case, ready)
    assert relative_error(found, exact) < 1e-10
    theirs = kronfluence(case, tmp_path / "told", "ekfac", shared=True)
    assert relative_error(theirs, exact) > 0.1
    # It is right by the way that forms the gradients.
    theirs = kronfluence(case, tmp_path / "formed", "ekfac", shared=True, processed=True)
    assert relative_error(theirs, found) < 1e-10


def test_all_parameters_together(tmp_path: Path) -> None:
    """The scores of a model are the sums over layers: none is left out, none counted twice."""
    case = mlp()
    identity = kronfluence(case, tmp_path, "identity")
    test, train = flat(case.gradients(case.test)), flat(case.gradients(case.train))
    assert relative_error(identity, test @ train.T) < 1e-10
    huge = 1e9
    found = case.scores(case.ready("ekfac", huge)) * huge
    assert relative_error(found, identity) < 1e-7
