"""
What the checks look at, each thing asked for once and only if a check wants it.

In: an application, a reader of its records.   Out: `Case`: what the server, the workers and other processes say.
"""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from functools import cached_property
from typing import Any, Final, Literal, NamedTuple, TypeVar, cast
from urllib.parse import parse_qsl, urlencode, urlsplit

from aicache_tasks.checks import URL_SCHEMES
from aicache_tasks.errors import SettingsError, StoreError
from aicache_tasks.reports.inspect import cache_policy
from aicache_tasks.reports.queries import Live, Reader
from aicache_tasks.runtime import cached_tasks
from aicache_tasks.stores import open_store
from aicache_tasks.stores.base import Budget
from aicache_tasks.stores.resp import accept, pack, pack_all, values_of

TRIPS: Final = 15
"""Round trips that are timed."""
CONNECT_S: Final = 2.0
WORKERS_S: Final = 1.5
"""How long workers may take to answer."""
BROKER_S: Final = 6.0
"""How long all that is asked of the broker may take, whatever its client waits for."""
PROBE_S: Final = 60.0
UNREADABLE: Final = "an answer that cannot be read"
SHUTS_OUT: Final = ("NOAUTH", "DENIED")
"""Ends of what a server says to whom it does not let in without a password."""

Level = Literal["ok", "warn", "fail"]
T = TypeVar("T")


class Finding(NamedTuple):
    """What one check found."""

    check: str
    level: Level
    what: str
    """A sentence without its full stop; holds no password, argument or answer."""
    fix: str = ""
    """What to do; empty if all is well."""


class Server(NamedTuple):
    """What the cache's server says."""

    info: Mapping[str, str]
    """Of INFO."""
    snapshots: bool | None
    """Whether it saves snapshots; None if its user may not ask."""
    ahead_s: float
    """How far its clock is ahead of this process's."""
    trips_ms: Sequence[float]
    """What round trips took, the shortest first."""


class Replies(NamedTuple):
    """What workers answered."""

    each: Mapping[str, Mapping[str, Any]]
    """By node name."""
    fault: str
    """Why they could not be asked; empty if they were."""


