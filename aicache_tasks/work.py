"""
What one body takes: its time, and what it says of model, tokens and money.

In: a body.   Out: its answer, and a `Work` that says what it took, also of a body that raises. Needs no cache.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextvars import ContextVar
from decimal import Decimal
from time import perf_counter_ns
from typing import Any, Final

from aicache_tasks.prices import EXACT, MICROS, MOST_MICROS, Prices, counts_tokens, is_priced, whole
from aicache_tasks.records import EntryMeta

_MAX_COUNT: Final = 2**53
_MAX_COST: Final = MOST_MICROS // MICROS


class Work:
    """What a body took. A body that another runs within it has one of its own."""

    model: str | None = None
    usage: dict[str, int] | None = None
    cost: Decimal | None = None
    """As the body said, in your currency."""
    compute_ns = 0
    outcome = "success"
    """Or ``failed``, of a body that raised."""
    no_store = False
    """What it returns is not its answer."""
    micros: int | None = None
    """What it cost, millionths; None where nobody can say."""
    prices = ""
    """Version of the prices that were asked; empty if the body said the cost itself."""

    def run(self, body: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Return what *body* returns, and take note of what it takes."""
        token, started = CURRENT.set(self), perf_counter_ns()
        self.outcome = "failed"
        try:
            value = body(*args, **kwargs)
            self.outcome = "success"
        finally:
            self.compute_ns = perf_counter_ns() - started
            CURRENT.reset(token)
        return value

    def price(self, prices: Prices | None) -> bool:
        """Work out what the body cost; return False if it took tokens of which *prices* do not know what they cost."""
        if self.cost is not None:
            self.micros = whole(EXACT.multiply(self.cost, Decimal(MICROS)))
            return True
        if prices is None or self.usage is None or not counts_tokens(self.usage):
            return True
        self.prices, price = prices.version, prices.of(self.model)
        if price is None or not is_priced(self.usage):
            return False
        self.micros = price.micros(self.usage)
        return True

    def meta(self, text_length: int = 0) -> EntryMeta:
        """Return what entries and timings bear of it."""
        cost = None if self.micros is None else self.micros / MICROS
        return EntryMeta(self.model, self.usage, cost, self.compute_ns, text_length, self.prices)


CURRENT: ContextVar[Work | None] = ContextVar("aicache_work", default=None)
"""What the body that is running takes, None outside of the body of a task with a policy."""


def annotate(
    *, model: str | None = None, usage: Mapping[str, int] | None = None, cost: float | Decimal | None = None
) -> None:
    """Say in a task's body what the answer took; it counts as spent, and is kept with the entry.

    Outside of the body of a task with a policy this does nothing. It never raises: the answer is paid for by then. What
    is not of the kind said below is left out, such as the nested details of a provider's usage.

    Args:
        model: the model that answered, which may be a fallback.
        usage: counts such as ``{"input_tokens": 812, "output_tokens": 96}``; repeated calls add up. What they cost
            is worked out from ``aicache_prices``.
        cost: in your currency, where it is not to be worked out; repeated calls add up.
    """
    work = CURRENT.get()
    if work is None:
        return
    if isinstance(usage, Mapping):
        work.usage = _added(work.usage, usage)
    if (said := _amount(cost)) is not None:
        work.cost = said if work.cost is None else EXACT.add(work.cost, said)
    if isinstance(model, str):
        work.model = model


def _added(have: Mapping[str, int] | None, more: Mapping[Any, Any]) -> dict[str, int]:
    """Return *have* with the whole numbers of *more* added."""
    total = dict(have or {})
    for name, count in more.items():
        if type(name) is str and type(count) is int and abs(count) < _MAX_COUNT:
            total[name] = total.get(name, 0) + count
    return total


def _amount(cost: Any) -> Decimal | None:
    """Return an amount of money, None for what is none; a float stands for the number that it shows as."""
    if isinstance(cost, Decimal):
        return cost if cost.is_finite() and -_MAX_COST < cost < _MAX_COST else None
    if not isinstance(cost, (int, float)) or isinstance(cost, bool) or not -_MAX_COST < cost < _MAX_COST:
        return None
    return Decimal(repr(float(cost)))
