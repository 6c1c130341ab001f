"""``celery -A app aicache``: what it shows, what it leaves alone, and how it ends."""

from __future__ import annotations

import json
import os
import pty
import re
import resource
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from celery import Celery
from celery.bin.base import CLIContext
from click.testing import CliRunner, Result

from aicache_tasks.reports.cli import aicache
from aicache_tasks.reports.refusals import NOBODY
from aicache_tasks.reports.rows import figures_json
from aicache_tasks.reports.spans import Span
from aicache_tasks.stores.base import Budget
from aicache_tasks.testing import EmbeddedServer
from tests.reported import HOSTILE, calls, count_up, gets, make_app, others, reader_of, send

ROOT = Path(__file__).resolve().parent.parent
CELERY = str(Path(sys.executable).parent / "celery")
DISTRIBUTION = "aicache_tasks-0.1.0.dist-info"
READERS = ("stats", "summaries", "top", "rollup", "export")
MODULE = """
import os, sys
from celery import signals
from click import Option
from tests.reported import make_app
app = make_app(os.environ["SHOP_URL"])
app.user_options["preload"].add(Option(["--site"]))
signals.user_preload_options.connect(lambda options, **_: print(*options.values(), file=sys.stderr), weak=False)
"""
ORDERS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
"""What a terminal acts on, but for the newline."""


def run(app: Any, *arguments: str, environ: dict[str, str] | None = None) -> Result:
    """Run ``celery -A app aicache`` with *arguments* in this process."""
    runner = CliRunner(env=environ)
    return runner.invoke(aicache, list(arguments), obj=CLIContext(app, no_color=True, workdir=None))


def shown(app: Any, *arguments: str, code: int = 0) -> str:
    """Return what a command shows; it ends with *code*."""
    done = run(app, *arguments)
    assert done.exit_code == code, done.output + repr(done.exception)
    return done.output


def span_of(found: dict[str, Any]) -> Span:
    """Return the span that JSON says was asked for."""
    start_s, end_s = (datetime.fromisoformat(found[name]).timestamp() for name in ("since", "until"))
    return Span(start_s, end_s)


def read(app: Any, *arguments: str) -> Any:
    """Return the JSON that a command writes."""
    done = run(app, *arguments, "--json")
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


class Shop(NamedTuple):
    app: Celery
    url: str
    samples: list[Any]
    waiting: list[Any]
    """Those of the samples that are not rolled up."""


@pytest.fixture(scope="module")
def shop() -> Iterator[Shop]:
    """Three operations, one of them with a hostile name, over twenty hours; a batch still waits."""
    now_s = time.time()
    with EmbeddedServer() as server:
        app = make_app(server.url)
        samples = calls(240, [now_s - hours * 3600 for hours in range(20)], ["shout", "whisper", HOSTILE])
        waiting = calls(10, [now_s], ["shout"], seed=2)
        count_up(app, samples, f"celery@{HOSTILE}")
        send(app, waiting, "producer@there")
        yield Shop(app, server.url, samples + waiting, waiting)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A folder for PYTHONPATH that has this checkout's entry points, and an application in `shopapp`."""
    (tmp_path / DISTRIBUTION).mkdir()
    points = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]
    lines = [line for group, of in points.items() for line in (f"[{group}]", *(f"{n} = {v}" for n, v in of.items()))]
    (tmp_path / DISTRIBUTION / "entry_points.txt").write_text("\n".join(lines))
    (tmp_path / DISTRIBUTION / "METADATA").write_text("Metadata-Version: 2.1\nName: aicache-tasks\nVersion: 0.1.0\n")
    (tmp_path / "shopapp.py").write_text(MODULE)
    return tmp_path


def environ_of(path: Path, url: str = "") -> dict[str, str]:
    wanted = {"PYTHONPATH": os.pathsep.join([str(path), str(ROOT)]), "SHOP_URL": url, "PYTHONUTF8": "1"}
    return {name: value for name, value in os.environ.items() if name in ("PATH", "HOME")} | wanted


