"""A real model server for tests."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

COMMAND = (sys.executable, "-m", "workers.llm")


class Running(NamedTuple):
    """A model server that listens."""

    process: subprocess.Popen[str]
    line: str

    @property
    def url(self) -> str:
        return self.line.split()[0]

    @property
    def model(self) -> str:
        return self.line.split()[1]


@contextmanager
def model_server(*options: str, **environ: str) -> Iterator[Running]:
    """Give a server with one thread; end it."""
    command = [*COMMAND, "--threads", "1", *options]
    process = subprocess.Popen(command, env=os.environ | environ, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield Running(process, process.stdout.readline())
    finally:
        process.kill()
        process.communicate()
