"""
What the tab answers to requests.

In: a request that Flower let in.   Out: the page, its data as JSON or CSV, its assets; one operation invalidated.

The page and what it loads are views: Flower's own login holds for them. ``/api/aicache`` has the same data by the rules
of Flower's API. Nothing here waits for Redis: `Feed` does, in a thread.
"""

from __future__ import annotations

import asyncio
import logging
import time
from base64 import b64decode
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from flower.api import BaseApiHandler
from flower.views import BaseHandler
from tornado.escape import json_decode
from tornado.web import HTTPError, RequestHandler, StaticFileHandler, authenticated

from aicache_tasks.errors import SettingsError, StoreError
from aicache_tasks.reports.flower.download import csv_of
from aicache_tasks.reports.flower.feed import Document, Feed
from aicache_tasks.reports.flower.snapshot import ALL_TIME, DEFAULT_SPAN, SPANS, Asked
from aicache_tasks.reports.wording import label
from aicache_tasks.runtime import runtime_of
from aicache_tasks.summaries import Summaries

POLICY: Final = "default-src 'self'; img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'; form-action 'self'"
"""Of the page: nothing from elsewhere, nothing inline."""
MAX_NAME_CHARS: Final = 800
INVALIDATION_S: Final = 10.0
"""How long the answer to an invalidation may take."""

log = logging.getLogger("aicache_tasks")


class TabHandler(BaseHandler):  # type: ignore[misc]
    """What the handlers share."""

    def initialize(self, feed: Feed, *, allow_invalidation: bool) -> None:
        """Take what `add_tab` made."""
        self.feed, self.allow_invalidation = feed, allow_invalidation

    @property
    def may_invalidate(self) -> bool:
        """Whether the operator, and Flower's own read-only mode, let people invalidate."""
        return self.allow_invalidation and not getattr(self.application.options, "read_only", False)

    async def document(self) -> Document:
        """Return what the request's arguments ask for."""
        found = await self.feed.document(self.capp, self.asked())
        return found | {"may_invalidate": self.may_invalidate, "served_s": time.time()}

    def asked(self) -> Asked:
        """Return what the request's arguments say.

        Raises:
            HTTPError: 400, they say nothing that there is.
        """
        span = self.get_argument("span", DEFAULT_SPAN)
        operation = self.get_argument("operation", None, strip=False, escape=False)
        if span not in SPANS and span != ALL_TIME:
            raise HTTPError(400, reason=f"span must be one of {', '.join(SPANS)}, {ALL_TIME}")
        if operation is not None and len(operation) > MAX_NAME_CHARS:
            raise HTTPError(400, reason="no operation has so long a name")
        return Asked(span, operation or None)

    def fresh(self) -> None:
        """Have nobody keep the answer."""
        self.set_header("Cache-Control", "no-store")


class PageView(TabHandler):
    """The page without figures; its script asks for them."""

    @authenticated
    async def get(self) -> None:
        """Answer with the page."""
        self.fresh()
        self.set_header("Content-Security-Policy", POLICY)
        self.set_header("Referrer-Policy", "same-origin")
        self.render("aicache.html", spans=[*SPANS, ALL_TIME], default_span=DEFAULT_SPAN)


class JsonView(TabHandler):
    """What a script reads."""

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """Answer with the reason as JSON: a script reads it."""
        if status_code == 401:
            super().write_error(status_code, **kwargs)
            return
        self.set_header("Content-Type", "application/json")
        self.finish({"error": self._reason})


class DataView(JsonView):
    """The page's data."""

    @authenticated
    async def get(self) -> None:
        """Answer with the document; ``download`` in the arguments makes it a file."""
        document = await self.document()
        self.fresh()
        if self.get_argument("download", None) is not None:
            self.set_header("Content-Disposition", f'attachment; filename="aicache-{self.asked().span}.json"')
        self.write(document)


