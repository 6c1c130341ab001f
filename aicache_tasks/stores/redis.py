"""
The store on Redis or Valkey.

In: a URL; keys, frames and a running `Budget`.   Out: what `Store` promises, or a `StoreError` that quotes nothing.

redis-py makes and authenticates the connections and reads the replies. Commands are packed here, and each process keeps
its idle connections in a list: redis-py's client and pool take longer than the server. A connection lies in that list
only between a complete reply and the next request, so that no call can read another call's reply.
"""

from __future__ import annotations

import hashlib
import os
import re
import socket
import ssl
import time
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar, cast
from urllib.parse import parse_qs, urlsplit

import redis.connection
from redis import exceptions as driver
from redis.backoff import NoBackoff
from redis.retry import Retry

from aicache_tasks.errors import SettingsError, StoreError, StoreRefused, StoreUnavailable
from aicache_tasks.signals import raised_by_handler
from aicache_tasks.stores.base import Budget, StoreInfo, Tombstoned
from aicache_tasks.stores.deadline import DeadlineSocket
from aicache_tasks.stores.resp import pack, pack_all, pack_mget, px, read_info, read_script

HEAD_BYTES: Final = 4096
HASHED_FROM_BYTES: Final = 1024
"""`RedisStore.discard` sends a value's SHA-1 in place of a value of this size or more."""

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


T = TypeVar("T")


class _UnknownScript(Exception):  # noqa: N818 - names what is the case
    """The server does not hold the script: it was restarted, or this is its first call."""


