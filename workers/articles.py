"""
Five short articles with a question each, for the demo and the tests.

In: nothing.   Out: `ARTICLES`; `Article.text` reads the packaged file.   All places, people and companies are invented.
"""

from __future__ import annotations

from importlib.resources import files
from typing import Final, NamedTuple


class Article(NamedTuple):
    """An article and a question that it answers.

    ``expected`` is part of the sentence that answers the question.
    """

    name: str
    question: str
    expected: str

    @property
    def text(self) -> str:
        """The article: a title, a blank line, and paragraphs.

        >>> ARTICLES[0].text.partition("\\n")[0]
        "Ostermere's market hall reopens after fourteen months"
        """
        return (files("workers") / "articles" / f"{self.name}.txt").read_text(encoding="utf-8")


ARTICLES: Final = (
    Article("market_hall", "How much did the final bill for the repairs come to?", "3.4 million"),
    Article("battery_plant", "How much did the Brackenfield plant cost?", "186 million dollars"),
    Article("hospital_rota", "Who found the cause?", "Priya Lindqvist"),
    Article("seed_library", "How many varieties does the collection have now?", "311 varieties"),
    Article("branch_line", "How long does the journey take?", "31 minutes"),
)
