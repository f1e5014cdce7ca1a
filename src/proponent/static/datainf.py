"""DataInf: influence functions with a mean of inverses for the inverse (Kwon et al. 2024)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import override

from proponent.card import MethodCard
from proponent.data import Instances
from proponent.exceptions import InvalidInputError
from proponent.gradients.fingerprint import fingerprint
from proponent.gradients.method import MEMORY, GradientMethod
from proponent.gradients.path import Batch, PathPoint, TestSet, batches
from proponent.gradients.products import GradientQuery, Gradients, VectorQuery, Way
from proponent.models.torch import ParameterChoice, TorchModel, check_finite
from proponent.static.mean_of_inverses import (
    MeanOfInverses,
    TrainingGradients,
    sample_error,
    self_products,
)

if TYPE_CHECKING:
    from typing_extensions import Self

# The paper's damping: the mean square of a gradient's entries over this.
DAMPING_DIVISOR = 10
# Training instances on which the approximation is compared with what it stands for, and the
# relative error beyond which there is a warning.
SAMPLE = 256
LARGE_ERROR = 0.5


@dataclass(frozen=True)
class MetSet(TestSet):
    """A test set whose gradients, in blocks, have met all training gradients.

    Attributes
    ----------
    blocks : tuple of MeanOfInverses
        Of consecutive test instances, or one of their sum.
    """

    blocks: tuple[MeanOfInverses, ...]


class DataInf(GradientMethod):
    r"""Influence functions with the mean of inverses in the place of the inverse.

    With the gradients g_i of the risk by each parameter (a weight, or a bias) and the empirical
    Fisher matrix ``(1/n) sum_j g_j g_j^T`` for the curvature, the inverse of the mean is replaced
    by the mean of the inverses, which are known:

        I(z_i, z_te) = (1/n) sum_parameters (1/d) [<g_te, g_i>
                       - (1/n) sum_j <g_te, g_j> <g_j, g_i> / (d + ||g_j||^2)]

    **Source** Kwon, Wu, Wu and Zou, "DataInf: efficiently estimating data influence in LoRA-tuned
    LLMs and diffusion models", ICLR 2024.

    **Differs from the paper in** scale, by 1/n, and in its computation by inner products of
    factors of gradients; the numbers are those of the formula.

    Scores are ``(n_test, n_train)``; positive means that the training instance lowers the test
    risk. They are meant to be leave-one-out differences of the risk, but the replacement is exact
    for one training instance alone, and good only where the damping is large: **its relative
    error can exceed 100 %, and with the paper's damping it may be a hundredfold**, so that the
    scores are all but those of :class:`GradientDot` in another scale (digits, a perceptron of 600
    training instances: 280-fold, correlation 0.3 with the exact inverse). The diagnostics compare
    it with the exact inverse on a sample of the training set, ``sample_error`` and
    ``sample_correlation``, and warn beyond 50 %. Use :class:`InfluenceFunctions` where the numbers
    matter.

    **Cost** Upfront a forward-backward pass over the training set; for a set of m test instances
    two more, of which the gradients are kept while they fit ``memory``, and per parameter and
    training instance the cheaper of n pairs of gradients and 2 m contractions.

    Parameters
    ----------
    damping : float, or mapping from parameter names, optional
        d, in units of the mean risk's curvature. None: for each parameter a tenth of the mean
        square of its gradients' entries, ``mean_i ||g_i||^2 / (10 p)``, as in the original. It is
        reported.
    parameters, batch_size, memory, dtype, progress
        As in :class:`GradientDot`.
    products : "auto", "pair" or "materialise"
        As in :class:`GradientDot`; ``pair`` also meets the sum over j pair by pair, without
        vectors of the parameters' size, where the training gradients fit ``memory``.

    Examples
    --------
    >>> import torch, proponent as pp
    >>> module = torch.nn.Linear(2, 3)
    >>> train = torch.randn(10, 2), torch.randint(3, (10,))
    >>> model = pp.TorchModel(module, loss="cross_entropy")
    >>> pp.DataInf().fit(model, train).influence(train).shape
    (10, 10)
    """

    card: ClassVar[MethodCard] = MethodCard(
        name="DataInf",
        title="DataInf",
        family="static",
        paper="Kwon, Wu, Wu and Zou, ICLR 2024",
        needs="a trained torch module with its per-instance risk (pp.TorchModel)",
        full_complexity="O(np)",
        incremental_complexity="O(np)",
        space_complexity="O(n + p)",
        storage_complexity="0",
        assumes=("differentiable", "convex", "stationary"),
        group=True,
        generative=True,
        original_sign="the opposite in one of its two engines, the same in the other",
        cost=lambda *, n, n_test, **_: 3 * n + n_test,
    )

    def __init__(
        self,
        *,
        damping: float | Mapping[str, float] | None = None,
        parameters: ParameterChoice | None = None,
        batch_size: int | None = None,
        products: Way = "auto",
        memory: int = MEMORY,
        dtype: str | None = None,
        progress: bool | None = None,
    ) -> None:
        super().__init__(
            parameters=parameters,
            batch_size=batch_size,
            products=products,
            memory=memory,
            dtype=dtype,
            progress=progress,
        )
        self.damping = damping

    @override
    def fit(self, model: Any, train: Any, *, ids: Any = None) -> Self:
        """Take a trained model and its training set, and the norms of its gradients.

        Parameters
        ----------
        model : TorchModel
            The module, its risk and the chosen parameters.
        train : (X, y), dict, Dataset or Instances
            The training set.
        ids : array-like of shape (n,), optional
            Unique labels of the training instances.

        Raises
        ------
        InvalidInputError
            If the model or a setting cannot be used.
        NonFiniteError
            If a risk or a gradient is not finite; the message names the instances.
        """
        if not isinstance(model, TorchModel):
            raise self._wrong_kind(model)
        self._prepare(model, train, ids)
        self._fingerprint = fingerprint(self.model_.module.state_dict())
        self._kept: list[tuple[Batch, Gradients]] | None = None
        norms = self._norms()
        self.damping_ = self._dampings(norms)
        self._gradients = TrainingGradients(
            n=len(self.train_),
            parts=self._parts,
            kept=self._kept is not None,
            norms=norms,
            dampings=self.damping_,
            products=self._products,
        )
        self._error, self._correlation = self._compared()
        return self

    def _norms(self) -> dict[str, Tensor]:
        """Return the squared norms of the training gradients, (n,), by parameter; keep them."""
        norms = {
            name: torch.zeros(len(self.train_), dtype=self._capture.dtype, device=parameter.device)
            for name, parameter in self.model_.selected.items()
        }
        kept: list[tuple[Batch, Gradients]] | None = []
        room = self.memory // 2
        with self.model_.evaluating():
            cut = batches(len(self.train_), self._batch_size)
            for batch, forms in self._captured(self.train_, cut):
                for name, form in forms.items():
                    norms[name][_rows(batch)] = self._products.squared_norms(form)
                room -= sum(form.nbytes for form in forms.values())
                kept = None if kept is None or room < 0 else [*kept, (batch, forms)]
        check_finite(torch.stack(list(norms.values()), 1), self.train_.ids, "gradient")
        self._kept = kept
        return norms

    def _dampings(self, norms: Mapping[str, Tensor]) -> dict[str, float]:
        """Return each parameter's damping; a parameter without any gradient has none."""
        given = self.damping
        if isinstance(given, Mapping):
            names = set(norms)
            if set(given) != names:
                raise InvalidInputError(
                    f"damping: the mapping has to name each chosen parameter once; it lacks "
                    f"{sorted(names - set(given))} and has {sorted(set(given) - names)} besides."
                )
        dampings = {}
        for name, squares in norms.items():
            mean = float(squares.mean(dtype=torch.float64))
            if mean == 0:
                continue
            damping = given[name] if isinstance(given, Mapping) else given
            if damping is None:
                damping = mean / (DAMPING_DIVISOR * self.model_.selected[name].numel())
            if not 0 < damping < float("inf"):
                raise InvalidInputError(
                    f"damping must be a finite number above 0, or None; got {damping!r}: the "
                    f"inverse of a single gradient's matrix needs it."
                )
            dampings[name] = float(damping)
        return dampings

    def _compared(self) -> tuple[float, float | None]:
        """Compare with the exact inverse on a sample of the training set."""
        n = min(SAMPLE, len(self.train_))
        chosen = self.train_.select(np.linspace(0, len(self.train_) - 1, n).astype(np.int64))
        with self.model_.evaluating():
            (_, forms) = next(self._captured(chosen, batches(n, n)))
        return sample_error(forms, n, self.damping_, self._products)

    # Training gradients

    def _train(self, rows: range) -> Iterator[tuple[Batch, Gradients]]:
        """Go through the training gradients at ``rows``, within ``evaluating()``."""
        if self._kept is None:
            yield from self._captured(self.train_, batches(len(rows), self._batch_size, rows.start))
            return
        for batch, forms in self._kept:
            first, last = int(batch.positions[0]), int(batch.positions[-1]) + 1
            start, stop = max(first, rows.start), min(last, rows.stop)
            if (start, stop) == (first, last):
                yield batch, forms
            elif start < stop:
                inside = slice(start - first, stop - first)
                some = {name: form[inside] for name, form in forms.items()}
                yield Batch(batch.positions[inside], None), some

    def _parts(self) -> Iterator[tuple[Gradients, slice]]:
        for batch, forms in self._train(range(len(self.train_))):
            yield forms, _rows(batch)

    def _points(self, instances: Instances) -> tuple[PathPoint, ...]:
        return (PathPoint("the model", 1.0 / len(self.train_), nullcontext),)

    # Scores

    @override
    def _query(self, instances: Instances) -> MetSet:
        return self._met(instances, joint=False)

    @override
    def _joint_query(self, instances: Instances) -> MetSet:
        return self._met(instances, joint=True)

    def _met(self, instances: Instances, *, joint: bool) -> MetSet:
        if fingerprint(self.model_.module.state_dict()) != self._fingerprint:
            raise InvalidInputError(
                "the parameters or buffers of the module have changed since DataInf was fitted, "
                "and the norms that it keeps belong to the old ones: fit it again."
            )
        points = self._points(instances)
        # What a test instance has met takes as much memory as the model.
        entries = sum(parameter.numel() for parameter in self.model_.selected.values())
        size = len(instances) if joint else max(1, self.memory // (16 * entries))
        blocks = []
        with self.model_.evaluating():
            for start in range(0, len(instances), size):
                some = instances.select(slice(start, start + size))
                test, _ = self._test_side(TestSet(some, joint, points), points[0])
                gradients = cast("GradientQuery | VectorQuery", test)
                blocks.append(MeanOfInverses(gradients, self._gradients))
        return MetSet(instances, joint, points, tuple(blocks))

    @override
    def _scores(self, query: TestSet, rows: range) -> NDArray[np.floating[Any]]:
        blocks, point = cast(MetSet, query).blocks, query.points[0]
        scores = torch.zeros(sum(map(len, blocks)), len(rows), dtype=self._capture.dtype)
        with self.model_.evaluating():
            for batch, forms in self._train(rows):
                met = [block.meet(forms, len(batch))[0] for block in blocks]
                products = torch.cat(met, 1)
                self._refuse_non_finite(products, forms, batch, query, point)
                batch.add(products.cpu(), point.weight, scores, rows.start)
        return scores.numpy()

    @override
    def _self_scores(self, rows: range) -> NDArray[np.floating[Any]]:
        scores = torch.zeros(len(rows), dtype=self._capture.dtype)
        weight = 1.0 / len(self.train_)
        with self.model_.evaluating():
            for held, forms in self._held(rows):
                block = GradientQuery(forms, [len(batch) for batch in held], self._products)
                products = self_products(block, self._gradients).cpu()
                for batch, some in zip(held, products.split(list(block.sizes)), strict=True):
                    batch.add(some, weight, scores, rows.start)
        return scores.numpy()

    def _held(self, rows: range) -> Iterator[tuple[list[Batch], list[Gradients]]]:
        """Go through the gradients at ``rows`` in blocks of as many batches as fit the memory."""
        held: list[Batch] = []
        gradients: list[Gradients] = []
        room = self.memory // 4
        for batch, forms in self._train(rows):
            size = sum(form.nbytes for form in forms.values())
            if held and size > room:
                yield held, gradients
                held, gradients, room = [], [], self.memory // 4
            held.append(batch)
            gradients.append(forms)
            room -= size
        yield held, gradients

    @override
    def _diagnostics(self, query: TestSet | None) -> dict[str, Any]:
        warnings = []
        if self._error > LARGE_ERROR:
            warnings.append(
                f"on a sample of {min(SAMPLE, len(self.train_))} training instances the scores "
                f"differ from those with the exact inverse by {self._error:.3g} times their "
                f"norm: raise the damping, or use InfluenceFunctions(curvature='empirical_fisher')."
            )
        return {
            **super()._diagnostics(query),
            "damping": self.damping_,
            "sample_error": self._error,
            "sample_correlation": self._correlation,
            "warnings": warnings,
        }


def _rows(batch: Batch) -> slice:
    return slice(int(batch.positions[0]), int(batch.positions[-1]) + 1)
