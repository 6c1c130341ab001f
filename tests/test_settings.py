"""Settings: every form they may be written in, and errors that name the setting and the fix."""

from __future__ import annotations

import pickle
from dataclasses import fields
from datetime import timedelta
from typing import Any

import pytest
from celery import Celery
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from aicache_tasks import AIResponseCache, Settings, SettingsError
from aicache_tasks.durations import parse_duration, show_duration
from aicache_tasks.runtime import hide_secrets, reset_runtime, runtime_of
from aicache_tasks.settings import Hidden, _warn_once, hide, mask_url

SECRET = "sixteen bytes or more"


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    _warn_once.cache_clear()
    for name in ("AICACHE_URL", "AICACHE_DISABLED"):
        monkeypatch.delenv(name, raising=False)


def app_of(**conf: Any) -> Celery:
    app = Celery("settings", set_as_current=False)
    app.conf.update(conf)
    return app


def test_the_defaults_are_those_of_the_documentation() -> None:
    """C6"""
    settings = Settings()
    assert settings.ttl == 3600
    assert settings.ttls == {"summarize": 7200, "sentiment": 86400, "key_points": 7200, "questions": 3600, "qa": 1800}
    assert (settings.budget_ms, settings.connect_ms, settings.disabled, settings.url) == (50, 250, False, None)


def test_a_lifetime_of_one_operation_leaves_those_of_the_others() -> None:
    """C6"""
    settings = Settings.from_mapping({"aicache_ttls": {"qa": "5m", "mine": timedelta(hours=1)}})
    assert (settings.ttls["qa"], settings.ttls["mine"], settings.ttls["summarize"]) == (300, 3600, 7200)


@pytest.mark.parametrize("name", ["aicache_ttl", "AICACHE_TTL", "Aicache_Ttl"])
def test_names_may_be_in_any_case(name: str) -> None:
    assert Settings.from_mapping({name: "2h", "other": 1}).ttl == 7200


def test_the_environment_wins_over_the_application() -> None:
    given, environ = {"aicache_disabled": False, "aicache_ttl": 5}, {"AICACHE_DISABLED": "1", "AICACHE_TTL": "2h"}
    settings = Settings.from_mapping(given, environ)
    assert (settings.disabled, settings.ttl) == (True, 7200)


def test_other_variables_of_the_environment_are_passed_over() -> None:
    environ = {"AICACHE_ENGINE": "extractive", "AICACHE_TTLS": "x", "OTHER": "y"}
    assert Settings.from_mapping({}, environ) == Settings()