def celery(path: Path, *arguments: str, url: str = "", **environ: str) -> subprocess.CompletedProcess[str]:
    """Run the real command in a process of its own."""
    command = [CELERY, *arguments]
    given = environ_of(path, url) | environ
    return subprocess.run(command, cwd=path, env=given, capture_output=True, text=True, check=False)


def cpu_s_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


class TestTheRealCommand:
    def test_it_is_a_command_of_celery_s_that_reads_the_records(self, path: Path, shop: Shop) -> None:
        done = celery(path, "-A", "shopapp", "aicache", "--site", "north", "stats", "--json", url=shop.url)
        assert done.returncode == 0, done.stderr
        assert done.stderr == "north\n", "the application's own preload option"
        found = {row["operation"]: row["hits"] + row["misses"] for row in json.loads(done.stdout)["operations"]}
        assert found == {name: len(gets(s for s in shop.samples if s.operation == name)) for name in found}

    def test_without_an_application_it_names_the_option(self, path: Path) -> None:
        done = celery(path, "aicache", "stats")
        assert done.returncode == 2
        assert "celery -A module aicache" in done.stderr
        assert "Traceback" not in done.stderr

    def test_a_reader_that_stops_reading_ends_it_quietly(self, path: Path, shop: Shop) -> None:
        command = f"{CELERY} -A shopapp aicache export; echo $? >&2"
        done = subprocess.run(
            ["bash", "-c", f"({command}) | head -1"],
            cwd=path,
            env=environ_of(path, shop.url),
            capture_output=True,
            text=True,
            check=False,
        )
        assert json.loads(done.stdout)["resolution"] == "minute"
        assert done.stderr.split()[-1] == "141"
        assert "Error" not in done.stderr

    @pytest.mark.parametrize("unbuffered", ["", "1"], ids=["buffered", "unbuffered"])
    def test_a_full_disk_is_said_in_a_line(self, path: Path, shop: Shop, unbuffered: str) -> None:
        with Path("/dev/full").open("w") as full:
            done = subprocess.run(
                [CELERY, "-A", "shopapp", "aicache", "stats"],
                cwd=path,
                env=environ_of(path, shop.url) | {"PYTHONUNBUFFERED": unbuffered},
                stdout=full,
                stderr=subprocess.PIPE,
                text=True,
                check=False,
            )
        assert done.returncode == 2
        assert done.stderr.splitlines()[1:] == ["Error: stdout cannot be written: No space left on device"]

    @pytest.mark.parametrize(
        ("stream", "called", "code"),
        [
            ("stdout", "stats", 0),
            ("stdout", "stats --json", 0),
            ("stderr", "rollup --dry-run", 0),
            ("stdin", "invalidate --all", 2),
        ],
    )
    def test_without_a_stdin_stdout_or_stderr_it_is_done_all_the_same(
        self, shop: Shop, monkeypatch: pytest.MonkeyPatch, stream: str, called: str, code: int
    ) -> None:
        monkeypatch.setattr(sys, stream, None)  # as after ``>&-``
        with pytest.raises(SystemExit) as ended:
            aicache.main(called.split(), obj=CLIContext(shop.app, no_color=True, workdir=None))
        getattr(sys, stream).close()
        assert ended.value.code == code

    def test_commands_and_values_are_completed(self, path: Path) -> None:
        """One process of bash's kind for the deepest of them; the others go the same way."""
        words = {
            "_CELERY_COMPLETE": "bash_complete",
            "COMP_WORDS": "celery -A shopapp aicache summaries --by operation,s",
        }
        done = celery(path, COMP_CWORD="6", **words)
        assert done.stdout.split() == ["plain,operation,step", "plain,operation,status"]

    def test_a_terminal_gets_a_table_that_fits_it(self, path: Path, shop: Shop) -> None:
        pid, terminal = pty.fork()
        if not pid:
            given = environ_of(path, shop.url) | {"TERM": "xterm-256color", "COLUMNS": "72", "LANG": "C.UTF-8"}
            os.chdir(path)
            os.execve(CELERY, [CELERY, "-A", "shopapp", "aicache", "top"], given)
        seen = b""
        try:
            while piece := os.read(terminal, 65536):
                seen += piece
        except OSError:  # how a terminal ends on Linux
            pass
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        text = re.sub(r"\x1b\[[0-9;]*m", "", seen.decode())
        assert "\x1b[1m" in seen.decode()
        assert "whisper" in text
        assert max(map(len, text.splitlines())) <= 72
        assert ORDERS.findall(text.replace("\r\n", "\n")) == []

    def test_importing_the_entry_point_loads_nothing_but_itself(self, path: Path) -> None:
        program = (
            "import sys, time, celery.bin.base; before = set(sys.modules); began = time.process_time();"
            "import aicache_tasks.reports.cli; took = time.process_time() - began;"
            "print(took, *sorted(set(sys.modules) - before))"
        )
        command = [sys.executable, "-c", program]
        done = subprocess.run(command, env=environ_of(path), capture_output=True, text=True, check=True)
        took_s, *loaded = done.stdout.split()
        assert loaded == ["aicache_tasks", "aicache_tasks.reports", "aicache_tasks.reports.cli"]
        assert float(took_s) < 0.05

    @pytest.mark.soak
    @pytest.mark.timeout(240)
    def test_celery_s_help_takes_no_50_ms_longer(self, path: Path) -> None:
        """In the median of pairs, run in turn, and of a processor's time: what is imported is all that it may take.

        A distribution without the entry point hides one that is installed.
        """
        points = path / DISTRIBUTION / "entry_points.txt"
        ours = points.read_text()

        def took(*, has_it: bool) -> float:
            points.write_text(ours if has_it else "")
            began_s = cpu_s_of_children()
            done = celery(path, "--help")
            spent_s = cpu_s_of_children() - began_s
            assert ("aicache" in done.stdout) == has_it
            return spent_s

        pairs = sorted(took(has_it=True) - took(has_it=False) for _ in range(9))
        assert pairs[4] < 0.05


