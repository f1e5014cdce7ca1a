"""Representers of sparse linear models: by hand, by loops, and their sums against predictions."""

import subprocess
import sys

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits
from sklearn.linear_model import ElasticNet, Lasso, Ridge, SGDClassifier
from static.sparse_estimators import sparse_logistic

from proponent.exceptions import InvalidInputError, NonFiniteError, NotFittedError
from proponent.static.high_dimensional_representer import HighDimensionalRepresenter

TIGHT = {"tol": 1e-13, "max_iter": 1_000_000}


@pytest.fixture(scope="module")
def diabetes():
    return load_diabetes(return_X_y=True)


@pytest.fixture(scope="module")
def cancer():
    X, y = load_breast_cancer(return_X_y=True)
    return (X - X.mean(axis=0)) / X.std(axis=0), np.array(["bad", "good"])[y]


@pytest.fixture(scope="module")
def digits():
    X, y = load_digits(return_X_y=True)
    return X[:500] / 16, y[:500]


@pytest.fixture(scope="module")
def softmax(digits):
    """Ten classes, far from the optimum: saga has only a few passes."""
    with pytest.warns(Warning, match="max_iter"):
        return sparse_logistic(0.8, C=0.2, max_iter=20).fit(*digits)


def fitted(model, train, **settings):
    return HighDimensionalRepresenter(**settings).fit(model, train)


def test_lasso_by_hand():
    """(1/4) sum_i (y_i - theta x_i)^2 + |theta| for x = 1, 2 and y = 1, 3: theta = 1."""
    X, y = np.array([[1.0], [2.0]]), np.array([1.0, 3.0])
    lasso = Lasso(alpha=1.0, fit_intercept=False, **TIGHT).fit(X, y)
    assert_allclose(lasso.coef_, [1.0])
    method = fitted(lasso, (X, y), signed="prediction")
    assert_allclose(method.alphas_, [[0.0], [0.5]], atol=1e-12)
    test = np.array([[3.0]]), np.array([5.0])
    assert_allclose(method.influence(test).values, [[0.0, 3.0]], atol=1e-12)
    # Signed by the loss: times -d(5 - f)^2/df = 4 at f = 3; the second helps.
    assert_allclose(fitted(lasso, (X, y)).influence(test).values, [[0.0, 12.0]], atol=1e-11)


def test_elastic_net_by_hand():
    """(3 - theta)^2 / 2 + |theta| / 2 + theta^2 / 4: theta = 5/3, alpha = 4/3, kernel 5/4."""
    X, y = np.array([[1.0]]), np.array([3.0])
    net = ElasticNet(alpha=1.0, l1_ratio=0.5, fit_intercept=False, **TIGHT).fit(X, y)
    method = fitted(net, (X, y), signed="prediction")
    assert_allclose(method.alphas_, [[4 / 3]])
    assert_allclose(method.influence((X, y)).values, [[4 / 3 * 5 / 4]])


def test_lasso_by_the_survey(diabetes):
    """alpha_i = -(1 / (lambda n)) dl/dyhat, K = x_i^T diag(|theta|) x_te; and the exact sum."""
    X, y = diabetes
    lasso = Lasso(alpha=0.2, **TIGHT).fit(X, y)
    alphas = (y - lasso.predict(X)) / (0.2 * len(y))
    expected = np.einsum("i,ij,j,mj->mi", alphas, X, np.abs(lasso.coef_), X[:20])
    influence = fitted(lasso, diabetes, signed="prediction").influence((X[:20], y[:20]))
    assert_allclose(influence.values, expected, rtol=1e-9, atol=1e-9)
    sums = influence.values.sum(axis=1) + lasso.intercept_
    assert_allclose(sums, lasso.predict(X[:20]), rtol=1e-10)
    # Times -d(y - f)^2/df for the loss.
    pulls = 2 * (y - lasso.predict(X))[:20, None]
    by_loss = fitted(lasso, diabetes).influence((X[:20], y[:20]))
    assert_allclose(by_loss.values, pulls * expected, rtol=1e-8, atol=1e-8)
    assert by_loss.diagnostics["signed"] == "loss"


def test_dropped_features_do_not_count(diabetes):
    X, y = diabetes
    lasso = Lasso(alpha=0.2, **TIGHT).fit(X, y)
    other = X.copy()
    other[:, lasso.coef_ == 0] = np.random.default_rng(0).normal(size=other.shape)[
        :, lasso.coef_ == 0
    ]
    method = fitted(lasso, diabetes)
    assert (lasso.coef_ == 0).any()
    assert method.influence((X, y)).diagnostics["nonzero"] == np.count_nonzero(lasso.coef_)
    assert_array_equal(method.influence((X, y)).values, method.influence((other, y)).values)


