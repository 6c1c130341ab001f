"""Asks the model server whatever it is told, under a time limit that only the worker's command line sets."""

from __future__ import annotations

from celery import Celery, signals

from workers.engines.openai import OpenAIEngine
from workers.engines.openai_settings import OpenAISettings
from workers.operations import make_request

app = Celery("llm", set_as_current=False)
app.conf.broker_connection_retry_on_startup = True


@signals.worker_init.connect
def load(**_: object) -> None:
    """Load the SDK before there are calls: on a busy machine that takes longer than the time limit."""
    import workers.engines.openai_http  # noqa: F401


@app.task(name="llm.ask")
def ask(url: str, operation: str, text: str) -> str:
    engine = OpenAIEngine(OpenAISettings(base_url=url, model="m", timeout_s=600))
    return engine.complete(make_request(operation, text)).text
