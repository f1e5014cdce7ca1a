"""TreeSim and LeafSim: instances that an ensemble sees alike, with a sign by their labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Unpack, override

from proponent.card import MethodCard
from proponent.data import Instances
from proponent.exceptions import InvalidInputError
from proponent.method import BLOCK_SCORES
from proponent.trees.losses import Values
from proponent.trees.method import TreeMethod, TreeSettings
from proponent.trees.tree_kernels import Kernel, TreeKernel, tree_kernel
from proponent.trees.view import LeafRows, LeafView

Measure = Literal["dot", "cosine", "euclidean", "l1"]


@dataclass(frozen=True, eq=False)
class _Asked:
    """Test instances in their leaves, and for a regression what is predicted for them."""

    tests: LeafRows
    predicted: Values | None

    def __len__(self) -> int:
        return len(self.tests)


class TreeSim(TreeMethod):
    r"""How alike a training and a test instance are to an ensemble, with a sign by their labels.

    .. math::
        I(z_i, z_{te}) = \pm \sum_{t, c} \phi_l^2 \, 1[l_t(i) = l_t(te) = l]

    The sign is that of a neighbour: + for an instance of the test instance's class, - for one of
    another; for a regression + where both targets lie on the same side of the prediction for the
    test instance. "I(z_i, z_te) =" is LeafSim as it stands: :math:`\phi_l` is one over the number
    of training instances in the leaf, and the measure is the dot product.

    **Source** Brophy, Hammoudeh and Lowd, JMLR 2023 (TreeSim, LeafSim); beyond the survey.

    **Differs from the paper in** the distances: a similarity is ``1 / (1 + distance)`` instead of
    ``1 / distance``, which ranks alike and is finite for instances that share all leaves; and trees
    that all classes share, which a kernel without leaf values counts once. Features that are all 0
    have cosine 0 with everything.

    Scores are ``(n_test, n_train)`` and have no unit: they are no change of a risk. Positive means
    that the training instance speaks for the label of the test instance.

    **Cost** For each test instance and tree the training instances in its leaf; for
    ``kernel="to"`` all of them. The sum over a test set (``joint=True``) of the dot product takes
    O((n + n_test) T), memorization O(nT).

    Parameters
    ----------
    kernel : "lpw", "lp", "lo", "low" or "to"
        The feature of a leaf: 1 ("lp"), 1 / its number of training instances ("lpw"), its value
        ("lo"), its value / the number ("low"); or the outputs of the trees for features ("to").
    measure : "dot", "cosine", "euclidean" or "l1"
        The products of the features; of their directions; or one over one and their distance. A
        Euclidean distance is known to about 1e-8 of the features' length.
    approximate
        As in :class:`TreeMethod`.

    Examples
    --------
    >>> import proponent as pp
    >>> from sklearn.datasets import load_breast_cancer
    >>> from sklearn.ensemble import RandomForestClassifier
    >>> X, y = load_breast_cancer(return_X_y=True)
    >>> train, test = (X[:400], y[:400]), (X[400:], y[400:])
    >>> model = RandomForestClassifier(n_estimators=20, random_state=0).fit(*train)
    >>> influence = pp.TreeSim().fit(model, train).influence(test)
    >>> bool((y[influence.proponents(k=3).ids] == y[400:, None]).all())
    True
    """

    card: ClassVar[MethodCard] = MethodCard(
        name="TreeSim",
        title="Tree-Ensemble Similarity",
        aliases=("LeafSim",),
        family="trees",
        paper="Brophy, Hammoudeh and Lowd, JMLR 2023",
        needs="a fitted tree ensemble of XGBoost, LightGBM, CatBoost or scikit-learn",
        full_complexity="O(nT)",
        incremental_complexity="O(nT)",
        space_complexity="O(nT)",
        storage_complexity="0",
        original_sign="the same: positive where the labels agree",
    )

    def __init__(
        self,
        *,
        kernel: Kernel = "lpw",
        measure: Measure = "dot",
        **settings: Unpack[TreeSettings],
    ) -> None:
        super().__init__(**settings)
        self.kernel = kernel
        self.measure = measure

    @override
    def _check(self, view: LeafView) -> None:
        if self.measure not in get_args(Measure):
            raise InvalidInputError(
                f"measure={self.measure!r}: expected one of "
                f"{', '.join(map(repr, get_args(Measure)))}."
            )
        if view.classes is None and view.train.targets.ndim == 2 and len(view.train.targets) > 1:
            raise InvalidInputError(
                f"train: instances with {len(view.train.targets)} targets lie on no one side of a "
                f"prediction, so their similarity has no sign; TreeSim takes classes or one target."
            )
        self._kernel = tree_kernel(view, self.kernel)

    @override
    def _query(self, instances: Instances) -> _Asked:
        return self._asked(self._place(instances))

    def _asked(self, tests: LeafRows) -> _Asked:
        if self.view_.classes is not None:
            return _Asked(tests, None)
        return _Asked(tests, self.view_.raw(tests)[0])

    # Scores

    @override
    def _scores(self, query: _Asked, rows: range) -> NDArray[np.floating[Any]]:
        train = self._train_rows(rows)
        scores = _similarity(self._kernel, train, query.tests, self.measure)
        np.negative(scores, out=scores, where=~self._agree(train, query))
        return scores

    @override
    def _joint_scores(self, query: _Asked, rows: range) -> NDArray[np.floating[Any]]:
        train = self._train_rows(rows)
        if self.measure == "dot":
            return _joint_products(self._kernel, train, query)
        total = np.zeros(len(rows))
        size = max(1, BLOCK_SCORES // max(1, len(query)))
        for start in range(0, len(rows), size):
            part = rows[start : start + size]
            total[start : start + size] = self._scores(query, part).sum(axis=0)
        return total

    @override
    def _self_scores(self, rows: range) -> NDArray[np.floating[Any]]:
        train = self._train_rows(rows)
        if self.measure in ("euclidean", "l1"):
            return np.ones(len(train))
        norms = self._kernel.norms(train)
        return norms if self.measure == "dot" else np.asarray(norms > 0, dtype=np.float64)

    def _agree(self, train: LeafRows, query: _Asked) -> NDArray[np.bool_]:
        """Return whether labels agree, ``(m, n)``."""
        if query.predicted is None:
            return np.asarray(query.tests.labels[:, None] == train.labels)
        side = _targets(query.tests) >= query.predicted
        return np.asarray((_targets(train) >= query.predicted[:, None]) == side[:, None])


def _targets(rows: LeafRows) -> Values:
    return np.asarray(rows.targets.reshape(-1), dtype=np.float64)


def _similarity(kernel: TreeKernel, train: LeafRows, tests: LeafRows, measure: Measure) -> Values:
    """Return how alike the features are, ``(m, n)``, without a sign."""
    if measure in ("dot", "cosine"):
        scores = kernel.products(train, tests)
        if measure == "cosine":
            scores /= _lengths(kernel, train)
            scores /= _lengths(kernel, tests)[:, None]
        return scores
    power = 2 if measure == "euclidean" else 1
    if kernel.of_trees:
        distance = np.zeros((len(tests), len(train)))
        for trees, left, _, test in kernel.blocks(train, tests):
            for own, other in zip(left, kernel.of(trees, test), strict=True):
                distance += np.abs(other[:, None] - own) ** power
    else:
        # Sums in the same order of trees, so that the distance of equals is 0 and not rounding.
        distance = kernel.products(train, tests, power=power)
        distance *= -2.0
        distance += kernel.norms(train, power) + kernel.norms(tests, power)[:, None]
    if measure == "euclidean":
        np.maximum(distance, 0.0, out=distance)  # rounding, of those that are almost equal
        np.sqrt(distance, out=distance)
    distance += 1.0
    return np.divide(1.0, distance, out=distance)


def _lengths(kernel: TreeKernel, rows: LeafRows) -> Values:
    """Return lengths to divide by, ``(n,)``: 1 for features that are all 0."""
    lengths = np.sqrt(kernel.norms(rows))
    return np.where(lengths > 0, lengths, 1.0)


def _joint_products(kernel: TreeKernel, train: LeafRows, query: _Asked) -> Values:
    """Return the sum over tests of dot products with their signs, ``(n,)``: O((n + m) T)."""
    tests, total = query.tests, np.zeros(len(train))
    signs = _class_sums if query.predicted is None else _side_sums
    for trees, left, train_leaves, test_leaves in kernel.blocks(train, tests):
        factors = kernel.of(trees, test_leaves)
        for at, tree in enumerate(trees):
            own, other = train_leaves[at].astype(np.intp), test_leaves[at].astype(np.intp)
            leaves = int(kernel.first[tree + 1] - kernel.first[tree])
            if kernel.of_trees:  # other leaves count too
                own, other, leaves = np.zeros_like(own), np.zeros_like(other), 1
            total += left[at] * signs(own, train, other, query, factors[at], leaves)
    return total


def _class_sums(
    own: NDArray[np.intp],
    train: LeafRows,
    other: NDArray[np.intp],
    query: _Asked,
    factors: Values,
    leaves: int,
) -> Values:
    """Return the tests' factors in each training instance's leaf, those of other classes less."""
    tests = query.tests
    classes = int(max(train.labels.max(), tests.labels.max())) + 1
    sums = np.bincount(other * classes + tests.labels, factors, leaves * classes)
    sums = 2.0 * sums - np.repeat(sums.reshape(leaves, classes).sum(axis=1), classes)
    return np.asarray(sums[own * classes + train.labels])


def _side_sums(
    own: NDArray[np.intp],
    train: LeafRows,
    other: NDArray[np.intp],
    query: _Asked,
    factors: Values,
    leaves: int,
) -> Values:
    """Return the same with signs by the side of each test's prediction."""
    tests, predicted = query.tests, query.predicted
    if predicted is None:
        raise TypeError("sides are those of a prediction")
    order = np.argsort(predicted, kind="stable")
    below = np.searchsorted(predicted[order], _targets(train), side="right")
    signed = np.where(_targets(tests) >= predicted, factors, -factors)[order]
    # Leaf by leaf, tests in the order of their predictions: those up to a target are a stretch.
    other = other[order]
    within = np.argsort(other, kind="stable")
    until = np.concatenate([[0.0], np.cumsum(signed[within])])
    keys = (other * (len(other) + 1) + np.arange(len(other)))[within]
    bounds = np.searchsorted(other[within], np.arange(leaves + 1))
    reached = np.searchsorted(keys, own * (len(other) + 1) + below)
    return np.asarray(2.0 * until[reached] - until[bounds[own]] - until[bounds[own + 1]])
