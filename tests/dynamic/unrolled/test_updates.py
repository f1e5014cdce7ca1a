"""Derivatives and adjoints of optimizer steps against automatic differentiation, in float64."""

from types import SimpleNamespace

import pytest
import torch
from torch.func import jvp

from proponent.dynamic.unrolled.clipping import Clipping
from proponent.dynamic.unrolled.sgd import ScaledBuffer
from proponent.dynamic.unrolled.updates import Update

EXACT = 1e-12
SHAPES = {"weight": (3, 2), "bias": (3,), "other": (4,)}
SGD = {"momentum": 0.0, "dampening": 0.0, "weight_decay": 0.0, "nesterov": False}
ADAM = {
    "betas": [0.8, 0.9],
    "eps": 1e-3,
    "weight_decay": 0.0,
    "amsgrad": False,
    "decoupled_weight_decay": False,
}
SETTINGS = {
    "sgd": SGD,
    "weight decay": SGD | {"weight_decay": 0.3},
    "momentum": SGD | {"momentum": 0.9, "weight_decay": 0.1},
    "dampening": SGD | {"momentum": 0.9, "dampening": 0.4},
    "nesterov": SGD | {"momentum": 0.7, "nesterov": True, "weight_decay": 0.2},
    "maximise": SGD | {"momentum": 0.7, "weight_decay": 0.2, "maximize": True},
    "adam": ADAM,
    "adam, coupled": ADAM | {"weight_decay": 0.2},
    "adamw": ADAM | {"weight_decay": 0.2, "decoupled_weight_decay": True},
    "adam, maximise": ADAM | {"weight_decay": 0.2, "maximize": True},
}


def draw(seed, k=None):
    generator = torch.Generator().manual_seed(seed)
    first = () if k is None else (k,)
    return {
        name: torch.randn(*first, *shape, generator=generator, dtype=torch.float64)
        for name, shape in SHAPES.items()
    }


def sgd_step(theta, state, gradient, rate, s, first):
    """Return the new parameter and buffer as torch's documentation has them."""
    g = -gradient if s.get("maximize") else gradient
    g = g + s["weight_decay"] * theta
    if s["momentum"] == 0:
        return theta - rate * g, state
    buffer = g if first else s["momentum"] * state[0] + (1 - s["dampening"]) * g
    move = g + s["momentum"] * buffer if s["nesterov"] else buffer
    return theta - rate * move, (buffer,)


def adam_step(theta, state, gradient, rate, s, count):
    g = -gradient if s.get("maximize") else gradient
    if s["decoupled_weight_decay"]:
        theta = theta * (1 - rate * s["weight_decay"])
    else:
        g = g + s["weight_decay"] * theta
    (b1, b2), (m, v) = s["betas"], state
    m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
    m_hat, v_hat = m / (1 - b1**count), v / (1 - b2**count)
    return theta - rate * m_hat / (v_hat.sqrt() + s["eps"]), (m, v)