@pytest.mark.parametrize("solver", ["saga", "liblinear"])
def test_two_classes_sum_to_the_logit_of_the_label(cancer, solver):
    """liblinear penalises the intercept, and so it is part of the sum; saga does not."""
    X, y = cancer
    model = sparse_logistic(solver=solver, C=0.05, tol=1e-10, max_iter=5000).fit(X, y)
    influence = fitted(model, cancer).influence((X[:30], y[:30]))
    signs = np.where(y[:30] == "good", 1, -1)
    logits = model.decision_function(X[:30]) - (solver == "saga") * model.intercept_
    assert_allclose(influence.values.sum(axis=1), signs * logits, atol=1e-6)
    share = influence.diagnostics["intercept_share"]
    assert (share > 0) == (solver == "saga")
    explained = influence.diagnostics["sum_of_scores"]
    assert explained.endswith("without the intercept") == (solver == "saga")
    kernel = (X * np.abs(model.coef_)) @ X[:30].T
    p = model.predict_proba(X)[:, 1]
    weight = ((y == "good") - p) * 0.05  # alpha = -l' / (lambda n), lambda = 1 / (n C)
    if solver == "liblinear":
        kernel = kernel + np.abs(model.intercept_)  # of the constant feature 1
    expected = signs[:, None] * (weight[:, None] * kernel).T
    assert_allclose(influence.values, expected, atol=1e-9)


def test_ten_classes_refined(digits, softmax):
    X, y = digits
    test = X[:40], y[:40]
    rough = fitted(softmax, digits, signed="logit").influence(test)
    [warning] = rough.diagnostics["warnings"]
    assert "Pass refine=True" in warning
    method = fitted(softmax, digits, refine=True)
    influence = method.influence(test)
    assert influence.diagnostics["kkt_residual"] <= 1e-10
    assert influence.diagnostics["signed"] == "logit"
    # The optimum is the one that saga would come to.
    exact = sparse_logistic(0.8, C=0.2, tol=1e-9, max_iter=20_000).fit(X, y)
    logits = (X[:40] @ exact.coef_.T)[np.arange(40), y[:40]]
    assert_allclose(influence.values.sum(axis=1), logits, atol=2e-5)
    # By the loss: sum_c alpha_ic (y - p)_te,c K_c(x_i, x_te).
    gaps = np.eye(10)[y] - exact.predict_proba(X)
    size = np.abs(exact.coef_)
    kernels = size / (0.8 + 0.2 * size)
    expected = np.einsum("ic,mc,ij,cj,mj->mi", 0.2 * gaps, gaps[:40], X, kernels, X[:40])
    by_loss = fitted(softmax, digits, refine=True, signed="loss").influence(test)
    assert_allclose(by_loss.values, expected, atol=1e-6)


@pytest.mark.parametrize("signed", ["logit", "loss"])
def test_every_question_agrees_with_the_matrix(digits, softmax, signed):
    X, y = digits
    method = fitted(softmax, digits, refine=True, signed=signed)
    whole = method.influence(digits).values
    assert_allclose(method.memorization().values, whole.diagonal(), atol=1e-14)
    joint = method.influence(digits, joint=True)
    assert_allclose(joint.values, whole.sum(axis=0), atol=1e-12)
    parts = [method.influence((X[:9], y[:9]), shard=(i, 3)).values for i in range(3)]
    assert_allclose(np.concatenate(parts, axis=1), whole[:9], atol=1e-15)
    top = method.influence((X[:9], y[:9]), top_k=4)
    best = np.argsort(-whole[:9], axis=1, kind="stable")[:, :4]
    assert_allclose(top.proponents().values, np.take_along_axis(whole[:9], best, axis=1))
    groups = method.group_influence({"even": np.arange(0, 500, 2)}, (X[:9], y[:9]))
    assert_allclose(groups.values[:, 0], whole[:9, ::2].sum(axis=1), atol=1e-13)
    assert (method.memorization().values > 0).all()  # what an instance says of itself is its label


def test_scores_and_sums_of_a_model_short_of_its_optimum(digits, softmax):
    """|f - sum| <= (KKT residual / lambda) * sum_j kappa_j |x_j|, and the error is what is said."""
    X, y = digits
    test = X[:40], y[:40]
    influence = fitted(softmax, digits).influence(test)
    logits = (X[:40] @ softmax.coef_.T)[np.arange(40), y[:40]]
    errors = np.abs(logits - influence.values.sum(axis=1))
    assert_allclose(errors.max(), influence.diagnostics["decomposition_error"], rtol=1e-6)
    size = np.abs(softmax.coef_)
    reach = (np.abs(X[:40]) @ (size / (0.8 + 0.2 * size)).T)[np.arange(40), y[:40]]
    assert errors.max() > 1e-4
    assert (errors <= influence.diagnostics["kkt_residual"] * reach + 1e-12).all()


