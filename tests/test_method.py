"""The frame of all methods: the registry, hyperparameters, and what a user asks."""

import inspect
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone

from proponent import registry
from proponent.card import MethodCard
from proponent.data import Instances
from proponent.exceptions import (
    InvalidInputError,
    MethodCapabilityError,
    NonFiniteError,
    NotFittedError,
)
from proponent.method import InfluenceMethod
from proponent.top import TopInfluence

CARD = {
    "title": "Dot Product",
    "family": "static",
    "paper": "Nobody, Nowhere 2000",
    "needs": "a pair of arrays",
    "full_complexity": "O(n)",
    "incremental_complexity": "O(n)",
    "space_complexity": "O(n)",
    "storage_complexity": "0",
    "group": True,
}


def card(name: str, **fields: Any) -> MethodCard:
    return MethodCard(name=name, **{**CARD, **fields})


@pytest.fixture(autouse=True)
def own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every test enter fakes in a registry of its own; none of them loads real methods."""
    monkeypatch.setattr(registry, "_registry", {})


def features(instances: Instances) -> np.ndarray:
    return np.asarray(instances.batch(slice(None))[0], dtype=np.float64)


class Base(InfluenceMethod):
    """Scores ``scale * x_i . x_te``; no card, so it is a helper and not in the registry."""

    def __init__(self, scale: float = 1.0, *, power: int = 1, note: Any = None) -> None:
        self.scale = scale
        self.power = power
        self.note = note

    def fit(self, model: Any, train: Any, *, ids: Any = None) -> "Base":
        if model is not None:
            raise self._wrong_kind(model)
        self.train_ = Instances.of(train, ids=ids)
        self.asked: list[tuple[str, range]] = []
        return self

    def _query(self, instances: Instances) -> np.ndarray:
        return features(instances)

    def _scores(self, query: np.ndarray, rows: range) -> np.ndarray:
        self.asked.append(("scores", rows))
        # Not a matrix product, whose last digit depends on the block.
        x = features(self.train_)[rows.start : rows.stop]
        return self.scale * (query[:, None] * x).sum(axis=-1)

    def _self_scores(self, rows: range) -> np.ndarray:
        return (features(self.train_)[rows.start : rows.stop] ** 2).sum(axis=1)

    def _block_rows(self, n_test: int) -> int:
        return 4


def method_class(name: str = "Dot", base: type = Base, **members: Any) -> type[Base]:
    """Make a method with a card, of a name that is free in this test's registry."""
    fields = members.pop("fields", {})
    return type(name, (base,), {"card": card(name, **fields), "__module__": __name__, **members})


@pytest.fixture
def train() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    return rng.normal(size=(13, 3)), np.arange(13)


@pytest.fixture
def test() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(2)
    return rng.normal(size=(5, 3)), np.arange(5)


def by_hand(train: Any, test: Any) -> np.ndarray:
    """Every score as one dot product, in plain loops."""
    dot = [[sum(x[j] * z[j] for j in range(len(x))) for x in train[0]] for z in test[0]]
    return np.array(dot)


# The registry


def test_a_class_with_a_card_is_registered_and_a_helper_is_not() -> None:
    dot = method_class()
    type("Preset", (dot,), {"__module__": __name__})  # inherits the card, is no method itself
    assert registry.registered() == {"Dot": dot}


def test_the_same_class_imported_again_takes_its_own_place() -> None:
    method_class()
    again = method_class()
    assert registry.registered()["Dot"] is again


def test_a_name_taken_by_another_class_is_refused() -> None:
    dot = method_class()
    with pytest.raises(TypeError, match=r"elsewhere\.Dot.*taken by.*test_method\.Dot"):
        method_class(__module__="elsewhere")
    assert registry.registered()["Dot"] is dot


def test_a_card_of_another_name_is_refused() -> None:
    with pytest.raises(TypeError, match=r"'Cross'.*name of its class"):
        type("Dot", (Base,), {"card": card("Cross"), "__module__": __name__})
    with pytest.raises(TypeError, match="must be a MethodCard; got dict"):
        type("Dot", (Base,), {"card": CARD, "__module__": __name__})
    assert registry.registered() == {}