class TestShown:
    @pytest.mark.parametrize(
        "arguments",
        [
            ("stats",),
            ("summaries", "--since", "30h"),
            ("summaries", "--by", "operation,step"),
            ("summaries", "--by", "operation,status,reason"),
            ("summaries", "--resolution", "hour"),
            ("summaries", "--compare", "10h"),
            ("top", "--by", "tokens"),
            ("rollup", "--dry-run"),
        ],
        ids=" ".join,
    )
    def test_no_label_gives_the_terminal_an_order(self, shop: Shop, arguments: tuple[str, ...]) -> None:
        text = shown(shop.app, *arguments)
        assert "shout" in text
        assert ORDERS.findall(text) == []

    @pytest.mark.parametrize("command", ["stats", "summaries", "top"])
    @pytest.mark.parametrize("columns", ["40", "80", "120"])
    def test_tables_fit_the_screen(self, shop: Shop, command: str, columns: str) -> None:
        done = run(shop.app, command, environ={"COLUMNS": columns})
        tables = [line for line in done.output.splitlines() if re.match(r"(operation|shout|whisper|-+ )", line)]
        assert len(tables) >= 3
        assert max(map(len, tables)) <= int(columns)

    def test_stats_has_the_totals_the_workers_and_what_waits(self, shop: Shop) -> None:
        text = shown(shop.app, "stats")
        line = next(line for line in text.splitlines() if line.startswith("shout"))
        assert line.split()[1] == str(len(gets(s for s in shop.samples if s.operation == "shout")))
        assert re.search(r"1 batch \(.*\).* waiting for the roll-up, counted above", text)
        assert re.search(r"^celery@a\\x1b", text, re.MULTILINE)
        assert "is beat running?" in text

    def test_stats_says_that_the_cache_is_switched_off(self, valkey: EmbeddedServer) -> None:
        app = make_app(valkey.url)
        mode = reader_of(app).summaries.parts.mode
        for samples in ([], calls(3, [time.time()], ["shout"])):
            count_up(app, samples)
            mode.switch(off=True, budget=Budget(5))
            assert "switched off by cache_mode" in shown(app, "stats", code=0 if samples else 3)
            assert read(app, "stats")["switched_off"] is True
            mode.switch(off=False, budget=Budget(5))
            assert "switched off" not in shown(app, "stats", code=0 if samples else 3)
            assert read(app, "stats")["switched_off"] is False

    def test_a_span_says_what_it_covers(self, shop: Shop) -> None:
        text = shown(shop.app, "summaries", "--since", "2026-01-01T10:20", "--until", "2026-01-01T11:50", code=3)
        assert "nothing was recorded in this span" in text
        assert "1 batch of timings waiting" in text
        title = shown(shop.app, "summaries", "--since", "30h").splitlines()[0]
        assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d to \d{4}-\d\d-\d\d \d\d:\d\d UTC", title)

    def test_a_row_for_each_window(self, shop: Shop) -> None:
        text = shown(shop.app, "summaries", "--resolution", "hour", "--operation", "shout", "--since", "10h")
        assert len(re.findall(r"^\d{4}-\d\d-\d\d \d\d:00  shout", text, re.MULTILINE)) in (9, 10, 11)

    def test_a_comparison_has_ratios_and_points(self, shop: Shop) -> None:
        text = shown(shop.app, "summaries", "--compare", "10h")
        assert re.search(r"look-ups +\d+ +\d+ +×\d", text)
        assert re.search(r"hit rate .* points", text)


