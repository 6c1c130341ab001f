"""
Rows 1 and 2: what does a hit cost, next to what a good engineer would write by hand?

    python -m benchmarks.hit

The floor reads the same answer with no cache library: MessagePack and SHA-256 of the arguments, redis-py's ``get``,
one ``zstd.decompress`` of the standard library's module (its backport before Python 3.14), msgspec's JSON decoder.
It has no deadline, no breaker, no invalidation, no checksum and no timings. dogpile.cache and cashews read a pickled
answer under the same key. ``task`` is a direct call of a `CachedTask` minus the same call of a stock task.
"""  # fmt: skip

from __future__ import annotations

import asyncio
import hashlib
import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import msgspec
from celery import Celery

from aicache_tasks import AIResponseCache, CachedTask, CachePolicy
from aicache_tasks.testing import EmbeddedServer
from benchmarks import _run
from benchmarks._run import ANSWER, OPTIONS, PROMPT, Contender, Interval, Options, Row, Spent, Taken

TARGETS = {"same": 0.75, "cross": 0.85}
L1_TARGET = 0.25
_pack = msgspec.msgpack.Encoder().encode


def measure(options: Options) -> list[Row]:
    """Return rows 1 and 2 in each mode."""
    rows: list[Row] = []
    for mode in options.modes:
        with EmbeddedServer() as server, _run.pinned(mode, server.pid), _hits(server.url) as hits:
            found = _rows(_run.interleave(hits.contenders, options, f"hit, {mode}"), mode)
            if not options.quick:
                _run.explain_shortfalls(found, hits.profiled)
            rows += found
    return rows


def _rows(taken: Taken, mode: str) -> list[Row]:
    wall, cpu = _without_task(taken.wall), _without_task(taken.cpu)
    rows = [
        _row(1, "façade hit / floor", mode, _run.ratio(wall["façade"], wall["floor"]), TARGETS[mode]),
        _row(1, "task hit / floor", mode, _run.ratio(wall["task"], wall["floor"]), TARGETS[mode]),
        _row(2, "façade L1 hit / floor", mode, _run.ratio(wall["façade, L1"], wall["floor"]), L1_TARGET),
        _row(2, "task L1 hit / floor", mode, _run.ratio(wall["task, L1"], wall["floor"]), L1_TARGET),
    ]
    rows[0].detail, rows[1].detail = _run.medians(taken.wall), _run.medians(taken.cpu)
    ours = ("façade", "task")
    for peer in [name for name in ("dogpile.cache + key", "cashews + key") if name in wall]:
        rows += [_row(1, f"{who} hit / {peer}", mode, _run.ratio(wall[who], wall[peer]), 1.0) for who in ours]
    rows += [
        _row(0, f"{who} hit / floor, client's CPU", mode, _run.ratio(cpu[who], cpu["floor"]), None) for who in ours
    ]
    return rows


def _without_task(taken: dict[str, list[float]]) -> dict[str, list[float]]:
    """Take what the stock task takes from what the cached tasks take."""
    stock = taken["no-op task"]
    return taken | {name: _run.less(taken[name], stock) for name in ("task", "task, L1")}


def _row(row: int, what: str, mode: str, found: Interval, target: float | None) -> Row:
    return Row(row, what, mode, "×", *found, target)