@pytest.mark.parametrize("hidden", ["*options", "**options"])
def test_a_constructor_that_hides_hyperparameters_is_refused(hidden: str) -> None:
    members: dict[str, Any] = {}
    exec(f"def __init__(self, {hidden}): ...", members)
    base = type("Bare", (InfluenceMethod,), {"__module__": __name__})
    with pytest.raises(TypeError, match=r"options.*name every hyperparameter"):
        method_class(base=base, __init__=members["__init__"])


def test_a_constructor_may_hand_settings_to_its_base() -> None:
    def __init__(self: Any, rank: int = 2, **settings: Any) -> None:
        Base.__init__(self, **settings)
        self.rank = rank

    ranked = method_class(__init__=__init__)
    assert list(inspect.signature(ranked).parameters) == ["rank", "scale", "power", "note"]
    assert ranked(3, power=5).get_params() == {"rank": 3, "scale": 1.0, "power": 5, "note": None}
    assert repr(clone(ranked(3, power=5))) == "Dot(rank=3, power=5)"
    with pytest.raises(TypeError, match="pwer"):
        ranked(pwer=5)


# Hyperparameters


def test_params_are_read_and_set_by_name() -> None:
    dot = method_class()(2.0, power=3)
    assert dot.get_params() == {"scale": 2.0, "power": 3, "note": None}
    assert dot.set_params(power=5, scale=0.5) is dot
    assert (dot.scale, dot.power) == (0.5, 5)


def test_an_unknown_param_is_refused_and_nothing_is_set() -> None:
    dot = method_class()()
    with pytest.raises(InvalidInputError, match=r"'scal'; valid are: scale, power, note"):
        dot.set_params(power=9, scal=1.0)
    assert dot.power == 1


def test_nested_params_reach_the_inner_object() -> None:
    kind = method_class()
    outer = kind(note=kind(3.0))
    assert outer.get_params()["note__scale"] == 3.0
    assert "note__scale" not in outer.get_params(deep=False)
    outer.set_params(note__scale=7.0)
    assert outer.note.scale == 7.0
    replaced = kind(1.0)
    outer.set_params(note__power=4, note=replaced)
    assert outer.note is replaced
    assert replaced.power == 4
    with pytest.raises(InvalidInputError, match="scale__deep"):
        outer.set_params(scale__deep=1)


def test_repr_shows_what_differs_from_the_defaults() -> None:
    kind = method_class()
    assert repr(kind()) == "Dot()"
    assert repr(kind(1.0, power=1)) == "Dot()"
    assert repr(kind(2.0, note="a")) == "Dot(scale=2.0, note='a')"
    assert repr(kind(True)) == "Dot(scale=True)"  # equal to the default, yet not the same
    shown = repr(kind(note=np.zeros((50, 50))))
    assert shown.startswith("Dot(note=array(")
    assert len(shown) < 150
    assert "\n" not in shown


def test_a_param_that_is_not_stored_is_named() -> None:
    def __init__(self: Any, scale: float = 1.0) -> None: ...

    with pytest.raises(AttributeError, match=r"self\.scale"):
        method_class(__init__=__init__)().get_params()


def test_sklearn_clones_a_method(train: Any) -> None:
    dot = method_class()(2.0, note=[1, 2]).fit(None, train)
    copy = clone(dot)
    assert type(copy) is type(dot)
    assert copy.get_params() == dot.get_params()
    assert not hasattr(copy, "train_")


# Queries


def test_influence_is_the_labelled_matrix(train: Any, test: Any) -> None:
    names = [f"train-{i}" for i in range(13)]
    dot = method_class()(2.0, note=np.float32(0.5)).fit(None, train, ids=names)
    answer = dot.influence(test, ids=[10, 20, 30, 40, 50])
    assert_allclose(answer.values, 2 * by_hand(train, test), rtol=1e-12)
    assert_array_equal(answer.train_ids, names)
    assert_array_equal(answer.test_ids, [10, 20, 30, 40, 50])
    assert answer.method == "Dot"
    assert dict(answer.settings) == {"scale": 2.0, "power": 1, "note": 0.5}
    assert answer.additive


def test_settings_hold_a_repr_of_what_json_does_not_know(train: Any, test: Any) -> None:
    note = {"layers": ("a", slice(1, 2)), "large": np.zeros(1000)}
    settings = method_class()(note=note).fit(None, train).influence(test).settings
    assert settings["note"]["layers"] == ["a", "slice(1, 2, None)"]
    assert settings["note"]["large"].startswith("array(")


