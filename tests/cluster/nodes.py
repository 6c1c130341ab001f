"""
Processes that pytest-celery takes for containers, and a worker process for any test.

In: a Celery app's module and server URLs.   Out: `WorkerProcess`, and the nodes `WorkerNode` and `ServerNode`.

pytest-celery asks a container for a handful of names only, so that an object with these names and a process behind
it serves as well, with no container engine. On Linux a process ends with the thread that started it, so that nothing
is left over when the test run is killed.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import celery

from aicache_tasks.testing import EmbeddedServer

ROOT = Path(__file__).parents[2]
WAIT_S = 60.0
"""Far longer than anything takes: a machine under load must not fail a test."""

# The worker asks the kernel to end it with its starter.
LAUNCHER = """
import ctypes, signal, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
from celery.__main__ import main
sys.argv[0] = "celery"
sys.exit(main())
"""


def wait_until(condition: Callable[[], Any], timeout_s: float = WAIT_S, what: str = "condition") -> Any:
    """Return the first true value of *condition*.

    Raises:
        TimeoutError: there was none in *timeout_s*; says *what* was awaited.
    """
    deadline = time.monotonic() + timeout_s
    while not (found := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not in {timeout_s:g} s")
        time.sleep(0.02)
    return found


def is_running(pid: int) -> bool:
    """Return whether process *pid* is there and not a zombie."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def children_of(pid: int) -> list[int]:
    """Return the process ids of the running children of *pid*."""
    found: list[int] = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found += map(int, path.read_text().split())
        except (FileNotFoundError, ProcessLookupError):
            continue
    return [child for child in found if is_running(child)]


class WorkerProcess:
    """A ``celery worker`` in a process of its own, started by `start`.

    The URLs reach the app through the environment (``CELERY_BROKER_URL``, ``CELERY_RESULT_BACKEND``,
    ``AICACHE_URL``), so that the app's module need not know them. The repository and its ``tests`` are importable.

    Args:
        app_module: what ``celery -A`` takes.
        broker_url, backend_url, cache_url: servers; None leaves a variable as it is.
        pool, concurrency: ``-P`` and ``-c``.
        extra_args: more arguments of ``celery worker``.
        env: more environment variables; its ``PYTHONPATH`` goes in front.
        name: the node's name is ``<name>@<id>``.
    """

    def __init__(
        self,
        app_module: str,
        broker_url: str | None = None,
        backend_url: str | None = None,
        cache_url: str | None = None,
        pool: str = "prefork",
        concurrency: int = 2,
        extra_args: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        *,
        name: str = "worker",
    ) -> None:
        self.name, self.id = name, uuid.uuid4().hex[:12]
        urls = {"CELERY_BROKER_URL": broker_url, "CELERY_RESULT_BACKEND": backend_url, "AICACHE_URL": cache_url}
        self._env = _environment({key: url for key, url in urls.items() if url} | dict(env or {}))
        self._argv = _arguments(app_module, self.hostname, pool, concurrency, extra_args)
        self._log = tempfile.NamedTemporaryFile(prefix=f"{name}-", suffix=".log")  # noqa: SIM115 - closed by close()
        self._log_from = 0
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def hostname(self) -> str:
        """The worker's node name, as ``inspect`` shows it."""
        return f"{self.name}@{self.id}"

    @property
    def pid(self) -> int:
        """Process id of the worker's main process."""
        if self._process is None:
            raise RuntimeError(f"{self.hostname} was not started")
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether the main process is there."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> Self:
        """Start the process; `ready` waits for it."""
        if self.running:
            return self
        self._log_from = len(self.logs())
        self._process = subprocess.Popen(
            self._argv, env=self._env, stdout=self._log, stderr=subprocess.STDOUT, start_new_session=True, cwd=ROOT
        )
        return self

    def ready(self, timeout_s: float = WAIT_S) -> bool:
        """Wait until the worker takes calls and return True.

        Raises:
            RuntimeError: it ended instead; with its log.
            TimeoutError: it did neither in *timeout_s*.
        """
        wait_until(self._settled, timeout_s, f"{self.hostname} ready")
        if not self.running:
            raise RuntimeError(f"{self.hostname} ended with {self.returncode}:\n{self.logs()[self._log_from :]}")
        return True

    def _settled(self) -> bool:
        return f"{self.hostname} ready." in self.logs()[self._log_from :] or not self.running

    @property
    def returncode(self) -> int | None:
        """Exit code of the main process, negative for a signal, None while it runs."""
        return self._process.poll() if self._process else None

    def stop(self, timeout_s: float = WAIT_S) -> None:
        """Shut down warmly: running calls end, others stay in the queue."""
        self.kill(signal.SIGTERM, timeout_s=timeout_s)

    def kill(self, signum: int = signal.SIGKILL, *, timeout_s: float = WAIT_S) -> None:
        """Send *signum* to the main process and wait for its end; pool children end with it."""
        if self._process is None or not self.running:
            return
        children = self.child_pids()
        self._process.send_signal(signum)
        self._process.wait(timeout_s)
        wait_until(lambda: not any(map(is_running, children)), timeout_s, f"children of {self.hostname} gone")

    def child_pids(self) -> list[int]:
        """Return the process ids of the pool's children."""
        return children_of(self.pid) if self.running else []

    def logs(self) -> str:
        """Return what all starts of the process have written so far."""
        return Path(self._log.name).read_text(errors="replace")

    def close(self) -> None:
        """End the process at once and remove its log."""
        self.kill()
        self._log.close()


