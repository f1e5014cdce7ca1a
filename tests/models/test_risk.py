"""Per-instance risks: their mean is torch's own loss, and nothing is silently broadcast."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from proponent.exceptions import InvalidInputError
from proponent.models.risk import LOSSES, risk_of

N, CLASSES, LENGTH = 6, 4, 5


@pytest.fixture(autouse=True)
def double_precision():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


class Given(nn.Module):
    """A module that returns its input, so that a test gives the outputs."""

    def forward(self, output):
        return output


def risk(loss, output, target):
    return risk_of(loss, None)(Given(), (output, target))


def one_by_one(loss, output, target):
    """The truth: torch's mean-reduced loss of each instance alone."""
    return torch.stack([loss(output[i : i + 1], target[i : i + 1]) for i in range(len(output))])


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "shape, target_shape",
    [
        ((N, CLASSES), (N,)),
        ((N, CLASSES, LENGTH), (N, LENGTH)),
        ((N, CLASSES, 2, 3), (N, 2, 3)),
    ],
)
def test_cross_entropy(shape, target_shape):
    logits, target = torch.randn(shape), torch.randint(0, CLASSES, target_shape)
    found = risk("cross_entropy", logits, target)
    close(found, one_by_one(functional.cross_entropy, logits, target))
    close(found.mean(), functional.cross_entropy(logits, target))


def test_cross_entropy_with_classes_last():
    logits, target = torch.randn(N, LENGTH, CLASSES), torch.randint(0, CLASSES, (N, LENGTH))
    found = risk("cross_entropy", logits, target)
    close(found, one_by_one(functional.cross_entropy, logits.movedim(-1, 1), target))


def test_cross_entropy_where_both_readings_fit():
    # As many positions as classes: torch's reading, classes on axis 1.
    logits, target = torch.randn(N, CLASSES, CLASSES), torch.randint(0, CLASSES, (N, CLASSES))
    found = risk("cross_entropy", logits, target)
    close(found, one_by_one(functional.cross_entropy, logits, target))


def test_cross_entropy_of_probabilities():
    logits, target = torch.randn(N, CLASSES), torch.rand(N, CLASSES).softmax(1)
    found = risk("cross_entropy", logits, target)
    close(found, one_by_one(functional.cross_entropy, logits, target))


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8, torch.int16, torch.float64])
def test_cross_entropy_of_labels_of_any_type(dtype):
    logits, target = torch.randn(N, CLASSES), torch.randint(0, CLASSES, (N,))
    found = risk("cross_entropy", logits, target.to(dtype))
    close(found, one_by_one(functional.cross_entropy, logits, target))


def test_cross_entropy_of_a_column_of_labels():
    logits, target = torch.randn(N, CLASSES), torch.randint(0, CLASSES, (N,))
    close(risk("cross_entropy", logits, target[:, None]), risk("cross_entropy", logits, target))


def masked_targets():
    target = torch.randint(0, CLASSES, (N, LENGTH))
    target[0, 2:] = target[3, :4] = -100
    return target


@pytest.mark.parametrize("loss", ["cross_entropy", nn.CrossEntropyLoss()], ids=["name", "module"])
def test_masked_tokens_are_left_out_of_the_mean(loss):
    logits, target = torch.randn(N, CLASSES, LENGTH), masked_targets()
    found = risk(loss, logits, target)
    close(found, one_by_one(functional.cross_entropy, logits, target))


def test_another_ignored_label():
    logits, target = torch.randn(N, CLASSES, LENGTH), torch.randint(0, CLASSES, (N, LENGTH))
    target[:, 0] = 1
    target[:, 1] = 2
    loss = nn.CrossEntropyLoss(ignore_index=1)
    close(risk(loss, logits, target), one_by_one(loss, logits, target))


@pytest.mark.parametrize("loss", ["cross_entropy", nn.CrossEntropyLoss()], ids=["name", "module"])
def test_nothing_but_masked_tokens(loss):
    """The mean of nothing is no risk, not a number that is none."""
    logits, target = torch.randn(N, CLASSES, LENGTH, requires_grad=True), masked_targets()
    target[1] = -100
    found = risk(loss, logits, target)
    assert found[1] == 0
    (gradient,) = torch.autograd.grad(found.sum(), logits)
    assert not gradient[1].any()
    assert torch.isfinite(gradient).all()
    single = risk("cross_entropy", logits[:, :, 0], torch.full((N,), -100))
    assert not single.any()