class TestWhatWentWrong:
    @pytest.fixture
    def down(self, valkey: EmbeddedServer) -> Celery:
        """An hour in which the store was away for 300 of 500 calls."""
        app, now_s = make_app(valkey.url), time.time() - 120
        samples = calls(180, [now_s], ["shout", "whisper"]) + others(5, now_s, "shout", "refresh")
        samples += others(280, now_s, "shout", "error", "breaker_open")
        samples += others(20, now_s, "whisper", "error", "redis_connection_failed")
        samples += others(15, now_s, "whisper", "bypass") + others(12, now_s, "shout", "disabled")
        count_up(app, samples + others(7, now_s, "shout", "failed", "redis_error", "set"))
        return app

    @pytest.mark.parametrize("command", ["stats", "summaries"])
    def test_calls_that_are_no_look_up_have_columns_of_their_own(self, down: Celery, command: str) -> None:
        lines = shown(down, command).splitlines()
        head = next(line for line in lines if line.startswith("operation"))
        row = next(line for line in lines if line.startswith("all"))
        cells = [
            row[: head.index(title) + len(title)].split()[-1]
            for title in ("look-ups", "errors", "bypassed", "refreshed", "switched off")
        ]
        assert cells == ["180", "300", "15", "5", "12"]

    @pytest.mark.parametrize("command", ["stats", "summaries"])
    def test_errors_have_their_reasons(self, down: Celery, command: str) -> None:
        text = shown(down, command)
        reasons = "breaker_open 280, redis_connection_failed 20"
        assert f"\n300 look-ups failed, and the bodies ran: {reasons}\n" in text
        assert "\n7 answers could not be stored: redis_error 7\n" in text

    def test_a_narrow_screen_keeps_the_errors(self, down: Celery) -> None:
        lines = run(down, "stats", environ={"COLUMNS": "40"}).output.splitlines()
        assert re.fullmatch(r"operation +look-ups +hit rate +errors", lines[0])
        assert lines[1].split()[-1] == "280"

    def test_the_worker_that_cannot_reach_the_store_is_seen(self, down: Celery) -> None:
        count_up(down, calls(10, [time.time()], ["shout"]), "celery@well")
        rows = {line.split()[0]: line.split() for line in shown(down, "stats").splitlines() if line}
        assert rows["celery@here"][4] == "300"
        assert rows["celery@well"][4] == "-"

    def test_a_comparison_has_the_errors(self, down: Celery) -> None:
        assert re.search(r"^errors +0 +300 ", shown(down, "summaries", "--compare", "10h"), re.MULTILINE)

    def test_where_all_went_well_nothing_is_said_of_it(self, shop: Shop) -> None:
        text = shown(shop.app, "stats") + shown(shop.app, "summaries")
        assert not re.search("errors|bypassed|refreshed|failed|could not", text)


