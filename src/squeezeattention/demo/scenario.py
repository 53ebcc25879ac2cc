"""What the demo reads and asks, and what it compares."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..defaults import DEFAULT_ALLOCATOR, DEFAULT_POLICY
from ..errors import ConfigError
from ..tasks import corpus, recall
from ..tasks.prose import NAMES, sentences_of
from . import prose
from .facts import Fact

#: Kinds of text: prose for models that know language, and for the embedded model the source code that it was made for.
KINDS = ("prose", "code")


@dataclass(frozen=True)
class Settings:
    """A demo's size and what it compares."""

    kind: str = "prose"
    length: int = 1280
    """Tokens of each context, about."""
    contexts: int = 4
    facts: int = 8
    """Facts, and so questions, in each context."""
    budgets: tuple[float, ...] = (0.15, 0.3, 0.5)
    ways: tuple[tuple[str, str], ...] = (("h2o", "uniform"), ("h2o", "squeeze"), (DEFAULT_POLICY, DEFAULT_ALLOCATOR))
    """Policies and allocators: heavy hitters under equal budgets and under the published rule, and what is used where
    nothing is said. The last is what the picture shows."""
    p: float | None = None
    seed: int = 0
    text: Path | None = None
    """A file to read instead of this package's chapter."""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ConfigError(f"kind must be one of {', '.join(KINDS)}, got {self.kind!r}")
        if self.text is not None and self.kind != "prose":
            raise ConfigError("the embedded model knows source code only: a text of your own needs --model smollm2")
        for name, least in (("length", 64), ("contexts", 1), ("facts", 1)):
            value = getattr(self, name)
            if value < least:
                raise ConfigError(f"{name} must be at least {least}, got {value}")
        most = len(NAMES if self.kind == "prose" else recall.NOUNS)
        if self.facts > most:
            raise ConfigError(f"there are names for {most} facts, not for {self.facts}")


#: By kind of text; the small model is fast and takes more questions.
FULL = {"prose": Settings(), "code": Settings("code", length=1024, contexts=6, facts=10)}
QUICK = {
    "prose": Settings(length=768, contexts=2, facts=6),
    "code": Settings("code", length=512, contexts=2, facts=8),
}


@dataclass(frozen=True)
class Context:
    """A text with facts in it."""

    source: str
    tokens: list[int] = field(repr=False)
    facts: list[Fact]


def build_contexts(tokenizer: Any, settings: Settings, *, salt: str = "") -> list[Context]:
    """The contexts of a seed; another ``salt`` gives others.

    Prose begins anywhere in the chapter and goes round. Code is of held-out modules of the standard library.
    Raises :class:`InputError` if there is no text, :class:`ConfigError` if the facts do not fit into the length.
    """
    rng = random.Random(f"{settings.seed}{salt}")
    build = _prose if settings.kind == "prose" else _code
    return list(build(tokenizer, settings, rng))


def _prose(tokenizer: Any, settings: Settings, rng: random.Random) -> Iterator[Context]:
    sentences = sentences_of(settings.text)
    source = "the chapter in this package" if settings.text is None else str(settings.text)
    for _ in range(settings.contexts):
        facts = prose.draw_facts(rng, settings.facts, lambda text: _cost(tokenizer, text))
        room = _room(tokenizer, settings, facts)
        text = prose.scatter(rng, _fitting(tokenizer, _from_anywhere(rng, sentences), room), facts)
        yield Context(source, list(tokenizer(text).input_ids), facts)


def _code(tokenizer: Any, settings: Settings, rng: random.Random) -> Iterator[Context]:
    modules = corpus.require_modules(held_out=True)
    order = rng.sample(modules, len(modules))
    for index in range(settings.contexts):
        source, text = order[index % len(order)]
        drawn = recall.draw_facts(rng, settings.facts, held_out=True)
        facts = [Fact(one.name, one.value, one.statement, one.question, one.question) for one in drawn]
        room = _room(tokenizer, settings, facts)
        lines = _fitting(tokenizer, _from_anywhere(rng, text.splitlines(keepends=True)), room)
        yield Context(source, list(tokenizer(recall.scatter(rng, lines, drawn)).input_ids), facts)


def _cost(tokenizer: Any, text: str) -> int:
    return len(tokenizer(text, add_special_tokens=False).input_ids)


def _room(tokenizer: Any, settings: Settings, facts: list[Fact]) -> int:
    """Tokens that the facts leave for text."""
    room = settings.length - sum(_cost(tokenizer, fact.statement) for fact in facts)
    if room < settings.length // 4:
        raise ConfigError(
            f"{settings.facts} facts leave no room for text in {settings.length} tokens; give fewer facts or more "
            "tokens"
        )
    return room


def _fitting(tokenizer: Any, parts: Iterator[str], room: int) -> list[str]:
    """As many parts as ``room`` tokens hold, at least two."""
    taken: list[str] = []
    for part in parts:
        room -= _cost(tokenizer, part)
        if room < 0 and len(taken) > 1:
            return taken
        taken.append(part)
    return taken


def _from_anywhere(rng: random.Random, parts: list[str]) -> Iterator[str]:
    """Lines or sentences from a random place on, round and round (a short text is read more than once)."""
    start = rng.randrange(len(parts))
    while True:
        yield from parts[start:]
        start = 0
