"""
The demo's caller: what an application does with the tasks, measured.

In: a running worker.   Out: the table on the terminal; exit code 0 only if every call of the second run was a hit with
an equal answer.

A process of its own, so that a broker that has gone can never keep the supervisor waiting.
"""

from __future__ import annotations

import signal
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Final

from celery.exceptions import TimeoutError as NoAnswer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from aicache_tasks.errors import AICacheError
from workers import demo_probe, tasks
from workers.app import HARD_LIMIT_S, app
from workers.demo_calls import Call, calls_of
from workers.demo_table import Measured, faults, not_kept, saved, tables
from workers.engines import current_engine
from workers.engines.base import EmptyReply, Engine, RefusedReply, TruncatedReply, UnparsableReply

WORKER_S = 60.0
ANSWER_S = HARD_LIMIT_S + 10.0
INFO_S = 10.0
UNUSABLE = (EmptyReply, RefusedReply, TruncatedReply, UnparsableReply)
"""Replies that a model may give at any time, and that are not kept: nothing is wrong with the demo then."""
ENGINE_NOTES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "extractive": "It needs no model and takes milliseconds, so that most of each run is Celery itself. A language "
        "model takes seconds; a hit takes what the second run shows, whatever the engine.",
        "local": "A real language model, on this machine alone. One that is this small gets facts wrong: believe the "
        "times, not the answers. --model PATH asks a better one, --engine extractive none.",
    }
)


class Unusable(Exception):  # noqa: N818 - names an event
    """One line: what is not there that the demo needs."""


class Failed(Exception):  # noqa: N818 - names an event
    """One line: which call went wrong; the worker's log says why."""


def main() -> int:
    """Wait for the worker, run everything twice, show the table; return the exit code."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    console = Console()
    try:
        engine = load_engine()
        wait_for_worker(console)
        first, second = measure(console, calls_of(engine.name))
    except (Unusable, AICacheError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 2
    except Failed as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    show(console, engine, first, second)
    for fault in (found := faults(first, second)):
        console.print(f"[red]wrong:[/red] {fault}", highlight=False)
    return 1 if found else 0


def show(console: Console, engine: Engine, first: Sequence[Measured], second: Sequence[Measured]) -> None:
    """Print what was measured."""
    for table in tables(first, second):
        console.print(table)
    console.print(saved(first, second), highlight=False)
    console.print(f"Engine: {engine.name} ({engine.model}).", ENGINE_NOTES.get(engine.name, ""), highlight=False)
    for line in not_kept(first):
        console.print(line, highlight=False)


def load_engine() -> Engine:
    """Return the engine; what its own code raises is shown with its place, for whoever wrote it."""
    try:
        return current_engine()
    except AICacheError:
        raise
    except Exception as error:
        traceback.print_exc()
        raise Unusable(f"the engine could not be made: {type(error).__name__}") from error


def wait_for_worker(console: Console) -> None:
    """Return when a worker answers."""
    deadline = time.monotonic() + WORKER_S
    with console.status("waiting for the worker"):
        while time.monotonic() < deadline:
            if app.control.ping(timeout=1.0, limit=1):
                return
    raise Unusable(f"no worker answered within {WORKER_S:g} s")


def measure(console: Console, calls: Sequence[Call]) -> tuple[list[Measured], list[Measured]]:
    """Run everything twice, one call after the other; a terminal shows how far it is."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bars:
        return run(bars, "first run", calls), run(bars, "second run", calls)


def run(bars: Progress, name: str, calls: Sequence[Call]) -> list[Measured]:
    """Make every call once."""
    bar, measured, begun = bars.add_task(name, total=len(calls)), [], ""
    for call in calls:
        if call.operation != begun and not moves(bars.console):
            print(f"{name}: {call.operation}", file=sys.stderr, flush=True)
        begun = call.operation
        bars.update(bar, description=f"{name}: {call.operation} of {call.article.name}")
        measured.append(make(call))
        bars.advance(bar)
    bars.update(bar, description=name)
    return measured


def moves(console: Console) -> bool:
    """Return whether *console* shows a bar that moves; a pipe and a log get lines instead."""
    return console.is_terminal and not console.is_dumb_terminal


def make(call: Call) -> Measured:
    """Make one call and wait for its answer."""
    operation, article = call.operation, call.article
    began = time.perf_counter()
    result = getattr(tasks, operation).apply_async(kwargs=call.arguments)
    try:
        value = result.get(timeout=ANSWER_S, propagate=False)
    except NoAnswer:
        raise Failed(f"{operation} of {article.name} gave no answer within {ANSWER_S:g} s") from None
    seconds = time.perf_counter() - began
    unusable = isinstance(value, UNUSABLE)
    if not result.successful() and not unusable:
        raise Failed(f"{operation} of {article.name} failed: {type(value).__name__}")
    info = demo_probe.fetch(app, result.id, INFO_S)
    if info is None:
        raise Failed(f"the worker did not say how {operation} of {article.name} went")
    return Measured(operation, article.name, seconds, str(value) if unusable else value, info, kept=not unusable)


if __name__ == "__main__":
    sys.exit(main())
