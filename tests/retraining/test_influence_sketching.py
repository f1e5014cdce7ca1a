"""Influence sketching against dense hat matrices, and what a projection does to leverages."""

import json
from typing import Any

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from retraining.refit_examples import instances, regression
from scipy.stats import spearmanr
from sklearn.base import clone
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import (
    GammaRegressor,
    LinearRegression,
    LogisticRegression,
    PoissonRegressor,
    Ridge,
    TweedieRegressor,
)
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from proponent.exceptions import InvalidInputError, MethodCapabilityError, NotFittedError
from proponent.influence import Influence
from proponent.retraining.closed_forms import closed_form_of
from proponent.retraining.influence_sketching import InfluenceSketching
from proponent.retraining.leverage_sketch import FEATURES, leverages, projection_blocks

TIGHT: dict[str, Any] = {"tol": 1e-12, "max_iter": 2000}


def heavy(n: int = 300, d: int = 40, seed: int = 0) -> Any:
    """Return features some rows of which are large, with targets and classes."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, d)) * np.exp(rng.normal(size=(n, 1)) / 2) + 1
    y = X @ rng.normal(size=d) + rng.normal(size=n)
    return X, y, np.where(X[:, 0] + rng.logistic(size=n) > 1, "yes", "no")


def distances(model: Any, data: Any, k: int = 512, **settings: Any) -> Influence:
    return InfluenceSketching(k, **settings).fit(model, data).cooks_distance()


def by_hand(X: Any, weights: Any, residuals: Any, penalty: float, dispersion: Any) -> Any:
    """Return Cook's distances by a dense hat matrix."""
    X = np.column_stack([X, np.ones(len(X))])
    ridge = np.diag([penalty] * (X.shape[1] - 1) + [0.0])
    information = X.T @ (weights[:, None] * X)
    inverse = np.linalg.inv(information + ridge)
    h = weights * np.einsum("ia,ab,ib->i", X, inverse, X)
    q = weights * np.einsum("ia,ab,ib->i", X, inverse @ information @ inverse, X)
    if dispersion is None:
        dispersion = np.square(residuals).sum() / (len(X) - h.sum())
    return residuals**2 * q / (h.sum() * dispersion * (1 - h) ** 2)


# Without a projection


@pytest.mark.parametrize("alpha", [0.0, 5.0])
def test_without_a_projection_it_is_cooks_distance(alpha: float) -> None:
    X, y, _ = heavy()
    model = Ridge(alpha) if alpha else LinearRegression()
    form = closed_form_of(model, instances((X, y)))
    assert form is not None
    answer = distances(model, (X, y))
    assert_allclose(answer.values, form.cooks_distance(), rtol=1e-8)
    assert_allclose(
        answer.values, by_hand(X, np.ones(300), y - model.fit(X, y).predict(X), alpha, None)
    )
    assert answer.diagnostics["exact"] is True and answer.diagnostics["k"] == 40


@pytest.mark.parametrize("C", [0.1, np.inf])
def test_without_a_projection_it_is_pregibons_distance(C: float) -> None:
    X, _, y = heavy(d=5)
    model = LogisticRegression(C=C, **TIGHT).fit(X, y)
    p = model.predict_proba(X)[:, 1]
    residuals = ((y == "yes") - p) / np.sqrt(p * (1 - p))
    expected = by_hand(X, p * (1 - p), residuals, 1 / C, 1.0)
    answer = distances(model, (X, y))
    assert_allclose(answer.values, expected, rtol=1e-8)
    form = closed_form_of(model, instances((X, y)), approximate=True)
    assert form is not None
    assert_allclose(answer.values, form.cooks_distance(), rtol=1e-4)


def test_weights_of_classes() -> None:
    X, _, y = heavy(d=5)
    weights = {"yes": 3.0, "no": 0.5}
    model = LogisticRegression(class_weight=weights, **TIGHT).fit(X, y)
    p = model.predict_proba(X)[:, 1]
    counts = np.where(y == "yes", 3.0, 0.5)
    residuals = np.sqrt(counts) * ((y == "yes") - p) / np.sqrt(p * (1 - p))
    expected = by_hand(X, counts * p * (1 - p), residuals, 1.0, 1.0)
    answer = distances(model, (X, y))
    assert_allclose(answer.values, expected, rtol=1e-8)
    assert "weights of the classes" in answer.diagnostics["notes"][0]


