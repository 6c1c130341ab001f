"""
Row 3: how many hits does one worker process get through, next to a stock task that takes and returns the same?

    python -m benchmarks.worker

A real prefork worker with one child. A batch of messages is sent once and kept; each round puts a whole batch into
the worker's queue at once and waits for its last result, so that the sender's own work is not in the figure. What the
child spends on a task is what the kernel counted for it. A third task looks its answer up by hand in its body, as the
floor of benchmarks/hit.py does: that tells how fast the machine is. Broker, results and cache are one server.
"""  # fmt: skip

from __future__ import annotations

import contextlib
import cProfile
import functools
import importlib
import io
import os
import pstats
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from celery import Celery, signals

from aicache_tasks import CachedTask, CachePolicy, install
from aicache_tasks.testing import EmbeddedServer
from benchmarks import _run
from benchmarks import hit as hit_benchmark
from benchmarks._run import ANSWER, PROMPT, Contender, Options, Row, Spent, Taken

TARGET = 0.9
CHILD_TARGET_US = 100.0
SERVER = "AICACHE_BENCHMARK_SERVER"
PROFILE = "AICACHE_BENCHMARK_PROFILE"
QUEUE = "celery"
START_S = 30.0
RESULT_S = 60.0

server_url = os.environ.get(SERVER, "memory:///0").removesuffix("/0")
app = Celery("worker", broker=f"{server_url}/0", backend=f"{server_url}/1", set_as_current=False)
app.conf.update(aicache_url=f"{server_url}/2", aicache_l1_entries=0, worker_hijack_root_logger=False)
install(app)


@app.task(base=CachedTask, cache=CachePolicy(operation="summarize"), name="hit", shared=False)
def hit(text: str, *, max_length: int = 100) -> Any:
    """Return the answer, in practice from the cache."""
    return ANSWER


@app.task(name="no-op", shared=False)
def no_op(text: str, *, max_length: int = 100) -> Any:
    """Return the answer."""
    return ANSWER


@app.task(name="by hand", shared=False)
def by_hand(text: str, *, max_length: int = 100) -> Any:
    """Return the answer as benchmarks/hit.py's floor reads it."""
    return _floor()()


@functools.cache
def _floor() -> Callable[[], Any]:
    return hit_benchmark.floor(f"{server_url}/2")


def measure(options: Options) -> list[Row]:
    """Return row 3 in each mode, each with a server and a worker of its own."""
    rows: list[Row] = []
    for mode in options.modes:
        with EmbeddedServer() as server, _worker(server.url) as worker:
            batches = Batches(server, worker, no_op.name, hit.name, by_hand.name)
            with _run.pinned(mode, server.pid, peers=[worker, batches.child]):
                rows += _rows(_run.interleave(batches.contenders, options, f"worker, {mode}"), mode)
    if short := [row for row in rows if row.met is False]:
        short[-1].profile = _profile_of_hits(options.calls)
    return rows


def _profile_of_hits(calls: int) -> str:
    """Return where a child spends its time on hits: a worker of its own runs batches under cProfile until it stops."""
    with tempfile.TemporaryDirectory() as folder, EmbeddedServer() as server:
        written = Path(folder, "profile")
        with _worker(server.url, {PROFILE: str(written)}) as worker:
            run = Batches(server, worker, hit.name).contenders[hit.name]
            for _ in range(10):
                run(calls)
        text = io.StringIO()
        pstats.Stats(str(written), stream=text).sort_stats("tottime").print_stats(25)
    return "\n".join(line for line in text.getvalue().splitlines() if line.strip())


_profile = cProfile.Profile()


@signals.worker_process_init.connect
def _begin_profile(**_: Any) -> None:
    if PROFILE in os.environ:
        _profile.enable()


@signals.worker_process_shutdown.connect
def _end_profile(**_: Any) -> None:
    if PROFILE in os.environ:
        _profile.disable()
        _profile.dump_stats(os.environ[PROFILE])


