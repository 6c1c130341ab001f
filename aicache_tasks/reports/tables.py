"""
Tables on a screen: with rich on a terminal where it is installed, else aligned text.

In: columns and rows of text.   Out: lines no wider than the screen. Where there is no room for all columns those that
are missed least go, and the last line names them.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TextIO

from aicache_tasks.reports.wording import cut, width

GAP: Final = "  "
MIN_LABEL: Final = 8
"""How narrow a column of names may become."""
PIPE_COLUMNS: Final = 10_000
"""What is taken for the width of what is no terminal."""
STYLES: Final = {"title": "bold", "note": "dim", "warning": "yellow", "failure": "bold red", "total": "bold"}


@dataclass(frozen=True, slots=True)
class Column:
    """A column.

    Args:
        title: at its head.
        kind: figures stand at the right; marks, such as bars, and names at the left; names alone may be cut.
        rank: those of the highest rank go first where there is no room; 0 always stays.
    """

    title: str
    kind: Literal["figure", "mark", "name"] = "figure"
    rank: int = 0


@dataclass(slots=True)
class Table:
    """Rows of cells, each a text that is safe to show."""

    title: str
    columns: Sequence[Column]
    rows: list[Sequence[str]] = field(default_factory=list)
    total: Sequence[str] | None = None
    """A last row that sums the others up."""

    @property
    def lines(self) -> list[Sequence[str]]:
        """All rows."""
        return [*self.rows, self.total] if self.total else self.rows


class Screen:
    """Where a command shows what it found.

    Args:
        out: the stream, such as `sys.stdout`.
        no_color: no colours, whatever the terminal can do.
        environ: says what the terminal can do.
    """

    def __init__(self, out: TextIO, *, no_color: bool = False, environ: Mapping[str, str] = os.environ) -> None:
        self._out = out
        self.is_terminal = bool(getattr(out, "isatty", bool)()) and environ.get("TERM") != "dumb"
        self.columns = _columns(out, environ)
        self.plain_marks = not _encodes(out, "█▁…")
        no_color = no_color or bool(environ.get("NO_COLOR"))
        self._rich = _console(out, self.columns, no_color) if self.is_terminal and not self.plain_marks else None

    def line(self, text: str = "", style: str = "") -> None:
        """Show a line of text, in parts of the screen's width."""
        if self._rich is None:
            self._write(text)
        else:
            self._rich.print(_text(text, STYLES.get(style, "")))

    def table(self, table: Table) -> None:
        """Show a table."""
        fitting, missing = fit(table, self.columns)
        if self._rich is None:
            for line in _plain(fitting):
                self._write(line)
        else:
            self._rich.print(_rich_table(fitting))
        if missing:
            self.line(f"no room for: {', '.join(missing)}", "note")

    def _write(self, line: str) -> None:
        encoding = getattr(self._out, "encoding", None) or "utf-8"
        self._out.write(line.rstrip().encode(encoding, "backslashreplace").decode(encoding) + "\n")


def fit(table: Table, columns: int) -> tuple[Table, list[str]]:
    """Return *table* with as many of its columns as there is room for, names cut, and the titles of those that went."""
    there = list(table.columns)
    while there and _room(table, there) > columns and any(column.rank for column in there):
        there.remove(max(reversed(there), key=lambda column: column.rank))
    places = [place for place, column in enumerate(table.columns) if column in there]
    rows = [[row[place] for place in places] for row in table.lines]
    widths = _widths(there, rows)
    spare = columns - sum(widths) - len(GAP) * (len(widths) - 1)
    for at, column in enumerate(there):
        if column.kind == "name" and spare < 0:
            narrower = max(widths[at] + spare, _least(column, widths[at]))
            spare += widths[at] - narrower
            rows = [[*row[:at], _shortened(row[at], narrower), *row[at + 1 :]] for row in rows]
    total = rows.pop() if table.total else None
    missing = [column.title for column in table.columns if column.title and column not in there]
    return Table(table.title, there, [*rows], total), missing


def _room(table: Table, there: Sequence[Column]) -> int:
    """Return the least width of *table* with the columns *there*."""
    places = [place for place, column in enumerate(table.columns) if column in there]
    widths = _widths(there, [[row[place] for place in places] for row in table.lines])
    return sum(map(_least, there, widths)) + len(GAP) * (len(there) - 1)


def _least(column: Column, wide: int) -> int:
    return min(wide, max(MIN_LABEL, width(column.title))) if column.kind == "name" else wide


def _widths(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> list[int]:
    heads = [column.title for column in columns]
    return [max(map(width, cells)) for cells in zip(heads, *rows, strict=True)]


def _shortened(cell: str, columns: int) -> str:
    return cell if width(cell) <= columns else cut(cell, columns - 1) + "…"


def _plain(table: Table) -> list[str]:
    heads = [column.title for column in table.columns]
    widths = _widths(table.columns, table.lines)
    lines = [heads, *table.rows, *([["-" * wide for wide in widths], table.total] if table.total else [])]
    text = [GAP.join(map(_padded, table.columns, line, widths)).rstrip() for line in lines]
    return [table.title, *text] if table.title else text


def _padded(column: Column, cell: str, wide: int) -> str:
    room = " " * (wide - width(cell))
    return room + cell if column.kind == "figure" else cell + room


def _columns(out: TextIO, environ: Mapping[str, str]) -> int:
    given = environ.get("COLUMNS", "")
    if given.isdigit() and len(given) < 6 and int(given):
        return int(given)
    if not getattr(out, "isatty", bool)():
        return PIPE_COLUMNS
    return shutil.get_terminal_size().columns


def _encodes(out: TextIO, text: str) -> bool:
    try:
        text.encode(getattr(out, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        return False
    return True


# Rich is optional, and has no part in what is shown, only in how.


def _console(out: TextIO, columns: int, no_color: bool) -> Any:
    if importlib.util.find_spec("rich") is None:
        return None
    console = importlib.import_module("rich.console")
    return console.Console(file=out, width=columns, no_color=no_color, highlight=False, markup=False, emoji=False)


def _text(text: str, style: str = "") -> Any:
    return importlib.import_module("rich.text").Text(text, style=style)


def _rich_table(table: Table) -> Any:
    made = importlib.import_module("rich.table").Table(
        title=_text(table.title, STYLES["title"]) if table.title else None,
        title_justify="left",
        box=importlib.import_module("rich.box").SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1, 0, 0),  # with the box's own column: as wide as `GAP`
        show_edge=False,
        show_footer=table.total is not None,
        footer_style=STYLES["total"],
    )
    for at, column in enumerate(table.columns):
        footer = _text(table.total[at]) if table.total else ""
        justify = "right" if column.kind == "figure" else "left"
        made.add_column(_text(column.title), footer=footer, justify=justify, no_wrap=True)
    for row in table.rows:
        made.add_row(*map(_text, row))
    return made
