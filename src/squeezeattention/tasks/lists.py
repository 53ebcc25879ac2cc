"""Long decodes whose every line stands in the context: a list to repeat, a list to sort."""

from __future__ import annotations

import random

from .base import Question
from .generated import Draft, GeneratedTask
from .names import draw_names

_ASK_COPY = "Write the whole list again.\nList:\n"
_ASK_SORTED = """\
Write the numbers in ascending order and number the lines. For the numbers 58110, 20476 and 31902 this would be
1. 20476
2. 31902
3. 58110
The numbers above in ascending order:
"""


class Copy(GeneratedTask):
    """A numbered list of names, to be written again.

    What a line needs moves through the context while the model decodes: a cache that evicts by recency or by what was
    attended to so far has nothing to go by.
    """

    name = "copy"
    metric = "lines_in_order"
    summary = "long decode: a list to write again"

    def least(self, length: int) -> int:
        return 2

    def build(self, rng: random.Random, units: int, length: int) -> Draft:
        items = draw_names(rng, units, held_out=self.held_out)
        lines = [f"{number}. {item}" for number, item in enumerate(items, 1)]
        text = "\n".join(lines) + "\n"
        question = Question(_ASK_COPY, tuple(lines), 0, text)
        return Draft(f"Memorize this list.\n{text}", (question,), details={"items": units})


class Sort(GeneratedTask):
    """Different five-digit numbers in random order, to be written in ascending order and numbered.

    Each line needs the smallest number above the one before, so all of the context stays wanted to the end. Lines are
    numbered so that the list as it was given scores nothing (by chance one line is right).
    """

    name = "sort"
    metric = "lines_in_order"
    summary = "long decode: a list of numbers to sort"

    def least(self, length: int) -> int:
        return 2

    def most(self, length: int) -> int:
        return 90_000

    def build(self, rng: random.Random, units: int, length: int) -> Draft:
        numbers = rng.sample(range(10_000, 100_000), units)
        lines = [f"{place}. {number}" for place, number in enumerate(sorted(numbers), 1)]
        context = "".join(f"{number}\n" for number in numbers)
        question = Question(_ASK_SORTED, tuple(lines), 0, "\n".join(lines) + "\n")
        return Draft(f"These are numbers in random order.\n{context}", (question,), details={"items": units})
