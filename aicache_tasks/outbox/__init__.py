"""
Samples on their way out of this process.

In: each sample, as it is recorded.   Out: batches in the inbox that the roll-up reads, so that each sample counts once.

sample ─ add ─ buffer ─ batch ┬─ read: on a look-up's own round trip ─┬─ receipt: the batch is done
                              └─ alone: a thread, or who cannot wait ─┘  none: the same bytes are sent again

One batch is on its way at a time, so that batches arrive in order. It keeps its number and bytes until the inbox has
acknowledged it: one that was sent twice, because the first reply was lost, is counted once. What cannot be sent waits,
up to a bound; what had to go is counted, and the next batch says so.

``batch.py`` is what is sent, ``queue.py`` what waits and whose turn it is, ``sender.py`` who sends it when,
``background.py`` the thread and the end of the process.
"""

from aicache_tasks.outbox.background import FLUSH_S, flush_all
from aicache_tasks.outbox.sender import Outbox, producer_name

__all__ = ["FLUSH_S", "Outbox", "flush_all", "producer_name"]
