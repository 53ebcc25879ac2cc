"""A prompt and the place in it from which on the compressor sees nothing."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from ..errors import ConfigError

CONTEXT, INPUT = "{context}", "{input}"


class Asks(Enum):
    """Where the question begins."""

    AFTER_CONTEXT = "after the context"
    AFTER_INPUT = "after the input"  # the input is more of the context; only a cue follows
    IN_INPUT = "in the input"  # at the last occurrence of a marker: a passage comes first, then its question


@dataclass(frozen=True)
class Template:
    """A prompt with ``{context}`` and, after it, perhaps ``{input}``."""

    text: str
    asks: Asks = Asks.AFTER_CONTEXT
    marker: str = ""

    def __post_init__(self) -> None:
        before, found, after = self.text.partition(CONTEXT)
        if not found or CONTEXT in after or INPUT in before or after.count(INPUT) > 1:
            raise ConfigError(
                f"a prompt must have {CONTEXT} once and {INPUT} at most once, and after it; got {self.text!r}"
            )
        if self.asks is not Asks.AFTER_CONTEXT and INPUT not in after:
            raise ConfigError(f"this prompt must have {INPUT}; got {self.text!r}")

    def fill(self, context: str, question: str) -> tuple[str, str]:
        """The prompt of a row, as (what the compressor may see, what follows)."""
        before, _, rest = self.text.partition(CONTEXT)
        between, _, after = rest.partition(INPUT)
        if self.asks is Asks.AFTER_CONTEXT:
            return before + context, rest.replace(INPUT, question)
        if self.asks is Asks.AFTER_INPUT:
            return before + context + between + question, after
        passage, marker, asked = question.rpartition(self.marker)
        return before + context + between + passage, marker + asked + after
