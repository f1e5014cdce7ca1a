"""The recursion that a view is made for: derivatives of all scores by one instance's weight.

Every field that the methods use enters: steps and their scales, inverses, matrices of coupled
classes, slopes and off-diagonal second derivatives. The truth is a refit with another weight.
"""

from dataclasses import replace

import numpy as np
import pytest
from trees.ensembles import estimator, table

from proponent.trees.read import read
from proponent.trees.steps import leaf_step

CASES = [
    ("lightgbm", "squared", {}),
    ("lightgbm", "logistic", {}),
    ("lightgbm", "softmax", {}),
    ("xgboost", "softmax", {}),
    ("catboost", "softmax", {}),
    ("catboost", "softmax", {"leaf_estimation_iterations": 2}),
    ("catboost", "logistic", {"leaf_estimation_iterations": 3}),
    ("catboost", "logistic", {"leaf_estimation_iterations": 7, "depth": 2}),
    (
        "catboost",
        "softmax",
        {"leaf_estimation_method": "Gradient", "leaf_estimation_iterations": 2},
    ),
]


def spread(view, tree, leaves):
    """What the leaves of one tree give to each training instance."""
    flat = np.zeros(view.n_leaves)
    flat[view.tree_span(tree)] = leaves
    return view.tree_values(view.train, tree, flat)


def refitted(view, weights):
    """Scores after all leaves were estimated again with other weights, structure as it is."""
    weighted, rows = replace(view, weights=weights), view.train
    scores = rows.start.copy()
    for tree in range(view.n_trees):
        moved = np.zeros_like(scores)
        for step in range(view.steps):
            if view.shared:
                theta = leaf_step(weighted, tree, scores + moved).theta
            else:
                found = view.derivatives(rows, scores + moved)
                gradient, hessian = view.leaf_sums(
                    rows, tree, weights * found.gradient, weights * found.hessian
                )
                theta = -gradient / (hessian + view.l2[view.tree_span(tree)])
            moved += view.step_scales[step, tree] * spread(view, tree, theta)
        scores = scores + view.learning_rates[tree] * moved
    return scores


def derivative(view, instance):
    """``dF_T / dw`` of the whole training set, by the recursion."""
    rows = view.train
    moves = np.zeros_like(rows.start)
    for stage in view.path(rows):
        (tree,) = stage.trees
        span, within = view.tree_span(tree), np.zeros_like(moves)
        for step in range(view.steps):
            found = view.derivatives(rows, view.step_scores(rows, tree, step, stage.scores))
            theta = view.tree_values(rows, tree, view.theta[step])
            changes = found.curve(moves + within)
            if view.coupled_inverse is None:
                summed = (1 + theta * found.slope) * changes
                own = found.gradient + theta * found.hessian
            else:
                summed = changes + found.bend(theta, moves + within)
                own = found.gradient + found.curve(theta)
            summed[:, instance] += own[:, instance]
            (sums,) = view.leaf_sums(rows, tree, summed)
            if view.coupled_inverse is None:
                change = -view.inverse[step, span] * sums
            else:
                cut = slice(span.start // view.outputs, span.stop // view.outputs)
                matrices = view.coupled_inverse[step, cut]
                change = -np.einsum("lcd,dl->cl", matrices, sums.reshape(view.outputs, -1)).ravel()
            within = within + view.step_scales[step, tree] * spread(view, tree, change)
        moves = moves + view.learning_rates[tree] * within
    return moves


@pytest.mark.parametrize(("library", "loss", "settings"), CASES)
def test_the_recursion_equals_differences_of_the_weighted_refit(library, loss, settings):
    features, targets = table()
    model = estimator(library, loss, **settings).fit(features, targets[loss])
    view = read(model, (features, targets[loss]))
    up, down = np.ones((2, len(features)))
    up[5] += 1e-5
    down[5] -= 1e-5
    expected = (refitted(view, up) - refitted(view, down)) / 2e-5
    scale = np.abs(expected).max()
    np.testing.assert_allclose(derivative(view, 5), expected, rtol=0, atol=1e-6 * scale)
