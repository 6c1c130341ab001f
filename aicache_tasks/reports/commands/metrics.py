"""
``metrics``: the records for Prometheus.

In: an address.   Out: ``/metrics`` served there until it is stopped; or the same text once, on stdout.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable, Iterable
from typing import Any, Final

import click

from aicache_tasks.errors import MissingExtraError
from aicache_tasks.reports.commands.base import Misused, Unanswered, command, place_of, reader_of
from aicache_tasks.reports.wording import label

LIMIT_S: Final = 5.0
"""How long a scrape may take: Prometheus itself waits for 10 s by default."""


@command
@click.option(
    "--port",
    type=click.IntRange(0, 65_535),
    default=9540,
    show_default=True,
    metavar="PORT",
    help="Where to listen.",
)
@click.option("--address", default="127.0.0.1", show_default=True, metavar="ADDRESS", help="On which address.")
@click.option("--once", is_flag=True, help="Print the figures once, and end.")
def metrics(ctx: click.Context, port: int, address: str, once: bool) -> None:
    """Serve the records to Prometheus.

    At /metrics: lifetime totals, which what waits for the roll-up is in, alerts, the inbox, the server. One such
    process is enough for all workers. Flower's own /metrics has the same figures where the tab is installed.
    """
    reader_of(ctx)  # says what is wrong with the settings, at once
    try:
        from aicache_tasks.reports.prometheus import register
    except ModuleNotFoundError:
        raise Misused(str(MissingExtraError("prometheus-client", "metrics"))) from None
    from prometheus_client import CollectorRegistry

    _warn_on_stderr()
    registry = CollectorRegistry()
    register(ctx.obj.app, registry, limit_s=LIMIT_S)
    if once:
        _print(ctx, registry)
    else:
        _serve(ctx, registry, address, port)


def _warn_on_stderr() -> None:
    """Have the collector say why there are no figures, unless the application's own handlers get that already."""
    ours = logging.getLogger("aicache_tasks")
    has_own = any(not isinstance(one, logging.NullHandler) for one in ours.handlers + logging.getLogger().handlers)
    if logging.lastResort is not None and not has_own:
        ours.addHandler(logging.lastResort)


def _print(ctx: click.Context, registry: Any) -> None:
    from prometheus_client import generate_latest

    text = generate_latest(registry).decode()
    sys.stdout.write(text)
    if registry.get_sample_value("aicache_up") != 1:
        raise Unanswered(f"the records in {place_of(ctx)} cannot be read")


def _serve(ctx: click.Context, registry: Any, address: str, port: int) -> None:
    from prometheus_client import make_wsgi_app, start_http_server

    try:
        server, thread = start_http_server(port, address, registry)
    except OSError as error:
        raise Misused(f"cannot listen on {label(address)}, port {port}: {error.strerror}") from None
    server.set_app(answering_head(make_wsgi_app(registry)))
    click.echo(f"http://{label(address)}:{server.server_port}/metrics has the records in {place_of(ctx)}", err=True)
    try:
        _wait(thread)
    finally:
        server.shutdown()
        server.server_close()


def answering_head(app: Callable[..., Iterable[bytes]]) -> Callable[..., Iterable[bytes]]:
    """Return the WSGI application *app* with HEAD answered like GET, without the body: checks of health use it."""

    def answer(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if environ["REQUEST_METHOD"] != "HEAD":
            return app(environ, start_response)

        def start(status: str, headers: list[tuple[str, str]]) -> None:
            started.append((status, headers))

        started: list[tuple[str, list[tuple[str, str]]]] = []
        length = sum(map(len, app({**environ, "REQUEST_METHOD": "GET"}, start)))
        status, headers = started[0]
        start_response(status, [*headers, ("Content-Length", str(length))])
        return []

    return answer


def _wait(thread: threading.Thread) -> None:
    while thread.is_alive():
        thread.join(1.0)  # Ctrl-C arrives in between
