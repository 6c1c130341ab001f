"""
The engines by name, loaded when the first task needs one.

In: a name, or the dotted path ``package.module:factory`` of your own.   Out: an `Engine`.

An engine is loaded in the process that runs the task, never before a fork: threads of a model's runtime do not
survive one.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from importlib import import_module
from types import MappingProxyType
from typing import Final

from aicache_tasks.errors import SettingsError
from workers.engines.base import Engine

ENGINES: Final[Mapping[str, str]] = MappingProxyType({"extractive": "workers.engines.extractive:ExtractiveEngine"})
ENGINE_VARIABLE: Final = "AICACHE_ENGINE"
DEFAULT_ENGINE: Final = "extractive"


def current_engine() -> Engine:
    """Return the engine that the environment names; one per process and name.

    Raises:
        SettingsError: there is no such engine.
        MissingExtraError: a package that it needs is not installed.
    """
    return load_engine(os.environ.get(ENGINE_VARIABLE) or DEFAULT_ENGINE)


@functools.lru_cache(maxsize=8)
def load_engine(name: str) -> Engine:
    """Return the engine called *name*; the same object for the same name.

    Args:
        name: one of `ENGINES`, or ``package.module:factory``, where the factory takes nothing.

    Raises:
        SettingsError: there is no such engine.
        MissingExtraError: a package that it needs is not installed.

    >>> load_engine("abacus")
    Traceback (most recent call last):
        ...
    aicache_tasks.errors.SettingsError: AICACHE_ENGINE: no engine 'abacus'; known: extractive, package.module:factory
    """
    path = ENGINES.get(name, name)
    if ":" not in path:
        raise SettingsError(_unknown(name))
    module, _, factory = path.partition(":")
    try:
        make = getattr(import_module(module), factory)
    except (ModuleNotFoundError, AttributeError, ValueError) as error:
        raise SettingsError(f"{_unknown(name)} ({type(error).__name__})") from error
    engine: Engine = make()
    return engine


def _unknown(name: str) -> str:
    return f"{ENGINE_VARIABLE}: no engine {name!r}; known: {', '.join(ENGINES)}, package.module:factory"
