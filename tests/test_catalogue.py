"""The cards of all methods against the survey's tables, and the table of methods."""

import dataclasses
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import proponent
from proponent import registry
from proponent.card import ASSUMPTIONS, FAMILIES, MethodCard
from proponent.catalogue import PLANNED, SURVEY_ORDER, planned
from proponent.exceptions import InvalidInputError
from proponent.method import InfluenceMethod, methods

CARD = {
    "title": "Dot Product",
    "family": "static",
    "paper": "Nobody, Nowhere 2000",
    "needs": "a pair of arrays",
    "full_complexity": "O(n)",
    "incremental_complexity": "O(n)",
    "space_complexity": "O(n)",
    "storage_complexity": "0",
}


def card(name: str, **fields: Any) -> MethodCard:
    return MethodCard(name=name, **{**CARD, **fields})


def register_method(name: str, **fields: Any) -> None:
    type(name, (InfluenceMethod,), {"card": card(name, **fields)})


@pytest.fixture(autouse=True)
def own_registry() -> Iterator[None]:
    """Let every test enter fakes in a registry of its own, and keep the real methods."""
    for family in FAMILIES:  # now, so that no real method registers while a fake has its name
        registry._missing_extra(f"proponent.{family}")
    real = dict(registry._registry)
    registry._registry.clear()
    yield
    loaded = {n: m for n, m in registry._registry.items() if m.__module__.startswith("proponent.")}
    registry._registry.clear()
    registry._registry.update(real | loaded)


# The card


def test_card_is_frozen_and_orders_its_assumptions() -> None:
    made = card("Dot", assumes={"optimizer", "convex", "differentiable"})
    assert made.assumes == ("differentiable", "convex", "optimizer")
    assert made.row()["assumes"] == "differentiable, convex, optimizer"
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.name = "Other"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("title", ""),
        ("title", None),
        ("needs", "  "),
        ("full_complexity", 3),
        ("family", "gradient"),
        ("survey_name", ""),
        ("section", 5.1),
        ("section", "Section 5"),
        ("equations", "(55)"),
        ("aliases", "one"),
        ("aliases", (1,)),
        ("assumes", "convex"),
        ("assumes", ("konvex",)),
        ("group", 1),
        ("estimates_loo", "yes"),
        ("cost", 12),
    ],
)
def test_card_refuses_a_field_by_name(field: str, value: Any) -> None:
    with pytest.raises(InvalidInputError, match=field):
        card("Dot", **{field: value})


def test_card_of_a_survey_method_needs_its_section() -> None:
    with pytest.raises(InvalidInputError, match="section"):
        card("Dot", survey_name="DOT")
    assert card("Dot", survey_name="DOT", section="5.2.1", equations="27-34, 36").equations


def test_card_name_is_an_identifier() -> None:
    with pytest.raises(InvalidInputError, match="name"):
        card("G-Shapley")


# The catalogue

# Table 6 of the survey, row by row.
TABLE_6 = [
    "LOO", "kNN LOO", "LeafRefit", "Influence Sketching", "Downsampling", "C-score",
    "Generative Downsampling", "SV", "Interaction Index", "Shapley-Taylor", "TMC-Shapley",
    "G-Shapley", "kNN Shapley", "Beta Shapley", "Banzhaf Value", "AME", "SHAP", "Neuron Shapley",
    "IF", "FastIF", "Arnoldi IF", "LeafInfluence", "Group IF", "Second-Order IF", "RelatIF",
    "Renorm. IF", "RP", "High Dim. Rep.", "RPS-LJE", "TREX", "TracIn", "TracInCP", "TracInRP",
    "TracIn-Last", "VAE-TracIn", "TracInAD", "TracInWE", "BoostIn", "GAS", "HyDRA",
    "SGD-Influence",
]  # fmt: skip

