"""The tables: markdown from measurements, and the sections of ``RESULTS.md``."""

from __future__ import annotations

import datetime
import platform
import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).with_name("RESULTS.md")

# A larger error than rounding in float32 can explain.
WRONG = 1e-3

HEADER = (
    "| implementation | n | CPU s | floor s | ratio | ratio, user time | peak MB | error |\n"
    "|---|---|---|---|---|---|---|---|"
)

PREAMBLE = """# Results

Single thread. The ratio is CPU time to the floor's: one plain mini-batched forward and backward
pass (all weight gradients, batches of 100) over the same training instances per checkpoint, in
the same process, taking turns; the smallest time of each counts. User time leaves out the
kernel's share (fresh memory pages, dear on virtual machines). Peak MB is resident memory above
the module, the data and the loaded libraries, measured in a process of its own; in brackets with
a fifth of the instances. The error is the largest `|score - truth| / (|g_i| |g_j|)` at spot
checks, the truth being plain backward passes in float64.

An implementation that would take more than the limit on all n instances is measured on fewer
(column n); its test gradients then weigh more in its ratio.
"""


def markdown(found: dict[str, Any]) -> str:
    """Return the table of one workload."""
    lines = [HEADER]
    whole = found["floors"][str(found["n"])]
    lines.append(
        f"| floor | {found['n']} | {whole['cpu']:.3g} | | 1 | 1 | {_megabytes(found, 'floor')} | |"
    )
    for candidate in found["candidates"]:
        lines.append(_row(candidate, found))
    return "\n".join(lines)


def _row(candidate: dict[str, Any], found: dict[str, Any]) -> str:
    title = found["titles"][candidate["name"]]
    if candidate["note"]:
        return f"| {title} | | | | | | | {candidate['note'].replace('|', '/')} |"
    seconds, floor = candidate["seconds"], found["floors"][str(candidate["n"])]
    error = f"{candidate['error']:.0e}" + (" **wrong**" if candidate["error"] > WRONG else "")
    return (
        f"| {title} | {candidate['n']} | {seconds['cpu']:.3g} | {floor['cpu']:.3g} "
        f"| {_ratio(seconds['cpu'], floor['cpu'])} | {_ratio(seconds['user'], floor['user'])} "
        f"| {_megabytes(found, candidate['name'])} | {error} |"
    )


def _ratio(seconds: float, floor: float) -> str:
    ratio = seconds / floor if floor else float("nan")
    return f"{ratio:.0f}" if ratio >= 20 else f"{ratio:.2f}"


def _megabytes(found: dict[str, Any], name: str) -> str:
    peaks = found["megabytes"].get(name, [])
    return f"{peaks[0]:.0f}" + (f" ({peaks[1]:.0f})" if len(peaks) > 1 else "") if peaks else ""


def write(name: str, found: dict[str, Any], command: str) -> None:
    """Write or replace the section of one workload in ``RESULTS.md``."""
    counts = f"n = {found['n']}, m = {found['m']}"
    if found["checkpoints"] > 1:
        counts += f", {found['checkpoints']} checkpoints"
    write_section(name, found["title"], counts + ".", markdown(found), command)


def write_section(name: str, title: str, counts: str, table: str, command: str) -> None:
    """Write or replace a section of ``RESULTS.md``, between its marks."""
    section = "\n".join(
        [
            f"<!-- begin {name} -->",
            f"## {title}",
            "",
            f"{counts} `{command}`, {datetime.date.today().isoformat()}; {environment()}.",
            "",
            table,
            f"<!-- end {name} -->",
        ]
    )
    text = RESULTS.read_text() if RESULTS.exists() else PREAMBLE
    pattern = re.compile(
        rf"<!-- begin {re.escape(name)} -->.*?<!-- end {re.escape(name)} -->", re.S
    )
    if pattern.search(text):
        text = pattern.sub(lambda _: section, text)
    else:
        text = text.rstrip() + "\n\n" + section + "\n"
    RESULTS.write_text(text)


def environment() -> str:
    """Say what the numbers were measured with: versions and CPU."""
    versions = [f"Python {platform.python_version()}"]
    for package in ("torch", "captum", "dattri", "kronfluence", "traker", "proponent"):
        try:
            versions.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    return ", ".join(versions) + f"; {_processor()}"


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    if information.exists():
        found = re.search(r"model name\s*:\s*(.+)", information.read_text())
        flags = information.read_text()
        vectors = "AVX-512" if "avx512f" in flags else "AVX2" if "avx2" in flags else ""
        if found:
            return f"{found[1].strip()} {vectors}".strip()
    return platform.processor() or platform.machine()
