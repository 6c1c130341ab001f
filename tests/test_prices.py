"""What models cost: which prices may be set, and what tokens cost by them."""

from __future__ import annotations

import decimal
import json
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from threading import Event, Thread, current_thread, main_thread
from typing import Any

import pytest
from celery.exceptions import Ignore, Retry, SoftTimeLimitExceeded
from hypothesis import given, settings
from hypothesis import strategies as st

from aicache_tasks.codec import decode_meta, encode_meta
from aicache_tasks.errors import SettingsError
from aicache_tasks.parts import InternalErrors
from aicache_tasks.prices import MOST_MICROS, Price, Prices, counts_tokens, is_priced, parse, tokens_in, whole
from aicache_tasks.settings import Settings
from aicache_tasks.work import Work, _added, annotate

MINI = {"input": 0.15, "cached_input": 0.075, "output": 0.60}
TABLE: dict[str, Any] = {"version": "2026-11", "currency": "USD", "models": {"mini*": MINI}}


def price(**said: Any) -> Price:
    table = parse("aicache_prices", {"version": "1", "models": {"m": {"input": 1, "output": 4, **said}}})
    assert table is not None
    found = table.of("m")
    assert found is not None
    return found


class TestWhatTokensCost:
    @pytest.mark.parametrize(
        ("usage", "micros"),
        [
            ({"input_tokens": 100, "output_tokens": 10}, 140),
            ({"prompt_tokens": 100, "completion_tokens": 10}, 140),
            ({"input_tokens": 100, "prompt_tokens": 100}, 100),  # two names of one thing
            ({"input_tokens": 0, "prompt_tokens": 100, "output_tokens": 0, "completion_tokens": 10}, 140),
            ({"input_tokens": 100, "cached_input_tokens": 60}, 40 + 30),  # part of the input
            ({"input_tokens": 10, "cached_input_tokens": 60}, 30),  # more than all of it
            ({"input_tokens": 100, "cache_read_input_tokens": 60}, 100 + 30),  # on top of the input
            ({"input_tokens": 100, "cache_creation_input_tokens": 8}, 100 + 10),
            ({"input_tokens": -5, "output_tokens": 10}, 40),
            ({"output_tokens": 10, "reasoning_tokens": 9, "words": 7}, 40),
            ({}, 0),
        ],
    )
    def test_each_kind_has_its_price(self, usage: dict[str, int], micros: int) -> None:
        assert whole(price(cached_input=0.5, cache_write=1.25).micros(usage)) == micros

    def test_what_is_not_said_costs_what_input_costs(self) -> None:
        usage = {"input_tokens": 100, "cached_input_tokens": 60, "cache_creation_input_tokens": 5}
        assert whole(price().micros(usage)) == 105

    def test_the_sum_is_rounded_once_half_to_even(self) -> None:
        by_halves = price(input=0.5, output=0.25)
        assert [whole(by_halves.micros({"input_tokens": count})) for count in (1, 3, 5)] == [0, 2, 2]
        assert whole(by_halves.micros({"input_tokens": 1, "output_tokens": 4})) == 2  # 0.5 + 1.0, not 0 + 1

    @given(
        st.integers(0, 2**53),
        st.integers(0, 2**53),
        st.decimals(0, 10**4, places=9),
        st.decimals(0, 10**4, places=9),
    )
    @settings(max_examples=200, deadline=None, database=None)
    def test_it_is_exact_whatever_the_application_s_decimal_context_says(
        self, entered: int, left: int, a: Decimal, b: Decimal
    ) -> None:
        exact = entered * Fraction(a) + left * Fraction(b)
        with decimal.localcontext(prec=3, rounding=decimal.ROUND_UP, traps=[decimal.Inexact, decimal.Rounded]):
            found = whole(price(input=a, output=b).micros({"input_tokens": entered, "output_tokens": left}))
        assert found == min(round(exact), MOST_MICROS)

    def test_no_cost_is_beyond_what_an_entry_can_hold_exactly(self) -> None:
        assert whole(Decimal("1e300")) == MOST_MICROS
        assert round(MOST_MICROS / 1e6 * 1e6) == MOST_MICROS
        assert round((MOST_MICROS - 1) / 1e6 * 1e6) == MOST_MICROS - 1

    def test_words_are_no_tokens_and_not_every_token_has_a_price(self) -> None:
        assert [counts_tokens(usage) for usage in ({"input_words": 3}, {"tokens": 0}, {"tokens": 3})] == [0, 0, 1]
        assert [is_priced(usage) for usage in ({"tokens": 3}, {"input_tokens": 0}, {"output_tokens": 1})] == [0, 0, 1]

    @pytest.mark.parametrize(
        ("usage", "tokens"),
        [
            (None, 0),
            ({"input_words": 1000, "output_words": 100}, 0),
            ({"input_tokens": 1000, "cached_input_tokens": 800, "output_tokens": 100}, 1100),
            ({"prompt_tokens": 1000, "completion_tokens": 100, "total_tokens": 1100, "reasoning_tokens": 60}, 1100),
            ({"input_tokens": 1, "cache_read_input_tokens": 20, "cache_creation_input_tokens": 300}, 321),
            ({"input_tokens": 5, "prompt_tokens": 70}, 75),  # of many answers, each with a name of its own
            ({"input_tokens": -5, "output_tokens": 7}, 7),
        ],
    )
    def test_a_token_counts_once_in_a_sum(self, usage: dict[str, int] | None, tokens: int) -> None:
        assert tokens_in(usage) == tokens


