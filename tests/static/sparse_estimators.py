"""Logistic regressions with an L1 part, whichever way this version of scikit-learn is told so."""

from typing import Any

from sklearn.linear_model import LogisticRegression, LogisticRegressionCV

BY_RATIO = LogisticRegression().penalty == "deprecated"  # since scikit-learn 1.8


def sparse_logistic(l1_ratio: float = 1.0, **settings: Any) -> LogisticRegression:
    """Return a logistic regression; saga solves it unless another solver is named."""
    settings = {"solver": "saga", "random_state": 0, **settings}
    if BY_RATIO:
        return LogisticRegression(l1_ratio=l1_ratio, **settings)
    if l1_ratio == 1:
        return LogisticRegression(penalty="l1", **settings)
    return LogisticRegression(penalty="elasticnet", l1_ratio=l1_ratio, **settings)


def sparse_logistic_cv(l1_ratio: float, **settings: Any) -> LogisticRegressionCV:
    """Return a cross-validated logistic regression by saga."""
    settings = {"solver": "saga", "random_state": 0, "l1_ratios": [l1_ratio], **settings}
    if BY_RATIO:
        return LogisticRegressionCV(use_legacy_attributes=False, **settings)
    return LogisticRegressionCV(penalty="elasticnet", **settings)