@pytest.mark.parametrize(
    ("model", "power"),
    [
        (PoissonRegressor(alpha=0.01, **TIGHT), 1.0),
        (GammaRegressor(alpha=0.01, **TIGHT), 2.0),
        (TweedieRegressor(power=1.5, alpha=0.0, **TIGHT), 1.5),
        (TweedieRegressor(power=0, alpha=0.1, **TIGHT), 0.0),
    ],
)
def test_other_generalised_linear_models(model: Any, power: float) -> None:
    rng = np.random.default_rng(0)
    X = rng.normal(size=(100, 3)) / 3
    y = rng.poisson(np.exp(X[:, 0] + 1)) + (0.0 if power in (0, 1) else 0.5)
    means = clone(model).fit(X, y).predict(X)
    slopes = means if power else np.ones(100)
    residuals = (y - means) / means ** (power / 2)
    dispersion = 1.0 if power == 1 else None
    expected = by_hand(X, slopes**2 / means**power, residuals, model.alpha * 100, dispersion)
    assert_allclose(distances(model, (X, y)).values, expected, rtol=1e-6)


def test_without_an_intercept() -> None:
    X, y, _ = heavy(d=5)
    model = LinearRegression(fit_intercept=False)
    hat = X @ np.linalg.pinv(X)
    h, e = hat.diagonal(), y - hat @ y
    expected = e**2 * h / (5 * (e @ e / 295) * (1 - h) ** 2)
    assert_allclose(distances(model, (X, y)).values, expected, rtol=1e-8)


# What a projection does


@pytest.mark.parametrize("projection", ["gaussian", "sparse"])
@pytest.mark.parametrize("penalty", [0.0, 3.0])
def test_leverages_of_a_sketch_are_smaller(projection: Any, penalty: float) -> None:
    X, _, _ = heavy()
    weights = np.random.default_rng(1).uniform(0.1, 2, size=300)
    exact = leverages(X, weights, True, penalty, 40, projection, 0)
    errors = []
    for k in (5, 20, 35):
        found = leverages(X, weights, True, penalty, k, projection, 0)
        assert (found.values <= exact.values + 1e-10).all()
        if not penalty:
            assert found.values.sum() == pytest.approx(k + 1)
        assert (found.squared <= found.values + 1e-12).all()
        errors.append(np.abs(found.values - exact.values).mean())
    assert errors[0] > errors[1] > errors[2] > 0


@pytest.mark.parametrize("projection", ["gaussian", "sparse"])
@pytest.mark.parametrize("penalty", [0.0, 3.0])
def test_leverages_are_those_of_the_projected_design(projection: Any, penalty: float) -> None:
    X, _, _ = heavy(60, 30)
    weights = np.random.default_rng(1).uniform(0.1, 2, size=60)
    random = np.vstack(
        [
            part if isinstance(part, np.ndarray) else part.toarray()
            for _, part in projection_blocks(30, 8, projection, 4)
        ]
    )
    design = np.sqrt(weights)[:, None] * np.column_stack([X @ random, np.ones(60)])
    ridge = np.zeros((9, 9))
    ridge[:8, :8] = penalty * random.T @ random
    hat = design @ np.linalg.solve(design.T @ design + ridge, design.T)
    found = leverages(X, weights, True, penalty, 8, projection, 4)
    assert_allclose(found.values, hat.diagonal(), rtol=1e-8)
    assert_allclose(found.squared, (hat @ hat).diagonal(), rtol=1e-8)


@pytest.mark.parametrize("projection", ["gaussian", "sparse"])
def test_entries_of_the_projection(projection: Any) -> None:
    d, k = FEATURES + 500, 50
    blocks = list(projection_blocks(d, k, projection, 0))
    assert [some.stop - some.start for some, _ in blocks] == [FEATURES, 500]
    dense = np.vstack([b if isinstance(b, np.ndarray) else b.toarray() for _, b in blocks])
    assert dense.shape == (d, k)
    # A thousandth is two standard errors of the mean square of the sparse ones.
    assert np.square(dense).mean() * k == pytest.approx(1, abs=0.05)
    assert dense.mean() * np.sqrt(k) == pytest.approx(0, abs=0.02)
    density = (dense != 0).mean()
    assert density == pytest.approx(1 if projection == "gaussian" else d**-0.5, rel=0.05)
    if projection == "sparse":
        assert len(np.unique(np.abs(dense))) == 2
    other = np.vstack(
        [
            np.asarray(b if isinstance(b, np.ndarray) else b.toarray())
            for _, b in projection_blocks(d, k, projection, 1)
        ]
    )
    assert (other != dense).any()