class Case:
    """One application as `examine` finds it.

    Args:
        app: the application, with all its tasks.
        reader: of its records.
        probe: the command that prints the keys of calls with made-up arguments, run in processes of its own; None if
            there is no such command.
        now_s: the clock, seconds since the epoch.
    """

    def __init__(
        self, app: Any, reader: Reader, probe: Sequence[str] | None = None, now_s: Callable[[], float] = time.time
    ) -> None:
        self.app, self.reader, self.probe, self._now_s = app, reader, probe, now_s
        self.settings, self.parts = reader.settings, reader.summaries.parts
        self.url = self.settings.require_url()
        self.tasks = cached_tasks(app)

    # The server.

    @property
    def server(self) -> Server | None:
        """What the server says, None if it does not answer; see `fault`."""
        return self._answer if isinstance(self._answer, Server) else None

    @property
    def fault(self) -> str:
        """Why the server does not answer; empty if it does."""
        return "" if self.refusal is None else self.refusal.detail

    @property
    def refusal(self) -> StoreError | None:
        """The same as an error; None if it answers."""
        return self._answer if isinstance(self._answer, StoreError) else None

    @cached_property
    def _answer(self) -> Server | StoreError:
        try:
            return self._ask_server()
        except StoreError as error:
            return error

    def _ask_server(self) -> Server:
        info = self._ask(b"INFO", parse=lambda reply: said_by(accept(reply)))
        trips = sorted((self._trip() for _ in range(TRIPS)), key=lambda trip: trip[0])
        return Server(info, self._snapshots(), trips[0][1], [1000 * took_s for took_s, _ in trips])

    def _trip(self) -> tuple[float, float]:
        """Return what a round trip took, and how far the server's clock is ahead, both in seconds."""
        began_s, began = self._now_s(), time.perf_counter()
        seconds, micros = self._ask(b"TIME", parse=lambda reply: [int(part or 0) for part in values_of(reply, 2)])
        took_s = time.perf_counter() - began
        return took_s, seconds + micros / 1e6 - (began_s + took_s / 2)

    def _snapshots(self) -> bool | None:
        try:
            _, points = self._ask(b"CONFIG", b"GET", b"save", parse=lambda reply: values_of(reply, 2))
        except StoreError:
            return None
        return bool(points)

    def _ask(self, *command: bytes, parse: Callable[[Any], Any]) -> Any:
        store = cast("Any", self.parts.store.store)
        ask = lambda budget: store.ask(pack(*command), 1, budget, lambda got: parse(got[0]))  # noqa: E731
        return self.parts.store.operate(ask, Budget(CONNECT_S), writes=False)

    @cached_property
    def shared_with(self) -> list[str]:
        """What of Celery's lies on the cache's server: ``broker``, ``result backend``."""
        if self.server is None:
            return []
        backend, mine = str(self.app.conf.result_backend or ""), self.server.info.get("run_id")
        urls = [*(("broker", url) for url in self.broker_urls), ("result backend", backend)]
        return list(dict.fromkeys(name for name, url in urls if mine and url and info_of(url).get("run_id") == mine))

    @cached_property
    def broker_urls(self) -> list[str]:
        """All that may be the broker, with their passwords: to write and to read, and what a failover list names."""
        made = self.app.connection_for_write(), self.app.connection_for_read()  # no connection yet
        return list(dict.fromkeys(url for one in made for url in (one.as_uri(include_password=True), *one.alt[1:])))

    @cached_property
    def is_open_to_all(self) -> bool:
        """Whether the server does what somebody asks who has no password."""
        return lets_in(without_login(self.url))

    # The records, the workers, other processes.

    @cached_property
    def live(self) -> Live:
        """What is so now; raises `StoreError`."""
        return self.reader.live()

    @cached_property
    def mine(self) -> Mapping[str, Any]:
        """What this process would answer if it were a worker."""
        return cache_policy(self.app, self.tasks)

    @cached_property
    def replies(self) -> Replies:
        """What the workers answer."""
        try:
            return in_time(lambda: _ask_workers(self.app), BROKER_S)
        except TimeoutError as error:
            return Replies({}, type(error).__name__)

    def printed(self, seeds: Iterable[str]) -> list[str]:
        """Return what the probe prints, in one process for each of *seeds*; empty for one that failed."""
        quiet = os.environ | {"AICACHE_SAMPLES": "off"}
        started = [
            subprocess.Popen(  # noqa: S603 - this very command, once more
                list(self.probe or ()),
                env=quiet | {"PYTHONHASHSEED": seed},
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
            for seed in seeds
        ]
        return [_output(process) for process in started]


def _ask_workers(app: Any) -> Replies:
    with app.connection_for_write(connect_timeout=CONNECT_S) as connection:
        faults = (OSError, *connection.connection_errors, *connection.channel_errors)
        try:
            connection.ensure_connection(max_retries=0, timeout=CONNECT_S, reraise_as_library_errors=False)
            found = app.control.broadcast("cache_policy", reply=True, timeout=WORKERS_S, connection=connection)
        except faults as error:
            return Replies({}, type(error).__name__)
    return Replies(dict(_named(found or ())), "")


def in_time(question: Callable[[], T], limit_s: float) -> T:
    """Return what *question* does, or raise what it raises; it goes on in a thread that nobody waits for.

    Raises:
        TimeoutError: it takes longer than *limit_s*; some clients wait for ever on a server that is frozen.
    """
    answer: Future[T] = Future()

    def ask() -> None:
        try:
            answer.set_result(question())
        except BaseException as error:  # noqa: BLE001 - raised again where it is waited for
            answer.set_exception(error)

    threading.Thread(target=ask, name="aicache-doctor", daemon=True).start()
    return answer.result(limit_s)


def _named(replies: Iterable[Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield each node's name and answer; what is no reply of a node under a name that no node has."""
    for reply in replies:
        for name, answer in (reply if isinstance(reply, Mapping) else {"?": None}).items():
            yield str(name), _answered(answer)


def _answered(answer: Any) -> Mapping[str, Any]:
    return answer if isinstance(answer, Mapping) else {"error": UNREADABLE if answer is None else str(answer)}


def _output(process: subprocess.Popen[str]) -> str:
    with process:
        try:
            text, _ = process.communicate(timeout=PROBE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            return ""
    return text if process.returncode == 0 else ""


def info_of(url: str) -> dict[str, str]:
    """Return what the server at *url* says about itself; nothing if it is no Redis, or does not answer."""
    if urlsplit(url).scheme not in URL_SCHEMES[:-1]:
        return {}
    try:
        return _info_of(url)
    except (StoreError, SettingsError):
        return {}


def lets_in(url: str) -> bool:
    """Return whether the server at *url* takes commands, be it that it refuses the one that is tried."""
    try:
        _info_of(url)
    except StoreError as error:
        return error.reason == "redis_error" and not error.detail.endswith(SHUTS_OUT)
    except SettingsError:
        return False
    return True


def _info_of(url: str) -> dict[str, str]:
    found: dict[str, str] = ask_at(url, [[b"INFO"]], lambda got: said_by(accept(got[0])))
    return found


def ask_at(url: str, commands: Sequence[Sequence[str | bytes]], parse: Callable[[list[Any]], Any]) -> Any:
    """Return what *parse* makes of the replies of the server at *url*, whichever that is.

    Raises:
        StoreError: it does not answer in `CONNECT_S`, or refuses.
        SettingsError: the URL is none that can be asked.
    """
    budget = Budget(CONNECT_S)
    budget.begin()
    store = cast("Any", open_store(url, connect_s=CONNECT_S))
    try:
        return store.ask(pack_all(commands), len(commands), budget, parse)
    finally:
        store.close()


def said_by(text: bytes) -> dict[str, str]:
    """Return the fields of a reply to INFO."""
    lines = text.decode("utf-8", "replace").splitlines()
    return dict(line.split(":", 1) for line in lines if ":" in line)


def without_login(url: str) -> str:
    """Return *url* without user and password.

    >>> without_login("redis://ann:secret@host:1/0"), without_login("unix:///run/s?db=0&password=secret")
    ('redis://host:1/0', 'unix:///run/s?db=0')
    """
    if url.startswith("unix://"):
        scheme, _, rest = url.partition("://")
        url = f"{scheme}://{rest.rpartition('@')[2]}"
    parts = urlsplit(url)
    query = [(name, value) for name, value in parse_qsl(parts.query) if name not in ("username", "password")]
    netloc = parts.netloc.rpartition("@")[2]
    return parts._replace(netloc=netloc, query=urlencode(query)).geturl() if netloc else _bare(url, query)


def _bare(url: str, query: Sequence[tuple[str, str]]) -> str:
    path = url.partition("?")[0]
    return f"{path}?{urlencode(query)}" if query else path
