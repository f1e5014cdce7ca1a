"""Gradients of an embedding, word by word, and their products over the words that are shared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import override

from proponent.gradients.forms import Form, Lookup, Uses
from proponent.gradients.products import Gradients, Query


def lookups(form: Form) -> tuple[list[Lookup], int]:
    """Return the uses of a parameter that look up rows of it, and the number of its other uses."""
    uses = form.forms if isinstance(form, Uses) else (form,)
    found = [use for use in uses if isinstance(use, Lookup)]
    return found, len(uses) - len(found)


def by_word(parts: Sequence[Lookup], counted: Tensor | None, top: int | None) -> Lookup:
    """Add up what each word of an instance receives.

    Parameters
    ----------
    parts : sequence of Lookup
        The uses of the embedding, for the same n instances.
    counted : bool tensor of shape (vocabulary,), optional
        The words that count; None: all of them.
    top : int, optional
        Keep so many words of each instance, those with the longest gradients.

    Returns
    -------
    Lookup
        Each word of an instance stands once; rows are filled up with zeros for word 0.
    """
    shape, n, width = parts[0].shape, parts[0].n, parts[0].right.shape[2]
    words = torch.cat([part.indices for part in parts], 1)
    rows = torch.cat([part.right for part in parts], 1)
    owners = torch.arange(n, device=words.device)[:, None].expand_as(words)
    kept = torch.ones_like(words, dtype=torch.bool) if counted is None else counted[words]
    keys, where = torch.unique(owners[kept] * shape[0] + words[kept], return_inverse=True)
    sums = rows.new_zeros(len(keys), width).index_add_(0, where, rows[kept])
    owner, word = keys // shape[0], keys % shape[0]
    if top is not None:
        longest = torch.argsort(-torch.linalg.vector_norm(sums, dim=1), stable=True)
        longest = longest[torch.argsort(owner[longest], stable=True)]
        owner, word, sums = owner[longest], word[longest], sums[longest]
    places = _places(owner, n)
    if top is not None:
        owner, word, sums, places = (value[places < top] for value in (owner, word, sums, places))
    length = int(places.max()) + 1 if len(places) else 1
    indices = word.new_zeros(n, length)
    right = rows.new_zeros(n, length, width)
    indices[owner, places] = word
    right[owner, places] = sums
    return Lookup(indices, right, shape)


class Entries(NamedTuple):
    """Rows of gradients with their instance and word, in the order of the words."""

    owners: Tensor
    words: NDArray[np.int64]
    starts: NDArray[np.int64]  # where each word's rows begin, and where the last word's end
    rows: Tensor

    @classmethod
    def of(cls, form: Lookup) -> Entries:
        """Take the gradients that are not zero."""
        owners, slots = torch.nonzero((form.right != 0).any(2), as_tuple=True)
        order = torch.argsort(form.indices[owners, slots], stable=True)
        owners, slots = owners[order], slots[order]
        words, counts = torch.unique_consecutive(form.indices[owners, slots], return_counts=True)
        starts = np.concatenate([[0], np.cumsum(counts.cpu().numpy())])
        return cls(owners, words.cpu().numpy(), starts, form.right[owners, slots])

    def of_word(self, place: int) -> slice:
        """Return where the rows of a word stand."""
        return slice(int(self.starts[place]), int(self.starts[place + 1]))


@dataclass
class WordQuery(Query):
    """Word gradients of m test instances: only words that both sides have are looked at.

    Parameters
    ----------
    name : str
        The embedding's parameter.
    entries : Entries or None
        The test instances' gradients; None where their risks do not depend on the embedding.
    m : int
        Number of test instances.
    scale : float
        A factor for the products.
    like : Tensor
        Of the products' type and device.
    """

    name: str
    entries: Entries | None
    m: int
    scale: float
    like: Tensor

    @override
    def __len__(self) -> int:
        return self.m

    @override
    def meet(
        self, train: Gradients, n: int, *, norms: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        products = self.like.new_zeros(n, self.m)
        squares = self.like.new_zeros(n)
        form = train.get(self.name)
        if isinstance(form, Lookup):
            squares = form.right.square().sum((1, 2))  # each word stands once
            for train_place, test_place, _ in self._shared(Entries.of(form)):
                (owners, rows), (others, other_rows) = train_place, test_place
                products[owners[:, None], others] += rows @ other_rows.T
        return products.mul_(self.scale), squares if norms else None

    def words(self, train: Gradients) -> dict[int, Tensor]:
        """Return what each shared word adds to the products with one training instance, (m,)."""
        form = train.get(self.name)
        found: dict[int, Tensor] = {}
        if isinstance(form, Lookup):
            for (_, rows), (others, other_rows), word in self._shared(Entries.of(form)):
                found[word] = self.like.new_zeros(self.m)
                found[word][others] = self.scale * (other_rows @ rows[0])
        return found

    def _shared(
        self, train: Entries
    ) -> list[tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor], int]]:
        """Return owners and rows on either side of each word that both have."""
        if self.entries is None:
            return []
        test = self.entries
        shared, here, there = np.intersect1d(
            train.words, test.words, assume_unique=True, return_indices=True
        )
        found = []
        for word, place, other in zip(shared, here, there, strict=True):
            a, b = train.of_word(place), test.of_word(other)
            sides = (train.owners[a], train.rows[a]), (test.owners[b], test.rows[b])
            found.append((*sides, int(word)))
        return found


def stacked(parts: Sequence[Lookup]) -> Lookup:
    """Return the gradients of consecutive batches as those of one."""
    length = max(part.positions for part in parts)
    indices = [_filled(part.indices, length) for part in parts]
    right = [_filled(part.right, length) for part in parts]
    return Lookup(torch.cat(indices), torch.cat(right), parts[0].shape)


def _filled(values: Tensor, length: int) -> Tensor:
    missing = values.new_zeros(len(values), length - values.shape[1], *values.shape[2:])
    return torch.cat([values, missing], 1)


def _places(owners: Tensor, n: int) -> Tensor:
    """Return each entry's place among those of its owner, for entries in the owners' order."""
    counts = torch.bincount(owners, minlength=n)
    starts = torch.cumsum(counts, 0) - counts
    return torch.arange(len(owners), device=owners.device) - starts[owners]
