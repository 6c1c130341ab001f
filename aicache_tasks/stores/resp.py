"""
The one command of every look-up, packed.

In: keys.   Out: an MGET in RESP.   Pure.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Final

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