@pytest.mark.parametrize(
    ("variable", "meant"),
    [("AICACHE_TLL", "AICACHE_TTL"), ("AICACHE_DISABELD", "AICACHE_DISABLED"), ("AICACHE_TTLS", "AICACHE_TTL")],
)
def test_a_variable_that_is_nearly_a_setting_is_warned_of_once(
    variable: str, meant: str, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(3):
        assert Settings.from_mapping({}, {variable: "3"}) == Settings()
    assert [(r.name, r.levelname, r.getMessage()) for r in caplog.records] == [
        ("aicache_tasks", "WARNING", f"aicache: the environment variable {variable} is not read; did you mean {meant}?")
    ]


@pytest.mark.parametrize(
    "variable",
    [
        "AICACHE_ENGINE",
        "AICACHE_BROKER_URL",
        "AICACHE_REGENERATE",
        "AICACHE_TEST_URL",
        "AICACHE_ENV_DIR",
        "AICACHE_CALLERS_PATH",
        "AICACHE_CALLERS_FOLDER",
        "AICACHE_BENCHMARK_SERVER",
        "AICACHE_TTL",
        "AICACHE_L1_BYTES",
        "TTL",
        "MY_AICACHE_TLL",
    ],
)
def test_a_variable_that_is_a_setting_or_far_from_one_is_not_warned_of(
    variable: str, caplog: pytest.LogCaptureFixture
) -> None:
    Settings.from_mapping({}, {variable: "3"})
    assert caplog.records == []


@pytest.mark.parametrize(
    ("pair", "said"),
    [
        (
            {"compression": "zlib", "compression_level": 10},
            "aicache_compression_level: 10 is over 9, the most of aicache_compression='zlib'",
        ),
        (
            {"breaker_min_s": 5, "breaker_max_s": "4s"},
            "aicache_breaker_min_s: 5s is more than aicache_breaker_max_s, 4s, but",
        ),
        ({"breaker_min_s": 31}, "aicache_breaker_min_s: 31s is more than aicache_breaker_max_s, 30s, but"),
        (
            {"memory_warning_bytes": 2**40, "memory_critical_bytes": 2**30},
            "aicache_memory_warning_bytes: 1099511627776 is more than aicache_memory_critical_bytes, 1073741824, but",
        ),
        (
            {"invalidations_critical_per_hour": 49},
            "aicache_invalidations_warning_per_hour: 50 is more than aicache_invalidations_critical_per_hour, 49, but",
        ),
        (
            {"rollup_expires_s": 59},
            "aicache_rollup_period_s: 1m is more than aicache_rollup_expires_s, 59s, but a roll-up that waits",
        ),
        ({"alert_window_s": "3d"}, "aicache_alert_window_s: 3d is more than aicache_keep_minutes_s, 2d, but alerts"),
        (
            {"keep_minutes_s": 3599},
            "aicache_keep_minutes_s: 59m59s is less than the hour of which aicache_invalidations_warning",
        ),
        ({"keep_hours_s": "1d"}, "aicache_keep_minutes_s: 2d is more than aicache_keep_hours_s, 1d, but"),
        ({"keep_days_s": "59d"}, "aicache_keep_hours_s: 60d is more than aicache_keep_days_s, 59d, but"),
    ],
    ids=lambda given: "-".join(given) if isinstance(given, dict) else "",
)
def test_settings_that_exclude_each_other_are_an_error_that_names_both(pair: dict[str, Any], said: str) -> None:
    named = {f"aicache_{name}": value for name, value in pair.items()}
    for ask in (Settings.from_mapping, Settings().updated):
        with pytest.raises(SettingsError) as caught:
            ask(named)
        assert str(caught.value).startswith(said)


@pytest.mark.parametrize(
    "pair",
    [
        {"rollup_period_s": 0, "rollup_expires_s": 1},
        {"rollup_period_s": "20m", "rollup_expires_s": 0},
        {"rollup_period_s": 30, "rollup_expires_s": 30},
        {"keep_minutes_s": "1h", "keep_hours_s": "1h", "keep_days_s": "1h", "alert_window_s": "1h"},
        {"memory_warning_bytes": 5, "memory_critical_bytes": 5},
        {"memory_warning_bytes": 5, "memory_critical_bytes": 0},
        {"rollup_period_s": 0.1},
    ],
    ids=repr,
)
def test_settings_at_the_limits_of_each_other_are_taken(pair: dict[str, Any]) -> None:
    settings = Settings.from_mapping({f"aicache_{name}": value for name, value in pair.items()})
    assert {name: getattr(settings, name) for name in pair} == {
        name: parse_duration(value, name=name) for name, value in pair.items()
    }


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("buffer_samples", 5, "5 is outside 256 to 10000000"),
        ("inbox_bytes", 5, "5 is outside 1048576 to 1099511627776"),
        ("l1_entries", "many", "'many' is not a number from 0 to 10000000"),
        ("jitter", 2, "2.0 is outside 0 to 0.5"),
        ("rollup_period_s", "50ms", "'50ms' is less than 0.1 s; write 0 for never"),
    ],
)
def test_an_error_has_limits_that_may_be_typed_in(name: str, value: Any, said: str) -> None:
    with pytest.raises(SettingsError) as caught:
        Settings.from_mapping({f"aicache_{name}": value})
    assert str(caught.value) == f"aicache_{name}: {said}"


