"""An application for workers and commands that the doctor looks at; the environment plants what is wrong."""

from __future__ import annotations

import functools
import os

from celery import Celery

from aicache_tasks import CachedTask, CachePolicy, annotate, install
from aicache_tasks.reports import inspect
from aicache_tasks.reports.doctor import case

app = Celery("clinic", set_as_current=False)
app.conf.update(
    broker_connection_retry_on_startup=True,
    worker_prefetch_multiplier=1,
    aicache_strict=True,
    aicache_budget_ms=5000,
    aicache_connect_ms=5000,
    aicache_namespace=os.environ.get("CLINIC_NAMESPACE", "clinic"),
)
install(app)
inspect.__version__ = os.environ.get("CLINIC_VERSION", inspect.__version__)  # type: ignore[misc]
if count := os.environ.get("CLINIC_WORKERS"):  # so many answer, however busy they are
    case.WORKERS_S = 5.0  # type: ignore[misc]
    app.control.broadcast = functools.partial(app.control.broadcast, limit=int(count))


def model() -> dict[str, object]:
    given = os.environ.get("CLINIC_MODEL", "first")
    return {"model": hash(given) if given == "hashed" else given}


@app.task(base=CachedTask, cache=CachePolicy(operation="shout", vary=model), shared=False)
def shout(text: str, *, size: int) -> str:
    annotate(model="mini-1", usage={"input_tokens": len(text), "output_tokens": size})
    return text.upper() * size


@app.task(base=CachedTask, cache=CachePolicy(version=os.environ.get("CLINIC_PROMPT", "1")), shared=False)
def whisper(text: str) -> str:
    annotate(cost=0.0125)
    return text.lower()
