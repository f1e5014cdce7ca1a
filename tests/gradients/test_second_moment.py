"""Damped inverses of second moments against dense ones, on either side."""

import pytest
import torch
from references import relative_error

from proponent.exceptions import InvalidInputError, SolveError
from proponent.gradients.second_moment import RELATIVE_DAMPING, SecondMoment, check_damping


def moment_of(rows, cuts):
    moment = SecondMoment(len(rows), rows.shape[1], rows)
    for part in rows.split(cuts):
        moment.add(part)
    return moment


@pytest.mark.parametrize("n, k", [(30, 7), (7, 30), (12, 12), (1, 5)])
@pytest.mark.parametrize("cuts", [1, 5, 100])
def test_the_dense_inverse(n, k, cuts):
    rows, vectors = torch.randn(n, k), torch.randn(4, k)
    moment = moment_of(rows, cuts)
    dense = rows.T @ rows / n
    mean = dense.trace() / min(n, k)
    assert moment.mean_eigenvalue == pytest.approx(float(mean))
    assert moment.chosen_damping(None) == pytest.approx(float(RELATIVE_DAMPING * mean))
    assert moment.chosen_damping(0.2) == 0.2
    inverse = moment.damped_inverse(0.2, "rows")
    expected = torch.linalg.solve(dense + 0.2 * torch.eye(k), vectors.T).T
    assert relative_error(inverse.solve(vectors), expected) < 1e-12
    assert inverse.damping == 0.2


def test_the_smaller_side_is_held_and_can_be_put_back():
    for n, k, shape in ((30, 7, (7, 7)), (7, 30, (7, 30))):
        rows = torch.randn(n, k)
        moment, other = moment_of(rows, 4), SecondMoment(n, k, rows)
        assert moment.tensor.shape == shape
        other.tensor = moment.tensor
        solved = moment.damped_inverse(0.1, "rows").solve(rows)
        assert relative_error(other.damped_inverse(0.1, "rows").solve(rows), solved) < 1e-14
        factor = moment.damped_inverse(0.1, "rows").factor
        assert moment.nbytes(n, k, 8) == 8 * (moment.tensor.numel() + factor.numel())


def test_no_damping_where_there_are_enough_rows():
    rows = torch.randn(30, 7)
    found = moment_of(rows, 30).damped_inverse(0.0, "rows").solve(rows)
    assert relative_error(found, torch.linalg.solve(rows.T @ rows / 30, rows.T).T) < 1e-12


@pytest.mark.parametrize(
    "rows, message",
    [
        (torch.ones(3, 8).double(), "span at most 3 of 8"),
        (torch.ones(9, 4).double(), "singular to rounding in float64"),
        (torch.zeros(9, 4).double(), "singular to rounding"),
    ],
)
def test_a_singular_second_moment_is_refused(rows, message):
    with pytest.raises(SolveError, match=f"table 'a': .*{message}"):
        moment_of(rows, 9).damped_inverse(0.0, "table 'a'")


def test_a_damping_below_the_rounding_is_refused():
    rows = torch.randn(20, 6).float()
    rows[:, 5] = rows[:, 4]  # rank 5
    with pytest.raises(SolveError, match="rounding in float32"):
        moment_of(rows, 20).damped_inverse(1e-12, "rows")


@pytest.mark.parametrize("damping", [-1.0, float("nan"), float("inf")])
def test_impossible_dampings(damping):
    with pytest.raises(InvalidInputError, match="damping must be a finite number"):
        check_damping(damping)