@pytest.mark.parametrize("projection", ["gaussian", "sparse"])
def test_a_sketch_near_the_rank_ranks_well(projection: Any) -> None:
    X, y, _ = heavy()
    exact = distances(LinearRegression(), (X, y)).values
    near, far = (
        distances(LinearRegression(), (X, y), k, projection=projection).values for k in (35, 4)
    )
    assert spearmanr(near, exact).statistic > 0.99
    assert spearmanr(near, exact).statistic > spearmanr(far, exact).statistic
    top = set(np.argsort(-exact)[:15])
    assert len(top & set(np.argsort(-near)[:15])) >= 12


def test_rescaled_leverages_have_the_right_sum_and_distances_the_right_size() -> None:
    X, y, _ = heavy(120)
    exact = distances(LinearRegression(), (X, y)).values
    plain, rescaled = (distances(LinearRegression(), (X, y), 25, rescale=r) for r in (False, True))
    assert plain.diagnostics["sum of leverages"] == pytest.approx(26)
    assert rescaled.diagnostics["sum of leverages, rescaled"] == pytest.approx(41)
    sizes = [np.abs(np.log(found.values / exact)).mean() for found in (plain, rescaled)]
    assert sizes[1] < 0.9 * sizes[0]
    same = distances(LinearRegression(), (X, y), 25, rescale=41.0)
    assert_allclose(same.values, rescaled.values)
    whole = distances(LinearRegression(), (X, y), rescale=True)
    assert_allclose(whole.values, exact, rtol=1e-6)


def test_a_seed_decides_and_one_more_feature_in_the_sketch_is_another_sketch() -> None:
    data = heavy()[:2]
    first, again, other = (
        distances(LinearRegression(), data, 10, seed=s).values for s in (0, 0, 1)
    )
    assert_array_equal(first, again)
    assert np.abs(other - first).max() > 1e-3 * first.max()


# What it takes


def test_a_model_that_is_not_fitted_is_fitted_and_left_alone() -> None:
    X, y, _ = heavy(d=5)
    model = Ridge(2.0)
    found = distances(model, (X, y))
    assert not hasattr(model, "coef_")
    assert_array_equal(found.values, distances(Ridge(2.0).fit(X, y), (X, y)).values)
    assert "a clone of it was" in found.diagnostics["notes"][0]


def test_pipelines_of_frames_and_of_text() -> None:
    X, y, _ = heavy(d=5)
    frame = pd.DataFrame(X, columns=list("abcde"), index=[f"row {i}" for i in range(300)])
    piped = distances(make_pipeline(StandardScaler(), Ridge(1.0)), (frame, pd.Series(y)))
    scaled = StandardScaler().fit_transform(X)
    assert_allclose(piped.values, distances(Ridge(1.0), (scaled, y)).values, rtol=1e-9)
    assert piped.train_ids[0] == "row 0"
    assert "held fixed" in " ".join(piped.diagnostics["notes"])
    words = np.array(["red green", "green blue", "blue red red", "red", "green green", "blue"])
    classes = np.array([0, 1, 0, 1, 1, 0])
    counts = CountVectorizer().fit_transform(words)
    sparse = distances(
        make_pipeline(CountVectorizer(), LogisticRegression(**TIGHT)), (words, classes), 2
    )
    dense = distances(LogisticRegression(**TIGHT), (counts.toarray(), classes), 2)
    assert_allclose(sparse.values, dense.values, rtol=1e-6)


def test_an_instance_that_alone_has_a_feature_is_not_scored_and_named() -> None:
    X, y, _ = heavy(d=5)
    X[:, 4] = 0
    X[17, 4] = 1
    answer = distances(LinearRegression(), (X, y))
    assert np.isnan(answer.values[17]) and np.isfinite(np.delete(answer.values, 17)).all()
    assert "1 training instances have leverage 1" in answer.diagnostics["warnings"][0]
    assert answer.diagnostics["warnings"][0].endswith("17")


def test_features_that_are_collinear() -> None:
    X, y, _ = heavy(d=5)
    twice = np.column_stack([X, X[:, 0] - X[:, 1]])
    plain, collinear = (distances(LinearRegression(), (data, y)) for data in (X, twice))
    assert_allclose(collinear.values, plain.values, rtol=1e-6)
    assert collinear.diagnostics["sum of leverages"] == pytest.approx(6)


# The frame