class TestAlerts:
    def test_values_are_in_units_that_people_read(self, valkey: EmbeddedServer, client: Any) -> None:
        app = make_app(
            valkey.url,
            aicache_memory_warning_bytes=1000,
            aicache_hit_rate_floor=0.95,
            aicache_hit_rate_min_lookups=1,
            aicache_slow_operation_ms=0.04,
        )
        send(app, calls(30, [time.time()], ["shout"]))
        shown(app, "rollup")
        text = shown(app, "stats")
        assert re.search(r"^warning: memory is [\d.]+ MB, threshold 1 KB, since \d{4}-.* UTC$", text, re.MULTILINE)
        assert re.search(r"^warning: hit_rate of shout is [\d.]+ %, threshold 95 %, since", text, re.MULTILINE)
        assert re.search(r"slow_operation of shout is [\d.]+ ms, threshold 40 µs, since", text)


class TestJson:
    def test_summaries_are_the_merged_records(self, shop: Shop) -> None:
        found = read(shop.app, "summaries", "--since", "30h")
        merged = reader_of(shop.app).merge(span_of(found)).records
        rows = {row.pop("operation"): row for row in found["rows"]}
        assert rows == {name: figures_json(record) for name, record in merged.items()}
        assert HOSTILE in rows

    def test_rows_by_step_and_reason_have_their_counts(self, shop: Shop) -> None:
        rolled_up = [s for s in shop.samples if s not in shop.waiting]
        by_step = read(shop.app, "summaries", "--since", "30h", "--by", "step")
        assert {row["step"]: row["count"] for row in by_step["rows"]}["get"] == len(gets(rolled_up))
        by_reason = read(shop.app, "summaries", "--since", "30h", "--by", "reason", "--operation", "shout")
        assert by_reason["by"] == ["step", "status", "reason"]
        missed = [s for s in gets(rolled_up, "miss") if s.operation == "shout"]
        row = next(row for row in by_reason["rows"] if row["reason"] == "key_not_found")
        assert row["count"] == len(missed)

    def test_top_is_in_order(self, shop: Shop) -> None:
        rows = read(shop.app, "top", "--by", "saved", "--limit", "2")["rows"]
        saved = [row["saved"]["seconds"] for row in rows]
        assert len(saved) == 2
        assert saved == sorted(saved, reverse=True)

    def test_a_comparison_has_both_spans(self, shop: Shop) -> None:
        found = read(shop.app, "summaries", "--compare", "10h")
        assert found["before"]["until"] == found["covers"]["since"]
        assert found["all"]["lookups"]["now"] == sum(row["figures"]["lookups"]["now"] for row in found["rows"])

    def test_export_writes_the_records_whole(self, shop: Shop, tmp_path: Path) -> None:
        done = run(shop.app, "export", "--since", "30h", "--resolution", "hour")
        lines = [json.loads(line) for line in done.stdout.splitlines()]
        assert {line["operation"] for line in lines} == {"shout", "whisper", HOSTILE}
        assert done.stdout.isascii()
        reader = reader_of(shop.app)
        span = Span(reader.now_s() - 30 * 3600, reader.now_s())
        assert lines == [record.as_json() for record in reader.each(span, "hour")]

    def test_export_of_totals_has_one_record_an_operation(self, shop: Shop) -> None:
        lines = [json.loads(line) for line in shown(shop.app, "export", "--resolution", "total").splitlines()]
        assert lines == [record.as_json() for record in reader_of(shop.app).summaries.totals().values()]


