"""
What models cost: `aicache_prices`.

In: a table of prices per 1,000,000 tokens, a model, the tokens that an answer took.   Out: millionths of your currency.
Pure, but that the environment's form may name a file.

A price per 1,000,000 tokens is the price of one token in millionths, so that tokens × price is the cost in them.
Decimal arithmetic, rounded once for each answer, half to even.
"""

from __future__ import annotations

import decimal
import difflib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any, Final, NamedTuple

from aicache_tasks.durations import shorten
from aicache_tasks.errors import SettingsError

MICROS: Final = 1_000_000
MOST_MICROS: Final = 2**51
"""Up to here a cost in your currency, as a float, stands for one whole number of millionths."""
EXACT: Final = decimal.Context(prec=60, rounding=decimal.ROUND_HALF_EVEN, Emin=-999_999, Emax=999_999, traps=[])
"""An application may have set its own context to anything."""
INPUT: Final = ("input_tokens", "prompt_tokens")
OUTPUT: Final = ("output_tokens", "completion_tokens")
CACHED: Final = "cached_input_tokens"
READ: Final = "cache_read_input_tokens"
WRITTEN: Final = "cache_creation_input_tokens"
NAMES: Final = (*INPUT, *OUTPUT, CACHED, READ, WRITTEN)
"""Kinds of tokens that have a price."""
SUMMED: Final = (*INPUT, *OUTPUT, READ, WRITTEN)
"""Kinds that add up to all tokens: those of `CACHED` are among the input's."""

_TABLE: Final = ("version", "currency", "models")
_PRICES: Final = ("input", "output", "cached_input", "cache_write")
_MOST: Final = 1_000_000_000
_VERSION_CHARS: Final = 64
_CURRENCY_CHARS: Final = 16
_RESERVED: Final = "~"
_ANY: Final = "*"


class Price(NamedTuple):
    """What a model costs, per 1,000,000 tokens; all four are said, a default has its value."""

    input: Decimal
    output: Decimal
    cached_input: Decimal
    cache_write: Decimal

    def micros(self, usage: Mapping[str, int]) -> Decimal:
        """Return what *usage* costs, millionths, not rounded yet.

        ``cached_input_tokens`` are part of ``input_tokens``; ``cache_read_input_tokens`` and
        ``cache_creation_input_tokens`` come on top of them: providers have one convention or the other.
        """
        cached, entered = _of(usage, CACHED), _of(usage, *INPUT)
        parts = (
            (max(entered - cached, 0), self.input),
            (cached + _of(usage, READ), self.cached_input),
            (_of(usage, WRITTEN), self.cache_write),
            (_of(usage, *OUTPUT), self.output),
        )
        total = Decimal(0)
        for tokens, price in parts:
            total = EXACT.add(total, EXACT.multiply(Decimal(tokens), price))
        return total


@dataclass(frozen=True, slots=True)
class Prices:
    """A table of prices.

    >>> prices = parse("aicache_prices", {"version": "2026-11", "models": {"m-*": {"input": 0.15, "output": 0.6}}})
    >>> prices.of("m-1").micros({"input_tokens": 1000, "output_tokens": 10})
    Decimal('156.00')
    """

    version: str
    currency: str = ""
    models: Mapping[str, Price] = field(default_factory=dict)

    def of(self, model: str | None) -> Price | None:
        """Return the price of *model*: of its own name, else of the longest that ends in ``*`` and fits."""
        name = model or ""
        exact = None if name.endswith(_ANY) else self.models.get(name)
        if exact is not None:
            return exact
        fits = [known for known in self.models if known.endswith(_ANY) and name.startswith(known[:-1])]
        return self.models[max(fits, key=len)] if fits else None


def counts_tokens(usage: Mapping[str, int] | None) -> bool:
    """Say whether *usage* has tokens, priced or not: words and characters are no tokens.

    >>> counts_tokens({"input_tokens": 3}), counts_tokens({"input_words": 3}), counts_tokens(None)
    (True, False, False)
    """
    return any(count > 0 and name.endswith("tokens") for name, count in (usage or {}).items())


def tokens_in(usage: Mapping[str, int] | None) -> int:
    """Return how many tokens *usage* has, of one answer or of many: each once, so no part and no total of other kinds.

    >>> tokens_in({"input_tokens": 1000, "cached_input_tokens": 800, "output_tokens": 100, "total_tokens": 1100})
    1100
    """
    return sum(count for name, count in (usage or {}).items() if name in SUMMED and count > 0)


def is_priced(usage: Mapping[str, int]) -> bool:
    """Say whether a kind of tokens in *usage* has a price."""
    return any(usage.get(name, 0) > 0 for name in NAMES)


