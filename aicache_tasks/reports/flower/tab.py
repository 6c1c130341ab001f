"""
Puts the tab into Flower 2.2.

In: Flower's modules.   Out: their list of handlers and their template loader, with the tab in both.

Flower has no plug-ins. What is used of its insides: `flower.urls.handlers` and `settings`, which the command reads
after the configuration file ran, its handlers, the text of ``navbar.html``, and its state of tasks (``taskstate``).
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Final

from flower.urls import handlers, settings
from tornado.template import Loader, Template
from tornado.web import url

from aicache_tasks.reports.flower.feed import Feed
from aicache_tasks.reports.flower.metrics import MetricsView
from aicache_tasks.reports.flower.taskstate import keep_states
from aicache_tasks.reports.flower.view import ApiView, AssetView, CsvView, DataView, InvalidateView, PageView

HERE: Final = Path(__file__).resolve().parent
PAGE: Final = "aicache.html"
END_OF_TABS: Final = "</ul>"
LINK: Final = """<li class="nav-item">
          <a class="nav-link{% if active_tab == 'aicache' %} active{% end %}"
            href="{{ reverse_url('aicache') }}"
            {% if active_tab == 'aicache' %}aria-current="page"{% end %}>AI cache</a>
        </li>
      """

log = logging.getLogger("aicache_tasks")


def add_tab(*, allow_invalidation: bool) -> None:
    """Add page, data and link to Flower; see `aicache_tasks.reports.flower.install_tab`."""
    if any(getattr(handler, "name", None) == "aicache" for handler in handlers):
        return
    keep_states()
    tab = {"feed": Feed(), "allow_invalidation": allow_invalidation}
    handlers.insert(0, url(r"/metrics", MetricsView))  # before Flower's own
    # Flower's last handler answers 404 to everything.
    handlers[-1:-1] = [
        url(r"/aicache", PageView, tab, name="aicache"),
        url(r"/aicache/data", DataView, tab, name="aicache-data"),
        url(r"/aicache/(operations|steps|windows|workers)\.csv", CsvView, tab),
        url(r"/aicache/invalidate", InvalidateView, tab, name="aicache-invalidate"),
        url(r"/aicache/static/(.+)", AssetView, {"path": str(HERE / "static")}, name="aicache-asset"),
        url(r"/api/aicache", ApiView, tab),
    ]
    settings["template_loader"] = TabLoader(settings["template_path"])


class TabLoader(Loader):
    """Flower's templates with the link in the navigation bar, and the tab's page."""

    def _create_template(self, name: str) -> Template:
        folder = HERE / "templates" if name == PAGE else Path(self.root)
        text = (folder / name).read_text(encoding="utf-8")
        if name == "navbar.html":
            text = with_link(text)
        return Template(text, name=name, loader=self)


def with_link(navbar: str) -> str:
    """Return the template *navbar* with the link behind the others, or as it is if there is no place for one."""
    if END_OF_TABS not in navbar:
        log.warning("aicache: no link in Flower's navigation bar, which has changed; the tab is at /aicache")
        return navbar
    return navbar.replace(END_OF_TABS, LINK + END_OF_TABS, 1)
