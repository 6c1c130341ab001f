"""
``rollup``: count what waits, now.

In: the inbox.   Out: what was counted, or would be; JSON.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from aicache_tasks.beat import ENTRY, roll_up
from aicache_tasks.reports.commands.base import as_json as json_option
from aicache_tasks.reports.commands.base import command, echo_json, reader_of, screen_of
from aicache_tasks.reports.views import figures_table, rows_by_operation
from aicache_tasks.reports.wording import plural
from aicache_tasks.summaries import Progress, RolledUp


@command
@click.option("--dry-run", is_flag=True, help="Show what would be counted, and change nothing.")
@json_option
def rollup(ctx: click.Context, dry_run: bool, as_json: bool) -> None:
    """Count the timings that wait, now.

    They go into the summary records, as beat has a worker do each minute. Each timing is counted once, however many
    roll-ups run at the same moment. Alerts are judged too. Where beat's schedule has the entry aicache-rollup, it
    does not pass for beat's asking: doctor and stats still tell of a beat that is away.
    """
    reader, app = reader_of(ctx), ctx.obj.app
    with progress_bar("counting" if dry_run else "rolling up") as progress:
        if dry_run:
            done = reader.summaries.preview(progress=progress)
        else:
            done = roll_up(app, asked=ENTRY not in app.conf.beat_schedule, progress=progress)
    if as_json:
        echo_json(_as_json(done, dry_run))
        return
    screen = screen_of(ctx)
    for line in _lines(done, dry_run):
        screen.line(line)
    if named := rows_by_operation(record for _, record in sorted(done.totals.items())):
        screen.table(figures_table(named, ["operation"], currency=reader.settings.currency, plain=screen.plain_marks))


@contextmanager
def progress_bar(title: str) -> Iterator[Progress]:
    """Show a bar on stderr, if that is a terminal, as long as the block runs."""
    if not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
        yield lambda _done, _of: None
        return
    with click.progressbar(length=1, label=title, file=sys.stderr) as shown:

        def tell(done: int, of: int) -> None:
            shown.length = max(of, done, 1)
            shown.update(done - shown.pos)

        yield tell


def _lines(done: RolledUp, dry_run: bool) -> Iterator[str]:
    if not (done.batches or done.duplicates or done.undecodable):
        yield "nothing waits" if not done.conflicts else "another roll-up is at work"
        return
    yield f"{plural(done.samples, 'timing')} in {plural(done.batches, 'batch')} {'to count' if dry_run else 'counted'}"
    if done.duplicates:
        yield f"{plural(done.duplicates, 'batch')} counted before"
    if done.undecodable:
        yield f"{plural(done.undecodable, 'batch')} that cannot be read{'' if dry_run else ', set aside'}"
    if done.damaged:
        yield f"{plural(done.damaged, 'record')} that could not be read, set aside and begun anew"
    if done.lost:
        yield f"{plural(done.lost, 'timing')} lost in the processes that took them"
    if done.conflicts:
        yield "another roll-up is at work, and goes on"


def _as_json(done: RolledUp, dry_run: bool) -> dict[str, Any]:
    totals = [record.as_json(sketches=False) for _, record in sorted(done.totals.items())]
    figures = {f.name: getattr(done, f.name) for f in dataclasses.fields(done) if f.name not in ("totals", "workers")}
    return {"dry_run": dry_run} | figures | {"totals": totals}
