"""
Children that never outlive their parent.

In: commands.   Out: running processes, each with its log; afterwards none of them, and no folder, however it ended.

Three nets, each for what the one before it misses. A signal (Ctrl-C, SIGTERM, SIGHUP) ends the children in reverse
order. The kernel ends them when the supervisor is killed (Linux). `workers.watcher` ends them when the kernel does
not, and removes the folder. Children are sessions of their own, so that Ctrl-C in a terminal reaches only the
supervisor, which knows the order.
"""

from __future__ import annotations

import ctypes
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import Self

from workers import watcher

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
POLL_S = 0.05
PR_SET_PDEATHSIG = 1
"""From `linux/prctl.h`: the signal to get when the parent dies."""


class Stopped(Exception):  # noqa: N818 - names an event
    """A signal asked for the end; ``exit_code`` is what a shell expects: 128 and the signal's number."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number


class ChildFailed(Exception):  # noqa: N818 - names an event
    """A child ended when it should not have, or was not ready in time. The message names its log."""


@dataclass(frozen=True)
class Child:
    """One process and where it writes; ``grace_s`` is how long it may take to end by itself."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path
    grace_s: float


class Supervisor:
    """Use it in a ``with``, in the main thread: it owns the stop signals and a temporary folder until the end.

    Set ``keep_logs`` to have the logs stay in the folder; it is set when a child fails.

    Args:
        prefix: start of the name of the temporary folder.
    """

    def __init__(self, prefix: str = "aicache-demo-") -> None:
        self.folder = Path(tempfile.mkdtemp(prefix=prefix))
        self.keep_logs = False
        self._children: list[Child] = []
        self._adopted: list[Callable[[], None]] = []
        self._received = 0
        self._old_handlers = {number: signal.signal(number, self._note) for number in STOP_SIGNALS}
        self._wake_read, self._wake_write = _wake_pipe()
        self._watcher = _start_watcher(self.folder)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    def start(
        self,
        name: str,
        command: Sequence[str],
        *,
        environ: Mapping[str, str] | None = None,
        terminal: bool = False,
        grace_s: float = 6.0,
    ) -> Child:
        """Start a child and return it.

        Args:
            name: what messages and its log are called.
            command: program and arguments.
            environ: its environment; ours if None.
            terminal: let it write to our stdout and stderr instead of its log.
            grace_s: how long it may take to end after SIGTERM.

        Raises:
            Stopped: a stop signal came before.
        """
        self._raise_if_stopped()
        log = self.folder / f"{name}.log"
        with log.open("ab") as output:
            process = subprocess.Popen(
                command,
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=None if terminal else output,
                stderr=None if terminal else output,
                start_new_session=True,
                preexec_fn=_follow_parent(),  # noqa: PLW1509 - no thread lives in a supervisor
            )
        child = Child(name, process, log, grace_s)
        self._children.append(child)
        self._tell_watcher(str(process.pid))
        return child

    def adopt(self, pid: int, stop: Callable[[], None]) -> None:
        """Answer for a process that leads a session of its own and was started elsewhere.

        Args:
            pid: what the watcher ends if we cannot.
            stop: what ends it otherwise, after all children.
        """
        self._tell_watcher(str(pid))
        self._adopted.append(stop)

    def wait_until(self, ready: Callable[[], bool], *, within_s: float, child: Child) -> None:
        """Return when *ready* is true.

        Raises:
            ChildFailed: a child ended, or *child* was not ready *within_s* seconds.
            Stopped: a stop signal came.
        """
        deadline = time.monotonic() + within_s
        while not ready():
            self._look_around()
            if time.monotonic() > deadline:
                raise self._failure(child, f"was not ready within {within_s:g} s")
            self._pause()

    def wait_for(self, child: Child) -> int:
        """Return the exit code of *child* when it ends by itself.

        Raises:
            ChildFailed: another child ended first.
            Stopped: a stop signal came.
        """
        while (code := child.process.poll()) is None:
            self._look_around(but=child)
            self._pause()
        self._children.remove(child)
        return code

    def wait_for_signal(self) -> None:
        """Return never, but for `Stopped` or `ChildFailed`."""
        while True:
            self._look_around()
            self._pause()

    def stop(self) -> None:
        """End every child, the last one started first, then what was adopted; remove the folder.

        If a child failed, the logs stay.
        """
        for number in STOP_SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        for child in reversed(self._children):
            _end(child)
        for end in reversed(self._adopted):
            end()
        self._children.clear()
        self._adopted.clear()
        self._clear_folder()
        self._dismiss_watcher()
        signal.set_wakeup_fd(-1)
        os.close(self._wake_read)
        os.close(self._wake_write)
        for number, handler in self._old_handlers.items():
            signal.signal(number, handler)

    def _clear_folder(self) -> None:
        if not self.keep_logs:
            shutil.rmtree(self.folder, ignore_errors=True)
            return
        for path in self.folder.rglob("*"):
            if path.is_file() and path.suffix != ".log":
                path.unlink(missing_ok=True)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._received = self._received or number

    def _pause(self) -> None:
        if select.select([self._wake_read], [], [], POLL_S)[0]:
            os.read(self._wake_read, 64)

    def _look_around(self, but: Child | None = None) -> None:
        self._raise_if_stopped()
        for child in self._children:
            if child is not but and (code := child.process.poll()) is not None:
                raise self._failure(child, f"ended with code {code}")

    def _raise_if_stopped(self) -> None:
        if self._received:
            raise Stopped(self._received)

    def _failure(self, child: Child, what: str) -> ChildFailed:
        self.keep_logs = True
        return ChildFailed(f"{child.name} {what}; its log: {child.log}")

    def _tell_watcher(self, line: str) -> None:
        assert self._watcher.stdin is not None
        try:
            self._watcher.stdin.write(line.encode() + b"\n")
        except BrokenPipeError:  # somebody ended it: two nets are left
            return

    def _dismiss_watcher(self) -> None:
        self._tell_watcher("bye")
        assert self._watcher.stdin is not None
        self._watcher.stdin.close()
        self._watcher.wait()


def _wake_pipe() -> tuple[int, int]:
    """Make a pipe that gets a byte with every signal, so that a `select` on it returns at once."""
    read, write = os.pipe()
    os.set_blocking(read, False)
    os.set_blocking(write, False)
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    return read, write


def _start_watcher(folder: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, watcher.__file__, str(folder)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, bufsize=0, start_new_session=True)


def _follow_parent() -> Callable[[], None] | None:
    """Return what a child does before its program starts: ask the kernel for SIGTERM when its parent dies."""
    if sys.platform != "linux":
        return None
    parent, prctl = os.getpid(), ctypes.CDLL(None).prctl

    def follow() -> None:
        prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it died before the kernel was asked
            os._exit(1)

    return follow


def _end(child: Child) -> None:
    """End *child*: its first process decides how, what is left of its group after that is killed."""
    child.process.terminate()
    try:
        child.process.wait(child.grace_s)
    except subprocess.TimeoutExpired:
        watcher.signal_group(child.process.pid, signal.SIGKILL)
        child.process.wait()
    watcher.signal_group(child.process.pid, signal.SIGKILL)