def test_a_setting_of_a_few_words_lists_them_in_its_description_and_its_error() -> None:
    found = {}
    for setting in fields(Settings):
        try:
            setting.metadata["check"]("name", object())
        except SettingsError as error:
            if " is not one of " in str(error):
                found[setting.name] = str(error).partition(" is not one of ")[2].split(", ")
                assert all(f"`{word}`" in setting.metadata["doc"] for word in found[setting.name]), setting.name
        except TypeError:
            continue
    assert found == {"compression": ["zstd", "zlib", "none"], "samples": ["batched", "durable", "off"]}


@given(st.integers(0, 100 * 365 * 86_400) | st.sampled_from([0.1, 0.25, 1.5, 7500.5]))
@hypothesis_settings(max_examples=100, deadline=None, database=None)
def test_a_duration_as_it_is_shown_may_be_typed_in(seconds: float) -> None:
    assert parse_duration(show_duration(seconds), name="any") == seconds


def test_settings_that_agree_with_what_was_set_before_are_taken() -> None:
    settings = Settings.from_mapping({"aicache_breaker_max_s": 120}).updated({"aicache_breaker_min_s": 60})
    assert (settings.breaker_min_s, settings.breaker_max_s) == (60, 120)
    with pytest.raises(SettingsError, match=r"aicache_compression_level.*zlib"):
        Settings.from_mapping({"aicache_compression_level": 19}).updated({"aicache_compression": "zlib"})
    assert Settings.from_mapping({"aicache_compression": "zlib", "aicache_compression_level": 9}).compression == "zlib"


@pytest.mark.parametrize(
    "value", [10**5000, "9" * 5000, b"x" * 10**6, [10**5000]], ids=["int", "text", "bytes", "list"]
)
def test_a_huge_value_is_an_error_that_stays_short(value: Any) -> None:
    for name in ("ttl", "disabled", "jitter", "l1_entries", "compression", "namespace", "hash", "compression_level"):
        with pytest.raises(SettingsError, match=f"^aicache_{name}: ") as caught:
            Settings.from_mapping({f"aicache_{name}": value})
        assert len(str(caught.value)) < 150


@pytest.mark.parametrize("word", ["1", "true", "YES", " on ", True])
def test_words_that_switch_on(word: Any) -> None:
    assert Settings.from_mapping({"aicache_disabled": word}).disabled is True


@pytest.mark.parametrize("word", ["0", "false", "No", "off", "", False, None])
def test_words_that_switch_off(word: Any) -> None:
    assert Settings.from_mapping({"aicache_disabled": word}).disabled is False


@pytest.mark.parametrize(
    ("name", "hint"),
    [("aicache_tll", "did you mean aicache_ttl"), ("AICACHE_DISABELD", "aicache_disabled"), ("aicache_zzz", "docs")],
)
def test_an_unknown_name_is_an_error_with_the_nearest_one(name: str, hint: str) -> None:
    with pytest.raises(SettingsError, match=f"unknown setting {name.lower()}; .*{hint}"):
        Settings.from_mapping({name: 1})


WRONG: dict[str, list[Any]] = {
    "aicache_url": ["http://host", "host:6379", 5, "redis//", "redis://[::1", b"redis://h"],
    "aicache_share_backend": ["maybe", 2, "[]"],
    "aicache_namespace": ["", "a b", "x" * 33, "{a}", 5, "é"],
    "aicache_secret": ["short", "x" * 65, 5],
    "aicache_hash": ["md4-nope", "shake_128", 5, "", "crc32"],
    "aicache_ttl": [0, -1, "soon", True, float("nan"), float("inf"), "0s", [], 1e300],
    "aicache_ttls": [{"qa": 0}, {"qa": "x"}, "qa=5", [("qa", 5)]],
    "aicache_jitter": [-0.1, 0.6, "much"],
    "aicache_compression": ["gzip", "", None.__class__, 5],
    "aicache_compression_level": [0, 23, "high", 2.5],
    "aicache_compression_threshold_bytes": [-1, 1.5, "1k"],
    "aicache_max_entry_bytes": [0, 2**31, "all"],
    "aicache_budget_ms": [0, -5, "fast", True, 100_000],
    "aicache_connect_ms": [0, "x"],
    "aicache_l1_entries": [-1, "many"],
    "aicache_l1_tiers": ["tiny", ("small", "huge")],
    "aicache_text_tiers": [
        {"small": 1, "medium": 2},
        {"small": 5, "medium": 5, "large": 9},
        {"medium": 1, "small": 2, "large": 3},
        {"small": "a", "medium": 2, "large": 3},
        [1, 2, 3],
    ],
    "aicache_max_measurements": [0, "x"],
}


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in WRONG.items() for value in values], ids=lambda v: repr(v)[:40]
)
def test_a_wrong_value_is_an_error_that_names_its_setting(name: str, value: Any) -> None:
    """C7"""
    with pytest.raises(SettingsError, match=name):
        Settings.from_mapping({name: value})


