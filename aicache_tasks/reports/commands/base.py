"""
What the commands share: options, exit codes, and the way from a context to the records.

In: a click context of ``celery -A app aicache …``.   Out: a `Reader`, a `Screen`, JSON; errors as exit codes.

====  =============================================================================================
0     done; with ``--json`` also where there is nothing to show: its lists are empty
1     the cache's server does not answer, or refuses; or a newer version wrote the records
2     wrong use: options, no ``-A``, no ``install(app)``, a wrong or missing setting; no room for the output
3     nothing to show
130   interrupted by Ctrl-C
141   what reads the output stopped reading, as in ``| head``
====  =============================================================================================
"""

from __future__ import annotations

import errno
import functools
import json
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NoReturn, TypeVar

import click
from celery.bin.base import CeleryCommand

from aicache_tasks.durations import parse_duration, shorten
from aicache_tasks.errors import SettingsError, StoreError, UnknownPayload
from aicache_tasks.reports.queries import Reader
from aicache_tasks.reports.refusals import what_helps, what_it_did
from aicache_tasks.reports.spans import Span, parse_moment
from aicache_tasks.reports.tables import Screen
from aicache_tasks.reports.wording import label, moment, plural
from aicache_tasks.runtime import Runtime, runtime_of
from aicache_tasks.settings import mask_url

INTERRUPTED, PIPE_CLOSED = 130, 141
UNWRITABLE: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO})
"""What a write to stdout ends with where it is a file; files that commands open themselves say it with their names."""
F = TypeVar("F", bound=Callable[..., Any])


class Unanswered(click.ClickException):
    """The server does not answer, or refuses."""

    exit_code = 1


class Misused(click.ClickException):
    """Wrong use, in one line."""

    exit_code = 2


class Nothing(click.ClickException):
    """There is nothing to show."""

    exit_code = 3

    def show(self, file: Any = None) -> None:
        """Write the message, which is no error, to stderr."""
        click.echo(self.format_message(), err=True)


def command(function: Callable[..., Any]) -> click.Command:
    """Make a command of ``aicache`` of *function*, which gets the context and its options."""
    name = function.__module__.rpartition(".")[2]
    return click.command(name, cls=CeleryCommand)(click.pass_context(_answering(function)))


