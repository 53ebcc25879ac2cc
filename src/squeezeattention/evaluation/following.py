"""What is read of a sample, and what comes after it."""

from __future__ import annotations

from typing import Any, NamedTuple

from ..tasks.base import Sample
from .answering import Asked


class Continuation(NamedTuple):
    """Tokens to be foreseen, after the ``last`` one of the context."""

    last: int
    tokens: list[int]


class Following:
    """What is read, and what follows it: questions or a continuation.

    No token of an answer is predicted from a cache that was not cut yet: at least one token follows each prompt,
    the prompt's own last one if there is no other.
    """

    def __init__(self, tokenizer: Any, sample: Sample, context: list[int], *, visible: bool) -> None:
        def plain(text: str) -> list[int]:
            return list(tokenizer(text, add_special_tokens=False).input_ids)

        questions = [(plain(question.text), question.max_new_tokens) for question in sample.questions]
        self.prompts: list[tuple[list[int], list[Asked] | Continuation]]
        """Each with what comes after it: all questions after the context, or each after a prompt of its own."""
        if sample.continuation:
            following = plain(sample.continuation)
            self.prompts = [(context[:-1], Continuation(context[-1], following))]
            self.longest = 1 + len(following)
            return
        asked = []
        if visible:
            whole = [([*context, *tokens], room) for tokens, room in questions]
            asked = [Asked(tokens[-1:], room) for tokens, room in whole]
            self.prompts = [(tokens[:-1], [one]) for (tokens, _), one in zip(whole, asked, strict=True)]
        else:
            cut = len(context) if all(tokens for tokens, _ in questions) else len(context) - 1
            asked = [Asked([*context[cut:], *tokens], room) for tokens, room in questions]
            self.prompts = [(context[:cut], asked)]
        self.longest = max(1, *(len(one.tokens) + one.max_new_tokens for one in asked))
        """Tokens that may come after a prompt: no layer can use room for more."""
