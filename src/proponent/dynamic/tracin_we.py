"""TracInWE: gradients of word embeddings, over shared words (survey section 5.2.1.3)."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import override

from proponent.card import MethodCard
from proponent.data import Instances
from proponent.dynamic.along_run import AlongRun
from proponent.dynamic.checkpoints import choose, path_point
from proponent.dynamic.token_embedding import EmbeddingChoice, as_mask, token_embedding
from proponent.dynamic.word_gradients import Entries, WordQuery, by_word, lookups, stacked
from proponent.exceptions import InvalidInputError, RunError
from proponent.gradients.forms import Lookup
from proponent.gradients.method import MEMORY
from proponent.gradients.path import Batch, PathPoint, TestSet, batches
from proponent.gradients.products import Gradients, Query, Way
from proponent.models.run import TrainingRun

if TYPE_CHECKING:
    from typing_extensions import Self


class WordShares(NamedTuple):
    """What each shared word adds to the influence of one instance on another.

    Attributes
    ----------
    words : int array of shape (k,)
        The words that both instances have, by the size of their share.
    values : float array of shape (k,)
        Their shares; they sum to the influence.
    """

    words: NDArray[np.int64]
    values: NDArray[np.float64]


class TracInWE(AlongRun):
    """TracIn of the word embeddings, over the words that two instances share.

    ``I(z_i, z_te) = sum_c eta_c sum_w <dl_i/dE_w, dl_te/dE_w>`` over the words w that stand in
    both texts, with ``dl/dE_w`` the sum of the gradients of the embedding's output over the
    positions of w. Instances that share no word have influence 0 exactly.

    Where words are only looked up in the embedding this is the whole product of its gradients.
    Where its matrix also makes the model's output (tied embeddings), the gradient that comes in
    there is dense, and is left out as in the paper; the diagnostics say so.

    **Source** Yeh et al., NeurIPS 2022; survey section 5.2.1.3.

    **Differs from the paper in** nothing; its variants are options: ``exclude`` takes stop words
    out, ``top_words`` keeps the words with the longest gradients. Words of similar meaning are not
    matched. Special tokens (a start and an end) are kept unless they are excluded: they are what
    texts without a common word share.

    Scores are ``(n_test, n_train)``; positive means that the training instance lowers the test
    risk. :meth:`explain` says which words carry them.

    **Cost** For each checkpoint one forward-backward pass an instance of either set, less the
    weight gradients; a product of two rows for each word that two instances share. No gradient of
    the vocabulary's size is formed.

    Parameters
    ----------
    embedding : str or module, optional
        The embedding layer, its name, or the name of its parameter. None takes the module's
        ``get_input_embeddings()`` (transformers), or the only ``nn.Embedding`` that it has.
    tokens : collection of int, optional
        The only words that count; None: all.
    exclude : collection of int
        Words that do not count: stop words, special tokens. An embedding's ``padding_idx`` never
        does.
    top_words : int, optional
        Keep so many words of each instance and checkpoint, those with the longest gradients.
    checkpoints, scale_by_batch, batch_size, products, memory, dtype, progress
        As in :class:`TracInCP`; ``products`` only matters for memorization.

    Examples
    --------
    >>> import torch, proponent as pp
    >>> net = torch.nn.Sequential(torch.nn.Embedding(20, 3), torch.nn.Flatten(),
    ...                           torch.nn.Linear(12, 2))
    >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    >>> train = torch.randint(20, (10, 4)), torch.randint(2, (10,))
    >>> with pp.Recorder("runs/doc", net, optimizer, loss="cross_entropy", every=1,
    ...                  train=train, overwrite=True) as recorder:
    ...     for batch in torch.arange(10).split(5):
    ...         optimizer.zero_grad()
    ...         logits = net(train[0][batch])
    ...         torch.nn.functional.cross_entropy(logits, train[1][batch]).backward()
    ...         recorder.step(batch)
    ...         optimizer.step()
    >>> run = pp.TrainingRun.load("runs/doc", net)
    >>> pp.TracInWE().fit(run, train).influence(train).shape
    (10, 10)
    """

    card: ClassVar[MethodCard] = MethodCard(
        name="TracInWE",
        survey_name="TracInWE",
        title="TracIn Word Embeddings",
        family="dynamic",
        section="5.2.1.3",
        paper="Yeh et al., NeurIPS 2022",
        needs="a recorded training run (pp.Recorder) of a module with token embeddings",
        full_complexity="O(npK), K checkpoints",
        incremental_complexity="O(npK), K checkpoints",
        space_complexity="O(n + p)",
        storage_complexity="O(pK), K checkpoints",
        assumes=("differentiable", "optimizer"),
        group=True,
        generative=True,
        original_sign="the same",
        cost=lambda *, n, n_test, checkpoints=1, **_: float(checkpoints * (n + n_test)),
    )

    def __init__(
        self,
        *,
        embedding: EmbeddingChoice | None = None,
        tokens: Collection[int] | None = None,
        exclude: Collection[int] = (),
        top_words: int | None = None,
        checkpoints: Any = "all",
        scale_by_batch: bool = False,
        batch_size: int | None = None,
        products: Way = "auto",
        memory: int = MEMORY,
        dtype: str | None = None,
        progress: bool | None = None,
    ) -> None:
        super().__init__(
            checkpoints=checkpoints,
            scale_by_batch=scale_by_batch,
            batch_size=batch_size,
            products=products,
            memory=memory,
            dtype=dtype,
            progress=progress,
        )
        self.embedding = embedding
        self.tokens = tokens
        self.exclude = exclude
        self.top_words = top_words

    @override
    def fit(self, model: Any, train: Any, *, ids: Any = None) -> Self:
        """Take a recorded run and the training set it was recorded on.

        Parameters
        ----------
        model : TrainingRun
            The recorded run.
        train : (X, y), dict, Dataset or Instances
            The training set.
        ids : array-like of shape (n,), optional
            Unique labels of the training instances.

        Raises
        ------
        InvalidInputError
            If the model is of another kind, the set is empty, the embedding has to be named or its
            gradients cannot be told apart by word, a word is not in the vocabulary, or the risk of
            an instance depends on the other instances of its batch.
        RunError
            If the run was recorded on another training set, has no checkpoints, or did not move
            the embedding.
        """
        if not isinstance(model, TrainingRun):
            raise self._wrong_kind(model)
        top = self.top_words
        if top is not None and (isinstance(top, bool) or not isinstance(top, int) or top < 1):
            raise InvalidInputError(f"top_words must be a positive integer or None; got {top!r}.")
        found = token_embedding(model.model.module, self.embedding)
        counted = found.counted(self.tokens, self.exclude)
        super().fit(model.with_parameters(found.name), train, ids=ids)
        self._embedding = found
        self._counted = as_mask(counted, self.model_.device)
        if found.name in self._capture.coverage.differentiated:
            raise self._unruly()
        points = [path_point(model, point) for point in choose(model, "all", self.train_)]
        self._check_moved(points)
        few = np.unique(np.linspace(0, len(self.train_) - 1, 5).astype(int))
        with points[0].enter(), self.model_.evaluating():
            prepared = self.model_.prepare(self.train_.batch(few))
            form = self._capture(prepared, self.train_.ids[few]).get(found.name)
        looked_up, self._other_uses = ([], 0) if form is None else lookups(form)
        if form is not None and not looked_up:
            raise self._unruly()
        return self

    def explain(self, test: Any, train_id: Any, *, ids: Any = None) -> list[WordShares]:
        """Return which shared words carry the influence of a training instance.

        Parameters
        ----------
        test : (X, y), dict, Dataset or Instances
            The test set.
        train_id : int or str
            The id of the training instance.
        ids : array-like of shape (n_test,), optional
            Unique labels of the test instances.

        Returns
        -------
        list of WordShares
            For each test instance; the values sum to its influence.

        Raises
        ------
        NotFittedError
            If ``fit`` has not been called.
        InvalidInputError
            If the set is empty, or there is no training instance of the id.
        """
        self._rows(None)
        instances = self._tests(test, ids)
        where = np.flatnonzero(self.train_.ids == train_id)
        if len(where) != 1:
            raise InvalidInputError(f"train_id: there is no training instance {train_id!r}.")
        row = int(where[0])
        totals: list[dict[int, float]] = [{} for _ in range(len(instances))]
        query = self._query(instances)
        for point, captured in self._walk(query.points, range(row, row + 1)):
            test_side = self._word_query(query, point)
            for _, gradients in captured:
                for word, shares in test_side.words(gradients).items():
                    for total, share in zip(totals, shares.double().tolist(), strict=True):
                        if share != 0.0:
                            total[word] = total.get(word, 0.0) + point.weight * share
        return [_ordered(total) for total in totals]

    @override
    def _points(self, instances: Instances) -> tuple[PathPoint, ...]:
        points = super()._points(instances)
        self._check_moved(points)
        return points

    def _check_moved(self, points: Sequence[PathPoint]) -> None:
        name = self._embedding.name
        if all(point.weight * point.scales.get(name, 1.0) == 0.0 for point in points):
            raise RunError(
                f"the run did not move {name} from the checkpoints chosen (its learning rate was "
                f"0), so its gradients say nothing. Record a run that trains it."
            )

    @override
    def _captured(
        self, instances: Instances, cut: list[Batch]
    ) -> Iterator[tuple[Batch, Gradients]]:
        for batch, gradients in super()._captured(instances, cut):
            yield batch, self._by_word(gradients)

    def _by_word(self, gradients: Gradients) -> Mapping[str, Lookup]:
        """Return the gradients of the words that count, each word once."""
        form = gradients.get(self._embedding.name)
        if form is None:
            return {}
        found, _ = lookups(form)
        if not found:
            raise self._unruly()
        return {self._embedding.name: by_word(found, self._counted, self.top_words)}

    @override
    def _test_side(self, query: TestSet, point: PathPoint) -> tuple[Query, Tensor | None]:
        return self._word_query(query, point), None

    def _word_query(self, query: TestSet, point: PathPoint) -> WordQuery:
        name, n = self._embedding.name, len(query.instances)
        parts = [
            form
            for _, gradients in self._captured(query.instances, batches(n, self._batch_size))
            if isinstance(form := gradients.get(name), Lookup)
        ]
        like = torch.empty(0, dtype=self._capture.dtype, device=self.model_.device)
        scale, m = point.scales.get(name, 1.0), 1 if query.joint else n
        if not parts:
            return WordQuery(name, None, m, scale, like)
        whole = stacked(parts)
        if query.joint:  # all of them as one text
            one = Lookup(whole.indices.view(1, -1), whole.right.flatten(0, 1)[None], whole.shape)
            whole = by_word([one], None, None)
        return WordQuery(name, Entries.of(whole), m, scale, like)

    def _unruly(self) -> InvalidInputError:
        name = self._embedding.name
        return InvalidInputError(
            f"embedding: the gradient of {name} cannot be told apart by word, as words are not "
            f"looked up in it as it is (by nn.Embedding or functional.embedding) but by a bag, a "
            f"product, or after a transformation. TracInCP(parameters={name!r}) gives the whole "
            f"product of its gradients."
        )

    @override
    def _diagnostics(self, query: TestSet | None) -> dict[str, Any]:
        noticed = super()._diagnostics(query)
        vocabulary = self._embedding.vocabulary
        counted = vocabulary if self._counted is None else int(self._counted.sum())
        noticed |= {"embedding": self._embedding.name, "words": [counted, vocabulary]}
        if self._other_uses:
            noticed["left_out"] = (
                f"{self._embedding.name} is also used otherwise than by looking words up (tied to "
                f"the output, say); the gradient that comes in there is left out"
            )
        return noticed


def _ordered(shares: dict[int, float]) -> WordShares:
    words = np.array(sorted(shares), dtype=np.int64)
    values = np.array([shares[int(word)] for word in words], dtype=np.float64)
    order = np.argsort(-np.abs(values), kind="stable")
    return WordShares(words[order], values[order])
