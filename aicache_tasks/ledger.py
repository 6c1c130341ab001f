"""
`Ledger`: what computing took, in time, tokens and money.

In: what answers took.   Out: the sums, as JSON for people.   Pure; every number is whole, so that sums stay exact.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from aicache_tasks.prices import NAMES

OTHER: Final = "~other"
"""What names stand under once a record has as many as it may."""
MAX_NAMES: Final = 64
MAX_KINDS: Final = MAX_NAMES + len(NAMES)
"""Of tokens."""
K = TypeVar("K", bound=Hashable)


@dataclass(slots=True)
class Ledger:
    """What computing took: in a record's ``spent`` of the bodies that ran, in ``saved`` of the hits' answers."""

    compute_ns: int = 0
    tokens: Counter[str] = field(default_factory=Counter)
    costs: Counter[str] = field(default_factory=Counter)
    """Millionths of your currency by version of the prices; empty: bodies said so themselves."""
    unpriced: Counter[str] = field(default_factory=Counter)
    """Answers whose tokens have no price, by model."""

    @property
    def cost_micros(self) -> int:
        """Cost by all prices, millionths of your currency."""
        return self.costs.total()

    def count(self, name: str, tokens: int) -> None:
        """Add *tokens* of a kind."""
        self.tokens[kind_room(self.tokens, name)] += tokens

    def pay(self, prices: str, micros: int) -> None:
        """Add a cost by a version of the prices."""
        tally(self.costs, prices, micros, OTHER)

    def miss_price(self, model: str, answers: int) -> None:
        """Add answers of a model without a price."""
        tally(self.unpriced, model, answers, OTHER)

    def merge(self, other: Ledger) -> None:
        """Add *other*."""
        self.compute_ns += other.compute_ns
        for name, tokens in other.tokens.items():
            self.count(name, tokens)
        add(self.costs, other.costs, OTHER)
        add(self.unpriced, other.unpriced, OTHER)

    def as_json(self) -> dict[str, Any]:
        """Return plain JSON data."""
        return {
            "seconds": self.compute_ns / 1e9,
            "tokens": dict(sorted(self.tokens.items())),
            "cost": self.cost_micros / 1e6,
            "cost_by_prices": {prices: micros / 1e6 for prices, micros in sorted(self.costs.items())},
            "unpriced": dict(sorted(self.unpriced.items())),
        }


def tally(into: Counter[K], name: K, times: int, other: K) -> None:
    """Add *times* to what stands under *name*, or under *other* if there is no room for another name."""
    into[room(into, name, other)] += times


def add(into: Counter[K], more: Mapping[K, int], other: K) -> None:
    """Add all of *more*."""
    for name, times in more.items():
        tally(into, name, times, other)


def room(held: Mapping[Any, Any], name: K, other: K) -> K:
    """Return *name*, or *other* if there is no room for it."""
    return name if name in held or len(held) < MAX_NAMES else other


def kind_room(held: Mapping[str, int], kind: str) -> str:
    """Return the name that tokens of a *kind* are counted under; there is always room for those with a price.

    >>> full = {f"k{number}": 1 for number in range(MAX_NAMES)}
    >>> kind_room(full, "k9"), kind_room(full, "input_tokens"), kind_room(full, "words")
    ('k9', 'input_tokens', '~other')
    >>> kind_room({"input_tokens": 1} | {f"k{number}": 1 for number in range(MAX_NAMES - 1)}, "words")
    'words'
    """
    is_known = kind in NAMES or kind in held
    return kind if is_known or len(held.keys() - NAMES) < MAX_NAMES else OTHER
