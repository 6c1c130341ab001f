"""What no key can hold, how it is refused, and how users add types of their own."""

from __future__ import annotations

import collections
import dataclasses
import datetime as dt
import functools
import sys
import time
import tracemalloc
from collections.abc import Iterator
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pydantic
import pytest

from aicache_tasks.canonical import MAX_DEPTH, MAX_WEIGHT, VALUE_WEIGHT, encode_canonical, is_plain, register_encoder
from aicache_tasks.errors import KeyEncodingError, SettingsError
from aicache_tasks.keys import CacheKeyGenerator
from aicache_tasks.keytypes import registered
from tests.key_samples import Box, Color, Message, Pair, Point, Text

CANARY = "Jane Doe, born 1980"


def key_of(*args: Any, **kwargs: Any) -> str:
    return CacheKeyGenerator().generate_cache_key(*args, **kwargs)


@pytest.fixture
def _own_encoders() -> Iterator[None]:
    before = dict(registered)
    yield
    registered.clear()
    registered.update(before)


# What is refused -----------------------------------------------------------------------------------------------------


class Untouchable:
    """Runs nothing: any look inside is a failed test."""

    def _fail(self, *_: Any) -> Any:
        raise AssertionError("code of an unknown type was run")

    __str__ = __repr__ = __eq__ = __iter__ = __len__ = __bool__ = __reduce__ = __format__ = __float__ = __index__ = (
        _fail
    )
    __hash__ = object.__hash__
    __class__ = property(_fail)  # type: ignore[assignment]


class Loose(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="allow")
    role: str


class Number(int):
    pass


@dataclasses.dataclass
class Tagged(dict):  # type: ignore[type-arg]
    tag: str = ""


class Child(Point):
    """Not a dataclass of its own: it may hold what the parent's fields do not show."""


def cyclic_list() -> list[Any]:
    cycle: list[Any] = [1]
    cycle.append({"a": cycle})
    return cycle


def cyclic_point() -> Point:
    point = Point(1, None)
    point.y = [point]
    return point


def nested(levels: int, core: Any = None) -> Any:
    value = core
    for _ in range(levels):
        value = [value]
    return value


REFUSED = {
    "object": (lambda: {"a": object()}, "options.a", "builtins.object"),
    "in a list": (lambda: {"messages": [1, 2, {"image": object()}]}, "options.messages[2][<str>]", "builtins.object"),
    "in a set": (lambda: {"a": {lambda: 1}}, "options.a{}", "builtins.function"),
    "as a key": (lambda: {"a": {object(): 1}}, "options.a.<key>", "builtins.object"),
    "below a private key": (lambda: {"a": {CANARY: object()}}, "options.a[<str>]", "builtins.object"),
    "below a name": (lambda: {"a": {"jane_doe": object()}}, "options.a[<str>]", "builtins.object"),
    "in a model's extra field": (
        lambda: {"a": Loose(role="x", jane_doe=object())},
        "options.a[<str>]",
        "builtins.object",
    ),
    "below a long key": (lambda: {"x" * 41: object()}, "options[<str>]", "builtins.object"),
    "below a number": (lambda: {7: object()}, "options[<int>]", "builtins.object"),
    "in a dataclass": (lambda: {"a": Point(1, [object()])}, "options.a.y[0]", "builtins.object"),
    "in a model": (lambda: {"a": Message(role="x", content=Untouchable)}, "options.a.content", "builtins.type"),
    "in an attrs class": (lambda: {"a": Box(Box(...))}, "options.a.content.content", "builtins.ellipsis"),
    "untouchable": (lambda: {"a": Untouchable()}, "options.a", "test_keys_refused.Untouchable"),
    "a class": (lambda: {"a": Point}, "options.a", "builtins.type"),
    "str subclass": (lambda: {"a": Text("x")}, "options.a", "key_samples.Text"),
    "int subclass": (lambda: {"a": Number(1)}, "options.a", "test_keys_refused.Number"),
    "dict subclass with fields": (lambda: {"a": Tagged()}, "options.a", "test_keys_refused.Tagged"),
    "counter": (lambda: {"a": collections.Counter()}, "options.a", "collections.Counter"),
    "child of a dataclass": (lambda: {"a": Child(1, 2)}, "options.a", "test_keys_refused.Child"),
    "secret field": (
        lambda: {"a": Message(role="x", content=pydantic.SecretStr(CANARY))},
        "options.a.content",
        "pydantic.types.SecretStr",
    ),
    "object array": (lambda: {"a": np.array([object()])}, "options.a", "numpy.ndarray of dtype kind OO"),
    "padded number": (lambda: {"a": np.longdouble(1)}, "options.a", "dtype kind fg"),
    "record array": (lambda: {"a": np.zeros(1, dtype="i4,i4")}, "options.a", "dtype kind VV"),
    "text array by pointer": (
        lambda: {"a": np.array(["x"], dtype=np.dtypes.StringDType())},
        "options.a",
        "dtype kind T",
    ),
    "masked array": (lambda: {"a": np.ma.masked_array([1], [True])}, "options.a", "MaskedArray"),
    "zone without an offset": (
        lambda: {"a": dt.time(1, tzinfo=ZoneInfo("Europe/Paris"))},
        "options.a",
        "zone that gives no offset",
    ),
    "unset field": (lambda: {"a": Point.__new__(Point)}, "options.a", "AttributeError while it was read"),
    "released memory": (lambda: {"a": released()}, "options.a", "ValueError while it was read"),
    "cycle": (lambda: {"a": cyclic_list()}, "options.a[1][<str>]", "cycle"),
    "cycle of objects": (lambda: {"a": cyclic_point()}, "options.a.y[0]", "cycle"),
    "too deep": (lambda: {"a": nested(300)}, "options.a[0]", "too deep"),
    "far too deep": (lambda: {"a": nested(100_000)}, "options.a[0]", "too deep"),
    "far too deep, tagged": (lambda: {"a": nested(100_000, {1})}, "options.a[0]", "too deep"),
}