class RedisStore:
    """A `Store` on one Redis 6.2 or Valkey 7.2 server, or later.

    Args:
        url: ``redis://``, ``rediss://``, ``unix://PATH?db=0`` or ``redis+socket://PATH?virtual_host=0``.
        connect_s: what a process's first connection may take; later ones spend the call's budget.

    Raises:
        SettingsError: the URL cannot be parsed; its text is not shown.
    """

    def __init__(self, url: str, *, connect_s: float = 0.25) -> None:
        self._class, self._options = _connection_of(url)
        self._connect_s = connect_s
        self._idle: list[Any] = []
        self._pid = os.getpid()
        self._has_connected = False

    def read(self, keys: Sequence[str], budget: Budget) -> list[bytes | None]:
        """See `Store.read`: one MGET, asked again on a new connection if an idle one proves dead."""
        return self._ask(pack_mget(keys), 1, budget, lambda replies: _values(replies[0], len(keys)), may_repeat=True)

    def ensure(
        self, keys: Sequence[str], values: Sequence[bytes], ttl_ms: Sequence[int], budget: Budget
    ) -> list[bytes]:
        """See `Store.ensure`: SET NX for each and one MGET, in one round trip; each reply is judged by itself."""
        sets: list[list[str | bytes]] = [
            [b"SET", k, v, b"NX", *px(ttl)] for k, v, ttl in zip(keys, values, ttl_ms, strict=True)
        ]
        held = self._ask(
            pack_all([*sets, [b"MGET", *keys]]), len(sets) + 1, budget, lambda replies: _ensured(replies, len(keys))
        )
        if None in held:  # a value of another type
            wanted = zip(keys, values, ttl_ms, held, strict=True)
            self.replace([(k, v, ttl) for k, v, ttl, now in wanted if now is None], budget)
            held = self.read(keys, budget)
        if None in held:
            raise StoreRefused("tokens do not stay", writes=False)
        return cast("list[bytes]", held)

    def publish(
        self, key: str, frame: bytes, ttl_ms: int, seen: bytes, tag_keys: Sequence[str], budget: Budget
    ) -> bool:
        """See `Store.publish`."""
        return self._run("publish", [key, *tag_keys], [frame, b"%d" % ttl_ms, seen], budget, _number) == 1

    def bury(self, key: str, tombstone: bytes, ttl_ms: int, token_keys: Sequence[str], budget: Budget) -> Tombstoned:
        """See `Store.bury`; ``head`` is the first 4096 bytes at most."""
        keys, given = [key, *token_keys], [tombstone, b"%d" % ttl_ms, b"%d" % HEAD_BYTES]
        head, *tokens = self._run("bury", keys, given, budget, lambda reply: _values(reply, len(keys)))
        return Tombstoned(head, tokens)

    def discard(self, key: str, value: bytes, budget: Budget) -> bool:
        """See `Store.discard`."""
        hashed = len(value) >= HASHED_FROM_BYTES
        shown = hashlib.sha1(value, usedforsecurity=False).hexdigest().encode() if hashed else value
        given = [shown, b"%d" % len(value), b"sha1" if hashed else b"value"]
        return self._run("discard", [key], given, budget, _number) == 1

    def replace(self, values: Sequence[tuple[str, bytes, int]], budget: Budget) -> None:
        """See `Store.replace`: one pipeline."""
        sets: list[list[str | bytes]] = [[b"SET", key, value, *px(ttl_ms)] for key, value, ttl_ms in values]
        if sets:
            self._ask(pack_all(sets), len(sets), budget, lambda replies: [_accept(reply) for reply in replies])

    def scan(self, prefix: str, cursor: int, count: int, budget: Budget) -> tuple[int, list[str]]:
        """See `Store.scan`."""
        pattern = re.sub(r"([\\*?\[\]^])", r"\\\1", prefix) + "*"
        packed = pack(b"SCAN", b"%d" % cursor, b"MATCH", pattern, b"COUNT", b"%d" % count)
        return self._ask(packed, 1, budget, lambda replies: _scanned(replies[0]))

    def unlink(self, keys: Sequence[str], budget: Budget) -> int:
        """See `Store.unlink`."""
        return self._ask(pack(b"UNLINK", *keys), 1, budget, lambda replies: _number(replies[0])) if keys else 0

    def info(self, budget: Budget) -> StoreInfo:
        """See `Store.info`."""
        return self._ask(
            pack_all([[b"INFO"], [b"DBSIZE"]]),
            2,
            budget,
            lambda replies: read_info(_accept(replies[0]), _number(replies[1])),
        )

    def close(self) -> None:
        """See `Store.close`."""
        idle, self._idle = self._idle, []
        for connection in idle:
            connection.disconnect()

    def _run(
        self, script: str, keys: Sequence[str], given: Sequence[bytes], budget: Budget, parse: Callable[[Any], T]
    ) -> T:
        digest, source = read_script(script)
        rest: tuple[str | bytes, ...] = (b"%d" % len(keys), *keys, *given)
        try:
            return self._ask(pack(b"EVALSHA", digest, *rest), 1, budget, lambda replies: parse(_known(replies[0])))
        except _UnknownScript:
            return self._ask(pack(b"EVAL", source, *rest), 1, budget, lambda replies: parse(replies[0]))

    def _ask(
        self, packed: bytes, replies: int, budget: Budget, parse: Callable[[list[Any]], T], *, may_repeat: bool = False
    ) -> T:
        """Send *packed*, take that many replies, and return what *parse* makes of them.

        *parse* raises a `StoreError` for a refusal, anything else for a reply of a wrong shape.
        """
        try:
            return parse(self._exchange(packed, replies, budget, may_repeat))
        except FAULTS as error:
            self.close()  # what is wrong with one connection may be wrong with all
            raise raised_by_handler(error, within="redis") or _store_error(error) from None

    def _exchange(self, packed: bytes, replies: int, budget: Budget, may_repeat: bool) -> list[Any]:
        connection = self._checkout(probe=not may_repeat)
        if connection is None:
            return self._converse(self._connect(budget), packed, replies, budget)
        try:
            return self._converse(connection, packed, replies, budget)
        except driver.ConnectionError as error:
            if not may_repeat or _is_answer(error):
                raise
        self.close()  # the server was restarted: no idle connection has outlived that
        return self._converse(self._connect(budget), packed, replies, budget)

    def _converse(self, connection: Any, packed: bytes, replies: int, budget: Budget) -> list[Any]:
        try:
            connection.wire.deadline = budget.deadline
            connection.send_packed_command((packed,), False)
            got = [_reply(connection) for _ in range(replies)]
        except BaseException:
            connection.disconnect()  # a reply may be on its way: nobody may read it as his own
            raise
        self._idle.append(connection)
        return got

    def _checkout(self, *, probe: bool) -> Any:
        """Return an idle connection, or None. A write cannot be repeated, so that it probes first."""
        if self._pid != os.getpid():
            self._idle, self._has_connected, self._pid = [], False, os.getpid()
        try:
            connection = self._idle.pop()
        except IndexError:
            return None
        if probe and not connection.wire.is_quiet():
            connection.disconnect()
            self.close()
            return None
        return connection

    def _connect(self, budget: Budget) -> Any:
        began = time.perf_counter()
        is_first = not self._has_connected
        connection = self._class(**self._options)
        connection.deadline = began + self._connect_s if is_first else budget.deadline
        try:
            connection.connect()
        except BaseException:
            connection.disconnect()
            raise
        finally:
            if is_first:
                budget.excuse(time.perf_counter() - began)
        self._has_connected = True
        return connection


