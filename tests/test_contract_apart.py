"""What the methods keep whose answer is not a matrix of tests and training instances."""

import json
from typing import Any

import numpy as np
import pytest
import torch
from contract import APART, Task, random_states, small_task, state_of
from numpy.testing import assert_array_equal
from sklearn.base import clone

import proponent as pp
from proponent.exceptions import InvalidInputError, MethodCapabilityError, NotFittedError
from proponent.influence import Influence

pytestmark = pytest.mark.parametrize("name", APART)


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Task:
    return small_task(tmp_path_factory.mktemp("small"))


def make(name: str, **settings: Any) -> Any:
    return getattr(pp, name)(**{**APART[name].settings, **settings})


def fitted(name: str, task: Task, **settings: Any) -> Any:
    return make(name, **settings).fit(APART[name].study(task), task.train)


def answer(name: str, task: Task, **settings: Any) -> Influence:
    found = APART[name].ask(fitted(name, task, **settings), task)
    assert isinstance(found, Influence)
    return found


def test_the_answer_is_labelled_and_says_what_was_noticed(name: str, task: Task) -> None:
    found = answer(name, task)
    assert found.method == name
    assert found.values.shape[-1] == len(found.train_ids)
    assert np.isfinite(found.values).all()
    assert np.ptp(found.values) > 0
    if APART[name].columns == "instances":
        assert_array_equal(found.train_ids, np.arange(13))
    for what in (found.settings, found.diagnostics):
        assert json.loads(json.dumps(dict(what), allow_nan=False)) == dict(what)
    assert found.diagnostics


def test_a_seed_fixes_the_numbers_and_another_changes_them(name: str, task: Task) -> None:
    first = answer(name, task).values
    torch.manual_seed(99), np.random.seed(99)
    assert_array_equal(answer(name, task).values, first)
    if APART[name].seeded:
        other = answer(name, task, seed=1).values
        assert np.linalg.norm(other - first) > 1e-3 * np.linalg.norm(first)


def test_the_study_and_the_random_states_are_untouched(name: str, task: Task) -> None:
    study = APART[name].study(task)
    before, random = state_of(study), random_states()
    method = make(name).fit(study, task.train)
    APART[name].ask(method, task)
    assert state_of(study) == before
    assert random_states() == random


def test_an_answer_is_saved_and_loaded(name: str, task: Task, tmp_path: Any) -> None:
    found = answer(name, task)
    found.save(tmp_path / "answer")
    loaded = Influence.load(tmp_path / "answer")
    assert_array_equal(loaded.values, found.values)
    assert_array_equal(loaded.train_ids, found.train_ids)
    assert loaded.diagnostics == found.diagnostics


def test_what_it_does_not_answer_is_refused_with_advice(name: str, task: Task) -> None:
    method = fitted(name, task)
    lacks = APART[name].lacks
    asked = {"influence": [task.test], "group_influence": [{"two": [0, 1]}, task.test]}
    with pytest.raises(MethodCapabilityError, match=name):
        getattr(method, lacks)(*asked.get(lacks, []))


def test_hyperparameters_are_read_set_cloned_and_shown(name: str, task: Task) -> None:
    method = fitted(name, task)
    values = method.get_params()
    assert {**values, **APART[name].settings} == values
    copied = clone(method)
    assert copied.get_params() == values
    with pytest.raises(NotFittedError, match=name):
        APART[name].ask(copied, task)
    assert repr(type(method)()) == f"{name}()"
    assert eval(repr(method), vars(pp) | {name: type(method)}).get_params() == values


def test_the_wrong_kind_of_model_is_told_what_is_needed(name: str, task: Task) -> None:
    method = make(name)
    for wrong in (3, torch.nn.Linear(4, 3)):
        with pytest.raises(InvalidInputError) as caught:
            method.fit(wrong, task.train)
        message = str(caught.value)
        assert message.startswith("model: ")
        assert method.card.needs in message


def test_an_empty_set_is_refused_and_leaves_the_first_fit(name: str, task: Task) -> None:
    method = fitted(name, task)
    expected = APART[name].ask(method, task).values
    X, y = task.train
    for wrong in ((X[:0], y[:0]), (X, y[1:])):
        with pytest.raises(InvalidInputError, match="train"):
            method.fit(APART[name].study(task), wrong)
        assert_array_equal(APART[name].ask(method, task).values, expected)