def _arguments(app_module: str, hostname: str, pool: str, concurrency: int, extra: Sequence[str]) -> list[str]:
    quick_start = ["--without-gossip", "--without-mingle", "--without-heartbeat"]
    worker = ["-A", app_module, "worker", "-n", hostname, "-P", pool, "-c", str(concurrency), "-l", "INFO"]
    return [sys.executable, "-c", LAUNCHER, *worker, *quick_start, *extra]


def _environment(given: Mapping[str, str]) -> dict[str, str]:
    paths = [given.get("PYTHONPATH"), str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH")]
    return {**os.environ, **given, "PYTHONPATH": os.pathsep.join(path for path in paths if path)}


class WorkerNode(WorkerProcess):
    """A `WorkerProcess` under the names that pytest-celery's `CeleryTestWorker` calls."""

    def __init__(self, *args: Any, queue: str, extra_args: Sequence[str] = (), **kwargs: Any) -> None:
        super().__init__(*args, extra_args=["-Q", f"celery,{queue}", *extra_args], **kwargs)
        self._queue = queue

    @property
    def status(self) -> str:
        return "running" if self.running else "exited"

    def reload(self) -> None:
        """Nothing to read anew: `status` looks at the process."""

    def restart(self, timeout: float = WAIT_S) -> None:
        self.stop(timeout)
        self.start().ready(timeout)

    def kill(self, signal: int | str = signal.SIGKILL, *, timeout_s: float = WAIT_S) -> None:  # type: ignore[override]
        super().kill(_signal_number(signal), timeout_s=timeout_s)

    def teardown(self) -> None:
        """Nodes live as long as the session; the session's fixture ends them."""

    def worker_name(self) -> str:
        return self.name

    def worker_queue(self) -> str:
        return self._queue

    def version(self) -> str:
        return celery.__version__

    def log_level(self) -> str:
        return "INFO"

    def exec_run(self, command: str) -> tuple[int, bytes]:
        done = subprocess.run(command, shell=True, env=self._env, cwd=ROOT, capture_output=True, check=False)
        return done.returncode, done.stdout


def _signal_number(name: int | str) -> int:
    return int(signal.Signals[name]) if isinstance(name, str) else int(name)


class ServerNode:
    """An embedded server under the names that pytest-celery's `CeleryTestBroker` and `CeleryTestBackend` call.

    Args:
        name: shown in messages.
        server: running; a restart keeps its address and, with ``appendonly``, its data.
    """

    def __init__(self, name: str, server: EmbeddedServer) -> None:
        self.name, self.id, self.server = name, uuid.uuid4().hex[:12], server
        self.status = "running"

    @property
    def celeryconfig(self) -> dict[str, str]:
        return {"url": self.server.url, "host_url": self.server.url}

    def ready(self) -> bool:
        return self.status == "running"

    def kill(self, signal: int | str = signal.SIGKILL) -> None:
        pid = self.server.pid
        os.kill(pid, _signal_number(signal))
        wait_until(lambda: not is_running(pid), what=f"the end of {self.name}")
        self.server.kill()  # reaps it
        self.status = "exited"

    def restart(self, timeout: float = WAIT_S) -> None:
        self.server.restart()
        self.status = "running"

    def reload(self) -> None:
        """Nothing to read anew: `status` follows `kill` and `restart`."""

    def logs(self) -> str:
        return (self.server.directory / "server.log").read_text(errors="replace")

    def teardown(self) -> None:
        """Nodes live as long as the session; the session's fixture ends them."""