@contextmanager
def _hits(url: str) -> Iterator[SimpleNamespace]:
    """Fill the caches and yield the contenders, each of them checked once to give the answer."""
    l2, l1 = _tasks(url, l1_entries=0), _tasks(url, l1_entries=100)
    calls: dict[str, Callable[[], Any]] = {
        "floor": floor(url),
        "façade": lambda: l2.facade.get_cached_response(PROMPT, "summarize", OPTIONS),
        "task": lambda: l2.cached(PROMPT),
        "façade, L1": lambda: l1.facade.get_cached_response(PROMPT, "summarize", OPTIONS),
        "task, L1": lambda: l1.cached(PROMPT),
        "no-op task": lambda: l2.stock(PROMPT),
    }
    dogpile = _dogpile(url)
    calls |= {"dogpile.cache + key": dogpile} if dogpile else {}
    for name, call in calls.items():
        assert call() == ANSWER, name
    contenders = {name: _run.looped(call) for name, call in calls.items()}
    with asyncio.Runner() as runner:
        cashews = _cashews(url, runner)
        contenders |= {"cashews + key": cashews} if cashews else {}
        named = {"façade hit / floor": "façade", "task hit / floor": "task"}
        named |= {"façade L1 hit / floor": "façade, L1", "task L1 hit / floor": "task, L1"}
        yield SimpleNamespace(contenders=contenders, profiled={what: calls[name] for what, name in named.items()})
        for cache in (l1.facade, l2.facade):
            cache.close()


def _tasks(url: str, *, l1_entries: int) -> SimpleNamespace:
    """Return a task, a stock task that returns the same, and a façade that reads what the task stored."""
    app = Celery(f"hit-{l1_entries}", broker="memory://", backend="cache+memory://", set_as_current=False)
    app.conf.aicache_url, app.conf.aicache_l1_entries = url, l1_entries

    @app.task(base=CachedTask, cache=CachePolicy(operation="summarize"), name="cached", shared=False)
    def cached(text: str, *, max_length: int = 100) -> Any:
        return ANSWER

    @app.task(name="stock", shared=False)
    def stock(text: str, *, max_length: int = 100) -> Any:
        return ANSWER

    app.finalize()
    assert cached(PROMPT) == ANSWER
    facade = AIResponseCache(url, memory_cache_size=l1_entries)
    facade.cache_response(PROMPT, "summarize", OPTIONS, ANSWER)
    return SimpleNamespace(cached=cached, stock=stock, facade=facade)


def key_of_arguments(who: str) -> str:
    """Return the key that the floor and the peers use, each under a name of its own."""
    return who + hashlib.sha256(_pack((PROMPT, OPTIONS))).hexdigest()


def floor(url: str) -> Callable[[], Any]:
    """Store the answer, and return a look-up as written by hand."""
    redis: Any = importlib.import_module("redis")
    zstd = zstd_module()
    client, decode = redis.Redis.from_url(url, protocol=2), msgspec.json.Decoder().decode
    client.set(key_of_arguments("floor:"), zstd.compress(msgspec.json.encode(ANSWER)))
    return lambda: decode(zstd.decompress(client.get(key_of_arguments("floor:"))))


def zstd_module() -> Any:
    """Return the standard library's zstd, its backport, or else a package whose one-shot call costs the same."""
    for name in ("compression.zstd", "backports.zstd", "zstandard"):
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    raise SystemExit("the floor needs backports.zstd: install the `bench` dependency group")


def _dogpile(url: str) -> Callable[[], Any] | None:
    try:
        make_region: Any = importlib.import_module("dogpile.cache").make_region
    except ImportError:
        return None
    region = make_region().configure("dogpile.cache.redis", arguments={"url": url})
    region.set(key_of_arguments("dogpile:"), ANSWER)
    return lambda: region.get(key_of_arguments("dogpile:"))


def _cashews(url: str, runner: asyncio.Runner) -> Contender | None:
    try:
        cache: Any = importlib.import_module("cashews").Cache()
    except ImportError:
        return None
    cache.setup(url, client_side=False)

    async def run(calls: int) -> Spent:
        began = _run.now()
        for _ in range(calls):
            await cache.get(key_of_arguments("cashews:"))
        return _run.since(began)

    async def fill() -> Any:
        await cache.set(key_of_arguments("cashews:"), ANSWER)
        return await cache.get(key_of_arguments("cashews:"))

    assert runner.run(fill()) == ANSWER
    return lambda calls: runner.run(run(calls))


if __name__ == "__main__":
    _run.main(measure)
