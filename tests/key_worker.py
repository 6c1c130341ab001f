"""A process that keys what it is delivered: what a worker does.

In: pickled lists of (serializer, payload), one after another on stdin.   Out: a pickled list of answers for each:
the encoding of what was delivered and the encoding after a second delivery.
"""

from __future__ import annotations

import pickle
import sys

from aicache_tasks.canonical import encode_canonical
from tests.key_delivery import deliver, send


def main() -> None:
    while True:
        try:
            batch = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        answers = [answer(serializer, payload) for serializer, payload in batch]
        pickle.dump(answers, sys.stdout.buffer)
        sys.stdout.buffer.flush()


def answer(serializer: str, payload: bytes | str) -> tuple[bytes, bytes]:
    delivered = deliver(serializer, payload)
    again = deliver(serializer, send(serializer, delivered))
    return encode_canonical(delivered), encode_canonical(again)


if __name__ == "__main__":
    main()
