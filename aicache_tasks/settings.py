"""
Settings: what `app.conf` and the environment say, checked once.

In: a mapping with ``aicache_*`` names (any case, namespaced or not) and the environment.   Out: a frozen `Settings`.

The environment wins over `app.conf`: an operator's ``AICACHE_DISABLED=1`` must not need a deploy.
"""

from __future__ import annotations

import difflib
import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import lru_cache
from typing import Any, Final, Self
from urllib.parse import urlsplit

from aicache_tasks import checks
from aicache_tasks.checks import OPERATION_TTLS_S, TEXT_TIERS, URL_SCHEMES
from aicache_tasks.durations import show_duration
from aicache_tasks.errors import SettingsError
from aicache_tasks.prices import Prices
from aicache_tasks.prices import parse as parse_prices

PREFIX: Final = "aicache_"
MASK: Final = "********"
DEFAULT_TTL_S: Final = 3600.0

log = logging.getLogger("aicache_tasks")

_ZLIB_MAX_LEVEL = 9
_ENV_PREFIX = "AICACHE_"
_INVALIDATIONS_S = 3600
_RISING = (
    ("breaker_min_s", "breaker_max_s", "waits only grow"),
    ("memory_warning_bytes", "memory_critical_bytes", "the warning would never be given"),
    ("invalidations_warning_per_hour", "invalidations_critical_per_hour", "the warning would never be given"),
    ("rollup_period_s", "rollup_expires_s", "a roll-up that waits until the next one would be dropped"),
    ("alert_window_s", "keep_minutes_s", "alerts are judged by the records of minutes"),
    ("keep_minutes_s", "keep_hours_s", "longer windows are kept for longer"),
    ("keep_hours_s", "keep_days_s", "longer windows are kept for longer"),
)
"""Settings of which the first may not be more than the second, and why; a second of 0 stands for none."""
_OTHER_VARIABLES = frozenset({"ENGINE", "BROKER_URL", "REGENERATE"})
_OTHER_PREFIXES = ("LLM_", "OPENAI_", "TEST_")


def _setting(default: Any, check: Callable[[str, Any], Any], doc: str, *, env: bool = True, show: bool = True) -> Any:
    return field(default=default, repr=show, metadata={"check": check, "doc": doc, "env": env})


