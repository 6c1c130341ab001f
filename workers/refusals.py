"""
What a reply says in the place of an answer: that a model will not give one, or that the text has none.

In: a reply, the text and the question.   Out: whether it says so.   English only; pure, in time that grows with the
text's length alone.
"""

from __future__ import annotations

import re
from typing import Final

from workers.engines.base import NO_ANSWER

_QUOTED_CHARS: Final = 40
_OPENING_CHARS: Final = 400
_MODEL: Final = (
    r"(?:ai(?: (?:assistant|chatbot|system|(?:language )?model))?|artificial intelligence|(?:large )?language model)"
    r"(?=\s*(?:[,.;:]|$)| (?:i|and|so|that|without|designed|developed|created|made|trained)\b)"
)
_SORRY: Final = (
    r"(?:i['’]?m (?:\w+ )?sorry|i am (?:\w+ )?sorry|sorry|i apologi[sz]e|(?:my )?apologies|unfortunately|regrettably"
    rf"|(?:as|i(?:['’]m| am)(?: just| only)?) (?:an?|your) {_MODEL})\b"
)
_CANNOT: Final = (
    r"\bi(?:['’]m| am)? ?(?:can(?:not| not|['’]t)|unable to|(?:won['’]t|will not)(?: be able to)?"
    r"|not (?:able|allowed) to|decline to|(?:do not|don['’]t) have the (?:ability|capability) to)\b"
    r"(?: and (?:won['’]t|will not)\b)?(?:,? in good conscience\b,?)?"
)
_AFRAID: Final = r"(?:(?:i(?:['’]m| am) afraid|i regret(?: to (?:inform|tell) you)?) (?:that )?)?"
_VERB: Final = (
    r"(?:provide|process|fulfil+|generate|create|write(?: about)?|produce|summari[sz]e|analy[sz]e|complete|perform"
    r"|respond to|reply to|give|offer|engage (?:with|in)|discuss|talk about|continue with|proceed with|handle|access"
    r"|extract|list|judge|determine|identify|carry out)"
)
_ASKED: Final = (
    r"(?:you (?:with )?)?(?:(?:this|that|it|one)\s*(?:[.!,;:]|$)|(?:(?:an?|any|the|this|that|these|your) )*(?:\w+ )?"
    r"(?:summary|summaries|requests?|content|prompt|instructions?|assistance|key points|sentiment|text|task|topic"
    r"|conversation|questions?|answers?|response|information|analysis)\b)"
)
_THE_REQUEST: Final = r"(?:(?:this|that|your|the) (?:request|prompt)|(?:this|that|your) (?:content|question|text))"
_POLITE: Final = (
    rf"(?:{_SORRY}(?: for [^.,]{{0,40}})?,? (?:but )?)?(?:(?:sure|certainly|of course|hello|hi)[!,.] *)?"
    r"(?:(?:(?:i(?:['’]d| would) (?:be (?:happy|glad)|love) to|i(?:['’]m| am) ready to|i can"
    r"|(?:while |although )?i (?:appreciate|understand)) [^.!?]{1,80}?"
    r"|i understand|thank(?:s| you)(?: for [^.!?]{1,80}?)?)[.!?,] *(?:but |however,? )?)?"
    r"(?:it (?:seems|looks|appears)(?: like| that| as (?:if|though))? |i (?:notice|see)(?: that)? )?"
)
_MATERIAL: Final = r"(?:(?:the|your|any|an?|some) )?(?:\w+ )?(?:text|article|passage)\b"
_WORK: Final = r"to (?:be )?(?:summari|analy|process|work|judge|extract|answer)"
_HERE: Final = (
    rf"(?:here(?=\s*(?:[.,;!?]|$)| to\b)|provided\b(?! by\b|(?! {_WORK}) to\b)"
    rf"|(?:in|between|within|inside) (?:your|(?:the|these|those) (?:two )?(?:message|prompt|request|tags?))\b"
    rf"|(?:for me )?{_WORK})"
)
_BEFORE_ME: Final = (
    r"(?:\s*(?:[.;!?:]|$)|, (?:so|but|and|please|could)\b"
    rf"| (?:(?:that |which )?you\b|for me\b|so (?:that )?i\b|{_HERE}))"
)
"""What follows where the text is meant that the model was to work on, and not one that the text tells of."""
_PLEASE: Final = r"(?:please|(?:could|can|would) you(?: please)?)"
_SEEMS: Final = r"(?:is|(?:appears|seems)(?: to be)?)"
_DECLINE: Final = r"(?:(?:must|have to) (?:respectfully )?(?:decline|refuse)|respectfully decline)"
_NOT: Final = r"(?:do(?:es)? not|do(?:es)?n['’]t|did not|didn['’]t|cannot|can not|can['’]t|could(?: not|n['’]t))"
_MISS: Final = (
    rf"(?:(?: {_NOT}|(?:['’]m| am) unable to) (?:see|find|have|receive)(?: access to)?"
    r"| (?:have not|haven['’]t) (?:received|been given))"
)
_VIOLATES: Final = r"(?:\w+ ){0,2}?(?:violates?|goes against|is against|breach(?:es)?|conflicts? with)\b"
_REFUSALS: Final = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        rf"{_SORRY}[^.]{{0,80}}?{_CANNOT}",
        rf"{_POLITE}{_AFRAID}{_CANNOT} (?:help|assist|comply|answer|do)\b(?! (?:but|for)\b)",
        rf"{_POLITE}{_AFRAID}{_CANNOT} {_VERB} {_ASKED}",
        rf"{_POLITE}i {_NOT} have (?:direct )?access to [^.!?]{{1,80}}?{_CANNOT} {_VERB} {_ASKED}",
        rf"{_POLITE}i(?:['’]ll| will)? need {_MATERIAL} (?:in order )?{_WORK}",
        rf"i(?:['’]m not| am not| do not feel| don['’]t feel) comfortable (?:with )?\w+ing {_ASKED}",
        rf"{_SORRY}[^.]{{0,40}}?\b{_THE_REQUEST} {_VIOLATES}",
        rf"(?:this|your) (?:request|prompt) {_VIOLATES}",
        rf"{_POLITE}i {_DECLINE}(?: to {_VERB})? {_ASKED}",
        rf"{_POLITE}i (?:(?:must|have to) )?respectfully decline\s*(?:[.!]|$)",
        rf"{_POLITE}{_PLEASE} (?:provide|share|paste|send)(?: me)?(?: with)? {_MATERIAL}{_BEFORE_ME}",
        rf"{_POLITE}i{_MISS} {_MATERIAL}{_BEFORE_ME}",
        rf"{_POLITE}you (?:have not|haven['’]t|did not|didn['’]t) (?:provided?|included?|shared?|pasted?) {_MATERIAL}",
        rf"{_POLITE}(?:there(?: is|['’]s) |i see )?no (?:\w+ )?text (?:was |is |has been )?{_HERE}",
        rf"{_POLITE}the text(?: (?:you )?provided| between the tags)? {_SEEMS} (?:empty|blank|missing){_BEFORE_ME}",
    )
)

