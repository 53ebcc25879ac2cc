"""One piece of work: one sample with one way to hold the cache, measured and scored."""

from __future__ import annotations

import hashlib
import json
import time
from typing import Any

import torch

from ..device import out_of_memory
from ..errors import BudgetError, InputError, UnsupportedFeatureError, UnsupportedModelError
from ..tasks.base import Sample, Task
from .answering import Answers, Asked, ask
from .exercises import score_answer
from .grid import FULL, Settings, Unit
from .holding import Holding, holding_of
from .likelihood import token_losses, token_probability
from .reading import Reader

#: What a method may answer instead of working: this model, this prompt or this budget is not for it.
REFUSALS = (BudgetError, InputError, UnsupportedFeatureError, UnsupportedModelError)
_LONGEST_ERROR = 500  # characters


def measure(model: Any, tokenizer: Any, settings: Settings, task: Task, unit: Unit, sample: Sample) -> dict[str, Any]:
    """The row of a unit, as JSON values.

    Memory that runs out and :data:`REFUSALS` are part of the row, and the score is 0: a method that refuses has not
    answered. Any other error is a mistake in somebody's code or settings, no result, and is raised.
    """
    outcome: dict[str, Any] = {}
    error: dict[str, str] | None = None
    try:
        outcome = _outcome(model, tokenizer, settings, unit, sample)
    except Exception as failure:
        if not (isinstance(failure, REFUSALS) or out_of_memory(failure)):
            raise
        error = {"type": type(failure).__name__, "text": str(failure)[:_LONGEST_ERROR]}
    if error is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()  # here the failure, and what its frames held, is gone
    return {
        "id": unit.id,
        **unit.sample.to_dict(),
        "digest": digest(sample),
        "config": unit.config.to_dict(),
        "kind": "continuation" if sample.continuation else "questions",
        "details": dict(sample.details) if unit.config == FULL else None,
        "scores": _scores(task, sample, outcome),
        "error": error,
        **{name: outcome.get(name) for name in _FIELDS},
    }


_FIELDS = (
    "answers", "answer_tokens", "losses", "prompt_tokens", "bytes", "full_bytes", "index_bytes", "cut_bytes",
    "peak_bytes", "plans", "prefill_seconds", "decode_seconds",
)  # fmt: skip


def _scores(task: Task, sample: Sample, outcome: dict[str, Any]) -> list[float]:
    """One number for each question, or one for the continuation; zeros if there is no outcome."""
    if sample.continuation:
        return [token_probability(outcome["losses"]) if outcome else 0.0]
    if not outcome:
        return [0.0] * len(sample.questions)
    answers = zip(sample.questions, outcome["answers"], strict=True)
    return [score_answer(task, sample, question, answer) for question, answer in answers]


def _outcome(model: Any, tokenizer: Any, settings: Settings, unit: Unit, sample: Sample) -> dict[str, Any]:
    context: list[int] = list(tokenizer(sample.context, verbose=False).input_ids)
    follows = _Following(tokenizer, sample, context, visible=settings.question == "visible")
    reader = Reader(model, lambda: unit.config.make_cache(model, follows.longest), settings.chunk)
    if follows.continuation:
        found, end = _continue(model, reader, context, follows.continuation)
    else:
        answers = Answers()
        for prompt, asked in follows.prompts:
            answers.extend(ask(model, tokenizer, reader.read(prompt), asked, settings.rows))
        found, end = _said(answers), answers.end
    return {"prompt_tokens": len(context), **reader.to_dict(end), **found}


class _Following:
    """What is read, and what follows it: questions or a continuation.

    No token of an answer is predicted from a cache that was not cut yet: at least one token follows each prompt,
    the prompt's own last one if there is no other.
    """

    def __init__(self, tokenizer: Any, sample: Sample, context: list[int], *, visible: bool) -> None:
        def plain(text: str) -> list[int]:
            return list(tokenizer(text, add_special_tokens=False).input_ids)

        self.continuation = plain(sample.continuation or "")
        questions = [(plain(question.text), question.max_new_tokens) for question in sample.questions]
        self.prompts: list[tuple[list[int], list[Asked]]]
        """Each with what is asked after it: all questions after the context, or each after a prompt of its own."""
        if visible:
            whole = [([*context, *tokens], room) for tokens, room in questions]
            self.prompts = [(tokens[:-1], [Asked(tokens[-1:], room)]) for tokens, room in whole]
        else:
            cut = len(context) if all(tokens for tokens, _ in questions) else len(context) - 1
            asked = [Asked([*context[cut:], *tokens], room) for tokens, room in questions]
            self.prompts = [(context[:cut], asked)]
        rooms = [len(one.tokens) + one.max_new_tokens for _, asked in self.prompts for one in asked]
        self.longest = max(1 + len(self.continuation), *rooms, 0)
        """Tokens that may come after a prompt: no layer can use room for more."""


def _said(answers: Answers) -> dict[str, Any]:
    return {
        "answers": answers.texts,
        "answer_tokens": answers.lengths,
        "decode_seconds": round(answers.seconds, 4),
    }


def _continue(
    model: Any, reader: Reader, context: list[int], continuation: list[int]
) -> tuple[dict[str, Any], Holding]:
    cache = reader.read(context[:-1])
    began = time.perf_counter()
    losses = token_losses(model, cache, context[-1], continuation)
    seconds = round(time.perf_counter() - began, 4)
    return {"losses": [round(loss, 6) for loss in losses], "decode_seconds": seconds}, holding_of(cache)


def digest(sample: Sample) -> str:
    """Of everything the model reads and is scored against: equal digests are the same exercise."""
    questions = [[question.text, list(question.answers), question.max_new_tokens] for question in sample.questions]
    text = json.dumps([sample.context, sample.continuation or "", questions])
    return hashlib.sha256(text.encode()).hexdigest()[:16]
