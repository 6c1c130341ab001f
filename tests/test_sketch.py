"""Percentiles of any values, added in any pieces and any order, lie within 1 % of exact nearest rank."""

from __future__ import annotations

import importlib
import importlib.util
import math
import random
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aicache_tasks.sketch import MAX_BUCKET, PER_OCTAVE, Distribution, value_of

PERCENTS = (0.1, 1, 5, 25, 50, 75, 90, 95, 99, 99.9, 99.99, 100)
VALUES = st.integers(0, 2**63) | st.integers(0, 300) | st.integers(0, 63).map(lambda bits: 2**bits)


def exact(ordered: Sequence[int], percent: float) -> int:
    """Return the nearest rank: the least value that *percent* of the values do not exceed."""
    return ordered[math.ceil(len(ordered) * round(percent * 1000) / 100_000) - 1]


def spread_of(values: Sequence[int], per_octave: int = PER_OCTAVE) -> Distribution:
    spread = Distribution(per_octave=per_octave)
    spread.add(values)
    return spread


def lognormal(rng: random.Random) -> int:
    return int(rng.lognormvariate(16, 1.5))


def pareto(rng: random.Random) -> int:
    return int(40_000 * rng.paretovariate(0.8))


def bimodal(rng: random.Random) -> int:
    return int(rng.gauss(60_000, 4_000) if rng.random() < 0.9 else rng.gauss(2e9, 3e8))


def uniform(rng: random.Random) -> int:
    return rng.randrange(2**53)


def tiny(rng: random.Random) -> int:
    return rng.randrange(4)


def constant(rng: random.Random) -> int:
    return 123_456_789


def mostly_zero(rng: random.Random) -> int:
    return 0 if rng.random() < 0.97 else rng.randrange(1, 10**9)


SHAPES = (lognormal, pareto, bimodal, uniform, tiny, constant, mostly_zero)


@pytest.mark.parametrize("draw", SHAPES)
@pytest.mark.parametrize("count", [1, 2, 7, 100, 5_000])
def test_percentiles_of_any_shape_are_within_one_percent(draw: Callable[[random.Random], int], count: int) -> None:
    rng = random.Random(count)
    values = sorted(draw(rng) for _ in range(count))
    spread = spread_of(values)
    for percent in PERCENTS:
        assert spread.percentile(percent) == pytest.approx(exact(values, percent), rel=0.01, abs=0)


@given(st.lists(VALUES, min_size=1, max_size=60), st.sampled_from(PERCENTS))
@settings(deadline=None, database=None)
def test_percentiles_of_any_values_are_within_one_percent(values: list[int], percent: float) -> None:
    assert spread_of(values).percentile(percent) == pytest.approx(exact(sorted(values), percent), rel=0.01, abs=0)


@given(st.lists(st.lists(VALUES, max_size=12), max_size=12), st.randoms(use_true_random=False))
@settings(deadline=None, database=None)
def test_pieces_added_in_any_order_equal_the_whole(pieces: list[list[int]], rng: random.Random) -> None:
    whole = spread_of([value for piece in pieces for value in piece])
    rng.shuffle(pieces)
    parts = [spread_of(piece) for piece in pieces]
    while len(parts) > 1:  # in any grouping: two of them become one
        first, second = (parts.pop(rng.randrange(len(parts))) for _ in range(2))
        first.merge(second)
        parts.append(first)
    assert (parts or [Distribution()])[0] == whole


@given(st.integers(0, 2**53))
@settings(deadline=None, database=None)
def test_one_value_is_its_own_percentile(value: int) -> None:
    spread = spread_of([value])
    assert spread.percentile(50) == spread.percentile(100) == value
    assert (spread.count, spread.total, spread.low, spread.high) == (1, value, value, value)


@given(st.integers(1, 2**64))
@settings(deadline=None, database=None)
def test_each_value_is_within_one_percent_of_its_buckets_value(value: int) -> None:
    (bucket,) = spread_of([value]).buckets
    assert 0 <= bucket <= MAX_BUCKET
    assert value_of(bucket) == pytest.approx(value, rel=0.01, abs=0)


