"""
An engine without a model: it copies sentences. English only, deterministic, milliseconds.

In: `EngineRequest`.   Out: `Completion` in the form that the prompts ask for.

Splitting is nupunkt's, summaries are lede's, sentiment VADER's (Hutto & Gilbert 2014). Ours: sentences ranked by idf-
weighted overlap (Sparck Jones 1972) for qa, by new frequent words for key points, and plain fill-in questions. qa
quotes a sentence only if it covers the question and holds the kind of thing asked for.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from types import MappingProxyType
from typing import Any, Final

from aicache_tasks.errors import MissingExtraError
from workers.engines.base import NO_ANSWER, Completion, EngineRequest

_PACKAGES: Final = ("lede", "nupunkt", "nltk-vader-sentiment")
_STOP_WORDS: Final = (
    "a about after all an and any are as at be been before being but by came can come could did do does done far for "
    "from get got had has have he her him his how i if in into is it its long many me more most much must no not of "
    "often old on one or our over said say says she should so some such than that the their them then there these they "
    "this those through to up us was we were what when where which while who whom whose why will with would you your"
)
_STOP: Final = frozenset(_STOP_WORDS.split())
_WORD: Final = re.compile(r"\d+(?:[.,]\d+)*|[^\W_]+")
_SUFFIX: Final = re.compile(r"(?<=\w{3})(?:ing|ed|es|s|e|y)$")
_NUMBER: Final = re.compile(
    r"\d[\d.,]*\d|\d|\b(?:two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|dozen|half|third|\w+teen"
    r"|(?:twen|thir|for|fif|six|seven|eigh|nine)ty(?:-\w+)?|hundred|thousand|million)\b",
    re.IGNORECASE,
)
_DATE: Final = r"(?:\w+day|January|February|March|April|May|June|July|August|September|October|November|December)s?\b"
_TIME: Final = re.compile(rf"\d{{4}}|\b(?:o'clock|{_DATE}|noon|(?:morning|night|week|month|year|summer|winter)s?\b)")
_NAME: Final = re.compile(rf"(?:(?<=[a-z,;] )|^(?=\w+ [A-Z]))(?!{_DATE})[A-Z][\w'’-]+(?: [A-Z][\w'’-]+)*")
_PLACE: Final = re.compile(rf"{_NAME.pattern}|\b(?:in|at|on|above|outside|near|behind|between|to) (?:the|an?) \w+")
_CAUSE: Final = re.compile(r"\b(?:[Bb]ecause|since|so that|due to|thanks to|blame|caus\w+|for that reason)\b")
_KINDS: Final = (
    (re.compile(r"how (?:much|many|long|far|high|old|often|big|large)|what (?:number|share|price)\b"), _NUMBER),
    (re.compile(r"when|what (?:year|date|day|time|month)\b"), _TIME),
    (re.compile(r"who\w*\b"), _NAME),
    (re.compile(r"where\b"), _PLACE),
    (re.compile(r"why\b"), _CAUSE),
)


class ExtractiveEngine:
    """Answers by copying; its model is the versions of its packages, which load at the first answer, not for a hit."""

    name: Final = "extractive"
    sampling: Final[Mapping[str, Any]] = MappingProxyType({})

    def __init__(self) -> None:
        try:
            self.model = " ".join(f"{package}-{version(package)}" for package in _PACKAGES)
        except PackageNotFoundError as missing:
            raise MissingExtraError(missing.name, "extractive") from None

    def complete(self, request: EngineRequest) -> Completion:
        """Answer *request*; the finish reason is ``length`` when no whole sentence fits in the length asked for."""
        operations: Mapping[str, Callable[[EngineRequest, Sequence[str]], str]] = {
            "summarize": lambda r, s: summarize(s, r.parameters["max_length"]),
            "sentiment": lambda _, s: mood(s),
            "key_points": lambda r, s: "\n".join(f"- {p}" for p in key_sentences(s, r.parameters["max_points"])),
            "questions": lambda r, s: "\n".join(f"- {q}" for q in fill_ins(s, r.parameters["num_questions"])),
            "qa": lambda r, s: find_answer(r.question or "", s) or NO_ANSWER,
        }
        reply = operations[request.operation](request, split(request.text))
        usage = {"input_words": len(request.text.split()), "output_words": len(reply.split())}
        return Completion(reply, usage, self.model, "stop" if reply else "length")


def mood(sentences: Sequence[str]) -> str:
    """Return the mood of *sentences* as JSON; +-0.05 are the bounds that VADER's authors give for a neutral text."""
    from vader import polarity_scores

    scores = [polarity_scores(s)["compound"] for s in sentences]
    good, bad, mean = sum(s >= 0.05 for s in scores), sum(s <= -0.05 for s in scores), sum(scores) / len(scores)
    label = "mixed" if min(good, bad) > 0.3 * (good + bad) else "positive" if good > bad else "negative"
    label = label if good + bad >= 0.2 * len(scores) else "neutral"
    share = {"neutral": len(scores) - good - bad, "mixed": good + bad}.get(label, max(good, bad)) / len(scores)
    why = f"{good} of {len(scores)} sentences read positive and {bad} negative; the mean score is {mean:.2f}."
    return json.dumps({"sentiment": label, "confidence": round(share, 2), "explanation": why})


