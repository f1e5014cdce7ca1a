r"""The risk of a :math:`\beta`-VAE, instance by instance."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, get_args

from torch import Tensor, nn
from torch.nn import functional
from typing_extensions import override

from proponent.exceptions import InvalidInputError
from proponent.models.sampled_risk import Draw, SampledRisk, inputs_of

Likelihood = Literal["gaussian", "bernoulli"]
Encode = Callable[[nn.Module, Tensor], tuple[Tensor, Tensor]]
Decode = Callable[[nn.Module, Tensor], Tensor]


class BetaVAERisk(SampledRisk):
    r"""Risk of a :math:`\beta`-VAE: ``beta KL(q(z|x) || N(0, 1)) - E_{z ~ q(z|x)} log p(x|z)``.

    The divergence of the normal encoder is in closed form; the expectation is a mean over
    reparameterised draws ``z = mean + exp(log_variance / 2) noise``. A Gaussian decoder has
    variance 1: half the squared error, summed over the entries of x and not averaged, so that
    ``beta`` keeps its meaning. Constants that no parameter enters are left out.

    Give it as ``risk=`` to :class:`TorchModel`, :class:`Recorder` and :meth:`TrainingRun.load`, and
    train with it: ``risk(net, (x,)).mean().backward()``. In training mode its noise is fresh; in
    evaluation mode all instances share the same ``draws`` draws. Of a batch with several columns
    the first is x.

    **Source** Kingma and Welling, ICLR 2014; Higgins et al., ICLR 2017.

    Parameters
    ----------
    encode : str or callable
        A method of the module, or ``encode(module, x)``, that returns the mean and the log of the
        variance of q(z|x), each ``(batch, latent)``.
    decode : str or callable
        A method of the module, or ``decode(module, z)``, that returns the mean of x (``gaussian``)
        or the logits of its entries (``bernoulli``) for z ``(batch, latent)``.
    beta : float
        Weight of the divergence, 0 or more.
    likelihood : "gaussian" or "bernoulli"
        What the decoder gives; Bernoulli entries lie in 0 .. 1.
    draws : int
        Draws that a risk is the mean of.
    seed : int
        Fixes the draws of evaluation mode.

    Raises
    ------
    InvalidInputError
        If an argument cannot be used.

    Examples
    --------
    >>> import torch, proponent as pp
    >>> class VAE(torch.nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.down, self.up = torch.nn.Linear(6, 4), torch.nn.Linear(2, 6)
    ...     def encode(self, x):
    ...         return self.down(x).chunk(2, 1)
    ...     def decode(self, z):
    ...         return self.up(z)
    >>> risk = pp.BetaVAERisk(beta=2.0)
    >>> risk(VAE(), (torch.rand(5, 6),)).shape
    torch.Size([5])
    """

    def __init__(
        self,
        *,
        encode: str | Encode = "encode",
        decode: str | Decode = "decode",
        beta: float = 1.0,
        likelihood: Likelihood = "gaussian",
        draws: int = 1,
        seed: int = 0,
    ) -> None:
        super().__init__(draws=draws, seed=seed)
        if likelihood not in get_args(Likelihood):
            raise InvalidInputError(
                f"likelihood={likelihood!r}: expected one of {', '.join(get_args(Likelihood))}."
            )
        if not 0 <= beta < float("inf"):
            raise InvalidInputError(f"beta must be a finite number, 0 or more; got {beta!r}.")
        self.encode = encode
        self.decode = decode
        self.beta = beta
        self.likelihood = likelihood

    @override
    def with_draws(self, module: nn.Module, batch: Any, draw: Draw) -> Tensor:
        x = inputs_of(batch)
        mean, log_variance = _part(module, self.encode, "encode")(x)
        if mean.ndim != 2 or mean.shape != log_variance.shape:
            raise InvalidInputError(
                f"encode has to return a mean and a log-variance of shape (batch, latent) each; "
                f"got {tuple(mean.shape)} and {tuple(log_variance.shape)}."
            )
        noise = draw((mean.shape[1],))
        draws = noise.shape[1]
        z = mean[:, None] + (log_variance / 2).exp()[:, None] * noise
        decoded = _part(module, self.decode, "decode")(z.flatten(0, 1))
        if decoded.numel() != draws * x.numel():
            raise InvalidInputError(
                f"decode returned {tuple(decoded.shape)} for {len(x) * draws} latent points of "
                f"instances of shape {tuple(x.shape[1:])}; it has to return one such instance each."
            )
        decoded = decoded.reshape(len(x), draws, -1)
        target = x.flatten(1)[:, None].expand_as(decoded)
        if self.likelihood == "gaussian":
            errors = (target - decoded).square() / 2
        else:
            errors = functional.binary_cross_entropy_with_logits(decoded, target, reduction="none")
        divergence = (mean.square() + log_variance.exp() - 1 - log_variance).sum(1) / 2
        risk: Tensor = self.beta * divergence + errors.sum(2).mean(1)
        return risk

    def __repr__(self) -> str:
        """Return the settings."""
        return (
            f"BetaVAERisk(beta={self.beta}, likelihood={self.likelihood!r}, draws={self.draws}, "
            f"seed={self.seed})"
        )


def _part(module: nn.Module, given: str | Callable[..., Any], name: str) -> Callable[..., Any]:
    """Return a half of the autoencoder as a function of its input."""
    if callable(given):
        return lambda value: given(module, value)
    part = getattr(module, given, None)
    if not callable(part):
        raise InvalidInputError(
            f"{name}: {type(module).__name__} has no method {given!r}; name one that it has, or "
            f"give a function of the module and its input."
        )
    return part  # type: ignore[no-any-return]
