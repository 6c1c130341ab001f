"""
Which calls the demo makes.

In: the engine's name.   Out: each operation over each article, with its arguments.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from workers.articles import ARTICLES, Article

OPERATIONS: Final = ("summarize", "sentiment", "key_points", "questions", "qa")
OPTIONS: Final[Mapping[str, Mapping[str, int]]] = MappingProxyType(
    {"summarize": {"max_length": 250}, "questions": {"num_questions": 10}}
)
"""Long enough for the extractive engine's answers to be compressed; those of the other operations are not."""
FEWER: Final[Mapping[str, int]] = MappingProxyType({"local": 2})
"""Articles for an engine that takes seconds for each answer."""
FASTER: Final[Mapping[str, Mapping[str, Mapping[str, int]]]] = MappingProxyType(
    {"local": {"summarize": {"max_length": 100}, "questions": {"num_questions": 4}, "key_points": {"max_points": 4}}}
)
"""Options for such an engine."""


class Call(NamedTuple):
    """One call of a task."""

    operation: str
    article: Article
    arguments: Mapping[str, Any]


def calls_of(engine: str) -> list[Call]:
    """Return the calls of one run.

    >>> [len(calls_of(engine)) for engine in ("extractive", "local")]
    [25, 10]
    """
    articles = ARTICLES[: FEWER.get(engine)]
    return [
        Call(operation, article, _arguments(engine, operation, article))
        for operation in OPERATIONS
        for article in articles
    ]


def _arguments(engine: str, operation: str, article: Article) -> dict[str, Any]:
    question = {"question": article.question} if operation == "qa" else {}
    return {"text": article.text, **question, **FASTER.get(engine, OPTIONS).get(operation, {})}
