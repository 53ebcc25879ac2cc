"""Scores: what counts as right, and the statistics."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from squeezeattention import SqueezeCache, load_embedded
from squeezeattention.tasks.driving import greedy, read
from squeezeattention.tasks.recall import Fact
from squeezeattention.tasks.scoring import recall_facts, score, sign_test, wilson_interval


class Letters:
    """A tokenizer of single characters."""

    def __call__(self, text: str, add_special_tokens: bool = True) -> Any:
        return SimpleNamespace(input_ids=[ord(letter) for letter in text])

    def batch_decode(self, rows: list[list[int]]) -> list[str]:
        return ["".join(map(chr, row)) for row in rows]


class Memory:
    """A cache that is the text itself."""

    def __init__(self, text: str) -> None:
        self.rows = [text]

    def get_seq_length(self) -> int:
        return len(self.rows[0])

    def batch_repeat_interleave(self, repeats: int) -> None:
        self.rows = self.rows * repeats


class Oracle:
    """Goes on with what it was told to say after each question."""

    device = torch.device("cpu")

    def __init__(self, said: dict[str, str]) -> None:
        self.said = said
        self.calls = 0

    def forward(self, past_key_values: Memory) -> None: ...

    def __call__(self, input_ids: torch.Tensor, past_key_values: Memory, **_: Any) -> Any:
        self.calls += 1
        logits = torch.zeros(*input_ids.shape, 128)
        for row, tokens in enumerate(input_ids.tolist()):
            past_key_values.rows[row] += "".join(map(chr, tokens))
            logits[row, -1, ord(self._next(past_key_values.rows[row]))] = 1
        return SimpleNamespace(logits=logits)

    def _next(self, text: str) -> str:
        for question, answer in self.said.items():
            _, found, after = text.rpartition(question)
            if found and answer.startswith(after) and after != answer:
                return answer[len(after)]
        return "?"


FACTS = [Fact("a b", "12345"), Fact("c d", "67890"), Fact("long name", "11111"), Fact("e f", "22222")]


def test_only_a_whole_number_is_right() -> None:
    answers = (" 12345\n", " 67891\n", " 11111\n", " 2222\n")
    said = {fact.question: answer for fact, answer in zip(FACTS, answers, strict=True)}
    cache = Memory("the context")
    assert recall_facts(Oracle(said), Letters(), cache, FACTS) == [True, False, True, False]
    assert cache.rows == ["the context"]


def test_what_is_wrong_from_the_start_is_not_decoded_on() -> None:
    oracle = Oracle({FACTS[0].question: " 9"})
    assert recall_facts(oracle, Letters(), Memory("x"), FACTS[:1]) == [False]
    assert oracle.calls <= len(FACTS[0].question) + 1


def test_asking_changes_neither_cache_nor_plan() -> None:
    model, tokenizer = load_embedded()
    cache = SqueezeCache(model, 20, "streaming_llm")
    logits = read(model, cache, tokenizer("# remember a b: 12345\n" * 12).input_ids)
    plan, lengths, kept = cache.plan, cache.lengths(), cache.kept_positions(0)
    first = recall_facts(model, tokenizer, cache, FACTS)
    assert (cache.plan, cache.lengths()) == (plan, lengths)
    assert torch.equal(cache.kept_positions(0), kept)
    assert recall_facts(model, tokenizer, cache, FACTS) == first
    assert len(greedy(model, cache, logits, 3)[0]) == 3


def test_questions_together_are_answered_as_each_alone() -> None:
    model, tokenizer = load_embedded()
    for policy in ("streaming_llm", "h2o"):
        cache = SqueezeCache(model, 0.4, policy)
        read(model, cache, tokenizer("".join(fact.statement for fact in FACTS) * 3).input_ids)
        together = recall_facts(model, tokenizer, cache, FACTS)
        assert together == [recall_facts(model, tokenizer, cache, [fact])[0] for fact in FACTS]


def test_wilson_interval() -> None:
    assert wilson_interval(50, 100) == pytest.approx((0.4038, 0.5962), abs=1e-4)
    assert wilson_interval(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert wilson_interval(10, 10) == pytest.approx((0.7225, 1.0), abs=1e-4)
    assert wilson_interval(0, 0) == (0.0, 1.0)
    assert score([True, False]).share == 0.5
    assert score([]).share == 0.0


def test_sign_test() -> None:
    assert sign_test([True] * 6, [False] * 6) == pytest.approx(2 / 64)
    assert sign_test([True, False], [False, True]) == 1.0
    assert sign_test([True] * 9, [True] * 9) == 1.0
