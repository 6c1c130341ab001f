"""
Bounds: how many values a MessagePack body would turn into, found without making one of them.

In: MessagePack.   Out: nothing, or `CorruptPayload`.   Pure.

One byte can stand for an empty map of 64 bytes, so 16 MiB of them would take 1 GiB: a limit in bytes is not enough.
"""

from __future__ import annotations

from typing import Final

from aicache_tasks.errors import CorruptPayload

MAX_VALUES: Final = 2**19
"""Values in one body; they take some 100 bytes each at worst."""

NESTED_CODES: Final = frozenset({1, 2, 3, 6, 7, 8, 9, 10})
"""Extension types whose content is MessagePack again."""


def _sizes() -> list[int]:
    """Bytes of a token by its first byte, without what a length field adds."""
    sizes = [1] * 160 + [1 + head for head in range(32)] + [1] * 64
    sizes[0xC4:0xCA] = [2, 3, 5, 3, 4, 6]  # bin, ext
    sizes[0xCA:0xD4] = [5, 9, 2, 3, 5, 9, 2, 3, 5, 9]  # float, uint, int
    sizes[0xD4:0xE0] = [3, 4, 6, 10, 18, 2, 3, 5, 3, 5, 3, 5]  # fixext, str, array, map
    return sizes


_SIZES: Final = _sizes()
_LENGTHS: Final = {0xC4: 1, 0xC5: 2, 0xC6: 4, 0xC7: 1, 0xC8: 2, 0xC9: 4, 0xD9: 1, 0xDA: 2, 0xDB: 4}
_EXTENSIONS: Final = frozenset({0xC7, 0xC8, 0xC9, *range(0xD4, 0xD9)})


def check_counts(raw: bytes | memoryview) -> None:
    """Pass over the headers in *raw*, into extensions too; strings are skipped.

    Raises:
        CorruptPayload: *raw* holds more than `MAX_VALUES` values.

    >>> check_counts(bytes([0x92, 1, 2]))
    """
    at = values = 0
    while at < len(raw):
        values += 1
        if values > MAX_VALUES:
            raise CorruptPayload(f"more than {MAX_VALUES} values")
        at += token_bytes(raw, at)


def token_bytes(raw: bytes | memoryview, at: int) -> int:
    """Return the length of the header at *at*, and of the content unless that is counted by itself."""
    head = raw[at]
    size = _SIZES[head]
    if head in _LENGTHS:
        width = _LENGTHS[head]
        size += int.from_bytes(raw[at + 1 : at + 1 + width], "big")
    if head in _EXTENSIONS:
        header = 2 + _LENGTHS.get(head, 0)
        return header if at + header <= len(raw) and raw[at + header - 1] in NESTED_CODES else size
    return size
