"""Facts in prose for the demo to ask for."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable

from ..errors import ConfigError
from ..tasks.facts import NUMBERS
from ..tasks.prose import NAMES
from .facts import Fact

_DIGITS = 5


def draw_facts(rng: random.Random, count: int, tokens_of: Callable[[str], int]) -> list[Fact]:
    """``count`` facts about one thing, such as locker numbers, of different people.

    Their names take equally many tokens, so that all questions can be asked at once; their numbers are random and
    begin with different digits, as far as ten go.
    """
    by_length: dict[int, list[str]] = defaultdict(list)
    for name in NAMES:
        by_length[tokens_of(f" {name}")].append(name)
    names = max(by_length.values(), key=len)
    if count > len(names):
        raise ConfigError(f"there are names for {len(names)} facts, not for {count}")
    thing, digits = rng.choice(NUMBERS), "0123456789"
    firsts = rng.sample(digits, min(count, 10)) + rng.choices(digits, k=max(0, count - 10))
    facts = []
    for name, first in zip(rng.sample(names, count), firsts, strict=True):
        value = first + "".join(rng.choices(digits, k=_DIGITS - 1))
        head = f"The {thing} of {name} is"
        question = f"What is the {thing} of {name}?"
        facts.append(Fact(name, value, f"{head} {value}. ", question, f"\n\nQuestion: {question}\nAnswer: {head}"))
    return facts


def scatter(rng: random.Random, sentences: list[str], facts: list[Fact]) -> str:
    """Facts as sentences of their own at random places, none of which is the very beginning or end."""
    text = list(sentences)
    for fact in facts:
        text.insert(rng.randrange(1, len(text)), fact.statement)
    return "".join(text).rstrip()
