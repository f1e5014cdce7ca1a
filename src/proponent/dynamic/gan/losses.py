"""Losses of adversarial training, with a term for each real instance."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from proponent.exceptions import InvalidInputError

Generated = tuple[Any, ...]  # what the generator made, and the conditions that it was given
DiscriminatorLoss = Callable[[nn.Module, Any, Generated], tuple[Tensor, Tensor]]
GeneratorLoss = Callable[[nn.Module, Generated], Tensor]
Term = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class AdversarialLoss:
    """What the discriminator and the generator minimise.

    Parameters
    ----------
    discriminator : callable
        ``discriminator_loss(discriminator, batch, generated) -> (real, fake)``: one term for
        each real instance, ``(batch,)``, and terms ``(m,)`` that belong to no instance. The
        discriminator minimises the mean of the first plus the mean of the second. The batch is
        what the training set gives, a tuple for arrays; ``generated`` is a tuple of what the
        generator made and the conditions it was given.
    generator : callable
        ``generator_loss(discriminator, generated) -> (m,)``, of which the mean is minimised.

    Notes
    -----
    A term is "of an instance" if it goes when the instance is removed. A gradient penalty
    between an instance and a generated one is such a term, one on generated data alone is not.
    A loss may differentiate inside, with ``create_graph=True``.
    """

    discriminator: DiscriminatorLoss
    generator: GeneratorLoss


@dataclass(frozen=True)
class _OfLogits:
    """The discriminator's loss whose terms are functions of its outputs."""

    real: Term
    fake: Term

    def __call__(
        self, discriminator: nn.Module, batch: Any, generated: Generated
    ) -> tuple[Tensor, Tensor]:
        judged = discriminator(*_columns(batch))
        return _mean(self.real(judged)), _mean(self.fake(discriminator(*generated)))


@dataclass(frozen=True)
class _OfGenerated:
    """The generator's loss whose terms are a function of the discriminator's outputs."""

    term: Term

    def __call__(self, discriminator: nn.Module, generated: Generated) -> Tensor:
        return _mean(self.term(discriminator(*generated)))


@dataclass(frozen=True)
class _WithPenalty:
    """The discriminator's Wasserstein loss with a penalty on its gradient."""

    weight: float

    def __call__(
        self, discriminator: nn.Module, batch: Any, generated: Generated
    ) -> tuple[Tensor, Tensor]:
        real, *conditions = _columns(batch)
        fake = generated[0]
        if len(fake) < len(real):
            raise InvalidInputError(
                f"generated: the gradient penalty needs a generated instance for each of the "
                f"{len(real)} real ones; got {len(fake)}."
            )
        share = torch.rand(len(real), *[1] * (real.ndim - 1), dtype=real.dtype, device=real.device)
        between = share * real + (1 - share) * fake[: len(real)]
        if not between.requires_grad:
            between.requires_grad_()
        judged = _mean(discriminator(between, *conditions))
        (slope,) = torch.autograd.grad(judged.sum(), between, create_graph=True)
        penalty = (slope.flatten(1).norm(dim=1) - 1).square()
        judged_real = _mean(discriminator(real, *conditions))
        return self.weight * penalty - judged_real, _mean(discriminator(*generated))


def wasserstein_gp(weight: float = 10.0) -> AdversarialLoss:
    """Return the Wasserstein loss with a penalty on the gradient (Gulrajani et al. 2017).

    The penalty ``weight * (||grad D(x)|| - 1)^2`` is taken at a random point between each real
    instance and a generated one, and counts as a term of that instance.

    Parameters
    ----------
    weight : float
        Weight of the penalty.
    """
    return AdversarialLoss(_WithPenalty(weight), _OfGenerated(torch.neg))


def _mean(terms: Tensor) -> Tensor:
    """Return one number an instance: the mean over whatever else there is (patches, say)."""
    return terms.flatten(1).mean(1) if terms.ndim > 1 else terms


def _columns(batch: Any) -> tuple[Any, ...]:
    if isinstance(batch, dict):
        raise InvalidInputError(
            "loss: a batch with named columns needs a loss of your own, "
            "AdversarialLoss(discriminator=..., generator=...)."
        )
    return batch if isinstance(batch, tuple) else (batch,)


def _if_real(logits: Tensor) -> Tensor:
    """Return minus the log of the probability of "real"."""
    return -functional.logsigmoid(logits)


def _if_fake(logits: Tensor) -> Tensor:
    return -functional.logsigmoid(-logits)


def _log_of_fake(logits: Tensor) -> Tensor:
    return functional.logsigmoid(-logits)


def _to_one(outputs: Tensor) -> Tensor:
    return (outputs - 1).square() / 2


def _to_zero(outputs: Tensor) -> Tensor:
    return outputs.square() / 2


def _above_one(outputs: Tensor) -> Tensor:
    return (1 - outputs).relu()


def _below_minus_one(outputs: Tensor) -> Tensor:
    return (1 + outputs).relu()


def _of_outputs(real: Term, fake: Term, generator: Term) -> AdversarialLoss:
    return AdversarialLoss(_OfLogits(real, fake), _OfGenerated(generator))


LOSSES: dict[str, AdversarialLoss] = {
    "bce": _of_outputs(_if_real, _if_fake, _if_real),
    "minimax": _of_outputs(_if_real, _if_fake, _log_of_fake),
    "least_squares": _of_outputs(_to_one, _to_zero, _to_one),
    "hinge": _of_outputs(_above_one, _below_minus_one, torch.neg),
    "wasserstein": _of_outputs(torch.neg, torch.clone, torch.neg),
    "wasserstein_gp": wasserstein_gp(),
}


def loss_of(given: str | AdversarialLoss) -> AdversarialLoss:
    """Return the loss that was given by name or as it is.

    Raises
    ------
    InvalidInputError
        If the name is unknown, or it is no loss.
    """
    if isinstance(given, AdversarialLoss):
        return given
    if not isinstance(given, str) or given not in LOSSES:
        raise InvalidInputError(
            f"loss: expected one of {', '.join(LOSSES)}, or an AdversarialLoss; got {given!r}."
        )
    return LOSSES[given]


def checked_terms(terms: Any, n: int | None, name: str) -> Tensor:
    """Return the terms of a loss, ``(n,)``, or of any length where n is None.

    Raises
    ------
    InvalidInputError
        If they are no vector, or one of another length.
    """
    right = isinstance(terms, Tensor) and terms.ndim == 1 and len(terms) > 0
    if not right or (n is not None and len(terms) != n):
        got = tuple(terms.shape) if isinstance(terms, Tensor) else type(terms).__name__
        raise InvalidInputError(
            f"loss: {name} must be a vector of {'some' if n is None else n} terms that are not "
            f"reduced; got {got}."
        )
    return terms  # type: ignore[no-any-return]
