"""
``top``: the operations that matter most.

In: a span, a figure.   Out: operations in its order, or JSON.
"""

from __future__ import annotations

from typing import Final

import click

from aicache_tasks.reports import rows
from aicache_tasks.reports.commands.base import (
    Nothing,
    command,
    echo_json,
    nothing_yet,
    reader_of,
    screen_of,
    span_of,
    spanned,
    wanted,
)
from aicache_tasks.reports.commands.base import as_json as json_option
from aicache_tasks.reports.commands.summaries import SINCE, span_json, title_of
from aicache_tasks.reports.queries import TOPS, total_of
from aicache_tasks.reports.queries import top as top_of
from aicache_tasks.reports.views import top_table
from aicache_tasks.reports.wording import plural
from aicache_tasks.summary import SummaryRecord

_LACKING: Final = {
    "saved": "a time that it took to compute: it was stored by hand",
    "tokens": "tokens: bodies say what they took by aicache_tasks.annotate(usage={'input_tokens': …})",
    "cost": "a cost: set aicache_prices, or let bodies say it by aicache_tasks.annotate(cost=…)",
}
_MISSING: Final = {
    "lookups": "no call looked for an answer in this span",
    "misses": "no look-up missed in this span",
    "slow": "no look-up was timed in this span",
    "compute": "no body ran in this span",
}


@command
@spanned(SINCE)
@click.option(
    "--by",
    type=click.Choice(list(TOPS)),
    default="saved",
    show_default=True,
    help="Time, cost or tokens saved, look-ups, misses, p95 of look-ups (slow) or of bodies (compute).",
)
@click.option(
    "--limit",
    type=click.IntRange(1, 1000),
    default=10,
    show_default=True,
    metavar="COUNT",
    help="How many to show, 1000 at most.",
)
@json_option
def top(
    ctx: click.Context,
    since: str | None,
    until: str,
    operations: tuple[str, ...],
    by: str,
    limit: int,
    as_json: bool,
) -> None:
    """Show the operations that matter most.

    Those that saved most, were slowest, or missed most in a span of time.
    """
    reader = reader_of(ctx)
    span = span_of(reader, since or SINCE, until)
    merged = reader.merge(span, wanted(operations))
    records = [record for name, record in merged.records.items() if name]
    found = top_of(records, by, limit)
    if as_json:
        top_rows = [{"operation": r.operation, by: value} | rows.figures_json(r) for r, value in found]
        echo_json(span_json(span, merged.cover, reader.settings.currency) | {"by": by, "rows": top_rows})
    elif not found:
        _nothing_of(total_of(records), by)
        nothing_yet(ctx, reader)
    else:
        screen = screen_of(ctx)
        title, currency = title_of(merged.cover.span), reader.settings.currency
        screen.table(top_table(found, by, title=title, currency=currency, plain=screen.plain_marks))


def _nothing_of(total: SummaryRecord, by: str) -> None:
    """Say what is missing to order by, if there are records.

    Raises:
        Nothing: there are.
    """
    if not total.counts:
        return
    if by in _MISSING:
        raise Nothing(_MISSING[by])
    if not total.hits:
        raise Nothing("no look-up hit in this span: nothing was saved")
    raise Nothing(f"no answer that {plural(total.hits, 'hit')} gave in this span has {_LACKING[by]}")
