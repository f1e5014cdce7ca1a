"""Real data that needs no download."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def digits() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return scikit-learn's handwritten digits.

    **Source** Alpaydin and Kaynak, UCI Machine Learning Repository 1998 (the test set of
    "Optical Recognition of Handwritten Digits"), as scikit-learn ships it.

    Returns
    -------
    images : float32 array of shape (1797, 1, 8, 8)
        Ink from 0 to 1, with one channel, as convolutional networks take it.
    labels : int64 array of shape (1797,)
        0 to 9.

    Examples
    --------
    >>> images, labels = digits()
    >>> images.shape, labels[:5].tolist()
    ((1797, 1, 8, 8), [0, 1, 2, 3, 4])
    """
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = (bunch.images / 16).astype(np.float32)[:, None]
    return images, bunch.target.astype(np.int64)
