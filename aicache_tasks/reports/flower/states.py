"""
What is to be said where there are no figures, or old ones.

In: a state and its details.   Out: a title, an explanation, and what to do.   Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

OK: Final = "ok"


class Advice(NamedTuple):
    """What one state means; commands and settings are between backquotes."""

    title: str
    text: str
    todo: tuple[str, ...]


ADVICE: Final[Mapping[str, Advice]] = {
    "empty": Advice(
        "Nothing is recorded yet",
        "No task with `cache=` has run since the records began.",
        (
            "Call a task that has `cache=`; its figures appear here within seconds.",
            "Tasks did run? Then the workers must have the same `aicache_url` and `aicache_namespace` as this Flower.",
            "And `aicache_samples` must not be off.",
        ),
    ),
    "waiting": Advice(
        "Nothing is rolled up yet",
        "Timings arrive and wait. Totals count them already; windows and plots begin with the first roll-up.",
        (
            "Start beat and a worker: `celery -A app beat` sends a roll-up every minute, a worker does it.",
            "`celery -A app aicache rollup` rolls up now.",
        ),
    ),
    "stale": Advice(
        "Windows and plots are old: timings wait for a roll-up",
        "Totals count what waits; figures of a span end with the last roll-up.",
        (
            "See that beat runs, once: `celery -A app beat`.",
            "See that a worker takes the queue of the roll-up (`aicache_rollup_queue`, by default the usual one).",
            "`celery -A app aicache rollup` rolls up now.",
        ),
    ),
    "down": Advice(
        "The cache's server cannot be read",
        "",
        (
            "`celery -A app aicache stats` asks the same from a terminal.",
            "Tasks that meet the same go on without the cache. Only changed settings need a restart, here of Flower.",
        ),
    ),
    "slow": Advice(
        "The cache's server has not answered in time",
        "The page goes on asking.",
        (
            "Is the server busy, swapping or frozen? Does the network between here and there drop packets?",
            "`celery -A app aicache stats` asks the same from a terminal.",
            "Tasks spend no more than their budget on it and then go on without the cache.",
        ),
    ),
    "busy": Advice(
        "Flower reads for other viewers first",
        "Figures of many spans and operations are asked for at once. The page goes on asking.",
        ("Nothing is to be done; with fewer open pages, or pages that show the same, figures come sooner.",),
    ),
    "newer": Advice(
        "A newer version wrote the records",
        "What this one could add up would be too little.",
        (
            "Upgrade aicache-tasks where Flower runs to the workers' version, and restart Flower.",
            "Was there none? Then the record is damaged: `docs/operations.md` has how to remove it.",
        ),
    ),
    "absent": Advice(
        "This application has no cache",
        "Flower was started for an application that has not called `install`.",
        (
            "Call `aicache_tasks.install(app)` in the module that `-A` names, and restart Flower.",
            "Is it the right one? `celery -A app flower` names the application before `flower`.",
        ),
    ),
    "misconfigured": Advice(
        "The cache is not set up for this Flower",
        "",
        ("Give this process the settings that the workers have, and restart Flower.",),
    ),
}
"""By state; `OK` needs none."""


def advice(state: str, detail: str = "", *first: str) -> dict[str, Any] | None:
    """Return what to say of *state*, as JSON data; *detail* is already fit to be shown, *first* is to be done first.

    >>> advice("down", "does not answer")["text"], advice("ok")
    ('does not answer', None)
    """
    found = ADVICE.get(state)
    if found is None:
        return None
    text = " ".join(filter(None, (detail, found.text)))
    return {"title": found.title, "text": text, "todo": [*first, *found.todo]}
