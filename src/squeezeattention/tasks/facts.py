"""Facts in prose: what somebody's number, name, day or saying is, scattered as sentences in a text that goes on."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..errors import ConfigError
from .base import Question
from .generated import Draft, GeneratedTask, at_least
from .prose import NAMES, sentences_of, words_from

NUMBERS = ("access code", "account number", "badge number", "locker number", "ticket number")
_PEOPLE = ("doctor", "teacher", "neighbour", "landlord", "tailor", "lawyer")
_DAYS = ("wedding", "exam", "departure", "concert", "hearing", "operation")
_SAYINGS = ("motto", "password", "last line", "favourite saying")
_MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
    "December",
)  # fmt: skip
_SURNAMES = (
    "Ashby", "Barlow", "Carver", "Dunmore", "Ellison", "Farrow", "Granger", "Holloway", "Ingram", "Jarvis", "Kendrick",
    "Langley", "Marlowe", "Norwood", "Ormond", "Pemberton", "Radcliffe", "Sinclair", "Thornton", "Wakefield",
)  # fmt: skip
_BEASTS = ("heron", "badger", "falcon", "donkey", "beetle", "salmon", "weasel", "pigeon", "lizard", "rabbit")
_COLOURS = ("grey", "golden", "scarlet", "pale", "black", "violet", "silver", "brown")
_DOES = ("sleeps", "waits", "sings", "hides", "walks", "drinks", "listens")
_WHERE = ("behind the mill", "under the bridge", "near the chapel", "inside the barn", "beyond the orchard")


@dataclass(frozen=True)
class _Kind:
    things: tuple[str, ...]
    """What it may be about."""
    draw: Callable[[random.Random, str], str]
    """A value; numbers begin with the digit given, which goes round: once the first is found, a model may go on."""
    on: str = ""
    """What stands before the value."""


def draw_digits(rng: random.Random, first: str) -> str:
    """A number of five digits that begins with this one."""
    return first + "".join(rng.choices("0123456789", k=4))


def _name(rng: random.Random, first: str) -> str:
    return f"{rng.choice(NAMES)} {rng.choice(_SURNAMES)}"


def _day(rng: random.Random, first: str) -> str:
    return f"{rng.randint(1, 28)} {rng.choice(_MONTHS)} {rng.randint(1900, 1999)}"


def _saying(rng: random.Random, first: str) -> str:
    return f"the {rng.choice(_COLOURS)} {rng.choice(_BEASTS)} {rng.choice(_DOES)} {rng.choice(_WHERE)}"


KINDS = {
    "number": _Kind(NUMBERS, draw_digits),
    "name": _Kind(_PEOPLE, _name),
    "date": _Kind(_DAYS, _day, " on"),
    "saying": _Kind(_SAYINGS, _saying),
}


@dataclass(frozen=True)
class _Fact:
    owner: str
    value: str


class Facts(GeneratedTask):
    """Facts of one kind about different people, all of which are asked for: one for every 100 tokens, ``most`` at most.

    ``kind``: "number", "name", "date" or "saying" (a short sentence). ``together``: how many are wanted in one answer,
    in the order in which the question names them. The text is this package's chapter, or a file (``path``); it begins
    at any sentence and goes round where it is too short. Units are words of it.
    """

    name = "facts"
    metric = "exact_recall"
    summary = "numbers, names, dates or sayings of people, scattered in prose"

    def __init__(
        self, kind: str = "number", together: int = 1, most: int = 8, path: str | Path | None = None,
        held_out: bool = True,
    ) -> None:  # fmt: skip
        super().__init__(held_out)
        if kind not in KINDS:
            raise ConfigError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
        at_least(1, together=together, most=most)
        if max(most, together) > len(NAMES):
            raise ConfigError(f"most must be at most {len(NAMES)}, the number of names there are, got {most}")
        self.kind, self.together, self.most_facts = kind, together, max(most, together)
        self.sentences = sentences_of(None if path is None else Path(path))

    def least(self, length: int) -> int:
        return 20

    def build(self, rng: random.Random, units: int, length: int) -> Draft:
        count = max(self.together, min(self.most_facts, length // 100))
        kind = KINDS[self.kind]
        thing = rng.choice(kind.things)
        digits = rng.sample("0123456789", 10)
        owners = rng.sample(NAMES, count)
        facts = [_Fact(owner, kind.draw(rng, digits[index % 10])) for index, owner in enumerate(owners)]
        questions = tuple(self._question(thing, [*facts, *facts][at : at + self.together]) for at in range(count))
        text = words_from(self.sentences, rng.randrange(len(self.sentences)), units)
        places = sorted(int(rng.random() * (len(text) - 1)) + 1 for _ in facts)
        for place, fact in zip(reversed(places), reversed(facts), strict=True):
            text.insert(place, f"The {thing} of {fact.owner} is{kind.on} {fact.value}. ")
        return Draft(
            "".join(text).rstrip(), questions,
            details={"thing": thing, "facts": {fact.owner: fact.value for fact in facts}},
        )  # fmt: skip

    def _question(self, thing: str, facts: list[_Fact]) -> Question:
        owners, value = _listed([fact.owner for fact in facts]), _listed([fact.value for fact in facts])
        things, verb = (thing, "is") if len(facts) == 1 else (f"{thing}s", "are")
        ask = "On which day" if self.kind == "date" else "What"
        on = KINDS[self.kind].on
        text = f"\n\nQuestion: {ask} {verb} the {things} of {owners}?\nAnswer: The {things} of {owners} {verb}{on}"
        return Question(text, (value,), 0, f" {value}.")


def _listed(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
