"""A trained torch module as an object of study: its risk, its chosen parameters, its state."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from proponent._randomness import fixed_randomness
from proponent.data import Instances
from proponent.exceptions import InvalidInputError, NonFiniteError
from proponent.models.risk import Loss, Risk, risk_of

ParameterChoice = str | nn.Module | Sequence[str | nn.Module]


class TorchModel:
    """A torch module, its per-instance risk, and the parameters that gradients are taken of.

    Parameters
    ----------
    module : torch.nn.Module
        The trained module. It comes back as it was: mode, parameters, ``requires_grad``,
        buffers and random state are restored after every call, also after an exception.
    loss : str, loss module or callable, optional
        ``"cross_entropy"``, ``"mse"``, ``"bce_with_logits"`` or ``"causal_lm"``; a torch loss
        module (its reduction is undone); or a callable ``loss(output, target) -> (batch,)``.
    risk : callable, optional
        ``risk(module, batch) -> (batch,)``, in place of ``loss``: any per-instance risk. The
        batch is what the data set gives, on the module's device.
    parameters : str, module, or a list of them
        ``"all"`` (the default), ``"last"`` (the last linear layer), ``"embedding"`` (every
        embedding), parameter names or globs such as ``"encoder.*.weight"``, or modules of
        which to take all parameters. Parameters that are frozen (``requires_grad`` False) are
        left out.

    Raises
    ------
    InvalidInputError
        If ``module`` is no module, no risk is given, or ``parameters`` selects nothing.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        loss: str | nn.Module | Loss | None = None,
        risk: Risk | None = None,
        parameters: ParameterChoice = "all",
    ) -> None:
        if not isinstance(module, nn.Module):
            raise InvalidInputError(
                f"module: expected a torch.nn.Module; got {type(module).__name__}."
            )
        # A compiled module shares its parameters with the module that it was made from.
        self.module: nn.Module = getattr(module, "_orig_mod", module)
        self.risk = risk_of(loss, risk)
        self.loss_name = loss if isinstance(loss, str) else None
        self.parameters = parameters
        self.selected = select_parameters(self.module, parameters)

    def __repr__(self) -> str:
        """Return the module's class and the number of selected parameters."""
        count = sum(parameter.numel() for parameter in self.selected.values())
        return f"TorchModel({type(self.module).__name__}, {count:,} parameters selected)"

    def with_parameters(self, parameters: ParameterChoice) -> TorchModel:
        """Return the same model with another choice of parameters."""
        model = TorchModel(self.module, risk=self.risk, parameters=parameters)
        model.loss_name = self.loss_name
        return model

    @property
    def device(self) -> torch.device:
        """The device of the selected parameters."""
        return next(iter(self.selected.values())).device

    @property
    def dtype(self) -> torch.dtype:
        """The floating dtype of the module: that of its first floating parameter."""
        return next(p.dtype for p in self.module.parameters() if p.is_floating_point())

    def prepare(self, batch: Any) -> Any:
        """Move a batch to the module's device, its floating tensors to the module's dtype."""
        if isinstance(batch, Tensor):
            dtype = self.dtype if batch.is_floating_point() else batch.dtype
            return batch.to(device=self.device, dtype=dtype)
        if isinstance(batch, Mapping):
            return {key: self.prepare(value) for key, value in batch.items()}
        if isinstance(batch, (tuple, list)):
            return tuple(self.prepare(value) for value in batch)
        return batch

    def batch_risk(self, batch: Any, n: int) -> Tensor:
        """Return the risk of each of the n instances of a prepared batch, ``(n,)``.

        Raises
        ------
        InvalidInputError
            If the risk is not one number an instance.
        """
        risk = self.risk(self.module, batch)
        if not isinstance(risk, Tensor) or risk.shape != (n,):
            got = tuple(risk.shape) if isinstance(risk, Tensor) else type(risk).__name__
            hint = (
                "a reduced loss hides the instances: use reduction='none'"
                if isinstance(risk, Tensor) and risk.ndim == 0
                else "reduce it over everything but the instances"
            )
            raise InvalidInputError(
                f"the risk must have shape (batch,) = ({n},); it returned {got}. {hint}."
            )
        return risk

    def plain_risk(self, batch: Any, n: int) -> Tensor:
        """Return :meth:`batch_risk` without a graph behind it, ``(n,)``."""
        try:
            with torch.no_grad():
                return self.batch_risk(batch, n)
        except RuntimeError:
            # A risk may itself differentiate: a penalty on a gradient, say.
            return self.batch_risk(batch, n).detach()

    def risks(self, data: Any, *, batch_size: int = 256) -> Tensor:
        """Return the risk of every instance in evaluation mode, ``(n,)``.

        Raises
        ------
        NonFiniteError
            If a risk is not finite; the message names the instances.
        """
        instances = Instances.of(data)
        risks = []
        with self.evaluating():
            for start in range(0, len(instances), batch_size):
                rows = range(len(instances))[start : start + batch_size]
                batch = self.prepare(instances.batch(slice(rows.start, rows.stop)))
                risks.append(
                    check_finite(
                        self.plain_risk(batch, len(rows)),
                        instances.ids[rows.start : rows.stop],
                        "risk",
                    )
                )
        return torch.cat(risks) if risks else torch.empty(0)

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Switch to evaluation and to gradients of the selected parameters alone, for a while.

        Random numbers are drawn from a fixed seed meanwhile, so that a risk or a data set that
        draws some gives the same each time.
        """
        modes = [(module, module.training) for module in self.module.modules()]
        flags = [(parameter, parameter.requires_grad) for parameter in self.module.parameters()]
        buffers = [
            (module._buffers, name, buffer, buffer.clone())
            for module in self.module.modules()
            for name, buffer in module._buffers.items()
            if buffer is not None
        ]
        # An embedding with a largest norm writes to its weight whenever it is looked up.
        rescaled = [
            (module.weight, module.weight.detach().clone())
            for module in self.module.modules()
            if isinstance(module, (nn.Embedding, nn.EmbeddingBag)) and module.max_norm is not None
        ]
        chosen = {id(parameter) for parameter in self.selected.values()}
        try:
            with fixed_randomness(), torch.enable_grad():
                self.module.eval()
                for parameter, _ in flags:
                    parameter.requires_grad_(id(parameter) in chosen)
                yield
        finally:
            for module, training in modes:
                module.training = training
            for parameter, flag in flags:
                parameter.requires_grad_(flag)
            for weight, content in rescaled:
                weight.data.copy_(content)
            for owner, name, buffer, content in buffers:
                owner[name] = buffer
                if not torch.equal(buffer, content):
                    buffer.copy_(content)

    @contextmanager
    def at(self, state: Mapping[str, Tensor]) -> Iterator[None]:
        """Give the module the parameters and buffers of ``state`` for a while.

        The module's own tensors are set aside, not written to.

        Parameters
        ----------
        state : mapping
            Names as in ``module.state_dict()``; of tied parameters any one name.

        Raises
        ------
        InvalidInputError
            If the module has no tensor of a name, or one of another shape.
        """
        owners = dict(self.module.named_parameters(remove_duplicate=False))
        buffers = dict(self.module.named_buffers(remove_duplicate=False))
        kept = []
        try:
            for name, value in state.items():
                tensor = owners.get(name, buffers.get(name))
                if tensor is None or tensor.shape != value.shape:
                    has = "no such tensor" if tensor is None else f"shape {tuple(tensor.shape)}"
                    raise InvalidInputError(
                        f"state: {name} has shape {tuple(value.shape)}; the module has {has}."
                    )
                kept.append((tensor, tensor.data))
                tensor.data = value.to(device=tensor.device, dtype=tensor.dtype)
            yield
        finally:
            for tensor, data in reversed(kept):
                tensor.data = data


def select_parameters(module: nn.Module, choice: ParameterChoice) -> dict[str, nn.Parameter]:
    """Return the parameters that ``choice`` selects, by name and in the module's order.

    Tied parameters stand once, under their first name. Frozen parameters are left out.
    """
    names: dict[int, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    parts = [choice] if isinstance(choice, (str, nn.Module)) else list(choice)
    wanted = {identity for part in parts for identity in _matching(module, part, names)}
    chosen = {
        name: parameter for name, parameter in module.named_parameters() if id(parameter) in wanted
    }
    selected = {name: parameter for name, parameter in chosen.items() if parameter.requires_grad}
    if not selected:
        why = "all of them are frozen (requires_grad is False)" if chosen else "nothing matches"
        raise InvalidInputError(
            f"parameters={choice!r} selects no trainable parameter: {why}. The module has "
            f"{', '.join(name for name, _ in module.named_parameters()) or 'no parameters'}."
        )
    return selected


def _matching(module: nn.Module, part: str | nn.Module, names: dict[int, list[str]]) -> set[int]:
    if isinstance(part, nn.Module):
        found = {id(parameter) for parameter in part.parameters()}
        if not found <= set(names):
            raise InvalidInputError(
                f"parameters: {type(part).__name__} is not a part of the module under study."
            )
        return found
    if part == "all":
        return set(names)
    if part in ("last", "embedding"):
        kind = nn.Linear if part == "last" else nn.Embedding
        layers = [layer for layer in module.modules() if isinstance(layer, kind)]
        if not layers:
            raise InvalidInputError(
                f"parameters={part!r}: the module has no {kind.__name__}; give names or globs."
            )
        layers = layers[-1:] if part == "last" else layers
        return {id(parameter) for layer in layers for parameter in layer.parameters()}
    found = {
        identity
        for identity, aliases in names.items()
        if any(name == part or fnmatchcase(name, part) for name in aliases)
    }
    if not found:
        listed = ", ".join(name for aliases in names.values() for name in aliases)
        raise InvalidInputError(f"parameters: no parameter matches {part!r}; there are {listed}.")
    return found


def check_finite(values: Tensor, ids: Any, what: str) -> Tensor:
    """Return ``values`` (first axis: instances) if all are finite, else name the instances."""
    # One sum is quicker than a look at each value, and is not finite where a value is not.
    if torch.isfinite(values.sum()):
        return values
    finite = torch.isfinite(values).reshape(len(values), -1).all(1)
    if not finite.all():
        wrong = ids[(~finite).cpu().numpy()]
        listed = ", ".join(str(label) for label in wrong[:10]) + (
            ", ..." if len(wrong) > 10 else ""
        )
        raise NonFiniteError(
            f"the {what} of {len(wrong)} instance(s) is not finite: ids {listed}. Look at their "
            f"features and labels, or leave them out of the set."
        )
    return values