def released() -> memoryview:
    view = memoryview(b"x")
    view.release()
    return view


@pytest.mark.parametrize(("make", "path", "kind"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_keyed_is_refused_by_path_and_type(make: Any, path: str, kind: str) -> None:
    with pytest.raises(KeyEncodingError) as refused:
        key_of(CANARY, "qa", make(), CANARY)
    error = refused.value
    assert error.path.startswith(path) if "deep" in kind else error.path == path
    assert kind in error.kind
    assert len(str(error)) < 400


def test_an_error_holds_no_value_and_no_other_error() -> None:
    class Moody(pydantic.BaseModel):
        model_config = pydantic.ConfigDict(arbitrary_types_allowed=True)
        tz: Any

    class Zone(dt.tzinfo):
        def utcoffset(self, _: Any) -> dt.timedelta:
            raise ValueError(CANARY)

    with pytest.raises(KeyEncodingError) as refused:
        key_of(CANARY, "qa", {CANARY: Moody(tz=dt.datetime(2026, 1, 1, tzinfo=Zone()))})
    assert str(refused.value) == "options[<str>].tz cannot be part of a cache key: ValueError while it was read"
    assert refused.value.__context__ is refused.value.__cause__ is None


@pytest.mark.parametrize("part", ["text", "version", "tenant", "vary", "question"])
def test_an_error_names_the_part_of_the_call(part: str) -> None:
    with pytest.raises(KeyEncodingError, match=f"^{part} cannot be part of a cache key: builtins.object$"):
        key_of(**{"text": "t", "operation": "qa", part: object()})


def test_bad_input_is_a_key_encoding_error_or_a_key_never_anything_else() -> None:
    assert key_of("\ud800", "qa", {"\udfff": {1: "a", "1": "b", None: "c", (1, "2"): "d"}}, "\ud800")
    assert key_of("t", "qa", {"big": 2**200, "mixed": {3, "a", None, (1,)}})


@pytest.mark.parametrize("core", [None, {1}], ids=["plain", "tagged"])
def test_nesting_up_to_the_limit_is_keyed(core: Any) -> None:
    levels = MAX_DEPTH - (0 if core is None else 1)
    assert encode_canonical(nested(levels, core)) != encode_canonical(nested(levels - 1, core))
    with pytest.raises(KeyEncodingError):
        encode_canonical(nested(levels + 1, core))


def doubled(levels: int, core: Any = None) -> Any:
    value = core
    for _ in range(levels):
        value = [value, value]
    return value


MIB = "x" * 2**20
HUGE = {
    "twice itself": lambda: {"a": doubled(40)},
    "twice itself, tagged": lambda: {"a": doubled(40, {1})},
    "twice itself in dicts": lambda: {"a": functools.reduce(lambda value, _: {"l": value, "r": value}, range(40), 0)},
    "many values": lambda: {"a": [None] * 2**18},
    "many values, tagged": lambda: {"a": [{1}, [None] * 2**18]},
    "one text often": lambda: {"a": [MIB] * 800},
    "one text often, tagged": lambda: {"a": [{1}, *[MIB] * 800]},
    "one int often": lambda: {"a": [1 << 2**23] * 800},
    "bytes": lambda: {"a": [MIB.encode()] * 65},
    "long keys": lambda: {"a": [{MIB: 1}] * 65},
    "long keys, tagged": lambda: {"a": [{MIB: 1, 2: 3}] * 65},
    "arrays": lambda: {"a": [np.zeros(2**20)] * 9},
    "last of all": lambda: {"a": MIB * 63, "b": MIB},
}


@pytest.mark.parametrize("make", HUGE.values(), ids=HUGE)
def test_what_weighs_too_much_is_refused_in_time(make: Any) -> None:
    options = make()
    began_s = time.process_time()
    with pytest.raises(KeyEncodingError, match=r"^options.*: too large$"):
        key_of("t", "qa", options)
    assert time.process_time() - began_s < 20.0  # 0.4 s is usual; without a limit most of these take hours


@pytest.mark.parametrize("case", ["one text often", "one text often, tagged", "one int often", "bytes", "long keys"])
def test_what_weighs_too_much_takes_no_more_memory_than_the_limit(case: str) -> None:
    options = HUGE[case]()
    tracemalloc.start()
    with pytest.raises(KeyEncodingError, match="too large"):
        key_of("t", "qa", options)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 80 * 2**20


@pytest.mark.parametrize("part", ["text", "vary", "question"])
def test_the_part_that_passes_the_limit_is_named(part: str) -> None:
    with pytest.raises(KeyEncodingError, match=f"^{part} cannot be part of a cache key: too large$"):
        key_of(**{"text": "t", "operation": "qa", part: MIB * 64})


@pytest.mark.parametrize("core", [None, {1}], ids=["plain", "tagged"])
def test_what_is_large_but_within_the_limit_is_keyed(core: Any) -> None:
    many = [core, *[None] * (MAX_WEIGHT // VALUE_WEIGHT - 10)]
    assert len(encode_canonical(many)) > len(many)
    with pytest.raises(KeyEncodingError, match="too large"):
        encode_canonical([*many, *[None] * 10])
    assert len(encode_canonical([core, MIB * 63])) > 63 * 2**20


def test_what_is_too_large_for_a_key_is_not_walked_to_see_whether_it_is_plain() -> None:
    assert is_plain(doubled(60)) is True
    assert is_plain([{1}, doubled(60)]) is False


@pytest.mark.parametrize("first", ["x", {1}], ids=["plain", "tagged"])
def test_a_deep_stack_gives_the_same_encoding_or_none(first: Any) -> None:
    value, answers = [first, nested(150)], set()

    def descend(levels: int) -> None:
        if levels:
            descend(levels - 1)
            return
        try:
            answers.add(encode_canonical(value))
        except KeyEncodingError as error:
            answers.add(error.kind)

    for levels in range(0, sys.getrecursionlimit() - 150, 25):
        descend(levels)
    assert answers == {encode_canonical(value), "too deep"}


def test_a_value_shared_by_two_places_is_no_cycle() -> None:
    shared = {1: [2]}
    assert encode_canonical([shared, shared]) == encode_canonical([{1: [2]}, {1: [2]}])


@pytest.mark.usefixtures("_own_encoders")
def test_an_error_that_steers_a_task_passes_through() -> None:
    class SoftLimit(Exception):  # noqa: N818 - as Celery names its own
        pass

    class Money:
        pass

    def interrupted(_: Money) -> Any:
        raise SoftLimit

    register_encoder(Money, interrupted)
    with pytest.raises(SoftLimit):
        key_of("t", "qa", {"a": Money()})


# Users' own types ----------------------------------------------------------------------------------------------------


class Money:
    def __init__(self, amount: int, currency: str) -> None:
        self.amount, self.currency = amount, currency


class Price(Money):
    pass


@pytest.mark.usefixtures("_own_encoders")
def test_a_registered_type_is_keyed_by_its_name_and_what_its_encoder_returns() -> None:
    register_encoder(Money, lambda money: (money.amount, money.currency))
    values = [Money(1, "EUR"), Money(2, "EUR"), Money(1, "USD"), (1, "EUR")]
    assert len({encode_canonical({"price": value}) for value in values}) == 4
    assert encode_canonical(Money(1, "EUR")) == encode_canonical(Money(1, "EUR"))
    register_encoder(Price, lambda money: (money.amount, money.currency))
    assert encode_canonical(Price(1, "EUR")) != encode_canonical(Money(1, "EUR"))


@pytest.mark.usefixtures("_own_encoders")
def test_a_registered_name_stands_for_the_type_wherever_the_type_moves() -> None:
    register_encoder(Money, lambda money: money.amount, name="money")
    register_encoder(Price, lambda price: price.amount, name="money")
    assert encode_canonical(Money(1, "")) == encode_canonical(Price(1, ""))


@pytest.mark.usefixtures("_own_encoders")
def test_an_encoder_holds_for_exactly_its_type() -> None:
    register_encoder(Money, lambda money: money.amount)
    with pytest.raises(KeyEncodingError, match=r"value\[<str>\] cannot be part of a cache key: \S*\.Price$"):
        encode_canonical({"price": Price(1, "EUR")})


@pytest.mark.usefixtures("_own_encoders")
def test_an_encoder_may_be_given_for_an_enum_a_dataclass_or_a_subclass_of_str() -> None:
    for kind, value in ((Color, Color.RED), (Point, Point(1, 2)), (Text, Text("x"))):
        register_encoder(kind, lambda _: "same", name="same")
        assert encode_canonical(value).endswith(b"same")


@pytest.mark.parametrize("kind", [str, int, dict, list, dt.datetime, frozenset, collections.OrderedDict, Pair])
def test_an_encoding_that_exists_cannot_be_replaced(kind: type) -> None:
    with pytest.raises(SettingsError, match="cannot be replaced"):
        register_encoder(kind, lambda _: None)


@pytest.mark.parametrize("answer", [object(), ...], ids=["object", "ellipsis"])
@pytest.mark.usefixtures("_own_encoders")
def test_an_encoder_that_returns_what_cannot_be_keyed_is_refused(answer: Any) -> None:
    register_encoder(Money, lambda _: answer)
    with pytest.raises(KeyEncodingError, match=r"^options\.a cannot"):
        key_of("t", "qa", {"a": Money(1, "EUR")})


@pytest.mark.usefixtures("_own_encoders")
def test_an_encoder_that_never_ends_is_refused() -> None:
    register_encoder(Money, lambda money: Money(money.amount + 1, ""))
    with pytest.raises(KeyEncodingError, match="too deep"):
        encode_canonical(Money(1, "EUR"))
    register_encoder(Price, lambda price: price)
    with pytest.raises(KeyEncodingError, match="cycle"):
        encode_canonical(Price(1, "EUR"))


@pytest.mark.usefixtures("_own_encoders")
def test_an_encoders_own_fault_is_a_refusal_without_its_text() -> None:
    def broken(_: Money) -> Any:
        raise ValueError(CANARY)

    register_encoder(Money, broken)
    with pytest.raises(KeyEncodingError, match=r"^value cannot be part of a cache key: ValueError while it was read$"):
        encode_canonical(Money(1, "EUR"))
