"""
A compressed, timed Redis cache for Celery tasks that run AI operations.

The public names, in one list. Those that need Celery or Redis load when they are first touched.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from aicache_tasks.beat import alert_changed
    from aicache_tasks.cache import AIResponseCache
    from aicache_tasks.errors import (
        AICacheError,
        BreakerOpen,
        CorruptPayload,
        DirectiveError,
        KeyEncodingError,
        MissingExtraError,
        NotCached,
        NotStorable,
        PayloadError,
        SettingsError,
        StoreError,
        StoreRefused,
        StoreUnavailable,
        UnknownPayload,
    )
    from aicache_tasks.installation import install
    from aicache_tasks.keys import CacheKeyGenerator, register_encoder
    from aicache_tasks.monitor import CachePerformanceMonitor
    from aicache_tasks.policy import CachePolicy
    from aicache_tasks.records import MISS, CacheEntry, CallInfo
    from aicache_tasks.settings import Settings
    from aicache_tasks.task import CachedTask
    from aicache_tasks.work import annotate

__version__: Final = "0.1.0"

_HOMES: Final = {
    "AIResponseCache": "cache",
    "CacheEntry": "records",
    "CacheKeyGenerator": "keys",
    "CachePerformanceMonitor": "monitor",
    "CachePolicy": "policy",
    "CachedTask": "task",
    "CallInfo": "records",
    "MISS": "records",
    "Settings": "settings",
    "alert_changed": "beat",
    "annotate": "work",
    "install": "installation",
    "register_encoder": "keys",
    "AICacheError": "errors",
    "BreakerOpen": "errors",
    "CorruptPayload": "errors",
    "DirectiveError": "errors",
    "KeyEncodingError": "errors",
    "MissingExtraError": "errors",
    "NotCached": "errors",
    "NotStorable": "errors",
    "PayloadError": "errors",
    "SettingsError": "errors",
    "StoreError": "errors",
    "StoreRefused": "errors",
    "StoreUnavailable": "errors",
    "UnknownPayload": "errors",
}

__all__ = [
    "MISS",
    "AICacheError",
    "AIResponseCache",
    "BreakerOpen",
    "CacheEntry",
    "CacheKeyGenerator",
    "CachePerformanceMonitor",
    "CachePolicy",
    "CachedTask",
    "CallInfo",
    "CorruptPayload",
    "DirectiveError",
    "KeyEncodingError",
    "MissingExtraError",
    "NotCached",
    "NotStorable",
    "PayloadError",
    "Settings",
    "SettingsError",
    "StoreError",
    "StoreRefused",
    "StoreUnavailable",
    "UnknownPayload",
    "alert_changed",
    "annotate",
    "install",
    "register_encoder",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
