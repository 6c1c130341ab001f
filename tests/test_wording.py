"""Numbers, names and tables as people see them, whatever lies in Redis and whatever the screen."""

from __future__ import annotations

import io
import re
import unicodedata

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aicache_tasks.reports.tables import Column, Screen, Table, fit
from aicache_tasks.reports.wording import MAX_LABEL, bar, duration, label, number, percent, size, spark, width
from tests.reported import HOSTILE

texts = st.text(st.characters(codec=None, exclude_categories=()), max_size=300)
unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
"""A machine that stalls is no fault of an example."""


class TestLabels:
    @unhurried
    @given(texts)
    def test_nothing_in_a_label_is_an_order_to_a_terminal(self, text: str) -> None:
        shown = label(text)
        assert {unicodedata.category(char) for char in shown}.isdisjoint({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
        shown.encode()

    @unhurried
    @given(texts)
    def test_a_label_takes_no_more_room_than_it_may(self, text: str) -> None:
        assert width(label(text)) <= MAX_LABEL
        assert len(label(text)) <= 4 * MAX_LABEL

    @unhurried
    @given(st.text(max_size=20), st.text(max_size=20))
    def test_two_short_names_that_differ_look_different(self, one: str, other: str) -> None:
        assert one == other or "…" in label(one) + label(other) or label(one) != label(other)

    def test_plain_names_are_shown_as_they_are(self) -> None:
        assert [label(name) for name in ("summarize", "shop.tasks.é", "数据")] == ["summarize", "shop.tasks.é", "数据"]

    def test_accents_upon_accents_are_cut(self) -> None:
        assert len(label("e" + "\u0301" * 250)) <= 2 * MAX_LABEL


class TestFigures:
    @unhurried
    @given(st.integers(0, 2**70), st.integers(0, 2**70))
    def test_figures_are_short(self, one: int, other: int) -> None:
        assert max(len(duration(one)), len(size(one)), len(number(one))) <= 20
        assert len(percent(one / max(one, other, 1))) <= 7

    @unhurried
    @given(st.floats(0, 1))
    def test_only_all_is_100_percent_and_only_nothing_is_0(self, share: float) -> None:
        assert (percent(share) == "100 %") == (share == 1)
        assert (percent(share) == "0 %") == (share == 0)

    @unhurried
    @given(st.lists(st.integers(0, 2**60), max_size=300), st.booleans())
    def test_a_sparkline_is_never_longer_than_it_may_be(self, values: list[int], plain: bool) -> None:
        assert len(spark(values, 16, plain=plain)) <= 16
        assert spark([0, *values, 0], 16, plain=plain).isascii() == plain

    def test_a_bar_is_between_nothing_and_all(self) -> None:
        assert (bar(-1, 4), bar(0, 4), bar(1e-9, 4), bar(1, 4), bar(9, 4)) == ("", "", "▏", "████", "████")


def table() -> Table:
    made = Table("title", [Column("name", "name"), Column("a"), Column("b", rank=1), Column("c", rank=2)])
    made.rows = [["x" * 30, "1,234", "12.3 ms", "1 h 20 min"], ["数" * 15, "1", "2", "3"]]
    made.total = ["all", "1,235", "12.3 ms", "1 h 20 min"]
    return made


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class TestTables:
    @pytest.mark.parametrize("out", [io.StringIO, Terminal])
    @pytest.mark.parametrize("columns", range(18, 90, 3))
    def test_no_line_is_wider_than_the_screen_and_no_figure_is_cut(self, columns: int, out: type[io.StringIO]) -> None:
        stream = out()
        Screen(stream, environ={"COLUMNS": str(columns), "TERM": "xterm"}).table(table())
        lines = re.sub(r"\x1b\[[0-9;]*m", "", stream.getvalue()).splitlines()
        assert max(map(width, lines)) <= columns
        assert [word for line in lines for word in line.split() if word.startswith("1,23")] == ["1,234", "1,235"]
        assert all("…" not in line.rpartition("  ")[2] for line in lines)
        assert fit(table(), columns)[1] == [name for name, least in (("b", 24), ("c", 36)) if columns < least]

    def test_what_is_missed_least_goes_first_and_the_last_line_says_so(self) -> None:
        out = io.StringIO()
        wide = Table("", [Column("name", "name"), Column("a"), Column("b", rank=1)], [["n", "1", "long" * 9]])
        Screen(out, environ={"COLUMNS": "20"}).table(wide)
        assert out.getvalue().splitlines() == ["name  a", "n     1", "no room for: b"]

    def test_figures_stand_under_each_other_also_beside_wide_characters(self) -> None:
        out = io.StringIO()
        Screen(out, environ={}).table(table())
        ends = {width(line[: line.rindex(" min")]) for line in out.getvalue().splitlines() if " min" in line}
        assert len(ends) == 1

    @pytest.mark.parametrize("environ", [{}, {"NO_COLOR": "1"}, {"TERM": "dumb"}])
    def test_a_terminal_shows_the_same_words_with_and_without_colour(self, environ: dict[str, str]) -> None:
        out, hostile = Terminal(), Table("[red]t[/red]", [Column("name", "name")], [[label(HOSTILE)]], ["[bold]all"])
        screen = Screen(out, environ={"COLUMNS": "100", "TERM": "xterm-256color", **environ})
        screen.table(hostile)
        screen.line("[blink]line", "warning")
        for words in ("[red]t[/red]", label(HOSTILE), "[bold]all", "[blink]line"):
            assert words in out.getvalue()
        assert ("\x1b[" in out.getvalue()) == (environ.get("TERM") != "dumb")
        assert not any(f"\x1b[{code}m" in out.getvalue() for code in ("33", "31")) or not environ

    def test_a_screen_that_knows_ascii_only_gets_ascii(self) -> None:
        raw = io.BytesIO()
        screen = Screen(io.TextIOWrapper(raw, "ascii", write_through=True), environ={})
        assert screen.plain_marks
        screen.line("é … 数")
        assert raw.getvalue() == b"\\xe9 \\u2026 \\u6570\n"
