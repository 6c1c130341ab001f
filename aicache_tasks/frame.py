"""
Frames: header and checksum round a body, as docs/architecture.md ("Frame header") lays them out.

In: tokens, times, key digest, metadata and body.   Out: one byte string, and the parts again once it has proved sound.
Pure.
"""

from __future__ import annotations

import struct
from typing import Any, Final, NamedTuple
from zlib import crc32

from aicache_tasks.errors import CorruptPayload, ForeignPayload, NotStorable, UnknownPayload

MAGIC: Final = b"\xa1\xca"
VERSION: Final = 1
ENTRY_KIND: Final = 1
TOMBSTONE_KIND: Final = 2
TOKEN_BYTES: Final = 8
TOMBSTONE_BYTES: Final = 12
NO_FENCE: Final = bytes(TOKEN_BYTES)
"""Fence of an entry whose place was never invalidated."""
DIGEST_BYTES: Final = 32
MSGPACK_FORMAT: Final = 1
MAX_TAGS: Final = 255
MAX_META_BYTES: Final = 2**16 - 1

HEADER: Final = struct.Struct(">2sBB8sBBBBIIQQQ32s8s8sHI")
HEADER_BYTES: Final = HEADER.size
_KEY_ID: Final = 6
_CHECKSUM_AT: Final = HEADER_BYTES - 4
_CHECKSUM: Final = struct.Struct(">I")
_TAG: Final = struct.Struct(">16s8s")
MAX_OVERHEAD_BYTES: Final = HEADER_BYTES + MAX_TAGS * _TAG.size + MAX_META_BYTES

_ENTRY_START: Final = MAGIC + bytes([VERSION, ENTRY_KIND])
_TOMBSTONE_START: Final = MAGIC + bytes([VERSION, TOMBSTONE_KIND])


class Tokens(NamedTuple):
    """The tokens that an entry was stored under; each tag is its digest (16 bytes) and its token (8 bytes)."""

    namespace: bytes
    operation: bytes
    tags: tuple[tuple[bytes, bytes], ...] = ()


class Opened(NamedTuple):
    """A frame's parts. Times are ms since the epoch; ``body`` is still compressed and lies in the frame's own bytes."""

    tokens: Tokens
    created_ms: int
    fresh_ms: int
    expires_ms: int
    raw_bytes: int
    stored_bytes: int
    codec: int
    body: memoryview | bytes
    meta_bytes: bytes


class Parts(NamedTuple):
    """What `pack` puts round a body."""

    digest: bytes
    tokens: Tokens
    created_ms: int
    fresh_ms: int
    expires_ms: int
    raw_bytes: int
    codec: int
    meta_bytes: bytes
    fence: bytes = NO_FENCE


def pack(parts: Parts, body: bytes) -> bytes:
    """Return the frame of *body*.

    Raises:
        NotStorable: ``too_large``: more tags or metadata than the header can count.
    """
    tags = b"".join(_TAG.pack(*tag) for tag in parts.tokens.tags)
    _check_room(parts)
    head = bytearray(_header(parts))
    rest = b"".join((tags, parts.meta_bytes, body))
    _CHECKSUM.pack_into(head, _CHECKSUM_AT, crc32(rest, crc32(head[:_CHECKSUM_AT])))
    return bytes(head) + rest


def overhead_bytes(parts: Parts) -> int:
    """Return how much longer a frame is than its body."""
    return HEADER_BYTES + len(parts.tokens.tags) * _TAG.size + len(parts.meta_bytes)


def _check_room(parts: Parts) -> None:
    if len(parts.tokens.tags) > MAX_TAGS:
        raise NotStorable("too_large", f"{len(parts.tokens.tags)} tags, the limit is {MAX_TAGS}")
    if len(parts.meta_bytes) > MAX_META_BYTES:
        raise NotStorable("too_large", f"{len(parts.meta_bytes)} bytes of metadata, the limit is {MAX_META_BYTES}")


def _header(parts: Parts) -> bytes:
    return HEADER.pack(
        MAGIC,
        VERSION,
        ENTRY_KIND,
        parts.fence,
        parts.codec,
        MSGPACK_FORMAT,
        0,  # key id
        len(parts.tokens.tags),
        0,  # dictionary id
        parts.raw_bytes,
        parts.created_ms,
        parts.fresh_ms,
        parts.expires_ms,
        pad_digest(parts.digest),
        parts.tokens.namespace,
        parts.tokens.operation,
        len(parts.meta_bytes),
        0,  # checksum
    )