class TestWhichPrice:
    @pytest.fixture
    def prices(self) -> Prices:
        names = ("mini*", "mini-2*", "mini-2-pro", "*")
        models = {name: {"input": at, "output": at} for at, name in enumerate(names)}
        found = parse("aicache_prices", {"version": "1", "models": models})
        assert found is not None
        return found

    @pytest.mark.parametrize(
        ("model", "at"),
        [("mini", 0), ("mini-1", 0), ("mini-2", 1), ("mini-2-pro", 2), ("mini-2-pro-x", 1), ("max", 3), ("", 3),
         (None, 3), ("mini*", 0), ("MINI", 3)],
    )  # fmt: skip
    def test_a_name_goes_before_the_longest_beginning(self, prices: Prices, model: str | None, at: int) -> None:
        found = prices.of(model)
        assert found is not None
        assert found.input == at

    def test_there_may_be_none(self) -> None:
        prices = parse("aicache_prices", TABLE)
        assert prices is not None
        assert prices.of("max") is prices.of(None) is None


class TestSetting:
    def test_a_table(self) -> None:
        prices = Settings.from_mapping({"aicache_prices": TABLE}).prices
        assert prices is not None
        assert (prices.version, prices.currency) == ("2026-11", "USD")
        mini = Price(Decimal("0.15"), Decimal("0.6"), Decimal("0.075"), Decimal("0.15"))
        assert prices.models == {"mini*": mini}

    def test_numbers_may_be_written_in_every_way(self) -> None:
        found = price(input="0.10", output=Decimal("0.30"), cached_input=0, cache_write=1e-7)
        assert found == (Decimal("0.10"), Decimal("0.30"), 0, Decimal("0.0000001"))

    def test_none(self) -> None:
        assert Settings().prices is Settings.from_mapping({}, {"AICACHE_PRICES": ""}).prices is None

    def test_the_environment_has_json_or_the_path_of_a_file(self, tmp_path: Path) -> None:
        text = json.dumps(TABLE)
        path = tmp_path / "prices.json"
        path.write_text(text)
        for said in (text, f"\n {text}", str(path)):
            assert Settings.from_mapping({}, {"AICACHE_PRICES": said}) == Settings.from_mapping(
                {"aicache_prices": TABLE}
            )

    def test_settings_that_are_updated_keep_them(self) -> None:
        kept = Settings.from_mapping({"aicache_prices": TABLE}).updated({"aicache_ttl": 5})
        assert kept.prices == parse("aicache_prices", TABLE)

    @pytest.mark.parametrize(
        ("said", "error"),
        [
            (7, r"aicache_prices: must be a table with 'version' and 'models'"),
            ([], r"aicache_prices: must be a table"),
            ("[1]", r"aicache_prices: the file '\[1\]' cannot be read: No such file"),
            ("{", r"aicache_prices: no JSON in '\{'"),
            ("a\0b", r"aicache_prices: the file .* cannot be read"),
            ({"models": {}}, r"aicache_prices\['version'\]: is missing"),
            ({"version": "1"}, r"aicache_prices\['models'\]: is missing"),
            ({"version": "", "models": {}}, r"aicache_prices\['version'\]: must be a name"),
            ({"version": "~other", "models": {}}, r"aicache_prices\['version'\]: must be a name"),
            ({"version": 2026, "models": {}}, r"aicache_prices\['version'\]: 2026 is not a text of up to 64"),
            ({"version": "1\n", "models": {}}, r"aicache_prices\['version'\]: '1\\n' is not a text"),
            ({"version": "1", "models": {}, "curency": "USD"}, r"aicache_prices: unknown 'curency'; did you mean 'cur"),
            ({"version": "1", "models": {}, "currency": 1}, r"aicache_prices\['currency'\]: 1 is not a text"),
            ({"version": "1", "models": ["m"]}, r"aicache_prices\['models'\]: must map models to prices"),
            ({"version": "1", "models": {"": MINI}}, r"aicache_prices\['models'\]: '' is not a model's name"),
            ({"version": "1", "models": {7: MINI}}, r"aicache_prices\['models'\]: 7 is not a model's name"),
            ({"version": "1", "models": {"a*b": MINI}}, r"aicache_prices\['models'\]: 'a\*b' is not a model's name"),
            ({"version": "1", "models": {"m": 3}}, r"aicache_prices\['models'\]\['m'\]: must give 'input' and"),
            ({"version": "1", "models": {"m": {"input": 1}}}, r"\['models'\]\['m'\]\['output'\]: is missing"),
            ({"version": "1", "models": {"m": MINI | {"inptu": 1}}}, r"\['m'\]: unknown 'inptu'; did you mean 'input'"),
            ('{"version": "1", "models": {"m": {"input": 1e-99999999999999999999, "output": 1}}}',
             r"aicache_prices\['models'\]\['m'\]\['input'\]: .* is not a price from 0 to 1000000000"),
            *[
                ({"version": "1", "models": {"m": MINI | {"input": bad}}},
                 r"aicache_prices\['models'\]\['m'\]\['input'\]: .* is not a price from 0 to 1000000000")
                for bad in (-1, "free", None, True, float("nan"), float("inf"), "1e10", [1], 10**5000, "",
                            "1e-99999999999999999999")
            ],
        ],
    )  # fmt: skip
    def test_what_is_wrong_is_said_with_its_place(self, said: Any, error: str) -> None:
        with pytest.raises(SettingsError, match=error):
            Settings.from_mapping({"aicache_prices": said})

    @pytest.mark.parametrize(
        ("models", "twice"),
        [
            ('{"m": {"input": 1, "output": 2}, "m": {"input": 3, "output": 4}}', "m"),
            ('{"m": {"input": 1, "output": 2, "input": 3}}', "input"),
        ],
    )
    def test_a_name_that_is_given_twice_in_json_is_refused(self, models: str, twice: str) -> None:
        said = f'{{"version": "1", "models": {models}}}'
        with pytest.raises(SettingsError, match=f"aicache_prices: '{twice}' is given twice in one object"):
            Settings.from_mapping({}, {"AICACHE_PRICES": said})

    def test_a_file_that_is_no_text_is_said(self, tmp_path: Path) -> None:
        path = tmp_path / "prices.json"
        path.write_bytes(b"\xff\xfe\xff")
        with pytest.raises(SettingsError, match="cannot be read: it is no text"):
            Settings.from_mapping({}, {"AICACHE_PRICES": str(path)})


