"""K-FAC and EK-FAC against dense Fishers of the same pseudo-gradients."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from gradients.kfac_examples import (
    CLASSES,
    EXAMPLES,
    Example,
    N,
    basis,
    called_twice,
    classes,
    cnn,
    dense_curvature,
    joint,
    matrix,
    mlp,
    second_moment,
    sequence,
    transposed,
    without_factors,
)
from references import relative_error
from torch import Tensor, nn

from proponent.exceptions import InvalidInputError
from proponent.gradients.kfac import FactorError, KroneckerFactors
from proponent.gradients.kfac import fit as fitting
from proponent.models.torch import TorchModel


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    torch.manual_seed(1)
    yield


def fit(example: Example, **options: Any) -> KroneckerFactors:
    return KroneckerFactors.fit(example.model, example.data, **options)


@pytest.mark.parametrize("name", EXAMPLES)
def test_eigenvalues_are_the_second_moments_in_the_eigenbasis(name: str) -> None:
    example = EXAMPLES[name]()
    factors, gradients = fit(example, batch_size=6, seed=3), example.gradients(seed=3)
    assert sorted(p for b in factors.blocks for p in b.layer.parameters) == sorted(
        example.model.selected
    )
    for block in factors.blocks:
        vectors = basis(block)
        expected = (vectors.T @ second_moment(block, gradients) @ vectors).diagonal()
        assert relative_error(vectors.T @ vectors, torch.eye(len(vectors))) < 1e-12
        assert relative_error(block.eigenvalues.flatten(), expected) < 1e-11, block.layer.name


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_corrected_eigenvalues_are_nearer_to_the_fisher(name: str) -> None:
    example = EXAMPLES[name]()
    corrected, plain = fit(example), fit(example, method="kfac")
    gradients = example.gradients()
    for block, other in zip(corrected.blocks, plain.blocks, strict=True):
        fisher = second_moment(block, gradients)
        error = float((matrix(block) - fisher).norm())
        assert error <= float((matrix(other) - fisher).norm()) * (1 + 1e-12), block.layer.name


@pytest.mark.parametrize("method", ["kfac", "ekfac"])
@pytest.mark.parametrize("name", EXAMPLES)
def test_batches_and_memory_do_not_change_the_factors(name: str, method: Any) -> None:
    example = EXAMPLES[name]()
    whole = dense_curvature(fit(example, method=method, batch_size=N))
    for options in ({"batch_size": 5}, {"batch_size": 16, "memory": 2000}, {"memory": 1}):
        assert relative_error(dense_curvature(fit(example, method=method, **options)), whole) < 1e-9


def test_kfac_of_one_position_is_the_product_of_the_covariances() -> None:
    example = mlp()
    gradients = example.gradients()
    blocks = fit(example, method="kfac").blocks
    inputs = [example.data[0]]
    for part in example.model.module:
        inputs.append(part(inputs[-1]).detach())
    for block, a in zip(blocks, (inputs[0], inputs[2], inputs[3]), strict=True):
        if block.layer.bias is not None:
            a = torch.cat([a, torch.ones(N, 1)], 1)
        # One position: G_i = d_i a_i^T, so that d_i = G_i a_i / ||a_i||^2.
        g = joint(block, gradients).view(N, block.layer.rows, -1)
        d = (g @ a[:, :, None])[:, :, 0] / a.square().sum(1, keepdim=True)
        assert relative_error(matrix(block), torch.kron(d.T @ d / N, a.T @ a / N)) < 1e-11


def test_masked_positions_count_for_nothing() -> None:
    words, targets = sequence().data
    example = sequence()
    more = torch.randint(0, 7, (N, 3))
    padded = torch.cat([words, more], 1), torch.cat([targets, torch.full_like(more, -100)], 1)
    # Labels are drawn position by position, so that those before the padding stay.
    for method in ("kfac", "ekfac"):
        short = KroneckerFactors.fit(example.model, (words, targets), method=method)
        long = KroneckerFactors.fit(example.model, padded, method=method)
        assert relative_error(dense_curvature(long), dense_curvature(short)) < 1e-10


def test_kfac_of_a_sequence_counts_positions_for_inputs_and_instances_for_outputs() -> None:
    example = sequence()
    words, targets = example.data
    embed, norm, first, act, last = example.model.module
    a = act(first(norm(embed(words)))).detach()
    kept = targets != -100
    fitted = fit(example, method="kfac", labels=targets)
    block = next(block for block in fitted.blocks if block.layer.name == "4")
    # Given labels, the output gradients of sqrt(K) times the mean over K kept positions.
    wrong = last(a).softmax(2) - nn.functional.one_hot(targets.clamp(min=0), CLASSES)
    d = (wrong * kept[:, :, None] / kept.sum(1).sqrt()[:, None, None]).detach()
    a = torch.cat([a, torch.ones(N, a.shape[1], 1)], 2)
    inputs = a[kept].T @ a[kept] / kept.sum()
    expected = torch.kron(torch.einsum("nto,ntp->op", d, d) / N, inputs)
    assert relative_error(matrix(block), expected) < 1e-12


def _least_squares() -> tuple[Example, Tensor, Tensor]:
    """Multi-output least squares, each input with residuals that average to N(0, 1/2)."""
    net = nn.Linear(4, 2)
    x = torch.randn(6, 4).repeat_interleave(4, 0)
    signs = torch.tensor([[1.0, 1], [1, -1], [-1, 1], [-1, -1]]).repeat(6, 1)
    labels = net(x).detach() + signs / 2**0.5
    return Example(TorchModel(net, loss="mse"), (x, torch.zeros(24, 2))), labels, torch.eye(2)


def _uniform_softmax() -> tuple[Example, Tensor, Tensor]:
    """Softmax regression at W = 0, each input once with each label."""
    net = nn.Linear(4, CLASSES)
    nn.init.zeros_(net.weight)
    nn.init.zeros_(net.bias)
    x = torch.randn(6, 4).repeat_interleave(CLASSES, 0)
    labels = torch.arange(CLASSES).repeat(6)
    hessian = torch.eye(CLASSES) / CLASSES - 1 / CLASSES**2
    return Example(TorchModel(net, loss="cross_entropy"), (x, classes(len(x)))), labels, hessian


@pytest.mark.parametrize("method", ["kfac", "ekfac"])
@pytest.mark.parametrize("case", [_least_squares, _uniform_softmax])
def test_exact_where_the_loss_is_curved_the_same_everywhere(case: Any, method: Any) -> None:
    example, labels, hessian = case()
    factors = fit(example, labels=labels, method=method)
    x = torch.cat([example.data[0], torch.ones(len(labels), 1)], 1)
    (block,) = factors.blocks
    gauss_newton = torch.kron(hessian, x.T @ x / len(x))
    assert relative_error(matrix(block), gauss_newton) < 1e-12
    right = torch.randn(3, factors.size)
    ours = joint(block, factors.space.unflatten(factors.prepare(0.1).solve(right).vectors))
    shifted = gauss_newton + 0.1 * torch.eye(len(gauss_newton))
    expected = torch.linalg.solve(shifted, joint(block, factors.space.unflatten(right)).T).T
    assert relative_error(ours, expected) < 1e-12


def test_a_layer_called_twice_is_not_two_layers() -> None:
    example = called_twice()
    blocks = {block.layer.name: block for block in fit(example).blocks}
    assert set(blocks) == {"linear", "conv", "head"}
    assert all(block.layer.bias for block in blocks.values())
    gradients = example.gradients()
    trace = second_moment(blocks["linear"], gradients).trace()
    assert relative_error(blocks["linear"].eigenvalues.sum(), trace) < 1e-12


def test_what_has_no_factors_is_diagonal_and_says_so() -> None:
    factors = fit(without_factors())
    diagonal = {block.layer.name for block in factors.blocks if block.layer.diagonal}
    norm = {"norm.weight", "norm.bias"}
    assert diagonal == norm | {"table.weight", "grouped.weight", "grouped.bias", "scale"}
    assert any(note.startswith("table.weight") and "tied" in note for note in factors.notes)
    assert any(note.startswith("grouped") for note in factors.notes)


def test_the_bias_of_a_transposed_weight_is_a_row() -> None:
    blocks = {block.layer.weight: block for block in fit(transposed()).blocks}
    first = blocks["first_weight"].layer
    assert first.bias == "first_bias" and first.bias_on_left
    assert (first.rows, first.columns) == (5, 3)
    assert blocks["second"].layer.bias is None


def test_excluded_parameters_are_left_out_and_named() -> None:
    example = cnn()
    factors = fit(example, exclude=["2.*", "5.bias"])
    assert factors.excluded == ("2.weight", "5.bias")
    assert [block.layer.parameters for block in factors.blocks] == [
        ("0.weight", "0.bias"),
        ("5.weight",),
    ]
    assert any("2.weight, 5.bias" in note for note in factors.notes)
    solved = factors.space.unflatten(
        factors.prepare(1.0).solve(torch.ones(1, factors.size)).vectors
    )
    assert not solved["2.weight"].any() and solved["5.weight"].any()
    with pytest.raises(InvalidInputError, match="nothing matches 'head'"):
        fit(example, exclude=["head"])


def test_the_empirical_fisher_has_the_labels_of_the_data() -> None:
    example = mlp()
    named = fit(example, labels="observed")
    given = fit(example, labels=example.data[1])
    assert relative_error(dense_curvature(named), dense_curvature(given)) < 1e-12
    assert relative_error(dense_curvature(fit(example)), dense_curvature(given)) > 0.05


def test_embeddings_of_two_dimensions_of_words() -> None:
    net = nn.Sequential(nn.Embedding(7, 3), nn.Flatten(), nn.Linear(12, CLASSES))
    data = torch.randint(0, 7, (N, 2, 2)), classes(N)
    example = Example(TorchModel(net, loss="cross_entropy"), data)
    block, gradients = fit(example, batch_size=4).blocks[0], example.gradients()
    assert block.left is None and block.eigenvalues.shape == (7, 3)
    vectors = basis(block)
    expected = (vectors.T @ second_moment(block, gradients) @ vectors).diagonal()
    assert relative_error(block.eigenvalues.flatten(), expected) < 1e-12


class _Root(nn.Module):
    """Its slope is infinite at 0, and its value finite."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 3)
        self.last = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        # The bias is used twice, and the second time not by the layer: it has its own block.
        return self.last((self.first(x) - self.first.bias).abs().sqrt())


