"""
Health of what has no question of its own to answer: ``python health.py beat|flower``.

In: CELERY_BROKER_URL, or the port of Flower here.   Out: exit code 0 if all is well, else 1 and a line that says why.
A worker is asked by ``celery inspect ping``.
"""

from __future__ import annotations

import os
import sys
import urllib.error
import urllib.request

LOCK = "redbeat::lock"
FLOWER = "http://127.0.0.1:{}/healthcheck"
LIMIT_S = 5


def beat() -> str:
    """Say what is wrong if no beat leads: a leader renews its lock every few seconds, others wait for it."""
    import redis

    try:
        with redis.Redis.from_url(os.environ["CELERY_BROKER_URL"], socket_timeout=LIMIT_S) as client:
            return "" if client.pttl(LOCK) > 0 else "no beat holds the lock"
    except redis.RedisError as error:
        return f"the broker does not answer: {type(error).__name__}"


def flower() -> str:
    """Say what is wrong if Flower does not answer; no proxy is asked, whatever ``http_proxy`` says."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(FLOWER.format(os.environ.get("FLOWER_PORT", "5555")), timeout=LIMIT_S):
            return ""
    except (OSError, urllib.error.URLError) as error:
        return f"Flower does not answer: {type(error).__name__}"


if __name__ == "__main__":
    sys.exit({"beat": beat, "flower": flower}[sys.argv[1]]() or 0)