class Name(str):
    """As numpy's."""

    __slots__ = ()

    def __str__(self) -> str:
        return "another"


class BrokenName(str):
    __slots__ = ()

    def __getitem__(self, at: Any) -> str:
        raise LookupError


class BrokenAmount(float):
    def __float__(self) -> float:
        raise LookupError

    __repr__ = __lt__ = __gt__ = __float__  # type: ignore[assignment]


class Broken(Mapping[str, int]):
    """What raises when it is read."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.error = error or LookupError()

    def __iter__(self) -> Iterator[str]:
        raise self.error

    def __getitem__(self, name: str) -> int:
        raise self.error

    def __len__(self) -> int:
        raise self.error


def worked(body: Callable[[], Any], prices: Prices | None = None) -> Work:
    work = Work()
    work.run(body, (), {})
    work.is_known = work.price(prices)  # type: ignore[attr-defined]
    return work


class TestWork:
    @pytest.fixture
    def prices(self) -> Prices:
        found = parse("aicache_prices", TABLE)
        assert found is not None
        return found

    def test_tokens_are_priced_with_the_version_that_was_asked(self, prices: Prices) -> None:
        work = worked(lambda: annotate(model="mini-1", usage={"input_tokens": 1000, "output_tokens": 10}), prices)
        assert (work.micros, work.prices, work.meta().cost) == (156, "2026-11", 0.000156)

    @pytest.mark.parametrize("is_cheap_first", [True, False])
    def test_each_model_s_tokens_have_its_own_price(self, is_cheap_first: bool) -> None:
        models = {"small": {"input": 1, "output": 1}, "large": {"input": 100, "output": 100}}
        prices = parse("aicache_prices", {"version": "1", "models": models})
        said = [("small", 1_000_000), ("large", 10), ("small", 5)]

        def body() -> None:
            for model, tokens in said if is_cheap_first else reversed(said):
                annotate(model=model)
                annotate(usage={"input_tokens": tokens})

        work = worked(body, prices)
        assert (work.micros, work.model) == (1_001_005, "small")
        assert work.usage == {"input_tokens": 1_000_015}

    def test_parts_of_two_models_are_rounded_together(self) -> None:
        prices = parse("aicache_prices", {"version": "1", "models": {"*": {"input": 0.5, "output": 0}}})

        def body() -> None:
            for model in "abc":
                annotate(model=model, usage={"input_tokens": 1})

        assert worked(body, prices).micros == 2, "1.5, half to even, and not three times a half"

    def test_tokens_said_before_any_model_are_the_first_one_s(self, prices: Prices) -> None:
        def body() -> None:
            annotate(usage={"input_tokens": 1000})
            annotate(model="mini-1")
            annotate(model="max", usage={"words": 3})

        assert worked(body, prices).micros == 150

    def test_one_model_without_a_price_leaves_the_body_without_a_cost(
        self, prices: Prices, caplog: pytest.LogCaptureFixture
    ) -> None:
        def body() -> None:
            annotate(model="max", usage={"output_tokens": 5})
            annotate(model="mini-1", usage={"input_tokens": 1000})

        work = worked(body, prices)
        assert (work.micros, work.unpriced, work.is_known) == (None, "max", False)  # type: ignore[attr-defined]
        InternalErrors().unpriced(work)
        assert "answers of model 'max' took tokens ('output_tokens')" in caplog.text

    def test_of_more_models_than_are_told_apart_nobody_knows_the_cost(self) -> None:
        models = {"*": {"input": 1, "output": 1}, "m-999": {"input": 100, "output": 1}}

        def body() -> None:
            for number in range(1000):
                annotate(model=f"m-{number}", usage={"input_tokens": 1000})

        work = worked(body, parse("aicache_prices", {"version": "1", "models": models}))
        assert (work.micros, len(work.shares or {})) == (None, 17)
        assert work.usage == {"input_tokens": 1_000_000}

    def test_a_cost_that_the_body_says_wins(self, prices: Prices) -> None:
        said = {"model": "mini-1", "usage": {"input_tokens": 1000}}
        for cost in (2, 2.0, Decimal(2)):
            work = worked(lambda cost=cost: annotate(**said, cost=cost), prices)
            assert (work.micros, work.prices, work.meta().cost) == (2_000_000, "", 2.0)

    def test_costs_add_up_exactly_and_are_rounded_once(self) -> None:
        def body() -> None:
            for _ in range(10):
                annotate(cost=0.1)
            for _ in range(4):
                annotate(cost=Decimal("0.0000004"))

        with decimal.localcontext(prec=2):
            assert worked(body).micros == 1_000_002

    @pytest.mark.parametrize(
        "cost",
        [True, "1", float("nan"), float("inf"), Decimal("NaN"), Decimal("sNaN"), Decimal("-Infinity"), 10**400, 1e300,
         Decimal("1e999999"), 1j, [1]],
    )  # fmt: skip
    def test_what_is_no_money_is_left_out(self, cost: Any) -> None:
        def body() -> None:
            annotate(cost=cost)
            annotate(cost=1)

        with decimal.localcontext(traps=[decimal.Inexact, decimal.InvalidOperation, decimal.FloatOperation]):
            assert worked(body).micros == 1_000_000

    @pytest.mark.parametrize(
        ("name", "kept"),
        [(Name("mini-1"), "mini-1"), ("mini-\ud800", "mini-?"), ("mini-" + "x" * 100_000, "mini-" + "x" * 195)],
        ids=["of-another-type", "half-a-pair", "long"],
    )
    def test_a_name_is_kept_as_a_plain_text_of_bounded_length(self, prices: Prices, name: str, kept: str) -> None:
        work = worked(lambda: annotate(model=name, usage={Name("input_tokens"): 1000, name: 3}), prices)
        assert (work.model, work.micros) == (kept, 150)
        assert type(work.model) is str
        assert work.usage == {"input_tokens": 1000, kept[:64]: 3}
        assert {type(kind) for kind in work.usage} == {str}
        assert decode_meta(encode_meta(work.meta())) == work.meta()

    def test_more_kinds_than_there_is_room_for_are_counted_under_one_name(self, prices: Prices) -> None:
        usage = {f"k{i}_tokens": 2 for i in range(5000)}
        work = worked(lambda: annotate(model="mini-1", usage=usage | {"input_tokens": 1000}), prices)
        assert work.usage is not None
        assert (len(work.usage), work.usage["k63_tokens"], work.usage["~other"]) == (66, 2, 2 * (5000 - 64))
        assert work.micros == 150

    def test_a_sum_of_tokens_ends_at_what_an_entry_can_hold(self) -> None:
        def body() -> None:
            for _ in range(3000):
                annotate(usage={"input_tokens": 2**53 - 1, "lost": 1 - 2**53})

        work = worked(body)
        assert work.usage == {"input_tokens": 2**53, "lost": -(2**53)}
        assert decode_meta(encode_meta(work.meta())) == work.meta()

    @pytest.mark.parametrize("said", [{"usage": Broken()}, {"cost": BrokenAmount(3)}, {"model": BrokenName("m")}])
    def test_what_breaks_when_it_is_read_fails_no_body(self, said: dict[str, Any]) -> None:
        def body() -> None:
            annotate(**{"model": "mini-1", "usage": {"input_tokens": 3}, "cost": 1} | said)

        work = worked(body)
        kept = (work.model, work.usage, work.cost)
        assert kept == ("m" if "model" in said else "mini-1", None if "usage" in said else {"input_tokens": 3},
                        3 if "cost" in said else 1)  # fmt: skip

    @pytest.mark.parametrize("error", [SoftTimeLimitExceeded(), Retry("a"), Ignore(), KeyboardInterrupt()])
    def test_what_steers_a_task_passes_through(self, error: BaseException) -> None:
        with pytest.raises(type(error)):
            worked(lambda: annotate(usage=Broken(error)))

    def test_threads_of_a_body_speak_of_it_in_its_context(self) -> None:
        def ask(_: int) -> None:
            for _ in range(500):
                annotate(usage={"input_tokens": 1}, cost=1)

        def body() -> None:
            with ThreadPoolExecutor(4) as pool:
                list(pool.map(lambda context, at: context.run(ask, at), [copy_context() for _ in range(4)], range(4)))
                list(pool.map(ask, range(4)))  # outside of it

        interval = sys.getswitchinterval()
        sys.setswitchinterval(1e-6)
        try:
            works = [worked(body) for _ in range(5)]
        finally:
            sys.setswitchinterval(interval)
        assert [(work.usage, work.cost) for work in works] == [({"input_tokens": 2000}, Decimal(2000))] * 5

    def test_a_signal_handler_speaks_in_the_middle_of_what_the_body_says(self, monkeypatch: pytest.MonkeyPatch) -> None:
        signals = [signal.SIGUSR1]

        def interrupted(*given: Any) -> Any:
            added = _added(*given)
            if signals:
                signal.raise_signal(signals.pop())
            return added

        monkeypatch.setattr("aicache_tasks.work._added", interrupted)
        before = signal.signal(signal.SIGUSR1, lambda *_: annotate(model="late", usage={"late_tokens": 1}, cost=1))
        try:
            work = worked(lambda: annotate(usage={"input_tokens": 3}, cost=2))
        finally:
            signal.signal(signal.SIGUSR1, before)
        assert (work.model, work.usage, work.cost) == ("late", {"late_tokens": 1, "input_tokens": 3}, 3)

    def test_nobody_waits_for_a_thread_that_is_speaking(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A child that was forked meanwhile would wait for ever."""
        speaks, goes_on, went_on = Event(), Event(), []

        def held(*given: Any) -> Any:
            added = _added(*given)
            if current_thread() is not main_thread() and not speaks.is_set():
                speaks.set()
                went_on.append(goes_on.wait(5))
            return added

        def body() -> None:
            thread = Thread(target=copy_context().run, args=(lambda: annotate(usage={"b": 1}),), daemon=True)
            thread.start()
            assert speaks.wait(20)
            annotate(usage={"a": 1})
            goes_on.set()
            thread.join(20)

        monkeypatch.setattr("aicache_tasks.work._added", held)
        assert worked(body).usage == {"a": 1, "b": 1}
        assert went_on == [True]

    @pytest.mark.parametrize(
        ("said", "is_known"),
        [
            ({"model": "max", "usage": {"input_tokens": 3}}, False),
            ({"usage": {"input_tokens": 3}}, False),
            ({"model": "mini-1", "usage": {"other_tokens": 3}}, False),
            ({"model": "max", "usage": {"words": 3}}, True),
            ({"model": "max", "usage": {"input_tokens": 0}}, True),
            ({"model": "max"}, True),
        ],
    )
    def test_tokens_without_a_price_are_told_from_none(
        self, prices: Prices, said: dict[str, Any], is_known: bool
    ) -> None:
        work = worked(lambda: annotate(**said), prices)
        assert (work.micros, work.is_known, work.prices) == (None, is_known, "" if is_known else "2026-11")  # type: ignore[attr-defined]
        assert worked(lambda: annotate(**said)).meta().prices == ""

    def test_a_free_model_has_a_cost_of_nothing(self) -> None:
        prices = parse("aicache_prices", {"version": "1", "models": {"*": {"input": 0, "output": 0}}})
        assert worked(lambda: annotate(model="m", usage={"input_tokens": 9}), prices).micros == 0

    def test_a_body_within_a_body_takes_its_own(self) -> None:
        inner = Work()

        def body() -> None:
            annotate(cost=1)
            inner.run(annotate, (), {"cost": 5})
            annotate(cost=2)

        outer = worked(body)
        inner.price(None)
        assert (outer.micros, inner.micros) == (3_000_000, 5_000_000)
        assert outer.compute_ns > inner.compute_ns > 0

    def test_a_body_that_raises_has_taken_what_it_said(self) -> None:
        work = Work()

        def body() -> None:
            annotate(cost=1)
            raise SystemExit

        with pytest.raises(SystemExit):
            work.run(body, (), {})
        annotate(cost=7)  # nobody's
        assert (work.outcome, work.cost) == ("failed", 1)
        assert work.compute_ns > 0
