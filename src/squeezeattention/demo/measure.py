"""The demo's measurements: each context is read, cut in every way that is compared, and asked about."""

from __future__ import annotations

import contextlib
import re
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import DynamicCache

from .. import BudgetPlan, SqueezeCache
from ..allocators import takes
from ..device import synchronize
from ..evaluation.config import Config, budget_text, read_together
from ..evaluation.reading import Reading
from ..evaluation.spec import Spec
from ..tasks.driving import batches_of_one_length, forward, read, repeated
from ..tasks.scoring import Score, score
from .facts import Fact
from .scenario import Context, Settings, build_contexts

_SPARE_TOKENS = 1  # where a number that is too long shows


@dataclass
class Measured:
    """One way to cut the cache, on all contexts."""

    label: str
    """What chose the tokens and divided the cache: policy and allocator, or "full cache"."""
    budget: float
    said: list[list[str]] = field(default_factory=list)
    """What was answered, by context and question."""
    answers: list[bool] = field(default_factory=list)
    """Whether that was right, for all questions in a row."""
    bytes: list[int] = field(default_factory=list)
    """Keys and values held after each context was cut."""
    plans: list[BudgetPlan] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    """To read each context, and to plan and cut it."""
    steps: list[float] = field(default_factory=list)
    """Seconds of each decode step, by token of one sequence: the answers of a context are given at once."""

    @property
    def score(self) -> Score:
        return score(self.answers)

    @property
    def mean_bytes(self) -> float:
        return statistics.fmean(self.bytes)

    @property
    def mean_seconds(self) -> float:
        return statistics.fmean(self.seconds)

    @property
    def tokens_per_s(self) -> float:
        return 1 / statistics.median(self.steps)


@dataclass
class Result:
    """Everything a demo measured."""

    settings: Settings
    contexts: list[Context]
    full: Measured
    rows: list[Measured]
    seconds: float = 0.0


#: Told before each piece of work: how many pieces there are in all, and what comes next.
Progress = Callable[[int, str], None]


def run(model: Any, tokenizer: Any, settings: Settings, progress: Progress = lambda total, what: None) -> Result:
    """Measure the full cache and every configuration of ``settings`` on the same questions."""
    began = time.perf_counter()
    contexts = build_contexts(tokenizer, settings)
    full = Measured("full cache", 1.0)
    rows = {config: Measured(_label(config), float(config.budget or 1)) for config in _configs(settings)}
    together = read_together(list(rows))
    total = len(contexts) * (1 + len(together) + len(rows))
    for context in contexts:  # before any SqueezeCache is on the model
        progress(total, "full cache")
        _measure_full(model, tokenizer, full, context)
    for number, context in enumerate(contexts, 1):
        to_come = max(map(len, _tokens(tokenizer, [f"{fact.prompt} {fact.value}" for fact in context.facts])))
        for group in together:
            progress(total, f"reading text {number}")
            with contextlib.closing(Reading(model, context.tokens, group, to_come + _SPARE_TOKENS, None)) as reading:
                for config in group:
                    progress(total, f"text {number}: {_label(config)}, {float(config.budget or 1):.0%}")
                    _measure(model, tokenizer, rows[config], context, *reading.cut(config))
    return Result(settings, contexts, full, list(rows.values()), time.perf_counter() - began)


def _configs(settings: Settings) -> list[Config]:
    """Each way to cut at each budget, all budgets of a way in a row."""
    found = []
    for policy, name in settings.ways:
        options = (("p", settings.p),) if settings.p is not None and takes(name, "p") else ()
        allocator = Spec(name, options)
        found += [Config(Spec(policy), allocator, budget_text(budget)) for budget in settings.budgets]
    return found


def _label(config: Config) -> str:
    """``policy/allocator``."""
    names = [spec.name for spec in (config.policy, config.allocator) if spec is not None]
    return "/".join(names)


def _measure_full(model: Any, tokenizer: Any, row: Measured, context: Context) -> None:
    cache = DynamicCache(config=model.config)
    began = time.perf_counter()
    read(model, cache, context.tokens)
    row.seconds.append(time.perf_counter() - began)
    row.bytes.append(sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers))
    ask(model, tokenizer, row, context, cache)


def _measure(model: Any, tokenizer: Any, row: Measured, context: Context, cache: SqueezeCache, seconds: float) -> None:
    row.seconds.append(seconds)
    row.bytes.append(cache.memory().bytes)
    (plan,) = cache.plans
    row.plans.append(plan)
    ask(model, tokenizer, row, context, cache.twin(allocator=plan))  # a question is a turn under the same plan


def ask(model: Any, tokenizer: Any, row: Measured, context: Context, cache: Any) -> None:
    prompts = _tokens(tokenizer, [fact.prompt for fact in context.facts])
    said = [""] * len(prompts)
    for indices in batches_of_one_length(prompts):
        ids = torch.tensor([prompts[index] for index in indices], device=model.device)
        longest = max(map(len, _tokens(tokenizer, [f" {context.facts[index].value}" for index in indices])))
        tokens, seconds = _answer(model, repeated(cache, len(indices)), ids, longest + _SPARE_TOKENS)
        row.steps += [second / len(indices) for second in seconds]
        for index, text in zip(indices, tokenizer.batch_decode(tokens), strict=True):
            said[index] = text.strip()
    row.said.append(said)
    row.answers += [is_right(fact, text) for fact, text in zip(context.facts, said, strict=True)]


def _tokens(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    return [tokenizer(text, add_special_tokens=False).input_ids for text in texts]


def _answer(model: Any, cache: Any, prompts: torch.Tensor, count: int) -> tuple[list[list[int]], list[float]]:
    """``count`` greedy tokens after each prompt, and the seconds that each step took."""
    logits = forward(model, cache, prompts)
    if isinstance(cache, SqueezeCache):
        cache.compact()  # the question's end, not a part of the first step
    rows, seconds = [], []
    for _ in range(count):
        tokens = logits.argmax(-1)[:, None]
        rows.append(tokens)
        if len(rows) < count:
            began = time.perf_counter()
            logits = forward(model, cache, tokens)
            synchronize(logits.device)
            seconds.append(time.perf_counter() - began)
    return torch.cat(rows, dim=1).tolist(), seconds


def is_right(fact: Fact, text: str) -> bool:
    """Whether an answer begins with the number, whole."""
    found = re.match(r"\s*(\d+)", text)
    return found is not None and found[1] == fact.value