def test_the_borders_of_buckets_are_within_one_percent_too() -> None:
    for bucket in range(PER_OCTAVE * 20, PER_OCTAVE * 53):
        border = round(2 ** (bucket / PER_OCTAVE))
        for value in (border - 1, border, border + 1):
            (found,) = spread_of([value]).buckets
            assert abs(value_of(found) - value) <= 0.01 * value


@given(st.lists(st.integers(1, 2**53), min_size=1, max_size=40), st.sampled_from(PERCENTS))
@settings(deadline=None, database=None)
def test_fewer_buckets_are_as_exact_as_they_say(values: list[int], percent: float) -> None:
    found = spread_of(values, per_octave=8).percentile(percent)
    assert found == pytest.approx(exact(sorted(values), percent), rel=0.044, abs=0)


def test_the_rank_is_exact_among_billions() -> None:
    spread = Distribution(10**12, 10**12, 1, 2**40, spread_of([1]).buckets)
    spread.buckets[0] = 999 * 10**9
    spread.buckets[40 * PER_OCTAVE] = 10**9
    assert spread.percentile(99.9) == pytest.approx(1, rel=0.01)
    assert spread.percentile(99.900001) == pytest.approx(2**40, rel=0.01)


def test_no_values_have_zeros() -> None:
    nothing = Distribution()
    nothing.add([])
    nothing.merge(Distribution())
    assert (nothing.count, nothing.mean, nothing.percentile(99)) == (0, 0.0, 0.0)
    assert not nothing.buckets


def test_low_is_the_least_of_what_was_merged_into_nothing() -> None:
    spread = Distribution()
    spread.merge(spread_of([500, 900]))
    spread.merge(Distribution())
    assert (spread.low, spread.high, spread.mean) == (500, 900, 700.0)


@pytest.mark.parametrize("percent", [0, -1, 100.001, math.nan, math.inf])
def test_a_percent_that_is_none_is_refused(percent: float) -> None:
    with pytest.raises(ValueError, match="percent must be above 0"):
        spread_of([1]).percentile(percent)


def test_a_negative_value_is_refused() -> None:
    spread = spread_of([5])
    with pytest.raises(ValueError, match="0 or more, not -1"):
        spread.add([5, -1])
    assert spread == spread_of([5])


def test_distributions_of_other_widths_do_not_merge() -> None:
    with pytest.raises(ValueError, match="8 to an octave do not fit those of 35"):
        spread_of([1]).merge(spread_of([1], per_octave=8))


# A second implementation as the oracle, where it has a wheel; the exact values are one everywhere.

HDR = importlib.util.find_spec("hdrh") is not None
ORACLES = ["exact", "hdr 2 digits", "hdr 3 digits"] if HDR else ["exact"]


def told_by(oracle: str, values: Sequence[int], percent: float) -> tuple[float, float]:
    """Return what the oracle says, and how far it may be off itself."""
    if oracle == "exact":
        return exact(sorted(values), percent), 0.0
    digits = int(oracle.split()[1])
    histogram = importlib.import_module("hdrh.histogram").HdrHistogram(1, 2**53, digits)
    for value in values:
        histogram.record_value(value)
    return histogram.get_value_at_percentile(percent), 10.0**-digits


@pytest.mark.parametrize("oracle", ORACLES)
@pytest.mark.parametrize("draw", [lognormal, pareto, bimodal, constant])
def test_percentiles_agree_with_an_oracle(oracle: str, draw: Callable[[random.Random], int]) -> None:
    rng = random.Random(7)
    values = [max(draw(rng), 1) for _ in range(3_000)]  # nanoseconds
    spread = spread_of(values)
    for percent in (50, 90, 95, 99):
        said, off = told_by(oracle, values, percent)
        assert spread.percentile(percent) == pytest.approx(said, rel=0.0101 + off)
