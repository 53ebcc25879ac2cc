"""Scoring answers: exact recall of numbers, and what a difference between two scores is worth."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from .driving import batches_of_one_length, greedy, repeated, step_by_step
from .recall import Fact

_SPARE_TOKENS = 2  # room for a tokenizer that writes the answer differently when it generates it


class Score(NamedTuple):
    """Right answers of a number of questions, with a Wilson 95 % interval for the share."""

    right: int
    n: int
    low: float
    high: float

    @property
    def share(self) -> float:
        return self.right / self.n if self.n else 0.0


def score(answers: Sequence[bool]) -> Score:
    """Count right answers. The interval takes the questions as independent draws."""
    return Score(sum(answers), len(answers), *wilson_interval(sum(answers), len(answers)))


def wilson_interval(right: int, n: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's score interval of a share (95 % unless told); (0, 1) without any draw."""
    if n == 0:
        return 0.0, 1.0
    share = right / n
    middle = share + z * z / (2 * n)
    reach = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    return max(0.0, (middle - reach) / scale), min(1.0, (middle + reach) / scale)


def sign_test(first: Sequence[bool], second: Sequence[bool]) -> float:
    """Two-sided exact p-value for "equally good" on the same questions (McNemar's test)."""
    wins = sum(a and not b for a, b in zip(first, second, strict=True))
    losses = sum(b and not a for a, b in zip(first, second, strict=True))
    n = wins + losses
    tail = sum(math.comb(n, k) for k in range(min(wins, losses) + 1))
    return min(1.0, 2 * tail / 2**n)


def recall_facts(model: Any, tokenizer: Any, cache: Any, facts: Sequence[Fact]) -> list[bool]:
    """Ask for every fact after what ``cache`` holds: is the number that greedy decoding gives right, whole?

    ``cache`` (of one row, any transformers cache that can be copied) stays as it is. A question is fed token
    by token, so it neither changes a plan nor lifts a budget.
    """
    questions = [tokenizer(fact.question, add_special_tokens=False).input_ids for fact in facts]
    right = [False] * len(facts)
    for indices in batches_of_one_length(questions):
        ids = torch.tensor([questions[i] for i in indices], device=model.device)
        values = [facts[i].value for i in indices]
        found = _answers(model, tokenizer, repeated(cache, len(indices)), ids, values)
        for index, answer in zip(indices, found, strict=True):
            right[index] = answer
    return right


def _answers(model: Any, tokenizer: Any, cache: Any, questions: torch.Tensor, values: Sequence[str]) -> list[bool]:
    longest = max(len(tokenizer(f" {value}", add_special_tokens=False).input_ids) for value in values)

    def said(rows: list[list[int]]) -> list[str]:
        return [text.lstrip(" ") for text in tokenizer.batch_decode(rows)]

    def decided(rows: list[list[int]]) -> bool:
        texts = zip(said(rows), values, strict=True)
        return all(text.startswith(value) or not value.startswith(text) for text, value in texts)

    logits = step_by_step(model, cache, questions)
    rows = greedy(model, cache, logits, longest + _SPARE_TOKENS, stop=decided)
    return [text.startswith(value) for text, value in zip(said(rows), values, strict=True)]
