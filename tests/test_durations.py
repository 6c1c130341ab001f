"""Durations: what may be written, and that a wrong one costs no time and gives a short error."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Any

import pytest

from aicache_tasks.durations import parse_duration
from aicache_tasks.errors import SettingsError


@pytest.mark.parametrize(
    ("given", "seconds"),
    [
        ("90s", 90),
        (" 2H5M ", 7500),
        ("1.5h", 5400),
        ("250ms", 0.25),
        ("1w1d", 691200),
        ("5m30", None),
        ("1h 5m", None),
        ("h", None),
        ("", None),
        ("90", 90),
        (90, 90),
        (0.5, 0.5),
        (0, 0),
        (timedelta(minutes=1), 60),
        (True, None),
        ([], None),
        (float("nan"), None),
    ],
    ids=repr,
)
def test_a_duration_is_seconds_a_timedelta_or_parts_with_units(given: Any, seconds: float | None) -> None:
    if seconds is not None:
        assert parse_duration(given, name="ttl") == seconds
        return
    with pytest.raises(SettingsError, match=r"^ttl: .* is not a duration"):
        parse_duration(given, name="ttl")


@pytest.mark.parametrize(
    "text", ["1" * 16_000 + "x", "1" * 200_000, "1s" * 90_000, "x" * 10**6, "1s" * 32 + "1"], ids=len
)
def test_long_text_is_refused_at_once(text: str) -> None:
    began_s = time.thread_time()
    with pytest.raises(SettingsError, match=r"is not a duration") as refused:
        parse_duration(text, name="ttl")
    assert time.thread_time() - began_s < 0.1
    assert len(str(refused.value)) < 130


@pytest.mark.parametrize(
    "given",
    [-1, "-5", -0.5, timedelta(seconds=-1), -(10**5000)],
    ids=["int", "text", "float", "timedelta", "huge int"],
)
def test_a_negative_duration_is_called_negative(given: Any) -> None:
    with pytest.raises(SettingsError, match=r"^ttl: .{1,40} is negative"):
        parse_duration(given, name="ttl")


@pytest.mark.parametrize(
    "given",
    [10**5000, "1" * 60, "inf", 1e300, timedelta.max],
    ids=["huge int", "digits", "inf", "float", "timedelta"],
)
def test_more_than_a_hundred_years_is_refused(given: Any) -> None:
    with pytest.raises(SettingsError, match=r"^ttl: longer than a hundred years$"):
        parse_duration(given, name="ttl")


@pytest.mark.parametrize(
    "given",
    [b"x" * 10**6, [1] * 10**5, [10**5000], {"a": "b" * 1000}],
    ids=["bytes", "list", "huge int in a list", "dict"],
)
def test_an_error_shows_forty_characters_of_what_was_given(given: Any) -> None:
    with pytest.raises(SettingsError, match=r"^ttl: .{1,40} is not a duration; write seconds"):
        parse_duration(given, name="ttl")
