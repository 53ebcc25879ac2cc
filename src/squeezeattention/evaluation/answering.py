"""Answers to the questions about a context: greedy, each from a copy of what the cache holds."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

from ..device import synchronize
from ..tasks.driving import forward, repeated
from .holding import Holding, holding_of


@dataclass
class Answers:
    """What was said, in the order of the questions, and what saying it took."""

    texts: list[str] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    """Tokens of each answer, without the end token."""
    end: Holding = field(default_factory=Holding)
    """What one sequence held at the end of its answer, the largest of all."""
    seconds: float = 0.0
    """Of questions and answers."""

    def extend(self, more: Answers) -> None:
        """Add the answers to further questions."""
        self.texts += more.texts
        self.lengths += more.lengths
        self.end = max(self.end, more.end)
        self.seconds += more.seconds


class Asked(NamedTuple):
    """What is fed after a prompt, at least one token, and how many tokens may answer it."""

    tokens: list[int]
    max_new_tokens: int

    @property
    def steps(self) -> int:
        """The most that it takes: the last token of an answer is not fed."""
        return len(self.tokens) + self.max_new_tokens - 1


def ask(model: Any, tokenizer: Any, cache: Any, asked: Sequence[Asked], rows: int) -> Answers:
    """Ask everything after what ``cache`` (one row, left as it is) holds, at most ``rows`` questions at once.

    Questions are fed token by token, as decode steps: they change no plan and lift no budget. In a batch the shorter
    ones are answered sooner.
    """
    synchronize(model.device)
    began = time.perf_counter()
    said: dict[int, list[int]] = {}
    end = Holding()
    order = sorted(range(len(asked)), key=lambda index: asked[index].steps)  # rows of a batch end at about one time
    for start in range(0, len(order), rows):
        indices = order[start : start + rows]
        twin = repeated(cache, len(indices))
        said.update(zip(indices, _converse(model, twin, [asked[index] for index in indices]), strict=True))
        end = max(end, holding_of(twin, len(indices)))
    synchronize(model.device)
    answers = [said[index] for index in range(len(asked))]
    texts = [tokenizer.decode(tokens, skip_special_tokens=True) for tokens in answers]
    return Answers(texts, list(map(len, answers)), end, time.perf_counter() - began)


def _converse(model: Any, cache: Any, asked: Sequence[Asked]) -> list[list[int]]:
    """Greedy tokens after each row's question, up to its limit or the model's end token, which is left out."""
    ends = end_tokens(model)
    said: list[list[int]] = [[] for _ in asked]
    fed = [one.tokens[0] for one in asked]
    for step in range(max(one.steps for one in asked)):
        logits = forward(model, cache, torch.tensor(fed, device=model.device)[:, None])
        found: list[int] = logits.argmax(-1).tolist()
        for row, one in enumerate(asked):
            if step + 1 < len(one.tokens):
                fed[row] = one.tokens[step + 1]
            else:
                fed[row] = found[row]
                said[row].append(found[row])
        if all(_is_over(own, one, ends) for own, one in zip(said, asked, strict=True)):
            break
    return [_until(own[: one.max_new_tokens], ends) for own, one in zip(said, asked, strict=True)]


def _is_over(said: list[int], asked: Asked, ends: set[int]) -> bool:
    return len(said) >= asked.max_new_tokens or not ends.isdisjoint(said)


def _until(tokens: list[int], ends: set[int]) -> list[int]:
    return tokens[: next((place for place, token in enumerate(tokens) if token in ends), len(tokens))]


def end_tokens(model: Any) -> set[int]:
    """The tokens that end a text, by the model's generation config or else its config; may be none."""
    for config in (getattr(model, "generation_config", None), model.config.get_text_config()):
        found = getattr(config, "eos_token_id", None)
        if found is not None:
            return set(found) if isinstance(found, list | tuple) else {int(found)}
    return set()
