"""Planted label noise: how many, which, and what they become."""

import numpy as np
import pytest

from proponent.evaluation import flip_labels
from proponent.exceptions import InvalidInputError


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.4, 1.0])
def test_exactly_that_many_distinct_instances_change(fraction):
    """TreeInfluence draws with replacement, and its 40 % are 33 % distinct instances."""
    y = np.arange(1000) % 10
    noisy, flipped = flip_labels(y, fraction)
    assert flipped.sum() == round(fraction * 1000)
    np.testing.assert_array_equal(flipped, noisy != y)
    assert set(noisy) <= set(range(10))


def test_every_wrong_class_is_equally_likely():
    y = np.repeat([0, 1, 2, 3], 30_000)
    noisy, flipped = flip_labels(y, 0.5, seed=2)
    for given in range(4):
        counts = np.bincount(noisy[flipped & (y == given)], minlength=4)
        assert counts[given] == 0
        others = np.delete(counts, given)
        expected = others.sum() / 3
        chi_square = ((others - expected) ** 2 / expected).sum()
        assert chi_square < 18.4  # the .9999 quantile with two degrees of freedom


def test_instances_are_drawn_uniformly():
    chosen = sum(flip_labels(np.arange(20) % 2, 0.25, seed=s)[1].astype(int) for s in range(4000))
    assert np.abs(chosen - 1000).max() < 4.5 * np.sqrt(4000 * 0.25 * 0.75)


def test_seed_fixes_the_choice():
    y = np.arange(100) % 3
    first, again, other = (flip_labels(y, 0.3, seed=s) for s in (1, 1, 2))
    np.testing.assert_array_equal(first[0], again[0])
    assert (first[1] != other[1]).any()


def test_classes_that_do_not_occur_can_be_given():
    noisy, _ = flip_labels(np.zeros(3000, dtype=np.int32), 1.0, n_classes=4)
    assert noisy.dtype == np.int32
    assert set(noisy) == {1, 2, 3}


@pytest.mark.parametrize(
    "y",
    [
        np.array(["cat", "dog", "horse"] * 10),
        np.array([True, False, False] * 10),
        np.array(["cat", "dog", "horse"] * 10, dtype=object),
    ],
)
def test_other_labels_keep_their_type(y):
    before = y.copy()
    noisy, flipped = flip_labels(y, 0.5)
    assert noisy.dtype == y.dtype
    np.testing.assert_array_equal(noisy != y, flipped)
    np.testing.assert_array_equal(y, before)
    assert set(noisy) <= set(y)


def test_tensors_stay_tensors():
    torch = pytest.importorskip("torch")
    y = torch.arange(60, dtype=torch.int32) % 3
    noisy, flipped = flip_labels(y, 0.5)
    assert isinstance(noisy, torch.Tensor)
    assert noisy.dtype == torch.int32
    assert torch.equal(y, torch.arange(60, dtype=torch.int32) % 3)
    expected, _ = flip_labels(y.numpy(), 0.5)
    np.testing.assert_array_equal(noisy.numpy(), expected)
    np.testing.assert_array_equal((noisy != y).numpy(), flipped)


@pytest.mark.parametrize(
    ("y", "arguments", "message"),
    [
        (np.array([0, 1]), {"fraction": 1.5}, "fraction"),
        (np.array([0, 1]), {"fraction": float("nan")}, "fraction"),
        (np.array([1, 1]), {}, "single class"),
        (np.array([0.5, 1.5]), {}, "class labels"),
        (np.array([[0], [1]]), {}, "shape"),
        (np.array([], dtype=int), {}, "n > 0"),
        (np.array([0, 5]), {"n_classes": 3}, "holds 5"),
        (np.array([-1, 1]), {"n_classes": 3}, "holds -1"),
        (np.array(["a", "b"]), {"n_classes": 2}, "n_classes"),
        (np.array(["a", 1], dtype=object), {}, "ordered"),
    ],
)
def test_unusable_labels_are_refused(y, arguments, message):
    with pytest.raises(InvalidInputError, match=message):
        flip_labels(y, **({"fraction": 0.5} | arguments))
