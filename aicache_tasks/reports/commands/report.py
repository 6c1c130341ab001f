"""
``report``: the tab's figures and plots of a span, as one file.

In: a span.   Out: a page that opens offline.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import click

from aicache_tasks.reports.commands.base import command, nothing_yet, reader_of, span_of
from aicache_tasks.reports.commands.export import opened
from aicache_tasks.reports.commands.summaries import title_of
from aicache_tasks.reports.html import page
from aicache_tasks.reports.wording import label

SINCE: Final = "24h"


@command
@click.option(
    "--html",
    type=click.Path(dir_okay=False, path_type=Path),
    required=True,
    metavar="FILE",
    help="Write the page here; - is stdout.",
)
@click.option(
    "--since",
    default=SINCE,
    show_default=True,
    metavar="TIME",
    help="From when: 6h, 30m, 2d (ago) or 2026-11-22T10:00 (UTC).",
)
@click.option("--until", default="now", show_default=True, metavar="TIME", help="Until when; as --since.")
@click.option("--force", is_flag=True, help="Replace the file if there is one.")
def report(ctx: click.Context, html: Path, since: str, until: str, force: bool) -> None:
    """Write a page with the figures and plots of a span.

    One file with all that it needs, for a mail or an archive: it opens in any browser, offline, and asks for nothing.
    It has what the tab in Flower has, without answers, arguments or keys.
    """
    reader = reader_of(ctx)
    text = page(reader, span_of(reader, since, until), title_of)
    if text is None:
        nothing_yet(ctx, reader)
    with opened(html, force) as out:
        out.write(text)
    if str(html) != "-":
        click.echo(f"{label(str(html), 200)}: {len(text.encode()) // 1000} KB", err=True)