def _mapping_setting(default: Mapping[str, Any], check: Callable[[str, Any], Any], doc: str) -> Any:
    return field(default_factory=lambda: dict(default), metadata={"check": check, "doc": doc, "env": False})


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Checked settings. Names here have no ``aicache_`` prefix; units are in the names.

    Raises:
        SettingsError: from `from_mapping` only; the constructor takes values that are already checked.
    """

    url: str | None = _setting(
        None, checks.url, "Redis or Valkey server of the cache, such as `redis://cache:6379/0`. Required.", show=False
    )
    share_backend: bool = _setting(
        False, checks.switch, "Use the result backend's server when `aicache_url` is not set."
    )
    namespace: str = _setting(
        "aicache", checks.namespace, "Start of every key; one per application that must not share answers."
    )
    secret: bytes | None = _setting(
        None,
        checks.secret,
        "16 to 64 bytes that key the digests, so that a dump of the server does not confirm a guessed prompt.",
        show=False,
    )
    hash: str = _setting("sha256", checks.digest, "Digest of the keys: any name hashlib knows, 128 bits or more.")
    disabled: bool = _setting(False, checks.switch, "Switch the cache off: every call runs its body.")
    eager: bool = _setting(False, checks.switch, "Use the cache under `task_always_eager` too.")
    strict: bool = _setting(False, checks.switch, "Raise our own bugs instead of logging them; for tests.")

    ttl: float = _setting(
        DEFAULT_TTL_S, checks.duration, "How long an answer lives when its policy and `aicache_ttls` do not say."
    )
    ttls: Mapping[str, float] = _mapping_setting(OPERATION_TTLS_S, checks.ttls, "Lifetime by operation.")
    jitter: float = _setting(
        0.0, checks.number(0.0, 0.5), "Shorten each lifetime by a random part up to this fraction."
    )

    compression: str = _setting(
        "zstd", checks.choice("zstd", "zlib", "none"), "How bodies are compressed: `zstd`, `zlib` or `none`."
    )
    compression_level: int | None = _setting(None, checks.level, "Level; by default 3 for zstd and 6 for zlib.")
    compression_threshold_bytes: int = _setting(
        1000, checks.whole(0, 2**31), "Bodies of up to this size are stored as they are."
    )
    max_entry_bytes: int = _setting(
        16 * 2**20, checks.whole(64, 2**31 - 1), "Larger answers are not stored, larger entries not read."
    )

    budget_ms: float = _setting(50.0, checks.number(1.0, 60_000.0), "Store time that one task call may spend in all.")
    connect_ms: float = _setting(250.0, checks.number(1.0, 60_000.0), "Time for a process's first connection.")
    breaker_min_s: float = _setting(1.0, checks.duration, "How long the breaker stays open after the first fault.")
    breaker_max_s: float = _setting(
        30.0, checks.duration, "The longest that the breaker stays open between two probes."
    )

    l1_entries: int = _setting(0, checks.whole(0, 10_000_000), "Entries that each process keeps in memory; 0 is off.")
    l1_bytes: int = _setting(64 * 2**20, checks.whole(0, 2**40), "Bytes that each process keeps in memory.")
    l1_tiers: tuple[str, ...] = _setting(
        ("small", "medium", "large", "xlarge"), checks.tier_names, "Text tiers kept in memory."
    )

    text_tiers: Mapping[str, int] = _mapping_setting(
        TEXT_TIERS, checks.tiers, "Upper limits of the text tiers, in characters."
    )
    text_hash_threshold: int = _setting(
        1000, checks.whole(1, 2**31), "Texts longer than this are of size class `large` in key timings."
    )
    retention_s: float = _setting(3600.0, checks.duration, "How long timings stay in a process's arrays.")
    max_measurements: int = _setting(1000, checks.whole(1, 10_000_000), "The newest timings kept in each array.")
    memory_warning_bytes: int = _setting(
        0,
        checks.whole(0, 2**50),
        "Size of the whole server from which a warning is given; 0 is 85 % of `maxmemory` where nothing is evicted.",
    )
    memory_critical_bytes: int = _setting(
        0, checks.whole(0, 2**50), "Size from which the warning is critical; 0 is 95 % of `maxmemory`, likewise."
    )

    samples: str = _setting(
        "batched",
        checks.choice("batched", "durable", "off"),
        "How timings reach the records: `batched`; `durable`, each call's before it returns; `off`, not at all.",
    )
    ship_every: int = _setting(128, checks.whole(1, 256), "Timings that make a batch due.")
    ship_after_s: float = _setting(1.0, checks.duration, "Age of a timing that makes its batch due.")
    buffer_samples: int = _setting(
        10_000,
        checks.whole(256, 10_000_000),
        "Timings that a process keeps while they cannot be sent; the oldest go first.",
    )
    inbox_bytes: int = _setting(64 * 2**20, checks.whole(2**20, 2**40), "What may wait in Redis for the roll-up.")

    event_sample: float = _setting(
        1.0,
        checks.number(0.0, 1.0),
        "Part of the calls that a worker which sends events (`-E`) tells Flower of, as hit or miss; 0 is none.",
    )

    rollup_period_s: float = _setting(
        60.0, checks.period, "How often beat sends the roll-up; 0 leaves the schedule to you."
    )
    rollup_queue: str = _setting("", checks.label, "Queue of the roll-up; empty is the application's default queue.")
    rollup_expires_s: float = _setting(
        0.0,
        checks.duration_or_zero,
        "When a roll-up that no worker took is dropped; 0 is ten periods, ten minutes at least.",
    )
    keep_minutes_s: float = _setting(172_800.0, checks.duration, "How long records of a minute are kept.")
    keep_hours_s: float = _setting(5_184_000.0, checks.duration, "How long records of an hour are kept.")
    keep_days_s: float = _setting(63_072_000.0, checks.duration, "How long records of a day are kept.")

    alert_window_s: float = _setting(
        300.0, checks.duration, "Span that the alerts on slow steps and the hit rate look at."
    )
    slow_key_ms: float = _setting(100.0, checks.number(0.001, 3_600_000.0), "A key that took longer is slow.")
    slow_operation_ms: float = _setting(
        50.0, checks.number(0.001, 3_600_000.0), "A look-up or store that took longer is slow."
    )
    invalidations_warning_per_hour: int = _setting(
        50, checks.whole(1, 2**31), "Invalidations in an hour that give a warning."
    )
    invalidations_critical_per_hour: int = _setting(100, checks.whole(1, 2**31), "… and from which it is critical.")
    prices: Prices | None = _setting(  # noqa: RUF009 - it is frozen
        None,
        parse_prices,
        "What models cost per 1,000,000 tokens; in the environment JSON, or the path of a JSON file. See "
        "[operations](operations.md#what-it-costs-and-saves).",
    )

    hit_rate_floor: float = _setting(0.0, checks.number(0.0, 1.0), "A hit rate below this gives a warning; 0 is off.")
    hit_rate_min_lookups: int = _setting(
        100, checks.whole(1, 2**31), "Fewer look-ups than this say nothing of the hit rate."
    )

    @classmethod
    def from_mapping(cls, given: Mapping[str, Any], environ: Mapping[str, str] | None = None) -> Settings:
        """Return checked settings.

        Args:
            given: names with the ``aicache_`` prefix in any case; other names are passed over.
            environ: environment to read ``AICACHE_*`` from; its values win. One that is nearly a setting's is logged.

        Raises:
            SettingsError: an unknown ``aicache_`` name, a value that is not allowed, or two that exclude each other.

        >>> Settings.from_mapping({"aicache_ttl": "2h"}).ttl
        7200.0
        >>> Settings.from_mapping({"aicache_tll": "2h"})
        Traceback (most recent call last):
            ...
        aicache_tasks.errors.SettingsError: unknown setting aicache_tll; did you mean aicache_ttl?
        """
        return _agreeing(cls._checked(given, environ or {}))

    @classmethod
    def _checked(cls, given: Mapping[str, Any], environ: Mapping[str, str]) -> Settings:
        known = {f.name: f for f in fields(cls)}
        found = {name[len(PREFIX) :].lower(): value for name, value in given.items() if name.lower().startswith(PREFIX)}
        if unknown := sorted(found.keys() - known.keys()):
            raise SettingsError(_unknown(unknown[0], known))
        found |= _from_environ(known, environ)
        _warn_of_misspelt(known, environ)
        real = {name: value.real if isinstance(value, Hidden) else value for name, value in found.items()}
        return cls(**{n: known[n].metadata["check"](PREFIX + n, v) for n, v in real.items() if v is not None})

    def updated(self, given: Mapping[str, Any]) -> Settings:
        """Return a copy with *given* (``aicache_*`` names) checked and put in; raises as `from_mapping` does."""
        fresh = Settings._checked(given, {})
        return _agreeing(replace(self, **{name[len(PREFIX) :]: getattr(fresh, name[len(PREFIX) :]) for name in given}))

    @property
    def currency(self) -> str:
        """What money is in; empty if nobody said."""
        return "" if self.prices is None else self.prices.currency

    def require_url(self, backend_url: str | None = None) -> str:
        """Return the URL of the cache's server.

        Raises:
            SettingsError: there is none; names ``aicache_url`` and ``aicache_share_backend``.
        """
        if self.url:
            return self.url
        if self.share_backend and backend_url and urlsplit(backend_url).scheme in URL_SCHEMES:
            return backend_url
        raise SettingsError(
            "aicache_url is not set: give the cache a server of its own, such as aicache_url='redis://cache:6379/0', "
            "or set aicache_share_backend=True to use the result backend's Redis server (its eviction policy then "
            "decides between cache entries and unread task results)"
        )


def _from_environ(known: Mapping[str, Any], environ: Mapping[str, str]) -> dict[str, Any]:
    names = {name: _ENV_PREFIX + name.upper() for name, f in known.items() if f.metadata["env"]}
    return {name: environ[variable] for name, variable in names.items() if variable in environ}


def _warn_of_misspelt(known: Mapping[str, Any], environ: Mapping[str, str]) -> None:
    """Log each variable that is nearly a setting's. Not an error: it may be another program's."""
    variables = [name.upper() for name, f in known.items() if f.metadata["env"]]
    for variable in sorted(environ):
        name = variable.removeprefix(_ENV_PREFIX)
        if name == variable or name in variables or name in _OTHER_VARIABLES or name.startswith(_OTHER_PREFIXES):
            continue
        if near := difflib.get_close_matches(name, variables, n=1):
            _warn_once(variable, _ENV_PREFIX + near[0])


@lru_cache(256)
def _warn_once(variable: str, meant: str) -> None:
    log.warning("aicache: the environment variable %s is not read; did you mean %s?", variable, meant)


def _agreeing(settings: Settings) -> Settings:
    """Return *settings*, checked against each other."""
    level = settings.compression_level
    if settings.compression == "zlib" and level is not None and level > _ZLIB_MAX_LEVEL:
        raise SettingsError(
            f"aicache_compression_level: {level} is over {_ZLIB_MAX_LEVEL}, the most of aicache_compression='zlib'"
        )
    for low, high, why in _RISING:
        if 0 < getattr(settings, high) < getattr(settings, low):
            raise SettingsError(
                f"{PREFIX}{low}: {_shown(settings, low)} is more than {PREFIX}{high}, {_shown(settings, high)}, "
                f"but {why}; lower the one or raise the other"
            )
    if settings.keep_minutes_s < _INVALIDATIONS_S:
        raise SettingsError(
            f"aicache_keep_minutes_s: {_shown(settings, 'keep_minutes_s')} is less than the hour of which "
            "aicache_invalidations_warning_per_hour speaks; write 1h or more"
        )
    return settings


def _shown(settings: Settings, name: str) -> str:
    value = getattr(settings, name)
    return show_duration(value) if name.endswith("_s") else checks.plain(value)


def _unknown(name: str, known: Mapping[str, Any]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean {PREFIX}{near[0]}?" if near else "; docs/settings.md lists the settings"
    return f"unknown setting {PREFIX}{name}{hint}"


def mask_url(url: str) -> str:
    """Return *url* with what may be a password as asterisks: all up to the last ``@`` but a user's name before a colon.

    A user without a password may be a token, and a password that is not percent-encoded may hold any character.

    >>> mask_url("redis://user:secret@host:6379/0"), mask_url("unix:///run/valkey.sock?password=secret&db=1")
    ('redis://user:********@host:6379/0', 'unix:///run/valkey.sock?password=********&db=1')
    >>> mask_url("rediss://token@host"), mask_url("redis://:pass/word@host")
    ('rediss://********@host', 'redis://:********@host')
    """
    url = re.sub(r"(?i)([?&][a-z_]*password)=[^&]*", rf"\1={MASK}", url)
    return re.sub(r"(?s)^([^:/?#@]+:/+|/*)(?:([^:/?#@]*:).+|.*)@", rf"\1\2{MASK}@", url)


class Hidden(str):
    """A setting that shows as *shown* and holds what it stands for; pickling keeps both, for children by spawn.

    >>> url = Hidden(mask_url("redis://:secret@host"), "redis://:secret@host")
    >>> f"{url}", url.real
    ('redis://:********@host', 'redis://:secret@host')
    """

    __slots__ = ("real",)
    real: Any

    def __new__(cls, shown: str, real: Any) -> Self:
        """Make the text *shown* that stands for *real*."""
        hidden = super().__new__(cls, shown)
        hidden.real = real
        return hidden

    def __reduce__(self) -> tuple[Any, ...]:
        return Hidden, (str(self), self.real)


def hide(name: str, given: Any) -> Any:
    """Return *given*, the value of setting *name*, as it may be shown; `Settings.from_mapping` takes it as given."""
    if not given or isinstance(given, Hidden):
        return given
    if name == "aicache_secret":
        return Hidden(MASK, given)
    masked = mask_url(given) if name == "aicache_url" and isinstance(given, str) else given
    return given if masked == given else Hidden(masked, given)
