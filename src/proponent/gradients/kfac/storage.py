"""Kronecker factors on disk: a manifest, and safetensors files layer by layer.

    manifest.json
    layer-0000.basis.safetensors          eigenvectors, and K-FAC's eigenvalues
    layer-0000.eigenvalues.safetensors    EK-FAC's eigenvalues

Each file is complete or not there, so that a fit that was stopped goes on with the next layer.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from proponent.exceptions import InvalidInputError
from proponent.gradients.fingerprint import fingerprint
from proponent.gradients.kfac.blocks import Block
from proponent.gradients.kfac.layers import Layer
from proponent.gradients.space import ParameterSpace

if TYPE_CHECKING:
    from proponent.gradients.kfac.fit import Method
    from proponent.gradients.kfac.passes import FisherGradients

FORMAT = 1
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class FactorStore:
    """A directory of factors, of the layers that its manifest lists."""

    path: Path
    positions: Mapping[str, int]

    @classmethod
    def open(cls, path: str | Path, header: Mapping[str, Any]) -> FactorStore:
        """Start a directory of factors, or go on with one.

        Raises
        ------
        InvalidInputError
            If the directory holds something else, or factors made from something else.
        """
        folder = Path(path)
        file = folder / MANIFEST
        if file.exists():
            found = _read_manifest(folder)
            # The bases are the same for both methods.
            keys = [key for key in header if key != "method" and found.get(key) != header[key]]
            if keys:
                raise InvalidInputError(
                    f"path: {folder} holds factors of another fit (its {', '.join(keys)} differ); "
                    f"choose another directory."
                )
        elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise InvalidInputError(
                f"path: {folder} is no directory of factors; choose an empty or a new one."
            )
        folder.mkdir(parents=True, exist_ok=True)
        _write(file, json.dumps(header, indent=1).encode())
        return cls(folder, _positions(header))

    def read(self, layer: Layer) -> tuple[Block | None, bool]:
        """Return a layer's block, None where it is not there yet, and whether it is corrected."""
        basis, eigenvalues = self._files(layer)
        if not basis.exists():
            return None, False
        tensors = _load(basis)
        corrected = eigenvalues.exists()
        values = _load(eigenvalues)["eigenvalues"] if corrected else tensors["eigenvalues"]
        return Block(layer, tensors.get("left"), tensors.get("right"), values), corrected

    def write_basis(self, block: Block) -> None:
        """Write a layer's eigenvectors and its eigenvalues by K-FAC."""
        tensors = {"left": block.left, "right": block.right, "eigenvalues": block.eigenvalues}
        _save(self._files(block.layer)[0], tensors)

    def write_eigenvalues(self, block: Block) -> None:
        """Write a layer's corrected eigenvalues."""
        _save(self._files(block.layer)[1], {"eigenvalues": block.eigenvalues})

    def _files(self, layer: Layer) -> tuple[Path, Path]:
        stem = f"layer-{self.positions[layer.weight]:04d}"
        return (
            self.path / f"{stem}.basis.safetensors",
            self.path / f"{stem}.eigenvalues.safetensors",
        )


def manifest(
    gradients: FisherGradients, method: Method, excluded: Sequence[str], layers: Sequence[Layer]
) -> dict[str, Any]:
    """Return what factors are made from: enough to tell whether a fit can be gone on with."""
    instances, labels = gradients.instances, gradients.labels
    if labels is None:
        drawn: Any = {"sampled": gradients.seed}
    elif isinstance(labels, str):
        drawn = labels
    else:
        given = torch.as_tensor(labels).detach().cpu()
        drawn = {"given": fingerprint({"labels": given})}
    source = {
        "labels": drawn,
        "train": instances.fingerprint(),
        "module": fingerprint(gradients.model.module.state_dict()),
        "dtype": str(gradients.precision),
    }
    space = ParameterSpace.of(gradients.model)
    return {**_header(space, layers, method, len(instances), excluded), **source}


