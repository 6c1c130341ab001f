"""
Every error of the library, in one tree.

AICacheError
├── SettingsError            a setting or a policy is wrong; raised at start-up
├── DirectiveError           a per-call directive is unknown or contradicts another; raised at the caller
├── NotCached                only_if_cached was asked for and there was no entry
├── KeyEncodingError         an argument cannot be part of a key: the call bypasses the cache
├── MissingExtraError        an optional package is needed; names the extra to install
├── PayloadError             stored bytes cannot be used
│   ├── CorruptPayload       damaged, swapped or hostile bytes: removed
│   │   └── ForeignPayload   a sound frame of another key
│   └── UnknownPayload       made by another version or with another key: left alone
├── NotStorable              a result that is not stored (``reason`` says why)
└── StoreError               the store refused or went away (``reason``, ``scope``, ``detail``)
    ├── StoreUnavailable     transport fault, timeout, authentication: stops reads and writes
    ├── StoreRefused         the server answered with an error: OOM, READONLY, NOPERM, …
    └── BreakerOpen          not tried: an earlier fault has the breaker open

No message holds a prompt, an answer, a key source or the text of a driver's error.
"""

from __future__ import annotations

import re
from typing import Any, Final, Literal

OPTIONS: Final = "options"
"""What a path calls the arguments that are neither the text nor the question."""

StoreReason = Literal["redis_error", "redis_connection_failed", "breaker_open"]
StoreScope = Literal["all", "writes", "none"]


class AICacheError(Exception):
    """Base class of every error that the library raises. Each can be pickled: workers send errors to one another.

    >>> import pickle
    >>> pickle.loads(pickle.dumps(KeyEncodingError("options.image", "cycle"))).path
    'options.image'
    """

    def __reduce__(self) -> tuple[Any, ...]:
        return _remade, (type(self), self.args), vars(self) or None


def _remade(kind: type[AICacheError], args: tuple[Any, ...]) -> AICacheError:
    """Make an error again from the arguments it ended up with, which need not be those of its constructor."""
    error = kind.__new__(kind, *args)
    super(AICacheError, error).__init__(*args)
    return error


class SettingsError(AICacheError, ValueError):
    """A setting or a policy is wrong. The message names it and the fix."""


class DirectiveError(AICacheError, ValueError):
    """A ``with_cache`` directive is unknown, of a wrong type, or contradicts another."""


class NotCached(AICacheError):  # noqa: N818 - the public name of the contract
    """``only_if_cached`` was given and the cache holds no entry for the call."""


class MissingExtraError(AICacheError, ImportError):
    """An optional package is missing.

    Args:
        package: the distribution that could not be imported.
        extra: the extra of ``aicache-tasks`` that brings it.
    """

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"{package} is not installed: run `pip install 'aicache-tasks[{extra}]'`")
        self.package, self.extra = package, extra


class KeyEncodingError(AICacheError, TypeError):
    """An argument has no canonical encoding.

    Args:
        path: where it is, such as ``options.messages[2][<str>]``: names of arguments and fields, and positions. Never
            a value, nor a mapping's key, which is data.
        kind: the name of its type, or what is wrong (``cycle``, ``too deep``).
    """

    def __init__(self, path: str, kind: str) -> None:
        super().__init__(f"{path} cannot be part of a cache key: {kind}")
        self.path, self.kind = path, kind

    @property
    def argument(self) -> str:
        """The argument that it is in.

        >>> KeyEncodingError("options.messages[2][<str>]", "cycle").argument
        'options.messages'
        """
        parts = re.split(r"[.\[{]", self.path, maxsplit=2)
        return ".".join(parts[:2]) if self.path.startswith(f"{OPTIONS}.") else parts[0]


class PayloadError(AICacheError):
    """Stored bytes cannot be used."""


class CorruptPayload(PayloadError):  # noqa: N818 - read as a noun in handlers
    """Damaged, swapped or hostile bytes: the entry is removed and counted."""


class ForeignPayload(CorruptPayload):
    """A sound frame of another key: the reply to another call, or swapped in the store."""


class UnknownPayload(PayloadError):  # noqa: N818 - read as a noun in handlers
    """A frame version, codec, dictionary or key id of another deployment: a miss, never removed."""


class NotStorable(AICacheError):  # noqa: N818 - read as a noun in handlers
    """A result is not stored.

    Args:
        reason: ``not_roundtrip`` or ``too_large``.
        detail: the path and type, or the size and its limit. Never the value.
    """

    def __init__(self, reason: Literal["not_roundtrip", "too_large"], detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


class StoreError(AICacheError):
    """The store did not do what it was asked.

    Args:
        detail: class of the driver's error and the server's error prefix, such as ``OutOfMemoryError OOM``.
    """

    reason: StoreReason = "redis_error"
    scope: StoreScope = "none"

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail


class StoreUnavailable(StoreError):  # noqa: N818 - names a state
    """A transport fault, a timeout, or a server that answers nobody (``LOADING``, ``NOAUTH``).

    Args:
        detail: as in `StoreError`.
        answered: True when a server answered (``reason`` is then ``redis_error``).
    """

    scope: StoreScope = "all"

    def __init__(self, detail: str, *, answered: bool = False) -> None:
        super().__init__(detail)
        self.reason = "redis_error" if answered else "redis_connection_failed"


class StoreRefused(StoreError):  # noqa: N818 - names a state
    """The server refused this command.

    Args:
        detail: as in `StoreError`.
        writes: True when every write will be refused (``OOM``, ``READONLY``, ``NOPERM``, ``MISCONF``).
    """

    def __init__(self, detail: str, *, writes: bool) -> None:
        super().__init__(detail)
        self.scope = "writes" if writes else "none"


class BreakerOpen(StoreError):  # noqa: N818 - names a state
    """Not tried: the breaker is open after an earlier fault."""

    reason: StoreReason = "breaker_open"
