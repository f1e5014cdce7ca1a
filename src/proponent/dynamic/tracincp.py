"""TracInCP and TracIn-Last: gradient products at checkpoints (survey section 5.2.1)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from proponent.card import MethodCard
from proponent.dynamic.along_run import AlongRun, RunSettings
from proponent.dynamic.optimizer_update import Update
from proponent.gradients.method import MEMORY
from proponent.gradients.products import Way

if TYPE_CHECKING:
    from typing_extensions import Unpack


def _cost(*, n: int, n_test: int, checkpoints: int = 1, **_: Any) -> float:
    return float(checkpoints * (n + n_test))


class TracInCP(AlongRun):
    """Gradient products at checkpoints, weighted by the learning rate.

    ``I(z_i, z_te) = sum_c eta_c <g_i, g_te>``, the gradients of the risk at the checkpoints
    ``theta^(t-1)`` with the learning rate ``eta^(t)`` of the step taken from there: what gradient
    steps on the training instance at these points would take off the test risk, to first order.

    **Source** Pruthi et al., NeurIPS 2020; survey eq. (55).

    **Differs from the paper in** the learning rate, which is that of the step after the
    checkpoint, as in the survey; with several parameter groups each parameter's products are
    weighted by its own.

    Scores are ``(n_test, n_train)``; positive means that the training instance lowers the test
    risk. They are not leave-one-out differences: eq. (55) has no 1/|B| (see ``scale_by_batch``).

    Momentum, adaptive rates and weight decay are not seen, unless ``update="optimizer"``. It
    replaces the gradient step by what the run's optimizer makes of it:

        I(z_i, z_te) = sum_c eta_c <g_te, U_c g_i>,    U_c = diag(b_c / (sqrt(v_c) + eps)),

    the derivative of the step's change of the parameters with respect to the instance's weight,
    with the second moments v_c held at those of the step. For Adam and AdamW v_c is
    ``v_t / (1 - beta2^t)`` after the step, and ``b_c = (1 - beta1) / (1 - beta1^t)`` the share of
    the gradient in its own step's momentum; what momentum hands on to later steps is not counted.
    (LESS, Xia et al. 2024, leaves b_c out.) For RMSprop ``b_c = 1``, for Adagrad that of
    ``lr_decay``; SGD has no v, and ``b_c`` is 1, ``1 - dampening`` or, with Nesterov's momentum,
    ``1 + momentum``. v is taken from the run where it is recorded before the next step, or else
    had from the recorded batch; ``diagnostics["second_moments"]`` says how often which.

    **Cost** For each checkpoint one forward-backward pass an instance of either set, less the
    weight gradients, and the products. Storage is the run's. With ``update="optimizer"`` the
    products are those of whole gradients, p multiplications for each pair, and where v was not
    recorded there is another pass of the batch.

    Parameters
    ----------
    update : "gradient" or "optimizer"
        Whether an instance's step is its gradient, or what the optimizer made of it.
        ``"optimizer"`` needs ``Recorder(..., optimizer_state=True)`` where it has a state.
    checkpoints, scale_by_batch
        As in :class:`AlongRun`: which checkpoints, and whether to divide by the batch size.
    parameters, batch_size, products, memory, dtype, progress
        As in :class:`GradientDot`.

    Examples
    --------
    >>> import torch, proponent as pp
    >>> module = torch.nn.Linear(2, 3)
    >>> optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    >>> train = torch.randn(10, 2), torch.randint(3, (10,))
    >>> with pp.Recorder("runs/doc", module, optimizer, loss="cross_entropy", every=1,
    ...                  train=train, overwrite=True) as recorder:
    ...     for batch in torch.arange(10).split(5):
    ...         optimizer.zero_grad()
    ...         logits = module(train[0][batch])
    ...         torch.nn.functional.cross_entropy(logits, train[1][batch]).backward()
    ...         recorder.step(batch)
    ...         optimizer.step()
    >>> run = pp.TrainingRun.load("runs/doc", module)
    >>> pp.TracInCP().fit(run, train).influence(train).shape
    (10, 10)
    """

    card: ClassVar[MethodCard] = MethodCard(
        name="TracInCP",
        survey_name="TracInCP",
        title="TracIn Checkpoint",
        family="dynamic",
        section="5.2.1",
        equations="55",
        paper="Pruthi et al., NeurIPS 2020",
        needs="a recorded training run (pp.Recorder)",
        full_complexity="O(npK), K checkpoints",
        incremental_complexity="O(npK), K checkpoints",
        space_complexity="O(n + p)",
        storage_complexity="O(pK), K checkpoints",
        assumes=("differentiable", "optimizer"),
        group=True,
        generative=True,
        original_sign="the same",
        cost=_cost,
    )

    def __init__(self, *, update: Update = "gradient", **settings: Unpack[RunSettings]) -> None:
        super().__init__(**settings)
        self.update = update


class TracInLast(AlongRun):
    """TracInCP of the last linear layer alone.

    ``I(z_i, z_te) = sum_c eta_c (f_i . f_te + 1)(d_i . d_te)`` with features f and output
    gradients d of the last linear layer (without the 1 where it has no bias). Needs a forward
    pass alone; gradients of other layers, which can cancel those of the last, are not seen.

    **Source** Pruthi et al., NeurIPS 2020; Yeh et al., NeurIPS 2022; survey section 5.2.1.

    **Differs from the paper in** nothing. A preset of :class:`TracInCP` with
    ``parameters="last"``.

    **Cost** For each checkpoint a forward pass an instance of either set, and two products.

    Examples
    --------
    >>> import torch, proponent as pp
    >>> module = torch.nn.Linear(2, 3)
    >>> optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    >>> train = torch.randn(10, 2), torch.randint(3, (10,))
    >>> with pp.Recorder("runs/doc", module, optimizer, loss="cross_entropy", every=1,
    ...                  train=train, overwrite=True) as recorder:
    ...     for batch in torch.arange(10).split(5):
    ...         optimizer.zero_grad()
    ...         logits = module(train[0][batch])
    ...         torch.nn.functional.cross_entropy(logits, train[1][batch]).backward()
    ...         recorder.step(batch)
    ...         optimizer.step()
    >>> run = pp.TrainingRun.load("runs/doc", module)
    >>> pp.TracInLast().fit(run, train).influence(train).shape
    (10, 10)
    """

    card: ClassVar[MethodCard] = MethodCard(
        name="TracInLast",
        survey_name="TracIn-Last",
        title="TracIn Last Layer Only",
        family="dynamic",
        section="5.2.1",
        equations="55",
        paper="Pruthi et al., NeurIPS 2020; Yeh et al., NeurIPS 2022",
        needs="a recorded training run (pp.Recorder) of a module with a linear layer",
        full_complexity="O(npK), K checkpoints; forward passes alone",
        incremental_complexity="O(npK), K checkpoints; forward passes alone",
        space_complexity="O(n + p)",
        storage_complexity="O(pK), K checkpoints",
        assumes=("differentiable", "optimizer"),
        group=True,
        generative=True,
        original_sign="the same",
        cost=lambda **sizes: _cost(**sizes) / 3,
    )

    def __init__(
        self,
        *,
        checkpoints: Any = "all",
        scale_by_batch: bool = False,
        batch_size: int | None = None,
        products: Way = "auto",
        memory: int = MEMORY,
        dtype: str | None = None,
        progress: bool | None = None,
    ) -> None:
        super().__init__(
            checkpoints=checkpoints,
            scale_by_batch=scale_by_batch,
            parameters="last",
            batch_size=batch_size,
            products=products,
            memory=memory,
            dtype=dtype,
            progress=progress,
        )
