"""Flower as people start it, in a process of its own, and requests to it."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tests.faults import eventually, free_port

ROOT = Path(__file__).resolve().parent.parent
USER, PASSWORD = "ann", "s3cret"
LOGIN = {"Authorization": "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()}


class Reply(NamedTuple):
    """What Flower answered."""

    status: int
    headers: Any
    text: str

    @property
    def json(self) -> Any:
        return json.loads(self.text)


class FlowerProcess:
    """A running Flower.

    Args:
        folder: for its log.
        options: of the command, beside address, port and configuration.
        conf: path of the configuration file.
        environ: on top of this process's.
        prefix: its url_prefix, with a slash before it.
        app: what ``-A`` names.
    """

    def __init__(
        self,
        folder: Path,
        conf: Path,
        *options: str,
        environ: Mapping[str, str],
        prefix: str = "",
        app: str = "tests.flower_app",
    ) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}{prefix}"
        self.log = folder / f"flower-{self.port}.log"
        given = [f"--conf={conf}", f"--port={self.port}", "--address=127.0.0.1", *options]
        if prefix:
            given.append(f"--url_prefix={prefix.strip('/')}")
        mine = {name: value for name, value in os.environ.items() if not name.startswith(("AICACHE_", "FLOWER_"))}
        with self.log.open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "celery", "-A", app, "flower", *given],
                cwd=ROOT,
                env=mine | {"PYTHONPATH": str(ROOT)} | dict(environ),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )

    def wait(self) -> FlowerProcess:
        """Wait until it answers."""
        eventually(self._answers, within_s=120)
        return self

    def end(self) -> None:
        """Ask it to end; `stop` waits for that."""
        self._process.terminate()

    def stop(self) -> None:
        self.end()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def get(self, path: str, headers: Mapping[str, str] = LOGIN, data: bytes | None = None) -> Reply:
        """Return the answer to a request: a POST if there is *data*."""
        request = urllib.request.Request(self.url + path, data, dict(headers))
        try:
            with urllib.request.urlopen(request, timeout=20) as reply:
                return Reply(reply.status, reply.headers, reply.read().decode("utf-8", "replace"))
        except urllib.error.HTTPError as error:
            with error:
                return Reply(error.code, error.headers, error.read().decode("utf-8", "replace"))

    def _answers(self) -> bool:
        assert self._process.poll() is None, self.log.read_text()
        with contextlib.suppress(OSError):
            return self.get("/healthcheck").status == 200
        return False


@contextlib.contextmanager
def running(*processes: FlowerProcess) -> Iterator[None]:
    """Wait until all answer; stop them in the end."""
    try:
        for process in processes:
            process.wait()
        yield
    finally:
        for process in processes:
            process.end()
        for process in processes:
            process.stop()


def conf_of_the_package() -> Path:
    """Return the configuration file that ``python -m`` names."""
    command = [sys.executable, "-m", "aicache_tasks.reports.flower"]
    return Path(subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout.strip())
