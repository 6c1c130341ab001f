"""
Where samples and summary records lie in Redis.

In: the namespace, operations, workers.   Out: keys, all in the one hash tag ``{namespace:s}``.   Pure.

One hash tag, because one atomic step takes samples from the inbox and adds them to records. None of these keys has a
ttl: a server that evicts what is volatile must not take them.
"""

from __future__ import annotations

from typing import Final

from aicache_tasks.keys import operation_slug

_LETTERS: Final = {"minute": "m", "hour": "h", "day": "d"}
_NO_OPERATION: Final = "~"
"""No slug of an operation: those that were changed go on after it."""


class SampleKeys:
    """The keys of one namespace.

    Args:
        namespace: as in `CacheKeyGenerator`.

    >>> SampleKeys("aicache").inbox
    '{aicache:s}:inbox'
    """

    def __init__(self, namespace: str) -> None:
        self._tag = f"{{{namespace}:s}}:"
        self.inbox, self.state = self._tag + "inbox", self._tag + "state"
        self.seen, self.ends, self.aside = self._tag + "seen", self._tag + "ends", self._tag + "aside"
        self.totals, self.workers, self.alerts = self._tag + "totals", self._tag + "workers", self._tag + "alerts"

    def records(self, operation: str, resolution: str) -> str:
        """Return the key of the hash of an operation's records, by window start.

        >>> SampleKeys("aicache").records("summarize", "hour")
        '{aicache:s}:h:summarize'
        """
        return f"{self._tag}{_LETTERS[resolution]}:{_slug(operation)}"

    def worker(self, worker: str) -> str:
        """Return the key of the hash of a worker's last hour, by minute."""
        return f"{self._tag}w:{_slug(worker)}"

    def kinds(self) -> dict[str, str]:
        """Return the Redis type of each key that is neither an operation's nor a worker's."""
        hashes = (self.state, self.seen, self.totals, self.workers, self.alerts)
        return {self.inbox: "list", self.aside: "list", self.ends: "zset"} | dict.fromkeys(hashes, "hash")

    def field(self, kind: str, name: str, start: int) -> tuple[str, str]:
        """Return key and field of one record: of an operation's ``total`` or window, or of a ``worker``'s minute.

        >>> SampleKeys("aicache").field("total", "summarize", 0)
        ('{aicache:s}:totals', 'summarize')
        """
        if kind == "total":
            return self.totals, name
        return self.worker(name) if kind == "worker" else self.records(name, kind), str(start)


def _slug(name: str) -> str:
    return operation_slug(name) if name else _NO_OPERATION
