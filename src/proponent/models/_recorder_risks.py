"""The risks of a test set, measured while a module is trained."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from proponent._randomness import fixed_randomness
from proponent.data import Instances
from proponent.models.torch import TorchModel

TEST_BATCH_SIZE = 256


def measured_risks(model: TorchModel, test: Instances) -> NDArray[np.float64]:
    """Return the risk of every test instance at the present parameters, ``(n_test,)``.

    In evaluation mode and without a trace in the training; risks need not be finite.
    """
    risks = []
    with fixed_randomness(), model.evaluating(), torch.no_grad():
        for start in range(0, len(test), TEST_BATCH_SIZE):
            rows = range(len(test))[start : start + TEST_BATCH_SIZE]
            batch = model.prepare(test.batch(slice(rows.start, rows.stop)))
            risk = model.batch_risk(batch, len(rows))
            risks.append(risk.to(device="cpu", dtype=torch.float64).numpy())
    return np.concatenate(risks)
