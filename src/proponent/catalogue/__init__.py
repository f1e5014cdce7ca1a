"""The survey's Table 6, and the cards of the methods that are still to come.

A method that is there carries its own card: when one arrives, its card moves from here to its
class.
"""

from __future__ import annotations

from proponent.card import MethodCard
from proponent.catalogue.retraining import RETRAINING

# Every abbreviation of Table 6, in its order, and the public names that stand for it.
SURVEY_ORDER: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("LOO", ("LeaveOneOut",)),
    ("kNN LOO", ("KNNLeaveOneOut",)),
    ("LeafRefit", ("LeafRefit",)),
    ("Influence Sketching", ("InfluenceSketching",)),
    ("Downsampling", ("Downsampling",)),
    ("C-score", ("ConsistencyScore",)),
    ("Generative Downsampling", ("GenerativeDownsampling",)),
    ("SV", ("Shapley",)),
    ("Interaction Index", ("ShapleyInteraction",)),
    ("Shapley-Taylor", ("ShapleyTaylor",)),
    ("TMC-Shapley", ("TMCShapley",)),
    ("G-Shapley", ("GradientShapley",)),
    ("kNN Shapley", ("KNNShapley",)),
    ("Beta Shapley", ("BetaShapley",)),
    ("Banzhaf Value", ("Banzhaf",)),
    ("AME", ("AME",)),
    ("SHAP", ("SHAP",)),
    ("Neuron Shapley", ("NeuronShapley",)),
    ("IF", ("InfluenceFunctions",)),
    ("FastIF", ("FastIF",)),
    ("Arnoldi IF", ("ArnoldiIF",)),
    ("LeafInfluence", ("LeafInfluence",)),
    ("Group IF", ("GroupIF",)),
    ("Second-Order IF", ("SecondOrderGroupIF",)),
    ("RelatIF", ("RelatIF",)),
    ("Renorm. IF", ("RenormalizedIF",)),
    ("RP", ("RepresenterPoint",)),
    ("High Dim. Rep.", ("HighDimensionalRepresenter",)),
    ("RPS-LJE", ("RPSLJE",)),
    ("TREX", ("TREX",)),
    ("TracIn", ("IdealTracIn", "TracIn")),
    ("TracInCP", ("TracInCP",)),
    ("TracInRP", ("TracInRP",)),
    ("TracIn-Last", ("TracInLast",)),
    ("VAE-TracIn", ("VAETracIn",)),
    ("TracInAD", ("TracInAD",)),
    ("TracInWE", ("TracInWE",)),
    ("BoostIn", ("BoostIn",)),
    ("GAS", ("GAS",)),
    ("HyDRA", ("HyDRA",)),
    ("SGD-Influence", ("SGDInfluence",)),
)

PLANNED: dict[str, MethodCard] = {card.name: card for card in RETRAINING}


def planned(name: str) -> MethodCard | None:
    """Return the card of a method that is still to come, or None."""
    return PLANNED.get(name)
