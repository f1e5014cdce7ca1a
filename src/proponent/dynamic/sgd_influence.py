"""SGD-Influence: the adjoint of the recorded training (section 5.2.2.3)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from proponent.card import MethodCard
from proponent.dynamic.unrolled.chosen import checked_positions
from proponent.dynamic.unrolled.method import Settings, UnrolledMethod
from proponent.influence import Influence

if TYPE_CHECKING:
    from typing_extensions import Unpack


def _cost(*, n_test: int, T: int, batch_size: int = 1, **_: Any) -> float:
    return float(T * batch_size * (2 + 2 * n_test))


class SGDInfluence(UnrolledMethod):
    r"""The test gradients pulled back through every step of the training.

    From ``u = g_te^(T)`` on, for t = T .. 1,

    ``I(z_i, z_te) = sum_{t : z_i in B_t} (eta_t / |B_t|) <u_t, g_i>``, with the test gradient
    pulled back through every step, from the last to the first:

    .. math::
        I(z_i, z_{te}) \mathrel{+}= \frac{\eta_t}{|\mathcal{B}_t|} \langle u,
        \nabla\ell(z_i; \theta^{(t-1)}) \rangle \ (i \in \mathcal{B}_t), \qquad
        u \leftarrow u - \eta_t (H_{\mathcal{B}_t} + \lambda) u,

    and accordingly through momentum, Nesterov's momentum, Adam, AdamW, decoupled weight decay,
    parameter groups and clipping by norm. It estimates leave-one-out, with the batches as they
    were.

    **Source** Hara, Nitanda and Maehara, NeurIPS 2019, algorithm 1; survey section 5.2.2.3.

    **Differs from the paper in** what it takes: other optimizers than SGD, non-convex modules
    (as its code does), and many test instances in one replay. The Hessian is that of the batch's
    loss as recorded; the paper's code for deep networks divides it by the batch size once more.
    In place of every state on disk the recorded checkpoints are enough, however sparse.

    Scores are ``(n_test, n_train)`` in units of the risk; positive means that the training
    instance lowers the test risk. They equal those of the standard :class:`HyDRA`.

    **Cost** For every block of test instances that fits the memory one replay, backwards, and a
    step and test instance one Hessian-vector product of the batch. Memory ``O(n_test p)`` within
    ``memory``. Memorization costs as much as the influence of the training set on itself,
    without its matrix. ``top_k`` holds whole rows meanwhile.

    Parameters
    ----------
    hessian : bool
        Whether the Hessian counts; without it this is the fast :class:`HyDRA`.
    horizon : int, optional
        Count only what instances do in the last so many steps; None counts all of them.
    divisor : "kept" or "reduced"
        What leaving an instance out does to its batch: the gradient loses its term and the
        divisor stays (``kept``, the survey's and the default), or becomes the mean over the
        others (``reduced``).
    memory : int
        Bytes that the replay may keep, and again that vectors in parameter space may take; it
        bounds how many test instances share a replay.
    progress : bool, optional
        Whether to show a progress bar; None shows one on a terminal when the work lasts.

    Examples
    --------
    >>> import torch, proponent as pp
    >>> module = torch.nn.Linear(2, 3)
    >>> optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    >>> train = torch.randn(10, 2), torch.randint(3, (10,))
    >>> with pp.Recorder("runs/doc", module, optimizer, loss="cross_entropy",
    ...                  train=train, overwrite=True) as recorder:
    ...     for batch in torch.arange(10).split(5):
    ...         optimizer.zero_grad()
    ...         logits = module(train[0][batch])
    ...         torch.nn.functional.cross_entropy(logits, train[1][batch]).backward()
    ...         recorder.step(batch)
    ...         optimizer.step()
    >>> run = pp.TrainingRun.load("runs/doc", module)
    >>> method = pp.SGDInfluence().fit(run, train)
    >>> method.influence(train).shape
    (10, 10)
    >>> method.parameter_changes([3, 4])["weight"].shape
    (2, 3, 2)
    """

    card: ClassVar[MethodCard] = MethodCard(
        name="SGDInfluence",
        survey_name="SGD-Influence",
        title="Stochastic Gradient Descent Influence",
        family="dynamic",
        section="5.2.2.3",
        paper="Hara, Nitanda and Maehara, NeurIPS 2019",
        needs="a recorded training run (pp.Recorder) that can be replayed",
        full_complexity="O(bpT)",
        incremental_complexity="O(bpT)",
        space_complexity="O(n + p)",
        storage_complexity="O(pT)",
        assumes=("differentiable", "optimizer"),
        estimates_loo=True,
        group=True,
        generative=True,
        original_sign="the same",
        cost=_cost,
    )

    def __init__(self, *, hessian: bool = True, **settings: Unpack[Settings]) -> None:
        super().__init__(**settings)
        self.hessian = hessian

    @property
    def _hessian(self) -> bool:
        return self.hessian

    @property
    def _without_hessian(self) -> str:
        return "SGDInfluence(hessian=False)"

    def parameter_changes(self, instances: Any) -> dict[str, NDArray[np.floating[Any]]]:
        r"""Return the change of the final parameters that training instances make, eq. (5).

        The training is differentiated forward, with the instances' own changes: for a few
        instances at a time.

        Parameters
        ----------
        instances : integer array of shape (k,)
            Positions in the training set.

        Returns
        -------
        dict
            For each parameter :math:`\theta - \theta_{-i}`, ``(k, *shape)``, to first order.

        Raises
        ------
        NotFittedError
            If ``fit`` has not been called.
        InvalidInputError
            If a position is out of range, or stands twice.
        NonFiniteError
            If a change explodes.
        """
        self._rows(None)
        found = self._changes(checked_positions(instances, len(self.train_)))
        return {name: -part.cpu().numpy() for name, part in found.items()}

    def cooks_distance(self, instances: Any = None) -> Influence:
        r"""Return how far leaving training instances out moves the final parameters.

        :math:`D_i = \|\theta - \theta_{-i}\|^2`, to first order, the parameters as they are.

        Parameters
        ----------
        instances : integer array of shape (k,), optional
            Positions in the training set. None takes all of them, in replays of as many as the
            memory takes.

        Returns
        -------
        Influence
            ``(n_train,)``, at least 0; NaN for instances that were not asked for.

        Raises
        ------
        NotFittedError
            If ``fit`` has not been called.
        InvalidInputError
            If a position is out of range, or stands twice.
        NonFiniteError
            If a change explodes.

        Notes
        -----
        **Source**: Hara et al. (2019), section 3; survey eq. (5).
        """
        rows = self._rows(None)
        n = len(self.train_)
        positions = np.arange(n) if instances is None else checked_positions(instances, n)
        size = self._tests_at_once()
        values = np.full(n, np.nan)
        for start in range(0, n if instances is None else len(positions), size):
            where = positions[start : start + size]
            parts = self._changes(where).values()
            squares = torch.stack([part.double().flatten(1).square().sum(1) for part in parts])
            values[where] = squares.sum(0).cpu().numpy()
        return self._answer(values, rows, None, None, self._diagnostics(None))