def pad_digest(digest: bytes) -> bytes:
    """Return *digest* in the 32 bytes of the header.

    >>> len(pad_digest(b"short"))
    32
    """
    return digest if len(digest) == DIGEST_BYTES else digest[:DIGEST_BYTES].ljust(DIGEST_BYTES, b"\0")


def unpack(data: bytes, digest: bytes) -> Opened:
    """Return the parts of a frame whose checksum and key are right. The body is a view: nothing is copied.

    Args:
        data: a stored value.
        digest: full digest of the key that it was read from.

    Raises:
        ForeignPayload: a sound frame of another key.
        UnknownPayload: version, key id, body format or dictionary of another deployment.
        CorruptPayload: no frame, or a damaged one.
    """
    if len(data) < HEADER_BYTES or data[:4] != _ENTRY_START:
        raise _no_entry(data)
    header = HEADER.unpack_from(data)
    view = memoryview(data)
    if not header[_KEY_ID] and crc32(view[HEADER_BYTES:], crc32(view[:_CHECKSUM_AT])) != header[-1]:
        raise CorruptPayload("checksum")
    return _opened(header, data, digest, view)


def peek_header(head: bytes, digest: bytes) -> Opened:
    """Return what the start of a frame says, with an empty body and unproved: the checksum needs the whole frame.

    Args:
        head: the first bytes of a stored value, 4096 or so. ``meta_bytes`` may be cut off; ``stored_bytes`` is what
            was given.
        digest: full digest of the key that it was read from.

    Raises:
        PayloadError: as in `unpack`.
    """
    if len(head) < HEADER_BYTES or head[:4] != _ENTRY_START:
        raise _no_entry(head)
    return _opened(HEADER.unpack_from(head), head, digest, None)


def _no_entry(data: bytes) -> CorruptPayload | UnknownPayload:
    if len(data) >= TOMBSTONE_BYTES and data[:2] == MAGIC and data[2] != VERSION:
        return UnknownPayload(f"frame version {data[2]}")
    return CorruptPayload("no entry")


def _opened(header: tuple[Any, ...], data: bytes, digest: bytes, view: memoryview | None) -> Opened:
    # One unpacking into names: reading 14 attributes costs a third of the whole function.
    (_, _, _, _, codec, body_format, key_id, tag_count, dictionary, raw_bytes,
     created_ms, fresh_ms, expires_ms, found, namespace, operation, meta_size, checksum) = header  # fmt: skip
    if key_id:
        raise CorruptPayload("checksum") if checksum else UnknownPayload(f"sealed with key {key_id}")
    if found != digest and found != pad_digest(digest):
        raise ForeignPayload("the frame of another key")
    if body_format != MSGPACK_FORMAT or dictionary:
        raise UnknownPayload(f"body format {body_format}, dictionary {dictionary}")
    tags_end = HEADER_BYTES + tag_count * _TAG.size
    body_at = tags_end + meta_size
    if (tags_end if view is None else body_at) > len(data):
        raise CorruptPayload("cut off")
    tags = tuple(_TAG.iter_unpack(data[HEADER_BYTES:tags_end])) if tag_count else ()
    tokens = Tokens(namespace, operation, tags)
    body = b"" if view is None else view[body_at:]
    meta = data[tags_end:body_at]
    return Opened(tokens, created_ms, fresh_ms, expires_ms, raw_bytes, len(data), codec, body, meta)


def make_tombstone(token: bytes) -> bytes:
    """Return what takes the place of an invalidated entry.

    Args:
        token: 8 random bytes.

    >>> tombstone_token(make_tombstone(b"12345678"))
    b'12345678'
    """
    return _TOMBSTONE_START + token


def fence_of(data: bytes | None) -> bytes:
    """Return the fence of a stored value of any frame version: a tombstone's token, or that of the one it replaced.

    >>> fence_of(make_tombstone(b"12345678")), fence_of(None) == NO_FENCE
    (b'12345678', True)
    """
    if data is None or len(data) < TOMBSTONE_BYTES or data[:2] != MAGIC:
        return NO_FENCE
    return bytes(data[4:TOMBSTONE_BYTES])


def tombstone_token(data: bytes) -> bytes | None:
    """Return the token of a tombstone of any frame version, None if *data* is something else."""
    if len(data) < TOMBSTONE_BYTES or data[:2] != MAGIC or data[3] != TOMBSTONE_KIND:
        return None
    return data[4:TOMBSTONE_BYTES]
