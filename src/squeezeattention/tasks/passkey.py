"""Passkey retrieval (Mohtashami & Jaggi, NeurIPS 2023, arXiv 2305.16300)."""

from __future__ import annotations

import random

from .base import Question
from .generated import Draft, GeneratedTask
from .noise import hide


class Passkey(GeneratedTask):
    """One five-digit pass key, said twice in one line of noise, and asked for at the end."""

    name = "passkey"
    metric = "exact_recall"
    summary = "a five-digit key hidden in noise"

    def build(self, rng: random.Random, units: int, length: int) -> Draft:
        key = str(rng.randint(10_000, 99_999))
        text, (line,) = hide(rng, [f"The pass key is {key}. Remember it. {key} is the pass key."], units)
        context = (
            "There is an important piece of information hidden inside a lot of irrelevant text. Find it and memorize "
            f"it. I will quiz you about it.\n{text}\n"
        )
        question = Question("What is the pass key? The pass key is", (key,), 0, f" {key}.\n")
        return Draft(context, (question,), details={"line": line, "lines": text.count("\n") + 1})