class Example:
    """A step from drawn values, and its linear map by automatic differentiation."""

    def __init__(self, name, *, first=False, clip=None, frozen=()):
        self.settings = SETTINGS[name]
        self.kind = "adam" if "betas" in self.settings else "sgd"
        self.rates = {"weight": 0.1, "bias": 0.1, "other": 0.03}
        self.first, self.clip = first, clip
        self.moved = [name for name in SHAPES if name not in frozen]
        self.theta, self.gradient = draw(0), draw(1)
        entries = 1 if self.kind == "sgd" else 2
        self.state = [draw(2), {k: v.square() for k, v in draw(3).items()}][:entries]
        if first:
            self.state = [{k: torch.zeros_like(v) for k, v in part.items()} for part in self.state]
        self.count = 1 if first else 5

    def _scale(self, gradient):
        if self.clip is None:
            return 1.0
        norm = torch.cat([gradient[name].flatten() for name in self.moved]).norm()
        return self.clip / (norm + 1e-6)

    def take(self, theta, states, gradient):
        """Take the step; ``states`` is a list of mappings."""
        scale = self._scale(gradient)
        theta, states = dict(theta), [dict(part) for part in states]
        for name in self.moved:
            state = tuple(part[name] for part in states)
            values = theta[name], state, gradient[name] * scale, self.rates[name], self.settings
            if self.kind == "sgd":
                theta[name], state = sgd_step(*values, self.first)
            else:
                theta[name], state = adam_step(*values, self.count)
            for part, value in zip(states, state, strict=True):
                part[name] = value
        return theta, states

    def update(self):
        scale = float(self._scale(self.gradient))
        entries = ("momentum_buffer",) if self.kind == "sgd" else ("exp_avg", "exp_avg_sq")
        state = {
            name: {
                "step": torch.tensor(self.count - 1.0),
                **{e: part[name] for e, part in zip(entries, self.state, strict=True)},
            }
            for name in SHAPES
        }
        groups = [
            SimpleNamespace(parameters=names, frozen=(), settings=self.settings)
            for names in (("weight", "bias"), ("other",))
        ]
        for group in groups:
            group.frozen = tuple(n for n in group.parameters if n not in self.moved)
        step = SimpleNamespace(
            groups=groups,
            learning_rates=(0.1, 0.03),
            clip_scale=scale,
            without_gradient=(),
        )
        moment = SimpleNamespace(
            step=step,
            parameters=self.theta,
            state={} if self.first else state,
            gradient={name: self.gradient[name] * scale for name in self.moved},
        )
        return Update.of(moment, self.kind)

    def states_of(self, parts):
        return {name: tuple(part[name] for part in parts) for name in SHAPES}


def error(found, expected):
    return float((found - expected).abs().max() / expected.abs().max().clamp_min(1e-300))


CASES = [
    (name, first, clip, frozen)
    for name in SETTINGS
    for first in (False, True)
    for clip, frozen in ((None, ()), (0.5, ()), (0.5, ("bias",)))
]


@pytest.mark.parametrize(("name", "first", "clip", "frozen"), CASES)
def test_forward_is_the_derivative(name, first, clip, frozen):
    example = Example(name, first=first, clip=clip, frozen=frozen)
    k = 3
    h, dg = draw(10, k), draw(11, k)
    zero = {n: torch.zeros_like(v) for n, v in h.items()}
    dstates = [zero if first else draw(12 + i, k) for i in range(len(example.state))]
    changes, states = example.update().forward(h, example.states_of(dstates), dg)
    for j in range(k):
        pick = lambda part, j=j: {n: v[j] for n, v in part.items()}  # noqa: E731
        _, (theta_dot, states_dot) = jvp(
            example.take,
            (example.theta, example.state, example.gradient),
            (pick(h), [pick(part) for part in dstates], pick(dg)),
        )
        for n in SHAPES:
            assert error(changes[n][j], theta_dot[n]) < EXACT
            for place, part in enumerate(states_dot):
                if part[n].any():
                    assert error(states[n][place][j], part[n]) < EXACT


