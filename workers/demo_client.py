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
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, Final

from celery.exceptions import TimeoutError as NoAnswer
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress

from aicache_tasks.errors import AICacheError
from workers import demo_probe, tasks
from workers.app import app
from workers.articles import ARTICLES, Article
from workers.demo_table import Measured, faults, tables
from workers.engines import DEFAULT_ENGINE, current_engine
from workers.engines.base import Engine

WORKER_S = 60.0
ANSWER_S = 120.0
INFO_S = 10.0
OPERATIONS = ("summarize", "sentiment", "key_points", "questions", "qa")
OPTIONS: Final[Mapping[str, Mapping[str, int]]] = MappingProxyType(
    {"summarize": {"max_length": 250}, "questions": {"num_questions": 10}}
)
"""Long enough for answers that are compressed; the other operations' are not."""
ENGINE_NOTE = (
    "It needs no model and takes milliseconds, so that most of each run is Celery itself. A language model takes "
    "seconds; a hit takes what the second run shows, whatever the engine."
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
        first, second = measure(console)
    except (Unusable, AICacheError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 2
    except Failed as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    for table in tables(first, second):
        console.print(table)
    note = ENGINE_NOTE if engine.name == DEFAULT_ENGINE else ""
    console.print(f"Engine: {engine.name} ({engine.model}).", note, highlight=False)
    for fault in (found := faults(first, second)):
        console.print(f"[red]wrong:[/red] {fault}", highlight=False)
    return 1 if found else 0


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


def measure(console: Console) -> tuple[list[Measured], list[Measured]]:
    """Run everything twice, one call after the other."""
    with Progress(*Progress.get_default_columns()[:2], MofNCompleteColumn(), console=console, transient=True) as bars:
        runs = [
            list(bars.track(calls(), total=len(OPERATIONS) * len(ARTICLES), description=f"{which} run"))
            for which in ("first", "second")
        ]
    return runs[0], runs[1]


def calls() -> Iterator[Measured]:
    """Make every call once."""
    for operation in OPERATIONS:
        for article in ARTICLES:
            yield call(operation, article)


def call(operation: str, article: Article) -> Measured:
    """Make one call and wait for its answer."""
    arguments: dict[str, Any] = {"text": article.text, **OPTIONS.get(operation, {})}
    if operation == "qa":
        arguments["question"] = article.question
    began = time.perf_counter()
    result = getattr(tasks, operation).apply_async(kwargs=arguments)
    try:
        value = result.get(timeout=ANSWER_S, propagate=False)
    except NoAnswer:
        raise Failed(f"{operation} of {article.name} gave no answer within {ANSWER_S:g} s") from None
    seconds = time.perf_counter() - began
    if not result.successful():
        raise Failed(f"{operation} of {article.name} failed: {type(value).__name__}")
    info = demo_probe.fetch(app, result.id, INFO_S)
    if info is None:
        raise Failed(f"the worker did not say how {operation} of {article.name} went")
    return Measured(operation, article.name, seconds, value, info)


if __name__ == "__main__":
    sys.exit(main())
