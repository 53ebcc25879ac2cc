"""What a turn adds to a conversation that a cache has already read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .template import Turn, render


def followed(turns: Sequence[Turn], answer: str, message: str) -> list[Turn]:
    """The turns, the answer to them, and the user's next message."""
    return [*turns, {"role": "assistant", "content": answer}, {"role": "user", "content": message}]


def text_after(tokenizer: Any, turns: Sequence[Turn], answer: str, message: str) -> str | None:
    """What the template puts after ``answer`` (its end, and the user's next ``message``), up to where the next answer
    begins; ``turns`` are those before the answer.

    It is the difference of two renderings. White space that the template takes off an answer's ends does not count:
    what the model wrote stays in the cache as it is.

    ``None`` if the template writes the turns before in another way once more follow: a cache cannot take back what it
    has read. Templates that drop earlier reasoning do so, and those that move the system prompt to the newest message.
    """
    before = render(tokenizer, turns)
    after = render(tokenizer, followed(turns, answer, message))
    if after.startswith(before):
        rest, bare = after[len(before) :], answer.strip()
        if rest.startswith(answer):
            return rest[len(answer) :]
        if bare and rest.lstrip().startswith(bare):
            return rest.lstrip()[len(bare) :]
    return None
