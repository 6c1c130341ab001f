"""
What a model thought before it answered, and what of its chat's template, where a server leaves these in the text.

In: the text of a reply.   Out: the text without them.   Pure, in time that grows with the text's length alone.

A model that reasons writes ``<think>…</think>`` and then its answer. Where the server's template writes the first tag
itself, the text begins within the thoughts and only the second one is there. An answer about such tags names them too:
inside a sentence a tag is left alone.
"""

from __future__ import annotations

import re
from typing import Final

_OPEN: Final = r"(?:(?i:<(?:\w{1,20}:)?(?:think(?:ing)?|thoughts?|reasoning)>)|\[THINK\]|◁think▷)"
_CLOSE: Final = r"(?:(?i:</(?:\w{1,20}:)?(?:think(?:ing)?|thoughts?|reasoning)>)|\[/THINK\]|◁/think▷)"
_CONTROL: Final = r"(?:<[|｜][^<>|｜\s]{1,40}[|｜]>|</?s>|<[be]os>|<(?:start|end)_of_turn>|\[/?INST\]|<</?SYS>>)"
_MAX_CONTROL_CHARS: Final = 44
_OPENER: Final = re.compile(rf"\s*+{_OPEN}")
_CLOSER: Final = re.compile(_CLOSE)
_TAG: Final = re.compile(f"{_OPEN}|{_CLOSE}")
_ANY: Final = re.compile(f"{_TAG.pattern}|{_CONTROL}")
_BEGIN: Final = re.compile(r"\s*+(?:<bos>|<s>(?!.*</s>))\s*", re.DOTALL)
_END: Final = re.compile(rf"{_CONTROL}\Z")
_WRAPPED: Final = re.compile(
    rf"\s*<answer>((?:(?!</?answer>).)*+)</answer>(?:\s*+{_CONTROL})*+\s*", re.DOTALL | re.IGNORECASE
)
_CHANNELS: Final = re.compile(r"\s*+analysis.*?assistantfinal", re.DOTALL)
_ANALYSIS: Final = re.compile(r"\s*+analysis[A-Z]")
"""Harmony's, where the server took its tokens out; the other is all that there is of one that came to no answer."""
_STRUCK: Final = re.compile("<s>[^<]*</s>")
"""Of HTML: struck through."""
# At the end of a line, and not behind a space or a quotation mark, as a tag that is only named would be.
_BOUNDARY: Final = re.compile(rf"(?<![ \t\"'`“‘«(]){_CLOSE}[ \t\r]*+(?:\n|$)")


def without_thoughts(text: str) -> str:
    r"""Return *text* without the thoughts that it begins with; whole if they have no end.

    >>> without_thoughts("<think>Let me see.</think>\n\nIt rained.")
    'It rained.'
    >>> without_thoughts("Let me see.\n</think>\n\nIt rained.")
    'It rained.'
    >>> without_thoughts("It stands between <think> and </think>.")
    'It stands between <think> and </think>.'
    """
    at = 0
    while opener := _OPENER.match(text, at):
        closer = _CLOSER.search(text, opener.end())
        if closer is None:
            return text[at:]
        at = closer.end()
    tag = _TAG.search(text, at)
    boundary = _BOUNDARY.match(text, tag.start()) if tag else None
    at = boundary.end() if boundary else at
    answer = text[at:].lstrip() if at else _CHANNELS.sub("", text, 1) if _CHANNELS.match(text) else text
    wrapped = _WRAPPED.fullmatch(answer)
    return wrapped[1].strip() if wrapped else answer


def begins_with_thoughts(text: str) -> bool:
    """Return whether *text* begins within thoughts: of a text `without_thoughts`, that they have no end."""
    return (_OPENER.match(text) or _ANALYSIS.match(text)) is not None


def tags_of(text: str) -> frozenset[str]:
    """Return the tags of thoughts and the tokens of a chat's template that are anywhere in *text*.

    >>> sorted(tags_of("Thoughts end in </THINK>, a turn in <|im_end|>."))
    ['</think>', '<|im_end|>']
    """
    return frozenset(tag.lower() for tag in _ANY.findall(text))


def has_other_tags(text: str, known: frozenset[str]) -> bool:
    """Return whether a tag or a token is in *text* that is none of *known*; ``<s>…</s>`` strikes through.

    >>> [has_other_tags(text, frozenset({"<|im_end|>"})) for text in ("<|im_end|>", "<s>9</s>", "It rained.</think>")]
    [False, False, True]
    """
    return not tags_of(_STRUCK.sub("", text)) <= known


def without_turn(text: str, known: frozenset[str] = frozenset()) -> str:
    """Return *text* without the tokens by which a model begins and ends its turn, up to one of *known*.

    >>> without_turn("<s>It rained.<|im_end|> </s>"), without_turn("It rained.<|im_end|>", frozenset({"<|im_end|>"}))
    ('It rained.', 'It rained.<|im_end|>')
    """
    end = _stripped(text, len(text))
    while (token := _END.search(text, max(0, end - _MAX_CONTROL_CHARS), end)) and token[0].lower() not in known:
        if _strikes(text, token):
            break
        end = _stripped(text, token.start())
    begin = _BEGIN.match(text, 0, end)
    return text[begin.end() if begin and begin[0].strip() not in known else 0 : end]


def _strikes(text: str, token: re.Match[str]) -> bool:
    """Return whether *token* ends what is struck through, and not all of *text*."""
    opener = text.rfind("<", 0, token.start())
    return token[0] == "</s>" and text.startswith("<s>", opener) and bool(text[:opener].strip())


def _stripped(text: str, end: int) -> int:
    while end and text[end - 1].isspace():
        end -= 1
    return end
