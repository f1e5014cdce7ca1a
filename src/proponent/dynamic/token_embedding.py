"""Which embedding of a module holds its words."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from proponent.exceptions import InvalidInputError

EmbeddingChoice = str | nn.Module


@dataclass(frozen=True)
class TokenEmbedding:
    """An embedding of a module.

    Attributes
    ----------
    name : str
        Of its parameter, the first one where it is tied.
    weight : Parameter
        Of shape (vocabulary, width).
    padding : int or None
        The word that is not learnt.
    """

    name: str
    weight: nn.Parameter
    padding: int | None

    @property
    def vocabulary(self) -> int:
        """Number of words."""
        return len(self.weight)

    def counted(
        self, tokens: Collection[int] | None, exclude: Collection[int]
    ) -> NDArrayBool | None:
        """Return which words count, ``(vocabulary,)``; None where all do.

        Raises
        ------
        InvalidInputError
            If a word is not in the vocabulary, or none is left.
        """
        if tokens is None and not len(exclude) and self.padding is None:
            return None
        counted = np.full(self.vocabulary, tokens is None)
        counted[self._words(tokens or (), "tokens")] = True
        counted[self._words(exclude, "exclude")] = False
        if self.padding is not None:
            counted[self.padding] = False
        if not counted.any():
            raise InvalidInputError("tokens, exclude: no word is left to be compared.")
        return counted

    def _words(self, words: Iterable[int], what: str) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        listed = list(words)
        wrong = [
            word
            for word in listed
            if isinstance(word, bool)
            or not isinstance(word, (int, np.integer))
            or not 0 <= word < self.vocabulary
        ]
        if wrong:
            raise InvalidInputError(
                f"{what}: {wrong[0]!r} is not a word of the embedding; words are numbers in "
                f"0 .. {self.vocabulary - 1}."
            )
        return np.array(listed, dtype=np.int64)


NDArrayBool = np.ndarray[tuple[int], np.dtype[np.bool_]]


def token_embedding(module: nn.Module, choice: EmbeddingChoice | None) -> TokenEmbedding:
    """Return the embedding that is chosen, or the one that there is.

    Parameters
    ----------
    module : torch.nn.Module
        The module.
    choice : str or module, optional
        The name of an embedding layer or of its parameter, or the layer. None takes what the
        module's ``get_input_embeddings()`` returns, else the only embedding that it has.

    Raises
    ------
    InvalidInputError
        If there is none, or one of several has to be chosen; or it does something else with its
        gradients than adding them up by word.
    """
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    layer, weight = _chosen(module, choice)
    if id(weight) not in names or weight.ndim != 2:
        raise InvalidInputError(
            f"embedding={choice!r}: expected a layer of the module under study with a matrix of "
            f"embeddings (words, width)."
        )
    for setting, what in (
        ("max_norm", "changes the embeddings when they are looked up"),
        ("scale_grad_by_freq", "divides gradients by counts of a whole batch"),
    ):
        if getattr(layer, setting, None):
            raise InvalidInputError(
                f"embedding: {names[id(weight)]} has {setting}={getattr(layer, setting)!r}, which "
                f"{what}; TracInWE has no rule for it. Use "
                f"TracInCP(parameters={names[id(weight)]!r})."
            )
    padding = getattr(layer, "padding_idx", None)
    return TokenEmbedding(
        names[id(weight)], weight, None if padding is None else int(padding) % len(weight)
    )


def _chosen(
    module: nn.Module, choice: EmbeddingChoice | None
) -> tuple[nn.Module | None, nn.Parameter]:
    if isinstance(choice, nn.Module):
        return choice, _matrix(choice, choice)
    layers = dict(module.named_modules())
    if isinstance(choice, str):
        if choice in layers:
            return layers[choice], _matrix(layers[choice], choice)
        parameters = dict(module.named_parameters(remove_duplicate=False))
        if choice in parameters:
            return layers[choice.rpartition(".")[0]], parameters[choice]
        raise InvalidInputError(
            f"embedding: the module has no layer or parameter {choice!r}; it has {_listed(module)}."
        )
    if choice is not None:
        raise InvalidInputError(f"embedding: expected a name or a module; got {choice!r}.")
    own = getattr(module, "get_input_embeddings", None)
    if callable(own):
        layer = own()
        if isinstance(layer, nn.Module):
            return layer, _matrix(layer, "get_input_embeddings()")
    found = _embeddings(module)
    weights = {id(layer.weight) for layer in found.values()}
    if len(weights) != 1:
        what = "several embeddings" if weights else "no embedding layer"
        raise InvalidInputError(
            f"embedding: the module has {what}: {_listed(module)}. Name the one that holds the "
            f"words, such as TracInWE(embedding={next(iter(found), 'words.weight')!r})."
        )
    only = next(iter(found.values()))
    return only, _matrix(only, choice)


def _embeddings(module: nn.Module) -> dict[str, nn.Embedding | nn.EmbeddingBag]:
    return {
        name: layer
        for name, layer in module.named_modules()
        if isinstance(layer, (nn.Embedding, nn.EmbeddingBag))
    }


def _matrix(layer: nn.Module, choice: object) -> nn.Parameter:
    matrices = [parameter for parameter in layer.parameters() if parameter.ndim == 2]
    if len(matrices) != 1:
        raise InvalidInputError(
            f"embedding={choice!r}: {type(layer).__name__} has {len(matrices)} matrices among its "
            f"parameters; name the parameter that holds the words."
        )
    return matrices[0]


def _listed(module: nn.Module) -> str:
    found = [
        f"{name} ({len(layer.weight):,} x {layer.weight.shape[1]})"
        for name, layer in _embeddings(module).items()
    ]
    others = [name for name, p in module.named_parameters() if p.ndim == 2]
    return ", ".join(found) or f"no nn.Embedding, but the matrices {', '.join(others) or 'none'}"


def as_mask(counted: NDArrayBool | None, device: torch.device) -> Tensor | None:
    """Return which words count as a tensor."""
    return None if counted is None else torch.from_numpy(counted).to(device)
