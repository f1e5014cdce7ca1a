"""The README's table of methods names those that there are."""

import re
from pathlib import Path

import proponent as pp

README = Path(__file__).resolve().parent.parent / "README.md"


def test_the_readme_lists_every_available_method() -> None:
    section = README.read_text(encoding="utf-8").split("## The methods\n")[1].split("\n## ")[0]
    listed = re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)
    available = pp.methods(available=True).index
    assert sorted(listed) == sorted(available)
