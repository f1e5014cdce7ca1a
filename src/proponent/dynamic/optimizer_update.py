"""What an optimizer's step makes of a gradient: the linear map that a recorded run tells of."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from torch import Tensor
from torch.nn.modules.batchnorm import _NormBase

from proponent.data import Instances
from proponent.dynamic import update_rules as rules
from proponent.dynamic.replay.checks import check_parts, depends_on_mode
from proponent.dynamic.replay.moment import clipped
from proponent.dynamic.replay.stage import Stage
from proponent.exceptions import InvalidInputError, RunError
from proponent.gradients.path import Metric
from proponent.models import journal
from proponent.models.history import Checkpoint, Step
from proponent.models.run import TrainingRun
from proponent.models.torch import TorchModel

Update = Literal["gradient", "optimizer"]
Source = Literal["recorded", "recomputed", "before"]

SAID = {
    "recorded": "second moments after the step, as recorded before the next one",
    "recomputed": "second moments after the step, with the batch's gradient computed again",
    "before": "second moments before the step, as the clipping of its gradient is not known",
}


def check_update(update: object) -> None:
    """Refuse an unknown kind of update."""
    if update not in get_args(Update):
        raise InvalidInputError(f"update={update!r}: expected 'gradient' or 'optimizer'.")


@dataclass
class OptimizerUpdate:
    """The linear maps by which a run's optimizer turned gradients into steps.

    In step t a gradient g, as part of the batch's, moved the parameters by
    ``-eta factor diagonal g`` at once, second moments held at what the step made of them. What
    momentum hands on to later steps is not counted.

    Parameters
    ----------
    run : TrainingRun
        Recorded with the optimizer's state.
    model : TorchModel
        The run's, with the parameters to look at.
    train : Instances
        The training set.
    by : str
        The method that asks, for messages.

    Raises
    ------
    InvalidInputError
        If the optimizer is none of those whose rule is known.
    RunError
        If the optimizer's state was not recorded.
    """

    run: TrainingRun
    model: TorchModel
    train: Instances
    by: str

    def __post_init__(self) -> None:
        """Find the rule, and check that the run has what it needs."""
        header = journal.read_json(self.run.path / journal.HEADER)
        self.optimizer = str(header["optimizer"]["class"])
        rule = rules.rule_of(self.optimizer)
        if rule is None:
            raise InvalidInputError(
                f"update='optimizer': what {self.optimizer} makes of a gradient is not known to "
                f"{self.by}; it is for {', '.join(rules.KNOWN)} of torch.optim. Use "
                f"update='gradient'."
            )
        self.rule = rule
        if rule.stateful(self.run.steps):
            self.run.require(
                checkpoints=True, optimizer_state=True, by=f"{self.by}(update='optimizer')"
            )
        if any(settings.get("maximize") for step in self.run.steps for settings in step.settings):
            raise InvalidInputError(
                f"update='optimizer': the run's {self.optimizer} maximised; {self.by} is for runs "
                f"that minimised the risk."
            )
        self._states = {checkpoint.t: checkpoint for checkpoint in self.run.checkpoints}
        self._stage = Stage(self.run.model, self.train)
        check_parts(self.run.steps, self._stage, self.by)

    def source(self, checkpoint: Checkpoint) -> Source | None:
        """Return where the second moments of a checkpoint's step come from; None: it has none."""
        if not self.rule.moments:
            return None
        after = self._states.get(checkpoint.t + 1)
        if after is not None and after.has_optimizer_state:
            return "recorded"
        step = self.run.steps[checkpoint.t - 1]
        return "before" if step.clip_scale is None else "recomputed"

    def metric_at(self, checkpoint: Checkpoint) -> Callable[[], Metric]:
        """Return what gives the map of the checkpoint's step, when the module has its state."""
        return lambda: self._metric(checkpoint)

    def _metric(self, checkpoint: Checkpoint) -> Metric:
        step = self.run.steps[checkpoint.t - 1]
        rates = checkpoint.learning_rates or {}
        moved = {
            name: group.settings
            for group in step.groups
            for name in group.parameters
            if name in self.model.selected and rates.get(name)
        }
        before = checkpoint.optimizer_state() if checkpoint.has_optimizer_state else {}
        source = self.source(checkpoint)
        factors: dict[str, float] = {}
        diagonals: dict[str, Tensor] = {}
        after: Mapping[str, Mapping[str, Tensor]] = {}
        gradient: dict[str, Tensor] = {}
        if source == "recorded":
            after = self._states[checkpoint.t + 1].optimizer_state()
        elif source == "recomputed":
            gradient = self._batch_gradient(step)
        for name, settings in moved.items():
            state = before.get(name, {})
            count = rules.count(state) + 1
            factors[name] = self.rule.factor(settings, state, count)
            if source is None:
                continue
            if source == "recorded" and name in after:
                diagonals[name] = self.rule.diagonal(after[name], settings, count)
            elif source == "recomputed" and name in gradient:
                decayed = gradient[name] + self._decay(name, settings)
                moments = self.rule.advance(state, decayed, settings)
                diagonals[name] = self.rule.diagonal(moments, settings, count)
            elif count > 1 and source == "before":
                diagonals[name] = self.rule.diagonal(state, settings, count - 1)
            elif source == "before":
                raise RunError(
                    f"{self.by}(update='optimizer'): before step {checkpoint.t} the optimizer has "
                    f"no second moments, and those after it cannot be had as the clipping of its "
                    f"gradient is not known. Record clip_scale, or record with every=1, or leave "
                    f"the step out: checkpoints=[...]."
                )
            else:
                factors[name] = 0.0  # no gradient has reached it, and the step did not move it
        return Metric(factors, diagonals)

    def _decay(self, name: str, settings: Mapping[str, Any]) -> Tensor:
        """Return what weight decay adds to a gradient before the optimizer squares it."""
        value = self.model.selected[name].detach()
        decoupled = settings.get("decoupled_weight_decay") or self.optimizer.endswith("AdamW")
        return value * (0.0 if decoupled else float(settings.get("weight_decay") or 0.0))

    def _batch_gradient(self, step: Step) -> dict[str, Tensor]:
        """Return the gradient of the step's batch at the module's parameters, once clipped.

        In the modes and with the random numbers that were recorded; without the parameters that
        the optimizer passed over.
        """
        stage = self._stage
        with stage.lent():
            stage.put_on({}, stage.current_buffers())  # copies, for the pass to write to
            stage.start_step(step)
            return clipped(stage.gradient(step).values, step)

    def diagnostics(self, steps: list[int]) -> dict[str, Any]:
        """Return the optimizer, and how many steps' second moments came from where."""
        sources = Counter(self.source(self._states[step]) for step in steps)
        found = {str(source): count for source, count in sources.items() if source is not None}
        noticed: dict[str, Any] = {"optimizer": self.optimizer, "second_moments": found}
        warnings = []
        if "before" in found:
            warnings.append(f"{found['before']} steps: {SAID['before']}")
        for why, steps_so in self._not_as_trained(steps).items():
            warnings.append(
                f"{steps_so} steps: {SAID['recomputed']} {why}; record with every=1 to have them "
                f"exactly"
            )
        return noticed | ({"warnings": warnings} if warnings else {})

    def _not_as_trained(self, steps: list[int]) -> Counter[str]:
        """Count the steps whose gradient may not be the one of the training, by the reason."""
        reasons: Counter[str] = Counter()
        acts = {n: part for n, part in self._stage.parts.items() if depends_on_mode(part)}
        draws = {n: part for n, part in acts.items() if not isinstance(part, _NormBase)}
        for t in steps:
            step = self.run.steps[t - 1]
            if self.source(self._states[t]) != "recomputed":
                continue
            if step.modes is None and acts:
                part = next(iter(acts.values()))
                reasons[
                    f"in evaluation mode, as modes were not recorded, which {type(part).__name__} "
                    f"makes differ from training"
                ] += 1
            elif step.modes is not None and step.seed is None:
                drawn = next((p for n, p in draws.items() if step.modes.get(n)), None)
                if drawn is not None:
                    reasons[
                        f"and numbers of {type(drawn).__name__} drawn anew, as no seed was "
                        f"recorded (Recorder(..., seed=0))"
                    ] += 1
        return reasons
