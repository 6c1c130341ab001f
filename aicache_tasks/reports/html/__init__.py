"""
The tab's figures and plots of one span as one file, that opens anywhere and asks for nothing.

In: a reader, a span.   Out: a page of HTML with its style, its script and its data in it.

The script is the tab's own: its modules become one, in the order in which they need each other. The page's policy lets
that script and that style run, by their digests, and nothing else; labels are text in JSON, never markup.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from html import escape
from pathlib import Path
from string import Template
from typing import Any, Final

from aicache_tasks.reports.flower.snapshot import Asked, Now, document, now_of
from aicache_tasks.reports.queries import Reader
from aicache_tasks.reports.spans import Span
from aicache_tasks.reports.wording import moment

HERE: Final = Path(__file__).resolve().parent
TAB: Final = HERE.parent / "flower" / "static"
CHOSEN: Final = "chosen"
"""Name of a span that is none of the tab's."""
_IMPORT: Final = re.compile(r'^import (\{[^}]*\}|\* as (\w+)) from "\./(\w+)\.js";\n', re.MULTILINE)
_EXPORT: Final = re.compile(r"^export (?=(?:async )?(?:const|function|class) (\w+))", re.MULTILINE)


def page(reader: Reader, span: Span, title_of: Callable[[Span], str]) -> str | None:
    """Return the page of *span*; None if nothing was recorded in it.

    Args:
        reader: of the records.
        span: from when to when.
        title_of: names what was covered.

    Raises:
        StoreError: the server does not answer.
    """
    now = now_of(reader)
    found = document(reader, Asked(CHOSEN, between=span), now)
    if not found["operations"]:
        return None
    covered = Span(found["span"]["start_s"], found["span"]["end_s"])
    found["span"]["text"] = "this span"
    found |= {"breakers": _breakers(reader), "may_invalidate": False}
    return _page(found, title_of(covered), now)


def _page(found: Mapping[str, Any], text: str, now: Now) -> str:
    style, script = _style(), _script()
    return Template((HERE / "report.html").read_text("utf-8")).substitute(
        policy=f"default-src 'none'; base-uri 'none'; form-action 'none'; style-src {_digest(style)}; "
        f"script-src {_digest(script)}",
        span=escape(text),
        style=style,
        url=escape(found["place"]["url"]),
        namespace=escape(found["place"]["namespace"]),
        made=moment(now.live.at_s),
        document=in_script(found),
        script=script,
    )


def in_script(data: Any) -> str:
    """Return *data* as JSON that ends no element.

    >>> in_script({"label": "</script>"})
    '{"label":"\\\\u003c/script\\\\u003e"}'
    """
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _breakers(reader: Reader) -> dict[str, str]:
    store = reader.summaries.parts.store
    return {"reads": store.reads.state, "writes": store.writes.state}


def _style() -> str:
    return (HERE / "report.css").read_text("utf-8") + (TAB / "aicache.css").read_text("utf-8")


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


# Modules as one script.


def _script() -> str:
    """Return the report's module and all that it imports, as one script without modules."""
    report = (HERE / "report.js").read_text("utf-8")
    needed = dict(_needed(report, {}))
    parts = [f"const {_constant(name)} = (() => {{\n{_body(text)}}})();\n" for name, text in needed.items()]
    return '(() => {\n"use strict";\n' + "".join(parts) + _without_imports(report) + "})();\n"


def _needed(text: str, seen: dict[str, str]) -> Iterator[tuple[str, str]]:
    """Yield the modules that *text* imports, each after those that it imports itself."""
    for found in _IMPORT.finditer(text):
        name = found[3]
        if name not in seen:
            seen[name] = (TAB / f"{name}.js").read_text("utf-8")
            yield from _needed(seen[name], seen)
            yield name, seen[name]


def _body(text: str) -> str:
    names = _EXPORT.findall(text)
    return _without_imports(_EXPORT.sub("", text)) + f"return {{ {', '.join(names)} }};\n"


def _without_imports(text: str) -> str:
    return _IMPORT.sub(lambda found: f"const {found[2] or found[1]} = {_constant(found[3])};\n", text)


def _constant(name: str) -> str:
    return f"MODULE_{name}"
