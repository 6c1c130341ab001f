"""Tasks whose calls are easily counted, for workers and beats in processes of their own."""

from __future__ import annotations

import logging
import os
from typing import Any

from celery import Celery

from aicache_tasks import CachedTask, CachePolicy, alert_changed, install
from aicache_tasks.fallback import Fallback

PERIOD_S = 1

Fallback.check_s = float(os.environ.get("FALLBACK_CHECK_S", Fallback.check_s))
Fallback.late_s = float(os.environ.get("FALLBACK_LATE_S", Fallback.late_s))

app = Celery("rollup", set_as_current=False)
app.conf.update(
    broker_connection_retry_on_startup=True,
    worker_prefetch_multiplier=1,
    aicache_strict=True,
    aicache_budget_ms=5000,
    aicache_connect_ms=5000,
    aicache_ship_after_s=0.1,
    aicache_rollup_period_s=PERIOD_S,
    # Beside the roll-up's entry, which must not be in the way of the user's, whenever these were assigned.
    beat_schedule={"tick": {"task": "tick", "schedule": PERIOD_S, "args": (0,)}},
    # With celery-redbeat: how soon another beat takes over.
    redbeat_redis_url=os.environ.get("CELERY_BROKER_URL", ""),
    redbeat_lock_timeout=3,
    beat_max_loop_interval=1,
)
install(app)


@app.task(base=CachedTask, cache=CachePolicy(operation="echo", ttl="10m"), name="echo", shared=False)
def echo(text: str) -> str:
    return text


@app.task(name="tick", shared=False)
def tick(number: int) -> int:
    return number


@alert_changed.connect
def tell(sender: Any, **given: Any) -> None:
    """Log what the signal said, where a test reads it."""
    logging.getLogger("heard").warning("heard %s %s", given["alert"], given["level"])
