"""Samples as an instruct model was trained to read them: context and question are the user's turn, the answer is the
model's.

::

    <|user|> context  question?  <|end|> <|assistant|>  The badge number of Agnes is | 91620.
    |______________| |___________________________________________________________|
      read and cut                     asked: hidden from the cut, or part of it

Where the context is a conversation, its turns are read as turns, and the question is the user's next one.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ..chat.template import check_template, first_turns, render, token_ids
from ..errors import InputError
from ..tasks.base import Sample

#: Stands for the user's words in the template; letters that no template changes.
_WORDS = "QzWordsOfTheUserzQ"
#: How a question begins where speakers are written out, and how an answer does.
_USER, _BEGINS = "\n\nUser: ", "Answer:"


def check_chat(tokenizer: Any) -> None:
    """Raises :class:`~squeezeattention.errors.ConfigError` for a tokenizer without a chat template."""
    check_template(tokenizer, None, wanted="--chat", instead="leave --chat out")


def as_chat(tokenizer: Any, sample: Sample) -> tuple[list[int], Sample]:
    """Tokens of the context, and the sample with questions that end the user's turn and begin the answer.

    A text that goes on is no turn and stays as it is. Raises :class:`InputError` for a template that does not say the
    user's words once, as they are.
    """
    if sample.continuation:
        return list(tokenizer(sample.context, verbose=False).input_ids), sample
    earlier = [
        {"role": role, "content": words}
        for turn in sample.turns for role, words in zip(("user", "assistant"), turn, strict=True)
    ]  # fmt: skip
    before, said, after = render(tokenizer, [*earlier, *first_turns(_WORDS, None)]).partition(_WORDS)
    if not said or _WORDS in after:
        raise InputError("the model's chat template does not have the user's words once, as they are: leave --chat out")
    asked = []
    for question in sample.questions:
        user, begun = _split(question.text)
        asked.append(replace(question, text=f"{user}{after}{begun}"))
    context = before if sample.turns else before + sample.context
    return token_ids(tokenizer, context), replace(sample, questions=tuple(asked))


def _split(text: str) -> tuple[str, str]:
    """What the user says, up to the last question mark, and how the answer begins, if the text says that."""
    user, mark, begun = text.removeprefix(_USER).rpartition("?")
    if not mark:
        return text, ""
    return user + mark, begun.strip().removeprefix(_BEGINS).strip()
