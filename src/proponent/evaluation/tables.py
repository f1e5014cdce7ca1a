"""Small tables of results, as aligned text and as HTML."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from html import escape


@dataclass(frozen=True)
class Table:
    """Cells to show.

    Attributes
    ----------
    header : list of str
        Names of the columns.
    rows : list of lists of str
        Cells, as many in a row as the header has.
    notes : list of str
        The first is the title, the others stand below the table.
    """

    header: list[str]
    rows: list[list[str]]
    notes: list[str]

    def as_text(self) -> str:
        """Return the table with aligned columns."""
        lines = [self.header, *self.rows]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        body = [
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
            for line in lines
        ]
        return "\n".join([self.notes[0], *body, *self.notes[1:]])

    def as_html(self) -> str:
        """Return the table as an HTML fragment, every cell escaped."""
        head = "".join(f"<th>{escape(name)}</th>" for name in self.header)
        body = "".join(
            "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>"
            for row in self.rows
        )
        below = "".join(f"<p><small>{escape(note)}</small></p>" for note in self.notes[1:])
        return (
            f"<div><p><b>{escape(self.notes[0])}</b></p><table><thead><tr>{head}</tr></thead>"
            f"<tbody>{body}</tbody></table>{below}</div>"
        )


class TabulatedResult(ABC):
    """A result that shows itself as a table in a terminal and in a notebook."""

    @abstractmethod
    def _as_table(self) -> Table:
        """Return the result as a table."""

    def __repr__(self) -> str:
        """Return the aligned text table."""
        return self._as_table().as_text()

    def _repr_html_(self) -> str:
        return self._as_table().as_html()
