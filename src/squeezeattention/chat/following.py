"""What a turn adds to a conversation that a cache has already read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..errors import UnsupportedFeatureError
from .template import Turn, render


def text_after(tokenizer: Any, turns: Sequence[Turn], answer: str, message: str) -> str:
    """What the template puts after ``answer`` (its end, and the user's next ``message``), up to where the next answer
    begins; ``turns`` are those before the answer.

    It is the difference of two renderings. White space that the template takes off an answer's ends does not count:
    what the model wrote stays in the cache as it is.

    Raises :class:`UnsupportedFeatureError` if the template writes the turns before in another way once more follow: a
    cache cannot take back what it has read. Templates that drop earlier reasoning do so, and those that move the system
    prompt to the newest message.
    """
    before = render(tokenizer, turns)
    answered = {"role": "assistant", "content": answer}
    after = render(tokenizer, [*turns, answered, {"role": "user", "content": message}])
    if after.startswith(before):
        rest, bare = after[len(before) :], answer.strip()
        if rest.startswith(answer):
            return rest[len(answer) :]
        if bare and rest.lstrip().startswith(bare):
            return rest.lstrip()[len(bare) :]
    raise UnsupportedFeatureError(
        "the model's chat template writes earlier turns anew when another follows (it drops reasoning, or moves the "
        "system prompt), and a cache cannot take back what it has read: begin anew with reset() for each question, or "
        "send text as it is (raw=True, --raw)"
    )
