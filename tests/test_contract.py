"""What every method has to keep, row by row of the contract table."""

import json
import random
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from contract import (
    ROWS,
    Flipped,
    Task,
    fitted,
    flipped_task,
    make,
    network_of,
    random_states,
    small_task,
    state_of,
    takes,
)
from numpy.testing import assert_array_equal
from sklearn.base import clone
from torch.utils.data import TensorDataset

import proponent as pp
from proponent.exceptions import InvalidInputError, MethodCapabilityError, NotFittedError
from proponent.influence import Influence
from proponent.top import TopInfluence

TRAIN_IDS = [f"train-{i}" for i in range(13)]
TEST_IDS = [f"test-{i}" for i in range(9)]

pytestmark = pytest.mark.parametrize("name", ROWS)


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Task:
    return small_task(tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="module")
def flipped(tmp_path_factory: pytest.TempPathFactory) -> Flipped:
    return flipped_task(tmp_path_factory.mktemp("digits"))


def assert_same(name: str, found: Any, expected: Any) -> None:
    """Compare norm-wise; zeros alone compare nothing."""
    assert found.shape == expected.shape
    assert np.linalg.norm(found - expected) <= ROWS[name].tolerance * np.linalg.norm(expected)
    assert np.linalg.norm(expected) > 0


def test_one_row_a_test_instance_one_column_a_training_instance(name: str, task: Task) -> None:
    influence = fitted(name, task).influence(task.test)
    assert isinstance(influence, Influence)
    assert influence.values.shape == (9, 13)
    assert influence.values.dtype == np.float64
    assert np.isfinite(influence.values).all()
    assert_array_equal(influence.train_ids, np.arange(13))
    assert_array_equal(influence.test_ids, np.arange(9))
    assert influence.method == name


def test_the_users_ids_are_on_every_answer(name: str, task: Task) -> None:
    method = fitted(name, task, ids=TRAIN_IDS)
    influence = method.influence(task.test, ids=TEST_IDS)
    assert_array_equal(influence.train_ids, TRAIN_IDS)
    assert_array_equal(influence.test_ids, TEST_IDS)
    assert_array_equal(influence.values, fitted(name, task).influence(task.test).values)
    part = method.influence(task.test, ids=TEST_IDS, shard=(1, 2))
    assert_array_equal(part.train_ids, TRAIN_IDS[7:])
    assert_array_equal(method.influence(task.test, joint=True).train_ids, TRAIN_IDS)
    top = method.influence(task.test, ids=TEST_IDS, top_k=1).proponents()
    assert_array_equal(top.ids[:, 0], np.array(TRAIN_IDS)[influence.values.argmax(axis=1)])


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_the_batch_size_changes_nothing(name: str, task: Task, batch_size: int) -> None:
    # A method without batches only has to give the same again.
    settings = {"batch_size": batch_size} if takes(name, "batch_size") else {}
    expected, found = fitted(name, task), fitted(name, task, **settings)
    assert_same(name, found.influence(task.test).values, expected.influence(task.test).values)
    joint = {"joint": True}
    assert_same(
        name,
        found.influence(task.test, **joint).values,
        expected.influence(task.test, **joint).values,
    )
    if ROWS[name].memorizes:
        assert_same(name, found.memorization().values, expected.memorization().values)
    top, whole = (method.influence(task.test, top_k=3) for method in (found, expected))
    assert_array_equal(top.proponents().ids, whole.proponents().ids)


class Items:
    """A map-style set of pairs."""

    def __init__(self, data: Any) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data[1])

    def __getitem__(self, position: int) -> Any:
        return torch.as_tensor(self.data[0][position]), int(self.data[1][position])


FORMS = {
    "tensors": lambda X, y: (torch.as_tensor(X), torch.as_tensor(y)),
    "a list": lambda X, y: [X, y],
    "read-only and reversed arrays": lambda X, y: (
        X[::-1].copy()[::-1],
        np.broadcast_to(y, len(y)),
    ),
    "data frames": lambda X, y: (pd.DataFrame(X), pd.Series(y)),
    "a data set": lambda X, y: TensorDataset(torch.as_tensor(X), torch.as_tensor(y)),
    "items": lambda X, y: Items((X, y)),
    "instances": lambda X, y: pp.Instances.of((X, y)),
}