@pytest.mark.parametrize(("name", "first", "clip", "frozen"), CASES)
def test_adjoint_is_the_transpose(name, first, clip, frozen):
    update = Example(name, first=first, clip=clip, frozen=frozen).update()
    entries = 2 if "betas" in SETTINGS[name] else 1
    h, dg, u = draw(10, 2), draw(11, 2), draw(20, 2)
    zero = {n: torch.zeros_like(v) for n, v in h.items()}
    before = [zero if first else draw(12 + i, 2) for i in range(entries)]
    after = [draw(22 + i, 2) for i in range(entries)]
    as_states = lambda parts: {n: tuple(p[n] for p in parts) for n in SHAPES}  # noqa: E731
    changes, states = update.forward(h, as_states(before), dg)
    adjoints = {n: v.clone() for n, v in u.items()}
    if entries == 2:
        pulled_back = {n: tuple(part[n].clone() for part in after) for n in SHAPES}
    else:
        pulled_back = {n: ScaledBuffer(after[0][n] / 0.3, 0.3) for n in SHAPES}
    pulled = update.pull(adjoints, pulled_back)
    gradients = {n: pulled.vectors[n].clone() * pulled.factors[n] for n in pulled.vectors}
    update.settle(adjoints, pulled_back, pulled)
    assert set(gradients) == set(SHAPES) - set(frozen)
    left = sum((u[n] * changes[n]).sum() for n in SHAPES)
    left += sum((after[i][n] * states[n][i]).sum() for n in SHAPES for i in range(entries))
    right = sum((adjoints[n] * h[n]).sum() for n in SHAPES)
    right += sum((gradients[n] * dg[n]).sum() for n in gradients)
    for n, state in pulled_back.items():
        parts = state if entries == 2 else (state.values * state.factor,)
        right += sum((part * before[i][n]).sum() for i, part in enumerate(parts))
    assert abs(left - right) < EXACT * abs(left)


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("name", [name for name in SETTINGS if "adam" not in name])
def test_the_adjoint_of_one_entry_is_that_of_all(name, first):
    step = Example(name, first=first).update().steps["weight"]
    adjoint, buffer = torch.tensor([1.3], dtype=torch.float64), ScaledBuffer(torch.tensor([0.7]))
    found = step.adjoint(1.3, 0.7)
    vector, factor = step.pull(adjoint, buffer)
    gradient = float(vector) * factor
    step.settle(adjoint, buffer, vector, factor)
    expected = gradient, float(adjoint), float(buffer.values) * buffer.factor
    assert found == pytest.approx(expected, rel=1e-6)


def test_small_factors_of_a_buffer_are_multiplied_out():
    buffer = ScaledBuffer(torch.ones(2, dtype=torch.float64))
    expected = 1.0
    for _ in range(2000):
        buffer.scale(0.5)
        buffer.add(torch.ones(2, dtype=torch.float64), 1.0)
        expected = expected * 0.5 + 1.0
    assert abs(float(buffer.values[0]) * buffer.factor - expected) < 1e-12
    buffer.scale(0.0)
    buffer.add(torch.ones(2, dtype=torch.float64), 3.0)
    assert float(buffer.values[0]) * buffer.factor == 3.0


def test_entries_that_never_had_a_gradient_move_by_their_first_moment_alone():
    example = Example("adam", first=True)
    example.gradient["bias"][1] = 0.0
    dg = {n: torch.ones_like(v)[None] for n, v in example.gradient.items()}
    zero = {n: torch.zeros_like(v) for n, v in dg.items()}
    changes, _ = example.update().forward(zero, {}, dg)
    # (g + d) / (|g + d| + eps) at g = 0 has slope 1 / eps.
    assert error(changes["bias"][0, 1], torch.tensor(-0.1 / 1e-3)) < EXACT
    assert all(torch.isfinite(v).all() for v in changes.values())


def test_clipping_is_the_derivative_of_torchs_own():
    values, change = draw(1), draw(2)

    def clipped(t):
        parameters = [torch.nn.Parameter(torch.zeros(shape)) for shape in SHAPES.values()]
        for parameter, name in zip(parameters, SHAPES, strict=True):
            parameter.data = parameter.data.double()
            parameter.grad = values[name] + t * change[name]
        torch.nn.utils.clip_grad_norm_(parameters, 0.7)
        return [p.grad for p in parameters]

    slope = [(a - b) / 2e-6 for a, b in zip(clipped(1e-6), clipped(-1e-6), strict=True)]
    scale = float(clipped(0)[0].norm() / values["weight"].norm())
    now = dict(zip(SHAPES, clipped(0), strict=True))
    found = Clipping.of(scale, now, SHAPES)({n: v[None] for n, v in change.items()})
    for name, part in zip(SHAPES, slope, strict=True):
        assert error(found[name][0], part) < 1e-8
