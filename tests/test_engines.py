"""The engines: how one is found, and what the extractive one makes of real prose."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest

from aicache_tasks.errors import MissingExtraError, SettingsError
from workers.articles import ARTICLES, Article
from workers.engines import ENGINE_VARIABLE, current_engine, load_engine
from workers.engines.base import Completion, TruncatedReply
from workers.engines.extractive import ExtractiveEngine, split
from workers.operations import PROMPT_VERSIONS, make_request, make_response

# By article: questions that it does not answer, though most of their words occur in it.
OUT_OF_TEXT = {
    "market_hall": [
        "What is the capital of France?",
        "Who is the mayor of Ostermere?",
        "How much did the new floor cost?",
        "How old is Ilse Marrand?",
        "Why did the mayor resign?",
        "How many people died in the flood?",
    ],
    "battery_plant": [
        "Who founded Corvane?",
        "When was Corvane founded?",
        "How much did the second plant cost?",
        "How many robots does the plant have?",
        "What is the salary of Hanna Oduya?",
    ],
    "hospital_rota": [
        "What is the weather in Paris?",
        "Who is the director of Sennick General?",
        "How much did Shiftwell cost?",
        "How many beds does Calder Ridge have?",
        "Why did Priya Lindqvist leave the hospital?",
    ],
    "seed_library": [
        "Who won the football match?",
        "Where was Osman Tarrell born?",
        "How many books does the library have?",
        "When did the garden centre open?",
        "How many seeds does Portugal export?",
    ],
    "branch_line": [
        "What is the capital of Spain?",
        "Who designed the viaduct?",
        "How many people live in Dunmarrow?",
        "How old is Cara Whitlow?",
        "How much does a first class ticket cost?",
    ],
}
MORE_QUESTIONS = [
    ("market_hall", "Who is the architect?", "Tomas Fell"),
    ("market_hall", "Why have opening hours been extended?", "because a survey"),
    ("battery_plant", "What caused the delay?", "filters"),
    ("battery_plant", "Who is the chief executive of Corvane?", "Hanna Oduya"),
    ("hospital_rota", "Where were patients taken?", "Calder Ridge"),
    ("hospital_rota", "How many planned operations were cancelled?", "41"),
    ("seed_library", "How old is Tarrell?", "81"),
    ("branch_line", "When was the line closed?", "1974"),
    ("branch_line", "Who is the operations manager?", "Cara Whitlow"),
]
TEXTS = {article.name: article.text for article in ARTICLES}
each_article = pytest.mark.parametrize("article", ARTICLES, ids=lambda article: article.name)


@pytest.fixture(scope="module")
def engine() -> ExtractiveEngine:
    return ExtractiveEngine()


def answer(engine: ExtractiveEngine, operation: str, text: str, **given: Any) -> Any:
    request = make_request(operation, text, **given)
    response = make_response(request, engine.complete(request), engine.name)
    return response.get("result", response.get(operation))


class TestFindingAnEngine:
    def test_the_default_is_extractive(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv(ENGINE_VARIABLE, raising=False)
        assert current_engine().name == "extractive"

    def test_one_engine_serves_the_whole_process(self) -> None:
        assert load_engine("extractive") is load_engine("extractive")

    def test_a_dotted_path_names_an_engine_of_ones_own(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(ENGINE_VARIABLE, "workers.engines.extractive:ExtractiveEngine")
        assert isinstance(current_engine(), ExtractiveEngine)

    @pytest.mark.parametrize("name", ["abacus", "no.such.module:make", "workers.engines:missing", ":", "os:"])
    def test_an_unknown_name_is_an_error_that_lists_the_known_ones(self, name: str) -> None:
        with pytest.raises(SettingsError, match="extractive") as caught:
            load_engine(name)
        assert ENGINE_VARIABLE in str(caught.value)

    def test_a_missing_package_names_the_extra(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("workers.engines.extractive._PACKAGES", ("lede", "not-there"))
        with pytest.raises(MissingExtraError, match=r"not-there is not installed.*aicache-tasks\[extractive\]"):
            ExtractiveEngine()

    def test_a_key_needs_no_nlp_package_loaded(self) -> None:
        """So a hit in a new process does not wait for them."""
        program = (
            "import sys, workers.tasks; workers.tasks.engine_identity(); "
            "print(sorted({'lede', 'nupunkt', 'vader'} & set(sys.modules)))"
        )
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == "[]"


class TestArticles:
    def test_there_are_five_of_a_real_length(self) -> None:
        assert len(TEXTS) == 5
        assert all(400 <= len(text.split()) <= 700 for text in TEXTS.values())

    @each_article
    def test_each_holds_the_answer_to_its_question(self, article: Article) -> None:
        assert article.expected in article.text


class TestExtractive:
    @each_article
    def test_a_summary_is_made_of_whole_sentences_in_their_order(
        self, engine: ExtractiveEngine, article: Article
    ) -> None:
        summary, sentences = answer(engine, "summarize", article.text), split(article.text)
        picked = [s for s in sentences if s in summary]
        assert " ".join(picked) == summary
        assert 30 <= len(summary.split()) <= 100

    @pytest.mark.parametrize("words", [10, 25, 60, 500])
    @each_article
    def test_a_summary_keeps_to_its_length(self, engine: ExtractiveEngine, article: Article, words: int) -> None:
        summary = answer(engine, "summarize", article.text, value=words)
        assert 0 < len(summary.split()) <= words

    def test_a_text_that_is_short_enough_is_its_own_summary(self, engine: ExtractiveEngine) -> None:
        assert answer(engine, "summarize", "It rained. It snowed. We left.") == "It rained. It snowed. We left."

    def test_no_sentence_is_cut_to_fit(self, engine: ExtractiveEngine) -> None:
        with pytest.raises(TruncatedReply):
            answer(engine, "summarize", "word " * 200)

    @each_article
    def test_key_points_are_different_sentences_of_the_text(self, engine: ExtractiveEngine, article: Article) -> None:
        points = answer(engine, "key_points", article.text, value=4)
        assert len(points) == len(set(points)) == 4
        assert set(points) <= set(split(article.text))

    @each_article
    def test_each_question_leaves_out_something_that_the_text_says(
        self, engine: ExtractiveEngine, article: Article
    ) -> None:
        asked = answer(engine, "questions", article.text, value=3)
        assert len(asked) == len(set(asked)) == 3
        sentences = split(article.text)
        for question in asked:
            before, _, after = question.removeprefix("What is left out here: ").partition("____")
            assert any(s.startswith(before) and s.endswith(after) and s != before + after for s in sentences)

    @each_article
    def test_the_articles_question_is_answered_by_the_right_sentence(
        self, engine: ExtractiveEngine, article: Article
    ) -> None:
        found = answer(engine, "qa", article.text, question=article.question)
        assert article.expected in found
        assert found in split(article.text)

    @pytest.mark.parametrize(("name", "question", "expected"), MORE_QUESTIONS)
    def test_who_where_when_why_and_how_many_are_answered(
        self, engine: ExtractiveEngine, name: str, question: str, expected: str
    ) -> None:
        assert expected in answer(engine, "qa", TEXTS[name], question=question)

    @pytest.mark.parametrize(("name", "question"), [(n, q) for n, asked in OUT_OF_TEXT.items() for q in asked])
    def test_a_question_that_the_text_does_not_answer_gets_nothing(
        self, engine: ExtractiveEngine, name: str, question: str
    ) -> None:
        assert answer(engine, "qa", TEXTS[name], question=question) is None

    @pytest.mark.parametrize("question", ["?", "and of the", "Who?", "!!!"])
    def test_a_question_without_content_gets_nothing(self, engine: ExtractiveEngine, question: str) -> None:
        assert answer(engine, "qa", TEXTS["market_hall"], question=question) is None

    @pytest.mark.parametrize(
        ("text", "label"),
        [
            ("I love this cafe. The staff are wonderful. The cake is excellent and I am happy.", "positive"),
            ("The room was dirty and awful. The food made us sick. I hate this terrible hotel.", "negative"),
            ("The train leaves at nine. It has four carriages. The line has two tracks.", "neutral"),
            ("The food was excellent. The room was awful. We loved the beach. We hated the noise.", "mixed"),
        ],
    )
    def test_the_mood_of_a_clear_text_is_right(self, engine: ExtractiveEngine, text: str, label: str) -> None:
        found = answer(engine, "sentiment", text)
        assert found["sentiment"] == label
        assert 0.5 <= found["confidence"] <= 1

    @pytest.mark.parametrize("operation", PROMPT_VERSIONS)
    @pytest.mark.parametrize(
        "text",
        ["-" * 50, "日本語のテキストです。二番目の文です。", "😀" * 20, "a" * 10_000],
    )
    def test_odd_texts_are_answered_without_a_fault(self, engine: ExtractiveEngine, operation: str, text: str) -> None:
        question = "Who was it?" if operation == "qa" else None
        completion = engine.complete(make_request(operation, text, question))
        assert isinstance(completion, Completion)

    def test_the_model_names_its_packages_versions_and_usage_counts_words(self, engine: ExtractiveEngine) -> None:
        completion = engine.complete(make_request("key_points", "It rained all day. We stayed.", value=1))
        assert completion.model == engine.model
        assert all(f"{package}-" in engine.model for package in ("lede", "nupunkt", "nltk-vader-sentiment"))
        assert completion.usage is not None
        assert completion.usage["input_words"] == 6

    def test_the_answer_does_not_depend_on_the_hash_seed(self) -> None:
        program = (
            "from workers.engines.extractive import ExtractiveEngine as E\n"
            "from workers.operations import *\nfrom workers.articles import ARTICLES as A\n"
            "e, q = E(), A[4].question\n"
            "print([e.complete(make_request(o, A[4].text, q)).text for o in PROMPT_VERSIONS])"
        )
        outputs = {
            subprocess.run(
                [sys.executable, "-c", program],
                capture_output=True,
                text=True,
                check=True,
                env={**os.environ, "PYTHONHASHSEED": seed},
            ).stdout
            for seed in ("1", "2")
        }
        assert len(outputs) == 1
