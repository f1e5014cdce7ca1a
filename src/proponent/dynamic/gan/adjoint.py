r"""The derivative of a metric by the weights of the training instances, backwards in time.

With :math:`\omega` both players' parameters and :math:`s` their optimizers' states, a step is
:math:`(\omega, s) \leftarrow \Phi(\omega, s, g(\omega, \epsilon))`. The adjoint :math:`u` of
:math:`(\omega, s)` starts as the metric's gradient and takes each step's transposed Jacobian:
:math:`a = (\partial_g \Phi)^T u`, then :math:`u \leftarrow (\partial_{\omega, s} \Phi)^T u +
(\partial_\omega g)^T a`, and each instance of the step gains
:math:`\langle a, \partial_{\epsilon_i} g \rangle`. The Jacobian of a game's gradients is not
symmetric: its transpose is a vector-Jacobian product, which no Hessian-vector product replaces.
"""

from __future__ import annotations

import torch
from torch import Tensor

from proponent.dynamic.gan.adversaries import PLAYERS, Adversaries, Move
from proponent.dynamic.gan.optimizers import state_of
from proponent.dynamic.unrolled.adam import AdamStep
from proponent.dynamic.unrolled.clipping import Clipping
from proponent.dynamic.unrolled.linearised import pull_back
from proponent.dynamic.unrolled.sgd import SGDStep
from proponent.dynamic.unrolled.updates import Adjoints, Update, Vectors
from proponent.dynamic.unrolled.watch import Watch
from proponent.gradients.twice import check_twice, twice_differentiable

REMEDY = "GANInfluence needs that of both players; use activations and losses that can be."


class Adjoint:
    """The adjoints of k metrics, taken back step by step.

    Parameters
    ----------
    adversaries : Adversaries
        The players; before each step back they are in the state before that step.
    start : mapping
        The metrics' gradients by the generator's parameters, ``(k, *shape)`` each.
    watch : Watch
        Looks at the adjoints of the parameters.
    """

    def __init__(self, adversaries: Adversaries, start: Vectors, watch: Watch) -> None:
        self._adversaries = adversaries
        self._k = len(next(iter(start.values())))
        self._vectors: dict[str, Vectors] = {
            player: {
                name: start[name].clone()
                if player == "generator"
                else parameter.new_zeros(self._k, *parameter.shape)
                for name, parameter in adversaries.trained[player].items()
            }
            for player in PLAYERS
        }
        self._states: dict[str, Adjoints] = {player: {} for player in PLAYERS}
        self._watch = watch
        self._is_checked = False
        watch.begin()
        watch.look(self._parts(), 0)

    def back(self, move: Move, *, last: bool = False) -> Tensor:
        """Go back over a step; return the derivatives by its instances' weights, ``(k, batch)``.

        The weight of an instance is relative: 1 in the training, 0 where it is left out of the
        step and the divisor of the mean is kept.

        Raises
        ------
        NonFiniteError
            If the adjoint is not finite before the step.
        """
        adversaries = self._adversaries
        like = next(iter(adversaries.trained["discriminator"].values()))
        weights = torch.ones(len(move.indices), dtype=like.dtype, device=like.device)
        weights.requires_grad_()
        with twice_differentiable():
            gradients = adversaries.gradients(move, weights)
            products = self._through(move, gradients, weights)
        self._watch.look(self._parts(), move.index, last=last)
        return products

    def _through(self, move: Move, gradients: dict[str, Vectors], weights: Tensor) -> Tensor:
        """Pull the adjoints back through the updates and through the gradients."""
        trained = self._adversaries.trained
        updates = {player: self._update(player, move, gradients[player]) for player in gradients}
        pulled = {
            player: update.pull(self._vectors[player], self._states[player])
            for player, update in updates.items()
        }
        if not self._is_checked:
            check_twice([part for found in gradients.values() for part in found.values()], REMEDY)
            self._is_checked = True
        pairs = [
            (gradient, pulled[player].vectors[name] * pulled[player].factors[name])
            for player, found in gradients.items()
            for name, gradient in found.items()
            if gradient.requires_grad
        ]
        named = [(player, name) for player in PLAYERS for name in trained[player]]
        inputs = [trained[player][name] for player, name in named]
        products = weights.new_zeros(self._k, len(weights))
        parts: list[Tensor] = []
        if pairs:
            ends, vectors = zip(*pairs, strict=True)
            *parts, products = pull_back(ends, vectors, [*inputs, weights], remedy=REMEDY)
        for player, update in updates.items():
            update.settle(self._vectors[player], self._states[player], pulled[player])
        for (player, name), part in zip(named, parts, strict=bool(parts)):
            self._vectors[player][name].add_(part)
        return products

    def _update(self, player: str, move: Move, found: Vectors) -> Update:
        """Return a player's step as a linear map."""
        adversaries = self._adversaries
        optimizer, trained = adversaries.optimizers[player], adversaries.trained[player]
        gradient = {name: part.detach() for name, part in found.items()}
        scale = adversaries.clip_scale(gradient)
        clipped = {name: part * scale for name, part in gradient.items()}
        tensors = state_of(optimizer, trained)
        settings = adversaries.settings_by_name(player, move)
        steps: dict[str, SGDStep | AdamStep] = {}
        for name, part in clipped.items():
            rate = float(settings[name]["lr"])
            if isinstance(optimizer, torch.optim.SGD):
                first = f"momentum_buffer/{name}" not in tensors
                steps[name] = SGDStep.of(rate, settings[name], first=first)
            else:
                state = {
                    entry: tensors[f"{entry}/{name}"]
                    for entry in ("exp_avg", "exp_avg_sq", "step")
                    if f"{entry}/{name}" in tensors
                }
                values = trained[name].detach(), part
                steps[name] = AdamStep.of(rate, settings[name], *values, state)
        clipping = Clipping.of(scale, clipped, steps) if scale < 1.0 and steps else None
        return Update(steps, clipping)

    def _parts(self) -> list[Tensor]:
        return [part for vectors in self._vectors.values() for part in vectors.values()]
