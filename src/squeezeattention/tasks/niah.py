"""Needles in a haystack, three of RULER's eight (Hsieh et al., COLM 2024, arXiv 2404.06654).

A needle gives a "special magic number" (or uuid) to a key; one key is asked for. Wording, kinds of keys and values, and
haystacks are RULER's; the words are our own, and no key occurs twice.
"""

from __future__ import annotations

import random
import uuid
from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from .base import Question
from .generated import Draft, GeneratedTask
from .names import draw_names
from .noise import hide


class _Niah(GeneratedTask):
    metric = "string_match_all"
    new_tokens = 128
    what: ClassVar[str] = "number"

    @abstractmethod
    def haystack(self, rng: random.Random, units: int) -> tuple[str, int, str, str]:
        """Text of ``units`` units, number of the needle's line in it, key and value."""

    def build(self, rng: random.Random, units: int, length: int) -> Draft:
        text, line, key, value = self.haystack(rng, units)
        context = (
            f"A special magic {self.what} is hidden within the following text. Make sure to memorize it. "
            f"I will quiz you about the {self.what} afterwards.\n{text}\n"
        )
        question = (
            f"What is the special magic {self.what} for {key} mentioned in the provided text? "
            f"The special magic {self.what} for {key} mentioned in the provided text is"
        )
        asked = Question(question, (value,), self.new_tokens, f" {value}.\n")
        return Draft(
            context, (asked,), details={"key": key, "value": value, "line": line, "lines": text.count("\n") + 1}
        )

    def needles(self, keys: Sequence[str], values: Sequence[str]) -> list[str]:
        return [
            f"One of the special magic {self.what}s for {key} is: {value}."
            for key, value in zip(keys, values, strict=True)
        ]


class NiahSingle1(_Niah):
    """RULER niah_single_1: one needle, a seven-digit number, among sentences that say nothing."""

    name = "niah_single_1"
    summary = "RULER: one number hidden in noise"

    def haystack(self, rng: random.Random, units: int) -> tuple[str, int, str, str]:
        keys, values = draw_names(rng, 1, held_out=self.held_out), [draw_number(rng)]
        text, numbers = hide(rng, self.needles(keys, values), units)
        return text, numbers[0], keys[0], values[0]


class _NeedlesOnly(_Niah):
    def least(self, length: int) -> int:
        return 2  # one alone could be told without its key

    def haystack(self, rng: random.Random, units: int) -> tuple[str, int, str, str]:
        asked = rng.random()  # drawn first, so that the needle asked for keeps its depth whatever the length
        keys, values = self.pairs(rng, units)
        line = int(asked * units)
        return "\n".join(self.needles(keys, values)), line, keys[line], values[line]

    @abstractmethod
    def pairs(self, rng: random.Random, count: int) -> tuple[list[str], list[str]]:
        """``count`` different keys and their values."""


class NiahMultikey2(_NeedlesOnly):
    """RULER niah_multikey_2: the haystack is other needles, keys are names and values numbers."""

    name = "niah_multikey_2"
    summary = "RULER: one number among other keys' numbers"

    def pairs(self, rng: random.Random, count: int) -> tuple[list[str], list[str]]:
        return draw_names(rng, count, held_out=self.held_out), [draw_number(rng) for _ in range(count)]


class NiahMultikey3(_NeedlesOnly):
    """RULER niah_multikey_3: the haystack is other needles, keys and values are random uuids."""

    name = "niah_multikey_3"
    summary = "RULER: one uuid among other uuids' uuids"
    what = "uuid"

    def pairs(self, rng: random.Random, count: int) -> tuple[list[str], list[str]]:
        return [random_uuid(rng) for _ in range(count)], [random_uuid(rng) for _ in range(count)]


def random_uuid(rng: random.Random) -> str:
    """A version 4 uuid drawn from ``rng``."""
    return str(uuid.UUID(int=rng.getrandbits(128), version=4))


def draw_number(rng: random.Random) -> str:
    """Seven digits."""
    return str(rng.randint(1_000_000, 9_999_999))
