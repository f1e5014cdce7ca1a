"""Fitted scikit-learn linear models as objects of study, with the objective that they minimise.

The estimator's coefficients become the parameters of a linear layer in float64, its loss and
penalty a risk and a weight decay, and its labels targets. A gradient method then sees the very
function that scikit-learn minimised; no damping stands in for what is known exactly.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from typing_extensions import override

from proponent._randomness import fixed_randomness
from proponent.data import Instances
from proponent.exceptions import InvalidInputError
from proponent.models.sklearn_encoder import Encoder, labels_of
from proponent.models.sklearn_objective import Objective, objective_of, refused
from proponent.models.sklearn_parts import dense, pipeline_parts, scikit_learn_class
from proponent.models.torch import TorchModel

# How much of a single instance's gradient may be left of the objective's. At 1 influences are some
# per cent off; at a thousandth retrained models still differ more by chance than by an instance.
NOT_CONVERGED = 1.0
COMPARABLE = 1e-3
NEWTON = " (logistic regression: or with solver='newton-cholesky')"


@dataclass(frozen=True)
class LinearStudy:
    """A fitted scikit-learn linear model, as gradient methods study it.

    Attributes
    ----------
    model : TorchModel
        A linear layer in float64 with the estimator's coefficients, and its risk.
    weight_decay : dict
        lambda of ``weight`` and, where there is one, ``bias``, in ``mean risk + (lambda / 2)
        ||parameter||^2``; scikit-learn does not penalise the intercept.
    train : Instances
        The training set, encoded.
    encoder : Encoder
        How instances are encoded.
    notes : tuple of str
        What a reader of the numbers should know.
    warnings : tuple of str
        What may be wrong with them.
    """

    model: TorchModel
    weight_decay: dict[str, float]
    train: Instances
    encoder: Encoder
    notes: tuple[str, ...]
    warnings: tuple[str, ...]

    def encode(self, data: Any, *, ids: Any = None, role: str = "test") -> Instances:
        """Return instances as the model takes them, in the same order and with the same ids.

        Parameters
        ----------
        data : (X, y) or Instances
            Features as the estimator (or pipeline) takes them, and labels of its kind.
        ids : array-like of shape (n,), optional
            Unique labels of the instances.
        role : str
            The argument's name in error messages.

        Raises
        ------
        InvalidInputError
            If a label is not of a class that the estimator knows, or the features do not fit it.
        """
        encoded = data is self.train
        return self.train if encoded else self.encoder(data, ids=ids, role=role)


class SoftmaxLinear(nn.Linear):
    """A linear layer to the logits of a softmax, without the direction that a softmax ignores.

    Adding a number to all logits changes no probability. The layer's own outputs are coordinates
    in an orthonormal basis of the logits that sum to zero, so that every direction of its
    parameters counts, and norms are those of the coefficients.

    Parameters
    ----------
    features, classes : int
    bias : bool
    """

    contrasts: Tensor

    def __init__(self, features: int, classes: int, bias: bool) -> None:
        from scipy.linalg import helmert

        super().__init__(features, classes - 1, bias, dtype=torch.float64)
        self.register_buffer("contrasts", torch.as_tensor(helmert(classes).T.copy()))

    @override
    def forward(self, x: Tensor) -> Tensor:
        """Return logits ``(batch, classes)`` for features ``(batch, features)``."""
        return functional.linear(super().forward(x), self.contrasts)


def is_linear_estimator(model: object) -> bool:
    """Whether an object is a scikit-learn linear model, or a pipeline that ends in one.

    It may still be one that :func:`linear_study` refuses, with the reason.
    """
    return scikit_learn_class(pipeline_parts(model)[1]).__module__.startswith(
        "sklearn.linear_model"
    )


def linear_study(estimator: Any, train: Any, *, ids: Any = None) -> LinearStudy:
    """See a fitted scikit-learn linear model as a torch model, a risk and a weight decay.

    Covers LinearRegression, Ridge and RidgeCV (several outputs too), RidgeClassifier,
    LogisticRegression (binary or multinomial), the classifiers' cross-validated forms,
    SGDClassifier with the logistic loss and SGDRegressor with squared error, each with the L2
    penalty or none, and pipelines that end in one of them. Risks are the squared error
    ``(y - f)^2`` (mean over several outputs) and the cross-entropy in nats.

    Parameters
    ----------
    estimator : scikit-learn linear model, or a pipeline that ends in one
        Fitted to ``train``, without ``sample_weight``: an estimator does not keep it.
    train : (X, y) or Instances
        The training set, as it was given to ``fit``.
    ids : array-like of shape (n,), optional
        Unique labels of the training instances.

    Returns
    -------
    LinearStudy

    Raises
    ------
    InvalidInputError
        If the estimator is not fitted or not covered, or the training set does not fit it.
    """
    transformers, final = pipeline_parts(estimator)
    if not hasattr(final, "coef_"):
        raise refused(final, "it is not fitted", "call its fit(X, y) first")
    labels = labels_of(Instances.of(train, role="train"), "train")
    if not len(labels):
        raise InvalidInputError("train: the set is empty; pass what the estimator was fitted to.")
    objective = objective_of(final, labels)
    encoder = Encoder(final, transformers, objective.codes)
    encoded = encoder(train, ids=ids, role="train")
    with fixed_randomness():  # torch fills a layer with random numbers first
        layer = _layer(final, objective)
    decays = {"weight": objective.weight_decay, "bias": objective.intercept_decay}
    weight_decay = {name: decays[name] for name, _ in layer.named_parameters()}
    model = TorchModel(layer, loss=objective.loss)
    notes = [*objective.notes, "sample_weight, if any was given to fit, is not known: taken as 1."]
    if transformers:
        notes.append("the pipeline's transformers are held fixed, whatever is left out.")
    remaining, warnings = _remaining_gradient(layer, objective, encoded, weight_decay), []
    if remaining > NOT_CONVERGED:
        warnings.append(
            f"the {type(final).__name__} is not at the minimum of its objective on this training "
            f"set: the gradient left is {remaining:.2g} of a single instance's. If its solver "
            f"stopped early, refit with tol=1e-10 and a larger max_iter{NEWTON}; if it was fitted "
            f"to other data, or with sample_weight, these numbers are not about it."
        )
    elif remaining > COMPARABLE:
        notes.append(
            f"the solver stopped when {remaining:.2g} of a single instance's gradient was left: "
            f"enough for influences, but differences between refits at this tolerance are noise. "
            f"To compare with refits, fit with tol=1e-10{NEWTON}."
        )
    return LinearStudy(model, weight_decay, encoded, encoder, tuple(notes), tuple(warnings))


def _layer(estimator: Any, objective: Objective) -> nn.Linear:
    """Return the estimator's linear function as a layer in float64."""
    weight = torch.as_tensor(np.atleast_2d(dense(estimator.coef_)).astype(np.float64))
    outputs, features = weight.shape
    bias = torch.as_tensor(np.atleast_1d(estimator.intercept_).astype(np.float64))
    bias, has_bias = bias.expand(outputs), bool(estimator.fit_intercept)
    if objective.softmax:
        softmax = SoftmaxLinear(features, outputs, has_bias)
        weight, bias = softmax.contrasts.T @ weight, softmax.contrasts.T @ bias
        layer: nn.Linear = softmax
    else:
        layer = nn.Linear(features, outputs, has_bias, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(weight)
        if has_bias:
            layer.bias.copy_(bias)
    return layer


def _remaining_gradient(
    layer: nn.Linear, objective: Objective, train: Instances, weight_decay: dict[str, float]
) -> float:
    """Return how far from zero the objective's gradient is, in single instances' gradients.

    The largest entry of ``|sum_i g_i + n lambda theta|``, each divided by the root mean square of
    that entry of the ``g_i``: no scale of a feature matters.
    """
    features, targets = (torch.as_tensor(column) for column in train.batch(slice(None)))
    with torch.enable_grad():
        outputs = layer(features).detach().requires_grad_()
        (slopes,) = torch.autograd.grad(objective.risk(outputs, targets).sum(), outputs)
    if isinstance(layer, SoftmaxLinear):
        slopes = slopes @ layer.contrasts
    largest = 0.0
    for name, parameter in layer.named_parameters():
        inputs = features if name == "weight" else torch.ones_like(features[:, :1])
        theta = parameter.detach().reshape(len(slopes.T), -1)
        total = slopes.T @ inputs + len(features) * weight_decay[name] * theta
        single = slopes.T.square() @ inputs.square() / len(features)
        # Below this a gradient is the rounding of a perfect fit.
        rounding = torch.finfo(outputs.dtype).eps * outputs.detach().square().mean()
        bound = (single + rounding * inputs.square().mean(0)).sqrt()
        largest = max(largest, float((total.abs() / bound).nan_to_num(0.0).max()))
    return largest