def whole(micros: Decimal) -> int:
    """Return *micros* rounded, half to even; what is more than can be kept is the most that can."""
    rounded = micros.to_integral_value(decimal.ROUND_HALF_EVEN, EXACT)
    return int(min(max(rounded, Decimal(-MOST_MICROS)), Decimal(MOST_MICROS)))


def _of(usage: Mapping[str, int], *names: str) -> int:
    """Return the first of *names* that counts any: two names of one thing are not added up."""
    return next((usage[name] for name in names if usage.get(name, 0) > 0), 0)


# What may be set.


def parse(name: str, given: Any) -> Prices | None:
    """Return a checked table, None for none.

    Args:
        name: of the setting, for the errors.
        given: a mapping, its JSON text, or the path of a file with it.

    Raises:
        SettingsError: says where in the table.

    >>> parse("aicache_prices", {"version": "1", "models": {"m": {"input": -1, "output": 2}}})
    Traceback (most recent call last):
        ...
    aicache_tasks.errors.SettingsError: aicache_prices['models']['m']['input']: -1 is not a price from 0 to 1000000000
    """
    if given is None or given == "" or isinstance(given, Prices):
        return given or None
    table = _loaded(name, given) if isinstance(given, str) else given
    if not isinstance(table, Mapping):
        raise SettingsError(f"{name}: must be a table with 'version' and 'models', its JSON, or a path of such a file")
    _known(name, table, _TABLE, required=("version", "models"))
    version = _text(f"{name}['version']", table["version"], _VERSION_CHARS)
    if not version or version.startswith(_RESERVED):
        raise SettingsError(f"{name}['version']: must be a name that does not begin with ~, such as '2026-11'")
    currency = _text(f"{name}['currency']", table.get("currency", ""), _CURRENCY_CHARS)
    return Prices(version, currency, _models(f"{name}['models']", table["models"]))


def _loaded(name: str, given: str) -> Any:
    """Return what a JSON text says, or the file at a path."""
    try:
        text = given if given.lstrip().startswith("{") else Path(given).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise SettingsError(f"{name}: the file {shorten(given)} cannot be read: {reason}") from None
    try:
        return json.loads(text, parse_float=_decimal, object_pairs_hook=lambda pairs: _unambiguous(name, pairs))
    except SettingsError:
        raise
    except (ValueError, RecursionError):
        raise SettingsError(f"{name}: no JSON in {shorten(given)}") from None


def _unambiguous(name: str, pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object; of two prices with one name Python would take the last without a word."""
    table: dict[str, Any] = {}
    for key, value in pairs:
        if key in table:
            raise SettingsError(f"{name}: {shorten(key)} is given twice in one object")
        table[key] = value
    return table


def _models(name: str, given: Any) -> Mapping[str, Price]:
    if not isinstance(given, Mapping):
        raise SettingsError(f"{name}: must map models to prices, such as {{'m': {{'input': 0.15, 'output': 0.6}}}}")
    return {_model(name, model): _price(f"{name}[{shorten(model)}]", prices) for model, prices in given.items()}


def _model(name: str, given: Any) -> str:
    if not isinstance(given, str) or not given or _ANY in given[:-1]:
        raise SettingsError(f"{name}: {shorten(given)} is not a model's name, which may end in * and has no other")
    return given


def _price(name: str, given: Any) -> Price:
    if not isinstance(given, Mapping):
        raise SettingsError(f"{name}: must give 'input' and 'output', per 1,000,000 tokens")
    _known(name, given, _PRICES, required=("input", "output"))
    said = {kind: _amount(f"{name}[{kind!r}]", amount) for kind, amount in given.items()}
    entered = said["input"]
    return Price(entered, said["output"], said.get("cached_input", entered), said.get("cache_write", entered))


def _known(name: str, given: Mapping[Any, Any], known: Iterable[str], required: Iterable[str]) -> None:
    for key in given:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
            raise SettingsError(f"{name}: unknown {shorten(key)}; {hint}")
    for key in required:
        if key not in given:
            raise SettingsError(f"{name}[{key!r}]: is missing")


def _amount(name: str, given: Any) -> Decimal:
    """Return a price; a float stands for the decimal number that it shows as."""
    try:
        if isinstance(given, bool) or not isinstance(given, (int, float, str, Decimal)):
            raise ValueError
        amount = _decimal(str(given).strip())
        if not amount.is_finite() or not 0 <= amount <= _MOST:
            raise ValueError
    except ValueError:
        raise SettingsError(f"{name}: {shorten(given)} is not a price from 0 to {_MOST}") from None
    return amount


def _decimal(text: str) -> Decimal:
    """Return a number, NaN of what is none or has an exponent that no number has."""
    return EXACT.plus(Decimal(text, EXACT))


def _text(name: str, given: Any, most: int) -> str:
    if not isinstance(given, str) or len(given) > most or not given.isprintable():
        raise SettingsError(f"{name}: {shorten(given)} is not a text of up to {most} printable characters")
    return given