def _answering(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def answer(ctx: click.Context, **options: Any) -> None:
        logging.getLogger("aicache_tasks").addHandler(logging.NullHandler())  # the error below says it
        _open_what_is_closed()
        with _written(ctx), _interruptible(ctx):
            try:
                function(ctx, **options)
            except StoreError as error:
                raise Unanswered(_unanswered(ctx, error)) from None
            except UnknownPayload as error:
                raise Unanswered(str(error)) from None
            except SettingsError as error:
                raise Misused(str(error)) from None

    return answer


def _open_what_is_closed() -> None:
    """Let there be a stdin, stdout and stderr where the caller closed them, as by ``>&-``; until the process ends."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode, encoding="utf-8"))  # noqa: SIM115


@contextmanager
def _interruptible(ctx: click.Context) -> Iterator[None]:
    try:
        yield
    except click.Abort as error:  # at a question; click has one word for Ctrl-C and Ctrl-D
        click.echo(err=True)
        if isinstance(error.__context__, EOFError):
            raise Nothing("nothing was changed") from None
        ctx.exit(INTERRUPTED)
    except KeyboardInterrupt:
        ctx.exit(INTERRUPTED)


@contextmanager
def _written(ctx: click.Context) -> Iterator[None]:
    """Write out what the block said on stdout, also where it ends with an exit code of its own."""
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        _let_stdout_go()
        ctx.exit(PIPE_CLOSED)
    except OSError as error:
        if error.errno not in UNWRITABLE or error.filename is not None:
            raise
        _let_stdout_go()
        raise Misused(f"stdout cannot be written: {error.strerror}") from None


def _unanswered(ctx: click.Context, error: StoreError) -> str:
    settings = _runtime(ctx).settings
    return unanswered(error, settings.url or "", what_helps(error, settings.url or ""))


def unanswered(error: StoreError, url: str, helps: str) -> str:
    """Return what the server at *url* did, and what helps, as an error says it."""
    said = f"the cache's server, {label(mask_url(url), 200)}, {what_it_did(error)}"
    return f"{said}. {helps}" if helps else said


def _let_stdout_go() -> None:
    """Let what is left to write go nowhere, so that the interpreter does not complain when it ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


# From a context to the records.


def reader_of(ctx: click.Context) -> Reader:
    """Return the records' reader of the application that ``-A`` names.

    Raises:
        click.ClickException: there is no application, or it has no cache to read from.
        SettingsError: a setting is wrong or missing.
    """
    runtime = _runtime(ctx)
    if runtime.settings.samples == "off":
        click.echo("aicache_samples is off: tasks add nothing to what is shown", err=True)
    if runtime.settings.disabled:
        click.echo(
            "aicache_disabled is set: with this setting each call runs its body and adds nothing to what is shown",
            err=True,
        )
    return Reader(runtime.cache.parts)


def _runtime(ctx: click.Context) -> Runtime:
    app = ctx.obj.app
    if not runtime_of(app).ships:
        if ctx.find_root().params.get("app") is None:
            raise click.UsageError("no application: say `celery -A module aicache …`, with -A before aicache")
        raise Misused(
            f"the application {label(str(app.main))} has no cache: its module must call aicache_tasks.install(app)"
        )
    return runtime_of(app)


def place_of(ctx: click.Context) -> str:
    """Return where the records lie: server and namespace, passwords masked."""
    settings = _runtime(ctx).settings
    return f"{label(mask_url(settings.url or ''), 200)}, namespace {settings.namespace}"


def nothing_yet(ctx: click.Context, reader: Reader) -> NoReturn:
    """Say why there is nothing to show, and what to do.

    Raises:
        Nothing: always.
    """
    entries = reader.summaries.backlog().entries
    waiting = f"{plural(entries, 'batch')} of timings waiting, which `celery -A … aicache rollup` counts now"
    if reader.summaries.operations():
        hint = f"; {waiting}" if entries else ""
        raise Nothing(f"nothing was recorded in this span; try a longer --since, or another --operation{hint}")
    if entries:
        raise Nothing(f"nothing is rolled up yet; {waiting}. Is beat running, and a worker?")
    raise Nothing(
        f"nothing is recorded yet in {place_of(ctx)}. Has a task with cache= run? Under task_always_eager it uses the "
        "cache only with aicache_eager=True. Do the workers have the same aicache_url and aicache_namespace, and "
        "neither aicache_samples=off nor aicache_disabled?"
    )


def screen_of(ctx: click.Context) -> Screen:
    """Return where to show tables."""
    return Screen(sys.stdout, no_color=bool(ctx.obj.no_color))


def echo_json(data: Any) -> None:
    """Write *data* as JSON. All but ASCII is escaped, so that a terminal acts on nothing of it."""
    sys.stdout.write(json.dumps(data, indent=2, allow_nan=False) + "\n")


# Options.


def as_json(function: F) -> F:
    """Add ``--json``."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")(function)


def spanned(since: str) -> Callable[[F], F]:
    """Add ``--since``, by default *since*, ``--until`` and ``--operation``."""

    def add(function: F) -> F:
        for option in (
            click.option("--operation", "operations", multiple=True, metavar="NAME", help="Only this one; repeatable."),
            click.option("--until", default="now", show_default=True, metavar="TIME", help="Until when; as --since."),
            click.option(
                "--since",
                metavar="TIME",
                help=f"From when: 6h, 30m, 2d (ago) or 2026-11-22T10:00 (UTC).  [default: {since}]",
            ),
        ):
            function = option(function)
        return function

    return add


def span_of(reader: Reader, since: str, until: str) -> Span:
    """Return the span that the options say.

    Raises:
        SettingsError: it is none.
    """
    now_s = reader.now_s()
    span = Span(parse_moment(since, now_s, name="--since"), parse_moment(until, now_s, name="--until"))
    if span.start_s > now_s:
        raise SettingsError(f"--since: {shorten(since)} is in the future; it is {moment(now_s)} UTC")
    if span.length_s <= 0:
        raise SettingsError(f"--since: {shorten(since)} must be before --until, which is {shorten(until)}")
    return span


def length_of(text: str, name: str) -> float:
    """Return an option's duration in seconds.

    Raises:
        SettingsError: it is none, or 0.
    """
    seconds = parse_duration(text, name=name)
    if not seconds:
        raise SettingsError(f"{name}: must be longer than 0")
    return seconds


def wanted(operations: tuple[str, ...]) -> tuple[str, ...] | None:
    """Return the operations that were asked for, None for all."""
    return operations or None