_NAMES: Final = ("passage", "article", "document", "context", "excerpt")
"""What a model calls the text, and a text may speak of another of."""
_NAMED: Final = re.compile(rf"\b(?:text|{'|'.join(_NAMES)})\b")
_TEXT: Final = (
    rf"(?:the|this|your) (?:(?:provided|given) )?(?:text|{'|'.join(_NAMES)})\b(?! of\b)"
    r"(?: (?:(?:that )?you )?(?:provided|given|gave|shared))?"
)
_KNOWN: Final = (
    r"(?:an? |any |the |enough |sufficient )?(?:[\w'’]+ )?"
    r"(?:answers?|information|details?|dates?|names?|reasons?|mention|reference|indication)\b"
)
_TOLD: Final = (
    r"(?:answered|stated|mentioned|specified|given|provided|found|said|determined|inferred|discussed|covered|included"
    r"|available|clear)"
)
_IS_NOT: Final = r"(?:(?:is|are|was|were|can) ?not|(?:is|are|was|were)n['’]t|can['’]t)(?: be)?"
_BODY: Final = r"(?:[^.;:!?]|\.(?=\w)|(?<=\b\w)\.(?!\w))"
"""A sentence's; the dots of "3.5" and "U.S." end none."""
_IT_IS_NOT: Final = rf"it(?: {_IS_NOT}|['’]s not) (?:\w+ly )?"
_UNANSWERED: Final = re.compile(
    r"(?:(?:i(?:['’]m| am) )?sorry,? (?:but )?|unfortunately,? )?"
    rf"(?:((?:based on|from) {_TEXT},? )|according to {_TEXT},? )?"
    rf"(?:{_TEXT} {_NOT} (?!only\b)(?:\w+ly )?(?:(?:answer|address|say|state|mention|specify|indicate|tell|explain"
    rf"|reveal|disclose|clarify|elaborate|discuss|describe|identify|refer to)\b"
    rf"|(?:provide|contain|give|include|offer|have) {_KNOWN})"
    rf"|{_TEXT} (?:provides|contains|gives|includes|offers|has|makes) no {_KNOWN}"
    rf"|{_TEXT} (?:never (?:says|states|mentions|specifies|explains)|says nothing)\b"
    rf"|(?:{_BODY}{{1,60}}? {_IS_NOT}|not) (?:\w+ly )?(?:{_TOLD} (?:in|by|from|with|based on)|in) {_TEXT}"
    rf"|{_IT_IS_NOT}{_TOLD}(?= {_BODY}*\b{_TEXT})"
    rf"|(?(1){_IT_IS_NOT}(?:stated|mentioned|specified|clear)\b|(?!))"
    rf"|there(?:(?: is|['’]s) (?:no|not|insufficient)| isn['’]t) {_KNOWN}(?= {_BODY}*\b{_TEXT})"
    r"|(?(1)there is no (?:information|mention)\b|(?!))"
    rf"|no (?:\w+ )?(?:information|mention|indication)\b(?= {_BODY}*\b(?:in|by) {_TEXT})"
    rf"|i(?:['’]m| am)? (?:can(?:not|['’]t| not)|could(?: not|n['’]t)|unable to|not able to|do not|don['’]t)"
    rf" (?:(?:find|see)\b(?! {_TEXT}{_BEFORE_ME})|(?:determine|tell|answer|know)\b)(?= {_BODY}*\b{_TEXT})"
    r"|i (?:do not|don['’]t) (?:know|have enough information)\b(?!.*,))"
    rf"(?!{_BODY}*\b(?:but|however|although|though|only|instead|except|while|whereas|rather)\b){_BODY}*+[.!]?"
    rf"(?: (?:it|{_TEXT}) (?:only |mainly )?(?:covers|discusses|focuses on|deals with|is about) {_BODY}*+[.!]?"
    rf"| (?:so|therefore|thus),? (?:i|it|(?:the|this) question) (?:can(?:not|['’]t)|am unable to) {_BODY}*+[.!]?)?",
    re.IGNORECASE,
)
_ABOUT_TEXT: Final = re.compile(
    r"\b(?:texts?|passages?|articles?|author|writer|mention\w*|stated|omit\w*|left out|leav\w* out|missing"
    r"|what do(?:es)? .*not|it (?:say|state|tell|explain))\b",
    re.IGNORECASE,
)
_ASKS_FOR: Final = re.compile(
    r"\W*(?:(?:according to|based on|from|in) [^,]*, *)?(?:\w+ )?"
    r"(?:(?:whose|when|where|why|how)\b|(?:whom?|what|which)\b"
    r"(?!.*(?:\b(?:not|never|missing|omit\w*|fail\w* to|(?:left|leav\w+)\b.*\bout)\b|n['’]t\b)))",
    re.IGNORECASE | re.DOTALL,
)
"""What may be asked of a text, such as who wrote it, and has another answer than that the text does not say it."""


