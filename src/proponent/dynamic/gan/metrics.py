"""Differentiable metrics of a generator, for :class:`GANInfluence`.

Each draws its noise with torch's global generator, which :class:`GANInfluence` seeds, and says by
``greater_is_better`` which way it points.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from proponent.dynamic.gan.noise import Noise, moved_to, noise_of
from proponent.exceptions import InvalidInputError

Features = Callable[[Any], Tensor]


class _OfSamples:
    """Base of the metrics that look at generated instances."""

    noise: Noise
    samples: int
    features: Features | None

    def __post_init__(self) -> None:
        """Check what the metric was given."""
        noise_of(self.noise)
        if isinstance(self.samples, bool) or not isinstance(self.samples, int) or self.samples < 2:
            raise InvalidInputError(
                f"samples: expected an integer of at least 2; got {self.samples!r}."
            )
        bandwidth = getattr(self, "bandwidth", None)
        if bandwidth is not None and not 0 < bandwidth < math.inf:
            raise InvalidInputError(f"bandwidth: expected a positive number; got {bandwidth!r}.")

    def _generated(self, generator: nn.Module) -> Tensor:
        """Return the features of generated instances."""
        noise = moved_to(noise_of(self.noise)(self.samples), generator)
        made = generator(*noise) if isinstance(noise, tuple) else generator(noise)
        return self._described(made)

    def _real(self, data: Any, generator: nn.Module) -> Tensor:
        """Return the features of real instances; of a tuple of columns the first counts."""
        first = data[0] if isinstance(data, (tuple, list)) else data
        return self._described(moved_to(torch.as_tensor(first), generator)).detach()

    def _described(self, batch: Tensor) -> Tensor:
        return batch.flatten(1) if self.features is None else self.features(batch)


@dataclass(frozen=True, eq=False)
class KernelDistance(_OfSamples):
    r"""Squared maximum mean discrepancy between generated and real instances.

    The unbiased estimate with a Gaussian kernel, :math:`\mathrm{E} k(x, x') - 2 \mathrm{E} k(x, y)
    + \mathrm{E} k(y, y')` (Gretton et al. 2012); 0 where the two agree.

    Parameters
    ----------
    real : array or Tensor of shape (m, ...)
        Real instances, of a test set.
    noise : int, sequence of int, or callable
        As :class:`AdversarialTraining` takes it.
    samples : int
        Number of generated instances.
    features : callable, optional
        Maps a batch of real or generated instances to features ``(batch, d)``, a network in
        evaluation mode, say; the default flattens them.
    bandwidth : float, optional
        Standard deviation of the kernel; the default is the median distance of real instances.
    """

    greater_is_better: ClassVar[bool] = False
    real: Any = field(repr=False)
    noise: Noise
    samples: int = field(default=256, kw_only=True)
    features: Features | None = field(default=None, kw_only=True)
    bandwidth: float | None = field(default=None, kw_only=True)

    def __call__(self, generator: nn.Module) -> Tensor:
        """Return the squared distance."""
        real, made = self._real(self.real, generator), self._generated(generator)
        scale = self.bandwidth or float(torch.pdist(real).median())

        def kernel(left: Tensor, right: Tensor) -> Tensor:
            return torch.exp(-_squared_distances(left, right) / (2 * scale**2))

        within = _mean_of_pairs(kernel(made, made)) + _mean_of_pairs(kernel(real, real))
        return within - 2 * kernel(made, real).mean()


@dataclass(frozen=True, eq=False)
class FrechetDistance(_OfSamples):
    r"""Fréchet distance between Gaussians of features of generated and real instances.

    :math:`\|\mu - \mu_r\|^2 + \mathrm{tr}(\Sigma + \Sigma_r - 2 (\Sigma \Sigma_r)^{1/2})` (Heusel
    et al. 2017; with an Inception network's features this is the FID).

    Parameters
    ----------
    real : array or Tensor of shape (m, ...)
        Real instances, of a test set.
    noise : int, sequence of int, or callable
        As :class:`AdversarialTraining` takes it.
    samples : int
        Number of generated instances; there, as of real ones, more than features.
    features : callable, optional
        Maps a batch of real or generated instances to features ``(batch, d)``, a network in
        evaluation mode, say; the default flattens them.
    """

    greater_is_better: ClassVar[bool] = False
    real: Any = field(repr=False)
    noise: Noise
    samples: int = field(default=256, kw_only=True)
    features: Features | None = field(default=None, kw_only=True)

    def __call__(self, generator: nn.Module) -> Tensor:
        """Return the distance.

        Raises
        ------
        InvalidInputError
            If there are no more instances than features.
        """
        real, made = self._real(self.real, generator), self._generated(generator)
        for name, rows in (("real", real), ("samples", made)):
            if len(rows) <= rows.shape[1]:
                raise InvalidInputError(
                    f"{name}: {len(rows)} instances do not determine the covariance of "
                    f"{rows.shape[1]} features; give more of them, or fewer features."
                )
        shift = made.mean(0) - real.mean(0)
        left, right = _centred(made), _centred(real)
        # The singular values of A B^T, with A^T A and B^T B the covariances, are the roots of
        # the eigenvalues of their product; their sum has a gradient where some coincide too.
        triangular = torch.linalg.qr(right, mode="r").R
        cross: Tensor = torch.linalg.svdvals(left @ triangular.T).sum()
        spread: Tensor = left.square().sum() + right.square().sum() - 2 * cross
        return shift.square().sum() + spread


@dataclass(frozen=True)
class InceptionScore(_OfSamples):
    r"""Exponential of the mean divergence of class probabilities from their mean.

    :math:`\exp \mathrm{E}_x \mathrm{KL}(p(y | x) \| p(y))` (Salimans et al. 2016), from 1 to the
    number of classes.

    Parameters
    ----------
    features : callable
        Maps generated instances to logits ``(batch, classes)``: a trained network in evaluation
        mode.
    noise : int, sequence of int, or callable
        As :class:`AdversarialTraining` takes it.
    samples : int
        Number of generated instances.
    """

    greater_is_better: ClassVar[bool] = True
    features: Features
    noise: Noise
    samples: int = field(default=256, kw_only=True)

    def __call__(self, generator: nn.Module) -> Tensor:
        """Return the score."""
        logs = self._generated(generator).log_softmax(1)
        mean = torch.logsumexp(logs, 0) - math.log(len(logs))
        return (logs.exp() * (logs - mean)).sum(1).mean().exp()


@dataclass(frozen=True)
class ParzenLogLikelihood(_OfSamples):
    r"""Log-likelihood of each test instance under a kernel density of generated ones.

    :math:`\log \frac{1}{m} \sum_j N(x; \tilde x_j, \sigma^2 I)` (Goodfellow et al. 2014), one a
    test instance: ``GANInfluence(ParzenLogLikelihood(...)).fit(...).influence(test)``.

    Parameters
    ----------
    noise : int, sequence of int, or callable
        As :class:`AdversarialTraining` takes it.
    samples : int
        Number of generated instances.
    features : callable, optional
        Maps a batch of real or generated instances to features ``(batch, d)``, a network in
        evaluation mode, say; the default flattens them.
    bandwidth : float
        The standard deviation of the kernel.
    """

    greater_is_better: ClassVar[bool] = True
    noise: Noise
    bandwidth: float = field(kw_only=True)
    samples: int = field(default=256, kw_only=True)
    features: Features | None = field(default=None, kw_only=True)

    def __call__(self, generator: nn.Module, batch: Any) -> Tensor:
        """Return the log-likelihood of each instance of the batch, ``(batch,)``."""
        real, made = self._real(batch, generator), self._generated(generator)
        squares = _squared_distances(real, made) / (2 * self.bandwidth**2)
        constant = math.log(len(made)) + real.shape[1] * (
            math.log(self.bandwidth) + 0.5 * math.log(2 * math.pi)
        )
        return torch.logsumexp(-squares, 1) - constant


def _squared_distances(left: Tensor, right: Tensor) -> Tensor:
    squares = left.square().sum(1)[:, None] + right.square().sum(1) - 2 * left @ right.T
    return squares.clamp(min=0)


def _mean_of_pairs(kernel: Tensor) -> Tensor:
    """Return the mean over pairs of different instances."""
    return (kernel.sum() - kernel.diagonal().sum()) / (len(kernel) * (len(kernel) - 1))


def _centred(rows: Tensor) -> Tensor:
    """Return A with A^T A the covariance of the rows."""
    return (rows - rows.mean(0)) / math.sqrt(len(rows) - 1)
