"""Tasks built from equal units (sentences, records, operations): as many of them as fit into the length."""

from __future__ import annotations

import random
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, ClassVar

from ..errors import ConfigError
from .base import CountTokens, Question, Sample, Task

_CLOSE = 0.005  # share of the length that may stay empty to save a look
_SPARE = 4  # tokens beyond the reply, and an eighth of it: tokenizers write differently when they generate


@dataclass(frozen=True)
class Draft:
    """What a task builds from a number of units; tokens are not known yet."""

    context: str
    questions: tuple[Question, ...] = ()
    continuation: str | None = None
    details: Mapping[str, Any] = field(default_factory=dict)
    turns: tuple[tuple[str, str], ...] = ()

    def cost(self, count_tokens: CountTokens) -> int:
        """Tokens of the context and of the longest thing read after it."""
        after = [question.text for question in self.questions]
        if self.continuation is not None:
            after.append(self.continuation)
        return count_tokens(self.context) + max(map(count_tokens, after), default=0)


class GeneratedTask(Task):
    """A task that only has to say what ``units`` units of it look like.

    ``held_out`` chooses the part of all names (and modules) to draw from: evaluation uses the held-out one,
    training the other, so that no name of an evaluation was ever trained on. Random numbers belong to neither.
    """

    new_tokens: ClassVar[int] = 0
    """Tokens that the published task allows for an answer; more are given where a reply needs them."""

    def __init__(self, held_out: bool = True) -> None:
        self.held_out = held_out

    @abstractmethod
    def build(self, rng: random.Random, units: int, length: int) -> Draft:
        """The text with ``units`` units, drawn from ``rng`` alone; more units take more tokens, nearly always."""

    def least(self, length: int) -> int:
        """Units without which there is no task."""
        return 1

    def most(self, length: int) -> int | None:
        """Units there are, ``None`` = any number."""
        return None

    def sample(self, count_tokens: CountTokens, length: int, seed: int, index: int) -> Sample:
        count = cache(count_tokens)  # questions are often the same at every size

        def draft(units: int) -> Draft:
            return self.build(random.Random(f"{self.name}/{length}/{seed}/{index}"), units, length)

        def cost(units: int) -> int:
            return draft(units).cost(count)

        least = self.least(length)
        needed = cost(least)
        if needed < 1:
            raise ConfigError(f"task {self.name!r} has no tokens with this tokenizer")
        if needed > length:
            raise ConfigError(f"task {self.name!r} needs at least {needed} tokens with this tokenizer, got {length}")
        best = draft(largest(cost, needed, length, least, self.most(length)))
        questions = tuple(replace(q, max_new_tokens=_room(q, count)) for q in best.questions)
        return Sample(
            self.name, length, seed, index, best.context, questions, best.continuation, best.details, best.turns
        )


def _room(question: Question, count_tokens: CountTokens) -> int:
    reply = count_tokens(question.reply)
    return max(question.max_new_tokens, reply + reply // 8 + _SPARE)


def largest(cost: Callable[[int], int], needed: int, room: int, least: int, most: int | None = None) -> int:
    """The largest number of units, ``least`` to ``most``, that costs ``room`` or a little less; few calls of ``cost``.

    ``needed`` is the cost of ``least`` and fits. Cost should grow with the number; where it does not quite, the
    result still fits. Guesses go by the average cost of a unit; once one was too large, every other one halves
    what is left. Raises :class:`ConfigError` where text costs nothing.
    """
    low, used, halve = least, needed, False
    high: int | None = None  # the smallest number that was found not to fit
    rate, enough = max(1.0, needed / max(1, least)), _CLOSE * room
    while low != most and (high is None or high - low > 1) and room - used > enough:
        guess = low + max(1, int((room - used) / rate))
        if most is not None:
            guess = min(guess, most)
        if high is not None:
            guess = (low + high) // 2 if halve else min(guess, high - 1)
            halve = not halve
        spent = cost(guess)
        if spent <= needed and guess - least >= room:
            raise ConfigError(f"{guess - least} more units of text cost no token more with this tokenizer")
        rate = max(spent - needed, 1) / (guess - least)
        enough = max(rate, _CLOSE * room)  # less than an average unit is left
        if spent <= room:
            low, used = guess, spent
        else:
            high = guess
    return low


def at_least(least: int, **options: int) -> None:
    """Raises :class:`ConfigError` for an option that is no whole number of at least ``least``."""
    for name, value in options.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ConfigError(f"{name} must be a whole number of at least {least}, got {value!r}")
