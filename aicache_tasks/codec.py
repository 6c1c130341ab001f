"""
The codec: a value to a frame and back.

In: a Python value, tokens, times and key digest.   Out: a framed, compressed, self-verifying byte string; and back.

value ─ dump ─ raw ─ seal ─ frame ─ open ─ inflate ─ raw ─ load ─ value

Frames come from a server that others may write to: each length is checked before anything of that length is made.
"""

from __future__ import annotations

import threading
import time
import zlib
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import msgspec
import zstandard
from msgspec.msgpack import encode

from aicache_tasks import values
from aicache_tasks.errors import CorruptPayload, NotStorable, UnknownPayload
from aicache_tasks.frame import (
    MAX_OVERHEAD_BYTES,
    NO_FENCE,
    Opened,
    Parts,
    Tokens,
    fence_of,
    make_tombstone,
    overhead_bytes,
    pack,
    peek_header,
    tombstone_token,
    unpack,
)
from aicache_tasks.records import EntryMeta

__all__ = [
    "Codec",
    "Frame",
    "Opened",
    "Tokens",
    "decode_meta",
    "encode_meta",
    "fence_of",
    "make_tombstone",
    "peek_header",
    "tombstone_token",
]

CODEC_NONE: Final = 0
CODEC_ZLIB: Final = 1
CODEC_ZSTD: Final = 2

_CODECS: Final = {"none": CODEC_NONE, "zlib": CODEC_ZLIB, "zstd": CODEC_ZSTD}
_LEVELS: Final = {"none": 0, "zlib": 6, "zstd": 3}
_MAX_ZLIB_LEVEL: Final = 9
_MIN_WINDOW_BYTES: Final = 2**20


class Frame(NamedTuple):
    """A frame and its sizes. ``stored_bytes`` counts the header too, so a compressed frame's ratio is below 1."""

    data: bytes
    raw_bytes: int
    stored_bytes: int
    compressed: bool
    compress_ns: int


class _Meta(msgspec.Struct, array_like=True):
    """The metadata of a frame. A newer deployment may add fields at the end."""

    model: str | None = None
    usage: dict[str, int] | None = None
    cost: float | None = None
    compute_ns: int = 0
    text_length: int = 0
    prices: str = ""


