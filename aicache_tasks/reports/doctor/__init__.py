"""
What is wrong with a set-up, and what to do about it.

In: an application, the cache's server, the workers.   Out: findings. Changes nothing.

``case`` asks, each thing once; ``server``, ``records``, ``application``, ``redbeat``, ``workers`` and ``stability``
judge. A check is a function of a `Case` that yields findings; one that has nothing to ask yields none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Final

from aicache_tasks.errors import AICacheError, StoreError, UnknownPayload
from aicache_tasks.reports.doctor import application, records, redbeat, server, stability, workers
from aicache_tasks.reports.doctor.case import Case, Finding
from aicache_tasks.reports.refusals import what_helps
from aicache_tasks.reports.wording import label
from aicache_tasks.signals import steers

__all__ = ["CHECKS", "Case", "Check", "Finding", "examine"]

Check = Callable[[Case], Iterator[Finding]]
CHECKS: Final[tuple[Check, ...]] = (
    *(server.reachable, server.version, server.role, server.eviction, server.persistence, server.timeouts),
    *(server.clock, server.access),
    *(records.beat, records.inbox, records.prices),
    *(application.switches, application.models, application.pickle, application.results),
    *(redbeat.times, redbeat.lock, application.redelivery),
    *(workers.answers, workers.versions, workers.policies),
    *(stability.faults, stability.keys),
)


def examine(case: Case, checks: Sequence[Check] = CHECKS) -> Iterator[Finding]:
    """Yield what *checks* find."""
    for check in checks:
        try:
            yield from check(case)
        except StoreError as error:  # what it asked for is refused, or the server went away meanwhile
            fix = what_helps(error, case.url) or "Look into its log, and look again."
            yield Finding(check.__name__, "warn", f"cannot be told: {error.detail}", fix)
        except UnknownPayload as error:
            fix = "Upgrade aicache-tasks here to the version of the newest worker."
            yield Finding(check.__name__, "fail", f"cannot be told: {label(str(error), 200)}", fix)
        except Exception as error:  # a setting that nothing foresaw must not hide what the other checks find
            if steers(error):
                raise
            why = f": {label(str(error), 200)}" if isinstance(error, AICacheError) else ""
            fix = "Is a setting that it looks at of the wrong kind? See 'The doctor' in docs/cli.md."
            yield Finding(check.__name__, "fail", f"cannot be told: {type(error).__name__}{why}", fix)
