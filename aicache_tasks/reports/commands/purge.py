"""
``purge``: erase the bytes of answers.

In: an operation, or all.   Out: how many entries would go; with ``--yes`` they go, and are counted.
"""

from __future__ import annotations

import sys

import click

from aicache_tasks.reports.commands.base import as_json as json_option
from aicache_tasks.reports.commands.base import command, echo_json, place_of, reader_of, screen_of
from aicache_tasks.reports.commands.calls import confirmed, known_operation, loaded
from aicache_tasks.reports.commands.rollup import progress_bar
from aicache_tasks.reports.wording import label, number
from aicache_tasks.runtime import runtime_of


@command
@click.option("--operation", metavar="NAME", help="Only this one's answers.")
@click.option("--dry-run", is_flag=True, help="Count, and do not ask.")
@click.option(
    "--rate",
    type=click.FloatRange(1, 10_000_000),
    default=20_000,
    show_default=True,
    metavar="COUNT",
    help="Look at so many keys a second at most.",
)
@confirmed
@json_option
def purge(ctx: click.Context, operation: str | None, dry_run: bool, rate: float, yes: bool, as_json: bool) -> None:
    """Erase the bytes of stored answers.

    Counts first, and changes nothing without --yes or an answer at the terminal. What goes is out of force before the
    first key is erased. Keys are found by SCAN, which other clients hardly notice; summary records stay.
    """
    reader = reader_of(ctx)
    cache = runtime_of(loaded(ctx)).cache
    if operation is not None:
        known_operation(ctx, operation, reader.summaries.operations())
    with progress_bar("counting") as progress:
        server = reader.server()
        in_all = server.keys if server is not None else 1
        found = cache.purge(operation, dry_run=True, keys_per_s=rate, progress=lambda n: progress(n, max(in_all, n)))
    where = f"{f'of {label(operation)} ' if operation is not None else ''}in {place_of(ctx)}"
    if not _is_meant(found, where, yes=yes, dry_run=dry_run, as_json=as_json):
        if as_json:
            echo_json({"dry_run": True, "operation": operation, "found": found, "erased": 0})
        else:
            hint = f"; --yes{', without --dry-run,' if dry_run else ''} erases them" if found else ""
            screen_of(ctx).line(f"{_answers(found)} {where}{hint}")
        return
    with progress_bar("erasing") as progress:
        erased = cache.purge(operation, keys_per_s=rate, progress=lambda n: progress(n, max(found, n)))
    if as_json:
        echo_json({"dry_run": False, "operation": operation, "found": found, "erased": erased})
    else:
        screen_of(ctx).line(f"{_answers(erased)} {where} erased")


def _is_meant(found: int, where: str, *, yes: bool, dry_run: bool, as_json: bool) -> bool:
    if yes or dry_run:
        return not dry_run
    return (
        bool(found)
        and not as_json
        and sys.stdin.isatty()
        and click.confirm(f"Erase {_answers(found)} {where}?", err=True)
    )


def _answers(count: int) -> str:
    return f"{number(count)} {'answer' if count == 1 else 'answers'}"