@pytest.mark.parametrize("scheme", ["redis", "rediss", "unix", "redis+socket", "memory"])
def test_each_scheme_of_a_server_is_taken(scheme: str) -> None:
    url = f"{scheme}://host"
    assert Settings.from_mapping({"aicache_url": url}).require_url() == url


def test_without_a_server_the_error_names_both_settings() -> None:
    with pytest.raises(SettingsError, match=r"aicache_url is not set.*aicache_share_backend=True"):
        Settings().require_url("redis://results")
    with pytest.raises(SettingsError, match="aicache_url"):
        AIResponseCache()


def test_the_result_backend_is_shared_only_when_asked_for() -> None:
    app = app_of(result_backend="redis://results:6379/1", aicache_share_backend=True)
    assert runtime_of(app).settings.url == "redis://results:6379/1"


@pytest.mark.parametrize("backend", ["cache+memory://", "rpc://", None])
def test_a_result_backend_that_is_no_redis_cannot_be_shared(backend: str | None) -> None:
    app = app_of(result_backend=backend, aicache_share_backend=True)
    with pytest.raises(SettingsError, match="aicache_url is not set"):
        _ = runtime_of(app).settings


class Namespaced:
    CELERY_AICACHE_TTL = "2h"
    CELERY_TASK_ALWAYS_EAGER = True


class UpperCase:
    AICACHE_TTL = "2h"
    CELERY_TASK_ALWAYS_EAGER = True


class LowerCase:
    aicache_ttl = "2h"
    task_always_eager = True


@pytest.mark.parametrize(("source", "namespace"), [(Namespaced, "CELERY"), (LowerCase, None)])
def test_settings_come_from_an_object_in_each_of_celery_s_forms(source: type, namespace: str | None) -> None:
    app = app_of()
    app.config_from_object(source, namespace=namespace)
    assert (runtime_of(app).settings.ttl, runtime_of(app).always_eager()) == (7200, True)


def test_upper_case_settings_come_from_an_object_without_a_namespace() -> None:
    app = app_of()
    app.config_from_object(UpperCase)
    assert runtime_of(app).settings.ttl == 7200


def test_what_is_set_later_wins_over_the_object() -> None:
    app = app_of()
    app.config_from_object(Namespaced, namespace="CELERY")
    app.conf.aicache_ttl = "3h"
    app.conf.task_always_eager = False
    assert (runtime_of(app).settings.ttl, runtime_of(app).always_eager()) == (10800, False)


def test_a_misspelt_namespaced_setting_is_an_error_too() -> None:
    app = app_of()
    app.config_from_object(type("Source", (), {"CELERY_AICACHE_TLL": 5}), namespace="CELERY")
    with pytest.raises(SettingsError, match="aicache_tll; did you mean aicache_ttl"):
        _ = runtime_of(app).settings


