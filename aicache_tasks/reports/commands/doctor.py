"""
``doctor``: what is wrong with the set-up.

In: the application, the server, the workers.   Out: findings with what to do; an exit code.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import click

from aicache_tasks.reports.commands.base import as_json as json_option
from aicache_tasks.reports.commands.base import command, echo_json, reader_of, screen_of
from aicache_tasks.reports.commands.calls import loaded
from aicache_tasks.reports.commands.rollup import progress_bar
from aicache_tasks.reports.tables import Screen
from aicache_tasks.runtime import cached_tasks

FAILED: Final = 1
STYLES: Final = {"ok": "note", "warn": "warning", "fail": "failure"}


@command
@click.option("--strict", is_flag=True, help="End with 1 for a warning too.")
@click.option(
    "--probe", is_flag=True, hidden=True, help="Print keys of made-up calls, for the comparison of processes."
)
@json_option
def doctor(ctx: click.Context, strict: bool, probe: bool, as_json: bool) -> None:
    """Say what is wrong with the set-up, and what to do about it.

    Asks the cache's server, the broker, the workers and processes of its own; changes nothing. Each check is ok, a
    warning, or a failure, for which the command ends with 1.
    """
    from aicache_tasks.reports.doctor import CHECKS, Case, Finding, examine, stability

    reader = reader_of(ctx)
    if probe:
        sys.stdout.write(stability.marked(stability.keys_of(cached_tasks(loaded(ctx)))))
        return
    case = Case(loaded(ctx), reader, _probe(sys.argv))
    found: list[Finding] = []
    with progress_bar("looking") as progress:
        for done, check in enumerate(CHECKS):
            found += examine(case, [check])
            progress(done + 1, len(CHECKS))
    if as_json:
        echo_json({"findings": [finding._asdict() for finding in found], "worst": _worst(found)})
    else:
        _show(screen_of(ctx), found)
    if _worst(found) == "fail" or (strict and _worst(found) == "warn"):
        ctx.exit(FAILED)


def _probe(argv: Sequence[str]) -> list[str] | None:
    """Return this command as it was called, but for what it is to do; None if it was called in another way.

    An application's own options may stand between "aicache" and "doctor".
    """
    ends = [index for index, word in enumerate(argv) if word == "doctor" and "aicache" in argv[:index]]
    if not ends:
        return None
    given = list(argv[1 : ends[-1]])
    for index, option in enumerate(given):  # Celery went there before; a relative one would count from here
        if option.startswith("--workdir="):
            given[index] = f"--workdir={Path.cwd()}"
        elif given[index - 1 : index] == ["--workdir"]:
            given[index] = str(Path.cwd())
    return [sys.executable, "-m", "celery", *given, "doctor", "--probe"]


def _worst(found: Sequence[tuple[str, ...]]) -> str:
    levels = {finding[1] for finding in found}
    return next((level for level in ("fail", "warn") if level in levels), "ok")


def _show(screen: Screen, found: Sequence[tuple[str, ...]]) -> None:
    for check, level, what, fix in found:
        screen.line(f"{level:<5} {check:<12} {what}", STYLES[level])
        if fix:
            screen.line(f"{'':<18} → {fix}" if not screen.plain_marks else f"{'':<18} > {fix}")
    counted = {level: sum(finding[1] == level for finding in found) for level in STYLES}
    screen.line()
    screen.line(", ".join(f"{count} {level}" for level, count in counted.items() if count))
