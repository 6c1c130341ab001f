"""An application that knows nothing of the cache."""

from __future__ import annotations

from celery import Celery

app = Celery("bare", set_as_current=False)
app.conf.update(broker_connection_retry_on_startup=True)