class Codec:
    """Turns values into frames and back. Thread-safe; each thread has its own compression contexts.

    Args:
        compression: ``zstd``, ``zlib`` or ``none``: how new frames are written. All three are read.
        level: compression level; by default 3 for zstd and 6 for zlib, and at most 9 for zlib.
        threshold_bytes: bodies of up to this size are stored as they are.
        max_entry_bytes: the longest body that is stored or read, before compression.

    >>> codec, digest = Codec(), bytes(32)
    >>> tokens = Tokens(b"ns-token", b"op-token", ())
    >>> sealed = codec.seal(codec.dump("answer " * 500), digest=digest, tokens=tokens,
    ...                     created_ms=0, fresh_ms=60_000, expires_ms=60_000, meta=EntryMeta())
    >>> sealed.raw_bytes, sealed.compressed, sealed.stored_bytes < 200
    (3503, True, True)
    >>> codec.load(codec.inflate(codec.open(sealed.data, digest))) == "answer " * 500
    True
    """

    def __init__(
        self,
        *,
        compression: str = "zstd",
        level: int | None = None,
        threshold_bytes: int = 1000,
        max_entry_bytes: int = 16 * 2**20,
    ) -> None:
        self._codec = _CODECS[compression]
        self._level = _LEVELS[compression] if level is None else level
        self._threshold_bytes = threshold_bytes
        self._max_bytes = max_entry_bytes
        self._contexts = threading.local()

    def dump(self, value: Any) -> bytes:
        """Return *value* as a body that is known to give back an equal value of equal types.

        Raises:
            NotStorable: ``not_roundtrip`` with the path and type that is to blame; ``too_large``.
        """
        return values.dump(value, self._max_bytes)

    def load(self, raw: bytes) -> Any:
        """Return the value of a body: a new object at every call.

        Raises:
            CorruptPayload: it holds no value.
        """
        return values.load(raw)

    def seal(
        self,
        raw: bytes,
        *,
        digest: bytes,
        tokens: Tokens,
        created_ms: int,
        fresh_ms: int,
        expires_ms: int,
        meta: EntryMeta,
        fence: bytes = NO_FENCE,
    ) -> Frame:
        """Return the frame of a body that `dump` made; times are ms since the epoch, *fence* is what its look-up saw.

        It is compressed when the body is longer than the threshold and the whole frame gets shorter than the body.

        Raises:
            NotStorable: ``too_large`` or ``not_roundtrip``: the body, the metadata or the tags do not fit the header.
        """
        if len(raw) > self._max_bytes:
            raise NotStorable("too_large", f"{len(raw)} bytes, the limit is {self._max_bytes}")
        parts = Parts(digest, tokens, created_ms, fresh_ms, expires_ms, len(raw), CODEC_NONE, encode_meta(meta), fence)
        body, compress_ns = self._compress(raw)
        if body is not None and overhead_bytes(parts) + len(body) < len(raw):
            return _framed(parts._replace(codec=self._codec), body, compress_ns)
        return _framed(parts, raw, compress_ns)

    def open(self, data: bytes, digest: bytes) -> Opened:
        """Return the parts of a frame that was read from the key of *digest*.

        Raises:
            ForeignPayload: the sound frame of another key.
            UnknownPayload: made by another version, or with another codec, dictionary or sealing key.
            CorruptPayload: no frame, damaged, or longer than the limit.
        """
        if len(data) > self._max_bytes + MAX_OVERHEAD_BYTES:
            raise CorruptPayload(f"{len(data)} bytes stored, the limit is {self._max_bytes}")
        opened = unpack(data, digest)
        if opened.codec > CODEC_ZSTD:
            raise UnknownPayload(f"codec {opened.codec}")
        if opened.raw_bytes > self._max_bytes:
            raise CorruptPayload(f"{opened.raw_bytes} bytes, the limit is {self._max_bytes}")
        return opened

    def inflate(self, opened: Opened) -> bytes:
        """Return the body of a frame that `open` returned, at the length that its header states.

        Raises:
            CorruptPayload: the body has another length, goes on after its end, or does not decompress.
        """
        if opened.codec == CODEC_ZSTD:
            raw = self._inflate_zstd(opened)
        elif opened.codec == CODEC_ZLIB:
            raw = _inflate_zlib(opened)
        else:
            raw = bytes(opened.body)
        if len(raw) != opened.raw_bytes:
            raise CorruptPayload("length of the body")
        return raw

    def meta(self, opened: Opened) -> EntryMeta:
        """Return what a frame says about its body.

        Raises:
            CorruptPayload: the metadata is none.
        """
        return decode_meta(opened.meta_bytes)

    def _compress(self, raw: bytes) -> tuple[bytes | None, int]:
        """Return the compressed body, None if it is not worth trying, and the time it took in ns."""
        if self._codec == CODEC_NONE or len(raw) <= self._threshold_bytes:
            return None, 0
        compress = self._compressor()
        began = time.perf_counter_ns()
        body = compress(raw)
        return body, time.perf_counter_ns() - began

    def _compressor(self) -> Callable[[bytes], bytes]:
        if self._codec == CODEC_ZLIB:
            return lambda raw: zlib.compress(raw, min(self._level, _MAX_ZLIB_LEVEL))
        try:
            compressor: zstandard.ZstdCompressor = self._contexts.compressor
        except AttributeError:
            compressor = self._contexts.compressor = zstandard.ZstdCompressor(level=self._level)
        return compressor.compress

    def _inflate_zstd(self, opened: Opened) -> bytes:
        # The decompressor makes room for what the body states and ignores any limit of ours: compare first.
        try:
            if zstandard.frame_content_size(opened.body) != opened.raw_bytes:
                raise CorruptPayload("length of the body")
            return self._decompressor().decompress(opened.body, allow_extra_data=False)
        except zstandard.ZstdError:
            raise CorruptPayload("the body does not decompress") from None

    def _decompressor(self) -> zstandard.ZstdDecompressor:
        try:
            found: zstandard.ZstdDecompressor = self._contexts.decompressor
        except AttributeError:
            window_bytes = max(self._max_bytes, _MIN_WINDOW_BYTES)
            found = self._contexts.decompressor = zstandard.ZstdDecompressor(max_window_size=window_bytes)
        return found


_META: Final = msgspec.msgpack.Decoder(_Meta)


def decode_meta(data: bytes) -> EntryMeta:
    """Return what `encode_meta` was given.

    Raises:
        CorruptPayload: *data* is no metadata.
    """
    try:
        meta = _META.decode(data)
    except (ValueError, RecursionError):
        raise CorruptPayload("metadata") from None
    return EntryMeta(meta.model, meta.usage, meta.cost, meta.compute_ns, meta.text_length, meta.prices)


def encode_meta(meta: EntryMeta) -> bytes:
    """Return *meta* as frames and samples bear it.

    Raises:
        NotStorable: ``not_roundtrip``: it is not of the kinds that `EntryMeta` says.
    """
    usage = None if meta.usage is None else dict(meta.usage)
    try:
        said = (meta.model, usage, meta.cost, meta.compute_ns, meta.text_length)
        data = encode((*said, meta.prices) if meta.prices else said)
        _META.decode(data)
    except (ValueError, TypeError, OverflowError, RecursionError):
        raise NotStorable("not_roundtrip", "metadata") from None
    return data


def _framed(parts: Parts, body: bytes, compress_ns: int) -> Frame:
    data = pack(parts, body)
    return Frame(data, parts.raw_bytes, len(data), parts.codec != CODEC_NONE, compress_ns)


def _inflate_zlib(opened: Opened) -> bytes:
    inflater = zlib.decompressobj()
    try:
        raw = inflater.decompress(opened.body, opened.raw_bytes + 1)
    except zlib.error:
        raise CorruptPayload("the body does not decompress") from None
    if not inflater.eof or inflater.unused_data:
        raise CorruptPayload("length of the body")
    return raw
