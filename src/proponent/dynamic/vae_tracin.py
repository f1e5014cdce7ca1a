"""VAE-TracIn: TracIn of a risk that is an expectation over draws (survey section 5.2.1.3)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from typing_extensions import override

from proponent.card import MethodCard
from proponent.dynamic.along_sampled_run import AlongSampledRun
from proponent.exceptions import InvalidInputError
from proponent.models.run import TrainingRun
from proponent.models.sampled_risk import SampledRisk

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

    from proponent.dynamic.along_run import RunSettings


class VAETracIn(AlongSampledRun):
    r"""TracIn for variational autoencoders, with independent draws on either side.

    ``I(z_i, z_te) = sum_c eta_c <grad l(z_i), grad l(z_te)>`` for the risk of a :math:`\beta`-VAE,
    ``l(x) = beta KL(q(z|x) || p(z)) - E_{z ~ q(z|x)} log p(x|z)``. The expectation is the mean over
    ``draws`` reparameterised draws, which are independent for the two instances, also where they
    are the same one: the scores, memorization included, are unbiased.

    **Source** Kong and Chaudhuri, NeurIPS 2021; survey section 5.2.1.3.

    **Differs from the paper in** the draws. With the same draws on both sides an instance's
    influence on itself is too large by the trace of the covariance of its gradient over draws,
    several times its size for a single draw; here the two sides never share them.

    Scores are ``(n_test, n_train)``; positive means that the training instance lowers the test
    risk (raises the test instance's evidence). They vary with ``seed``, by less the more draws.
    Draws go by the content of an instance, so that neither batches nor the order or choice of
    instances change a score. Memorization may be negative, as what is estimated is close to 0.

    **Cost** As :class:`TracInCP` with ``draws`` times the work of the decoder; memorization takes
    the gradients twice.

    Parameters
    ----------
    draws : int
        Draws that each gradient is the mean of; those of the risk itself do not count.
    seed : int
        Fixes the draws.
    checkpoints, scale_by_batch, parameters, batch_size, products, memory, dtype, progress
        As in :class:`TracInCP`.

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
    >>> vae, risk, x = VAE(), pp.BetaVAERisk(beta=2.0), torch.rand(10, 6)
    >>> optimizer = torch.optim.SGD(vae.parameters(), lr=0.1)
    >>> with pp.Recorder("runs/doc", vae, optimizer, every=1, train=x,
    ...                  overwrite=True) as recorder:
    ...     for batch in torch.arange(10).split(5):
    ...         optimizer.zero_grad()
    ...         risk(vae, x[batch]).mean().backward()
    ...         recorder.step(batch)
    ...         optimizer.step()
    >>> run = pp.TrainingRun.load("runs/doc", vae, risk=risk)
    >>> pp.VAETracIn(draws=8).fit(run, x).influence(x).shape
    (10, 10)
    """

    card: ClassVar[MethodCard] = MethodCard(
        name="VAETracIn",
        survey_name="VAE-TracIn",
        title="Variational Autoencoder TracIn",
        family="dynamic",
        section="5.2.1.3",
        paper="Kong and Chaudhuri, NeurIPS 2021",
        needs="a recorded training run (pp.Recorder) of a variational autoencoder, loaded with "
        "risk=pp.BetaVAERisk(...)",
        full_complexity="O(npK), K checkpoints",
        incremental_complexity="O(npK), K checkpoints",
        space_complexity="O(n + p)",
        storage_complexity="O(pK), K checkpoints",
        assumes=("differentiable", "optimizer"),
        group=True,
        generative=True,
        original_sign="the same",
        cost=lambda *, n, n_test, checkpoints=1, **_: float(checkpoints * (n + n_test)),
    )

    def __init__(self, draws: int = 16, *, seed: int = 0, **settings: Unpack[RunSettings]) -> None:
        super().__init__(**settings)
        self.draws = draws
        self.seed = seed

    @override
    def fit(self, model: Any, train: Any, *, ids: Any = None) -> Self:
        """Take a recorded run of a variational autoencoder and its training set.

        Parameters
        ----------
        model : TrainingRun
            The recorded run, loaded with ``risk=BetaVAERisk(...)`` (or a ``SampledRisk`` of your
            own).
        train : X, dict, Dataset or Instances
            The training set.
        ids : array-like of shape (n,), optional
            Unique labels of the training instances.

        Raises
        ------
        InvalidInputError
            If the model is of another kind or has another risk, the set is empty, or the risk of
            an instance depends on the other instances of its batch.
        RunError
            If the run was recorded on another training set, or has no checkpoints.
        """
        if isinstance(model, TrainingRun) and not isinstance(model.model.risk, SampledRisk):
            raise InvalidInputError(
                "model: VAETracIn gives every instance draws of its own, which the risk of this "
                "run cannot take. Load the run with TrainingRun.load(path, module, "
                "risk=BetaVAERisk(...)), or with a subclass of SampledRisk for a risk of your own. "
                "TracInCP takes any risk that draws nothing."
            )
        return super().fit(model, train, ids=ids)
