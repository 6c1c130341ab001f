"""
``export``: the records themselves.

In: a span, a resolution.   Out: JSON lines, a record each as docs/summary-record.schema.json says, to a file or stdout.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final, TextIO

import click

from aicache_tasks.reports.commands.base import (
    Misused,
    command,
    nothing_yet,
    reader_of,
    span_of,
    spanned,
    wanted,
)
from aicache_tasks.reports.commands.rollup import progress_bar
from aicache_tasks.reports.queries import Reader
from aicache_tasks.reports.spans import Span
from aicache_tasks.reports.wording import label
from aicache_tasks.rollup import WINDOWS_S
from aicache_tasks.summary import SummaryRecord

SINCE: Final = "24h"
TOTAL: Final = "total"


@command
@spanned(SINCE)
@click.option(
    "--resolution",
    type=click.Choice([*WINDOWS_S, TOTAL]),
    default="minute",
    show_default=True,
    help="Windows of the records; total is each operation's since the beginning.",
)
@click.option("--json", "as_json", is_flag=True, help="JSON lines, which is what it writes anyway.")
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Write here; by default to stdout.",
)
@click.option("--force", is_flag=True, help="Replace the file if there is one.")
def export(
    ctx: click.Context,
    since: str | None,
    until: str,
    operations: tuple[str, ...],
    resolution: str,
    as_json: bool,
    output: Path | None,
    force: bool,
) -> None:
    """Write the summary records as JSON lines.

    One record a line, those of one operation after the other, the oldest first. Their fields are described in
    docs/summary-record.schema.json. A file appears when it is complete.
    """
    reader = reader_of(ctx)
    span, names = span_of(reader, since or SINCE, until), wanted(operations)
    names = tuple(sorted(set(names))) if names else tuple(reader.summaries.operations())
    with opened(output, force) as out, progress_bar("exporting") as progress:
        written = 0
        for done, name in enumerate(names):
            for record in _records(reader, span, resolution, name):
                out.write(json.dumps(record.as_json(), separators=(",", ":"), allow_nan=False) + "\n")
                written += 1
            if out is not sys.stdout or not sys.stdout.isatty():
                progress(done + 1, len(names))
        if not written and not as_json:
            nothing_yet(ctx, reader)
    if output is not None:
        click.echo(f"{written:,} records in {label(str(output), 200)}", err=True)


def _records(reader: Reader, span: Span, resolution: str, name: str) -> Iterator[SummaryRecord]:
    if resolution == TOTAL:
        found = reader.summaries.totals()
        return iter([found[name]] if name in found else [])
    return reader.each(span, resolution, [name])


@contextlib.contextmanager
def opened(path: Path | None, force: bool) -> Iterator[TextIO]:
    """Open *path* for writing: a file that is there stays as it is unless *force*, and until all is written."""
    if path is None or str(path) == "-":
        yield sys.stdout
        return
    if path.exists() and not path.is_file():  # a pipe, a terminal, /dev/null
        with _errors_of(path), path.open("w", encoding="utf-8") as out:
            yield out
        return
    if os.path.lexists(path) and not force:
        raise Misused(f"{label(str(path), 200)} exists; --force replaces it")
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with _errors_of(path), part.open("x", encoding="utf-8") as out:
            yield out
        _put(part, path, force)
    finally:
        part.unlink(missing_ok=True)


def _put(part: Path, path: Path, force: bool) -> None:
    with _errors_of(path):
        if force:
            part.replace(path)
        else:
            try:
                path.hardlink_to(part)  # fails if somebody else was there first
            except FileExistsError:
                raise Misused(f"{label(str(path), 200)} exists; --force replaces it") from None


@contextlib.contextmanager
def _errors_of(path: Path) -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise Misused(f"{label(str(path), 200)} cannot be written: {error.strerror}") from None
