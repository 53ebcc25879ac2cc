"""Long-range recall: facts scattered through real source code, asked for at the end.

A fact is a comment line, ``# remember amber falcon 48213``; a question repeats its head with the verb
changed, ``# recall amber falcon``, and the answer is the number. Names come from fixed word lists and
are split by a hash into training and held-out pairs; numbers are drawn at random, so that nothing can be
known without reading the context.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

from .base import Question
from .corpus import require_modules
from .generated import Draft, GeneratedTask

ADJECTIVES = (
    "amber", "azure", "bold", "brave", "bright", "calm", "clever", "cold", "coral", "crimson", "dark", "deep",
    "dusty", "eager", "early", "fancy", "fast", "gentle", "golden", "grand", "green", "happy", "hidden", "humble",
    "icy", "jolly", "keen", "late", "light", "little", "lucky", "mellow", "misty", "noble", "old", "pale",
    "proud", "quick", "quiet", "rapid", "red", "royal", "rusty", "shy", "silent", "silver", "tall", "young",
)  # fmt: skip
NOUNS = (
    "anchor", "arrow", "badger", "beacon", "bridge", "candle", "canyon", "castle", "comet", "crane", "desert", "dragon",
    "eagle", "ember", "falcon", "fern", "forest", "garden", "glacier", "harbor", "hawk", "island", "jungle", "kettle",
    "lantern", "lion", "maple", "meadow", "mirror", "moon", "mountain", "ocean", "orchid", "otter", "panda", "pebble",
    "planet", "raven", "river", "rocket", "saddle", "spider", "temple", "tiger", "tower", "valley", "willow", "wolf",
)  # fmt: skip
DIGITS = 5


def is_held_out_name(name: str) -> bool:
    """Whether a name is kept out of training (one in four, by hash)."""
    return zlib.crc32(name.encode()) % 4 == 0


@dataclass(frozen=True)
class Fact:
    """A name and its number."""

    name: str
    value: str

    @property
    def statement(self) -> str:
        return f"# remember {self.name} {self.value}\n"

    @property
    def question(self) -> str:
        return f"# recall {self.name}"

    @property
    def answer(self) -> str:
        """What the model should go on with after :attr:`question`."""
        return f" {self.value}\n"


def draw_facts(rng: random.Random, count: int, *, held_out: bool) -> list[Fact]:
    """``count`` facts (at most 48) with different nouns and random five-digit numbers.

    The numbers begin with different digits as far as ten go: once the first digit is found, a small model may go
    on from it alone.
    """
    digits = "0123456789"
    firsts = rng.sample(digits, min(count, len(digits))) + rng.choices(digits, k=max(0, count - len(digits)))
    facts = []
    for noun, first in zip(rng.sample(NOUNS, count), firsts, strict=True):
        fitting = [f"{adjective} {noun}" for adjective in ADJECTIVES]
        name = rng.choice([name for name in fitting if is_held_out_name(name) == held_out])
        facts.append(Fact(name, first + "".join(rng.choices(digits, k=DIGITS - 1))))
    return facts


def scatter(rng: random.Random, lines: Sequence[str], facts: Sequence[Fact]) -> str:
    """Insert each fact as a line of its own at a random place between ``lines`` (which end in newlines)."""
    places = sorted(rng.randrange(len(lines) + 1) for _ in facts)
    text: list[str] = []
    start = 0
    for place, fact in zip(places, facts, strict=True):
        text += lines[start:place]
        text.append(fact.statement)
        start = place
    text += lines[start:]
    return "".join(text)


class Recall(GeneratedTask):
    """Facts in real source code, all of which are asked for: a fact for every 100 tokens, 1 to 16 of them.

    Units are characters of code: the end of a random place in a module, the module again where it is too short.
    """

    name = "recall"
    metric = "exact_recall"
    summary = "numbers of names, scattered in source code, many questions a context"

    def build(self, rng: random.Random, units: int, length: int) -> Draft:
        facts = draw_facts(rng, min(16, max(1, length // 100)), held_out=self.held_out)
        source, text = rng.choice(require_modules(held_out=self.held_out))
        code = _up_to(rng, text, units)
        context = scatter(rng, code.splitlines(keepends=True), facts)
        questions = tuple(Question(fact.question, (fact.value,), 0, fact.answer) for fact in facts)
        return Draft(context, questions, details={"source": source, "facts": {f.name: f.value for f in facts}})


def _up_to(rng: random.Random, text: str, size: int) -> str:
    """``size`` characters that end with a random line of ``text``; the text is repeated as often as that takes."""
    whole = text if text.endswith("\n") else f"{text}\n"
    piece = whole[: whole.index("\n", rng.randrange(len(whole))) + 1]
    while len(piece) < size:
        piece = whole + piece
    return piece[len(piece) - size :]