def test_diagnostics_and_standard_errors_reach_the_answer(train: Any, test: Any) -> None:
    def _diagnostics(self: Base, query: Any) -> dict[str, Any]:
        return {"rows": None if query is None else len(query)}

    def _std_errors(self: Base, query: Any, rows: range) -> np.ndarray:
        return np.abs(self._scores(query, rows)) / 10

    dot = method_class(_diagnostics=_diagnostics, _std_errors=_std_errors)().fit(None, train)
    answer = dot.influence(test)
    assert dict(answer.diagnostics) == {"rows": 5}
    assert_allclose(answer.std_error, np.abs(by_hand(train, test)) / 10)
    # The joint answer is that of summing the full one, whose errors add up to a bound.
    joint = dot.influence(test, joint=True)
    assert_allclose(joint.std_error, answer.joint().std_error)
    assert dict(joint.diagnostics) == dict(answer.joint().diagnostics)
    assert dict(dot.memorization().diagnostics) == {"rows": None}


@pytest.mark.parametrize("k", [1, 3, 13])
def test_top_k_is_a_stable_sort_of_the_full_matrix(train: Any, test: Any, k: int) -> None:
    train[0][7] = train[0][2]  # a tie: the first position wins
    dot = method_class()().fit(None, train, ids=np.arange(13) + 100)
    top = dot.influence(test, top_k=k)
    scores = by_hand(train, test)
    first = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    last = np.argsort(scores, axis=1, kind="stable")[:, :k]
    assert_array_equal(top.proponents(k).ids, first + 100)
    assert_array_equal(top.opponents(k).ids, last + 100)
    assert_allclose(top.proponents(k).values, np.take_along_axis(scores, first, axis=1))
    assert_array_equal(top.test_ids, np.arange(5))
    assert top.method == "Dot"


def test_streaming_never_holds_more_than_a_block(train: Any, test: Any) -> None:
    dot = method_class()().fit(None, train)
    blocks = [("scores", range(start, min(start + 4, 13))) for start in (0, 4, 8, 12)]
    dot.influence(test, top_k=2)
    assert dot.asked == blocks
    dot.asked.clear()
    dot.influence(test, joint=True)
    assert dot.asked == blocks


def test_joint_is_the_sum_over_tests(train: Any, test: Any) -> None:
    dot = method_class()().fit(None, train, ids=np.arange(13) + 100)
    joint = dot.influence(test, joint=True)
    assert_allclose(joint.values, by_hand(train, test).sum(axis=0), rtol=1e-12)
    assert joint.test_ids is None
    assert_array_equal(joint.train_ids, np.arange(13) + 100)
    assert joint.diagnostics["joint"] == {"reduction": "sum", "n_test": 5}


def test_a_joint_query_of_its_own_is_asked_once(train: Any, test: Any) -> None:
    def _joint_query(self: Base, instances: Instances) -> np.ndarray:
        return features(instances).sum(axis=0, keepdims=True)

    dot = method_class(_joint_query=_joint_query)().fit(None, train)
    joint = dot.influence(test, joint=True)
    assert_allclose(joint.values, by_hand(train, test).sum(axis=0), rtol=1e-12)
    assert dot.asked == [("scores", range(13))]


def test_joint_scores_of_its_own_are_used(train: Any, test: Any) -> None:
    def _joint_scores(self: Base, query: np.ndarray, rows: range) -> np.ndarray:
        return np.full(len(rows), 7.0)

    dot = method_class(_joint_scores=_joint_scores)().fit(None, train)
    assert_array_equal(dot.influence(test, joint=True).values, np.full(13, 7.0))
    assert dot.asked == []


@pytest.mark.parametrize("of", [1, 2, 3, 5, 13])
def test_shards_join_to_the_full_matrix(train: Any, test: Any, of: int) -> None:
    dot = method_class()().fit(None, train, ids=np.arange(13) + 100)
    parts = [dot.influence(test, shard=(i, of)) for i in range(of)]
    ids = [part.train_ids for part in parts]
    for part, expected in zip(ids, np.array_split(np.arange(13) + 100, of), strict=True):
        assert_array_equal(part, expected)
    full = dot.influence(test)
    assert_array_equal(np.concatenate([part.values for part in parts], axis=1), full.values)
    joined = type(full).join(parts)
    assert_array_equal(joined.values, full.values)
    assert_array_equal(joined.train_ids, full.train_ids)
    joints = [dot.influence(test, joint=True, shard=(i, of)).values for i in range(of)]
    assert_allclose(np.concatenate(joints), full.values.sum(axis=0), rtol=1e-12)
    selves = [dot.memorization(shard=(i, of)).values for i in range(of)]
    assert_array_equal(np.concatenate(selves), dot.memorization().values)