def test_next_token():
    logits, tokens = torch.randn(N, LENGTH, CLASSES), torch.randint(0, CLASSES, (N, LENGTH))
    tokens[2, 3:] = -100
    found = risk("causal_lm", logits, tokens)
    expected = [functional.cross_entropy(logits[i, :-1], tokens[i, 1:]) for i in range(N)]
    close(found, torch.stack(expected))


def test_next_token_with_as_many_tokens_as_words():
    # Positions less one are the vocabulary: the classes stay on the last axis.
    logits = torch.randn(N, CLASSES + 1, CLASSES)
    tokens = torch.randint(0, CLASSES, (N, CLASSES + 1))
    expected = [functional.cross_entropy(logits[i, :-1], tokens[i, 1:]) for i in range(N)]
    close(risk("causal_lm", logits, tokens), torch.stack(expected))


@pytest.mark.parametrize("shape", [(N,), (N, 1), (N, 3), (N, 2, 3)])
def test_mse(shape):
    output, target = torch.randn(shape), torch.randn(shape)
    found = risk("mse", output, target)
    close(found, one_by_one(functional.mse_loss, output, target))
    close(found.mean(), functional.mse_loss(output, target))


@pytest.mark.parametrize("shape", [(N,), (N, 1), (N, 3)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.int64, torch.bool])
def test_bce_with_logits(shape, dtype):
    output, target = torch.randn(shape), (torch.rand(shape) > 0.5).to(dtype)
    found = risk("bce_with_logits", output, target)
    truth = functional.binary_cross_entropy_with_logits
    close(found, one_by_one(truth, output, target.double()))


@pytest.mark.parametrize("name", ["mse", "bce_with_logits"])
@pytest.mark.parametrize("shapes", [((N, 1), (N,)), ((N,), (N, 1))])
def test_a_column_of_targets_is_not_broadcast(name, shapes):
    """(n, 1) and (n,) make (n, n) by broadcasting, and every risk a mean over the batch."""
    output, target = torch.randn(shapes[0]), torch.rand(shapes[1])
    found = risk(name, output, target)
    assert found.shape == (N,)
    close(found, risk(name, output.reshape(N), target.reshape(N)))


@pytest.mark.parametrize(
    "loss, make",
    [
        (nn.CrossEntropyLoss, lambda: (torch.randn(N, CLASSES), torch.arange(N) % CLASSES)),
        (nn.NLLLoss, lambda: (torch.randn(N, CLASSES).log_softmax(1), torch.arange(N) % CLASSES)),
        (nn.MSELoss, lambda: (torch.randn(N, 3), torch.randn(N, 3))),
        (nn.L1Loss, lambda: (torch.randn(N), torch.randn(N))),
        (nn.SmoothL1Loss, lambda: (torch.randn(N, 2, 2), torch.randn(N, 2, 2))),
        (nn.BCEWithLogitsLoss, lambda: (torch.randn(N, 3), torch.rand(N, 3))),
        (nn.BCELoss, lambda: (torch.rand(N, 3), torch.rand(N, 3))),
        (nn.MultiMarginLoss, lambda: (torch.randn(N, CLASSES), torch.arange(N) % CLASSES)),
        (nn.PoissonNLLLoss, lambda: (torch.randn(N), torch.rand(N))),
        (
            lambda **options: nn.CrossEntropyLoss(label_smoothing=0.1, **options),
            lambda: (torch.randn(N, CLASSES), torch.arange(N) % CLASSES),
        ),
    ],
)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_loss_modules(loss, make, reduction):
    """Mean: the mean of the risks is the loss. Sum: their sum is."""
    module, (output, target) = loss(reduction=reduction), make()
    found = risk(module, output, target)
    assert found.shape == (N,)
    if reduction == "sum":
        close(found.sum(), module(output, target))
    else:
        close(found.mean(), loss(reduction="mean")(output, target))
    assert module.reduction == reduction


def test_divergence_by_batch():
    output, target = torch.randn(N, 3).log_softmax(1), torch.randn(N, 3).softmax(1)
    module = nn.KLDivLoss(reduction="batchmean")
    close(risk(module, output, target).mean(), module(output, target))


