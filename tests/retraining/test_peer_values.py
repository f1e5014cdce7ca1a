"""The numbers of pyDVL where it is right, on a problem that anybody can make again."""

import numpy as np
import pytest
from numpy.testing import assert_allclose
from retraining.games import all_masks, enumerated
from retraining.knn_games import average_game, beta_law, binomial_law, by_distance, semivalues
from sklearn.linear_model import Ridge

import proponent as pp

N, T = 8, 5
_at = np.arange(3 * N).reshape(N, 3)
X = np.sin(1.7 * _at + 0.3) + 0.1 * _at % 1.3
Y = np.cos(0.9 * np.arange(N) ** 1.5)
_at = np.arange(3 * T).reshape(T, 3)
X_TEST, Y_TEST = np.cos(1.1 * _at + 0.2), np.sin(0.7 * np.arange(T) + 0.4)
LABELS, LABELS_TEST = np.arange(N) * 5 % 3, np.arange(T) % 3
EMPTY = -float(np.mean(Y_TEST**2))

# pyDVL 0.10.0 with numpy 1.26 and scikit-learn 1.9: Ridge(alpha=0.5), minus the mean squared error
# on the test set, all subsets (DeterministicUniformSampler); KNNShapleyValuation with k = 1 and 3.
PYDVL = {
    name: np.array(values.split(), np.float64)
    for name, values in {
        "leave-one-out": """
            0.3476657936116 0.2566222108031 -0.2073194949341 -0.0121700339344
            0.1518676323009 0.1970927795301 -0.1176482643022 0.0128689708034
        """,
        "Shapley": """
            0.4470301951018 0.3112872579669 -0.5087456945913 0.0882860460371
            0.3374603046323 -0.4331225426848 -0.0060413217088 -0.1606777728929
        """,
        "Banzhaf": """
            0.5362348198781 0.2887959431434 -0.3895264136167 0.1025819276656
            0.3893584675673 -0.3731887549168 -0.0960176004788 -0.0442789223435
        """,
        "Beta(4, 1)": """
            0.3565586226916 0.3498607977767 -0.8582760368459 0.0956013319312
            0.3379670075508 -0.9423389428158 0.1659874743577 -0.4404347568476
        """,
        "Beta(1, 16)": """
            0.3939114056862 0.2673102618136 -0.2280717664725 0.0162951394050
            0.2118307030277 0.1580538993379 -0.1232211999949 0.0207687312702
        """,
        "kNN 1": """
            0.0535714285714 -0.0130952380952 0.1869047619048 0.0535714285714
            0.0250000000000 0.0535714285714 0.0535714285714 -0.0130952380952
        """,
        "kNN 3": """
            0.0535714285714 -0.0130952380952 0.0535714285714 0.0535714285714
            0.0250000000000 0.0535714285714 0.0535714285714 -0.0130952380952
        """,
    }.items()
}
METHODS = {
    "leave-one-out": (lambda: pp.LeaveOneOut(shortcut=None), lambda n: np.eye(n)[-1]),
    "Shapley": (lambda: pp.Shapley(estimator="exact"), lambda n: np.full(n, 1 / n)),
    "Banzhaf": (lambda: pp.Banzhaf(estimator="exact"), lambda n: binomial_law(n, 0.5)),
    "Beta(4, 1)": (lambda: pp.BetaShapley(4, 1, estimator="exact"), lambda n: beta_law(n, 4, 1)),
    "Beta(1, 16)": (lambda: pp.BetaShapley(1, 16, estimator="exact"), lambda n: beta_law(n, 1, 16)),
}


def worth():
    """Return minus the squared errors of the models of all subsets, ``(2^N, T)``."""
    rows = [np.full(T, EMPTY)]
    for mask in all_masks(N)[1:]:
        rows.append(-((Ridge(alpha=0.5).fit(X[mask], Y[mask]).predict(X_TEST) - Y_TEST) ** 2))
    return np.array(rows)


@pytest.mark.parametrize("name", METHODS)
def test_semivalues_are_those_of_pydvl_and_of_all_subsets(name):
    make, law = METHODS[name]
    method = make().set_params(empty=EMPTY).fit(Ridge(alpha=0.5), (X, Y))
    found = method.influence((X_TEST, Y_TEST))
    assert_allclose(found.values, enumerated(worth(), law(N)), rtol=0, atol=1e-10)
    assert_allclose(found.values.mean(axis=0), PYDVL[name], rtol=0, atol=1e-10)


@pytest.mark.parametrize("k", [1, 3])
def test_nearest_neighbours_are_those_of_pydvl_and_of_all_subsets(k):
    found = pp.KNNShapley(k=k).fit((X, LABELS)).influence((X_TEST, LABELS_TEST))
    for x, label, row in zip(X_TEST, LABELS_TEST, found.values, strict=True):
        right = (label == LABELS).astype(float).tolist()
        game = average_game(right, by_distance(X, x), k, divide_by="k", empty=0.0)
        assert_allclose(row, semivalues(game, N, np.full(N, 1 / N)), rtol=0, atol=1e-10)
    assert_allclose(found.values.mean(axis=0), PYDVL[f"kNN {k}"], rtol=0, atol=1e-10)
