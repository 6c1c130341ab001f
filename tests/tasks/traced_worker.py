"""Tasks in a worker that OpenTelemetry's instrumentation of Celery traces; each span that ends is a line of a file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from celery import Celery
from celery.signals import worker_process_init
from opentelemetry.instrumentation.celery import CeleryInstrumentor
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult

from aicache_tasks import CachedTask, CachePolicy, annotate, install

app = Celery("traced", set_as_current=False)
app.conf.update(
    broker_connection_retry_on_startup=True,
    aicache_strict=True,
    aicache_budget_ms=5000,
    aicache_connect_ms=5000,
)
install(app)


class Lines(SpanExporter):
    """Writes spans to the file that the environment names."""

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        with Path(os.environ["SPANS"]).open("a") as file:
            file.writelines(span.to_json(indent=None) + "\n" for span in spans)
        return SpanExportResult.SUCCESS


@worker_process_init.connect(weak=False)
def trace_tasks(**_: Any) -> None:
    """As the instrumentation's documentation says; the application itself does nothing for the cache's part."""
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(Lines()))
    CeleryInstrumentor().instrument(tracer_provider=provider)


@app.task(base=CachedTask, cache=CachePolicy(operation="paid"), name="paid", shared=False)
def paid(text: str) -> str:
    annotate(usage={"input_tokens": 800, "cached_input_tokens": 500, "output_tokens": 90}, cost=0.25)
    return text.upper()


@app.task(base=CachedTask, cache=CachePolicy(operation="again"), bind=True, name="again", shared=False)
def again(self: Any, text: str) -> str:
    if self.request.retries < 1:
        raise self.retry(countdown=0)
    return text


@app.task(base=CachedTask, cache=CachePolicy(operation="fails"), name="fails", shared=False)
def fails(text: str) -> str:
    raise ValueError("nothing of the text")


@app.task(base=CachedTask, cache=CachePolicy(operation="outer"), name="outer", shared=False)
def outer(text: str) -> str:
    return paid(text) + paid(text)  # the second is a hit


@app.task(base=CachedTask, name="plain", shared=False)
def plain(text: str) -> str:
    return text
