"""Which training data made this model do that.

Public names are imported when they are first used, so that ``import proponent`` is quick and
works without torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0.dev0"

# Public name -> module. Grouped as the survey groups the methods.
_EXPORTS: dict[str, str] = {
    # the answer, the methods, the data
    "Influence": "proponent.influence",
    "TopInfluence": "proponent.top",
    "CheckpointInfluence": "proponent.checkpoint_influence",
    "CheckpointSummary": "proponent.checkpoint_influence",
    "InfluenceMethod": "proponent.method",
    "MethodCard": "proponent.card",
    "methods": "proponent.method",
    "Instances": "proponent.data",
    # what is studied
    "TorchModel": "proponent.models.torch",
    "SampledRisk": "proponent.models.sampled_risk",
    "BetaVAERisk": "proponent.models.beta_vae",
    "Recorder": "proponent.models.recorder",
    "TrainingRun": "proponent.models.run",
    "indexed": "proponent.models.recorder",
    "LightningRecorder": "proponent.models.callbacks",
    "TransformersRecorder": "proponent.models.callbacks",
    # what is trained on subsets
    "TorchLearner": "proponent.models.torch_learner",
    "UserLearner": "proponent.models.user_learner",
    "SklearnLearner": "proponent.models.sklearn_learner",
    "LinearLearner": "proponent.models.linear_learner",
    "LogisticLearner": "proponent.models.logistic_learner",
    "NearestNeighboursLearner": "proponent.models.nearest_learner",
    "GaussianNaiveBayesLearner": "proponent.models.bayes_learner",
    "Submodels": "proponent.retraining.submodels",
    "Game": "proponent.retraining.game",
    # section 4: retraining-based
    "LeaveOneOut": "proponent.retraining.leave_one_out",
    "InfluenceSketching": "proponent.retraining.influence_sketching",
    "Downsampling": "proponent.retraining.downsampling",
    "GenerativeDownsampling": "proponent.retraining.generative_downsampling",
    "ConsistencyScore": "proponent.retraining.consistency_score",
    "Shapley": "proponent.retraining.shapley",
    "TMCShapley": "proponent.retraining.tmc_shapley",
    "GradientShapley": "proponent.retraining.gradient_shapley",
    "BetaShapley": "proponent.retraining.beta_shapley",
    "Banzhaf": "proponent.retraining.banzhaf",
    "NeuronShapley": "proponent.retraining.neuron_shapley",
    "DataOOB": "proponent.retraining.data_oob",
    "ClassWiseShapley": "proponent.retraining.class_wise_shapley",
    "KNNLeaveOneOut": "proponent.retraining.neighbours.leave_one_out",
    "KNNShapley": "proponent.retraining.neighbours.shapley",
    "ThresholdKNNShapley": "proponent.retraining.neighbours.threshold_shapley",
    "WeightedKNNShapley": "proponent.retraining.neighbours.weighted_shapley",
    "AME": "proponent.retraining.ame",
    "Datamodels": "proponent.retraining.datamodels",
    "ShapleyInteraction": "proponent.retraining.shapley_interaction",
    "ShapleyTaylor": "proponent.retraining.shapley_taylor",
    "BanzhafInteraction": "proponent.retraining.banzhaf_interaction",
    "LeastCore": "proponent.retraining.least_core",
    "GroupTesting": "proponent.retraining.group_testing",
    "OwenShapley": "proponent.retraining.owen_shapley",
    "DeltaShapley": "proponent.retraining.delta_shapley",
    "TargetStdError": "proponent.retraining.stopping",
    "RankStability": "proponent.retraining.stopping",
    "MaxModels": "proponent.retraining.stopping",
    "MaxSeconds": "proponent.retraining.stopping",
    "Margin": "proponent.retraining.utility",
    # section 5.1: static
    "InfluenceFunctions": "proponent.static.influence_functions",
    "FastIF": "proponent.static.fastif",
    "ArnoldiIF": "proponent.static.arnoldi_if",
    "GroupIF": "proponent.static.group_influence",
    "SecondOrderGroupIF": "proponent.static.group_influence",
    "RelatIF": "proponent.static.relatif",
    "RenormalizedIF": "proponent.static.renormalized_if",
    "RescaledIF": "proponent.static.rescaled_if",
    "RepresenterPoint": "proponent.static.representer_point",
    "RPSLJE": "proponent.static.rps_lje",
    "HighDimensionalRepresenter": "proponent.static.high_dimensional_representer",
    "SparseLastLayer": "proponent.static.high_dimensional.models",
    "MatrixFactorisation": "proponent.static.high_dimensional.models",
    "LowRankModel": "proponent.static.high_dimensional.models",
    # beyond the survey
    "TRAK": "proponent.static.trak",
    "LoGra": "proponent.static.logra",
    "DataInf": "proponent.static.datainf",
    # section 5.2: dynamic
    "IdealTracIn": "proponent.dynamic.ideal_tracin",
    "TracIn": "proponent.dynamic.tracin",
    "TracInCP": "proponent.dynamic.tracincp",
    "TracInLast": "proponent.dynamic.tracincp",
    "TracInRP": "proponent.dynamic.tracinrp",
    "GAS": "proponent.dynamic.gas",
    "RenormalizedTracIn": "proponent.dynamic.tracin",
    "GradientDot": "proponent.dynamic.gradient_similarity",
    "GradientCosine": "proponent.dynamic.gradient_similarity",
    "EveryKth": "proponent.dynamic.checkpoints",
    "LargestRiskChange": "proponent.dynamic.checkpoints",
    "TracInWE": "proponent.dynamic.tracin_we",
    "VAETracIn": "proponent.dynamic.vae_tracin",
    "TracInAD": "proponent.dynamic.tracin_ad",
    "AnomalyScores": "proponent.dynamic.anomaly_scores",
    "HyDRA": "proponent.dynamic.hydra",
    "SGDInfluence": "proponent.dynamic.sgd_influence",
    "SOURCE": "proponent.dynamic.source",
    "AdversarialTraining": "proponent.dynamic.gan.training",
    "AdversarialRun": "proponent.dynamic.gan.run",
    "AdversarialLoss": "proponent.dynamic.gan.losses",
    "GANInfluence": "proponent.dynamic.gan_influence",
    "KernelDistance": "proponent.dynamic.gan.metrics",
    "FrechetDistance": "proponent.dynamic.gan.metrics",
    "InceptionScore": "proponent.dynamic.gan.metrics",
    "ParzenLogLikelihood": "proponent.dynamic.gan.metrics",
    # trees
    "LeafView": "proponent.trees.view",
    "BoostIn": "proponent.trees.boost_in",
    "LeafInfluence": "proponent.trees.leaf_influence",
    "LeafRefit": "proponent.trees.leaf_refit",
    "TREX": "proponent.trees.trex",
    "TreeSim": "proponent.trees.tree_sim",
    # how far an estimate can be trusted
    "diagnose": "proponent.evaluation.diagnose",
}

if TYPE_CHECKING:
    from proponent.card import MethodCard
    from proponent.checkpoint_influence import CheckpointInfluence, CheckpointSummary
    from proponent.data import Instances
    from proponent.dynamic.anomaly_scores import AnomalyScores
    from proponent.dynamic.checkpoints import EveryKth, LargestRiskChange
    from proponent.dynamic.gan.losses import AdversarialLoss
    from proponent.dynamic.gan.metrics import (
        FrechetDistance,
        InceptionScore,
        KernelDistance,
        ParzenLogLikelihood,
    )
    from proponent.dynamic.gan.run import AdversarialRun
    from proponent.dynamic.gan.training import AdversarialTraining
    from proponent.dynamic.gan_influence import GANInfluence
    from proponent.dynamic.gas import GAS
    from proponent.dynamic.gradient_similarity import GradientCosine, GradientDot
    from proponent.dynamic.hydra import HyDRA
    from proponent.dynamic.ideal_tracin import IdealTracIn
    from proponent.dynamic.sgd_influence import SGDInfluence
    from proponent.dynamic.source import SOURCE
    from proponent.dynamic.tracin import RenormalizedTracIn, TracIn
    from proponent.dynamic.tracin_ad import TracInAD
    from proponent.dynamic.tracin_we import TracInWE
    from proponent.dynamic.tracincp import TracInCP, TracInLast
    from proponent.dynamic.tracinrp import TracInRP
    from proponent.dynamic.vae_tracin import VAETracIn
    from proponent.evaluation.diagnose import diagnose
    from proponent.influence import Influence
    from proponent.method import InfluenceMethod, methods
    from proponent.models.bayes_learner import GaussianNaiveBayesLearner
    from proponent.models.beta_vae import BetaVAERisk
    from proponent.models.callbacks import LightningRecorder, TransformersRecorder
    from proponent.models.linear_learner import LinearLearner
    from proponent.models.logistic_learner import LogisticLearner
    from proponent.models.nearest_learner import NearestNeighboursLearner
    from proponent.models.recorder import Recorder, indexed
    from proponent.models.run import TrainingRun
    from proponent.models.sampled_risk import SampledRisk
    from proponent.models.sklearn_learner import SklearnLearner
    from proponent.models.torch import TorchModel
    from proponent.models.torch_learner import TorchLearner
    from proponent.models.user_learner import UserLearner
    from proponent.retraining.ame import AME
    from proponent.retraining.banzhaf import Banzhaf
    from proponent.retraining.banzhaf_interaction import BanzhafInteraction
    from proponent.retraining.beta_shapley import BetaShapley
    from proponent.retraining.class_wise_shapley import ClassWiseShapley
    from proponent.retraining.consistency_score import ConsistencyScore
    from proponent.retraining.data_oob import DataOOB
    from proponent.retraining.datamodels import Datamodels
    from proponent.retraining.delta_shapley import DeltaShapley
    from proponent.retraining.downsampling import Downsampling
    from proponent.retraining.game import Game
    from proponent.retraining.generative_downsampling import GenerativeDownsampling
    from proponent.retraining.gradient_shapley import GradientShapley
    from proponent.retraining.group_testing import GroupTesting
    from proponent.retraining.influence_sketching import InfluenceSketching
    from proponent.retraining.least_core import LeastCore
    from proponent.retraining.leave_one_out import LeaveOneOut
    from proponent.retraining.neighbours.leave_one_out import KNNLeaveOneOut
    from proponent.retraining.neighbours.shapley import KNNShapley
    from proponent.retraining.neighbours.threshold_shapley import ThresholdKNNShapley
    from proponent.retraining.neighbours.weighted_shapley import WeightedKNNShapley
    from proponent.retraining.neuron_shapley import NeuronShapley
    from proponent.retraining.owen_shapley import OwenShapley
    from proponent.retraining.shapley import Shapley
    from proponent.retraining.shapley_interaction import ShapleyInteraction
    from proponent.retraining.shapley_taylor import ShapleyTaylor
    from proponent.retraining.stopping import MaxModels, MaxSeconds, RankStability, TargetStdError
    from proponent.retraining.submodels import Submodels
    from proponent.retraining.tmc_shapley import TMCShapley
    from proponent.retraining.utility import Margin
    from proponent.static.arnoldi_if import ArnoldiIF
    from proponent.static.datainf import DataInf
    from proponent.static.fastif import FastIF
    from proponent.static.group_influence import GroupIF, SecondOrderGroupIF
    from proponent.static.high_dimensional.models import (
        LowRankModel,
        MatrixFactorisation,
        SparseLastLayer,
    )
    from proponent.static.high_dimensional_representer import HighDimensionalRepresenter
    from proponent.static.influence_functions import InfluenceFunctions
    from proponent.static.logra import LoGra
    from proponent.static.relatif import RelatIF
    from proponent.static.renormalized_if import RenormalizedIF
    from proponent.static.representer_point import RepresenterPoint
    from proponent.static.rescaled_if import RescaledIF
    from proponent.static.rps_lje import RPSLJE
    from proponent.static.trak import TRAK
    from proponent.top import TopInfluence
    from proponent.trees.boost_in import BoostIn
    from proponent.trees.leaf_influence import LeafInfluence
    from proponent.trees.leaf_refit import LeafRefit
    from proponent.trees.tree_sim import TreeSim
    from proponent.trees.trex import TREX
    from proponent.trees.view import LeafView

__all__ = [
    "AME",
    "GAS",
    "RPSLJE",
    "SOURCE",
    "TRAK",
    "TREX",
    "AdversarialLoss",
    "AdversarialRun",
    "AdversarialTraining",
    "AnomalyScores",
    "ArnoldiIF",
    "Banzhaf",
    "BanzhafInteraction",
    "BetaShapley",
    "BetaVAERisk",
    "BoostIn",
    "CheckpointInfluence",
    "CheckpointSummary",
    "ClassWiseShapley",
    "ConsistencyScore",
    "DataInf",
    "DataOOB",
    "Datamodels",
    "DeltaShapley",
    "Downsampling",
    "EveryKth",
    "FastIF",
    "FrechetDistance",
    "GANInfluence",
    "Game",
    "GaussianNaiveBayesLearner",
    "GenerativeDownsampling",
    "GradientCosine",
    "GradientDot",
    "GradientShapley",
    "GroupIF",
    "GroupTesting",
    "HighDimensionalRepresenter",
    "HyDRA",
    "IdealTracIn",
    "InceptionScore",
    "Influence",
    "InfluenceFunctions",
    "InfluenceMethod",
    "InfluenceSketching",
    "Instances",
    "KNNLeaveOneOut",
    "KNNShapley",
    "KernelDistance",
    "LargestRiskChange",
    "LeafInfluence",
    "LeafRefit",
    "LeafView",
    "LeastCore",
    "LeaveOneOut",
    "LightningRecorder",
    "LinearLearner",
    "LoGra",
    "LogisticLearner",
    "LowRankModel",
    "Margin",
    "MatrixFactorisation",
    "MaxModels",
    "MaxSeconds",
    "MethodCard",
    "NearestNeighboursLearner",
    "NeuronShapley",
    "OwenShapley",
    "ParzenLogLikelihood",
    "RankStability",
    "Recorder",
    "RelatIF",
    "RenormalizedIF",
    "RenormalizedTracIn",
    "RepresenterPoint",
    "RescaledIF",
    "SGDInfluence",
    "SampledRisk",
    "SecondOrderGroupIF",
    "Shapley",
    "ShapleyInteraction",
    "ShapleyTaylor",
    "SklearnLearner",
    "SparseLastLayer",
    "Submodels",
    "TMCShapley",
    "TargetStdError",
    "ThresholdKNNShapley",
    "TopInfluence",
    "TorchLearner",
    "TorchModel",
    "TracIn",
    "TracInAD",
    "TracInCP",
    "TracInLast",
    "TracInRP",
    "TracInWE",
    "TrainingRun",
    "TransformersRecorder",
    "TreeSim",
    "UserLearner",
    "VAETracIn",
    "WeightedKNNShapley",
    "diagnose",
    "indexed",
    "methods",
]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        from proponent.catalogue import planned

        card = planned(name)
        hint = f"; {card.title} is planned (see pp.methods())" if card is not None else ""
        raise AttributeError(f"proponent has no {name!r}{hint}.")
    try:
        module = import_module(_EXPORTS[name])
    except ModuleNotFoundError as error:
        if error.name in ("torch", "safetensors"):
            raise ModuleNotFoundError(
                f"proponent.{name} needs torch: pip install 'proponent[torch]'", name=error.name
            ) from error
        raise
    value = getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_EXPORTS])
