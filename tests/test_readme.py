"""The examples of the documents run, as a reader would run them: in order, one after the other."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = ["README.md", "CONTRIBUTING.md"]
FENCED = re.compile(r"^```python\n(.*?)^```\s*$", re.MULTILINE | re.DOTALL)

# Blocks share one scope. Blank lines before a block give tracebacks the document's line numbers.
RUNNER = """
import json, sys

path, blocks = sys.argv[1], json.load(sys.stdin)
scope = {"__name__": "__main__"}
for line, source in blocks:
    try:
        exec(compile("\\n" * (line - 1) + source, path, "exec"), scope)
    except BaseException:
        print(f"{path}:{line}: the block that starts here failed", file=sys.stderr)
        raise
"""


def python_blocks(text: str) -> list[tuple[int, str]]:
    """Return the Python blocks of a document, each with the number of its first line."""
    return [
        (text.count("\n", 0, found.start(1)) + 1, found.group(1)) for found in FENCED.finditer(text)
    ]


def run_blocks(document: Path, directory: Path) -> subprocess.CompletedProcess[str]:
    """Run the blocks of a document in a fresh interpreter, in ``directory``."""
    return subprocess.run(
        [sys.executable, "-c", RUNNER, str(document)],
        input=json.dumps(python_blocks(document.read_text(encoding="utf-8"))),
        cwd=directory,
        env={**os.environ, "MPLBACKEND": "Agg"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("name", DOCUMENTS)
def test_the_examples_run(name: str, tmp_path: Path) -> None:
    document = ROOT / name
    assert python_blocks(document.read_text(encoding="utf-8")), f"{name} has no Python example"
    finished = run_blocks(document, tmp_path)
    assert finished.returncode == 0, finished.stderr


def test_blocks_share_a_scope_and_a_failure_names_its_line(tmp_path: Path) -> None:
    document = tmp_path / "document.md"
    document.write_text(
        "# Title\n"
        "```python\nnumber = 1\n```\n"
        "```console\n$ not python\n```\n"
        "```python\nassert number == 1\n\nassert number == 2\n```\n"
    )
    assert [line for line, _ in python_blocks(document.read_text())] == [3, 9]
    finished = run_blocks(document, tmp_path)
    assert finished.returncode == 1
    assert f"{document}:9: the block that starts here failed" in finished.stderr
    assert f'File "{document}", line 11' in finished.stderr