def says_no_answer(reply: str, question: str = "", text: str = "") -> bool:
    r"""Return whether *reply* says, by the word or in a sentence, that *text* does not answer *question*.

    A sentence counts where it is all there is, but for one on what the text is about, and holds no "but". It is an
    answer where it is asked whether a text says something, or what it leaves out, and where it is a quotation.

    >>> [says_no_answer(reply) for reply in ("The text does not say. No\\_Answer", "No answer.", "No answer came.")]
    [True, True, False]
    >>> [says_no_answer("The text does not say when.", asked) for asked in ("When was it?", "Does the text say when?")]
    [True, False]
    """
    word = NO_ANSWER.casefold()
    said = reply.replace("\\", "").casefold()
    if word in said or "".join(filter(str.isalnum, said)) == word.replace("_", ""):
        return True
    plain = reply.strip('*_"“” \n')
    if len(plain) > _OPENING_CHARS or not _is_about_all(plain, text):
        return False
    return _ASKS_FOR.match(question) is not None or not _ABOUT_TEXT.search(question)


def _is_about_all(plain: str, text: str) -> bool:
    """Return whether *plain* says that *text* has no answer, and not that an article has none of which it tells."""
    if not _UNANSWERED.fullmatch(plain) or _is_quoted(plain, text):
        return False
    named, told = (set(_NAMED.findall(said.casefold())) for said in (plain, text))
    return "text" in named or named.isdisjoint(told)


def is_refusal(reply: str, text: str) -> bool:
    """Return whether *reply* opens as a model does that will not answer, and does not quote *text* in that.

    >>> is_refusal("I cannot provide a summary of this.", "It rained."), is_refusal("I cannot sleep.", "It rained.")
    (True, False)
    """
    opening = reply[:_OPENING_CHARS].lstrip("-*•–( 0123456789.)")
    said = re.sub(r"^\W*+", "", opening)
    if not any(pattern.match(said) for pattern in _REFUSALS):
        return False
    return not (_is_quoted(said, text) or _is_quotation(opening))


def _is_quoted(said: str, text: str) -> bool:
    return _plain(said[:_QUOTED_CHARS]) in _plain(text)


def _plain(text: str) -> str:
    return " ".join(text.replace("’", "'").casefold().split())


def _is_quotation(opening: str) -> bool:
    """Return whether *opening* is somebody's words in quotation marks, and says more after them."""
    first = opening[:1]
    closing = {'"': '"', "“": "”", "„": "“", "«": "»"}.get(first)
    return closing is not None and any(char.isalnum() for char in opening[1:].partition(closing)[2])
