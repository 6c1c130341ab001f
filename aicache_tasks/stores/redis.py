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
import time
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar, cast

from redis import exceptions as driver

from aicache_tasks.errors import StoreError, StoreRefused
from aicache_tasks.signals import raised_by_handler
from aicache_tasks.stores.base import Budget, Receipt, Shipment, StoreInfo, Tombstoned
from aicache_tasks.stores.connection import FAULTS, connection_of, is_answer, store_error
from aicache_tasks.stores.resp import (
    UnknownScript,
    accept,
    number_of,
    pack,
    pack_all,
    pack_mget,
    pack_script,
    px,
    read_info,
    receipt_of,
    shipped,
    values_of,
)

HEAD_BYTES: Final = 4096
HASHED_FROM_BYTES: Final = 1024
"""`RedisStore.discard` sends a value's SHA-1 in place of a value of this size or more."""

T = TypeVar("T")


class RedisStore:
    """A `Store` on one Redis 6.2 or Valkey 7.2 server, or later.

    Args:
        url: ``redis://``, ``rediss://``, ``unix://PATH?db=0`` or ``redis+socket://PATH?virtual_host=0``.
        connect_s: what a process's first connection may take; later ones spend the call's budget.

    Raises:
        SettingsError: the URL cannot be parsed; its text is not shown.
    """

    def __init__(self, url: str, *, connect_s: float = 0.25) -> None:
        self._class, self._options = connection_of(url)
        self._connect_s = connect_s
        self._idle: list[Any] = []
        self._pid = os.getpid()
        self._has_connected = False

    def read(self, keys: Sequence[str], budget: Budget) -> list[bytes | None]:
        """See `Store.read`: one MGET, asked again on a new connection if an idle one proves dead."""
        return self.ask(pack_mget(keys), 1, budget, lambda replies: values_of(replies[0], len(keys)), may_repeat=True)

    def ensure(
        self, keys: Sequence[str], values: Sequence[bytes], ttl_ms: Sequence[int], budget: Budget
    ) -> list[bytes]:
        """See `Store.ensure`: SET NX for each and one MGET, in one round trip; each reply is judged by itself."""
        sets: list[list[str | bytes]] = [
            [b"SET", k, v, b"NX", *px(ttl)] for k, v, ttl in zip(keys, values, ttl_ms, strict=True)
        ]
        held = self.ask(
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
        return self.run("publish", [key, *tag_keys], [frame, b"%d" % ttl_ms, seen], budget, number_of) == 1

    def bury(self, key: str, tombstone: bytes, ttl_ms: int, token_keys: Sequence[str], budget: Budget) -> Tombstoned:
        """See `Store.bury`; ``head`` is the first 4096 bytes at most."""
        keys, given = [key, *token_keys], [tombstone, b"%d" % ttl_ms, b"%d" % HEAD_BYTES]
        head, *tokens = self.run("bury", keys, given, budget, lambda reply: values_of(reply, len(keys)))
        return Tombstoned(head, tokens)

    def discard(self, key: str, value: bytes, budget: Budget) -> bool:
        """See `Store.discard`."""
        hashed = len(value) >= HASHED_FROM_BYTES
        shown = hashlib.sha1(value, usedforsecurity=False).hexdigest().encode() if hashed else value
        given = [shown, b"%d" % len(value), b"sha1" if hashed else b"value"]
        return self.run("discard", [key], given, budget, number_of) == 1

    def replace(self, values: Sequence[tuple[str, bytes, int]], budget: Budget) -> None:
        """See `Store.replace`: one pipeline."""
        sets: list[list[str | bytes]] = [[b"SET", key, value, *px(ttl_ms)] for key, value, ttl_ms in values]
        if sets:
            self.ask(pack_all(sets), len(sets), budget, lambda replies: [accept(reply) for reply in replies])

    def scan(self, prefix: str, cursor: int, count: int, budget: Budget) -> tuple[int, list[str]]:
        """See `Store.scan`."""
        pattern = re.sub(r"([\\*?\[\]^])", r"\\\1", prefix) + "*"
        packed = pack(b"SCAN", b"%d" % cursor, b"MATCH", pattern, b"COUNT", b"%d" % count)
        return self.ask(packed, 1, budget, lambda replies: _scanned(replies[0]))

    def unlink(self, keys: Sequence[str], budget: Budget) -> int:
        """See `Store.unlink`."""
        return self.ask(pack(b"UNLINK", *keys), 1, budget, lambda replies: number_of(replies[0])) if keys else 0

    def carry(self, keys: Sequence[str], shipment: Shipment, budget: Budget) -> tuple[list[bytes | None], Receipt]:
        """See `Carrier.carry`. The same batch may arrive twice, so that all of it may be sent again."""
        packed = pack_mget(keys) + pack_script("ship", *_parcel(shipment))
        values, receipt = self.ask(
            packed, 2, budget, lambda got: (values_of(got[0], len(keys)), receipt_of(got[1])), may_repeat=True
        )
        if isinstance(receipt, UnknownScript) and time.perf_counter() < budget.deadline:
            receipt = self._ship_in_full(shipment, budget)
        return values, receipt

    def ship(self, shipment: Shipment, budget: Budget) -> int:
        """See `Carrier.ship`."""
        return self.run("ship", *_parcel(shipment), budget, shipped)

    def give_up(self, state_key: str, count: int, budget: Budget) -> int:
        """See `Carrier.give_up`; what is raised leaves open whether they are counted, and nothing is sent again."""
        return self.run("give_up", [state_key], [b"%d" % count], budget, number_of)

    def info(self, budget: Budget) -> StoreInfo:
        """See `Store.info`."""
        return self.ask(
            pack_all([[b"INFO"], [b"DBSIZE"]]),
            2,
            budget,
            lambda replies: read_info(accept(replies[0]), number_of(replies[1])),
        )

    def close(self) -> None:
        """See `Store.close`."""
        idle, self._idle = self._idle, []
        for connection in idle:
            connection.disconnect()

    def run(
        self, script: str, keys: Sequence[str], given: Sequence[str | bytes], budget: Budget, parse: Callable[[Any], T]
    ) -> T:
        """Run a script of ``lua/`` and return what *parse* makes of its reply; see `ask`."""
        try:
            return self.ask(pack_script(script, keys, given), 1, budget, lambda replies: parse(replies[0]))
        except UnknownScript:
            packed = pack_script(script, keys, given, in_full=True)
            return self.ask(packed, 1, budget, lambda replies: parse(replies[0]))

    def _ship_in_full(self, shipment: Shipment, budget: Budget) -> Receipt:
        packed = pack_script("ship", *_parcel(shipment), in_full=True)
        try:
            return self.ask(packed, 1, budget, lambda got: receipt_of(got[0]))
        except StoreError as error:
            return error

    def ask(
        self, packed: bytes, replies: int, budget: Budget, parse: Callable[[list[Any]], T], *, may_repeat: bool = False
    ) -> T:
        """Send *packed*, take that many replies, and return what *parse* makes of them.

        *parse* gets a `StoreError` in the place of an error reply. It raises that for a refusal, anything else for a
        reply of a wrong shape, which drops the connections. With *may_repeat*, what an idle connection did not answer
        because it proved dead is sent again on a new one.
        """
        try:
            return parse(self._exchange(packed, replies, budget, may_repeat))
        except FAULTS as error:
            self.close()  # what is wrong with one connection may be wrong with all
            raise raised_by_handler(error, within="redis") or store_error(error) from None

    def _exchange(self, packed: bytes, replies: int, budget: Budget, may_repeat: bool) -> list[Any]:
        connection = self._checkout(probe=not may_repeat)
        if connection is None:
            return self._converse(self._connect(budget), packed, replies, budget)
        try:
            return self._converse(connection, packed, replies, budget)
        except driver.ConnectionError as error:
            if not may_repeat or is_answer(error):
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


def _reply(connection: Any) -> Any:
    """Return the next reply; an error reply is a `StoreError` that is returned."""
    try:
        return connection.read_response()
    except driver.ResponseError as error:
        return store_error(error)


def _parcel(shipment: Shipment) -> tuple[list[str], list[bytes]]:
    """Return keys and arguments of ``ship.lua``."""
    return [shipment.inbox_key, shipment.state_key], [shipment.data, b"%d" % shipment.cap_bytes]


def _ensured(replies: list[Any], count: int) -> list[bytes | None]:
    """A refused SET does not hide a token that was there; it counts when a token is missing."""
    held = values_of(replies[-1], count)
    if None in held:
        for reply in replies:
            accept(reply)
    return held


def _scanned(reply: Any) -> tuple[int, list[str]]:
    following, keys = accept(reply)
    return int(following), [key.decode("utf-8", "surrogateescape") for key in keys]