def test_one_value_an_instance_whatever_the_test_set() -> None:
    data = heavy(d=5)[:2]
    method = InfluenceSketching()
    for ask in (method.cooks_distance, lambda: method.influence(data)):
        with pytest.raises(NotFittedError, match="linear or generalised linear"):
            ask()
    ids = [f"train-{i}" for i in range(300)]
    answer = method.fit(LinearRegression(), data, ids=ids).cooks_distance()
    assert answer.values.shape == (300,) and answer.test_ids is None
    assert (answer.values >= 0).all() and not answer.additive
    strongest = answer.proponents(3)
    assert_array_equal(strongest.ids, [ids[i] for i in np.argsort(-answer.values)[:3]])
    assert json.loads(json.dumps(dict(answer.diagnostics))) == dict(answer.diagnostics)
    assert answer.settings == method.get_params()
    for asked in ({}, {"joint": True}, {"top_k": 2}):
        with pytest.raises(MethodCapabilityError, match=r"ask cooks_distance\(\)"):
            method.influence(data, **asked)
    with pytest.raises(MethodCapabilityError, match="no memorization"):
        method.memorization()
    with pytest.raises(MethodCapabilityError, match="no group influence"):
        method.group_influence({"a": ids[:2]}, data)


def test_a_flipped_label_comes_out_first() -> None:
    X = np.random.default_rng(0).normal(size=(300, 3))
    flipped = (X[:, 0] > 0).astype(int)
    row = int(np.argmax(X[:, 0]))
    flipped[row] = 0
    found = distances(LogisticRegression(**TIGHT), (X, flipped))
    assert found.proponents(1).ids[0] == row


@pytest.mark.parametrize("model", [KMeans(), 3, LinearRegression, None])
def test_other_models_are_told_what_is_needed(model: Any) -> None:
    with pytest.raises(InvalidInputError, match=r"model: InfluenceSketching needs a linear"):
        InfluenceSketching().fit(model, heavy()[:2])


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (LogisticRegression(solver="liblinear"), "intercept"),
        (LogisticRegression(l1_ratio=1.0, solver="saga"), "L1 penalty"),
        (LinearRegression(positive=True), "positive"),
    ],
)
def test_models_without_a_smooth_minimum_are_refused(model: Any, message: str) -> None:
    X, y, classes = heavy(d=3)
    labels = classes if isinstance(model, LogisticRegression) else y
    with pytest.raises(InvalidInputError, match=message):
        InfluenceSketching().fit(model, (X, labels))


@pytest.mark.filterwarnings(
    f"ignore::{ConvergenceWarning.__module__}.{ConvergenceWarning.__name__}"
)
def test_models_and_sets_that_do_not_belong_together_are_refused() -> None:
    X, y, classes = heavy(d=3)
    three = np.random.default_rng(0).integers(0, 3, size=300)
    method = InfluenceSketching()
    with pytest.raises(InvalidInputError, match="more than two classes"):
        method.fit(LogisticRegression(), (X, three))
    with pytest.raises(InvalidInputError, match="several outputs"):
        method.fit(LinearRegression(), (X, np.column_stack([y, y])))
    with pytest.raises(InvalidInputError, match="fitted to 2 of them"):
        method.fit(LinearRegression().fit(X[:, :2], y), (X, y))
    with pytest.raises(InvalidInputError, match="the labels 'maybe' are none"):
        method.fit(
            LogisticRegression().fit(X, classes), (X, np.where(X[:, 0] > 0, "maybe", classes))
        )
    with pytest.raises(InvalidInputError, match=r"train.*empty"):
        method.fit(LinearRegression(), (X[:0], y[:0]))
    with pytest.raises(InvalidInputError, match="no residuals"):
        method.fit(LinearRegression(), (X, X @ np.ones(3)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"k": 0}, "k"),
        ({"projection": "fourier"}, "projection must be"),
        ({"seed": -1}, "seed: expected"),
        ({"rescale": 1.0}, "rescale: expected"),
        ({"rescale": 301}, "rescale: expected"),
    ],
)
def test_settings_out_of_range_are_refused(settings: Any, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        InfluenceSketching(**settings).fit(LinearRegression(), heavy()[:2])


def test_rescaling_needs_to_know_the_number_of_parameters() -> None:
    with pytest.raises(InvalidInputError, match="pass that sum"):
        InfluenceSketching(rescale=True).fit(Ridge(), heavy()[:2])
    with pytest.raises(InvalidInputError, match="leave every leverage at 1"):
        InfluenceSketching(5, rescale=True).fit(LinearRegression(), regression(20, 30)[0])