@pytest.mark.parametrize("form", FORMS)
def test_the_form_of_the_data_changes_nothing(name: str, task: Task, form: str) -> None:
    train, test = FORMS[form](*task.train), FORMS[form](*task.test)
    method = make(name).fit(ROWS[name].study(task), train)
    expected = fitted(name, task).influence(task.test)
    assert_same(name, method.influence(test).values, expected.values)
    assert_array_equal(method.influence(test).train_ids, expected.train_ids)


def test_the_index_of_a_data_frame_labels_the_answer(name: str, task: Task) -> None:
    X, y = task.train
    train = pd.DataFrame(X, index=TRAIN_IDS), pd.Series(y, index=TRAIN_IDS)
    influence = make(name).fit(ROWS[name].study(task), train).influence(task.test)
    assert_array_equal(influence.train_ids, TRAIN_IDS)


def test_a_seed_fixes_the_numbers_and_another_changes_them(name: str, task: Task) -> None:
    first = fitted(name, task).influence(task.test).values
    torch.manual_seed(99), np.random.seed(99)
    assert_array_equal(fitted(name, task).influence(task.test).values, first)
    method = fitted(name, task)
    method.influence(task.test, top_k=1)
    assert_array_equal(method.influence(task.test).values, first)  # nor does an earlier question
    seeded = ROWS[name].seeded
    if takes(name, "seed") and seeded is not None:
        first, again, other = (
            fitted(name, task, seed=seed, **seeded).influence(task.test).values
            for seed in (0, 0, 1)
        )
        assert_array_equal(first, again)
        assert np.linalg.norm(other - first) > 1e-3 * np.linalg.norm(first)


def test_a_joint_influence_is_the_sum_over_the_tests(name: str, task: Task) -> None:
    method = fitted(name, task)
    full, joint = method.influence(task.test), method.influence(task.test, joint=True)
    assert_same(name, joint.values, full.values.sum(axis=0))
    assert joint.test_ids is None
    assert_array_equal(joint.train_ids, full.train_ids)
    assert joint.additive == full.additive


@pytest.mark.parametrize("of", [2, 3, 13])
def test_shards_join_to_the_whole(name: str, task: Task, of: int) -> None:
    whole = fitted(name, task, ids=TRAIN_IDS)
    # As several processes would: each part has a method of its own.
    parts = [fitted(name, task, ids=TRAIN_IDS) for _ in range(of)]

    def joined(**asked: Any) -> Influence:
        return Influence.join(
            [part.influence(task.test, shard=(i, of), **asked) for i, part in enumerate(parts)]
        )

    full = whole.influence(task.test)
    assert_same(name, joined().values, full.values)
    assert_array_equal(joined().train_ids, TRAIN_IDS)
    assert_same(name, joined(joint=True).values, whole.influence(task.test, joint=True).values)
    k = 13 // of
    tops = [part.influence(task.test, top_k=k, shard=(i, of)) for i, part in enumerate(parts)]
    assert_array_equal(TopInfluence.join(tops).proponents(k).ids, full.proponents(k).ids)
    assert_array_equal(TopInfluence.join(tops).opponents(k).ids, full.opponents(k).ids)
    if ROWS[name].memorizes:
        selves = [part.memorization(shard=(i, of)) for i, part in enumerate(parts)]
        assert_same(name, Influence.join(selves).values, whole.memorization().values)


@pytest.mark.parametrize("k", [1, 4, 13])
def test_the_strongest_are_those_of_the_full_matrix(name: str, task: Task, k: int) -> None:
    method = fitted(name, task, ids=TRAIN_IDS)
    full, top = method.influence(task.test), method.influence(task.test, top_k=k)
    assert_array_equal(top.proponents().ids, full.proponents(k).ids)
    assert_array_equal(top.opponents().ids, full.opponents(k).ids)
    assert_same(name, top.proponents().values, full.proponents(k).values)
    assert_same(name, top.opponents().values, full.opponents(k).values)


def test_the_model_and_the_random_states_are_untouched(name: str, task: Task) -> None:
    study = ROWS[name].study(task)
    net = network_of(study)
    if net is not None:
        net[4].register_forward_hook(lambda *_: None)
        net[0].weight.register_hook(lambda gradient: gradient)
        net[1].weight.requires_grad_(False)
        net[0].weight.grad = torch.ones_like(net[0].weight)
        net[3].eval()
    before = state_of(study)
    method = make(name).fit(study, task.train)
    assert state_of(study) == before
    for asked in ({}, {"joint": True}, {"top_k": 2}, {"shard": (0, 2)}):
        method.influence(task.test, **asked)
        assert state_of(study) == before, asked
    if ROWS[name].memorizes:
        method.memorization()
        assert state_of(study) == before


