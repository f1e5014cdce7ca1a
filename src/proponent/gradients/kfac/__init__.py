"""Kronecker-factored curvature: K-FAC and EK-FAC of the true Fisher, layer by layer."""

from proponent.gradients.kfac.covariances import Covariances
from proponent.gradients.kfac.factors import KroneckerFactors
from proponent.gradients.kfac.fit import FactorError, covariances, eigenvalue_sums
from proponent.gradients.kfac.passes import (
    EigenvalueSums,
    FisherGradients,
    covariance_pass,
    eigenvalue_pass,
)
from proponent.gradients.kfac.precondition import Preconditioner
from proponent.gradients.kfac.query import KroneckerQuery

__all__ = [
    "Covariances",
    "EigenvalueSums",
    "FactorError",
    "FisherGradients",
    "KroneckerFactors",
    "KroneckerQuery",
    "Preconditioner",
    "covariance_pass",
    "covariances",
    "eigenvalue_pass",
    "eigenvalue_sums",
]
