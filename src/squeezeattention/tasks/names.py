"""Names that evaluation and training never share, drawn from the word lists.

A name belongs to one side by a hash (:func:`~squeezeattention.tasks.recall.is_held_out_name`: one in four is held
out), whatever task it turns up in. It is the name that is split, not the words in it: ``amber-falcon`` may be held out
while ``amber-wolf`` is trained on.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import cache

from ..errors import ConfigError
from .recall import is_held_out_name
from .words import ADJECTIVES, NOUNS, VERBS

#: Names that a text may have: few enough that drawing until one is new and on the right side ends soon.
MOST_NAMES = 20_000


@cache
def plain_words(*, held_out: bool) -> tuple[str, ...]:
    """Single words, sorted: about 400 held out, 1,200 for training."""
    return tuple(sorted(word for word in {*ADJECTIVES, *NOUNS, *VERBS} if is_held_out_name(word) == held_out))


@cache
def nouns(*, held_out: bool) -> tuple[str, ...]:
    """Single nouns, sorted: about 180 held out, 550 for training."""
    return tuple(noun for noun in NOUNS if is_held_out_name(noun) == held_out)


def draw_names(rng: random.Random, count: int, *, held_out: bool) -> list[str]:
    """``count`` different names such as ``amber-falcon``."""
    return _draw(
        count, lambda: f"{rng.choice(ADJECTIVES)} {rng.choice(NOUNS)}", held_out, lambda n: n.replace(" ", "-")
    )


def draw_words(rng: random.Random, count: int, *, held_out: bool) -> list[str]:
    """``count`` different single words; where those run out, the rest are names."""
    words = plain_words(held_out=held_out)
    drawn = rng.sample(words, min(count, len(words)))
    return drawn + draw_names(rng, count - len(drawn), held_out=held_out)


def draw_nouns(rng: random.Random, count: int, *, held_out: bool) -> list[str]:
    """``count`` different nouns, for the few things that a text is about."""
    known = nouns(held_out=held_out)
    if count > len(known):
        raise ConfigError(f"there are nouns for {len(known)} things, not for {count}")
    return rng.sample(known, count)


def draw_codes(rng: random.Random, count: int, letters: str, size: int, *, held_out: bool) -> list[str]:
    """``count`` different strings of ``size`` random ``letters``."""
    return _draw(count, lambda: "".join(rng.choices(letters, k=size)), held_out)


def _draw(
    count: int, one: Callable[[], str], held_out: bool, form: Callable[[str], str] = lambda name: name
) -> list[str]:
    if count > MOST_NAMES:
        raise ConfigError(f"a text has at most {MOST_NAMES:,} names, {count:,} are wanted; give a smaller length")
    found: dict[str, None] = {}
    while len(found) < count:
        name = one()
        if is_held_out_name(name) == held_out:
            found[form(name)] = None
    return list(found)
