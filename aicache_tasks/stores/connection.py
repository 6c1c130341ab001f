"""
What is used of redis-py: connections with one deadline, and what its errors mean.

In: a URL; an error that redis-py raised.   Out: a connection class and its options; a `StoreError` that quotes nothing.
"""

from __future__ import annotations

import re
import socket
import ssl
import time
from typing import Any, Final, cast
from urllib.parse import parse_qs, urlsplit

import redis.connection
from redis import exceptions as driver
from redis.backoff import NoBackoff
from redis.retry import Retry

from aicache_tasks.errors import SettingsError, StoreError, StoreRefused, StoreUnavailable
from aicache_tasks.stores.deadline import DeadlineSocket
from aicache_tasks.stores.resp import UnknownScript, pack

# What redis-py lets through when its parser meets nonsense or another thread closes its socket. Named one by one:
# a soft time limit is an Exception too and must pass.
_SLIPS = (AttributeError, IndexError, MemoryError, NotImplementedError, OverflowError, RecursionError, TypeError)
FAULTS: Final = (driver.RedisError, OSError, ValueError, *_SLIPS)
_REFUSES_WRITES = frozenset({"OOM", "READONLY", "NOPERM", "MISCONF", "NOREPLICAS"})
_ANSWERS_NOBODY = frozenset({"NOAUTH", "WRONGPASS", "LOADING", "MASTERDOWN", "CLUSTERDOWN", "DENIED", "NOPROTO"})
_REFUSES_THIS = frozenset(
    {"ERR", "WRONGTYPE", "BUSY", "NOSCRIPT", "MOVED", "ASK", "TRYAGAIN", "CROSSSLOT", "EXECABORT"}
)
_PREFIX = re.compile(rf"(?:^|: -?)({'|'.join(sorted(_REFUSES_WRITES | _ANSWERS_NOBODY | _REFUSES_THIS))})\b")
_DENIED_IN_SCRIPT = re.compile(r"ACL failure in script|The user executing the script can't")
_PREFIX_OF_CLASS: Final = {
    "OutOfMemoryError": "OOM",
    "ReadOnlyError": "READONLY",
    "NoPermissionError": "NOPERM",
    "BusyLoadingError": "LOADING",
    "MasterDownError": "MASTERDOWN",
    "ClusterDownError": "CLUSTERDOWN",
    "NoScriptError": "NOSCRIPT",
    "MovedError": "MOVED",
}
_OWN_OPTIONS = ("connection_class", "max_connections", "timeout", "retry_on_timeout", "retry_on_error", "virtual_host")


def connection_of(url: str) -> tuple[Any, dict[str, Any]]:
    """Return the connection class for *url* and what to construct it with."""
    parts = urlsplit(url)
    if parts.scheme == "redis+socket":
        url = url.replace("redis+socket", "unix", 1)
    try:
        options = dict(redis.connection.parse_url(url))
        base = options.get("connection_class", redis.connection.Connection)
        if "virtual_host" in options:
            options["db"] = int(parse_qs(parts.query)["virtual_host"][0].lstrip("/"))
        options = {name: value for name, value in options.items() if name not in _OWN_OPTIONS} | _driver_options()
        connection_class = _deadline_class(base)
        connection_class(**options)
    except (driver.RedisError, ValueError, TypeError) as error:
        raise SettingsError(f"aicache_url: redis-py cannot use it ({type(error).__name__})") from None
    return connection_class, options


def _driver_options() -> dict[str, Any]:
    return {
        "protocol": 2,  # RESP3 connections skip the check that finds another call's reply, and may receive pushes
        "decode_responses": False,
        "retry": Retry(NoBackoff(), 0),
        "health_check_interval": 0,
        "command_packer": _Packer(),
    }


class _Packer:
    """Packs the handshake's commands. hiredis's own packer ends the process when a signal handler raises inside it."""

    def pack(self, *parts: str | bytes | int) -> list[bytes]:
        """Return the command as redis-py wants it: a list of pieces."""
        return [pack(*(str(part) if isinstance(part, int) else part for part in parts))]


def _deadline_class(base: Any) -> Any:  # noqa: C901 - a class with short methods, not a path
    """Return *base* with one deadline over connecting, the handshake and each operation."""
    contexts: list[ssl.SSLContext] = []

    class DeadlineConnection(base):  # type: ignore[misc]
        deadline = 0.0
        wire: DeadlineSocket

        def _connect(self) -> DeadlineSocket:
            self.wire = DeadlineSocket(self._open(), self.deadline)
            return self.wire

        def _open(self) -> socket.socket:
            # redis-py reads the system's certificates anew for each TLS connection, which alone can take a budget.
            if contexts:
                plain = cast("Any", redis.connection.Connection)._connect(self)
                return contexts[0].wrap_socket(plain, server_hostname=self.host)
            opened: socket.socket = super()._connect()
            if isinstance(opened, ssl.SSLSocket) and not (self.ssl_validate_ocsp or self.ssl_validate_ocsp_stapled):
                contexts.append(opened.context)
            return opened

        def on_connect_check_health(self, *args: Any, **kwargs: Any) -> None:
            # Two round trips of a new connection that tell the server a library's name.
            self.driver_info = self.lib_name = self.lib_version = None
            super().on_connect_check_health(*args, **kwargs)

        @property
        def socket_timeout(self) -> float:
            return max(self.deadline - time.perf_counter(), 0.001)

        @socket_timeout.setter
        def socket_timeout(self, _: float | None) -> None: ...

        @property
        def socket_connect_timeout(self) -> float:
            return self.socket_timeout

        @socket_connect_timeout.setter
        def socket_connect_timeout(self, _: float | None) -> None: ...

    return DeadlineConnection


def store_error(error: BaseException) -> StoreError:
    """Return the `StoreError` for what redis-py raised. Its text is not kept: it may quote a command."""
    prefix = _prefix(error)
    detail = f"{type(error).__name__} {prefix}".rstrip()
    if isinstance(error, driver.NoScriptError):
        return UnknownScript(detail, writes=False)
    if prefix in _REFUSES_WRITES:
        return StoreRefused(detail, writes=True)
    if isinstance(error, driver.ResponseError) and prefix not in _ANSWERS_NOBODY:
        return StoreRefused(detail, writes=False)
    return StoreUnavailable(detail, answered=is_answer(error))


def _prefix(error: BaseException) -> str:
    """Return the server's error prefix, such as ``OOM``; "" if there is none that is known."""
    if not isinstance(error, driver.RedisError):
        return ""
    if type(error) is driver.AuthenticationError:  # redis-py 6 takes the prefix away
        return "WRONGPASS" if "invalid" in str(error).lower() else "NOAUTH"
    if _DENIED_IN_SCRIPT.search(str(error)):  # an ERR in its words, and a NOPERM in what it means
        return "NOPERM"
    said = getattr(error, "status_code", None) or _PREFIX_OF_CLASS.get(type(error).__name__)
    found = _PREFIX.search(said if said and said != "ERR" else str(error))
    return found[1] if found else said or ""


def is_answer(error: BaseException) -> bool:
    """Return whether a server answered, in its way."""
    answers = (
        driver.ResponseError,
        driver.AuthenticationError,
        driver.BusyLoadingError,
        driver.InvalidResponse,
        ValueError,
    )
    return isinstance(error, answers) or "max number of clients" in str(error)
