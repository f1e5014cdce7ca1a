"""Representers of matrix factorisation and low-rank matrices: by hand, by loops, exact sums."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal

from proponent.exceptions import InvalidInputError, NonFiniteError
from proponent.static.high_dimensional.models import LowRankModel, MatrixFactorisation
from proponent.static.high_dimensional_representer import HighDimensionalRepresenter

USERS, ITEMS, RANK, N = 14, 11, 3, 90
FORMS = ("items", "users", "both")


def random_ratings():
    """User 13 has no rating, item 10 neither; some pairs were rated twice."""
    rng = np.random.default_rng(0)
    pairs = np.column_stack([rng.integers(0, USERS - 1, N), rng.integers(0, ITEMS - 1, N)])
    users, items = rng.normal(size=(USERS, RANK)), rng.normal(size=(ITEMS, RANK))
    ratings = (users[pairs[:, 0]] * items[pairs[:, 1]]).sum(axis=1) + 0.3 * rng.normal(size=N)
    return pairs, ratings


PAIRS, RATINGS = random_ratings()
TEST = np.array([[0, 0], [3, 5], [3, 9], [12, 4], [13, 2], [5, 10], [13, 10]])


def alternating_squares(pairs, ratings, decay, mean=0.0):
    """Minimise mean squared error + (decay / 2) (||U||^2 + ||V||^2), row by row, to convergence."""
    rng = np.random.default_rng(1)
    factors = [rng.normal(size=(USERS, RANK)), rng.normal(size=(ITEMS, RANK))]
    before = np.inf
    while np.abs(factors[0] - before).max() > 1e-14:
        before = factors[0].copy()
        for side in (0, 1):
            for row in range(len(factors[side])):
                own = pairs[:, side] == row
                others = factors[1 - side][pairs[own, 1 - side]]
                left = 2 / len(ratings) * others.T @ others + decay * np.eye(RANK)
                right = 2 / len(ratings) * others.T @ (ratings[own] - mean)
                factors[side][row] = np.linalg.solve(left, right)
    return factors


@pytest.fixture(scope="module")
def solved():
    users, items = alternating_squares(PAIRS, RATINGS, 0.05, mean=0.5)
    return MatrixFactorisation(users, items, 0.05, intercept=0.5)


def fitted(model, train=(PAIRS, RATINGS), **settings):
    return HighDimensionalRepresenter(**{"signed": "prediction", **settings}).fit(model, train)


def by_loops(model, form):
    """alpha_i K of every rating for every test pair, written out."""
    users, items = model.user_factors, model.item_factors
    found = np.zeros((len(TEST), N))
    for row, (u, v) in enumerate(TEST):
        for i, (user, item) in enumerate(PAIRS):
            error = users[user] @ items[item] + model.intercept - RATINGS[i]
            alpha = -2 * error / (N * model.weight_decay)
            like_items = (user == u) * (items[item] @ items[v])
            like_users = (item == v) * (users[user] @ users[u])
            share = {"items": like_items, "users": like_users}
            kernel = share.get(form, (like_items + like_users) / 2)
            found[row, i] = alpha * kernel
    return found


def test_one_rating_by_hand():
    """(3 - u v)^2 + (u^2 + v^2): u v = 2, alpha = 1, so that its one rating gives the 2."""
    root = [[np.sqrt(2)]]
    for form in FORMS:
        method = fitted(MatrixFactorisation(root, root, 2.0), ([0], [0], [3.0]), form=form)
        assert_allclose(method.influence(([0], [0], [3.0])).values, [[2.0]])
        assert_allclose(method.alphas_, [[1.0]])


@pytest.mark.parametrize("form", FORMS)
def test_factors_by_loops_and_their_sums(solved, form):
    influence = fitted(solved, form=form).influence(TEST)
    assert_allclose(influence.values, by_loops(solved, form), atol=1e-13)
    predictions = (solved.user_factors[TEST[:, 0]] * solved.item_factors[TEST[:, 1]]).sum(axis=1)
    assert_allclose(influence.values.sum(axis=1), predictions, atol=1e-10)
    assert influence.diagnostics["kkt_residual"] < 1e-12
    assert 0 < influence.diagnostics["intercept_share"] < 1


def test_only_ratings_of_the_same_user_or_item_count(solved):
    for form, column in (("items", 0), ("users", 1)):
        values = fitted(solved, form=form).influence(TEST[:4]).values
        others = TEST[:4, column, None] != PAIRS[None, :, column]
        assert not values[others].any()
        assert values[~others].all()


def test_users_and_items_without_ratings_are_said(solved):
    influence = fitted(solved).influence(TEST)
    users, items = influence.diagnostics["warnings"]
    assert users.startswith("2 test instance(s) are of users without a training instance (13)")
    assert items.startswith("2 test instance(s) are of items without a training instance (10)")
    assert not influence.values[[4, 5, 6]].any()
    assert not fitted(solved, form="items").influence(TEST[:4]).diagnostics["warnings"]
    [warning] = fitted(solved, form="items").influence(TEST).diagnostics["warnings"]
    assert "users" in warning


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("signed", ["prediction", "loss"])
def test_every_question_agrees_with_the_matrix(solved, form, signed):
    method = fitted(solved, form=form, signed=signed)
    whole = method.influence((PAIRS, RATINGS)).values
    assert_allclose(method.memorization().values, whole.diagonal(), atol=1e-13)
    joint = method.influence((PAIRS, RATINGS), joint=True).values
    assert_allclose(joint, whole.sum(axis=0), atol=1e-12)
    parts = [method.influence((PAIRS, RATINGS), shard=(i, 7)).values for i in range(7)]
    assert_allclose(np.concatenate(parts, axis=1), whole, atol=1e-14)
    part = method.influence((PAIRS, RATINGS), joint=True, shard=(2, 7)).values
    assert_allclose(part, np.array_split(joint, 7)[2], atol=1e-13)
    top = method.influence((PAIRS, RATINGS), top_k=3)
    assert_allclose(top.proponents().values, -np.sort(-whole, axis=1)[:, :3], atol=1e-14)
    if signed == "loss":
        predictions = fitted(solved, form=form).influence((PAIRS, RATINGS)).values
        pulls = 2 * (RATINGS - 0.5 - predictions.sum(axis=1))
        assert_allclose(whole, pulls[:, None] * predictions, atol=1e-9)


@pytest.mark.parametrize("form", FORMS)
def test_a_rough_factorisation_is_refined_to_a_stationary_point(solved, form):
    rng = np.random.default_rng(2)
    rough = MatrixFactorisation(
        solved.user_factors + 0.02 * rng.normal(size=(USERS, RANK)),
        solved.item_factors + 0.02 * rng.normal(size=(ITEMS, RANK)),
        0.05,
        intercept=0.5,
    )
    given = fitted(rough, form=form).influence(TEST)
    assert any("Pass refine=True" in text for text in given.diagnostics["warnings"])
    refined = fitted(rough, form=form, refine=True).influence(TEST)
    assert refined.diagnostics["kkt_residual"] <= 1e-10
    expected = fitted(solved, form=form).influence(TEST).values
    assert_allclose(refined.values, expected, atol=1e-8)


def test_rows_of_their_own_strength():
    """As alternating least squares that weight by counts: lambda counts / n, row by row."""
    sides = zip(PAIRS.T, (USERS, ITEMS), strict=True)
    counts = [np.bincount(column, minlength=m) for column, m in sides]
    decays = tuple(0.3 * np.maximum(count, 1) / N for count in counts)
    rng = np.random.default_rng(3)
    start = rng.normal(size=(USERS, RANK)), rng.normal(size=(ITEMS, RANK))
    model = MatrixFactorisation(*start, decays)
    for form in FORMS:
        influence = fitted(model, form=form, refine=True).influence(TEST)
        assert influence.diagnostics["decomposition_error"] < 1e-9
        assert influence.diagnostics["kkt_residual"] <= 1e-10
        assert influence.diagnostics["rank"] == RANK


@pytest.mark.parametrize("form", FORMS)
def test_labels_of_two_classes(form):
    rng = np.random.default_rng(4)
    likes = (RATINGS > 0).astype(float)
    start = rng.normal(size=(USERS, RANK)), rng.normal(size=(ITEMS, RANK))
    model = MatrixFactorisation(*start, 0.002, loss="bce_with_logits")
    method = fitted(model, (PAIRS, likes), form=form, refine=True, signed=None)
    influence = method.influence((PAIRS, likes))
    assert influence.diagnostics["signed"] == "logit"
    assert influence.diagnostics["training_decomposition_error"] < 1e-9
    margins = influence.values.sum(axis=1)
    assert (margins > 0).mean() > 0.9  # the logits of the labels
    # alpha = (y - p) / (lambda n) at the refined logits.
    logits = np.where(likes == 1, margins, -margins)
    alphas = (likes - 1 / (1 + np.exp(-logits))) / (0.002 * N)
    assert_allclose(method.alphas_[:, 0], alphas, atol=1e-8)


def test_forms_of_the_data(solved):
    expected = fitted(solved).influence(TEST).values
    users, items = PAIRS.T
    tensors = torch.as_tensor(PAIRS), torch.as_tensor(RATINGS)
    columns = {"users": users, "items": items, "y": RATINGS}
    for train in ((users, items, RATINGS), (PAIRS.astype(float), RATINGS), tensors, columns):
        assert_array_equal(fitted(solved, train).influence(TEST).values, expected)
    factors = torch.as_tensor(solved.user_factors), torch.as_tensor(solved.item_factors)
    model = MatrixFactorisation(*factors, 0.05, intercept=0.5)
    assert_array_equal(fitted(model).influence(TEST).values, expected)


def test_a_diagonal_matrix_by_hand():
    """(1/2) ((theta_1 - 3)^2 + (theta_2 - 1)^2) + 1.5 ||Theta||_*: theta = 1.5, 0."""
    X, y = np.array([np.diag([1.0, 0.0]), np.diag([0.0, 1.0])]), np.array([3.0, 1.0])
    model = LowRankModel(np.diag([1.5, 0.0]), penalty=1.5)
    for form in FORMS:
        method = fitted(model, (X, y), form=form)
        assert_allclose(method.alphas_[:, 0], [1.0, 2 / 3])
        influence = method.influence((X, y))
        assert_allclose(influence.values, [[1.5, 0.0], [0.0, 0.0]], atol=1e-15)
        assert influence.diagnostics["kkt_residual"] < 1e-15
        assert influence.diagnostics["rank"] == 1


@pytest.fixture(scope="module")
def matrices():
    rng = np.random.default_rng(5)
    X = rng.normal(size=(80, 6, 4))
    theta = rng.normal(size=(6, 2)) @ rng.normal(size=(2, 4))
    return X, np.einsum("nab,ab->n", X, theta) + 0.2 * rng.normal(size=80) + 1.0


@pytest.fixture(scope="module")
def low_rank(matrices):
    """The minimiser of mean squared error + 0.6 ||Theta||_*, by plain proximal gradient steps."""
    X, y = matrices
    flat, theta = X.reshape(80, -1), np.zeros((6, 4))
    step = 40 / np.linalg.norm(flat, 2) ** 2
    for _ in range(5000):
        slope = 2 / 80 * (flat.T @ (flat @ theta.ravel() + 1.0 - y)).reshape(6, 4)
        left, sizes, right = np.linalg.svd(theta - step * slope, full_matrices=False)
        theta = left * np.maximum(sizes - step * 0.6, 0) @ right
    return theta


@pytest.mark.parametrize("form", FORMS)
def test_nuclear_norm_by_the_formula(matrices, low_rank, form):
    """alpha_i <U S U^T X_i, X_te> and alpha_i <X_i V S V^T, X_te>."""
    X, y = matrices
    left, sizes, right = np.linalg.svd(low_rank)
    rows = left[:, :4] * sizes @ left[:, :4].T
    columns = right.T * sizes @ right
    outputs = np.einsum("nab,ab->n", X, low_rank)
    alphas = -2 * (outputs + 1.0 - y) / (0.6 * 80)
    users = np.einsum("n,ac,ncb,mab->mn", alphas, rows, X, X[:9])
    items = np.einsum("n,nac,cb,mab->mn", alphas, X, columns, X[:9])
    expected = {"users": users, "items": items, "both": (users + items) / 2}[form]
    model = LowRankModel(low_rank, 0.6, intercept=1.0)
    influence = fitted(model, matrices, form=form).influence((X[:9], y[:9]))
    assert 0 < influence.diagnostics["rank"] < 4
    assert_allclose(influence.values, expected, atol=1e-12)
    assert_allclose(influence.values.sum(axis=1), outputs[:9], atol=1e-9)
    # From nowhere near, refining comes to the same minimum.
    far = LowRankModel(np.ones((6, 4)), 0.6, intercept=1.0)
    refined = fitted(far, matrices, form=form, refine=True).influence((X[:9], y[:9]))
    assert refined.diagnostics["kkt_residual"] <= 1e-10
    assert_allclose(refined.values, expected, atol=1e-8)


def test_matrices_answer_every_question(matrices, low_rank):
    X, y = matrices
    method = fitted(LowRankModel(low_rank, 0.6, intercept=1.0), matrices, signed=None)
    whole = method.influence(matrices).values
    assert_allclose(method.memorization().values, whole.diagonal(), atol=1e-12)
    joint = method.influence(matrices, joint=True).values
    assert_allclose(joint, whole.sum(axis=0), atol=1e-10)
    parts = [method.influence((X[:5], y[:5]), shard=(i, 3)).values for i in range(3)]
    assert_allclose(np.concatenate(parts, axis=1), whole[:5], atol=1e-12)


@pytest.mark.parametrize("form", FORMS)
def test_entries_are_factors_with_half_of_the_spectrum_each(form):
    """Matrix completion under the nuclear norm is factorisation into U S^1/2 and V S^1/2."""
    train = PAIRS, RATINGS
    start = LowRankModel(np.zeros((USERS, ITEMS)), 0.02)
    completed = fitted(start, train, form=form, refine=True)
    theta = fitted(start, train, form="users", refine=True).influence(_entries()).values
    theta = theta.sum(axis=1).reshape(USERS, ITEMS)
    left, sizes, right = np.linalg.svd(theta, full_matrices=False)
    half = np.sqrt(sizes)
    factors = MatrixFactorisation(left * half, right.T * half, 0.02)
    expected = fitted(factors, train, form=form).influence(TEST)
    assert expected.diagnostics["kkt_residual"] < 1e-6
    assert_allclose(completed.influence(TEST).values, expected.values, atol=1e-7)
    # As general matrices with a single 1 the entries come to the same.
    ones = np.zeros((N, USERS, ITEMS))
    ones[np.arange(N), PAIRS[:, 0], PAIRS[:, 1]] = 1
    dense = fitted(LowRankModel(theta, 0.02), (ones, RATINGS), form=form)
    tests = np.zeros((len(TEST), USERS, ITEMS))
    tests[np.arange(len(TEST)), TEST[:, 0], TEST[:, 1]] = 1
    zeros = np.zeros(len(TEST))
    assert_allclose(dense.influence((tests, zeros)).values, expected.values, atol=1e-7)


def _entries():
    return np.stack(np.meshgrid(np.arange(USERS), np.arange(ITEMS), indexing="ij"), -1).reshape(
        -1, 2
    )


def test_refusals(solved, matrices):
    users, items = solved.user_factors, solved.item_factors
    for arguments, message in (
        ((users, items[:, :2], 0.1), "item_factors: a row has 2 factors"),
        ((users, items, 0.0), "weight_decay must be larger than 0"),
        ((users, items, (np.ones(3), np.ones(ITEMS))), "one of each of the 14 users"),
        ((users * np.nan, items, 0.1), "user_factors: 42 numbers are not finite"),
        ((users[0], items, 0.1), r"user_factors: expected an array of 2 dim.*\(3,\)"),
        ((users, items, 0.1, "hinge"), "loss='hinge'"),
    ):
        with pytest.raises(InvalidInputError, match=message):
            MatrixFactorisation(*arguments)
    with pytest.raises(InvalidInputError, match="penalty must be larger than 0"):
        LowRankModel(np.eye(2), -1.0)
    for pairs, message in (
        (PAIRS + 0.5, "whole numbers"),
        (np.column_stack([PAIRS, PAIRS]), r"pairs \(n, 2\)"),
        (PAIRS + np.array([2, 0]), r"train: the model has users 0 \.\. 13, and no 14"),
        (PAIRS - np.array([0, 1]), r"train: the model has items 0 \.\. 10, and no -1"),
    ):
        with pytest.raises(InvalidInputError, match=message):
            fitted(solved, (pairs, RATINGS))
    with pytest.raises(InvalidInputError, match=r"test: the model has items .* no 99"):
        fitted(solved).influence([np.array([[0, 99]]), np.ones(1)])
    with pytest.raises(InvalidInputError, match="train: the set has no labels"):
        fitted(solved, PAIRS)
    with pytest.raises(InvalidInputError, match=r"test: signed='loss' needs labels"):
        fitted(solved, signed="loss").influence(TEST)
    with pytest.raises(InvalidInputError, match=r"inputs of shape \(80, 4, 6\) do not fit Theta"):
        fitted(LowRankModel(np.eye(6, 4), 0.1), (matrices[0].swapaxes(1, 2), matrices[1]))
    with pytest.raises(NonFiniteError, match="ids 7"):
        fitted(solved, (PAIRS, np.where(np.arange(N) == 7, np.nan, RATINGS)))
