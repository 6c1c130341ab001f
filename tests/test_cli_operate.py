"""``celery -A app aicache`` where it looks at single answers, or changes something."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from celery import Celery

from aicache_tasks import CachedTask, CachePolicy, annotate
from aicache_tasks.reports.refusals import ADVICE, NOBODY, SLOW
from aicache_tasks.runtime import runtime_of
from aicache_tasks.stores.base import Budget
from aicache_tasks.testing import EmbeddedServer
from tests.faults import eventually
from tests.reported import HOSTILE, make_app, reader_of
from tests.test_cli import CELERY, ORDERS, environ_of, path, read, run, shown

__all__ = ["path"]

SECRET = "CANARY-4711"
ARGS = ("--args", json.dumps([SECRET]))
TASKS = """
import os
from aicache_tasks import CachedTask, CachePolicy
from tests.reported import make_app
app = make_app(os.environ["SHOP_URL"])
app.conf.include = ["latetasks"]
"""
LATE = """
from shopapp import app
from aicache_tasks import CachedTask, CachePolicy

@app.task(shared=False, base=CachedTask, cache=CachePolicy(operation="late"), name="late.task")
def late(text):
    return text
"""


class Shop(NamedTuple):
    app: Celery
    shout: Any
    client: Any


@pytest.fixture
def shop(valkey: EmbeddedServer, client: Any) -> Shop:
    """Two cached tasks and a plain one; `shout` has an answer of one call."""
    app = make_app(valkey.url)
    app.conf.aicache_prices = {"version": "7", "currency": "USD", "models": {}}

    @app.task(
        shared=False,
        base=CachedTask,
        name="shop.shout",
        cache=CachePolicy(operation="shout", version=3, ignore=("trace",), tags=("loud", "by:{owner}")),
    )
    def shout(text: str, owner: str = "ann", trace: str = "") -> dict[str, Any]:
        annotate(model="m-1\x1b[2J", usage={"input_tokens": 40}, cost=0.25)
        return {"answer": text.upper() + HOSTILE, "set": [1, 2]}

    @app.task(shared=False, base=CachedTask, name="shop.whisper", cache=CachePolicy(operation="whisper"))
    def whisper(text: str) -> str:
        return text.lower()

    @app.task(shared=False, name="shop.plain")
    def plain(text: str) -> str:
        return text

    shout(SECRET)
    return Shop(app, shout, client)


def echo(text: str) -> str:
    return text


def answers(app: Celery, operation: str | None = None) -> int:
    return runtime_of(app).cache.purge(operation, dry_run=True)


class TestPeek:
    def test_it_shows_the_entry_and_not_the_answer(self, shop: Shop) -> None:
        text = shown(shop.app, "peek", "shop.shout", *ARGS)
        entry = shop.shout.cache.peek(SECRET)
        assert entry.key in text
        assert "usage       input_tokens 40" in text
        assert "cost        0.25" in text
        assert SECRET not in text
        assert ORDERS.findall(text) == []

    def test_the_answer_is_shown_when_asked_for_and_acts_on_no_terminal(self, shop: Shop) -> None:
        text = shown(shop.app, "peek", "shout", *ARGS, "--show-value")
        assert SECRET in text
        assert ORDERS.findall(text) == []

    def test_json_has_the_value_only_when_asked_for(self, shop: Shop) -> None:
        entry = shop.shout.cache.peek(SECRET)
        found = read(shop.app, "peek", "shout", *ARGS)
        assert found["status"] == "hit"
        assert "value" not in found["entry"]
        assert {name: found["entry"][name] for name in ("key", "raw_bytes", "stored_bytes", "model")} == {
            name: getattr(entry, name) for name in ("key", "raw_bytes", "stored_bytes", "model")
        }
        assert read(shop.app, "peek", "shout", *ARGS, "--show-value")["entry"]["value"] == entry.value

    def test_no_entry_is_exit_code_3_with_the_reason(self, shop: Shop) -> None:
        text = shown(shop.app, "peek", "shout", "--args", '["another"]', code=3)
        assert "nothing is stored under its key" in text
        assert read(shop.app, "peek", "shout", "--args", '["another"]') == {
            "status": "miss",
            "reason": "key_not_found",
            "entry": None,
        }

    def test_keyword_arguments_are_the_same_call(self, shop: Shop) -> None:
        shown(shop.app, "peek", "shout", "--kwargs", json.dumps({"text": SECRET, "trace": "ignored"}))

    def test_it_is_no_look_up(self, shop: Shop) -> None:
        for _ in range(3):
            shown(shop.app, "peek", "shout", *ARGS)
        assert runtime_of(shop.app).cache.parts.outbox.flush(30)
        assert reader_of(shop.app).live().totals["shout"].lookups == 1


class TestExplain:
    def test_a_hit_says_what_is_keyed_and_no_value(self, shop: Shop) -> None:
        text = shown(shop.app, "explain", "shop.shout", *ARGS)
        lines = dict(re.split(r": |  +", line, maxsplit=1) for line in text.splitlines())
        assert lines["hit"] == "the call is answered from the cache"
        assert lines["keyed"] == "text, owner"
        assert lines["ignored"] == "trace"
        assert lines["tags"] == "by:ann, loud"
        assert lines["version"] == "3"
        assert SECRET not in text

    def test_each_reason_of_a_miss_is_said_in_words(self, shop: Shop) -> None:
        assert "nothing is stored" in shown(shop.app, "explain", "shout", "--args", '["x"]')
        runtime_of(shop.app).cache.invalidate_by_tag("loud")
        assert "before an invalidation" in shown(shop.app, "explain", "shout", *ARGS)

    def test_a_cache_that_is_off_is_said_with_what_switches_it_on(self, shop: Shop) -> None:
        mode = runtime_of(shop.app).cache.parts.mode
        mode.switch(off=True, budget=Budget(5))
        eventually(lambda: bool(shop.shout("other")) and mode.is_off)  # a process looks once a second
        text = shown(shop.app, "explain", "shout", *ARGS)
        mode.switch(off=False, budget=Budget(5))
        assert text.startswith("disabled: the cache is switched off: ")
        assert "`celery control cache_mode on`" in text

    def test_a_call_that_cannot_be_keyed_says_why(self, shop: Shop) -> None:
        @shop.app.task(shared=False, base=CachedTask, name="shop.odd", cache=CachePolicy(vary=lambda: 1 / 0))
        def odd(text: str) -> str:
            return text

        text = shown(shop.app, "explain", "shop.odd", *ARGS)
        assert text.startswith("bypass: vary=, tenant= or tags= raised ZeroDivisionError")

    def test_json_has_all_of_it(self, shop: Shop) -> None:
        found = read(shop.app, "explain", "shout", *ARGS)
        assert (found["status"], found["operation"], found["keyed"]) == ("hit", "shout", ["text", "owner"])


class TestInvalidate:
    def test_one_call_goes_and_no_other(self, shop: Shop) -> None:
        shop.shout("other")
        text = shown(shop.app, "invalidate", "shout", *ARGS, "--yes")
        took = r"its answer took [\d.]+ [mµ]?s, 40 tokens, a cost of 0.25 USD"
        assert re.fullmatch(rf"invalidated this call of shout \({took}\)\n", text)
        assert (shop.shout.cache.peek(SECRET), shop.shout.cache.peek("other") is None) == (None, False)
        assert "no answer was stored" in shown(shop.app, "invalidate", "shout", *ARGS, "--yes")

    def test_an_operation_goes_and_what_it_saved_is_said(self, shop: Shop) -> None:
        shop.shout(SECRET)
        assert runtime_of(shop.app).cache.parts.outbox.flush(30)
        text = shown(shop.app, "invalidate", "--operation", "shout", "--yes")
        assert re.fullmatch(
            r"invalidated every answer of shout \(1 hit saved .*, 40 tokens, a cost of 0.25 USD\)\n", text
        )
        assert shop.shout.cache.peek(SECRET) is None

    def test_a_tag_a_pattern_and_all_of_them_do_as_they_say(self, shop: Shop) -> None:
        for arguments in (("--tag", "by:ann"), ("--pattern", "sh?ut"), ("--pattern", "lou*"), ("--all",)):
            shop.shout(SECRET)
            assert shop.shout.cache.peek(SECRET) is not None
            shown(shop.app, "invalidate", *arguments, "--yes")
            assert shop.shout.cache.peek(SECRET) is None, arguments

    def test_a_pattern_matches_whole_names(self, shop: Shop) -> None:
        text = shown(shop.app, "invalidate", "--pattern", "sho", "--yes", code=3)
        assert "no operation and no fixed tag matches sho" in text
        assert shop.shout.cache.peek(SECRET) is not None

    def test_json_says_what_went_and_what_it_saved(self, shop: Shop) -> None:
        shop.shout(SECRET)
        assert runtime_of(shop.app).cache.parts.outbox.flush(30)
        found = read(shop.app, "invalidate", "--pattern", "*", "--yes")
        assert {"shout", "whisper", "loud"} <= set(found["invalidated"])
        assert (found["had_saved"]["hits"], found["currency"]) == (1, "USD")
        assert found["had_saved"]["tokens"] == {"input_tokens": 40}
        gone = read(shop.app, "invalidate", "shout", *ARGS, "--yes")
        assert (gone["was_stored"], gone["had_taken"]) == (False, None)
        shop.shout(SECRET)
        gone = read(shop.app, "invalidate", "shout", *ARGS, "--yes")
        assert gone["was_stored"] is True
        assert (gone["had_taken"]["tokens"], gone["had_taken"]["cost"]) == ({"input_tokens": 40}, 0.25)

    def test_without_a_terminal_it_wants_to_be_told(self, shop: Shop) -> None:
        text = shown(shop.app, "invalidate", "--operation", "shout", code=2)
        assert "Invalidate every answer of shout (saved nothing so far)? Say --yes" in text
        assert shop.shout.cache.peek(SECRET) is not None

    @pytest.mark.usefixtures("heeding")
    @pytest.mark.parametrize(
        ("reply", "code", "is_left"),
        [("y\n", 0, False), ("n\n", 3, True), ("\n", 3, True), ("\x03", 130, True), ("\x04", 3, True)],
        ids=["yes", "no", "return", "Ctrl-C", "Ctrl-D"],
    )
    def test_on_a_terminal_it_asks(
        self, shop: Shop, path: Path, valkey: EmbeddedServer, reply: str, code: int, is_left: bool
    ) -> None:
        (path / "shopapp.py").write_text(TASKS.replace("latetasks", "os"))
        pid, terminal = pty.fork()
        if not pid:
            given = environ_of(path, valkey.url) | {"TERM": "dumb", "LANG": "C.UTF-8"}
            os.chdir(path)
            os.execve(CELERY, [CELERY, "-A", "shopapp", "aicache", "invalidate", "--all"], given)
        seen = b""
        with suppress(OSError):  # the terminal is gone
            while True:
                is_heard = bool(select.select([terminal], [], [], 1.0)[0])
                seen += os.read(terminal, 65536) if is_heard else b""
                _, asked, said = seen.rpartition(b"[y/N]: ")
                # Python's input() waits on for a line where a signal comes between its question and its wait.
                if asked and (not said or (not is_heard and b"\n" not in said)):
                    os.write(terminal, reply.encode())
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == code, seen
        assert b"Invalidate every answer in redis://" in seen
        assert (b"nothing was changed" in seen) == (code == 3)
        assert (shop.shout.cache.peek(SECRET) is not None) == is_left

    def test_a_misspelt_operation_does_nothing_and_says_so(self, shop: Shop) -> None:
        assert "did you mean shout?" in shown(shop.app, "invalidate", "--operation", "shuot", "--yes", code=2)

    @pytest.mark.parametrize(
        "arguments",
        [(), ("shout", "--all"), ("--operation", "shout", "--tag", "loud"), ("--all", *ARGS)],
        ids=["nothing", "a call and all", "an operation and a tag", "arguments of no call"],
    )
    def test_one_thing_at_a_time(self, shop: Shop, arguments: tuple[str, ...]) -> None:
        shown(shop.app, "invalidate", *arguments, "--yes", code=2)
        assert shop.shout.cache.peek(SECRET) is not None

    @pytest.mark.parametrize("arguments", [("--tag", ""), ("--operation", ""), ("--pattern", ""), ("",)], ids=str)
    def test_an_empty_name_does_nothing_and_says_so(self, shop: Shop, arguments: tuple[str, ...]) -> None:
        assert "an empty name names nothing" in shown(shop.app, "invalidate", *arguments, "--yes", code=2)
        assert shop.shout.cache.peek(SECRET) is not None


class TestPurge:
    def test_it_counts_and_leaves_everything_first(self, shop: Shop) -> None:
        shop.shout("other")
        text = shown(shop.app, "purge")
        assert text.startswith("2 answers in redis://")
        assert text.endswith("; --yes erases them\n")
        assert read(shop.app, "purge") == {"dry_run": True, "operation": None, "found": 2, "erased": 0}
        dry = shown(shop.app, "purge", "--dry-run", "--yes")
        assert dry.startswith("2 answers")
        assert dry.endswith("; --yes, without --dry-run, erases them\n")
        assert answers(shop.app) == 2

    def test_with_yes_the_bytes_go_and_the_records_stay(self, shop: Shop) -> None:
        assert runtime_of(shop.app).cache.parts.outbox.flush(30)
        before = reader_of(shop.app).live().totals["shout"].lookups
        assert " erased" in shown(shop.app, "purge", "--yes")
        assert answers(shop.app) == 0
        assert reader_of(shop.app).live().totals["shout"].lookups == before
        held = [shop.client.get(key) for key in shop.client.keys("*") if shop.client.type(key) == b"string"]
        assert not [value for value in held if value and SECRET.encode() in value]

    def test_one_operation_goes_alone(self, shop: Shop) -> None:
        shop.app.tasks["shop.whisper"]("Hush")
        found = read(shop.app, "purge", "--operation", "whisper", "--yes")
        assert found == {"dry_run": False, "operation": "whisper", "found": 1, "erased": 1}
        assert (answers(shop.app, "whisper"), answers(shop.app, "shout")) == (0, 1)

    def test_it_scans_no_faster_than_it_is_told(self, shop: Shop) -> None:
        key = shop.shout.cache.peek(SECRET).key
        with shop.client.pipeline() as pipeline:
            for number in range(3000):
                pipeline.set(f"{key[:-8]}{number:08d}", b"x")
            pipeline.execute()
        began = time.monotonic()
        assert read(shop.app, "purge", "--rate", "3000")["found"] == 3001
        assert time.monotonic() - began > 0.4
        assert read(shop.app, "purge", "--yes")["erased"] == 3001

    def test_a_misspelt_operation_is_an_error(self, shop: Shop) -> None:
        assert "did you mean whisper?" in shown(shop.app, "purge", "--operation", "wisper", "--yes", code=2)


class TestAServerThatRefuses:
    """What is refused is not called slow, and what is said to help does."""

    @pytest.fixture
    def guarded(self) -> Iterator[EmbeddedServer]:
        with EmbeddedServer(config={"requirepass": "correct-horse"}) as server:
            yield server

    def asked(self, url: str, command: str, **settings: Any) -> str:
        app = make_app(url, **settings)
        app.task(shared=False, base=CachedTask, name="shout", cache=CachePolicy())(echo)
        text: str = shown(app, command, *(("shout", *ARGS) if command != "stats" else ()), code=1)
        assert "horse" not in text
        return text

    @pytest.mark.parametrize("command", ["peek", "explain", "stats"])
    def test_the_login_or_the_right_is_named(self, guarded: EmbeddedServer, command: str) -> None:
        with guarded.client() as client:
            rights = ("-@all", "+info", "+hgetall")
            client.execute_command("ACL", "SETUSER", "observer", "on", ">correct-horse", *rights)
        for login, prefix in {":wrong": "WRONGPASS", "": "NOAUTH", "observer:correct-horse": "NOPERM"}.items():
            text = self.asked(guarded.url.replace(":correct-horse@", f"{login}@" if login else ""), command)
            assert f"answers with an error: {prefix}" in re.sub(r"\w+Error ", "", text)
            assert ADVICE[prefix] in text
            assert "BUDGET" not in text

    @pytest.mark.parametrize("command", ["peek", "explain", "stats"])
    def test_a_database_that_it_does_not_have_is_named(self, valkey: EmbeddedServer, command: str) -> None:
        text = self.asked(valkey.url.rpartition("/")[0] + "/99", command)
        assert re.search(r"ResponseError( ERR)?\. Does it have a database 99\?", text)  # redis-py 6 has no ERR

    @pytest.mark.parametrize("command", ["peek", "explain"])
    def test_a_closed_port_has_nobody_who_listens(self, refused_url: str, command: str) -> None:
        text = self.asked(refused_url, command)
        assert f"does not answer: ConnectionError. {NOBODY}" in text
        assert "BUDGET" not in text

    def test_only_a_frozen_one_may_need_more_time(self, own_server: EmbeddedServer) -> None:
        own_server.pause()
        try:
            text = self.asked(own_server.url, "explain", aicache_budget_ms=300)
        finally:
            own_server.resume()
        assert f"does not answer: TimeoutError. {SLOW} AICACHE_BUDGET_MS=5000" in text


class TestWhichTask:
    @pytest.mark.parametrize("command", ["peek", "explain", "invalidate"])
    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (("shop.shuot",), "did you mean shop.shout?"),
            (("shop.plain",), "the task shop.plain has no cache="),
            (("shout", "--kwargs", '{"nothing": 1}'), "shop.shout cannot be called like this"),
            (("shout", "--args", "{}"), "not an array, such as"),
            (("shout", "--args", f"[{SECRET}"), "no JSON; write an array"),
        ],
    )
    def test_what_is_wrong_is_said_without_what_was_given(
        self, shop: Shop, command: str, arguments: tuple[str, ...], said: str
    ) -> None:
        extra = ["--yes"] if command == "invalidate" else []
        text = shown(shop.app, command, *arguments, *extra, code=2)
        assert said in text
        assert SECRET not in text

    def test_two_tasks_of_one_operation_must_be_told_apart(self, shop: Shop) -> None:
        for name in ("shop.a", "shop.b"):
            policy = CachePolicy(operation="both", shared=True)
            shop.app.task(shared=False, base=CachedTask, name=name, cache=policy)(echo)
        assert "several tasks have the operation both: shop.a, shop.b" in shown(shop.app, "explain", "both", code=2)
        shown(shop.app, "explain", "shop.a", *ARGS)

    def test_tasks_that_only_a_worker_imports_are_found(self, path: Path, valkey: EmbeddedServer) -> None:
        (path / "shopapp.py").write_text(TASKS)
        (path / "latetasks.py").write_text(LATE)
        command = [CELERY, "-A", "shopapp", "aicache", "explain", "late", *ARGS]
        environ = environ_of(path, valkey.url)
        done = subprocess.run(command, cwd=path, env=environ, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert "nothing is stored under its key" in done.stdout

    @pytest.mark.parametrize(
        "arguments",
        [("peek", "shout", *ARGS), ("explain", "shout", *ARGS), ("invalidate", "--all", "--yes"), ("purge",)],
    )
    def test_a_server_that_is_away_is_exit_code_1(self, refused_url: str, arguments: tuple[str, ...]) -> None:
        app = make_app(refused_url)
        app.task(shared=False, base=CachedTask, name="shout", cache=CachePolicy())(echo)
        done = run(app, *arguments)
        assert done.exit_code == 1, done.output
        assert "the cache's server" in done.output
        assert SECRET not in done.output
