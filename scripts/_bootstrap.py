"""
The way into this checkout's environments, with nothing but Python and its pip.

In: the name of a lock in requirements/ and arguments for Python.   Out: this process becomes that environment's Python.

An environment is a venv in `.env-<name>-<version>`, made by the first run and again whenever its marker, a digest of
all that it was made from, no longer fits. It holds exactly what the lock names, by hash, from wheels only.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from subprocess import DEVNULL
from typing import NoReturn

ROOT = Path(__file__).resolve().parent.parent
MARKER = "made-from"
LOG = "install.log"
CALLERS_PATH = "AICACHE_CALLERS_PATH"
"""Holds the caller's PYTHONPATH, which the environment itself does not follow: it would shadow what the lock names."""
CALLERS_FOLDER = "AICACHE_CALLERS_FOLDER"
"""Holds where the caller stands: the relative paths that he gives are meant from there."""
FOREIGN = ("PYTHONHOME", "PYTHONPATH", "PIP_USER", "PIP_TARGET", "PIP_PREFIX", "PIP_CONSTRAINT")
CAUSES = (
    (r"Retry\(total=0", "the package index cannot be reached"),  # pip goes on, and says that there is no such package
    (r"No matching distribution found for (\S+)", "no wheel of {0} for {platform}"),
    (r"DO NOT MATCH THE HASHES", "a downloaded package is not the one that the lock names; nothing was installed"),
    (r"No space left on device", "the disk is full"),
    (r"ensurepip is not available", "this Python cannot make environments; on Debian: apt install python3-venv"),
    (r"NewConnectionError|NameResolutionError|Retrying \(", "the package index cannot be reached"),
)
PASSING = re.compile(
    r"Retrying \(|Could not fetch URL|HTTP error (?:429|5)|imed out|IncompleteRead|Connection broken|NOT MATCH THE HASH"
)
"""In pip's log where the index, or the way to it, failed: another attempt may do better, and pip keeps what it has."""
SILENT = re.compile(r"Retry\(total=0.*ConnectTimeoutError")
"""There too, where the index let all six of pip's connections time out, for minutes: a firewall drops them."""
PAUSES_S = (5.0, 30.0)
"""Before each other attempt."""
SLOW_INDEX = {"PIP_DEFAULT_TIMEOUT": "60"}
"""Instead of 15 s, or what pip.conf says; the caller's variable goes before it. A mirror may have to fetch a package
before it sends any of it."""


class Failure(Exception):  # noqa: N818 - names an event
    """One line that says what went wrong and what to do about it."""


def enter(name: str, *arguments: str) -> NoReturn:
    """Become the Python of environment *name*, in the checkout's folder. Does not return."""
    folder, environ = ready(name)
    python = str(folder / "python")
    path = [str(Path(part).resolve()) for part in os.environ.get("PYTHONPATH", "").split(os.pathsep) if part]
    called = {CALLERS_PATH: os.pathsep.join(path), CALLERS_FOLDER: str(Path.cwd())}
    os.chdir(ROOT)
    os.execve(python, [python, *arguments], environ | called)


def ready(name: str) -> tuple[Path, dict[str, str]]:
    """Make environment *name* if it must be; return its folder of commands and the variables to run them with."""
    place = _place(name)
    environ = {variable: value for variable, value in os.environ.items() if variable not in FOREIGN}
    try:
        _make(name, place, environ)
    except Failure as failure:
        sys.exit(f"{_command()}: {failure}")
    except KeyboardInterrupt:
        _say(f"\n{_command()}: stopped before the environment was complete; the same command starts over\n")
        sys.exit(130)
    except PermissionError as error:
        sys.exit(f"{_command()}: {error.filename} cannot be written; run it in a clone that belongs to you")
    folder = place / "bin"
    path = f"{folder}{os.pathsep}{environ.get('PATH', os.defpath)}"
    return folder, environ | {"VIRTUAL_ENV": str(place), "PATH": path}


def _command() -> str:
    return f"scripts/{Path(sys.argv[0]).name}"


