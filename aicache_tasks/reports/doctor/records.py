"""
Are timings counted?

In: the inbox, when a roll-up was asked for, models without a price.   Out: findings.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from aicache_tasks.beat import ENTRY, late_s, since_asked_s
from aicache_tasks.reports.doctor.case import Case, Finding
from aicache_tasks.reports.queries import total_of
from aicache_tasks.reports.spans import Span
from aicache_tasks.reports.wording import duration, label, plural, size

NEARLY: Final = 0.5
FULL: Final = 0.9
DAY_S: Final = 86_400.0
MOST_MODELS: Final = 5
RUN_BEAT: Final = "Run `celery -A … beat`, once, and a worker that takes the roll-up's queue."


def beat(case: Case) -> Iterator[Finding]:
    """Does beat ask for roll-ups?"""
    if case.server is None or case.settings.samples == "off":
        return
    asked_s = since_asked_s(case.reader.summaries)
    if asked_s is None:
        yield Finding(
            "beat", "fail" if case.live.backlog.entries else "warn", "nobody has asked for a roll-up", RUN_BEAT
        )
        return
    ago = f"a roll-up was asked for {duration(asked_s * 1e9)} ago"
    if not case.settings.rollup_period_s or ENTRY not in case.app.conf.beat_schedule:
        yield Finding("beat", "ok", f"{ago}; the schedule is yours")
    elif asked_s > late_s(case.settings.rollup_period_s):
        period = duration(case.settings.rollup_period_s * 1e9)
        yield Finding("beat", "fail", f"{ago}, and should be every {period}", RUN_BEAT)
    else:
        yield Finding("beat", "ok", ago)


def inbox(case: Case) -> Iterator[Finding]:
    """Does what waits get counted in time?"""
    if case.server is None:
        return
    waits, cap = case.live.backlog, case.settings.inbox_bytes
    part = waits.bytes / cap
    said = f"{plural(waits.entries, 'batch')} ({size(waits.bytes)}) waiting"
    count = "`celery -A … aicache rollup` counts what waits, now."
    if part > NEARLY:
        level = "fail" if part > FULL else "warn"
        yield Finding(
            "inbox", "fail" if level == "fail" else "warn", f"{said}: {size(cap)} is all that may wait", count
        )
    elif waits.age_s > late_s(case.settings.rollup_period_s):
        yield Finding("inbox", "warn", f"{said} for {duration(waits.age_s * 1e9)}", f"{RUN_BEAT} {count}")
    else:
        yield Finding("inbox", "ok", said)
    if case.live.waiting.undecodable:
        fix = "Were they written by a newer version? The roll-up sets them aside."
        yield Finding("inbox", "warn", f"{plural(case.live.waiting.undecodable, 'batch')} cannot be read", fix)
    # What concerns no operation also counts the records that were set aside: they are mended.
    if damaged := sum(record.damaged for operation, record in case.live.totals.items() if operation):
        fix = "The next roll-up sets them aside and begins them anew: see Entries set aside in docs/operations.md."
        yield Finding("inbox", "warn", f"{plural(damaged, 'record')} of lifetime totals cannot be read", fix)


def prices(case: Case) -> Iterator[Finding]:
    """Did every model that took tokens in the last day have a price?"""
    if case.server is None or case.settings.prices is None:
        return
    now_s = case.reader.now_s()
    total = total_of(case.reader.merge(Span(now_s - DAY_S, now_s)).records.values())
    if not total.spent.unpriced:
        yield Finding("prices", "ok", f"each model of the last day has one in {label(case.settings.prices.version)}")
        return
    models = ", ".join(label(name) if name else "no model" for name in sorted(total.spent.unpriced)[:MOST_MODELS])
    fix = "Add them to aicache_prices['models'], and change its version; what they took before that has no cost."
    yield Finding("prices", "warn", f"models took tokens and have no price: {models}", fix)