def write_factors(
    path: str | Path,
    space: ParameterSpace,
    blocks: Sequence[Block],
    method: Method,
    n: int,
    excluded: Sequence[str],
) -> None:
    """Write finished factors to a directory that is new or empty.

    Raises
    ------
    InvalidInputError
        If the directory holds anything else.
    """
    header = _header(space, [block.layer for block in blocks], method, n, excluded)
    store = FactorStore.open(path, header)
    for block in blocks:
        store.write_basis(block)
        if method == "ekfac":
            store.write_eigenvalues(block)


def read_factors(
    path: str | Path, space: ParameterSpace
) -> tuple[list[Block], Method, int, tuple[str, ...]]:
    """Return the blocks, the method, n and the parameters that were left out.

    Raises
    ------
    InvalidInputError
        If there are no factors, some are unfinished, or they are of other parameters.
    """
    folder = Path(path)
    header = _read_manifest(folder)
    if header["parameters"] != _parameters(space):
        raise InvalidInputError(
            f"path: the factors in {folder} are of other parameters "
            f"({', '.join(header['parameters'])}) than the model's ({', '.join(space.names)}), "
            f"or of other shapes."
        )
    store = FactorStore(folder, _positions(header))
    method: Method = header["method"]
    blocks: list[Block] = []
    missing: list[str] = []
    for entry in header["layers"]:
        layer = Layer.described(entry)
        block, corrected = store.read(layer)
        if block is None or (method == "ekfac" and not corrected and not layer.diagonal):
            missing.append(layer.name)
        else:
            blocks.append(block)
    if missing:
        raise InvalidInputError(
            f"path: the factors in {folder} are unfinished; missing are the layers "
            f"{', '.join(missing)}. Go on with KroneckerFactors.fit(..., path={str(folder)!r})."
        )
    blocks = [_moved(block, space.device) for block in blocks]
    return blocks, method, header["n"], tuple(header["excluded"])


def _header(
    space: ParameterSpace, layers: Sequence[Layer], method: str, n: int, excluded: Sequence[str]
) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "method": method,
        "n": n,
        "excluded": list(excluded),
        "parameters": _parameters(space),
        "layers": [layer.describe() for layer in layers],
    }


def _parameters(space: ParameterSpace) -> dict[str, list[int]]:
    return {name: list(shape) for name, shape in zip(space.names, space.shapes, strict=True)}


def _positions(header: Mapping[str, Any]) -> dict[str, int]:
    return {entry["weight"]: position for position, entry in enumerate(header["layers"])}


def _read_manifest(folder: Path) -> dict[str, Any]:
    file = folder / MANIFEST
    try:
        header: dict[str, Any] = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise InvalidInputError(f"path: no factors can be read from {folder} ({error}).") from error
    if header.get("format") != FORMAT:
        raise InvalidInputError(
            f"path: the factors in {folder} have format {header.get('format')}; this version of "
            f"the library reads format {FORMAT}."
        )
    return header


def _load(file: Path) -> dict[str, Tensor]:
    try:
        tensors: dict[str, Tensor] = load_file(file)
    except (OSError, SafetensorError) as error:
        raise InvalidInputError(f"path: {file} is damaged ({error}); delete it.") from error
    return tensors


def _save(file: Path, tensors: Mapping[str, Tensor | None]) -> None:
    present = {name: value.contiguous() for name, value in tensors.items() if value is not None}
    temporary = file.with_name(file.name + ".tmp")
    save_file(present, temporary)
    os.replace(temporary, file)


def _write(file: Path, content: bytes) -> None:
    temporary = file.with_name(file.name + ".tmp")
    temporary.write_bytes(content)
    os.replace(temporary, file)


def _moved(block: Block, device: torch.device) -> Block:
    left = None if block.left is None else block.left.to(device)
    right = None if block.right is None else block.right.to(device)
    return Block(block.layer, left, right, block.eigenvalues.to(device))