def test_settings_are_read_anew_after_a_reset() -> None:
    app = app_of(aicache_ttl=5, aicache_url="redis://:pw@host/0")
    assert runtime_of(app).settings.ttl == 5
    app.conf.aicache_ttl = 6
    assert runtime_of(app).settings.ttl == 5
    reset_runtime(app)
    assert (runtime_of(app).settings.ttl, runtime_of(app).settings.url) == (6, "redis://:pw@host/0")


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://host:6379/0", "redis://host:6379/0"),
        ("memory://", "memory://"),
        ("redis://:pw@host/0", "redis://:********@host/0"),
        ("rediss://user:p%40w:x@host/0?ssl_cert_reqs=none", "rediss://user:********@host/0?ssl_cert_reqs=none"),
        ("redis://user:p@w@host/0", "redis://user:********@host/0"),
        ("redis://user@host/0", "redis://********@host/0"),
        ("rediss://tok3n:@host/0", "rediss://********@host/0"),
        ("redis://:pa/ss@host", "redis://:********@host"),
        ("redis://:pa?s#s@host/0?db=1", "redis://:********@host/0?db=1"),
        ("redis://us/er:pw@host", "redis://********@host"),
        ("redis://:a?password=b&c@host", "redis://:********@host"),
        ("redis://host?password=p@w", "redis://host?password=********"),
        ("redis://host?password=p#w", "redis://host?password=********"),
        ("redis://:pw[@host", "redis://:********@host"),
        ("redis:pw@host", "redis:********@host"),
        (":pw@host:6379", ":********@host:6379"),
        ("redis://:p\nw@host", "redis://:********@host"),
        ("unix:///run/s?db=1&password=pw", "unix:///run/s?db=1&password=********"),
        ("rediss://host?ssl_password=pw&db=2", "rediss://host?ssl_password=********&db=2"),
        ("redis+socket://:pw@/run/s", "redis+socket://:********@/run/s"),
    ],
)
def test_a_url_is_shown_without_its_password(url: str, shown: str) -> None:
    assert mask_url(url) == shown


def test_passwords_are_hidden_and_still_read() -> None:
    app = app_of(aicache_url="redis://:pw@host/0", aicache_secret=SECRET)
    hide_secrets(app)
    hide_secrets(app)
    shown = repr(app.conf.table(with_defaults=True, censored=False)) + app.conf.humanize() + repr(app.conf.aicache_url)
    assert ":pw@" not in shown
    assert SECRET not in shown
    settings = runtime_of(app).settings
    assert (settings.url, settings.secret) == ("redis://:pw@host/0", SECRET.encode())
    assert "pw" not in repr(settings)
    assert SECRET not in repr(settings)


def test_a_namespaced_password_is_hidden_too() -> None:
    app = app_of()
    source = type("Source", (), {"CELERY_AICACHE_URL": "redis://:pw@host/0"})
    app.config_from_object(source, namespace="CELERY")
    hide_secrets(app)
    assert ":pw@" not in repr(app.conf.table(with_defaults=True, censored=False))
    assert runtime_of(app).settings.url == "redis://:pw@host/0"


def test_a_child_by_spawn_still_has_the_password() -> None:
    hidden = hide("aicache_url", "redis://:pw@host/0")
    again = pickle.loads(pickle.dumps(hidden))
    assert (again, again.real, type(again)) == ("redis://:********@host/0", "redis://:pw@host/0", Hidden)
    assert hide("aicache_url", hidden) is hidden


@pytest.mark.parametrize("url", ["redis://:pw[@host", "redis://:p/w@host", "//:pw@host", ":pw@host"])
def test_a_password_is_hidden_also_in_a_url_that_cannot_be_parsed(url: str) -> None:
    shown = hide("aicache_url", url)
    assert "w" not in shown
    assert shown.real == url


@pytest.mark.parametrize("value", [None, "", "redis://host", 5, "redis://[::1"])
def test_what_holds_no_password_stays_as_it_is(value: Any) -> None:
    assert hide("aicache_url", value) is value


def test_an_error_names_no_password() -> None:
    with pytest.raises(SettingsError) as caught:
        Settings.from_mapping({"aicache_url": "http://:pw@host"})
    assert "pw" not in str(caught.value)
    with pytest.raises(SettingsError) as caught:
        Settings.from_mapping({"aicache_secret": "sesame"})
    assert "sesame" not in str(caught.value)
