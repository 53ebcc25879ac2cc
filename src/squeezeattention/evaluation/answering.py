"""Answers to the questions about a context: greedy, each from a copy of what the cache holds."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

from ..tasks.driving import batches_of_one_length, greedy, repeated, step_by_step
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


def ask(model: Any, tokenizer: Any, cache: Any, asked: Sequence[Asked], rows: int) -> Answers:
    """Ask everything after what ``cache`` (one row, left as it is) holds.

    Questions are fed token by token, as decode steps: they change no plan and lift no budget. Those of one
    length are asked together, at most ``rows`` at once.
    """
    synchronize(model.device)
    began = time.perf_counter()
    said: dict[int, list[int]] = {}
    end = Holding()
    for indices in batches_of_one_length([question.tokens for question in asked], rows):
        twin = repeated(cache, len(indices))
        last = step_by_step(model, twin, torch.tensor([asked[i].tokens for i in indices], device=model.device))
        found = _decode(model, twin, last, [asked[i].max_new_tokens for i in indices])
        said.update(zip(indices, found, strict=True))
        end = max(end, holding_of(twin, len(indices)))
    synchronize(model.device)
    answers = [said[index] for index in range(len(asked))]
    texts = [tokenizer.decode(tokens, skip_special_tokens=True) for tokens in answers]
    return Answers(texts, list(map(len, answers)), end, time.perf_counter() - began)


def _decode(model: Any, cache: Any, logits: torch.Tensor, limits: Sequence[int]) -> list[list[int]]:
    """Greedy tokens of each row, up to its limit or the model's end token, which is left out."""
    ends = end_tokens(model)

    def finished(rows: list[list[int]]) -> bool:
        return all(len(row) >= limit or not ends.isdisjoint(row) for row, limit in zip(rows, limits, strict=True))

    rows = greedy(model, cache, logits, max(limits), stop=finished)
    return [_until(row[:limit], ends) for row, limit in zip(rows, limits, strict=True)]


def _until(tokens: list[int], ends: set[int]) -> list[int]:
    return tokens[: next((place for place, token in enumerate(tokens) if token in ends), len(tokens))]


def end_tokens(model: Any) -> set[int]:
    """The tokens that end a text, by the model's generation config or else its config; may be none."""
    for config in (getattr(model, "generation_config", None), model.config.get_text_config()):
        found = getattr(config, "eos_token_id", None)
        if found is not None:
            return set(found) if isinstance(found, list | tuple) else {int(found)}
    return set()


def synchronize(device: torch.device) -> None:
    """Wait for a GPU, so that a clock read next tells the truth."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