def split(text: str) -> list[str]:
    """Return the sentences of *text*, white space made single, without titles if there is anything else."""
    from nupunkt import sentences

    found = [" ".join(s.split()) for part in re.split(r"\n\s*\n", text) for s in sentences(part)]
    return [s for s in found if re.search(r"[.!?…][\"'”’)\]]*$", s)] or found


def summarize(sentences: Sequence[str], max_words: int) -> str:
    """Return the best sentences in their order, *max_words* at most; empty if none is that short."""
    import lede  # type: ignore[import-untyped]

    for chars in range(9 * max_words, 0, -max_words):
        cut = lede.summarize(" ".join(sentences), max_length=chars).summary
        picked = " ".join(s for s in sentences if s in cut)
        if picked and len(picked.split()) <= max_words:
            return picked
    return next((s for s in sentences if len(s.split()) <= max_words), "")


def key_sentences(sentences: Sequence[str], count: int) -> list[str]:
    """Return up to *count* sentences in their order, each picked for the frequent words that it adds."""
    stems = [_stems(s) for s in sentences]
    open_words = Counter(stem for found in stems for stem in found)
    left = dict(enumerate(stems))
    picked: list[int] = []
    while left and len(picked) < count:
        best = max(left, key=lambda i: (sum(open_words[w] - 1 for w in left[i]) / (len(left[i]) + 5), -i))
        for stem in left.pop(best):
            open_words[stem] = 1
        picked.append(best)
    return [sentences[i] for i in sorted(picked)]


def fill_ins(sentences: Sequence[str], count: int) -> list[str]:
    """Return *count* questions at most: a sentence with its first number or name left out, then plain ones."""
    gaps = {s: gap for s in sentences if (gap := _NUMBER.search(s) or _NAME.search(s))}
    blanked = [f"{s[: gaps[s].start()]}____{s[gaps[s].end() :]}" for s in key_sentences([*gaps], count)]
    plain = key_sentences([s for s in sentences if s not in gaps], count - len(blanked))
    return [f"What is left out here: {s}" for s in blanked] + [f"Is this so, and why: {s}" for s in plain]


def find_answer(question: str, sentences: Sequence[str]) -> str | None:
    """Return the sentence that covers *question* and adds what it asks for; 0.7 by trial: less lets the topic pass."""
    asked, stems = _stems(question), [_stems(s) for s in sentences]
    idf = {w: math.log(1 + len(stems) / (0.5 + sum(w in found for found in stems))) for w in asked}
    named = _stems(" ".join(m[0] for m in re.finditer(r"(?<=\w )[A-Z]\w+|\d[\d.,]*", question)))
    if not asked or not named <= set().union(*stems):
        return None
    kind = next((kind for ask, kind in _KINDS if ask.search(question.lower())), _WORD)
    weight = [sum(idf[w] for w in asked & found) / sum(idf.values()) for found in stems]
    fit = [i for i, s in enumerate(sentences) if weight[i] >= 0.7 and _stems(" ".join(kind.findall(s))) - asked]
    return sentences[max(fit, key=lambda i: (weight[i], -len(stems[i])))] if fit else None


def _stems(text: str) -> set[str]:
    words = (w for w in _WORD.findall(text.casefold()) if w.isdigit() or (len(w) > 1 and w not in _STOP))
    return {_SUFFIX.sub("", word)[:7] for word in words}