def test_weighted_classes():
    weights = torch.tensor([1.0, 2.0, 0.5, 3.0])
    logits, target = torch.randn(N, CLASSES), torch.arange(N) % CLASSES
    found = risk(nn.CrossEntropyLoss(weight=weights), logits, target)
    plain = functional.cross_entropy(logits, target, reduction="none")
    close(found, weights[target] * plain)


def test_the_users_loss_module_is_left_alone():
    module = nn.CrossEntropyLoss(weight=torch.ones(CLASSES))
    before = dict(vars(module))
    risk(module, torch.randn(N, CLASSES), torch.arange(N) % CLASSES)
    assert vars(module) == before
    assert module.reduction == "mean"


def test_callable_loss():
    output, target = torch.randn(N, 3), torch.randn(N, 3)
    found = risk(lambda o, t: (o - t).abs().amax(1), output, target)
    close(found, (output - target).abs().amax(1))


def test_risk_is_taken_as_it_is():
    def own(module, batch):
        return module(batch).sum(1)

    assert risk_of(None, own) is own


class Sum(nn.Module):
    def forward(self, first, second):
        return first + second


def test_several_inputs():
    first, second, target = (torch.randn(N, 3) for _ in range(3))
    found = risk_of("mse", None)(Sum(), (first, second, target))
    close(found, one_by_one(functional.mse_loss, first + second, target))


@pytest.mark.parametrize("name", ["labels", "label", "target", "targets", "y"])
def test_dict_batch(name):
    first, second, target = (torch.randn(N, 3) for _ in range(3))
    batch = {"first": first, name: target, "second": second}
    found = risk_of("mse", None)(Sum(), batch)
    close(found, one_by_one(functional.mse_loss, first + second, target))


@pytest.mark.parametrize(
    "batch, message",
    [
        ({"first": torch.ones(2), "second": torch.ones(2)}, "target under one of labels.*first, s"),
        ((torch.ones(2),), "one column.*risk=callable"),
        (torch.ones(2), "one column"),
    ],
)
def test_batches_without_a_target(batch, message):
    with pytest.raises(InvalidInputError, match=message):
        risk_of("mse", None)(Sum(), batch)


@pytest.mark.parametrize("label", [CLASSES, -1, -99, 1000])
@pytest.mark.parametrize("shape, target_shape", [((N, CLASSES), (N,)), ((N, CLASSES, 2), (N, 2))])
def test_labels_out_of_range(label, shape, target_shape):
    target = torch.zeros(target_shape, dtype=torch.long)
    target.flatten()[3] = label
    with pytest.raises(InvalidInputError, match=f"label {label} is out of range for 4 classes"):
        risk("cross_entropy", torch.randn(shape), target)


@pytest.mark.parametrize(
    "name, shape, target_shape",
    [
        ("cross_entropy", (N, CLASSES), (N, 2)),
        ("cross_entropy", (N, CLASSES), (N - 1,)),
        ("cross_entropy", (N,), (N,)),
        ("cross_entropy", (N, LENGTH, CLASSES), (N,)),
        ("mse", (N, 3), (N,)),
        ("mse", (N, 3), (N, 2)),
        ("bce_with_logits", (N, 2), (N, 1)),
    ],
)
def test_targets_that_do_not_fit(name, shape, target_shape):
    target = torch.zeros(target_shape, dtype=torch.long if name == "cross_entropy" else None)
    with pytest.raises(InvalidInputError, match=rf"{name}: .*do not fit targets of shape \(6|\(5"):
        risk(name, torch.randn(shape), target)


@pytest.mark.parametrize("wrong", [1.5, -0.1])
def test_targets_of_bce_that_are_no_probabilities(wrong):
    target = torch.zeros(N)
    target[2] = wrong
    with pytest.raises(InvalidInputError, match="bce_with_logits: targets must lie between 0 and"):
        risk("bce_with_logits", torch.randn(N), target)


def test_unknown_loss():
    with pytest.raises(InvalidInputError, match="loss: unknown name 'crossentropy'; known names"):
        risk_of("crossentropy", None)
    for name in LOSSES:
        assert callable(risk_of(name, None))
    with pytest.raises(InvalidInputError, match="loss: expected a name, a loss module or a call"):
        risk_of(3, None)


def test_neither_or_both():
    for pair in ((None, None), ("mse", lambda module, batch: 0)):
        with pytest.raises(InvalidInputError, match=r"give exactly one of loss=.* and risk="):
            risk_of(*pair)