def test_neither_the_mode_nor_the_hooks_of_the_module_matter(name: str, task: Task) -> None:
    expected = fitted(name, task).influence(task.test).values
    study = ROWS[name].study(task)
    net = network_of(study)
    if net is None:
        return  # a recipe has neither
    seen = []
    net[2].register_forward_hook(lambda part, inputs, output: seen.append(part.training))
    for training in (True, False):
        net.train(training)
        with torch.no_grad():
            influence = make(name).fit(study, task.train).influence(task.test)
        assert_same(name, influence.values, expected)
    # Gradients are those of evaluation, unless batches are replayed as they were trained on.
    assert any(seen) == ROWS[name].replays


class Drawing(Items):
    """Items that draw from every global generator, and come out the same."""

    def __getitem__(self, position: int) -> Any:
        _ = random.random(), np.random.rand(), torch.rand(())
        return super().__getitem__(position)


def test_items_that_draw_leave_no_trace_in_the_random_states(name: str, task: Task) -> None:
    train, test = Drawing(task.train), Drawing(task.test)
    study = ROWS[name].study(task)
    before = random_states()
    influence = make(name).fit(study, train).influence(test)
    assert random_states() == before
    assert_same(name, influence.values, fitted(name, task).influence(task.test).values)


def test_a_flipped_label_harms_its_true_class(name: str, flipped: Flipped) -> None:
    """Of the training instances of its true class it is the strongest opponent, and harms."""
    method = fitted(name, flipped.task)
    joint = method.influence(flipped.task.test, joint=True)[flipped.alike]
    assert joint.opponents(1).ids == [flipped.position]
    assert joint.opponents(1).values[0] < 0
    others = np.delete(joint.values, np.flatnonzero(joint.train_ids == flipped.position))
    assert np.median(others) > 0
    # ... and of most tests one by one.
    each = method.influence(flipped.task.test)[:, flipped.alike]
    assert (each.opponents(1).ids == flipped.position).mean() > 0.8


def test_memorization_is_the_influence_on_oneself(name: str, task: Task) -> None:
    method = fitted(name, task, ids=TRAIN_IDS)
    if not ROWS[name].memorizes:
        with pytest.raises(MethodCapabilityError, match=f"{name} has no memorization"):
            method.memorization()
        return
    memorization = method.memorization()
    assert memorization.values.shape == (13,)
    assert memorization.test_ids is None
    assert_array_equal(memorization.train_ids, TRAIN_IDS)
    if ROWS[name].diagonal:
        assert_same(name, memorization.values, method.influence(task.train).values.diagonal())


def test_groups_are_sums_or_refused(name: str, task: Task) -> None:
    method = fitted(name, task, ids=TRAIN_IDS)
    full = method.influence(task.test)
    groups = {"first": TRAIN_IDS[:3], "odd": TRAIN_IDS[1::2]}
    if not full.additive:
        with pytest.raises(InvalidInputError, match="not additive"):
            full.group(groups)
        if not method.card.group:
            with pytest.raises(MethodCapabilityError, match=f"{name} has no group influence"):
                method.group_influence(groups, task.test)
        elif ROWS[name].own_groups:
            assert_array_equal(
                method.group_influence(groups, task.test).train_ids, ["first", "odd"]
            )
        return
    answer = method.group_influence(groups, task.test)
    expected = [full.values[:, :3].sum(axis=1), full.values[:, 1::2].sum(axis=1)]
    assert_same(name, answer.values, np.stack(expected, axis=1))
    assert_array_equal(answer.train_ids, ["first", "odd"])
    assert_same(name, full.group(groups).values, answer.values)


def test_an_answer_is_saved_and_loaded(name: str, task: Task, tmp_path: Any) -> None:
    method = fitted(name, task, ids=TRAIN_IDS)
    answers = [method.influence(task.test), method.influence(task.test, joint=True)]
    for number, answer in enumerate(answers):
        answer.save(tmp_path / str(number))
        loaded = Influence.load(tmp_path / str(number))
        assert_array_equal(loaded.values, answer.values)
        assert_array_equal(loaded.train_ids, answer.train_ids)
        assert_array_equal(loaded.test_ids, answer.test_ids)
        for what in ("method", "additive", "settings", "diagnostics"):
            assert getattr(loaded, what) == getattr(answer, what), what
    top = method.influence(task.test, top_k=2)
    top.save(tmp_path / "top")
    loaded_top = TopInfluence.load(tmp_path / "top")
    assert_array_equal(loaded_top.proponents().ids, top.proponents().ids)


