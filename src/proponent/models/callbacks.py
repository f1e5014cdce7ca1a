"""Recording inside the training loops of Lightning and of Hugging Face transformers.

Neither package is needed to import this module: a callback takes on its framework's base class
when it is made.
"""

from proponent.models.lightning_recorder import LightningRecorder
from proponent.models.transformers_recorder import TransformersRecorder

__all__ = ["LightningRecorder", "TransformersRecorder"]
