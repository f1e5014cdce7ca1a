"""A moment of a replay: everything that a step of the optimizer started from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from proponent.exceptions import RunError
from proponent.models.history import Step

Tensors = dict[str, Tensor]
OptimizerState = dict[str, Tensors]


@dataclass(frozen=True, eq=False)
class BatchGradient:
    r"""The gradient of a step's batch, and what computing it left in the module's buffers.

    Parameters
    ----------
    values : dict of Tensor
        :math:`\sum_j w_j \nabla\ell_j` by parameter, before clipping; parameters that the
        optimizer passes over are absent.
    buffers : dict of Tensor
        The module's buffers after the forward pass.
    """

    values: Tensors
    buffers: Tensors


class Moment:
    r"""The state before a step, and the gradient that the step was taken with.

    Its tensors belong to the replay: read them, do not write to them. They are valid until the
    next moment is asked for; :meth:`kept` gives one that stays.

    Attributes
    ----------
    step : Step
        Step t as it was recorded: batch, weights, learning rates, settings, clipping.
    parameters : dict of Tensor
        :math:`\theta^{(t-1)}`, every trained parameter by its first name.
    fixed : dict of Tensor
        The module's parameters that no step moves.
    buffers : dict of Tensor
        The module's buffers before the step's forward pass. Where the replay has just started
        from a stored state they are those after it: a run stores no others.
    """

    def __init__(
        self,
        step: Step,
        parameters: Tensors,
        fixed: Tensors,
        buffers: Tensors,
        state: Callable[[], OptimizerState],
        compute: Callable[[Moment], BatchGradient],
        *,
        rounds_alike: bool = True,
    ) -> None:
        self.step = step
        self.parameters = parameters
        self.fixed = fixed
        self.buffers = buffers
        self._state = state
        self._compute = compute
        self._rounds_alike = rounds_alike
        self._computed: BatchGradient | None = None
        self._clipped: Tensors | None = None
        self._is_over = False
        self._is_provided = False

    def __repr__(self) -> str:
        """Return the step."""
        return f"Moment(before step {self.step.index})"

    @property
    def state(self) -> OptimizerState:
        """The optimizer's state before the step, by parameter and entry, as torch names it.

        A parameter that has not been stepped yet is absent.
        """
        self.check_valid()
        return self._state()

    @property
    def gradient(self) -> Tensors:
        r""":math:`\sum_j w_j \nabla\ell_j(\theta^{(t-1)})`, clipped, before any weight decay.

        Computed when it is first asked for. Parameters that the optimizer passes over in this
        step (frozen, or without a gradient) are absent.
        """
        if self._clipped is None:
            self._clipped = clipped(self.unclipped, self.step)
        return self._clipped

    @property
    def unclipped(self) -> Tensors:
        """The gradient before clipping."""
        return self.batch_gradient.values

    @property
    def norm(self) -> float:
        """Euclidean norm of the unclipped gradient over all parameters that it has."""
        norms = [torch.linalg.vector_norm(value) for value in self.unclipped.values()]
        return float(torch.linalg.vector_norm(torch.stack(norms))) if norms else 0.0

    @property
    def batch_gradient(self) -> BatchGradient:
        """The gradient before clipping, with the buffers that its forward pass left."""
        if self._computed is None:
            self.check_valid()
            self._computed = self._compute(self)
        return self._computed

    @property
    def is_computed(self) -> bool:
        """Whether the replay has computed the gradient itself."""
        return self._computed is not None and not self._is_provided

    def provide(self, gradient: Mapping[str, Tensor]) -> None:
        r"""Hand over :math:`\sum_j w_j \nabla\ell_j` (unclipped), which is then not computed again.

        For who linearises the batch anyway. Where the module has buffers that its forward pass
        may change the replay needs that pass itself, and takes no notice; nor where the training
        loop's own loss rounds otherwise than the sum of weighted risks.

        Parameters
        ----------
        gradient : mapping
            By parameter, without those that the optimizer passes over.
        """
        if self._computed is None and not self.buffers and self._rounds_alike:
            values = {name: value.detach() for name, value in gradient.items()}
            self._computed = BatchGradient(values, {})
            self._is_provided = True

    def kept(self) -> Moment:
        """Return a copy that stays valid when the replay goes on; its gradient is computed now."""
        copied = Moment(
            self.step,
            _copy(self.parameters),
            self.fixed,
            _copy(self.buffers),
            {name: _copy(entries) for name, entries in self.state.items()}.copy,
            self._compute,
            rounds_alike=self._rounds_alike,
        )
        copied._computed = self.batch_gradient
        return copied

    def end(self) -> None:
        """Declare the tensors no longer valid; the replay does so before it goes on."""
        self._is_over = True

    def check_valid(self) -> None:
        """Refuse a moment that the replay has left behind.

        Raises
        ------
        RunError
            If the replay has gone on since.
        """
        if self._is_over:
            raise RunError(
                f"the replay has gone on since the moment before step {self.step.index}: use a "
                f"moment before asking for the next one, or keep it by moment.kept()."
            )


def clipped(gradient: Tensors, step: Step) -> Tensors:
    """Return a gradient scaled as the step's was."""
    scale = step.clip_scale
    if scale is None or scale == 1.0:
        return gradient
    return {name: value * scale for name, value in gradient.items()}


def _copy(tensors: Mapping[str, Tensor]) -> Tensors:
    return {name: tensor.clone() for name, tensor in tensors.items()}