@pytest.mark.parametrize("of", [1, 2, 4])
def test_top_k_of_shards_joins_to_that_of_the_whole(train: Any, test: Any, of: int) -> None:
    dot = method_class()().fit(None, train, ids=np.arange(13) + 100)
    # Of 4 shards, three have fewer than 4 instances: they keep all of them.
    joined = TopInfluence.join([dot.influence(test, top_k=4, shard=(i, of)) for i in range(of)])
    whole = dot.influence(test, top_k=4)
    assert_array_equal(joined.train_ids, whole.train_ids)
    for ours, expected in (
        (joined.proponents(), whole.proponents()),
        (joined.opponents(), whole.opponents()),
    ):
        assert_array_equal(ours.ids, expected.ids)
        assert_allclose(ours.values, expected.values, rtol=1e-12)


@pytest.mark.parametrize("shard", [(2, 2), (-1, 2), (0, 0), (0, 14), (0,), (0, 1.5), 3, "01"])
def test_a_wrong_shard_is_refused(train: Any, test: Any, shard: Any) -> None:
    dot = method_class()().fit(None, train)
    with pytest.raises(InvalidInputError, match="shard"):
        dot.influence(test, shard=shard)


@pytest.mark.parametrize("top_k", [0, -1, 14, 1.5, True, "3"])
def test_a_wrong_top_k_is_refused(train: Any, test: Any, top_k: Any) -> None:
    dot = method_class()().fit(None, train)
    with pytest.raises(InvalidInputError, match="top_k"):
        dot.influence(test, top_k=top_k)
    with pytest.raises(InvalidInputError, match="top_k"):
        dot.influence(test, top_k=7, shard=(0, 2), joint=True)


def test_joint_goes_with_neither_a_word_nor_top_k(train: Any, test: Any) -> None:
    dot = method_class()().fit(None, train)
    with pytest.raises(InvalidInputError, match=r"joint.*'mean'"):
        dot.influence(test, joint="mean")
    with pytest.raises(InvalidInputError, match=r"top_k.*\.proponents"):
        dot.influence(test, joint=True, top_k=2)  # type: ignore[call-overload]


def test_a_method_that_is_not_fitted_says_so(test: Any) -> None:
    dot = method_class()()
    for ask in (lambda: dot.influence(test), dot.memorization):
        with pytest.raises(NotFittedError, match=r"Dot is not fitted; call fit.*a pair of arrays"):
            ask()


def test_empty_sets_are_refused(train: Any, test: Any) -> None:
    nothing = (np.empty((0, 3)), np.empty(0))
    with pytest.raises(InvalidInputError, match="test"):
        method_class()().fit(None, train).influence(nothing)
    with pytest.raises(InvalidInputError, match="train"):
        method_class()().fit(None, nothing).influence(test)


# What a method may answer


@pytest.mark.parametrize("query", [{}, {"top_k": 3}, {"joint": True}], ids=str)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_scores_that_are_not_finite_are_named(
    train: Any, test: Any, query: Any, value: Any
) -> None:
    train[0][6, 0] = value
    dot = method_class()().fit(None, train, ids=[f"t{i}" for i in range(13)])
    with pytest.raises(NonFiniteError) as caught, np.errstate(invalid="ignore"):
        dot.influence(test, **query)
    message = str(caught.value)
    assert message.startswith("Dot: 5 of ")
    assert all(f"({i}, t6)" in message for i in range(5))


def test_at_most_ten_scores_are_named(train: Any, test: Any) -> None:
    train[0][[3, 4, 5]] = np.nan
    with pytest.raises(NonFiniteError, match=r"15 of 65 .* and 5 more") as caught:
        method_class()().fit(None, train).influence(test)
    assert str(caught.value).count("(") == 11  # ten pairs, and the words that explain them