PUBLIC_NAMES = {
    "LeaveOneOut", "KNNLeaveOneOut", "InfluenceSketching", "Downsampling",
    "GenerativeDownsampling", "ConsistencyScore", "Shapley", "TMCShapley", "GradientShapley",
    "KNNShapley", "BetaShapley", "Banzhaf", "AME", "Datamodels", "ShapleyInteraction",
    "ShapleyTaylor", "NeuronShapley", "SHAP", "InfluenceFunctions", "FastIF", "ArnoldiIF",
    "GroupIF", "SecondOrderGroupIF", "RelatIF", "RenormalizedIF", "RepresenterPoint", "RPSLJE",
    "HighDimensionalRepresenter", "IdealTracIn", "TracIn", "TracInCP", "TracInLast", "TracInRP",
    "TracInWE", "VAETracIn", "TracInAD", "GAS", "RenormalizedTracIn", "GradientDot",
    "GradientCosine", "HyDRA", "SGDInfluence", "GANInfluence", "LeafRefit", "LeafInfluence",
    "BoostIn", "TREX", "TreeSim",
}  # fmt: skip

# Table 1: full, incremental, space and storage complexity, what is assumed, and the ticks for
# estimating leave-one-out, groups, generative models and any model class. Where a card departs
# from the table, the catalogue says why: leave-one-out has groups and generative models
# (section 4.1.3 and Remark 2), and Shapley values are no leave-one-out differences.
TABLE_1 = {
    "LeaveOneOut": ("O(nT)", "O(n)", "O(n + p)", "O(np)", "", "LGDA"),
    "Downsampling": ("O(KT)", "O(K)", "O(n + p)", "O(Kp)", "", "LGDA"),
    "Shapley": ("O(2^n T)", "O(2^n)", "O(n + p)", "O(2^n p)", "", "GDA"),
    "InfluenceFunctions": ("O(np)", "O(np)", "O(n + p)", "0", "dcs", "LG"),
    "RepresenterPoint": ("O(n)", "O(n)", "O(n + p)", "0", "dcsl", ""),
    "HyDRA": ("O(npT)", "O(np)", "O(np)", "O(pT + np)", "do", "L"),
}


def test_survey_order_has_every_row_of_table_6_in_order() -> None:
    assert len(TABLE_6) == 41
    assert [abbreviation for abbreviation, _ in SURVEY_ORDER] == TABLE_6
    names = [name for _, names in SURVEY_ORDER for name in names]
    assert len(set(names)) == len(names)
    assert set(names) <= PUBLIC_NAMES


def test_a_planned_card_names_its_row_of_table_6() -> None:
    rows = {name: abbreviation for abbreviation, names in SURVEY_ORDER for name in names}
    for name, made in PLANNED.items():
        assert made.name == name
        assert made.survey_name == rows.get(name)


def test_planned_cards_follow_table_1() -> None:
    letters = {"d": "differentiable", "c": "convex", "s": "stationary", "l": "linear"}
    letters["o"] = "optimizer"
    assert set(letters.values()) == set(ASSUMPTIONS)
    for name in TABLE_1.keys() & PLANNED.keys():
        made, (full, incremental, space, storage, assumed, ticks) = PLANNED[name], TABLE_1[name]
        assert made.full_complexity == full
        assert made.incremental_complexity == incremental
        assert made.space_complexity == space
        assert made.storage_complexity == storage
        assert set(made.assumes) == {letters[letter] for letter in assumed}
        assert made.estimates_loo == ("L" in ticks)
        assert made.group == ("G" in ticks)
        assert made.generative == ("D" in ticks)
        assert made.any_model == ("A" in ticks)


def test_planned_answers_for_methods_to_come_only() -> None:
    assert planned("NoSuchMethod") is None
    for name, made in PLANNED.items():
        assert planned(name) is made


# The table of methods


def test_every_method_is_either_there_or_planned() -> None:
    assert not PLANNED.keys() & proponent._EXPORTS.keys()
    assert PLANNED.keys() | proponent._EXPORTS.keys() >= PUBLIC_NAMES


def test_every_method_has_a_row_without_torch() -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from proponent.method import methods\n"
        "table = methods()\n"
        "print(*table.index)\n"
        "print(*table.index[table['note'].str.startswith('needs torch')])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    listed, without = (set(line.split()) for line in run.stdout.splitlines())
    assert listed >= PUBLIC_NAMES
    assert {"TracInCP", "GAS"} <= without
    assert not without & PLANNED.keys()