def _connection_of(url: str) -> tuple[Any, dict[str, Any]]:
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


def _reply(connection: Any) -> Any:
    """Return the next reply; an error reply is an exception that is returned."""
    try:
        return connection.read_response()
    except driver.ResponseError as error:
        return error


def _accept(reply: Any) -> Any:
    """Return *reply*, or raise what it says."""
    if isinstance(reply, driver.ResponseError):
        raise _store_error(reply) from None
    return reply


def _known(reply: Any) -> Any:
    if isinstance(reply, driver.NoScriptError):
        raise _UnknownScript
    return reply


def _number(reply: Any) -> int:
    if type(number := _accept(reply)) is not int:
        raise ValueError("not a number")
    return number


def _values(reply: Any, count: int) -> list[bytes | None]:
    values = _accept(reply)
    if type(values) is not list or len(values) != count:
        raise ValueError("not that many values")
    for value in values:
        if value is not None and type(value) is not bytes:
            raise ValueError("not values")
    return values


def _ensured(replies: list[Any], count: int) -> list[bytes | None]:
    """A refused SET does not hide a token that was there; it counts when a token is missing."""
    held = _values(replies[-1], count)
    if None in held:
        for reply in replies:
            _accept(reply)
    return held


def _scanned(reply: Any) -> tuple[int, list[str]]:
    following, keys = _accept(reply)
    return int(following), [key.decode("utf-8", "surrogateescape") for key in keys]


def _store_error(error: BaseException) -> StoreError:
    """Return the `StoreError` for what redis-py raised. Its text is not kept: it may quote a command."""
    prefix = _prefix(error)
    detail = f"{type(error).__name__} {prefix}".rstrip()
    if prefix in _REFUSES_WRITES:
        return StoreRefused(detail, writes=True)
    if isinstance(error, driver.ResponseError) and prefix not in _ANSWERS_NOBODY:
        return StoreRefused(detail, writes=False)
    return StoreUnavailable(detail, answered=_is_answer(error))


def _prefix(error: BaseException) -> str:
    """Return the server's error prefix, such as ``OOM``; "" if there is none that is known."""
    if not isinstance(error, driver.RedisError):
        return ""
    if type(error) is driver.AuthenticationError:  # redis-py 6 takes the prefix away
        return "WRONGPASS" if "invalid" in str(error).lower() else "NOAUTH"
    said = getattr(error, "status_code", None) or _PREFIX_OF_CLASS.get(type(error).__name__)
    found = _PREFIX.search(said if said and said != "ERR" else str(error))
    return found[1] if found else said or ""


def _is_answer(error: BaseException) -> bool:
    """Return whether a server answered, in its way."""
    answers = (
        driver.ResponseError,
        driver.AuthenticationError,
        driver.BusyLoadingError,
        driver.InvalidResponse,
        ValueError,
    )
    return isinstance(error, answers) or "max number of clients" in str(error)
