"""How good an influence estimate is: detection of wrong labels, and agreement with retraining."""

from proponent.evaluation.datamodeling import LinearDatamodelingScore, linear_datamodeling_score
from proponent.evaluation.detection import by_memorization, by_opponents, mislabel_detection
from proponent.evaluation.detection_result import MislabelDetection, MislabelDetectionRow
from proponent.evaluation.estimates import Estimate
from proponent.evaluation.leave_one_out import LooCorrelation, loo_correlation
from proponent.evaluation.noise import flip_labels
from proponent.evaluation.retrain import random_subsets, retrain_on_subsets

__all__ = [
    "Estimate",
    "LinearDatamodelingScore",
    "LooCorrelation",
    "MislabelDetection",
    "MislabelDetectionRow",
    "by_memorization",
    "by_opponents",
    "flip_labels",
    "linear_datamodeling_score",
    "loo_correlation",
    "mislabel_detection",
    "random_subsets",
    "retrain_on_subsets",
]
