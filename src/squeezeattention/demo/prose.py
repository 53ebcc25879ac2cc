"""Prose with facts in it: a chapter that was written for this demo, or one of the user's own."""

from __future__ import annotations

import random
import re
from collections import defaultdict
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

from ..errors import ConfigError, InputError
from .facts import Fact

CHAPTER = "chapter.txt"
NAMES = (
    "Adrian", "Agnes", "Albert", "Amelia", "Beatrice", "Bernard", "Caroline", "Cedric", "Charlotte", "Claudia",
    "Conrad", "Dorothy", "Edgar", "Edmund", "Eleanor", "Esther", "Felix", "Florence", "Gareth", "Gilbert", "Harriet",
    "Harvey", "Helena", "Horace", "Hugo", "Irene", "Jasper", "Josephine", "Judith", "Leonard", "Lucy", "Mabel",
    "Martha", "Matilda", "Maurice", "Miriam", "Mortimer", "Nadine", "Oscar", "Oswald", "Penelope", "Quentin",
    "Rosalind", "Rupert", "Sebastian", "Sylvia", "Theodore", "Ursula", "Victor", "Vincent", "Walter", "Winifred",
)  # fmt: skip
_THINGS = ("access code", "account number", "badge number", "locker number", "ticket number")
_DIGITS = 5
_LONGEST = 60  # words of a sentence; what has no full stops is cut
_SENTENCE = re.compile(r"\S.*?(?:[.!?][\"'”’)]*(?=\s|$)|\Z)\s*", re.DOTALL)
_WORD = re.compile(r"\S+\s*")


def sentences_of(text: Path | None) -> list[str]:
    """The sentences of a file (``None``: this package's chapter), each with the white space behind it; long ones cut.

    Raises :class:`InputError` for a file that cannot be read or has no text.
    """
    try:
        found = (files(__package__) / CHAPTER if text is None else text).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise InputError(f"cannot read the text {text}: {reason}") from error
    sentences = [_WORD.findall(sentence) for sentence in _SENTENCE.findall(found.strip() + "\n\n")]
    if not sentences:
        raise InputError(f"the text is empty: {text}")
    return ["".join(words[at : at + _LONGEST]) for words in sentences for at in range(0, len(words), _LONGEST)]


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
    thing, digits = rng.choice(_THINGS), "0123456789"
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
