"""Factors on disk, in parts, and fits that were stopped."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from gradients.kfac_examples import EXAMPLES, dense_curvature, mlp, sequence
from references import relative_error
from safetensors.torch import load_file
from torch import nn

from proponent.exceptions import InvalidInputError
from proponent.gradients.kfac import KroneckerFactors, covariances, eigenvalue_sums
from proponent.gradients.kfac import fit as fitting
from proponent.models.torch import TorchModel


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    torch.manual_seed(3)
    yield


@pytest.mark.parametrize("method", ["kfac", "ekfac"])
@pytest.mark.parametrize("name", EXAMPLES)
def test_what_was_saved_is_read_back(name: str, method: Any, tmp_path: Path) -> None:
    example = EXAMPLES[name]()
    factors = KroneckerFactors.fit(example.model, example.data, method=method)
    factors.save(tmp_path / "factors")
    read = KroneckerFactors.load(tmp_path / "factors", example.model)
    assert torch.equal(dense_curvature(read), dense_curvature(factors))
    assert (read.method, read.n, read.notes) == (factors.method, factors.n, factors.notes)
    # Undamped: any shift can be added later.
    right = torch.randn(2, factors.size)
    for shift in (0.1, 7.0):
        vectors = read.prepare(shift).solve(right).vectors
        assert torch.equal(vectors, factors.prepare(shift).solve(right).vectors)


@pytest.mark.parametrize("name", EXAMPLES)
def test_shards_add_up(name: str) -> None:
    example = EXAMPLES[name]()
    model, data = example.model, example.data
    first = [covariances(model, data, seed=4, shard=(i, 3), batch_size=4) for i in range(3)]
    plain = KroneckerFactors.from_covariances(model, first[0] + first[1] + first[2])
    whole = KroneckerFactors.fit(model, data, seed=4, method="kfac")
    assert relative_error(dense_curvature(plain), dense_curvature(whole)) < 1e-9
    second = [eigenvalue_sums(model, data, plain, seed=4, shard=(i, 3)) for i in range(3)]
    corrected = plain.corrected(second[0] + second[1] + second[2])
    whole = KroneckerFactors.fit(model, data, seed=4)
    assert relative_error(dense_curvature(corrected), dense_curvature(whole)) < 1e-9
    assert corrected.n == whole.n == len(data[0])


def test_sums_of_different_layers_are_not_added() -> None:
    example = mlp()
    whole = covariances(example.model, example.data)
    part = covariances(example.model, example.data, exclude=["0.*"])
    with pytest.raises(InvalidInputError, match="different layers"):
        whole + part


class _Stopped(Exception):
    pass


@pytest.mark.parametrize("memory", [2**29, 1])
def test_a_fit_that_was_stopped_goes_on(
    memory: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    example = sequence()
    whole = KroneckerFactors.fit(example.model, example.data)
    calls = {"covariance_pass": 0, "eigenvalue_pass": 0}

    def counted(name: str, last: int) -> Any:
        original = getattr(fitting, name)

        def run(*args: Any) -> Any:
            if calls[name] == last:
                raise _Stopped
            calls[name] += 1
            return original(*args)

        return run

    # All layers together are stopped before the second pass, one by one in the third layer.
    path = tmp_path / "factors"
    with monkeypatch.context() as patch:
        limit = 0 if memory > 1 else 2
        patch.setattr(fitting, "eigenvalue_pass", counted("eigenvalue_pass", limit))
        with pytest.raises(_Stopped):
            KroneckerFactors.fit(example.model, example.data, path=path, memory=memory)
    with pytest.raises(InvalidInputError, match="unfinished"):
        KroneckerFactors.load(path, example.model)
    with monkeypatch.context() as patch:
        for name in calls:
            calls[name] = 0
            patch.setattr(fitting, name, counted(name, 99))
        found = KroneckerFactors.fit(example.model, example.data, path=path, memory=memory)
    assert relative_error(dense_curvature(found), dense_curvature(whole)) < 1e-12
    kronecker = 3  # an embedding and two linear layers, besides two diagonal blocks
    if memory > 1:
        assert calls == {"covariance_pass": 0, "eigenvalue_pass": 1}
    else:
        # The third layer's covariances were finished when its second pass was stopped.
        assert calls == {"covariance_pass": 0, "eigenvalue_pass": kronecker - 2}
    with monkeypatch.context() as patch:
        patch.setattr(fitting, "covariance_pass", None)
        patch.setattr(fitting, "eigenvalue_pass", None)
        again = KroneckerFactors.fit(example.model, example.data, path=path)
    assert torch.equal(dense_curvature(again), dense_curvature(found))
    read = KroneckerFactors.load(path, example.model)
    assert torch.equal(dense_curvature(read), dense_curvature(found))


def test_factors_of_something_else_are_not_gone_on_with(tmp_path: Path) -> None:
    example, path = mlp(), tmp_path / "factors"
    KroneckerFactors.fit(example.model, example.data, path=path)
    with pytest.raises(InvalidInputError, match=r"another fit \(its labels differ\)"):
        KroneckerFactors.fit(example.model, example.data, path=path, seed=1)
    # kronfluence goes by the name alone.
    x, y = example.data
    for other in ((x + 1e-3, y), (x, (y + 1) % 3), (x[1:], y[1:])):
        with pytest.raises(InvalidInputError, match=r"another fit \(its .*train differ\)"):
            KroneckerFactors.fit(example.model, other, path=path)
    with torch.no_grad():
        next(example.model.module.parameters()).add_(1)
    with pytest.raises(InvalidInputError, match=r"another fit \(its module differ\)"):
        KroneckerFactors.fit(example.model, example.data, path=path)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InvalidInputError, match="no directory of factors"):
        KroneckerFactors.fit(example.model, example.data, path=tmp_path)
    other = TorchModel(nn.Linear(2, 2), loss="mse")
    with pytest.raises(InvalidInputError, match="of other parameters"):
        KroneckerFactors.load(path, other)
    with pytest.raises(InvalidInputError, match="no factors can be read"):
        KroneckerFactors.load(tmp_path / "nothing", other)


def test_damage_is_reported(tmp_path: Path) -> None:
    example, path = mlp(), tmp_path / "factors"
    KroneckerFactors.fit(example.model, example.data, path=path)
    file = path / "layer-0001.basis.safetensors"
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(InvalidInputError, match=r"layer-0001.basis.safetensors is damaged"):
        KroneckerFactors.load(path, example.model)


def test_the_files_are_open(tmp_path: Path) -> None:
    example = mlp()
    factors = KroneckerFactors.fit(example.model, example.data, path=tmp_path)
    tensors = load_file(tmp_path / "layer-0000.eigenvalues.safetensors")
    assert torch.equal(tensors["eigenvalues"], factors.blocks[0].eigenvalues)
    assert not list(tmp_path.glob("*.tmp"))