def _place(name: str) -> Path:
    """Return the folder of the environment: in the checkout, or one per checkout in ``$AICACHE_ENV_DIR``."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    if parent := os.environ.get("AICACHE_ENV_DIR"):
        return Path(parent).resolve() / f"env-{name}-{version}-{hashlib.sha256(bytes(ROOT)).hexdigest()[:8]}"
    return ROOT / f".env-{name}-{version}"


def _make(name: str, place: Path, environ: dict[str, str]) -> None:
    lock = ROOT / "requirements" / f"{name}.lock"
    wanted = _digest(lock, place)
    if _found(place) == wanted:
        return
    with _alone():
        if _found(place) == wanted:
            return
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        _install(lock, place, _pip_environ(environ))
        (place / MARKER).write_text(wanted)


def _digest(lock: Path, place: Path) -> str:
    """Digest of what an environment is made from; other tools' settings in pyproject.toml do not count."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    built = [project["build-system"], project["project"], project["tool"]["setuptools"]]
    return hashlib.sha256(repr([sys.version, str(place), built, lock.read_text()]).encode()).hexdigest()


def _found(place: Path) -> str:
    try:
        return (place / MARKER).read_text()
    except FileNotFoundError:
        return ""


@contextmanager
def _alone() -> Iterator[None]:
    """One installation at a time per checkout; the lock goes with the last process that has it."""
    folder = os.open(ROOT, os.O_RDONLY)
    os.set_inheritable(folder, True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _say("waiting for another command that is installing in this checkout\n")
            fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _pip_environ(environ: dict[str, str]) -> dict[str, str]:
    """pip asks nothing, and downloads are kept in the checkout: HOME may be empty, read-only or another's."""
    quiet = {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INPUT": "1", "PIP_ROOT_USER_ACTION": "ignore"}
    # In the place of PIP_CACHE_DIR: ensurepip drops all PIP_ variables.
    return {**SLOW_INDEX, **environ, **quiet, "XDG_CACHE_HOME": str(ROOT / ".cache")}


def _install(lock: Path, place: Path, environ: dict[str, str]) -> None:
    packages = sum("==" in line for line in lock.read_text().splitlines())
    began = time.monotonic()
    _say(f"installing up to {packages} packages into {place.name} (once) ... ")
    pip = [str(place / "bin" / "python"), "-m", "pip", "install", "--no-deps"]
    _run([sys.executable, "-m", "venv", str(place)], place, environ)
    _run([*pip, "--require-hashes", "--only-binary=:all:", "-r", str(lock)], place, environ, PAUSES_S)
    _run([*pip, "--no-build-isolation", "--no-index", "-e", str(ROOT)], place, environ)
    _say(f"{time.monotonic() - began:.0f} s\n")


def _run(command: list[str], place: Path, environ: dict[str, str], pauses_s: Sequence[float] = ()) -> None:
    """Run *command*; again after each of *pauses_s* while the index, or the way to it, fails."""
    for pause_s in (*pauses_s, None):
        log = _said(command, place, environ)
        if log is None:
            return
        if pause_s is None or not PASSING.search(log) or SILENT.search(log):
            break
        _say(f"{_cause(log)}; once more in {pause_s:.0f} s ... ")
        time.sleep(pause_s)
    _say("failed\n")
    raise Failure(f"{_cause(log)} (all of it: {place / LOG})")


def _said(command: list[str], place: Path, environ: dict[str, str]) -> str | None:
    """Run *command*; return None if it did what it should, else what it wrote."""
    with (place / LOG).open("ab") as output:
        before = output.tell()
        # The lock's descriptor goes to the child: if we are killed, the next command waits for the child.
        done = subprocess.run(
            command, env=environ, cwd=place, check=False, close_fds=False, stdin=DEVNULL, stdout=output, stderr=output
        )
    return None if done.returncode == 0 else (place / LOG).read_bytes()[before:].decode(errors="replace")


def _cause(log: str) -> str:
    system = os.uname()
    platform = f"{system.sysname} {system.machine}, Python {sys.version_info.major}.{sys.version_info.minor}"
    for pattern, cause in CAUSES:
        if found := re.search(pattern, log):
            return cause.format(*found.groups(), platform=platform)
    return "the installation failed"


def _say(text: str) -> None:
    print(text, end="", file=sys.stderr, flush=True)