class TestExportToAFile:
    def test_a_file_that_is_there_stays_unless_forced(self, shop: Shop, tmp_path: Path) -> None:
        file = tmp_path / "records.jsonl"
        file.write_text("mine")
        assert "--force" in shown(shop.app, "export", "--output", str(file), code=2)
        assert file.read_text() == "mine"
        shown(shop.app, "export", "--output", str(file), "--force")
        assert all(json.loads(line)["schema"] == 2 for line in file.read_text().splitlines())
        assert list(tmp_path.iterdir()) == [file]

    def test_an_export_that_fails_leaves_nothing(self, own_server: EmbeddedServer, tmp_path: Path) -> None:
        app = make_app(own_server.url)
        shown(app, "export", "--output", str(tmp_path / "none.jsonl"), code=3)
        own_server.stop()
        shown(app, "export", "--output", str(tmp_path / "none.jsonl"), code=1)
        assert list(tmp_path.iterdir()) == []

    def test_a_folder_that_is_not_there_is_one_line(self, shop: Shop, tmp_path: Path) -> None:
        text = shown(shop.app, "export", "--output", str(tmp_path / "no" / "file"), code=2)
        assert "cannot be written: No such file or directory" in text

    def test_a_device_is_written_to_and_stays_one(self, shop: Shop) -> None:
        shown(shop.app, "export", "--output", "/dev/null", "--force")
        assert not Path("/dev/null").is_file()


class TestRollup:
    def test_a_dry_run_says_what_would_be_counted_and_changes_nothing(
        self, valkey: EmbeddedServer, client: Any
    ) -> None:
        app = make_app(valkey.url)
        send(app, calls(20, [time.time()], ["shout"]))
        before = {key: client.dump(key) for key in client.scan_iter()}
        dry = read(app, "rollup", "--dry-run")
        assert {key: client.dump(key) for key in client.scan_iter()} == before
        assert dry["totals"][0]["hits"] + dry["totals"][0]["misses"] == 20
        assert re.match(r"\d+ timings in 1 batch to count\n", shown(app, "rollup", "--dry-run"))
        done = read(app, "rollup")
        assert done | {"dry_run": True, "commits": 0, "waiting": 1} == dry
        assert shown(app, "rollup") == "nothing waits\n"

    def test_batches_that_cannot_be_read_are_told_of(self, valkey: EmbeddedServer, client: Any) -> None:
        app = make_app(valkey.url)
        send(app, calls(20, [time.time()], ["shout"]))
        client.rpush(reader_of(app).summaries.keys.inbox, b"\x1b[31mjunk")
        assert "1 batch that cannot be read, and will be set aside" in shown(app, "stats")
        assert read(app, "stats")["set_aside"] == {"batches": 0, "records": 0}
        assert "1 batch that cannot be read, set aside" in shown(app, "rollup")
        client.hset(reader_of(app).summaries.keys.totals, "shout", b"aR\x01junk")
        count_up(app, calls(20, [time.time()], ["shout"]))
        text, found = shown(app, "stats"), read(app, "stats")
        assert "1 batch that could not be read, set aside: " in text
        assert "1 record could not be read: see Entries set aside in docs/operations.md" in text
        assert "will be set aside" not in text
        assert found["set_aside"] == {"batches": 1, "records": 1}

    def test_where_nothing_else_came_what_was_set_aside_is_said(self, valkey: EmbeddedServer, client: Any) -> None:
        app = make_app(valkey.url)
        client.rpush(reader_of(app).summaries.keys.inbox, b"junk", b"more")
        assert "2 batches that cannot be read, set aside" in shown(app, "rollup")
        assert shown(app, "stats").startswith("2 batches that could not be read, set aside: ")


