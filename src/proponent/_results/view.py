"""How a result looks in a terminal and in a notebook."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

ROWS = 5  # test instances shown
SIDE = 3  # proponents and opponents shown of each


@dataclass(frozen=True)
class Row:
    """One line of the table: a test instance and its strongest (id, influence) on both sides."""

    test: object | None
    proponents: Sequence[tuple[object, float]]
    opponents: Sequence[tuple[object, float]]


@dataclass(frozen=True)
class View:
    """What is shown of a result: a heading, the first rows, how many are left out, warnings."""

    heading: str
    rows: Sequence[Row]
    left_out: int
    warnings: Sequence[str]


def shown(value: object, limit: int = 40) -> str:
    """Write ``value`` as one printable line: control characters escaped, long text cut.

    Ids may come from anywhere, and a terminal obeys the control characters it is sent.
    """
    text = "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in str(value)
    )
    return text if len(text) <= limit else text[: limit - 3] + "..."


def score_text(value: float) -> str:
    """Write an influence with its sign, to three digits."""
    return f"{value:+.3g}"


def counted(number: int, noun: str) -> str:
    """``1 test instance``, ``1,617 test instances``."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def warnings_in(diagnostics: Mapping[str, Any]) -> list[str]:
    """List the warnings of a result and of the shards it was joined from, each once."""
    found = diagnostics.get("warnings", [])
    messages = [found] if isinstance(found, str) else [str(message) for message in found or []]
    for shard in diagnostics.get("shards") or []:
        if isinstance(shard, Mapping):
            messages += warnings_in(shard)
    return list(dict.fromkeys(messages))


def as_text(view: View) -> str:
    """Write the view as aligned lines of plain text."""
    lines = [shown(view.heading, 200)]
    if view.rows:
        cells = [("test", "strongest proponents", "strongest opponents")]
        cells += [
            (
                "" if row.test is None else shown(row.test, 24),
                _listed(row.proponents),
                _listed(row.opponents),
            )
            for row in view.rows
        ]
        if all(row.test is None for row in view.rows):
            cells = [("", *cell[1:]) for cell in cells]
        widths = [max(len(cell[column]) for cell in cells) for column in range(2)]
        lines += [
            "  ".join([*(c.ljust(w) for c, w in zip(cell, widths, strict=False)), cell[2]]).rstrip()
            for cell in cells
        ]
    if view.left_out:
        lines.append(f"... and {counted(view.left_out, 'more test instance')}")
    lines += [f"Warning: {shown(message, 500)}" for message in view.warnings]
    return "\n".join(lines)


def as_html(view: View) -> str:
    """Write the view as one self-contained table, every text escaped."""
    parts = [f'<div class="proponent-influence"><p><b>{_escaped(view.heading, 200)}</b></p>']
    if view.rows:
        labelled = any(row.test is not None for row in view.rows)
        test = "<th>test</th>" if labelled else ""
        parts.append(
            f"<table><thead><tr>{test}<th>strongest proponents</th>"
            "<th>strongest opponents</th></tr></thead><tbody>"
        )
        for row in view.rows:
            test = f"<th>{_escaped(row.test, 40)}</th>" if labelled else ""
            sides = "".join(
                f"<td>{html.escape(_listed(side))}</td>" for side in (row.proponents, row.opponents)
            )
            parts.append(f"<tr>{test}{sides}</tr>")
        parts.append("</tbody></table>")
    if view.left_out:
        parts.append(f"<p>... and {counted(view.left_out, 'more test instance')}</p>")
    parts += [f"<p>Warning: {_escaped(message, 500)}</p>" for message in view.warnings]
    return "".join(parts) + "</div>"


def _listed(side: Sequence[tuple[object, float]]) -> str:
    if not side:
        return "none scored"
    return ", ".join(f"{shown(label, 24)} ({score_text(value)})" for label, value in side)


def _escaped(value: object, limit: int) -> str:
    return html.escape(shown(value, limit))
