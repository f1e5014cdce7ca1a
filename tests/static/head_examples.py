"""Small networks with a linear last layer, and what representers are made of, by dense algebra."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

import proponent as pp

N, M, D, HIDDEN = 19, 6, 4, 5


@dataclass
class Example:
    """A network in float64, its data, and its loss written out.

    ``loss(outputs, targets)`` is the loss (n,) of outputs (n, C), ``own(outputs)`` what the network
    itself predicts, and ``direction(targets)`` where the logit of the true class grows, (n, C).
    """

    model: pp.TorchModel
    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    loss: Callable[[Tensor, Tensor], Tensor]
    own: Callable[[Tensor], Tensor]
    direction: Callable[[Tensor], Tensor] | None

    def inputs(self, x: Tensor) -> Tensor:
        """Return what meets the weights: features, and 1 where there is a bias."""
        body, head = self.model.module[0], self.model.module[1]
        features = body(x).detach()
        if head.bias is None:
            return features
        return torch.cat([features, torch.ones(len(x), 1, dtype=x.dtype)], 1)

    @property
    def theta(self) -> Tensor:
        """The weights of the last layer, the bias as last column."""
        head = self.model.module[1]
        parts = [head.weight] if head.bias is None else [head.weight, head.bias[:, None]]
        return torch.cat(parts, 1).detach().clone()


def example(kind: str, *, bias: bool = True, n: int = N) -> Example:
    """Return an example by the name of its loss."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    def classes(count: int, size: int) -> Tensor:
        return torch.randint(0, count, (size,), generator=generator)

    outputs = 1 if kind == "binary" else 3
    body = nn.Sequential(nn.Linear(D, HIDDEN), nn.ReLU(), nn.Dropout())
    head = nn.Linear(HIDDEN, outputs, bias=bias)
    module = nn.Sequential(body, head).double()
    for parameter in module.parameters():
        parameter.data = normal(*parameter.shape)
    module.eval()
    sizes = (n, M)
    xs = [normal(size, D) for size in sizes]
    if kind == "multi-class":
        name, ys = "cross_entropy", [classes(3, size) for size in sizes]
        loss = lambda z, y: functional.cross_entropy(z, y, reduction="none")  # noqa: E731
        own = lambda z: z.softmax(1)  # noqa: E731
        direction = lambda y: torch.eye(3, dtype=torch.float64)[y]  # noqa: E731
    elif kind == "soft labels":
        name, ys = "cross_entropy", [normal(size, 3).softmax(1) for size in sizes]
        loss = lambda z, y: -(y * z.log_softmax(1)).sum(1)  # noqa: E731
        own = lambda z: z.softmax(1)  # noqa: E731
        direction = lambda y: y  # noqa: E731
    elif kind in ("binary", "multi-label"):
        name = "bce_with_logits"
        ys = [(normal(size, outputs) > 0).double() for size in sizes]
        loss = lambda z, y: (functional.softplus(z) - y * z).mean(1)  # noqa: E731
        own = lambda z: z.sigmoid()  # noqa: E731
        direction = lambda y: 2 * y - 1  # noqa: E731
    else:
        name, ys = "mse", [normal(size, 3) for size in sizes]
        loss = lambda z, y: (z - y).square().mean(1)  # noqa: E731
        own = lambda z: z  # noqa: E731
        direction = None
    model = pp.TorchModel(module, loss=name)
    train, test = zip(xs, ys, strict=True)
    return Example(model, train, test, loss, own, direction)


def slopes(loss: Callable[[Tensor], Tensor], outputs: Tensor) -> Tensor:
    """Return the derivatives of a loss (n,) by the outputs, (n, C)."""
    free = outputs.detach().clone().requires_grad_()
    return torch.autograd.grad(loss(free).sum(), free)[0]


def hessian(loss: Callable[[Tensor], Tensor], inputs: Tensor, theta: Tensor) -> Tensor:
    """Return the Hessian of the mean loss by the weights, (p, p)."""
    found = torch.autograd.functional.hessian(lambda at: loss(inputs @ at.T).mean(), theta)
    return found.reshape(theta.numel(), theta.numel())


def refitted(
    loss: Callable[[Tensor], Tensor], inputs: Tensor, theta: Tensor, weight_decay: float
) -> Tensor:
    """Minimise the mean loss with weight decay by damped Newton steps with dense Hessians."""

    def objective(at: Tensor) -> Tensor:
        return loss(inputs @ at.T).mean() + weight_decay / 2 * at.square().sum()

    for _ in range(60):
        gradient = torch.autograd.functional.jacobian(objective, theta)
        if gradient.norm() < 1e-15:
            break
        matrix = hessian(loss, inputs, theta)
        matrix = matrix + weight_decay * torch.eye(len(matrix), dtype=matrix.dtype)
        step = torch.linalg.solve(matrix, gradient.flatten()).view_as(theta)
        length = 1.0
        while objective(theta - length * step) > objective(theta) + 1e-14 and length > 1e-8:
            length /= 2
        theta = theta - length * step
    return theta