def test_a_joint_of_its_own_and_memorization_name_the_train_ids(train: Any, test: Any) -> None:
    train[0][6, 0] = np.nan
    dot = method_class(_joint_scores=lambda self, query, rows: self._self_scores(rows))()
    dot.fit(None, train, ids=[f"t{i}" for i in range(13)])
    for ask in (lambda: dot.influence(test, joint=True), dot.memorization):
        with pytest.raises(NonFiniteError, match=r"1 of 13 .* at train id t6"):
            ask()


def test_a_method_may_mark_what_it_does_not_score(train: Any, test: Any) -> None:
    train[0][6, 0] = np.nan
    dot = method_class(marks_unscored=True)().fit(None, train)
    answer = dot.influence(test)
    assert_array_equal(np.isnan(answer.values), np.arange(13)[None, :].repeat(5, 0) == 6)
    assert 6 not in dot.influence(test, top_k=12).proponents(12).ids
    joint = dot.influence(test, joint=True)
    assert_array_equal(np.flatnonzero(np.isnan(joint.values)), [6])

    train[0][:] = np.nan
    assert np.isnan(dot.fit(None, train).influence(test).values).all()
    train[0][6, 0] = np.inf
    train[0][6, 1:] = 0
    with pytest.raises(NonFiniteError, match=r"\(0, 6\)"):
        dot.fit(None, train).influence(test)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda query, rows: np.zeros((len(rows), len(query))),
        lambda query, rows: np.zeros((len(query), len(rows)), dtype=int),
        lambda query, rows: [[0.0] * len(rows)] * len(query),
    ],
)
def test_scores_of_another_shape_are_the_methods_fault(train: Any, test: Any, wrong: Any) -> None:
    dot = method_class(_scores=lambda self, query, rows: wrong(query, rows))().fit(None, train)
    with pytest.raises(
        TypeError, match=r"Dot\._scores must return a real array of shape \(5, 13\)"
    ):
        dot.influence(test)


# What only some methods have


def test_memorization_is_the_diagonal(train: Any) -> None:
    answer = method_class()().fit(None, train, ids=np.arange(13) + 100).memorization()
    assert_allclose(answer.values, np.diag(by_hand(train, train)), rtol=1e-12)
    assert answer.test_ids is None
    assert_array_equal(answer.train_ids, np.arange(13) + 100)


def test_what_a_method_lacks_is_said_with_those_that_have_it(train: Any, test: Any) -> None:
    without = method_class(
        "Cross", _self_scores=InfluenceMethod._self_scores, fields={"group": False}
    )
    cross = without().fit(None, train)
    with pytest.raises(MethodCapabilityError, match=r"Cross has no memorization\. No method"):
        cross.memorization()
    method_class()
    with pytest.raises(MethodCapabilityError, match=r"Cross has no memorization\. Use Dot\."):
        cross.memorization()
    with pytest.raises(MethodCapabilityError, match=r"no group influence\. Use Dot\."):
        cross.group_influence({"a": [1]}, test)
    with pytest.raises(MethodCapabilityError, match="no Cook's distance"):
        cross.cooks_distance()
    with pytest.raises(MethodCapabilityError, match="no expected influence"):
        cross.expected(3)
    assert issubclass(MethodCapabilityError, TypeError)


def test_group_influence_sums_the_members(train: Any, test: Any) -> None:
    dot = method_class()().fit(None, train)
    answer = dot.group_influence({"some": [1, 4, 9], "one": [4]}, test)
    scores = by_hand(train, test)
    expected = np.stack([scores[:, [1, 4, 9]].sum(axis=1), scores[:, 4]], axis=1)
    assert_allclose(answer.values, expected, rtol=1e-12)
    assert_array_equal(answer.train_ids, ["some", "one"])


def test_a_method_may_support_groups_without_being_additive(train: Any, test: Any) -> None:
    dot = method_class(_is_additive=lambda self: False)().fit(None, train)
    assert not dot.influence(test).additive


def test_the_wrong_kind_of_model_is_told_what_is_needed(train: Any) -> None:
    torch = pytest.importorskip("torch")
    from sklearn.linear_model import Ridge

    dot = method_class()()
    with pytest.raises(InvalidInputError, match=r"model: Dot needs a pair of arrays; got a int\."):
        dot.fit(3, train)
    with pytest.raises(InvalidInputError, match=r"got a sklearn Ridge\.$"):
        dot.fit(Ridge(), train)
    with pytest.raises(InvalidInputError, match=r"got a torch Linear\. .*TorchModel"):
        dot.fit(torch.nn.Linear(1, 1), train)
