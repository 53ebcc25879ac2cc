"""What the demo reads and asks, and what it compares."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from ..allocators import DEFAULT_ALLOCATOR
from ..errors import ConfigError, InputError
from ..tasks import corpus, recall


@dataclass(frozen=True)
class Settings:
    """A demo's size and what it compares."""

    length: int = 1024
    """Tokens of each context, about."""
    contexts: int = 6
    facts: int = 10
    """Facts, and so questions, in each context."""
    policies: tuple[str, ...] = ("sliding_window", "streaming_llm", "h2o")
    budgets: tuple[float, ...] = (0.15, 0.3, 0.5)
    allocators: tuple[str, ...] = ("uniform", "squeeze", DEFAULT_ALLOCATOR)
    """Ways to divide the cache among the layers; all are compared with the first."""
    p: float | None = None
    decode_tokens: int = 48
    """Tokens of the decode that is timed."""
    reference: bool = True
    """Whether to look for the one layer that recall needs and keep that whole."""
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("length", 64), ("contexts", 1), ("facts", 1), ("decode_tokens", 2)):
            value = getattr(self, name)
            if value < least:
                raise ConfigError(f"{name} must be at least {least}, got {value}")
        if self.facts > len(recall.NOUNS):
            raise ConfigError(f"there are names for {len(recall.NOUNS)} facts, not for {self.facts}")


FULL = Settings()
QUICK = Settings(length=512, contexts=2, facts=8, decode_tokens=24)


@dataclass(frozen=True)
class Context:
    """Source code with facts in it."""

    source: str
    """Path of the module, relative to the standard library."""
    tokens: list[int] = field(repr=False)
    facts: list[recall.Fact]


def build_contexts(tokenizer: Any, settings: Settings, *, salt: str = "") -> list[Context]:
    """The contexts of a seed, from held-out modules and held-out names; another ``salt`` gives others.

    Raises :class:`InputError` if the standard library has no sources, :class:`ConfigError` if the facts do
    not fit into ``settings.length``.
    """
    modules = corpus.modules(held_out=True)
    if not modules:
        raise InputError("this Python installation has no source files of its standard library to read")
    rng = random.Random(f"{settings.seed}{salt}")
    order = rng.sample(modules, len(modules))
    return [_build_context(tokenizer, settings, rng, *order[index % len(order)]) for index in range(settings.contexts)]


def _build_context(tokenizer: Any, settings: Settings, rng: random.Random, source: str, text: str) -> Context:
    def cost(part: str) -> int:
        return len(tokenizer(part, add_special_tokens=False).input_ids)

    facts = recall.draw_facts(rng, settings.facts, held_out=True)
    room = settings.length - sum(cost(fact.statement) for fact in facts)
    if room < settings.length // 4:
        raise ConfigError(
            f"{settings.facts} facts leave no room for text in {settings.length} tokens; give fewer facts "
            "or more tokens"
        )
    code = text.splitlines(keepends=True)
    lines: list[str] = []
    for line in _from_anywhere(rng, code):
        room -= cost(line)
        if room < 0:
            break
        lines.append(line)
    tokens = tokenizer(recall.scatter(rng, lines, facts)).input_ids
    return Context(source, list(tokens), facts)


def _from_anywhere(rng: random.Random, lines: list[str]) -> Iterator[str]:
    """Lines from a random place on, round and round (a short module is read more than once)."""
    start = rng.randrange(len(lines))
    while True:
        yield from lines[start:]
        start = 0
