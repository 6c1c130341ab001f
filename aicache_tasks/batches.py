"""
Samples on their way: a batch and its bytes.

In: samples of one process.   Out: a batch that can be told from every other, in bytes; and back.

A batch is a version byte, a codec byte, and a MessagePack array, compressed if that makes it shorter. Its id is the
process (16 random bytes) and a number that rises by one, so that a batch which was sent twice is counted once. Batches
come from a server that others may write to: every length and type is checked before it counts.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Annotated, Final

import msgspec
import zstandard
from msgspec import Meta

from aicache_tasks.errors import CorruptPayload, NotStorable, UnknownPayload
from aicache_tasks.records import Sample

VERSION: Final = 1
PROCESS_BYTES: Final = 16
MAX_SAMPLES: Final = 256
"""The most samples in one batch."""
MAX_BATCH_BYTES: Final = 2**20
"""The longest batch that is read, before compression."""

_PLAIN, _ZSTD = 0, 1
_LEVEL: Final = -1
"""Two bytes more for a sample than level 1, in three fifths of the time."""
_COMPRESS_FROM_BYTES: Final = 600
_MAX_COUNT: Final = 2**53
_HEAD_BYTES: Final = 2
_MARGIN_BYTES: Final = 2**14
"""What compressing may add, and the two bytes before it."""

_Count = Annotated[int, Meta(ge=0, le=2**53)]

Row = tuple[
    Annotated[float, Meta(ge=0, le=2**40)],  # at
    str,  # operation
    str,  # step
    str,  # status
    str,  # reason
    _Count,  # duration_ns
    _Count,  # text_length
    str,  # text_tier
    _Count,  # raw_bytes
    _Count,  # stored_bytes
    _Count,  # key_ns
    _Count,  # decode_ns
    _Count,  # age_ms
    bytes,  # meta
]
"""A `Sample` without its ``extra``."""


class Batch(msgspec.Struct, array_like=True, frozen=True):
    """Samples of one process, in the order in which they were recorded."""

    process: Annotated[bytes, Meta(min_length=PROCESS_BYTES, max_length=PROCESS_BYTES)]
    number: Annotated[int, Meta(ge=1, le=2**53)]
    origin: str
    """The worker's node name, or ``producer@host``."""
    last: bool
    """The process is ending: no other batch follows."""
    lost: _Count
    """Samples of this process that were lost since its batch before."""
    rows: Annotated[list[Row], Meta(max_length=MAX_SAMPLES)]


_encoder: Final = msgspec.msgpack.Encoder()
_decoder: Final = msgspec.msgpack.Decoder(Batch)
_contexts = threading.local()


def encode_batch(
    process: bytes, number: int, origin: str, samples: Sequence[Sample], *, last: bool = False, lost: int = 0
) -> bytes:
    """Return the bytes of a batch of `MAX_SAMPLES` at most.

    Raises:
        NotStorable: ``too_large``: its names and metadata are too long for one batch.

    >>> data = encode_batch(bytes(16), 1, "celery@here", [Sample(1.0, "shout", "get", "hit", "", 40_000)])
    >>> decode_batch(data).rows[0][:6]
    (1.0, 'shout', 'get', 'hit', '', 40000)
    """
    batch = process, number, origin, last, lost
    try:
        raw = _encoder.encode((*batch, [sample[:-1] for sample in samples]))
    except (UnicodeEncodeError, OverflowError, TypeError):  # a name may be any kind of text, a length any number
        raw = _encoder.encode((*batch[:2], _encodable(origin), *batch[3:], [_tame(sample) for sample in samples]))
    if len(raw) > MAX_BATCH_BYTES - _MARGIN_BYTES:
        raise NotStorable("too_large", f"{len(raw)} bytes, the limit is {MAX_BATCH_BYTES}")
    body = _compressor().compress(raw) if len(raw) >= _COMPRESS_FROM_BYTES else raw
    return bytes((VERSION, _PLAIN)) + raw if body is raw else bytes((VERSION, _ZSTD)) + body


def decode_batch(data: bytes) -> Batch:
    """Return the batch in *data*.

    Raises:
        UnknownPayload: made by another version.
        CorruptPayload: no batch, or longer than the limit.
    """
    if len(data) > MAX_BATCH_BYTES or len(data) < _HEAD_BYTES:
        raise CorruptPayload(f"{len(data)} bytes are no batch")
    if data[0] != VERSION or data[1] not in (_PLAIN, _ZSTD):
        raise UnknownPayload(f"batch version {data[0]}, codec {data[1]}")
    try:
        return _decoder.decode(_inflated(data))
    except (ValueError, RecursionError, zstandard.ZstdError):  # its text may quote what was read
        raise CorruptPayload("not the samples of a batch") from None


def raw_bytes(data: bytes) -> int:
    """Return how long a batch says that it is when it is inflated; what is no batch is as long as it is."""
    if data[:_HEAD_BYTES] != bytes((VERSION, _ZSTD)):
        return len(data)
    try:
        return max(zstandard.frame_content_size(memoryview(data)[_HEAD_BYTES:]), 0)
    except zstandard.ZstdError:
        return len(data)


def _inflated(data: bytes) -> bytes:
    body = memoryview(data)[_HEAD_BYTES:]
    if data[1] == _PLAIN:
        return body.tobytes()
    # The decompressor makes room for what the body states and ignores any limit of ours: compare first.
    if not 0 <= zstandard.frame_content_size(body) <= MAX_BATCH_BYTES:
        raise CorruptPayload("length of the batch")
    return _decompressor().decompress(body, allow_extra_data=False)


def _tame(sample: Sample) -> tuple[object, ...]:
    """Return a sample's row with what cannot be encoded, or would not be read, replaced."""
    return tuple(
        _encodable(field) if isinstance(field, str) else _countable(field) if isinstance(field, int) else field
        for field in sample[:-1]
    )


def _encodable(text: str) -> str:
    return text.encode("utf-8", "replace").decode()


def _countable(number: int) -> int:
    return min(max(int(number), 0), _MAX_COUNT)


def _compressor() -> zstandard.ZstdCompressor:
    try:
        found: zstandard.ZstdCompressor = _contexts.compressor
    except AttributeError:
        found = _contexts.compressor = zstandard.ZstdCompressor(level=_LEVEL)
    return found


def _decompressor() -> zstandard.ZstdDecompressor:
    try:
        found: zstandard.ZstdDecompressor = _contexts.decompressor
    except AttributeError:
        found = _contexts.decompressor = zstandard.ZstdDecompressor(max_window_size=MAX_BATCH_BYTES)
    return found
