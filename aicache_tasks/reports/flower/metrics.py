"""
Flower's ``/metrics`` with the records' figures in it.

In: a scrape.   Out: what Flower itself tells Prometheus, and what the cache's records say.

Flower makes its answer in its loop. This one is made in a thread, so that a server that is slow holds up nobody but the
scrape; scrapes at once share one answer.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, ClassVar, Final

from flower.views.monitor import Metrics
from prometheus_client import generate_latest

from aicache_tasks.reports.prometheus import RecordsCollector, register
from aicache_tasks.runtime import runtime_of

LIMIT_S: Final = 2.0
"""How long a scrape waits for the server."""


class MetricsView(Metrics):  # type: ignore[misc]
    """Stands before Flower's own handler."""

    thread: Final = ThreadPoolExecutor(1, "aicache-metrics")
    collector: ClassVar[RecordsCollector | None] = None
    pending: ClassVar[Future[bytes] | None] = None

    async def get(self) -> None:
        """Answer with Flower's metrics and the records'."""
        self.application.purge_offline_worker_metrics()
        collect(self.capp)
        text = await self.text()
        self.set_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
        self.write(text)

    @classmethod
    async def text(cls) -> bytes:
        """Return what the registry shows, made once for all who wait for it."""
        if cls.pending is None or cls.pending.done():
            cls.pending = cls.thread.submit(generate_latest)
        return await asyncio.shield(asyncio.wrap_future(cls.pending))


def collect(app: Any) -> None:
    """Have the registry of ``prometheus_client`` show the records of *app*, if it has a cache; once."""
    if MetricsView.collector is None and runtime_of(app).ships:
        MetricsView.collector = register(app, limit_s=LIMIT_S)
