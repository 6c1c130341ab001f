"""The app that the workers of these tests run; servers and how samples are shipped come from the environment."""

from __future__ import annotations

import os
import time
from typing import Any

from celery import Celery

from aicache_tasks import CachedTask, CachePolicy, install

app = Celery("exits", set_as_current=False)
app.conf.update(
    worker_prefetch_multiplier=1,
    worker_lost_wait=0.3,
    broker_connection_retry_on_startup=True,
    aicache_strict=True,
    aicache_budget_ms=5000,
    aicache_connect_ms=5000,
)
if start_method := os.environ.get("START_METHOD"):
    app.conf.worker_pool_start_method = start_method
install(app)
SLOW_FROM = int(os.environ.get("SLOW_FROM", "1000"))
"""Texts of so many characters take a tenth of a second."""


@app.task(base=CachedTask, cache=CachePolicy(operation="shout", ttl="1h"), name="shout", shared=False)
def shout(text: str) -> str:
    """Each call's text has a length of its own, by which its samples are told from others'."""
    if len(text) >= SLOW_FROM:
        time.sleep(0.1)
    return text.upper()


@app.task(bind=True, name="relay", shared=False)
def relay(self: Any, text: str) -> None:
    """Send a call to a queue that no worker takes, from a process of the pool."""
    self.app.send_task("shout", (text,), queue="elsewhere")
