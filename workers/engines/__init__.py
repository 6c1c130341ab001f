"""
The engines by name, loaded when the first task needs one.

In: a name, or the dotted path ``package.module:factory`` of your own.   Out: an `Engine`.

An engine is loaded in the process that runs the task, never before a fork: threads of a model's runtime do not
survive one.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping
from importlib import import_module
from types import MappingProxyType
from typing import Any, Final

from aicache_tasks.errors import SettingsError
from workers.engines.base import Engine

ENGINES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "extractive": "workers.engines.extractive:ExtractiveEngine",
        "local": "workers.engines.local:make_engine",
        "openai": "workers.engines.openai:from_environment",
    }
)
ENGINE_VARIABLE: Final = "AICACHE_ENGINE"
DEFAULT_ENGINE: Final = "extractive"


def current_engine() -> Engine:
    """Return the engine that the environment names; one per process and name.

    Raises:
        SettingsError, MissingExtraError: as `load_engine`.
    """
    return load_engine(os.environ.get(ENGINE_VARIABLE) or DEFAULT_ENGINE)


@functools.lru_cache(maxsize=8)
def load_engine(name: str) -> Engine:
    """Return the engine called *name*; the same object for the same name.

    Args:
        name: one of `ENGINES`, or ``package.module:factory``, where the factory takes nothing.

    Raises:
        SettingsError: there is no such engine, or what the factory gave is none.
        MissingExtraError: a package that it needs is not installed.

    >>> load_engine("abacus")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    aicache_tasks.errors.SettingsError: AICACHE_ENGINE: no engine 'abacus'; known: extractive, local, openai, pa...
    """
    module, _, factory = ENGINES.get(name, name).partition(":")
    if not module or not factory:
        raise SettingsError(_unknown(name))
    engine = _factory(name, module, factory)()
    if not _is_engine(engine):
        raise SettingsError(
            f"{ENGINE_VARIABLE}: {name!r} gave no engine but {type(engine).__name__}; an engine has the texts name and "
            "model, the mapping sampling and the method complete"
        )
    made: Engine = engine
    return made


def _factory(name: str, module: str, factory: str) -> Callable[[], Any]:
    try:
        found = getattr(import_module(module), factory, None)
    except ModuleNotFoundError as error:
        raise SettingsError(f"{_unknown(name)} ({error})") from error
    if not callable(found):
        raise SettingsError(f"{_unknown(name)} ({module} has no function or class {factory!r})")
    made: Callable[[], Any] = found
    return made


def _is_engine(made: Any) -> bool:
    texts = (getattr(made, "name", None), getattr(made, "model", None))
    return (
        all(isinstance(text, str) for text in texts)
        and isinstance(getattr(made, "sampling", None), Mapping)
        and callable(getattr(made, "complete", None))
    )


def _unknown(name: str) -> str:
    return f"{ENGINE_VARIABLE}: no engine {name!r}; known: {', '.join(ENGINES)}, package.module:factory"
