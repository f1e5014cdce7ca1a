r"""Cook's distance: how far the fit to the training set moves without an instance.

.. math::
    D_i = \frac{(\theta - \theta_{-i})^\top X^\top W X (\theta - \theta_{-i})}{p\, s^2}

with the weights W of the instances (for a generalised linear model also those of its variance and
link), the number of parameters that the fit takes p (with a penalty the effective number, the
trace of the hat matrix) and the dispersion :math:`s^2`. Without a penalty the numerator is
:math:`e_i^2 h_i / (1 - h_i)^2`, for residuals e and leverages h. The survey's eq. (5) calls the
vector :math:`\theta - \theta_{-i}` Cook's distance, which is known as DFBETA.

**Source** Cook, "Detection of influential observation in linear regression", Technometrics 1977;
Pregibon, "Logistic regression diagnostics", Annals of Statistics 1981.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from proponent.exceptions import InvalidInputError

Values = NDArray[np.float64]

PERFECT = 1e-24  # a sum of squared residuals that is rounding, relative to that of the targets


def cooks_distances(squares: Values, parameters: Values, dispersion: Values) -> Values:
    """Return Cook's distances, summed over the outputs, ``(R,)``.

    Parameters
    ----------
    squares : ndarray of shape (R, m)
        The numerators: of R removals and m outputs.
    parameters, dispersion : ndarray of shape (m,)
        The parameters that the fit takes, and its dispersion.
    """
    return np.asarray((squares / (parameters * dispersion)).sum(axis=1))


def residual_variance(
    residuals: Values, targets: Values, weights: Values, parameters: Values
) -> Values:
    """Return the variance of the residuals ``e^T W e / (n - p)``, by output, ``(m,)``.

    Parameters
    ----------
    residuals, targets : ndarray of shape (n, m)
    weights : ndarray of shape (n,)
        Instances with weight 0 are not counted.
    parameters : ndarray of shape (m,)
        The parameters that the fit takes, p.

    Raises
    ------
    InvalidInputError
        If the fit is perfect, or there are as many parameters as instances.
    """
    squares = weights @ np.square(residuals)
    free = np.count_nonzero(weights) - parameters
    centred = targets - np.average(targets, axis=0, weights=weights)
    perfect = squares <= PERFECT * (weights @ np.square(centred))
    if perfect.any() or (free <= 1e-9).any():
        raise InvalidInputError(
            "train: the model fits its training set perfectly, so that there are no residuals "
            "for Cook's distance to compare with; use a penalty or more instances, or look at "
            "dfbeta."
        )
    return np.asarray(squares / free)