def test_settings_and_diagnostics_are_json(name: str, task: Task) -> None:
    method = fitted(name, task)
    answers = [method.influence(task.test), method.influence(task.test, joint=True)]
    if ROWS[name].memorizes:
        answers.append(method.memorization())
    for answer in answers:
        for what in (answer.settings, answer.diagnostics):
            text = json.dumps(dict(what), allow_nan=False)
            assert json.loads(text) == dict(what)
        assert answer.diagnostics


def test_hyperparameters_are_read_set_cloned_and_shown(name: str, task: Task) -> None:
    method = fitted(name, task)
    values = method.get_params()
    assert {**values, **ROWS[name].settings} == values
    assert type(method)(**values).get_params() == values
    copied = clone(method)
    assert copied.get_params() == values
    with pytest.raises(NotFittedError):
        copied.influence(task.test)
    again = copied.fit(ROWS[name].study(task), task.train).influence(task.test)
    assert_array_equal(again.values, method.influence(task.test).values)
    assert repr(type(method)()) == f"{name}()"
    assert eval(repr(method), vars(pp) | {name: type(method)}).get_params() == values
    for setting in values:
        assert setting in method.set_params(**{setting: values[setting]}).get_params()


def test_a_method_that_is_not_fitted_says_what_it_needs(name: str, task: Task) -> None:
    method = make(name)
    for ask in (lambda: method.influence(task.test), method.memorization):
        with pytest.raises(NotFittedError) as caught:
            ask()
        assert name in str(caught.value)
        assert method.card.needs in str(caught.value)


@pytest.mark.parametrize("kind", ["number", "module", "estimator"])
def test_the_wrong_kind_of_model_is_told_what_is_needed(name: str, task: Task, kind: str) -> None:
    from sklearn.cluster import KMeans

    wrong = {"number": 3, "module": torch.nn.Linear(4, 3), "estimator": KMeans()}
    method = make(name)
    with pytest.raises(InvalidInputError) as caught:
        method.fit(wrong[kind], task.train)
    message = str(caught.value)
    assert message.startswith("model: ")
    assert method.card.needs in message
    assert type(wrong[kind]).__name__ in message


def test_empty_sets_are_refused(name: str, task: Task) -> None:
    X, y = task.train
    with pytest.raises(InvalidInputError, match=r"train.*empty"):
        make(name).fit(ROWS[name].study(task), (X[:0], y[:0]))
    method = fitted(name, task)
    for asked in ({}, {"joint": True}, {"top_k": 1}):
        with pytest.raises(InvalidInputError, match=r"test.*empty"):
            method.influence((X[:0], y[:0]), **asked)


def test_columns_of_different_lengths_are_refused(name: str, task: Task) -> None:
    X, y = task.train
    with pytest.raises(InvalidInputError, match=r"train.*different numbers.*0: 13, 1: 12"):
        make(name).fit(ROWS[name].study(task), (X, y[:-1]))
    with pytest.raises(InvalidInputError, match=r"test.*different numbers.*0: 12, 1: 13"):
        fitted(name, task).influence((X[1:], y))


def test_ids_that_do_not_fit_are_refused(name: str, task: Task) -> None:
    for ids, message in ((TRAIN_IDS[1:], "13 labels"), (["same"] * 13, "unique")):
        with pytest.raises(InvalidInputError, match=rf"ids.*{message}"):
            fitted(name, task, ids=ids)
    with pytest.raises(InvalidInputError, match=r"ids.*9 labels"):
        fitted(name, task).influence(task.test, ids=["one"])


def test_a_data_loader_is_refused_for_it_hides_the_order(name: str, task: Task) -> None:
    loader = torch.utils.data.DataLoader(Items(task.train), batch_size=4, shuffle=True)
    with pytest.raises(InvalidInputError, match=r"train.*data loaders hide the order"):
        make(name).fit(ROWS[name].study(task), loader)
    with pytest.raises(InvalidInputError, match=r"test.*data loaders hide the order"):
        fitted(name, task).influence(loader)


def test_a_second_fit_that_fails_leaves_the_first(name: str, task: Task) -> None:
    method = fitted(name, task)
    expected = method.influence(task.test).values
    X, y = task.train
    for wrong in ((X[:0], y[:0]), (X, y[1:])):
        with pytest.raises(InvalidInputError):
            method.fit(ROWS[name].study(task), wrong)
        assert_array_equal(method.influence(task.test).values, expected)
