"""
Row 6: what does the key of a 1 MB text cost, next to SHA-256 of its UTF-8?

    python -m benchmarks.key
"""  # fmt: skip

from __future__ import annotations

import hashlib
from functools import partial

from aicache_tasks import CacheKeyGenerator
from benchmarks import _run
from benchmarks._run import OPTIONS, Options, Row

TARGET = 1.1


def measure(options: Options) -> list[Row]:
    """Return row 6 for a text of ASCII and for one that takes two bytes for some characters."""
    keys = CacheKeyGenerator()
    rows: list[Row] = []
    for what, text in _texts().items():
        contenders = {
            "sha256": _run.looped(partial(_sha256, text)),
            "key": _run.looped(partial(keys.generate_cache_key, text, "summarize", OPTIONS)),
        }
        with _run.pinned("same"):
            taken = _run.interleave(contenders, options, f"key of 1 MB, {what}").cpu
        found = _run.ratio(taken["key"], taken["sha256"])
        detail = _run.medians(taken)
        rows.append(Row(6, f"key of 1 MB ({what}) / sha256", "same", "×", *found, TARGET, detail=detail))
    return rows


def _sha256(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def _texts() -> dict[str, str]:
    ascii_text = _run.english(1_000_000)
    return {"ASCII": ascii_text, "accents": ascii_text.replace("e", "é")[:1_000_000]}


if __name__ == "__main__":
    _run.main(measure, rounds=300, calls=1)
