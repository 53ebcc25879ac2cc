"""Several needles an answer, two more of RULER's tasks (Hsieh et al., COLM 2024, arXiv 2404.06654): a key with four
values, and four keys of which all are asked for. Their wording and haystack are those of niah_single_1.
"""

from __future__ import annotations

import random
from abc import abstractmethod
from typing import ClassVar

from .base import Question
from .generated import Draft, GeneratedTask, at_least
from .names import draw_names
from .niah import draw_number
from .noise import hide


class _NiahSeveral(GeneratedTask):
    metric = "string_match_all"
    new_tokens = 128
    option: ClassVar[str]

    def __init__(self, count: int, held_out: bool) -> None:
        super().__init__(held_out)
        at_least(2, **{self.option: count})
        self.count = count

    def least(self, length: int) -> int:
        return self.count  # sentences of filler

    def build(self, rng: random.Random, units: int, length: int) -> Draft:
        keys = self.keys(rng)
        values = [draw_number(rng) for _ in keys]
        needles = [
            f"One of the special magic numbers for {key} is: {value}." for key, value in zip(keys, values, strict=True)
        ]
        text, lines = hide(rng, needles, units)
        asked = _listed(list(dict.fromkeys(keys)))
        context = (
            "Some special magic numbers are hidden within the following text. Make sure to memorize them. "
            f"I will quiz you about the numbers afterwards.\n{text}\n"
        )
        question = (
            f"What are all the special magic numbers for {asked} mentioned in the provided text? "
            f"The special magic numbers for {asked} mentioned in the provided text are"
        )
        reply = f" {_listed(values)}.\n"
        return Draft(
            context, (Question(question, tuple(values), self.new_tokens, reply),),
            details={"keys": keys, "values": values, "lines": lines},
        )  # fmt: skip

    @abstractmethod
    def keys(self, rng: random.Random) -> list[str]:
        """The key of each needle."""


class NiahMultivalue(_NiahSeveral):
    """RULER niah_multivalue: one key has ``values`` numbers, and all of them are asked for."""

    name = "niah_multivalue"
    summary = "RULER: all numbers of one key, hidden in noise"
    option = "values"

    def __init__(self, values: int = 4, held_out: bool = True) -> None:
        super().__init__(values, held_out)

    def keys(self, rng: random.Random) -> list[str]:
        return draw_names(rng, 1, held_out=self.held_out) * self.count


class NiahMultiquery(_NiahSeveral):
    """RULER niah_multiquery: ``queries`` keys have a number each, and all of them are asked for."""

    name = "niah_multiquery"
    summary = "RULER: numbers of several keys, hidden in noise"
    option = "queries"

    def __init__(self, queries: int = 4, held_out: bool = True) -> None:
        super().__init__(queries, held_out)

    def keys(self, rng: random.Random) -> list[str]:
        return draw_names(rng, self.count, held_out=self.held_out)


def _listed(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])}, and {parts[-1]}"
