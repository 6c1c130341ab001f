"""The application whose Flower the tests look at: ``celery -A tests.flower_app flower``."""

from __future__ import annotations

import os

from celery import Celery

from aicache_tasks import CachedTask, CachePolicy, install

app = Celery("shop", broker=os.environ.get("AICACHE_TEST_BROKER", "memory://"), set_as_current=False)
app.conf.broker_connection_retry_on_startup = True
install(app)


@app.task(base=CachedTask, cache=CachePolicy(operation="shout"))
def shout(text: str) -> str:
    """Return *text* in capitals."""
    return text.upper()
