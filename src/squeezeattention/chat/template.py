"""A tokenizer's chat template: turns as the text that an instruct model was trained on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..errors import ConfigError, InputError

#: A turn: its ``role`` ("system", "user" or "assistant") and its ``content``.
Turn = dict[str, str]


def has_template(tokenizer: Any) -> bool:
    """Whether the tokenizer has a chat template, as those of instruct models do."""
    return bool(getattr(tokenizer, "chat_template", None))


def check_template(tokenizer: Any, system: str | None, *, wanted: str, instead: str) -> None:
    """Raise what is wrong with turns for this tokenizer, before there are any.

    Raises :class:`ConfigError` where there is no template (what is ``wanted`` needs one; what to do ``instead``), and
    :class:`InputError` for a template that refuses a system prompt, or leaves it out.
    """
    if not has_template(tokenizer):
        raise ConfigError(
            f"{wanted} needs a tokenizer with a chat template, and this model's has none: it is no instruct model; "
            f"{instead}"
        )
    if system is not None and render(tokenizer, first_turns("x", system)) == render(tokenizer, first_turns("x", None)):
        raise InputError("the model's chat template leaves the system prompt out; put it into the message instead")


def first_turns(text: str, system: str | None) -> list[Turn]:
    """A conversation that begins: the system prompt, if there is one, and what the user says."""
    before = [] if system is None else [{"role": "system", "content": system}]
    return [*before, {"role": "user", "content": text}]


def render(tokenizer: Any, turns: Sequence[Turn]) -> str:
    """The turns as text, up to where the next answer begins.

    Raises :class:`InputError` if the template, which is a program that came with the model, refuses them.
    """
    try:
        text: str = tokenizer.apply_chat_template(list(turns), add_generation_prompt=True, tokenize=False)
    except Exception as error:
        raise InputError(f"the model's chat template refuses these turns: {' '.join(str(error).split())}") from error
    return text


def token_ids(tokenizer: Any, text: str) -> list[int]:
    """Tokens of rendered text, which has all special tokens that it needs: none is added."""
    return list(tokenizer(text, add_special_tokens=False, verbose=False).input_ids)