def _rows(taken: Taken, mode: str) -> list[Row]:
    speed = _run.ratio(taken.wall["no-op"], taken.wall["hit"])
    ours, by_hand_us = (_run.less(taken.cpu[name], taken.cpu["no-op"]) for name in ("hit", "by hand"))
    a_second = {f"{name}, tasks/s": round(1e6 / took, 1) for name, took in _run.medians(taken.wall).items()}
    child = {f"{name}, child µs": took for name, took in _run.medians(taken.cpu).items()}
    return [
        Row(3, "tasks/s of hits / of no-ops", mode, "×", *speed, TARGET, at_least=True, detail=a_second),
        Row(3, "child's CPU, hit minus no-op", mode, "µs", *_run.interval(ours), CHILD_TARGET_US, detail=child),
        Row(0, "child's CPU, look-up by hand minus no-op", mode, "µs", *_run.interval(by_hand_us)),
    ]


class Batches:
    """Messages of each task, ready to be put into the queue.

    Args:
        server: broker and results.
        worker: process id of the worker.
        names: of the tasks.
    """

    def __init__(self, server: EmbeddedServer, worker: int, *names: str) -> None:
        self._broker, self._results = server.client(), _database(server, 1)
        self._messages: dict[tuple[str, int], tuple[list[bytes], str]] = {}
        for name in names:
            assert self._app(server).send_task(name, (PROMPT,)).get(RESULT_S) == ANSWER, name
        self.child = _children(worker)[0]
        self._sender = self._app(server)
        self.contenders: dict[str, Contender] = {name: self._contender(name) for name in names}

    @staticmethod
    def _app(server: EmbeddedServer) -> Celery:
        base = server.url.removesuffix("/0")
        return Celery("sender", broker=f"{base}/0", backend=f"{base}/1", set_as_current=False)

    def _contender(self, name: str) -> Contender:
        def run(calls: int) -> Spent:
            messages, last = self._batch(name, calls)
            self._results.flushdb()
            with self._results.pubsub(ignore_subscribe_messages=True) as results:
                results.subscribe(f"celery-task-meta-{last}")
                results.get_message(timeout=1.0)
                began, cpu_ns = time.perf_counter_ns(), _cpu_ns(self.child)
                self._broker.lpush(QUEUE, *messages)
                _await_message(results)
                return Spent(time.perf_counter_ns() - began, _cpu_ns(self.child) - cpu_ns)

        return run

    def _batch(self, name: str, size: int) -> tuple[list[bytes], str]:
        """Return the messages of *size* tasks in the order for LPUSH, and the id of the last one to run."""
        if (name, size) not in self._messages:
            elsewhere = "benchmark-batch"
            sent = [self._sender.send_task(name, (PROMPT,), queue=elsewhere) for _ in range(size)]
            messages = self._broker.lrange(elsewhere, 0, -1)
            self._broker.delete(elsewhere)
            self._messages[name, size] = messages[::-1], sent[-1].id
        return self._messages[name, size]


def _await_message(results: Any) -> None:
    deadline = time.monotonic() + RESULT_S
    while results.get_message(timeout=1.0) is None:
        if time.monotonic() > deadline:
            raise SystemExit("the worker did not finish its batch")


def _database(server: EmbeddedServer, number: int) -> Any:
    redis: Any = importlib.import_module("redis")
    return redis.Redis.from_url(server.url.removesuffix("/0") + f"/{number}", protocol=2)


@contextlib.contextmanager
def _worker(url: str, extra: Mapping[str, str] | None = None) -> Iterator[int]:
    """Run a prefork worker with one child, and yield its process id."""
    command = [sys.executable, "-m", "celery", "-A", "benchmarks.worker", "worker", "-P", "prefork", "-c", "1"]
    quiet = ["--without-gossip", "--without-mingle", "--without-heartbeat", "-l", "error"]
    environ = {**os.environ, SERVER: url, "PYTHONWARNINGS": "ignore", "PYTHONPATH": os.pathsep.join(["", *sys.path])}
    environ |= extra or {}
    root = Path(__file__).parent.parent
    process = subprocess.Popen([*command, *quiet], env=environ, cwd=root, stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + START_S
        while not _children(process.pid) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        yield process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _children(pid: int) -> list[int]:
    with contextlib.suppress(OSError):
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def _cpu_ns(pid: int) -> int:
    """Return the CPU time of a process with one thread: to the ns, or to the clock tick on older kernels."""
    with contextlib.suppress(OSError):
        return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0])
    user, system = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) * 1_000_000_000 // os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    _run.main(measure, rounds=30, calls=100)
