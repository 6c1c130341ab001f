"""``celery beat`` in a process of its own."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from tests.cluster.nodes import LAUNCHER, WorkerProcess


class BeatProcess(WorkerProcess):
    """A `WorkerProcess` that is a beat.

    Args:
        folder: where it keeps its schedule.
        extra_args: more arguments of ``celery beat``.
    """

    def __init__(
        self, app_module: str, *urls: str, folder: Path, extra_args: tuple[str, ...] = (), **given: Any
    ) -> None:
        super().__init__(app_module, *urls, **given)
        schedule = folder / f"{self.hostname}.schedule"
        beat = ["-A", app_module, "beat", "-l", "INFO", "--pidfile=", f"--schedule={schedule}", *extra_args]
        self._argv = [sys.executable, "-c", LAUNCHER, *beat]

    def _settled(self) -> bool:
        return "beat: Starting..." in self.logs()[self._log_from :] or not self.running
