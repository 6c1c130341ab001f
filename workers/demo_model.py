"""
The demo's language model: which engine there can be here, and the server that one of them needs.

In: the command line's options.   Out: the engine's name; a running `aicache-llm` and the variables that name it.
"""

from __future__ import annotations

import importlib.util
import platform
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from aicache_tasks.errors import SettingsError
from workers.demo_checks import Unusable, check_packages
from workers.engines import ENGINES
from workers.engines.local import MODEL_VARIABLE, URL_VARIABLE
from workers.engines.openai_settings import PREFIX, settings_from
from workers.llm import Unusable as NoModel
from workers.llm import check_model, named_model, packaged_model
from workers.supervisor import Child, ChildFailed, Supervisor

LOCAL: Final = "local"
OPENAI: Final = "openai"
WITHOUT: Final = "extractive"
PACKAGES: Final = ("xllamacpp", "openai")
OPENAI_PACKAGES: Final = ("openai",)
KEY_FILE: Final = f"{PREFIX}API_KEY_FILE"
CALLERS_FOLDER: Final = "AICACHE_CALLERS_FOLDER"
"""Where `scripts/demo` leaves the folder that it was called in."""
LOAD_S: Final = 300.0
"""For the largest of files from the slowest of disks: the small one takes a second."""
CANNOT_BEGIN: Final = 2
"""The exit code of `aicache-llm` when its log says why."""


class Served(NamedTuple):
    """Where the model is, and its name."""

    url: str
    model: str

    def variables(self) -> dict[str, str]:
        """Return what the engine is told."""
        return {URL_VARIABLE: self.url, MODEL_VARIABLE: self.model}


def callers_file(path: str, environ: Mapping[str, str]) -> str:
    """Return *path* as it is meant where the demo was called; the demo itself runs in the checkout.

    >>> callers_file("m.gguf", {"AICACHE_CALLERS_FOLDER": "/home/ann"}), callers_file("~/m.gguf", {})
    ('/home/ann/m.gguf', '~/m.gguf')
    """
    return path if not path or path.startswith("~") else str(Path(environ.get(CALLERS_FOLDER, ""), path))


def with_callers_files(environ: Mapping[str, str]) -> dict[str, str]:
    """Return *environ*, where the file of the key is named as it is found from here."""
    return {n: callers_file(value.strip(), environ) if n == KEY_FILE else value for n, value in environ.items()}


def choose_engine(wanted: str | None, model: str | None, environ: Mapping[str, str]) -> str:
    """Return the engine's name: the one that was asked for, or the best there is.

    Raises:
        Unusable: there is no such engine, or a model was given to another one, or is none, or what *environ* says of
            the server to ask is wrong.
        MissingExtraError: the engine was asked for, and its packages are not installed.
    """
    if wanted is not None and ":" not in wanted and wanted not in ENGINES:
        raise Unusable(f"--engine: no engine {wanted!r}; known: {', '.join(ENGINES)}, package.module:factory")
    if model is not None and wanted not in (None, LOCAL):
        raise Unusable(f"--model is for the engine {LOCAL}, not for {wanted}")
    if wanted is None and model is None and not is_complete():
        system = f"{platform.system()} {platform.machine()}"
        print(f"no language model for {system} is installed: the engine {WITHOUT} answers instead", file=sys.stderr)
        return WITHOUT
    if wanted in (None, LOCAL):
        check_packages(PACKAGES, LOCAL)
        check_file(model)
        return LOCAL
    if wanted == OPENAI:
        check_packages(OPENAI_PACKAGES, OPENAI)
        check_settings(environ)
    return wanted


def check_settings(environ: Mapping[str, str]) -> None:
    """Return if a server can be asked with what *environ* says.

    Raises:
        Unusable: a variable is wrong or missing, or there is no key.
    """
    try:
        settings_from(with_callers_files(environ)).read_key()
    except SettingsError as error:
        raise Unusable(str(error)) from None


def is_complete() -> bool:
    """Return whether all that the local engine needs is installed; not every system has it."""
    return packaged_model() is not None and all(importlib.util.find_spec(package) for package in PACKAGES)


def check_file(model: str | None) -> None:
    """Return if there is a model to load.

    Raises:
        Unusable: there is none, or it is something else.
    """
    if model == "":
        raise Unusable("--model: name a GGUF file, or leave it out")
    try:
        path = named_model(model) if model else packaged_model()
        if path is None:
            raise Unusable("no model is installed; give --model a GGUF file")
        check_model(path)
    except NoModel as error:
        raise Unusable(str(error)) from None


def start_model(supervisor: Supervisor, model: str | None, environ: Mapping[str, str]) -> Served:
    """Start the model's server, which the supervisor ends; return when it listens.

    Raises:
        Unusable: it says that it cannot begin.
        ChildFailed: it ended, or did not listen in time; the message names its log.
    """
    command = [sys.executable, "-m", "workers.llm", *([] if model is None else ["--model", model])]
    child = supervisor.start("llm", command, environ=environ, grace_s=2.0)
    try:
        supervisor.wait_until(lambda: listening(child.log) is not None, within_s=LOAD_S, child=child)
    except ChildFailed:
        if child.process.poll() != CANNOT_BEGIN:
            raise
        supervisor.keep_logs = False  # we show what is in it
        raise Unusable(refusal(child, command)) from None
    served = listening(child.log)
    assert served is not None
    return served


def refusal(child: Child, command: Sequence[str]) -> str:
    """Return the last line that *child* wrote, and how to have more of it."""
    said = child.log.read_text(errors="replace").strip().rpartition("\n")[2]
    return f"{said} (the command: {shlex.join([*command, '--verbose'])})"


def listening(log: Path) -> Served | None:
    """Return what the server wrote when it listened, None if it has not yet."""
    for line in log.read_text(errors="replace").splitlines(keepends=True):
        if line.startswith("http") and line.endswith("\n"):
            return Served(*line.split()[:2])
    return None
