"""A context and the replies that are known to follow it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..errors import ConfigError
from ..tasks.base import Sample


@dataclass(frozen=True)
class Case:
    """Token ids of a context, and of what may follow it: pairs of what is asked and what is replied."""

    context: list[int]
    exchanges: list[tuple[list[int], list[int]]]
    """At least one token is asked, so that no token of a reply is predicted from a cache that was not cut yet."""

    @property
    def longest(self) -> int:
        """Tokens that may come after the context."""
        return max(len(asked) + len(reply) for asked, reply in self.exchanges)


def case_of(sample: Sample, tokenizer: Any, *, questions: int = 4) -> Case:
    """The case of a sample: up to ``questions`` of its questions with their replies, or its continuation.

    Raises :class:`ConfigError` for a sample without a written reply.
    """

    def plain(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False, verbose=False).input_ids)

    context = list(tokenizer(sample.context, verbose=False).input_ids)
    if sample.continuation:
        return Case(context[:-1], [(context[-1:], plain(sample.continuation))])
    exchanges = [(plain(one.text), plain(one.reply)) for one in sample.questions[:questions] if one.reply]
    if not all(asked and reply for asked, reply in exchanges) or not exchanges:
        raise ConfigError(f"{sample.id} has no question with a written reply whose loss could be measured")
    return Case(context, exchanges)
