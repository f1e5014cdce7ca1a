"""TracInAD: anomalies by what the training set does to them (survey section 5.2.1.3)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from numbers import Integral
from typing import TYPE_CHECKING, Any, ClassVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import override

from proponent._method_checks import check_finite
from proponent.card import MethodCard
from proponent.data import Instances
from proponent.dynamic.along_sampled_run import AlongSampledRun
from proponent.dynamic.anomaly_scores import AnomalyScores
from proponent.dynamic.instance_noise import generator
from proponent.exceptions import InvalidInputError
from proponent.gradients.path import Batch, PathPoint, batches
from proponent.gradients.products import Gradients, VectorQuery

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

    from proponent.dynamic.along_run import RunSettings

# The sample's gradients are averaged in so many groups, whose spread is the standard error.
GROUPS = 8


class TracInAD(AlongSampledRun):
    """Anomaly detection by the influence of the training set on a test instance.

    ``s(x) = sum_c eta_c <g_c, grad l(x)>`` with ``g_c`` the mean gradient of ``sample`` training
    instances at checkpoint c: the mean influence of the training set on x. As published, **a high
    score marks an anomaly**. For any risk: that of a classifier, an autoencoder, a variational
    autoencoder or a language model. ``influence`` gives each training instance's part,
    ``I(z_i, z_te) = sum_c eta_c <g_i, g_te>``.

    The score says how much training lowers the risk of x, and early in training that is often
    most for ordinary instances, whose scores are then the higher ones. Check the sign on instances
    that are known; late checkpoints suit what the method supposes better than early ones. On
    digits with a class held out the plain risk is the better detector
    (``examples/anomaly_detection.py``).

    :meth:`anomaly_scores` scores test instances, :meth:`score_samples` with scikit-learn's sign;
    :meth:`influence` gives the matrix that they are means of, which is that of :class:`TracInCP`
    (of :class:`VAETracIn` for a risk that draws).

    **Source** Thimonier et al., IJCNN 2022; survey section 5.2.1.3.

    **Differs from the paper in** the order of the sums. It sums products of gradients, here the
    gradients are summed first, which gives the same and needs a fraction of the products. The
    paper's code averages over layers, which is no inner product.

    The unit of a score is that of influence; only comparison with other scores has a meaning.
    Equal instances get equal scores, whatever set they are in.

    **Cost** For each checkpoint one forward-backward pass for each of the ``sample`` training
    instances and each test instance; eight gradients are held.

    Parameters
    ----------
    sample : int or None
        Training instances drawn at each checkpoint, anew and without replacement, of as many as
        there are; None takes all of them.
    draws : int
        Draws for each gradient, where the risk is one that draws (:class:`BetaVAERisk`).
    seed : int
        Fixes the samples and the draws.
    checkpoints, scale_by_batch, parameters, batch_size, products, memory, dtype, progress
        As in :class:`TracInCP`.

    Examples
    --------
    >>> import torch, proponent as pp
    >>> net = torch.nn.Sequential(torch.nn.Linear(6, 2), torch.nn.Linear(2, 6))
    >>> def risk(module, batch):
    ...     return (module(batch[0]) - batch[0]).square().sum(1)
    >>> x = torch.rand(10, 6)
    >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    >>> with pp.Recorder("runs/doc", net, optimizer, every=1, train=x,
    ...                  overwrite=True) as recorder:
    ...     for batch in torch.arange(10).split(5):
    ...         optimizer.zero_grad()
    ...         risk(net, (x[batch],)).mean().backward()
    ...         recorder.step(batch)
    ...         optimizer.step()
    >>> run = pp.TrainingRun.load("runs/doc", net, risk=risk)
    >>> scores = pp.TracInAD(sample=None).fit(run, x).anomaly_scores(torch.rand(4, 6))
    >>> scores.values.shape, scores.ranking().shape
    ((4,), (4,))
    """

    card: ClassVar[MethodCard] = MethodCard(
        name="TracInAD",
        survey_name="TracInAD",
        title="TracIn Anomaly Detection",
        family="dynamic",
        section="5.2.1.3",
        paper="Thimonier et al., IJCNN 2022",
        needs="a recorded training run (pp.Recorder)",
        full_complexity="O(spK), s sampled training instances, K checkpoints",
        incremental_complexity="O(pK), K checkpoints",
        space_complexity="O(p)",
        storage_complexity="O(pK), K checkpoints",
        assumes=("differentiable", "optimizer"),
        group=True,
        generative=True,
        original_sign="one score a test instance, high where it is an anomaly",
        cost=lambda *, n, n_test, checkpoints=1, **_: float(checkpoints * (n + n_test)),
    )

    def __init__(
        self,
        sample: int | None = 64,
        *,
        draws: int = 16,
        seed: int = 0,
        **settings: Unpack[RunSettings],
    ) -> None:
        super().__init__(**settings)
        self.sample = sample
        self.draws = draws
        self.seed = seed

    @override
    def fit(self, model: Any, train: Any, *, ids: Any = None) -> Self:
        size = self.sample
        if size is not None and (
            isinstance(size, bool) or not isinstance(size, Integral) or size < 1
        ):
            raise InvalidInputError(f"sample must be a positive integer or None; got {size!r}.")
        return super().fit(model, train, ids=ids)

    def anomaly_scores(self, test: Any, *, ids: Any = None) -> AnomalyScores:
        """Return how anomalous each test instance is, with standard errors.

        The errors are those of the sample of training instances, from the spread of eight parts
        of it; a test instance's own draws, where the risk has some, are taken as given.

        Parameters
        ----------
        test : (X, y), dict, Dataset or Instances
            The instances to be judged.
        ids : array-like of shape (n_test,), optional
            Unique labels of them.

        Raises
        ------
        NotFittedError
            If ``fit`` has not been called.
        InvalidInputError
            If the set is empty.
        NonFiniteError
            If a risk or a score is not finite; the message names the instances.
        """
        self._rows(None)
        instances = self._drawn(self._tests(test, ids))
        points = self._points(instances)
        scores, variances = np.zeros(len(instances)), np.zeros(len(instances))
        for point, query, sizes in self._mean_gradients(points):
            means = self._met(query, len(sizes), instances)
            total = sizes.sum()
            mean = means @ sizes / total
            scores += point.weight * mean
            variances += point.weight**2 * self._variance(means, mean, sizes)
        check_finite(scores, instances.ids, None, self.card.name, unscored=False)
        noticed = self._diagnostics(None) | {"points": [point.label for point in points]}
        return AnomalyScores(
            values=scores,
            std_error=np.sqrt(variances),
            ids=np.array(instances.ids),
            method=self.card.name,
            settings=self._settings(),
            diagnostics=noticed,
        )

    def score_samples(self, test: Any) -> NDArray[np.float64]:
        """Return the scores as scikit-learn's detectors do: the lower, the more anomalous.

        Parameters
        ----------
        test : (X, y), dict, Dataset or Instances
            The instances to be judged.

        Returns
        -------
        array of shape (n_test,)
            Minus the values of :meth:`anomaly_scores`.
        """
        return -self.anomaly_scores(test).values

    def _size(self) -> int:
        n = len(self.train_)
        return n if self.sample is None else min(int(self.sample), n)

    def _mean_gradients(
        self, points: tuple[PathPoint, ...]
    ) -> Iterator[tuple[PathPoint, VectorQuery, NDArray[np.float64]]]:
        """Go along the path with the mean gradients of the parts of each point's sample.

        The parts are drawn at random; their sizes differ by one at most.
        """
        n, size = len(self.train_), self._size()
        members: dict[str, NDArray[np.int64]] = {}
        parts: dict[str, NDArray[np.int64]] = {}
        for point in points:
            drawn = generator(self.seed, "sample", point.label).permutation(n)[:size]
            order = np.argsort(drawn)
            members[point.label] = drawn[order]
            parts[point.label] = (np.arange(size) % self._groups(size))[order]
        sampled = tuple(replace(point, members=members[point.label]) for point in points)
        for point, captured in self._walk(sampled, range(n)):
            part = parts[point.label]
            sizes = np.bincount(part).astype(np.float64)
            vectors: dict[str, Tensor] = {}
            for batch, gradients in captured:
                where = part[np.searchsorted(members[point.label], batch.positions)]
                weights = (np.arange(len(sizes))[:, None] == where) / sizes[:, None]
                _add(vectors, gradients, torch.from_numpy(weights))
                if not all(torch.isfinite(vector.sum()) for vector in vectors.values()):
                    self._refuse_gradients(gradients, batch, point)
            yield point, VectorQuery(vectors, self._products, point.scales), sizes

    def _met(self, query: VectorQuery, parts: int, instances: Instances) -> NDArray[np.float64]:
        """Return the products of the mean gradients with those of the test instances."""
        if not len(query):  # the risk depends on no parameter
            return np.zeros((len(instances), parts))
        products = []
        cut: list[Batch] = batches(len(instances), self._batch_size)
        for batch, gradients in self._captured(instances, cut):
            products.append(query.meet(gradients, len(batch))[0].double().cpu())
        return cast("NDArray[np.float64]", torch.cat(products).numpy())

    def _groups(self, size: int) -> int:
        """Return in how many parts a sample is averaged: as many as the memory holds, up to 8."""
        entries = sum(parameter.numel() for parameter in self.model_.selected.values())
        return max(1, min(GROUPS, size, self.memory // (2 * 8 * max(1, entries))))

    def _variance(
        self, means: NDArray[np.float64], mean: NDArray[np.float64], sizes: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Return the variance over samples of the mean of the parts' means."""
        total, groups = sizes.sum(), len(sizes)
        # Without replacement; what the draws of a risk add is there also for the whole set.
        left = 1 - total / len(self.train_) if self._noise is None else 1.0
        if left == 0.0 or groups == 1:
            return np.full(len(mean), np.nan if left else 0.0)
        spread = ((means - mean[:, None]) ** 2 @ sizes) / (total * (groups - 1))
        return np.asarray(spread * left)

    @override
    def _diagnostics(self, query: Any) -> dict[str, Any]:
        return super()._diagnostics(query) | {"sample": self._size()}


def _add(vectors: dict[str, Tensor], gradients: Gradients, weights: Tensor) -> None:
    """Add the weighted sums of a batch's gradients to ``vectors``, for weights (parts, batch)."""
    found: Mapping[str, Tensor] = {
        name: form.weighted_sum(weights.to(form.like)) for name, form in gradients.items()
    }
    for name, total in found.items():
        vectors[name] = vectors[name] + total if name in vectors else total
