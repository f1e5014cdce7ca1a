"""When influence happened: its parts by checkpoint, step or phase of training."""

from proponent._results.checkpoints import CheckpointInfluence
from proponent._results.step_columns import StepColumns
from proponent._results.step_sums import StepSums, SummedSums
from proponent._results.summary import CheckpointSummary

__all__ = ["CheckpointInfluence", "CheckpointSummary", "StepColumns", "StepSums", "SummedSums"]