class CsvView(JsonView):
    """One of the page's tables as CSV."""

    @authenticated
    async def get(self, table: str) -> None:
        """Answer with the table, or 503 where there are no figures."""
        document = await self.document()
        if "total" not in document:
            raise HTTPError(503, reason=document["advice"]["title"])
        self.fresh()
        self.set_header("Content-Type", "text/csv; charset=utf-8")
        name = f"aicache-{table}-{self.asked().span}.csv"
        self.set_header("Content-Disposition", f'attachment; filename="{name}"')
        self.write(csv_of(document, table))


class ApiView(BaseApiHandler, JsonView):  # type: ignore[misc]
    """The same data under Flower's API, by its rules."""

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """Answer as Flower's API where nobody is let in, else with the reason."""
        answer = BaseApiHandler if status_code == 401 else JsonView
        answer.write_error(self, status_code, **kwargs)

    @authenticated
    async def get(self) -> None:
        """Answer with the document."""
        document = await self.document()
        self.fresh()
        self.write(document)


class InvalidateView(JsonView):
    """Takes an operation out of force."""

    _thread: Final = ThreadPoolExecutor(1, "aicache-invalidate")

    def check_xsrf_cookie(self) -> None:
        """Ask for the page's token always: Flower itself does not where nobody logs in."""
        super().check_xsrf_cookie()
        RequestHandler.check_xsrf_cookie(self)

    @authenticated
    async def post(self) -> None:
        """Invalidate the operation that the body names, as JSON; answer with when.

        Raises:
            HTTPError: 403 it is not allowed, 400 the body is no such JSON, 404 there is no such operation, 503 the
                server did not take it: ask again.
        """
        if not self.may_invalidate:
            raise HTTPError(403, reason="invalidation is switched off")
        operation = self._named()
        try:
            done = asyncio.get_running_loop().run_in_executor(self._thread, _invalidate, self.capp, operation)
            await asyncio.wait_for(asyncio.shield(done), INVALIDATION_S)
        except KeyError:
            raise HTTPError(404, reason="no such operation") from None
        except (StoreError, SettingsError, TimeoutError) as error:
            detail = error.detail if isinstance(error, StoreError) else type(error).__name__
            raise HTTPError(503, reason=f"not done: {ascii(detail)[:100]}") from None
        self.feed.forget()
        log.info("aicache: %s invalidated the operation %s in Flower", self._who(), label(operation))
        self.write({"invalidated": operation, "at_s": time.time()})

    def _named(self) -> str:
        try:
            body = json_decode(self.request.body)
        except ValueError:
            body = None
        operation = body.get("operation") if isinstance(body, dict) else None
        if not isinstance(operation, str) or not 0 < len(operation) <= MAX_NAME_CHARS:
            raise HTTPError(400, reason='send {"operation": name}')
        return operation

    def _who(self) -> str:
        user = self.current_user
        return label(user if isinstance(user, str) else self._basic_user() or f"somebody at {self.request.remote_ip}")

    def _basic_user(self) -> str:
        """Return whom Flower let in by ``--basic_auth``, whose password it has checked; it keeps no name itself."""
        if not self.application.options.basic_auth:
            return ""
        credentials = self.request.headers["Authorization"].split()[1]
        return b64decode(credentials).decode().partition(":")[0]


def _invalidate(app: Any, operation: str) -> None:
    """Take every answer of *operation* out of force.

    Raises:
        KeyError: it has neither records nor a task.
        StoreError: the server did not take it.
        SettingsError: there is no cache.
    """
    runtime = runtime_of(app)
    cache = runtime.cache
    if operation not in {*runtime.policies.operations(), *Summaries(cache.parts).operations()}:
        raise KeyError(operation)
    cache.invalidate_by_operation(operation, "flower")


class AssetView(StaticFileHandler):
    """The page's script and style. Browsers ask each time whether they changed: an upgrade is seen at once."""

    def set_extra_headers(self, path: str) -> None:
        """Say so."""
        self.set_header("Cache-Control", "no-cache")
        self.set_header("X-Content-Type-Options", "nosniff")