def test_a_model_at_its_optimum_stays_where_it_is(diabetes):
    lasso = Lasso(alpha=0.2, **TIGHT).fit(*diabetes)
    given, refined = (fitted(lasso, diabetes, refine=refine) for refine in (False, True))
    assert refined.influence(diabetes).diagnostics["refined_shift"] < 1e-10
    assert not refined.influence(diabetes).diagnostics["warnings"]
    a, b = given.influence(diabetes).values, refined.influence(diabetes).values
    assert_allclose(a, b, atol=1e-8 * np.abs(b).max())


def test_a_refinement_that_moves_the_model_says_so(cancer):
    X, y = cancer
    model = SGDClassifier(loss="log_loss", penalty="l1", alpha=0.01, max_iter=2, tol=None)
    model.set_params(random_state=0).fit(X, y)
    influence = fitted(model, cancer, refine=True).influence((X[:3], y[:3]))
    assert influence.diagnostics["refined_shift"] > 0.05
    assert any("it is the refined model" in text for text in influence.diagnostics["warnings"])
    cut = fitted(model, cancer, refine=True, max_iterations=1).influence((X[:3], y[:3]))
    assert any("raise max_iterations" in text for text in cut.diagnostics["warnings"])


def test_a_penalty_that_leaves_nothing_says_so(diabetes):
    lasso = Lasso(alpha=1000.0).fit(*diabetes)
    influence = fitted(lasso, diabetes).influence(diabetes)
    assert not influence.values.any()
    assert influence.diagnostics["intercept_share"] == 1
    assert any("nothing but a constant" in text for text in influence.diagnostics["warnings"])


def test_a_flipped_label_is_the_strongest_opponent_of_its_class(digits):
    X, y = (part[(digits[1] == 3) | (digits[1] == 8)] for part in digits)
    wrong = y.copy()
    wrong[5] = 11 - y[5]
    model = sparse_logistic(C=1.0, max_iter=2000, tol=1e-6).fit(X, wrong)
    own = y == y[5]
    for signed in ("logit", "loss"):
        method = fitted(model, (X, wrong), refine=True, signed=signed)
        joint = method.influence((X[own], y[own]), joint=True)
        assert joint.opponents(1).ids == [5]


def test_torch_is_not_needed():
    code = """
import sys

class NoTorch:
    def find_spec(self, name, *_):
        if name.partition(".")[0] == "torch":
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, NoTorch())
import numpy as np
from sklearn.linear_model import Lasso
from proponent.static.high_dimensional.models import LowRankModel, MatrixFactorisation
from proponent.static.high_dimensional_representer import HighDimensionalRepresenter
X, y = np.eye(3), np.arange(3.0)
for model, train in (
    (Lasso(0.1).fit(X, y), (X, y)),
    (MatrixFactorisation(X, X, 0.1), ([0, 1, 2], [0, 1, 1], y)),
    (LowRankModel(X, 0.1), (np.stack([X, X, X]), y)),
):
    train = tuple(map(np.asarray, train))
    HighDimensionalRepresenter(refine=True).fit(model, train).influence(train)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_refusals(diabetes, cancer):
    X, y = diabetes
    lasso = Lasso(alpha=0.2).fit(X, y)
    with pytest.raises(NotFittedError, match="sparse or low-rank penalty"):
        HighDimensionalRepresenter().influence(diabetes)
    with pytest.raises(InvalidInputError, match=r"signed='margin'.*'logit', 'loss', 'prediction'"):
        fitted(lasso, diabetes, signed="margin")
    with pytest.raises(InvalidInputError, match=r"form='rows'.*'both', 'items', 'users'"):
        fitted(lasso, diabetes, form="rows")
    with pytest.raises(InvalidInputError, match="max_iterations"):
        fitted(lasso, diabetes, max_iterations=0)
    with pytest.raises(InvalidInputError, match=r"signed='logit'.*no logits.*'prediction'"):
        fitted(lasso, diabetes, signed="logit")
    with pytest.raises(InvalidInputError, match=r"train.*empty"):
        fitted(lasso, (X[:0], y[:0]))
    with pytest.raises(InvalidInputError, match=r"got a sklearn Ridge\. Ridge is not among"):
        fitted(Ridge().fit(X, y), diabetes)
    broken = X.copy()
    broken[3, 2] = np.nan
    with pytest.raises(NonFiniteError, match="ids 3"):
        fitted(lasso, (broken, y))
    with pytest.raises(NonFiniteError, match=r"\(3, 0\)"):
        fitted(lasso, diabetes).influence((broken, y))
    with pytest.raises(InvalidInputError, match="test: the labels ugly"):
        model = sparse_logistic(C=0.1).fit(*cancer)
        fitted(model, cancer).influence((cancer[0][:1], np.array(["ugly"])))
    with pytest.raises(InvalidInputError, match=r"10 outputs.*signed='logit'"):
        digits = load_digits(return_X_y=True)
        model = sparse_logistic(C=1e-4).fit(*digits)
        fitted(model, digits, signed="prediction")
