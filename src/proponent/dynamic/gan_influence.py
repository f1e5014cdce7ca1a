"""Influence on generative adversarial networks (survey section 5.2.2.3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from typing_extensions import override

from proponent.card import MethodCard
from proponent.data import Instances
from proponent.dynamic.gan.adjoint import Adjoint
from proponent.dynamic.gan.metric_gradients import Metric, MetricGradients
from proponent.dynamic.gan.replay import AdversarialReplay
from proponent.dynamic.gan.run import AdversarialRun
from proponent.dynamic.unrolled.watch import Watch
from proponent.exceptions import InvalidInputError
from proponent.method import InfluenceMethod
from proponent.progress import progress

if TYPE_CHECKING:
    from typing_extensions import Self

MEMORY = 512 * 2**20
COPIES = 10  # of a row's adjoint that are held at once: with Adam's moments and what passes through


def _cost(*, n_test: int, T: int, batch_size: int = 1, **_: Any) -> float:
    return float(T * batch_size * (2 + 2 * n_test))


@dataclass(frozen=True)
class _Traced:
    """What was found for all training instances: ``values`` (k, n), and what was noticed."""

    values: NDArray[np.float64]
    noticed: dict[str, Any]


class _Components(Instances):
    """The components of a metric that takes no test set, in place of test instances."""


class GANInfluence(InfluenceMethod):
    r"""What each training instance did for a metric of the generator, by going back the training.

    With :math:`\epsilon_i` the change of instance i's weight in the discriminator's loss, wherever
    the instance stood in a batch, :math:`V` the metric of the final generator,

    .. math::
        I(z_i) = \pm \frac{dV}{d\epsilon_i}
        = \pm \sum_{t : z_i \in B_t} \langle a_t, \partial_{\epsilon_i} g_t \rangle,

    where :math:`a_t` is the adjoint of step t's gradient: for plain gradient descent
    :math:`-\eta u_t`, with :math:`u_T = \nabla V` for the generator and 0 for the discriminator,
    and :math:`u \leftarrow u - \eta J_t^\top u`, :math:`J_t = \partial g_t / \partial \omega`. The
    Jacobian of the two players' gradients is not symmetric, so these are vector-Jacobian products.
    Steps of one player after the other and of both at once, momentum, weight decay, Adam, AdamW
    and clipping are gone through as they were taken.

    **Source** Terashita et al., ICLR 2021, their sections 3 and 4; survey section 5.2.2.3.

    **Differs from the paper in** the sign; in weighting an instance's own term (removal keeps the
    divisor of the batch's mean and the generated instances); in momentum, AdamW and clipping; and
    in adding a value a test instance. The paper goes back one epoch: ``horizon``.

    Scores are ``(k, n_train)``: a row a component of the metric, or a test instance for a metric
    of the form ``metric(generator, batch)``. They are in units of the metric, estimates of its
    change if the instance were left out of the recorded batches; positive means that the training
    instance improves the metric, upwards if ``greater_is_better`` and downwards otherwise.

    What the running statistics of BatchNorm, and other buffers, owe to the training instances is
    not seen. The metric looks at the generator in evaluation mode, so where it has such buffers
    the result says so; with ``generator_mode="train"`` it does without running statistics.

    **Cost** For each step a replay of its forward and backward pass, and for each row two more;
    rows that fit the memory share a replay. Memory for as many states as it allows; the run needs
    two stored states or more. All training instances are found at once, for any ``top_k`` or
    ``shard``.

    Parameters
    ----------
    metric : callable
        Anything differentiable: ``metric(generator) -> () or (k,)`` for ``influence()``, or
        ``metric(generator, batch) -> (batch,)``, one value a test instance, for
        ``influence(test)``. What it draws from torch's global generator is seeded.
    greater_is_better : bool, optional
        Whether more of the metric is better; needed unless the metric has an attribute of that
        name, as :class:`KernelDistance` and its like have.
    horizon : int, optional
        Go back only so many steps; the influence before them is left out.
    generator_mode : "eval" or "train"
        The mode of the generator for the metric.
    memory : int
        Bytes, half for states of the training and half for adjoints.
    seed : int
        Seed of the metric's own draws.
    progress : bool, optional
        Whether to show a progress bar; None shows one on a terminal, when the work lasts.

    Examples
    --------
    >>> import torch, proponent as pp
    >>> train = (torch.randn(20, 2),)
    >>> generator, discriminator = torch.nn.Linear(3, 2), torch.nn.Linear(2, 1)
    >>> adam = [torch.optim.Adam(net.parameters(), lr=0.01) for net in (generator, discriminator)]
    >>> with pp.AdversarialTraining("runs/gan", generator, discriminator, *adam, loss="bce",
    ...                             noise=3, train=train, overwrite=True) as training:
    ...     training.run(steps=5, batch_size=10)
    >>> run = pp.AdversarialRun.load("runs/gan", generator, discriminator)
    >>> def spread(generator):
    ...     return generator(torch.randn(100, 3)).var(0).sum()
    >>> method = pp.GANInfluence(spread, greater_is_better=True)
    >>> method.fit(run, train).influence().shape
    (1, 20)
    """

    card: ClassVar[MethodCard] = MethodCard(
        name="GANInfluence",
        title="Influence for Generative Adversarial Networks",
        family="dynamic",
        section="5.2.2.3",
        paper="Terashita et al., ICLR 2021",
        needs="a recorded adversarial training (pp.AdversarialTraining, pp.AdversarialRun.load)",
        full_complexity="O(bpT)",
        incremental_complexity="O(bpT)",
        space_complexity="O(n + p log T)",
        storage_complexity="O(pK), K stored states",
        assumes=("differentiable", "optimizer"),
        group=True,
        generative=True,
        original_sign="the change of a metric on removal, so its sign is that of the metric",
        cost=_cost,
    )

    def __init__(
        self,
        metric: Metric | None = None,
        *,
        greater_is_better: bool | None = None,
        horizon: int | None = None,
        generator_mode: Literal["eval", "train"] = "eval",
        memory: int = MEMORY,
        seed: int = 0,
        progress: bool | None = None,
    ) -> None:
        self.metric = metric
        self.greater_is_better = greater_is_better
        self.horizon = horizon
        self.generator_mode = generator_mode
        self.memory = memory
        self.seed = seed
        self.progress = progress

    @override
    def fit(self, model: Any, train: Any, *, ids: Any = None) -> Self:
        """Take a recorded adversarial training and the training set it was recorded on.

        Parameters
        ----------
        model : AdversarialRun
            The recorded training, complete.
        train : (X,), (X, y), dict, Dataset or Instances
            The training set.
        ids : array-like of shape (n,), optional
            Unique labels of the training instances.

        Raises
        ------
        InvalidInputError
            If the model is of another kind, the set is empty, or a setting cannot be used.
        RunError
            If the run was recorded on another training set, or is not complete.
        """
        if not isinstance(model, AdversarialRun):
            raise self._wrong_kind(model)
        instances = Instances.of(train, ids=ids, role="train")
        if not len(instances):
            raise InvalidInputError("train: the set is empty; influence needs instances.")
        metric = self._checked_metric()
        model.require_complete(self.card.name)
        model.check_train(instances)
        self._replay = AdversarialReplay(model, instances, memory=self.memory // 2)
        self._asked = metric
        self.run_ = model
        self.train_ = instances
        return self

    def _checked_metric(self) -> Metric:
        """Return the metric; refuse settings that cannot be used."""
        if not callable(self.metric):
            raise InvalidInputError(
                f"metric: expected a callable metric(generator) or metric(generator, batch), such "
                f"as KernelDistance(...); got {self.metric!r}."
            )
        if not isinstance(self._is_score(), (bool, np.bool_)):
            raise InvalidInputError(
                "greater_is_better: say whether more of the metric is better (True) or worse "
                "(False), so that positive scores are helpful instances."
            )
        if self.generator_mode not in ("eval", "train"):
            raise InvalidInputError(
                f"generator_mode: expected 'eval' or 'train'; got {self.generator_mode!r}."
            )
        for name in ("horizon", "memory"):
            value = getattr(self, name)
            if value is None and name == "horizon":
                continue
            if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
                raise InvalidInputError(f"{name}: expected an integer of 1 or more; got {value!r}.")
        return self.metric

    def _is_score(self) -> Any:
        """Return whether more of the metric is better, as was said."""
        said = getattr(self.metric, "greater_is_better", None)
        return said if self.greater_is_better is None else self.greater_is_better

    @override
    def _tests(self, test: Any, ids: Any) -> Instances:
        if test is not None:
            return super()._tests(test, ids)
        components = np.arange(len(self._metric().values()))
        named = Instances.of((components,), ids=ids, role="metric")
        return _Components((components,), np.array(named.ids))

    @override
    def _query(self, instances: Instances) -> _Traced:
        blocks = self._metric().blocks(_tested(instances), self._rows_at_once())
        return self._trace(blocks)

    @override
    def _joint_query(self, instances: Instances) -> _Traced:
        total = self._metric().total(_tested(instances), self._rows_at_once())
        return self._trace([total])

    @override
    def _scores(self, query: _Traced, rows: range) -> NDArray[np.floating[Any]]:
        return query.values[:, rows.start : rows.stop].copy()

    @override
    def _joint_scores(self, query: _Traced, rows: range) -> NDArray[np.floating[Any]]:
        return query.values[0, rows.start : rows.stop].copy()

    @override
    def _diagnostics(self, query: Any) -> dict[str, Any]:
        return {} if query is None else dict(query.noticed)

    def _metric(self) -> MetricGradients:
        """Return the metric at the end of the training."""
        adversaries = self._replay.final()
        return MetricGradients(
            self._asked,
            adversaries.modules["generator"],
            adversaries.trained["generator"],
            training=self.generator_mode == "train",
            seed=self.seed,
        )

    def _rows_at_once(self) -> int:
        trained = self._replay.adversaries.trained.values()
        size = sum(value.nbytes for parameters in trained for value in parameters.values())
        return max(1, self.memory // 2 // (COPIES * size))

    def _trace(self, blocks: Any) -> _Traced:
        """Return the influence on each of the metric's rows, a pass back for each block."""
        steps = len(self.run_.moves)
        first = 1 if self.horizon is None else max(1, steps - self.horizon + 1)
        values: list[NDArray[np.float64]] = []
        metric: list[float] = []
        watch = Watch("adjoint of the metric", steps - first + 1, by=self.card.name)
        for found, gradient in blocks:
            metric += found.tolist()
            adjoint = Adjoint(self._replay.adversaries, gradient, watch)
            values.append(self._back(adjoint, len(found), first, steps))
            self._replay.final()
        sign = 1.0 if self._is_score() else -1.0
        report, seen = self._replay.report(), watch.report()
        noticed = {
            "metric": metric,
            "steps": steps - first + 1,
            "replay": report,
            **seen,
            "warnings": seen.get("warnings", []) + self._warnings(report, first),
        }
        return _Traced(sign * np.concatenate(values), noticed)

    def _back(self, adjoint: Adjoint, k: int, first: int, steps: int) -> NDArray[np.float64]:
        """Go back from the end; return the derivatives by the instances' weights, ``(k, n)``."""
        scores = torch.zeros(k, len(self.train_), dtype=torch.float64)
        moves = progress(
            self._replay.backward(first),
            total=steps - first + 1,
            description=self.card.name,
            enabled=self.progress,
        )
        for move in moves:
            found = adjoint.back(move, last=move.index == first)
            scores.index_add_(1, torch.from_numpy(move.indices.copy()), found.to(scores))
        values: NDArray[np.float64] = scores.numpy()
        return values

    def _warnings(self, report: dict[str, Any], first: int) -> list[str]:
        warnings = []
        if not report["bit_exact"]:
            warnings.append(
                f"the replay is not that of the recorded training: before step "
                f"{report['diverged_before_step']} it differs, by {report['largest_difference']} "
                f"at most (another machine, number of threads, loss or noise?); it went on from "
                f"each stored state"
            )
        if first > 1:
            warnings.append(f"what instances did before step {first} is left out (horizon)")
        statistics, others = self._moved_buffers()
        if statistics and self.generator_mode == "eval":
            warnings.append(
                f"the metric sees running statistics of the generator ({statistics}) whose "
                f"dependence on the training instances is not differentiated"
            )
        if others:
            warnings.append(
                f"buffers that the training changed are taken as given, not differentiated: "
                f"{others}"
            )
        return warnings

    def _moved_buffers(self) -> tuple[str, str]:
        """Return the generator's running statistics, and other buffers, that training changed."""
        start, end = self.run_.states[0].load(), self.run_.states[-1].load()
        found: dict[bool, list[str]] = {True: [], False: []}
        for player, module in self._replay.adversaries.modules.items():
            parts = dict(module.named_modules())
            for name, buffer in module.named_buffers():
                key = f"{player}/parameters/{name}"
                if not buffer.is_floating_point() or key not in start:
                    continue
                if not start[key].equal(end[key]):
                    owner = parts[name.rpartition(".")[0]]
                    statistics = isinstance(owner, nn.modules.batchnorm._NormBase)
                    if player == "generator" or not statistics:
                        found[statistics].append(f"{player}.{name}")
        return ", ".join(found[True]), ", ".join(found[False])


def _tested(instances: Instances) -> Instances | None:
    return None if isinstance(instances, _Components) else instances
