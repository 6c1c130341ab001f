"""
What is sent and said, without a driver: commands as the bytes of RESP, scripts, what a reply may look like.

In: commands in parts, the keys of a look-up, replies.   Out: what to send, what the server said.

An error reply comes as a `StoreError` in the reply's place. A reply of another shape than the command's is a
`ValueError`: it may be the reply to another command, so that its connection cannot be used again.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from aicache_tasks.errors import StoreError, StoreRefused
from aicache_tasks.stores.base import REFUSED, Receipt, StoreInfo

_TAILS_REMEMBERED: Final = 8192


def pack_mget(keys: Sequence[str]) -> bytes:
    """Return an MGET of *keys*. All but the first, which are those of tokens, return all the time: packed once.

    >>> pack_mget(("a", "bc"))
    b'*3\\r\\n$4\\r\\nMGET\\r\\n$1\\r\\na\\r\\n$2\\r\\nbc\\r\\n'
    """
    first = keys[0].encode()
    return b"*%d\r\n$4\r\nMGET\r\n$%d\r\n%b\r\n%b" % (len(keys) + 1, len(first), first, _tail(tuple(keys[1:])))


@functools.lru_cache(_TAILS_REMEMBERED)
def _tail(keys: tuple[str, ...]) -> bytes:
    return b"".join([b"$%d\r\n%b\r\n" % (len(key), key) for key in map(str.encode, keys)])


def px(ttl_ms: int) -> tuple[bytes, ...]:
    """Return the end of a SET: its ttl, or nothing for 0, which is for ever."""
    return (b"PX", b"%d" % ttl_ms) if ttl_ms else ()


def pack(*parts: str | bytes) -> bytes:
    """Return a command in RESP.

    >>> pack(b"UNLINK", "k")
    b'*2\\r\\n$6\\r\\nUNLINK\\r\\n$1\\r\\nk\\r\\n'
    """
    return pack_all([parts])


def pack_all(commands: Sequence[Sequence[str | bytes]]) -> bytes:
    """Return *commands* in RESP. One join: an answer of megabytes is copied once."""
    pieces: list[bytes] = []
    for command in commands:
        pieces.append(b"*%d\r\n" % len(command))
        for part in command:
            encoded = part if isinstance(part, bytes) else part.encode("utf-8", "surrogateescape")
            pieces += (b"$%d\r\n" % len(encoded), encoded, b"\r\n")
    return b"".join(pieces)


def pack_script(name: str, keys: Sequence[str], given: Sequence[str | bytes], *, in_full: bool = False) -> bytes:
    """Return the command that runs a script of ``lua/``: by its digest, or with its source for a server without it."""
    digest, source = read_script(name)
    command, script = (b"EVAL", source) if in_full else (b"EVALSHA", digest)
    return pack(command, script, b"%d" % len(keys), *keys, *given)


@functools.cache
def read_script(name: str) -> tuple[bytes, bytes]:
    """Return SHA-1 in hex and source of a script in ``lua/``."""
    source = (Path(__file__).parent / "lua" / f"{name}.lua").read_bytes()
    return hashlib.sha1(source, usedforsecurity=False).hexdigest().encode(), source


class UnknownScript(StoreRefused):
    """The server does not hold the script: it was restarted, or this is its first call."""


def accept(reply: Any) -> Any:
    """Return *reply*, or raise what it says."""
    if isinstance(reply, StoreError):
        raise reply
    return reply


def number_of(reply: Any) -> int:
    """Return the number that *reply* is."""
    if type(number := accept(reply)) is not int:
        raise ValueError("not a number")
    return number


def values_of(reply: Any, count: int | None = None) -> list[bytes | None]:
    """Return the values, or Nones, that *reply* is; that many, if *count* is given."""
    values = accept(reply)
    if type(values) is not list or (count is not None and len(values) != count):
        raise ValueError("not that many values")
    for value in values:
        if value is not None and type(value) is not bytes:
            raise ValueError("not values")
    return values


def shipped(reply: Any) -> int:
    """Return how many entries wait after a shipment, or `REFUSED`."""
    if (number := number_of(reply)) < 1 and number != REFUSED:
        raise ValueError("not a receipt")
    return number


def receipt_of(reply: Any) -> Receipt:
    """Return what became of a shipment; an error reply is a receipt too."""
    return reply if isinstance(reply, StoreError) else shipped(reply)


def read_info(text: bytes, keys: int) -> StoreInfo:
    """Return what the reply to INFO says; *keys* is the reply to DBSIZE."""
    said = dict(line.split(":", 1) for line in text.decode("utf-8", "replace").splitlines() if ":" in line)
    return StoreInfo(
        version=said.get("valkey_version") or said.get("redis_version", ""),
        keys=keys,
        memory_used_bytes=int(said.get("used_memory", 0)),
        connected_clients=int(said.get("connected_clients", 0)),
        eviction_policy=said.get("maxmemory_policy", ""),
        memory_limit_bytes=int(said.get("maxmemory", 0)),
    )
