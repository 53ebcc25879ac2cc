"""RULER's frequent words extraction (Hsieh et al., COLM 2024, arXiv 2404.06654)."""

from __future__ import annotations

import math
import random
import string

from .base import Question
from .generated import Draft, GeneratedTask
from .names import draw_codes

_ZETA_2 = math.pi**2 / 6
_WANTED = 3
ASK = (
    "Question: Do not provide any explanation. Please ignore the dots '....'. What are the three most "
    "frequently appeared words in the above coded text? Answer: According to the coded text above, "
    "the three most frequently appeared words are:"
)


class FrequentWords(GeneratedTask):
    """RULER fwe: the three most frequent words of a coded text whose frequencies fall off as a zeta distribution.

    Of N words the one of rank k occurs floor(N / (k² ζ(2))) times (alpha 2). Rank 1 is ``...``, which does not count;
    ranks 2 to 4 are wanted. The vocabulary is a word for every 50 tokens of the length.
    """

    name = "fwe"
    metric = "string_match_all"
    chance = 0.3
    summary = "RULER: the most frequent words of a coded text"
    new_tokens = 50

    def least(self, length: int) -> int:
        return 53  # from this N on ranks 2 to 5 occur differently often: here 8, 3, 2 and 1 times

    def build(self, rng: random.Random, units: int, length: int) -> Draft:
        size = max(_WANTED + 2, length // 50)
        counts = [int(units / (rank * rank * _ZETA_2)) for rank in range(1, size + 1)]
        codes = draw_codes(rng, size - 1, string.ascii_lowercase, 6, held_out=self.held_out)
        text = [word for word, times in zip(["...", *codes], counts, strict=True) for _ in range(times)]
        rng.shuffle(text)
        context = (
            "Read the following coded text and track the frequency of each coded word. "
            f"Find the three most frequently appeared coded words. {' '.join(text)}\n"
        )
        wanted = codes[:_WANTED]
        question = Question(ASK, tuple(wanted), self.new_tokens, f" {', '.join(wanted)}.\n")
        return Draft(context, (question,), details={"words": len(text), "counts": [c for c in counts if c]})
