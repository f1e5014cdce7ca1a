"""What installing and importing the library brings, and what it does without."""

import importlib.metadata
import importlib.resources
import json
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import proponent

OPTIONAL = ("torch", "safetensors", "xgboost", "lightgbm", "catboost", "dask", "jinja2")
SLOW_TO_LOAD = (*OPTIONAL, "pandas", "scipy", "sklearn", "joblib", "xarray", "matplotlib")

# Modules whose work is on torch modules; everything else at the top has to do without.
NEED_TORCH = {"models", "gradients", "retraining", "static", "dynamic", "trees"}
ABOVE_THEM = {"applications", "cli"}
# pp.diagnose trains torch models; the rest of its package does without.
DIAGNOSING = {
    f"proponent.evaluation.{name}"
    for name in (
        "diagnose", "linear_response", "minimise", "proximal_bregman", "remedies", "removal_study"
    )
}  # fmt: skip

BLOCK = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Missing())
"""


def in_fresh_interpreter(code: str, tmp_path: Path, blocked: tuple[str, ...] = ()) -> Any:
    """Run ``code`` where ``blocked`` packages cannot be imported; return what it puts in answer."""
    script = (
        BLOCK.format(blocked=blocked)
        + textwrap.dedent(code)
        + "\nimport json\nprint(json.dumps(answer))\n"
    )
    finished = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert finished.returncode == 0, finished.stderr
    return json.loads(finished.stdout.splitlines()[-1])


LIST_METHODS = """
import proponent as pp
table = pp.methods()
answer = {name: [bool(row.available), row.note] for name, row in table.iterrows()}
"""


def test_the_version_is_the_installed_one() -> None:
    installed = importlib.metadata.version("proponent")
    assert proponent.__version__ == installed, "the version has changed: run `make clean setup`"


def test_the_type_marker_is_shipped() -> None:
    assert importlib.resources.files("proponent").joinpath("py.typed").is_file()


def test_import_loads_nothing_slow(tmp_path: Path) -> None:
    code = """
    import sys
    import proponent
    answer = sorted({name.partition(".")[0] for name in sys.modules})
    """
    loaded = in_fresh_interpreter(code, tmp_path)
    assert "proponent" in loaded
    assert not set(loaded) & set(SLOW_TO_LOAD)


def test_every_public_name_is_there() -> None:
    assert [name for name in proponent.__all__ if getattr(proponent, name, None) is None] == []
    assert set(proponent.__all__) <= set(dir(proponent))


def test_what_needs_no_torch_imports_without_any_extra(tmp_path: Path) -> None:
    code = f"""
    import importlib, pkgutil
    import proponent
    answer = []
    for module in pkgutil.walk_packages(proponent.__path__, "proponent."):
        above = module.name.split(".")[1] in {NEED_TORCH | ABOVE_THEM!r}
        if not above and module.name not in {DIAGNOSING!r}:
            importlib.import_module(module.name)
            answer.append(module.name)
    """
    imported = in_fresh_interpreter(code, tmp_path, blocked=OPTIONAL)
    assert {"proponent.influence", "proponent.method", "proponent.evaluation"} <= set(imported)


def test_methods_lists_everything_without_torch(tmp_path: Path) -> None:
    everything = in_fresh_interpreter(LIST_METHODS, tmp_path)
    without = in_fresh_interpreter(LIST_METHODS, tmp_path, blocked=("torch",))
    assert set(without) == set(everything)
    assert everything["TracInCP"] == [True, ""]
    lost = {name for name in everything if everything[name][0] and not without[name][0]}
    assert "TracInCP" in lost
    for name in lost:
        assert "pip install 'proponent[torch]'" in without[name][1]
    for name in set(everything) - lost:
        assert without[name] == everything[name]


def test_a_method_that_needs_torch_says_how_to_get_it(tmp_path: Path) -> None:
    code = """
    import proponent as pp
    try:
        pp.TracInCP
    except ImportError as error:
        answer = str(error)
    else:
        answer = "no error"
    """
    message = in_fresh_interpreter(code, tmp_path, blocked=("torch",))
    assert "torch" in message
    assert "pip install 'proponent[torch]'" in message


def test_all_is_every_extra_but_the_tools() -> None:
    by_extra: dict[str, set[str]] = {}
    for line in importlib.metadata.requires("proponent") or []:
        requirement, _, marker = line.partition(";")
        if "extra ==" in marker:
            by_extra.setdefault(marker.split("extra ==")[1].strip(" '\""), set()).add(requirement)
    everything, tools = by_extra.pop("all"), (by_extra.pop("dev"), by_extra.pop("bench"))
    assert set(by_extra) == {"torch", "trees", "scale", "report"}
    assert everything == set().union(*by_extra.values())
    assert all(tools)


def test_the_lock_pins_torch_and_nothing_that_a_cuda_build_brings() -> None:
    lock = Path(__file__).resolve().parent.parent / "constraints.txt"
    pinned = [line for line in lock.read_text().splitlines() if line and not line.startswith("#")]
    assert "torch==2.13.0" in pinned
    unwanted = ("cuda-", "nvidia-c", "torchaudio", "torchvision", "triton")
    assert [line for line in pinned if line.startswith(unwanted)] == []
