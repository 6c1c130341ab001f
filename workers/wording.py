"""
What a reply is made of, whatever the operation.

In: the text of a reply.   Out: its lines without their markers; whether it can be seen and can be stored.   Pure, in
time that grows with the text's length alone.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import Final

_MARKER: Final = re.compile(
    r"[-*+•●▪■◦○·‣–—](?:\s+|$)|[•・](?![•・])|[(（]?(\d{1,3})(?:[.)](?:\s+|$)|[、．）](?!\d)\s*)"
)
_DRESSED_NUMBER: Final = re.compile(r"^(?:#{1,6}\s+)?(\*\*)?(\(?\d{1,3}[.)])((?(1)\*\*|(?!)))?(?!\S)\s*")
"""One that is bold, or in a heading."""
_ORNAMENT: Final = re.compile(r"(?:`{3,}|~{3,})[\w+-]*|[-*_=—–\s]*")
"""Fences and rules."""
_HEADING: Final = re.compile(r"#{1,6}\s")
_BOLD: Final = re.compile(r"\*\*[^*]+\*\*|__[^_]+__")
_SENTENCE_ENDS: Final = (".", "?", "!", "。", "？", "！")
_CLOSING: Final = re.compile(
    r"(?:please )?(?:let me know\b|feel free to\b|i hope (?:this|these|that) |(?:would you like|do you want) me to\b"
    r"|if you (?:(?:need|want|would like) (?:any|more|further|me to)|have (?:any )?(?:\w+ )?questions?)\b)",
    re.IGNORECASE,
)
_SEEN: Final = frozenset("LNPS")
_BLANK: Final = frozenset("\u115f\u1160\u2800\u3164\uffa0")
"""Letters and symbols that are drawn as nothing."""


def has_surrogates(text: str) -> bool:
    r"""Return whether *text* holds half of a surrogate pair, which no UTF-8 can hold and JSON can name.

    >>> has_surrogates("\ud83d"), has_surrogates("😀")
    (True, False)
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def can_be_seen(text: str) -> bool:
    r"""Return whether anything of *text* is drawn.

    >>> can_be_seen("\u200b\u00ad\ufe0f"), can_be_seen("…")
    (False, True)
    """
    return any(unicodedata.category(char)[0] in _SEEN and char not in _BLANK for char in text)


def shown_chars(text: str) -> int:
    """Return the characters of *text* without those that take no room, such as a zero-width space."""
    return sum(unicodedata.category(char)[0] != "C" and char not in _BLANK for char in text)


def lines_of(reply: str) -> list[str]:
    r"""Return the items of a list without their bullets, and without their numbers if these count 1, 2, 3 ….

    What introduces the list, closes it or frames it is no item. A line that begins with another number begins with its
    content: a date, a year, an amount. So only the start of a line is looked at, and nothing within an item.

    >>> lines_of("Some questions:\n\n1. Who paid?\n2. Sales rose 5 - 7 percent.")
    ['Who paid?', 'Sales rose 5 - 7 percent.']
    >>> lines_of("12. May was cold.\n1945. Peace.")
    ['12. May was cold.', '1945. Peace.']
    """
    lines = [line for line in map(str.strip, reply.splitlines()) if not _ORNAMENT.fullmatch(line)]
    found = [_MARKER.match(_DRESSED_NUMBER.sub(_plain_number, line, 1)) for line in lines]
    numbers = [int(marker[1]) for marker in found if marker and marker[1]]
    counts = numbers == [*range(1, len(numbers) + 1)]
    markers = [marker if marker and (counts or not marker[1]) else None for marker in found]
    items = [m.string[m.end() :] if m else line for line, m in zip(lines, markers, strict=True)]
    end = _end(lines, markers)
    return [item for item in items[_introduction(lines[:end], markers[:end]) : end] if can_be_seen(item)]


def _plain_number(dressed: re.Match[str]) -> str:
    return f"{dressed[2]} {'**' if dressed[1] and not dressed[3] else ''}"


def _introduction(lines: Sequence[str], markers: Sequence[re.Match[str] | None]) -> int:
    """Return how many *lines* only introduce the rest: up to two of them, of which the last ends in a colon.

    Two do only before an item that has a marker: without any, the first of them is an item more likely.
    """
    for count in (1, 2):
        introduces = lines[count - 1 : count] and not any(markers[:count]) and _is_heading(lines[count - 1])
        if introduces and (count == 1 or any(markers[count : count + 1])):
            return count
    return int(_is_title(lines, markers))


def _is_title(lines: Sequence[str], markers: Sequence[re.Match[str] | None]) -> bool:
    """Return whether the first of *lines* stands before the list: without a marker, where the others have one.

    What ends as a sentence does may be an item whose bullet is lost, but none that comes before number 1.
    """
    if len(lines) < 2 or markers[0] or not markers[1]:
        return False
    if markers[1][1] or _BOLD.fullmatch(lines[0]):
        return True
    return all(markers[1:]) and not lines[0].rstrip("*_ \"'”’»").endswith(_SENTENCE_ENDS)


def _is_heading(line: str) -> bool:
    return line.rstrip("*_# ").endswith((":", "：")) or _HEADING.match(line) is not None


def _end(lines: Sequence[str], markers: Sequence[object]) -> int:
    """Return where *lines* end without a remark to the reader, which in a list with markers has none."""
    remark = lines and any(markers) and not markers[-1] and _CLOSING.match(lines[-1])
    return len(lines) - bool(remark)