class TestNothingToShow:
    @pytest.mark.parametrize("command", ["stats", "summaries", "top", "export"])
    def test_where_nothing_ran_it_says_what_to_look_at(self, valkey: EmbeddedServer, command: str) -> None:
        text = shown(make_app(valkey.url), command, code=3)
        assert "nothing is recorded yet in redis://127.0.0.1" in text
        assert "aicache_namespace" in text

    def test_where_nothing_is_rolled_up_it_asks_for_beat(self, valkey: EmbeddedServer) -> None:
        app = make_app(valkey.url)
        send(app, calls(3, [time.time()], ["shout"]))
        assert "1 batch of timings waiting" in shown(app, "summaries", code=3)
        assert "shout" in shown(app, "stats")

    @pytest.mark.parametrize(("command", "lists"), [("stats", "operations"), ("summaries", "rows"), ("top", "rows")])
    def test_json_is_empty_and_no_failure(self, valkey: EmbeddedServer, command: str, lists: str) -> None:
        assert read(make_app(valkey.url), command)[lists] == []

    def test_a_cache_that_is_switched_off_by_the_environment_is_told_of(
        self, valkey: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("AICACHE_DISABLED", "1")
        done = run(make_app(valkey.url), "stats")
        assert "aicache_disabled is set" in done.stderr
        assert done.exit_code == 3

    def test_eager_tasks_are_thought_of(self, valkey: EmbeddedServer) -> None:
        text = shown(make_app(valkey.url), "stats", code=3)
        assert "Under task_always_eager it uses the cache only with aicache_eager=True" in text

    @pytest.mark.parametrize(
        ("by", "said"),
        [
            (
                "tokens",
                r"no answer that 2 hits gave .* has tokens: .* aicache_tasks\.annotate\(usage=\{'input_tokens': …\}\)",
            ),
            ("cost", r"no answer that 2 hits gave .* has a cost: .* aicache_tasks\.annotate\(cost=…\)"),
            ("saved", "has a time that it took to compute: it was stored by hand"),
            ("misses", "no look-up missed in this span"),
            ("compute", "no body ran in this span"),
        ],
    )
    def test_what_nothing_can_be_ordered_by_is_said(self, valkey: EmbeddedServer, by: str, said: str) -> None:
        app = make_app(valkey.url)
        count_up(app, others(2, time.time(), "shout", "hit"))
        text = shown(app, "top", "--by", by, code=3)
        assert re.match(said, text) or said in text
        assert "nothing was recorded" not in text

    def test_without_a_hit_nothing_was_saved(self, valkey: EmbeddedServer) -> None:
        app = make_app(valkey.url)
        count_up(app, others(2, time.time(), "shout", "miss", "expired"))
        assert shown(app, "top", "--by", "tokens", code=3) == "no look-up hit in this span: nothing was saved\n"

    def test_samples_that_are_off_are_told_of(self, valkey: EmbeddedServer) -> None:
        done = run(make_app(valkey.url, aicache_samples="off"), "stats")
        assert "aicache_samples is off" in done.stderr
        assert done.exit_code == 3


class TestWhatIsWrong:
    @pytest.mark.parametrize("command", READERS)
    def test_a_server_that_is_away_is_exit_code_1_and_one_line(self, refused_url: str, command: str) -> None:
        text = shown(make_app(refused_url), command, code=1)
        assert text == f"Error: the cache's server, {refused_url}, does not answer: ConnectionError. {NOBODY}\n"

    def test_a_wrong_password_is_exit_code_1_and_shows_none(self) -> None:
        with EmbeddedServer(config={"requirepass": "correct-horse"}) as server:
            text = shown(make_app(server.url.replace("correct", "battery")), "stats", code=1)
        assert "answers with an error" in text
        assert "horse" not in text

    def test_a_key_of_another_type_is_exit_code_1(self, valkey: EmbeddedServer, client: Any) -> None:
        app = make_app(valkey.url)
        client.set(reader_of(app).summaries.keys.totals, "x")
        assert "WRONGTYPE" in shown(app, "stats", code=1)

    def test_records_that_cannot_be_read_do_not_hide_the_others(self, valkey: EmbeddedServer, client: Any) -> None:
        app = make_app(valkey.url)
        count_up(app, calls(20, [time.time()], ["shout", "whisper"]))
        client.hset(reader_of(app).summaries.keys.totals, "shout", b"junk")
        assert [bool(row["hits"]) for row in read(app, "stats")["operations"]] == [False, True]

    def test_an_application_without_install_is_told_of_it(self) -> None:
        text = shown(Celery("bare", broker="memory://", set_as_current=False), "stats", code=2)
        assert "no application" in text or "install(app)" in text

    @pytest.mark.parametrize(
        ("settings", "said"),
        [
            ({"url": None}, "aicache_url is not set"),
            ({"url": "memory://"}, "need a Redis or Valkey server"),
            ({"url": None, "aicache_tll": 1}, "did you mean aicache_ttl"),
        ],
    )
    def test_a_setting_that_is_wrong_is_exit_code_2(self, settings: dict[str, Any], said: str) -> None:
        text = shown(make_app(settings.pop("url"), **settings), "stats", code=2)
        assert said in text
        assert "Traceback" not in text

    @pytest.mark.parametrize(
        "arguments",
        [
            ("summaries", "--since", "6x"),
            ("summaries", "--since", "1h", "--until", "2h"),
            ("summaries", "--by", "worker"),
            ("summaries", "--compare", "0s"),
            ("summaries", "--compare", "1h", "--since", "6h"),
            ("summaries", "--compare", "1h", "--by", "step"),
            ("top", "--limit", "0"),
            ("stat",),
        ],
        ids=" ".join,
    )
    def test_wrong_use_is_exit_code_2(self, shop: Shop, arguments: tuple[str, ...]) -> None:
        text = shown(shop.app, *arguments, code=2)
        assert "Error: " in text
        assert "Traceback" not in text

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (("--since", "2127-01-01"), "--since: '2127-01-01' is in the future"),
            (("--since", "2127-01-01", "--until", "2127-01-02"), "--since: '2127-01-01' is in the future"),
            (("--since", "1h", "--until", "2h"), "--since: '1h' must be before --until, which is '2h'"),
            (("--since", "now"), "--since: 'now' must be before --until, which is 'now'"),
            (("--since", "100000d"), "--since: '100000d' is out of range"),
        ],
    )
    def test_a_span_that_is_none_is_said_to_be(self, shop: Shop, arguments: tuple[str, ...], said: str) -> None:
        assert said in shown(shop.app, "summaries", *arguments, code=2)

    def test_a_misspelt_command_is_put_right(self, shop: Shop) -> None:
        assert "did you mean summaries?" in shown(shop.app, "sumaries", code=2)


def test_tables_need_no_rich(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even on a terminal: what is missing is colour."""
    from aicache_tasks.reports import tables

    class Terminal:
        text, encoding = "", "utf-8"

        def isatty(self) -> bool:
            return True

        def write(self, text: str) -> None:
            self.text += text

    monkeypatch.setitem(sys.modules, "rich", None)
    out: Any = Terminal()
    tables.Screen(out, environ={"COLUMNS": "80", "TERM": "xterm"}).table(
        tables.Table("", [tables.Column("name", "name")], [["shout"]])
    )
    assert out.text == "name\nshout\n"