TO_COME = (
    card("LeafRefit", survey_name="LeafRefit", section="4.1.3", estimates_loo=True),
    card("TREX", survey_name="TREX", section="5.1.2.3", assumes=("linear", "convex")),
    card("TreeSim", family="trees"),
)


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Stand in for the public names, so that the table depends on this test only."""
    names: dict[str, str] = {}
    monkeypatch.setattr(proponent, "_EXPORTS", names, raising=False)
    for made in TO_COME:
        monkeypatch.setitem(PLANNED, made.name, made)
    return names


def test_methods_lists_the_planned_ones_in_the_order_of_the_survey(alone: dict[str, str]) -> None:
    table = methods()
    survey = [n for _, names in SURVEY_ORDER for n in names if n in PLANNED]
    assert list(table.index[: len(survey)]) == survey
    beyond = table.iloc[len(survey) :]
    assert set(beyond.index) == PLANNED.keys() - set(survey)
    ranks = [FAMILIES.index(family) for family in beyond["family"]]
    assert ranks == sorted(ranks)
    assert table.index.name == "method"
    assert not table["available"].any()
    assert set(table["note"]) == {"planned"}
    assert table.loc["SHAP", "full_complexity"] == "O(2^d), d features"
    assert bool(table.loc["LeafRefit", "estimates_loo"]) is True
    assert table.loc["TREX", "assumes"] == "convex, linear"
    assert len(methods(available=False)) == len(table)
    assert len(methods(available=True)) == 0


def test_methods_puts_a_registered_method_in_its_place(alone: dict[str, str]) -> None:
    register_method("GAS", survey_name="GAS", section="5.3", equations="67")
    register_method("Dot")
    table = methods()
    names = list(table.index)
    assert names.index("GAS") > names.index("TREX")
    assert "SHAP" in names[: names.index("Dot")]  # beyond the survey: family, then name
    assert "TreeSim" in names[names.index("Dot") :]
    assert table.loc["GAS", "available"]
    assert table.loc["GAS", "note"] == ""
    assert list(methods(available=True).index) == ["GAS", "Dot"]
    # A card on a class wins over a planned one.
    register_method("TREX", title="Arrived")
    assert methods().loc["TREX", "title"] == "Arrived"


@pytest.fixture
def dynamic_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder whose modules can be imported as ``proponent.dynamic.*``."""
    import proponent.dynamic

    folder = tmp_path / "dynamic"
    folder.mkdir()
    monkeypatch.setattr(registry, "ROOT", tmp_path)
    monkeypatch.setattr(proponent.dynamic, "__path__", [str(folder)])
    yield folder
    for name in [name for name in sys.modules if name.startswith("proponent.dynamic.fake")]:
        monkeypatch.delitem(sys.modules, name)


def test_methods_says_what_to_install(alone: dict[str, str], dynamic_folder: Path) -> None:
    source = """
        raise ModuleNotFoundError("as if it were not installed", name="torch.nn")
        class TracInCP:
            card: "MethodCard" = MethodCard(name="TracInCP")
        class EveryKth:
            k = 3
        def helper(): ...
    """
    (dynamic_folder / "fake_needs.py").write_text(textwrap.dedent(source))
    alone |= dict.fromkeys(["TracInCP", "EveryKth", "helper"], "proponent.dynamic.fake_needs")
    table = methods()
    row = table.loc["TracInCP"]
    assert row["note"] == "needs torch: pip install 'proponent[torch]'"
    assert not row["available"]
    assert row[["title", "assumes", "group"]].isna().all()
    assert list(table.index).index("TracInCP") > list(table.index).index("TREX")
    assert not {"EveryKth", "helper"} & set(table.index)  # of the family, but no methods


def test_methods_hides_no_error_of_a_module(alone: dict[str, str], dynamic_folder: Path) -> None:
    (dynamic_folder / "fake_broken.py").write_text("import no_such_module\n")
    alone["TracInCP"] = "proponent.dynamic.fake_broken"
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        methods()
    alone["TracInCP"] = "proponent.dynamic.fake_absent"
    with pytest.raises(ModuleNotFoundError, match="fake_absent"):
        methods()


def test_the_frame_imports_nothing_heavy() -> None:
    code = (
        "import sys, proponent.method, proponent.catalogue;"
        "print([name for name in ('torch', 'pandas', 'sklearn') if name in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
