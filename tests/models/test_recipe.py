"""Recipes: equal where the training is equal, in any process; different where anything differs."""

import copy
import dataclasses
import functools
import os
import subprocess
import sys
import textwrap
import threading

import numpy as np
import pandas as pd
import pytest
import sklearn
from scipy import sparse
from sklearn.compose import make_column_transformer
from sklearn.ensemble import RandomForestClassifier
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

from proponent.exceptions import InvalidInputError
from proponent.models.recipe import recipe_of


class Net:
    """Stands for an object of a user's own."""

    rate = 0.1

    def __init__(self, layers=(3, 4)):
        self.layers = layers


@dataclasses.dataclass
class Settings:
    depth: int = 2
    names: list = dataclasses.field(default_factory=list)


def adder(k):
    return lambda x: x + k


def defined(source, name="f"):
    """Return what a piece of code defines, as a module of the user's own would."""
    space = {"__name__": "users_module"}
    exec(textwrap.dedent(source), space)
    return space[name]


def own_random(seed):
    return np.random.default_rng(seed)


SAME = {
    "dict in another order": lambda again: {"b": 1, "a": 2} if again else {"a": 2, "b": 1},
    "set": lambda again: {"x", "y", "z"} if again else {"z", "y", "x"},
    "array": lambda again: np.arange(3.0),
    "array, other layout": lambda again: np.ones((2, 3), order="F" if again else "C"),
    "frame": lambda again: pd.DataFrame({"a": [1, 2], "b": ["u", "v"]}),
    "sparse": lambda again: sparse.csr_matrix(np.eye(3)),
    "pipeline": lambda again: make_pipeline(StandardScaler(), LogisticRegression(C=2.0)),
    "columns": lambda again: make_column_transformer((StandardScaler(), ["a"])),
    "closure": lambda again: adder(3),
    "object": lambda again: Net(),
    "copy of an object": lambda again: copy.deepcopy(Net()) if again else Net(),
    "data class": lambda again: Settings(names=["a"]),
    "partial": lambda again: functools.partial(adder, k=3),
    "generator of random numbers": lambda again: own_random(0),
    "comments": lambda again: defined(
        "# moved\n\ndef f(x):\n    return x + 1  # said" if again else "def f(x):\n    return x + 1"
    ),
}


@pytest.mark.parametrize("make", SAME.values(), ids=SAME.keys())
def test_the_same_thing_made_twice_has_one_recipe(make):
    assert recipe_of(make(False)) == recipe_of(make(True))


DIFFERENT = {
    "types": (1, True, 1.0, "1", b"1", [1], (1,), {1}, None),
    "values": (0.1, 0.2, float("nan"), float("inf")),
    "single precision": (np.float32(0.1), np.float64(0.1)),
    "arrays": (
        np.arange(4),
        np.arange(4.0),
        np.arange(4).reshape(2, 2),
        np.array([0, 1, 2, 4]),
        np.array(["0", "1"]),
        np.array([0, "1"], dtype=object),
    ),
    "frames": (
        pd.DataFrame({"a": [1, 2]}),
        pd.DataFrame({"b": [1, 2]}),
        pd.DataFrame({"a": [1, 3]}),
    ),
    "parameters": (Ridge(alpha=1.0), Ridge(alpha=2.0), LogisticRegression()),
    "nested parameters": (
        make_pipeline(StandardScaler(), Ridge()),
        make_pipeline(StandardScaler(with_mean=False), Ridge()),
        make_pipeline(StandardScaler(), Ridge(solver="svd")),
    ),
    "functions inside estimators": (FunctionTransformer(np.log), FunctionTransformer(np.log1p)),
    "closures": (adder(3), adder(4)),
    "closures over arrays": (adder(np.zeros(2)), adder(np.ones(2))),
    "constants": (defined("def f(x): return x + 1"), defined("def f(x): return x + 2")),
    "defaults": (defined("def f(x=1): return x"), defined("def f(x=2): return x")),
    "keyword defaults": (defined("def f(*, x=1): return x"), defined("def f(*, x=2): return x")),
    "attributes": (defined("def f(x): return x.a"), defined("def f(x): return x.b")),
    "globals": (defined("N = 1\ndef f(x): return x + N"), defined("N = 2\ndef f(x): return x + N")),
    "functions that are called": (
        defined("def g(x): return x\ndef f(x): return g(x)"),
        defined("def g(x): return -x\ndef f(x): return g(x)"),
    ),
    "functions within": (
        defined("def f(x):\n    def g(): return x\n    return g"),
        defined("def f(x):\n    def g(): return -x\n    return g"),
    ),
    "cached functions": (
        defined("import functools\n@functools.lru_cache\ndef f(x): return x"),
        defined("import functools\n@functools.lru_cache\ndef f(x): return -x"),
    ),
    "objects": (Net(), Net((3, 5))),
    "data classes": (Settings(), Settings(3), Settings(names=["a"])),
    "code of a class": (
        defined("class f:\n    def fit(self): return 1"),
        defined("class f:\n    def fit(self): return 2"),
        defined("class f:\n    @staticmethod\n    def fit(self): return 1"),
    ),
    "attributes of a class": (defined("class f: rate = 1"), defined("class f: rate = 2")),
    "base of a class": (
        defined("class B:\n    def fit(self): return 1\nclass f(B): pass")(),
        defined("class B:\n    def fit(self): return 2\nclass f(B): pass")(),
    ),
    "properties": (
        defined("class f:\n    @property\n    def a(self): return 1"),
        defined("class f:\n    @property\n    def a(self): return 2"),
    ),
    "methods of other objects": (Net((1,)).__init__, Net((2,)).__init__),
    "random states": (own_random(0), own_random(1), np.random.RandomState(0)),
}


