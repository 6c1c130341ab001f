"""
The whole thing on one machine: two servers, a worker, beat, Flower, and a caller that measures.

In: the command line.   Out: a table of what the cache saved; then everything stays up until Ctrl-C (or ends, `--once`).
"""

from __future__ import annotations

import argparse
import functools
import os
import shlex
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Final, NamedTuple

from aicache_tasks import AIResponseCache
from aicache_tasks.errors import MissingExtraError
from aicache_tasks.reports.flower import CONFIG_FILE
from aicache_tasks.reports.queries import Reader
from aicache_tasks.settings import Settings, mask_url
from aicache_tasks.summary import SummaryRecord
from aicache_tasks.testing import EmbeddedServer
from workers.demo_calls import calls_of
from workers.demo_checks import (
    FLOWER_PORT,
    NAMESPACE,
    Unusable,
    check_cache,
    check_packages,
    flower_port,
    port_number,
)
from workers.demo_model import LOCAL, OPENAI, Served, callers_file, choose_engine, start_model, with_callers_files
from workers.engines.openai_settings import PREFIX as OPENAI_VARIABLES
from workers.supervisor import Child, ChildFailed, Stopped, Supervisor

ROOT: Final = Path(__file__).absolute().parent.parent
FLOWER_S: Final = 60.0
RECORDS_S: Final = 30.0
ROLLUP_PERIOD_S: Final = "2"
"""Instead of a minute: nobody watches a demo for so long."""
PATIENCE_MS: Final = 5000
"""Instead of 50 for the store, 250 to connect: a machine that stalls for a moment must not turn hits into faults."""
OURS: Final = ("AICACHE_", "CELERY_", "FLOWER_")
"""Variables of these names say how a user's own set-up runs, and are not passed on."""
UNSAID: Final = ("AICACHE_OPENAI_API_KEY", "AICACHE_ROLLUP_PERIOD_S", "AICACHE_BUDGET_MS", "AICACHE_CONNECT_MS")
"""Variables of these names are not shown: a caller needs none of them."""
CALLERS_PATH: Final = "AICACHE_CALLERS_PATH"
"""Where `scripts/demo` leaves the PYTHONPATH that it was called with."""
BROKER: Final = {"appendonly": "yes", "maxmemory-policy": "noeviction"}
CACHE: Final = {"maxmemory": "64mb", "maxmemory-policy": "volatile-lfu"}
CELERY: Final = (sys.executable, "-m", "celery", "-A", "workers.app")
EXAMPLES: Final = """
examples:
  scripts/demo                                      everything on this machine, until Ctrl-C
  scripts/demo --once                               end by itself; exit code 0 if every second call was a hit
  scripts/demo --engine extractive                  no language model: the whole of it in ten seconds
  scripts/demo --engine openai                      the server that AICACHE_OPENAI_* name: see docs/engines.md
  scripts/demo --model ~/models/better.gguf         another model, in a GGUF file
  scripts/demo --redis-url redis://127.0.0.1:6379/0 keep the answers in a server of your own
  PYTHONPATH=/my/code scripts/demo --engine package.module:factory
                                                    ask an engine of your own: see docs/tutorial.md

An engine's modules are looked for on your PYTHONPATH, after the demo's own packages, which no module of yours replaces.
"""


class Addresses(NamedTuple):
    """Where everything is."""

    broker: str
    cache: str
    flower: str
    served: Served | None = None


def main(arguments: list[str] | None = None) -> int:
    """Run the demo; return its exit code: 0 as it must be, 1 not, 2 it could not begin, 128 + n signal n."""
    options = parse(arguments)
    try:
        check_packages()
        options.model = options.model and callers_file(options.model, os.environ)
        options.engine = choose_engine(options.engine, options.model, os.environ)
        if options.redis_url is not None:
            check_cache(options.redis_url)
        with flower_port(options.port) as port:
            return supervise(options, port)
    except (MissingExtraError, Unusable) as error:
        return complain(error, 2)
    except KeyboardInterrupt:  # before the supervisor, which takes signals over
        return 130


