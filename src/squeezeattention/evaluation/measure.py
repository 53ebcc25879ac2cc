"""One sample with several ways to hold the cache, measured and scored."""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from ..device import out_of_memory
from ..errors import BudgetError, InputError, UnsupportedFeatureError, UnsupportedModelError
from ..tasks.base import Sample, Task
from .answering import Answers, Asked, ask
from .chat_format import as_chat
from .config import Config, read_together
from .exercises import score_answer
from .following import Continuation, Following
from .grid import FULL, SampleKey, Settings, Unit
from .holding import holding_of
from .likelihood import token_losses, token_probability
from .reading import Measured, Reading

#: What a method may answer instead of working: this model, this prompt or this budget is not for it.
REFUSALS = (BudgetError, InputError, UnsupportedFeatureError, UnsupportedModelError)
_LONGEST_ERROR = 500  # characters


def measure(
    model: Any,
    tokenizer: Any,
    settings: Settings,
    task: Task,
    configs: Sequence[Config],
    key: SampleKey,
    sample: Sample,
    next_is: Callable[[Config], None] = lambda config: None,
) -> Iterator[dict[str, Any]]:
    """The row of each configuration, as JSON values, as soon as it is there; ``next_is`` is told what comes.

    Those that can do with one reading of the prompt share it. Memory that runs out and :data:`REFUSALS` are part of
    the row, and the score is 0: a method that refuses has not answered. Any other error is a mistake in somebody's
    code or settings, no result, and is raised.
    """
    if settings.chat:
        context, asked = as_chat(tokenizer, sample)
    else:
        context, asked = list(tokenizer(sample.context, verbose=False).input_ids), sample
    follows = Following(tokenizer, asked, context, visible=settings.question == "visible")
    for group in read_together(configs):
        for config, work in _work(model, tokenizer, settings, follows, group, next_is):
            outcome = {"prompt_tokens": len(context), **work.to_dict()} if work.error is None else {}
            yield {
                "id": Unit(key, config).id,
                **key.to_dict(),
                "digest": digest(sample),
                "config": config.to_dict(),
                "kind": "continuation" if sample.continuation else "questions",
                "details": dict(sample.details) if config == FULL else None,
                "scores": _scores(task, sample, outcome),
                "error": work.error,
                **{name: outcome.get(name) for name in _FIELDS},
            }


def _work(
    model: Any,
    tokenizer: Any,
    settings: Settings,
    follows: Following,
    group: Sequence[Config],
    next_is: Callable[[Config], None],
) -> Iterator[tuple[Config, _Work]]:
    """What came of each configuration of a group, which shares the reading of every prompt."""
    works = {config: _Work() for config in group}
    signals = list(dict.fromkeys(config.signal for config in group))
    for number, (prompt, then) in enumerate(follows.prompts, 1):
        next_is(group[0])
        reading: Reading | None = None
        going = [config for config in group if works[config].error is None]
        with contextlib.ExitStack() as stack:
            with _noting([works[config] for config in going]):
                reading = Reading(model, prompt, going, follows.longest, settings.chunk) if going else None
            if reading is not None:
                stack.callback(reading.close)
            elif number == 1 and len(signals) > 1:  # a signal may be to blame: each by itself
                for signal in signals:
                    own = [config for config in group if config.signal == signal]
                    yield from _work(model, tokenizer, settings, follows, own, next_is)
                return
            for config in group:
                work = works[config]
                if reading is not None and work.error is None:
                    if config != group[0]:
                        next_is(config)
                    with _noting([work]):
                        work.go_on(model, tokenizer, *reading.cut(config), then, settings.rows)
                if number == len(follows.prompts):
                    yield config, work


@contextlib.contextmanager
def _noting(works: Sequence[_Work]) -> Iterator[None]:
    """What may go wrong in here is noted of all of these; the rest is raised."""
    try:
        yield
    except Exception as failure:
        if not (isinstance(failure, REFUSALS) or out_of_memory(failure)):
            raise
        for work in works:
            work.error = {"type": type(failure).__name__, "text": str(failure)[:_LONGEST_ERROR]}
    else:
        return
    if torch.cuda.is_available():
        torch.cuda.empty_cache()  # here the failure, and what its frames held, is gone


@dataclass
class _Work:
    """One configuration and one sample."""

    measured: Measured = field(default_factory=Measured)
    answers: Answers = field(default_factory=Answers)
    losses: list[float] | None = None
    error: dict[str, str] | None = None

    def go_on(
        self,
        model: Any,
        tokenizer: Any,
        cache: Any,
        seconds: float,
        follows: list[Asked] | Continuation,
        rows: int,
    ) -> None:
        """Questions or a continuation after a prompt that was read and cut."""
        self.measured.see(cache, seconds)
        if isinstance(follows, Continuation):
            began = time.perf_counter()
            losses = token_losses(model, cache, follows.last, follows.tokens)
            self.losses = [round(loss, 6) for loss in losses]
            self.answers.extend(Answers(end=holding_of(cache), seconds=time.perf_counter() - began))
        else:
            self.answers.extend(ask(model, tokenizer, cache, follows, rows))

    def to_dict(self) -> dict[str, Any]:
        answers = self.answers
        said = {"answers": answers.texts, "answer_tokens": answers.lengths} if self.losses is None else {}
        return {
            **self.measured.to_dict(answers.end),
            **said,
            "losses": self.losses,
            "decode_seconds": round(answers.seconds, 4),
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


def digest(sample: Sample) -> str:
    """Of everything the model reads and is scored against: equal digests are the same exercise."""
    questions = [[question.text, list(question.answers), question.max_new_tokens] for question in sample.questions]
    text = json.dumps([sample.context, sample.continuation or "", questions])
    return hashlib.sha256(text.encode()).hexdigest()[:16]