@pytest.mark.parametrize("memory", [2**29, 1])
def test_a_gradient_that_is_not_finite_is_reported_by_layer(memory: int, tmp_path: Path) -> None:
    x = torch.randn(N, 3)
    x[11] = 0
    model = TorchModel(_Root(), loss="cross_entropy", parameters=["first.*", "last.*"])
    data = x, classes(N, 2)
    with pytest.raises(FactorError, match=r"layer 'first'.*ids 11") as caught:
        KroneckerFactors.fit(model, data, memory=memory, batch_size=4, path=tmp_path)
    stored = {file.name for file in tmp_path.glob("*.safetensors")}
    assert stored == {"layer-0002.basis.safetensors", "layer-0002.eigenvalues.safetensors"}
    assert set(caught.value.failed) == {"first", "first.bias"}
    finished = caught.value.factors
    reference = KroneckerFactors.fit(model, data, exclude=["first.*"])
    (block,), (expected,) = finished.blocks, reference.blocks
    assert block.layer.name == "last"
    assert relative_error(matrix(block), matrix(expected)) < 1e-12


@pytest.mark.parametrize("memory", [2**29, 1])
def test_an_eigendecomposition_that_fails_costs_its_own_layer_alone(
    memory: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """kronfluence loses the whole fit with the last layer."""
    example = mlp()
    eigh = torch.linalg.eigh

    def failing(matrix: Tensor) -> Any:
        if len(matrix) == CLASSES:  # the output gradients of the last layer
            raise torch.linalg.LinAlgError("no convergence")
        return eigh(matrix)

    with monkeypatch.context() as patch:
        patch.setattr(torch.linalg, "eigh", failing)
        with pytest.raises(FactorError, match=r"1 of 3 layers.*layer '3'.*no conv") as caught:
            fit(example, memory=memory, path=tmp_path)
    whole = fit(example)
    for found, expected in zip(caught.value.factors.blocks, whole.blocks[:2], strict=True):
        assert relative_error(matrix(found), matrix(expected)) < 1e-12
    finished = {file.name: file.stat().st_mtime_ns for file in tmp_path.glob("*.safetensors")}
    assert len(finished) == 4
    again = fit(example, memory=memory, path=tmp_path)
    assert relative_error(dense_curvature(again), dense_curvature(whole)) < 1e-12
    assert all((tmp_path / name).stat().st_mtime_ns == at for name, at in finished.items())


def test_a_fit_that_fails_leaves_nothing_on_the_module() -> None:
    """curvlinops leaves two hooks behind, and later results are wrong."""
    example = mlp()
    calls = 0

    def risk(module: nn.Module, batch: Any) -> Tensor:
        nonlocal calls
        calls += 1
        if calls > 25:
            raise RuntimeError("stopped")
        return example.model.risk(module, batch)

    model = TorchModel(example.model.module, risk=risk)
    with pytest.raises(RuntimeError, match="stopped"):
        KroneckerFactors.fit(model, example.data, labels="observed", batch_size=1)
    for module in example.model.module.modules():
        assert not module._forward_hooks and not module._forward_pre_hooks
        assert not module._backward_hooks and not module._backward_pre_hooks
    untouched = Example(mlp().model, example.data)
    untouched.model.module.load_state_dict(example.model.module.state_dict())
    assert torch.equal(dense_curvature(fit(example)), dense_curvature(fit(untouched)))


def test_groups_of_layers_keep_to_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    example = mlp()
    sides = [(6, 4), (4, 4), (5, 3)]
    # Sums, bases and eigenvalues of each layer, and what its decomposition takes.
    held = [16 * (a * a + b * b) + 16 * a * b for a, b in sides]
    work = [32 * max(a, b) ** 2 for a, b in sides]
    seen: list[tuple[str, ...]] = []
    original = fitting.covariance_pass

    def watched(gradients: Any, layers: Any) -> Any:
        seen.append(tuple(layer.name for layer in layers))
        return original(gradients, layers)

    monkeypatch.setattr(fitting, "covariance_pass", watched)
    both = sum(held[:2]) + max(work[:2])
    for memory, groups in (
        (sum(held) + max(work), [("0", "2", "3")]),
        (both, [("0", "2"), ("3",)]),
        (both - 1, [("0",), ("2", "3")]),
        (1, [("0",), ("2",), ("3",)]),
    ):
        fit(example, memory=memory)
        assert seen == groups
        seen.clear()


def test_settings_that_cannot_be_used_are_refused() -> None:
    example = mlp()
    for options, message in (
        ({"method": "shampoo"}, "expected 'ekfac' or 'kfac'"),
        ({"batch_size": 0}, "batch_size"),
        ({"memory": 0}, "memory"),
        ({"labels": "drawn"}, "labels"),
        ({"labels": torch.zeros(3)}, "labels: expected one entry for each of the 17"),
    ):
        with pytest.raises(InvalidInputError, match=message):
            fit(example, **options)


def test_the_model_comes_back_as_it_was() -> None:
    example = cnn()
    module = example.model.module.train()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    state = torch.get_rng_state()
    fit(example)
    assert module.training and torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in module.parameters())
