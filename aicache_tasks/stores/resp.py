"""
The one command of a hit and the one shape of its reply, without the driver's parser.

In: keys, or the bytes that arrived.   Out: a packed MGET, or the strings in them.   Pure.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

_PACKED_REMEMBERED = 8192


def pack_mget(keys: Sequence[str]) -> bytes:
    """Return an MGET of *keys*.

    All keys but the first, which are those of tokens, are packed once: few tuples of them return all the time.

    >>> pack_mget(("a", "bc"))
    b'*3\\r\\n$4\\r\\nMGET\\r\\n$1\\r\\na\\r\\n$2\\r\\nbc\\r\\n'
    """
    first = keys[0].encode()
    return b"*%d\r\n$4\r\nMGET\r\n$%d\r\n%b\r\n%b" % (len(keys) + 1, len(first), first, _packed(tuple(keys[1:])))


@functools.lru_cache(_PACKED_REMEMBERED)
def _packed(keys: tuple[str, ...]) -> bytes:
    return b"".join([b"$%d\r\n%b\r\n" % (len(key), key) for key in map(str.encode, keys)])


def strings_in(data: bytes, count: int) -> list[bytes | None] | None:
    """Return the items of the array of *count* strings that *data* is, to the byte; None if it is anything else.

    None is no verdict: an error, a part of a reply, or a reply and more. The driver's parser then says what it is.

    >>> strings_in(b"*2\\r\\n$2\\r\\nab\\r\\n$-1\\r\\n", 2)
    [b'ab', None]
    >>> strings_in(b"-ERR no\\r\\n", 2) is strings_in(b"*2\\r\\n$2\\r\\nab\\r\\n$", 2) is None
    True
    """
    head = b"*%d\r\n" % count
    if not data.startswith(head):
        return None
    found: list[bytes | None] = []
    at = len(head)
    for _ in range(count):
        start = data.find(b"\r\n", at) + 2
        size = data[at + 1 : start - 2]
        if start < 2 or data[at : at + 1] != b"$":
            return None
        if size == b"-1":
            found.append(None)
            at = start
        elif size.isdigit() and data[(end := start + int(size)) : end + 2] == b"\r\n":
            found.append(data[start:end])
            at = end + 2
        else:
            return None
    return found if at == len(data) else None
