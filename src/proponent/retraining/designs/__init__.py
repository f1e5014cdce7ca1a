"""Which coalitions are evaluated, and by what law."""

from proponent.retraining.designs.deletions import LeaveOneOutDesign
from proponent.retraining.designs.exhaustive import Exhaustive
from proponent.retraining.designs.folds import Bootstrap, KFold
from proponent.retraining.designs.paired import PairedComplements
from proponent.retraining.designs.permutations import Permutations
from proponent.retraining.designs.probabilities import AMEGrid, Bernoulli
from proponent.retraining.designs.sizes import (
    Balanced,
    GroupTesting,
    Ratios,
    SizeStratified,
    TwoSizes,
    UniformSize,
)
from proponent.retraining.designs.weighed_sizes import WeighedSizes

__all__ = [
    "AMEGrid",
    "Balanced",
    "Bernoulli",
    "Bootstrap",
    "Exhaustive",
    "GroupTesting",
    "KFold",
    "LeaveOneOutDesign",
    "PairedComplements",
    "Permutations",
    "Ratios",
    "SizeStratified",
    "TwoSizes",
    "UniformSize",
    "WeighedSizes",
]
