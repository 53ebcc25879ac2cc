"""RULER's common words extraction (Hsieh et al., COLM 2024, arXiv 2404.06654)."""

from __future__ import annotations

import random
from typing import NamedTuple

from .base import Question
from .generated import Draft, GeneratedTask
from .names import draw_words

#: What is asked; ``{n}`` words are wanted.
ASK = (
    "Question: What are the {n} most common words in the above list? "
    "Answer: The top {n} words that appear most often in the list are:"
)


class _Scale(NamedTuple):
    wanted: int
    """Common words, all of which are wanted."""
    common: int
    """Times each of them occurs."""
    uncommon: int
    """Times every other word occurs."""
    example: tuple[int, int, int] | None
    """The worked example: words in it, times of its common and of its other ones."""


# RULER's two scales, and a smaller one below 1,024 tokens, where the smaller of RULER's would leave no other words.
_SCALES = {
    4096: _Scale(10, 30, 3, (40, 10, 3)),
    1024: _Scale(10, 6, 1, (20, 3, 1)),
    0: _Scale(5, 4, 1, None),
}


class CommonWords(GeneratedTask):
    """RULER cwe: which words of a long shuffled list occur more often than the others.

    Ten words occur 30 times and the others 3 times (6 and 1 below 4,096 tokens, 5 words 4 and 1 times below 1,024); a
    worked example comes first, from 1,024 tokens on. A longer context has more words, not more of each.
    """

    name = "cwe"
    metric = "string_match_all"
    summary = "RULER: the most common words of a list"
    new_tokens = 120

    def least(self, length: int) -> int:
        return _scale(length).wanted + 1

    def build(self, rng: random.Random, units: int, length: int) -> Draft:
        scale = _scale(length)
        size, common, uncommon = scale.example or (0, 0, 0)
        words = draw_words(rng, size + units, held_out=self.held_out)
        example = ""
        if size:  # of words that do not occur after it
            context, question = self._problem(rng, words[:size], scale.wanted, common, uncommon)
            example = context + question.text + question.reply
        context, question = self._problem(rng, words[size:], scale.wanted, scale.common, scale.uncommon)
        details = {"words": units, "common": scale.common, "uncommon": scale.uncommon, "example": bool(example)}
        return Draft(example + context, (question,), details=details)

    def _problem(
        self, rng: random.Random, words: list[str], wanted: int, times: int, times_others: int
    ) -> tuple[str, Question]:
        common = words[:wanted]
        entries = common * times + words[wanted:] * times_others
        rng.shuffle(entries)
        context = (
            "Below is a numbered list of words. In these words, some appear more often than others. "
            f"Memorize the ones that appear most often.\n{_numbered(entries)}\n"
        )
        return context, Question(ASK.format(n=wanted), tuple(common), self.new_tokens, f" {_numbered(common)}\n")


def _scale(length: int) -> _Scale:
    return next(scale for start, scale in _SCALES.items() if length >= start)


def _numbered(words: list[str]) -> str:
    return " ".join(f"{number}. {word}" for number, word in enumerate(words, 1))