@pytest.mark.parametrize("things", DIFFERENT.values(), ids=DIFFERENT.keys())
def test_what_differs_has_another_recipe(things):
    recipes = [recipe_of(thing) for thing in things]
    assert len(set(recipes)) == len(things)


def test_a_version_of_a_package_is_part_of_it(monkeypatch):
    from proponent.models import source

    before = recipe_of(Ridge())
    assert f"@{sklearn.__version__}" in before
    source._version.cache_clear()
    monkeypatch.setattr(sklearn, "__version__", "0.0.1")
    assert recipe_of(Ridge()) != before
    monkeypatch.undo()
    source._version.cache_clear()
    assert recipe_of(Ridge()) == before


def test_a_fitted_estimator_is_an_unfitted_one_but_a_frozen_one_is_what_it_learned(rng):
    X, y = rng.normal(size=(20, 2)), np.arange(20) % 2
    assert recipe_of(RandomForestClassifier(2).fit(X, y)) == recipe_of(RandomForestClassifier(2))
    frozen = [FrozenEstimator(LogisticRegression().fit(X, labels)) for labels in (y, 1 - y)]
    assert recipe_of(frozen[0]) != recipe_of(frozen[1])


def test_running_a_function_does_not_change_its_recipe():
    function = defined(
        "def f(x):\n    total = 0\n    for i in range(x): total += i\n    return total"
    )
    before = recipe_of(function)
    for _ in range(100):
        function(20)  # Python rewrites the bytecode of what runs often
    assert recipe_of(function) == before


def test_what_refers_to_itself_has_a_recipe():
    source = """
    def even(n): return n == 0 or odd(n - 1)
    def odd(n): return n != 0 and {}(n - 1)
    """
    recipes = {recipe_of(defined(source.format(name), "even")) for name in ("even", "even", "odd")}
    assert len(recipes) == 2
    loop = [1]
    loop.append(loop)
    assert recipe_of(loop) == "list(1, <within 1>)"


def test_tensors_and_modules():
    torch = pytest.importorskip("torch")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        first, second = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    assert recipe_of(first) == recipe_of(copy.deepcopy(first)) != recipe_of(second)
    assert recipe_of(torch.ones(2)) != recipe_of(torch.ones(2, dtype=torch.bfloat16))
    assert recipe_of(functools.partial(torch.optim.SGD, lr=0.1)) != recipe_of(torch.optim.SGD)


def test_an_object_can_speak_for_itself():
    class Spoken:
        def __init__(self, text):
            self.lock, self.text = threading.Lock(), text

        def recipe(self):
            return self.text

    assert recipe_of(Spoken("a")) == recipe_of(Spoken("a")) != recipe_of(Spoken("b"))


REFUSED = {
    "alone": (lambda lock: lock, "lock: <unlocked"),
    "in a list": (lambda lock: [1, lock], r"list\[1\]: <unlocked"),
    "in a parameter": (lambda lock: Ridge(alpha=lock), r"Ridge\.alpha: <unlocked"),
    "in a closure": (lambda lock: adder(lock), "its variable 'k': <unlocked"),
    "in an object": (lambda lock: Net(lock), "Net's content.*: <unlocked"),
    "stream": (lambda lock: (i for i in ()), "generator: <generator"),
}


@pytest.mark.parametrize(("make", "place"), REFUSED.values(), ids=REFUSED.keys())
def test_what_has_only_an_address_is_refused_and_the_message_says_where_it_is(make, place):
    with pytest.raises(InvalidInputError, match=f"(?s){place}.*address only.*recipe\\(\\)"):
        recipe_of(make(threading.Lock()))


def test_recipes_are_the_same_in_another_process(tmp_path):
    script = tmp_path / "own.py"
    script.write_text(
        textwrap.dedent("""
        import enum, re
        import numpy as np
        from sklearn.svm import SVC
        from proponent.models.recipe import recipe_of

        class Kind(enum.Enum):
            A = 1

        class Model:
            kinds = {"x", "y", "z", Kind.A}

            def fit(self, X, y):
                return Model, helper(X) in {"a", "b", "c"}

        def helper(x):
            return Model() if x else re.compile("a")

        print(recipe_of([Model(), Model, helper, SVC(), Kind.A, np.mean, {"a", "b"}]))
        """)
    )
    found = set()
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        done = subprocess.run(
            [sys.executable, str(script)],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        found.add(done.stdout)
    assert len(found) == 1
    assert "Kind" in found.pop()