def supervise(options: argparse.Namespace, port: int) -> int:
    """Run the demo under a supervisor, which ends everything; return the exit code."""
    with Supervisor() as supervisor:
        try:
            return run(supervisor, options, port)
        except Stopped as stopped:
            print("\nstopping", file=sys.stderr)
            return stopped.exit_code
        except (ChildFailed, MissingExtraError, RuntimeError) as error:
            return complain(error, 1)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(
        prog="scripts/demo",
        description="Five AI operations over five articles, twice: computed, then answered from the cache.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--once", action="store_true", help="end when the table has been shown")
    parser.add_argument(
        "--engine", help="what answers (default: local, a small language model; extractive is the fast one)"
    )
    parser.add_argument("--model", metavar="PATH", help="a GGUF file for the engine local (default: SmolLM2-135M)")
    parser.add_argument("--redis-url", metavar="URL", help="cache in this server instead of one that is started here")
    parser.add_argument(
        "--port", type=port_number, help=f"Flower's port (default: the first free one from {FLOWER_PORT})"
    )
    return parser.parse_args(arguments)


def run(supervisor: Supervisor, options: argparse.Namespace, port: int) -> int:
    """Start everything, let the caller measure, and stay up unless `--once` was given."""
    began = time.monotonic()
    model = "a language model, " if options.engine == LOCAL else ""
    print(f"starting {model}two Valkey servers, a worker, beat and Flower", file=sys.stderr)
    at = Addresses(
        start_server(supervisor, "broker", BROKER),
        options.redis_url or start_server(supervisor, "cache", CACHE),
        f"http://127.0.0.1:{port}",
        start_model(supervisor, options.model, os.environ) if options.engine == LOCAL else None,
    )
    environ = child_environ(os.environ, at, options.engine)
    flower = start_celery(supervisor, environ, port)
    settings = Settings(namespace=NAMESPACE, connect_ms=PATIENCE_MS)
    records = Reader(AIResponseCache(at.cache, settings=settings).parts)
    before = lookups(records.live().totals)
    client = supervisor.start(
        "client", [sys.executable, "-m", "workers.demo_client"], environ=environ, terminal=True, grace_s=2.0
    )
    code = supervisor.wait_for(client)
    if code == 0:
        calls = 2 * len(calls_of(options.engine))
        supervisor.wait_until(
            lambda: lookups(records.summaries.totals()) >= before + calls, within_s=RECORDS_S, child=flower
        )
        code = show_records(supervisor, environ)
    healthy = functools.partial(answers, f"{at.flower}/healthcheck")
    supervisor.wait_until(healthy, within_s=FLOWER_S, child=flower)
    if code == 1:
        supervisor.keep_logs = True
        print(f"logs: {supervisor.folder}", file=sys.stderr)
    if code or options.once:
        return code
    client_needs = client_variables(environ, os.environ.get(CALLERS_PATH))
    print(where_to_look(at, client_needs, time.monotonic() - began), flush=True)
    supervisor.wait_for_signal()
    return 0


def start_server(supervisor: Supervisor, name: str, config: Mapping[str, str]) -> str:
    """Start a Valkey that the supervisor ends; return its URL."""
    directory = supervisor.folder / name
    directory.mkdir()
    server = EmbeddedServer(config=config, directory=directory).start()
    supervisor.adopt(server.pid, server.stop)
    return server.url


def start_celery(supervisor: Supervisor, environ: Mapping[str, str], port: int) -> Child:
    """Start worker, Flower and beat, which end in the opposite order; return Flower."""
    worker = ("worker", "--pool=prefork", "--concurrency=2", "--events", "--include=workers.demo_probe")
    supervisor.start("worker", [*CELERY, *worker, "--hostname=demo@%h"], environ=environ)
    options = ("--address=127.0.0.1", f"--port={port}", f"--conf={CONFIG_FILE}")
    flower = supervisor.start("flower", [*CELERY, "flower", *options], environ=environ)
    schedule = supervisor.folder / "beat-schedule"
    supervisor.start("beat", [*CELERY, "beat", "--pidfile=", f"--schedule={schedule}"], environ=environ)
    return flower


