"""
What one body takes: its time, and what it says of model, tokens and money.

In: a body.   Out: its answer, and a `Work` that says what it took, also of a body that raises. Needs no cache.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextvars import ContextVar
from decimal import Decimal
from itertools import islice
from time import perf_counter_ns
from typing import Any, Final, NamedTuple, TypeVar

from aicache_tasks.ledger import OTHER, kind_room
from aicache_tasks.prices import EXACT, MICROS, MOST_MICROS, Prices, counts_tokens, is_priced, whole
from aicache_tasks.records import EntryMeta
from aicache_tasks.signals import steers

_MAX_COUNT: Final = 2**53
_MAX_COST: Final = MOST_MICROS // MICROS
_MODEL_CHARS: Final = 200
_KIND_CHARS: Final = 64
_MAX_READ: Final = 10_000
_MAX_MODELS: Final = 16
"""That one body's tokens are told apart by; what more take has no price."""
T = TypeVar("T")


class Said(NamedTuple):
    """What a body says that it took."""

    model: str | None = None
    usage: dict[str, int] | None = None
    cost: Decimal | None = None
    shares: dict[str | None, dict[str, int]] | None = None
    """Each model's part of the usage. What is said before any model is named is the first one's."""


class Work:
    """What a body took. A body that another runs within it has one of its own."""

    model: str | None = None
    """The last that was named."""
    usage: dict[str, int] | None = None
    cost: Decimal | None = None
    """As the body said, in your currency."""
    shares: dict[str | None, dict[str, int]] | None = None
    """Each model's part of the usage."""
    compute_ns = 0
    outcome = "success"
    """Or ``failed``, of a body that raised."""
    no_store = False
    """What it returns is not its answer."""
    micros: int | None = None
    """What it cost, millionths; None where nobody can say."""
    prices = ""
    """Version of the prices that were asked; empty if the body said the cost itself."""
    unpriced: str | None = None
    """The model whose tokens have no price, if some do not."""

    said = Said()
    """What was said so far; what is kept is what was said when the body ended, so that all who ask hear the same."""

    def run(self, body: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Return what *body* returns, and take note of what it takes."""
        token, started = CURRENT.set(self), perf_counter_ns()
        self.outcome = "failed"
        try:
            value = body(*args, **kwargs)
            self.outcome = "success"
        finally:
            self.compute_ns = perf_counter_ns() - started
            self.model, self.usage, self.cost, self.shares = self.said
            CURRENT.reset(token)
        return value

    def say(self, counts: list[tuple[str, int]] | None, amount: Decimal | None, name: str | None) -> None:
        """Add to what was said.

        There is no lock: a signal handler may say something in the middle of this, and a fork would leave it locked.
        """
        while True:
            said = self.said
            model, cost = said.model if name is None else name, _paid(said.cost, amount)
            more = Said(model, _added(said.usage, counts), cost, _shared(said.shares, counts, model))
            if self.said is said:  # else another thread, or a handler, was faster; with no call CPython lets none
                self.said = more  # come in between these lines
                return

    def price(self, prices: Prices | None) -> bool:
        """Work out what the body cost; return False if it took tokens of which *prices* do not know what they cost."""
        if self.cost is not None:
            self.micros = whole(EXACT.multiply(self.cost, Decimal(MICROS)))
            return True
        if prices is None or not counts_tokens(self.usage):
            return True
        self.prices, total = prices.version, Decimal(0)
        for model, usage in (self.shares or {}).items():
            price = None if model == OTHER else prices.of(model)
            if counts_tokens(usage) and (price is None or not is_priced(usage)):
                self.unpriced = model
                return False
            total = EXACT.add(total, price.micros(usage) if price else Decimal(0))
        self.micros = whole(total)
        return True

    @property
    def is_unpriced(self) -> bool:
        """Whether it took tokens of which the prices that were asked do not know what they cost."""
        return bool(self.prices) and self.micros is None

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

    Outside of the body of a task with a policy this does nothing. It never raises: the answer is paid for by then; only
    what steers the task, such as a soft time limit, passes through. What is not of the kind said below is left out,
    such as the nested details of a provider's usage.

    A thread that the body starts is outside of it, unless it runs in the body's context: see the tutorial.

    Args:
        model: the model that answered, which may be a fallback; its first 200 characters.
        usage: counts such as ``{"input_tokens": 812, "output_tokens": 96}``; repeated calls add up. What they cost
            is worked out from ``aicache_prices``, by the model of the same call, else the last one named. Of kinds
            without a price 64 are told apart.
        cost: in your currency, where it is not to be worked out; repeated calls add up.
    """
    work = CURRENT.get()
    if work is None:
        return
    work.say(_read(_counts, usage), _read(_amount, cost), _read(_name, model))


def _read(kind: Callable[[Any], T | None], given: Any) -> T | None:
    """Return what *given* says, None if its own code raises."""
    try:
        return None if given is None else kind(given)
    except Exception as error:
        if steers(error):
            raise
        return None


def _counts(usage: Any) -> list[tuple[str, int]] | None:
    """Return the whole numbers, None for no mapping."""
    if not isinstance(usage, Mapping):
        return None
    some = islice(usage.items(), _MAX_READ)
    return [(_cut(kind, _KIND_CHARS), n) for kind, n in some if isinstance(kind, str) and type(n) is int]


def _added(have: dict[str, int] | None, more: list[tuple[str, int]] | None) -> dict[str, int] | None:
    """Return *have* with *more* added; what has no room for its name counts under another."""
    if more is None:
        return have
    total = dict(have or {})
    for kind, count in more:
        if abs(count) < _MAX_COUNT:
            name = kind_room(total, kind)
            total[name] = max(min(total.get(name, 0) + count, _MAX_COUNT), -_MAX_COUNT)
    return total


def _shared(
    have: dict[str | None, dict[str, int]] | None, more: list[tuple[str, int]] | None, model: str | None
) -> dict[str | None, dict[str, int]] | None:
    """Return *have* with *more* added to what *model* took."""
    if have is None and more is None:
        return None
    shares = {model if taker is None else taker: usage for taker, usage in (have or {}).items()}
    taker = model if model in shares or len(shares) < _MAX_MODELS else OTHER
    if more is not None:
        shares[taker] = _added(shares.get(taker), more) or {}
    return shares


def _paid(have: Decimal | None, more: Decimal | None) -> Decimal | None:
    return more if have is None else have if more is None else EXACT.add(have, more)


def _amount(cost: Any) -> Decimal | None:
    """Return an amount of money, None for what is none; a float stands for the number that it shows as."""
    if isinstance(cost, bool) or not isinstance(cost, (int, float, Decimal)):
        return None
    plain = Decimal(repr(float.__float__(cost)) if isinstance(cost, float) else cost)
    return plain if plain.is_finite() and -_MAX_COST < plain < _MAX_COST else None


def _name(model: Any) -> str | None:
    return _cut(model, _MODEL_CHARS) if isinstance(model, str) else None


def _cut(text: str, chars: int) -> str:
    """Return the beginning, as a plain str that can be encoded: a name may be of numpy, or half a surrogate pair."""
    return str.__str__(text)[:chars].encode("utf-8", "replace").decode()
