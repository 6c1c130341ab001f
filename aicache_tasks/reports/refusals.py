"""
What a server's refusal, or its silence, means, and what helps.

In: a `StoreError`, the server's URL.   Out: a clause that says what it did; a sentence that says what to do.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final
from urllib.parse import parse_qs, urlsplit

from aicache_tasks.errors import StoreError
from aicache_tasks.reports.wording import label

ADVICE: Final[Mapping[str, str]] = {
    "WRONGPASS": "Correct the user or the password in aicache_url.",
    "NOAUTH": "It wants a login: put one in aicache_url, redis://USER:PASSWORD@HOST:PORT/0.",
    "NOPERM": "Its user lacks a right for this: docs/deployment.md lists what each login may do.",
    "DENIED": "It is in protected mode: give it a password, and put the login in aicache_url.",
    "LOADING": "It is loading its data: look again in a while.",
    "READONLY": "It is a replica: set aicache_url to where its primary is.",
    "MASTERDOWN": "It is a replica that has lost its primary: set aicache_url to where that is.",
    "OOM": "Its memory is full: set maxmemory-policy volatile-lfu, or raise maxmemory.",
    "WRONGTYPE": "A key of ours holds something else: `celery -A … aicache rollup` sets it aside and begins it anew.",
    "InvalidResponse": "What answers there is no Redis: set aicache_url to where one is.",
}
"""By the server's prefix, or the class of the driver's error."""
_PLAIN: Final = ("ResponseError ERR", "ResponseError")  # redis-py 6 takes the prefix away
NOBODY: Final = "Nothing listens there, or it hangs up: start it, or set aicache_url to where it is."
TOO_MANY: Final = "It has as many clients as it takes: raise its maxclients."
SLOW: Final = "It is frozen, overloaded, far away, or shut off by a firewall."


def what_it_did(error: StoreError) -> str:
    """Return whether it answered at all, and its error's class and prefix."""
    did = "answers with an error" if error.reason == "redis_error" else "does not answer"
    return f"{did}: {label(error.detail, 200)}"


def what_helps(error: StoreError, url: str) -> str:
    """Return what to do, a sentence; empty where nothing is known that helps.

    >>> what_helps(StoreError("AuthenticationError WRONGPASS"), "redis://host")
    'Correct the user or the password in aicache_url.'
    >>> what_helps(StoreError("ResponseError ERR"), "redis://host/99")
    'Does it have a database 99? Most have 0 to 15, a Cluster has 0 only; aicache_url names it.'
    """
    known = next((ADVICE[word] for word in reversed(error.detail.split()) if word in ADVICE), "")
    if known:
        return known
    if is_too_late(error):
        return SLOW
    if error.detail.startswith("ConnectionError"):
        return NOBODY if error.reason != "redis_error" else TOO_MANY
    database = _database(url)
    if error.detail in _PLAIN and database not in ("", "0"):
        return f"Does it have a database {database}? Most have 0 to 15, a Cluster has 0 only; aicache_url names it."
    return ""


def is_too_late(error: StoreError) -> bool:
    """Return whether it was waited for in vain."""
    return error.detail.startswith("TimeoutError")


def _database(url: str) -> str:
    """Return the number of the database that *url* names; empty if it names none."""
    parts = urlsplit(url)
    given = parse_qs(parts.query)
    named = given.get("db", given.get("virtual_host", [parts.path if parts.scheme in ("redis", "rediss") else ""]))[0]
    return label(named.strip("/"), 20)