def child_environ(environ: Mapping[str, str], at: Addresses, engine: str) -> dict[str, str]:
    """Return the environment of the children; of a user's own set-up only what says how the engine openai asks.

    >>> at = Addresses("redis://b", "redis://c", "http://f")
    >>> child_environ({"HOME": "/", "AICACHE_DISABLED": "1"}, at, "extractive")["AICACHE_URL"]
    'redis://c'
    """
    asked, environ = OPENAI_VARIABLES if engine == OPENAI else (), with_callers_files(environ)
    passed_on = {n: value for n, value in environ.items() if not n.startswith(OURS) or n.startswith(asked)}
    if path := environ.get(CALLERS_PATH):
        # Python puts PYTHONPATH before all else: so that nothing is shadowed, our own folders come first in it.
        passed_on["PYTHONPATH"] = os.pathsep.join([*filter(None, sys.path), path])
    return passed_on | {
        "CELERY_BROKER_URL": at.broker,
        "CELERY_RESULT_BACKEND": at.broker,
        "AICACHE_URL": at.cache,
        "AICACHE_NAMESPACE": NAMESPACE,
        "AICACHE_ENGINE": engine,
        "AICACHE_ROLLUP_PERIOD_S": ROLLUP_PERIOD_S,
        "AICACHE_BUDGET_MS": str(PATIENCE_MS),
        "AICACHE_CONNECT_MS": str(PATIENCE_MS),
        **(at.served.variables() if at.served else {}),
    }


def client_variables(environ: Mapping[str, str], path: str | None) -> dict[str, str]:
    """Return what a client needs to find what the demo stored; shows no password and no key of a provider.

    Args:
        environ: the children's.
        path: where the modules of an engine of one's own are.

    >>> client_variables({"AICACHE_URL": "redis://:secret@c", "AICACHE_OPENAI_API_KEY": "sk-1", "LANG": "C"}, None)
    {'AICACHE_URL': 'redis://:********@c'}
    """
    shown = {n: environ[n] for n in environ if n.startswith(("AICACHE_", "CELERY_BROKER")) and not n.startswith(UNSAID)}
    shown["AICACHE_URL"] = mask_url(shown["AICACHE_URL"])
    return shown | ({"PYTHONPATH": path} if path and ":" in shown["AICACHE_ENGINE"] else {})


def where_to_look(at: Addresses, client: Mapping[str, str], took_s: float) -> str:
    """Return what to try while everything is up; shows no password.

    >>> "secret" in where_to_look(Addresses("redis://b", "redis://:secret@c", "http://f"), {}, 3.0)
    False
    """
    python = shlex.quote(os.path.relpath(sys.executable, ROOT))
    export = "".join(f"\n             export {name}={shlex.quote(value)}" for name, value in client.items())
    model = f"\n  model      {at.served.url} ({at.served.model})" if at.served else ""
    return f"""
Everything is up (after {took_s:.0f} s, the runs included):
  Flower     {at.flower}/aicache
  cache      {mask_url(at.cache)}
  broker     {at.broker}{model}
  a client   cd {shlex.quote(str(ROOT))}{export}
             {python} -m celery -A workers.app aicache summaries
             {python} -m workers.demo_client  # the same calls again: hits
Ctrl-C ends it and leaves nothing behind."""


def lookups(totals: Mapping[str, SummaryRecord]) -> int:
    """Return how many look-ups *totals* count."""
    return sum(record.lookups for record in totals.values())


def show_records(supervisor: Supervisor, environ: Mapping[str, str]) -> int:
    """Show what the worker's timings came to; return the exit code."""
    print("What the summary records say, by `celery -A workers.app aicache stats`:\n", flush=True)
    stats = [*CELERY, "--quiet", "aicache", "stats"]
    return supervisor.wait_for(supervisor.start("stats", stats, environ=environ, terminal=True, grace_s=2.0))


def answers(url: str) -> bool:
    """Return whether *url* answers with 200 within half a second."""
    try:
        with urllib.request.urlopen(url, timeout=0.5) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, TimeoutError, ConnectionError):
        return False


def complain(error: Exception, code: int) -> int:
    """Print one line; return *code*."""
    print(f"demo: {error}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
