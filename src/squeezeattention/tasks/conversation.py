"""A conversation of several turns in which the last question needs what was said in one of them."""

from __future__ import annotations

import random
from pathlib import Path

from ..errors import ConfigError
from .base import Question
from .facts import NUMBERS, draw_digits
from .generated import Draft, GeneratedTask, at_least
from .prose import NAMES, sentences_of, words_from

_REPLIES = (
    "Thank you, I have read it.", "I have read this part.", "Noted. Please go on.", "I am following.",
    "All right, what comes next?", "Understood.", "Read it. Go on, please.", "Got it, thank you.",
)  # fmt: skip


class Conversation(GeneratedTask):
    """Somebody reads a book to the model, part by part, and says a number with each part; at the end one is asked for.

    ``turns``: parts, each with the number of another person, all of which are asked for; at most one for every 100
    tokens, and at least two. The book is this package's chapter, or a file (``path``). Units are words of it. In the
    model's chat format (``squeeze eval --chat``) each part is a turn of its own, with an answer; without, speakers are
    written out.
    """

    name = "conversation"
    metric = "exact_recall"
    summary = "a number that was said in an early turn of a conversation"

    def __init__(self, turns: int = 8, path: str | Path | None = None, held_out: bool = True) -> None:
        super().__init__(held_out)
        at_least(2, turns=turns)
        if turns > len(NAMES):
            raise ConfigError(f"turns must be at most {len(NAMES)}, the number of names there are, got {turns}")
        self.turns = turns
        self.sentences = sentences_of(None if path is None else Path(path))

    def least(self, length: int) -> int:
        return 4 * self._parts(length)

    def _parts(self, length: int) -> int:
        return max(2, min(self.turns, length // 100))

    def build(self, rng: random.Random, units: int, length: int) -> Draft:
        count = self._parts(length)
        thing = rng.choice(NUMBERS)
        owners = rng.sample(NAMES, count)
        firsts = rng.sample("0123456789", 10)
        numbers = [draw_digits(rng, firsts[index % 10]) for index in range(count)]
        start = rng.randrange(len(self.sentences))
        turns = []
        for index, (owner, number) in enumerate(zip(owners, numbers, strict=True)):
            words = units * (index + 1) // count - units * index // count
            part = words_from(self.sentences, start, words)
            start += len(part)
            said = f"The {thing} of {owner} is {number}. Here is part {index + 1}.\n\n{''.join(part).rstrip()}"
            turns.append((said, rng.choice(_REPLIES)))
        questions = tuple(
            Question(
                f"\n\nUser: What is the {thing} of {owner}?\nAnswer: The {thing} of {owner} is", (number,), 0,
                f" {number}.",
            )
            for owner, number in zip(owners, numbers, strict=True)
        )  # fmt: skip
        written = "\n\n".join(f"User: {said}\nAnswer: {reply}" for said, reply in turns)
        return Draft(
            written, questions, details={"thing": thing, "numbers": dict(zip(owners, numbers, strict=True))},
            turns=tuple(turns),
        )  # fmt: skip
