"""The demo's measurements: each context is read and cut once a configuration, then asked about."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import DynamicCache

from .. import BudgetPlan, SqueezeCache
from ..allocators import takes
from ..tasks.driving import forward, read
from ..tasks.scoring import Score, recall_facts, score
from .scenario import Context, Settings, build_contexts

REFERENCE = "one layer whole"
_REFERENCE_POLICY = "streaming_llm"
_TRIAL_CUT = 0.1  # share that the layer on trial keeps


@dataclass
class Measured:
    """One configuration on all contexts."""

    policy: str | None
    """``None`` = the full cache."""
    budget: float
    label: str
    """How the cache was divided: an allocator, :data:`REFERENCE`, or the full cache."""
    answers: list[bool] = field(default_factory=list)
    bytes: list[int] = field(default_factory=list)
    """Keys and values held after each context was cut."""
    peak_bytes: list[int] = field(default_factory=list)
    plans: list[BudgetPlan] = field(default_factory=list)
    tokens_per_s: float = 0.0
    """1 / the median decode step after the first context."""

    @property
    def score(self) -> Score:
        return score(self.answers)

    @property
    def mean_bytes(self) -> float:
        return statistics.fmean(self.bytes)

    @property
    def mean_peak_bytes(self) -> float:
        return statistics.fmean(self.peak_bytes)


@dataclass
class Result:
    """Everything a demo measured."""

    settings: Settings
    contexts: list[Context]
    full: Measured
    rows: list[Measured]
    whole_layer: int | None = None
    """The layer that the reference keeps whole."""
    seconds: float = 0.0


#: Told before each piece of work: how many pieces there are in all, and what comes next.
Progress = Callable[[int, str], None]


def run(model: Any, tokenizer: Any, settings: Settings, progress: Progress = lambda total, what: None) -> Result:
    """Measure the full cache and every configuration of ``settings`` on the same questions."""
    began = time.perf_counter()
    contexts = build_contexts(tokenizer, settings)
    plain = [(p, b, a) for p in settings.policies for b in settings.budgets for a in settings.allocators]
    has_reference = settings.reference and _REFERENCE_POLICY in settings.policies
    trials = 1 + model.config.get_text_config().num_hidden_layers if has_reference else 0
    total = len(contexts) * (1 + len(plain)) + trials
    total += len(contexts) * len(settings.budgets) if has_reference else 0

    full = Measured(None, 1.0, "full cache")
    for context in contexts:  # before any SqueezeCache is on the model
        progress(total, "full cache")
        _measure_full(model, tokenizer, settings, full, context)
    result = Result(settings, contexts, full, rows=[])
    keep_attached = SqueezeCache(model, 1.0, "sliding_window", "uniform")
    for policy, budget, allocator in plain:
        row = Measured(policy, budget, allocator)
        for context in contexts:
            progress(total, f"{policy} {budget:.0%} {allocator}")
            cache = SqueezeCache(
                model, budget, policy, allocator, settings.p if takes(allocator, "p") else None,
                new_tokens=settings.decode_tokens, min_tokens=1,
            )  # fmt: skip
            _measure(model, tokenizer, settings, row, context, cache)
        result.rows.append(row)
    if has_reference:
        _measure_reference(model, tokenizer, result, lambda what: progress(total, what))
    keep_attached.detach()
    result.seconds = time.perf_counter() - began
    return result


def _measure_full(model: Any, tokenizer: Any, settings: Settings, row: Measured, context: Context) -> None:
    cache = DynamicCache(config=model.config)
    logits = read(model, cache, context.tokens)
    size = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    row.bytes.append(size)
    row.peak_bytes.append(size)
    _ask(model, tokenizer, settings, row, context, cache, logits)


def _measure(
    model: Any, tokenizer: Any, settings: Settings, row: Measured, context: Context, cache: SqueezeCache
) -> None:
    logits = read(model, cache, context.tokens)
    memory, plan = cache.memory(), cache.plan
    row.bytes.append(memory.bytes)
    row.peak_bytes.append(memory.peak_bytes)
    if plan is not None:
        row.plans.append(plan)
    _ask(model, tokenizer, settings, row, context, cache, logits)


def _ask(
    model: Any,
    tokenizer: Any,
    settings: Settings,
    row: Measured,
    context: Context,
    cache: Any,
    logits: torch.Tensor,
) -> None:
    is_first = not row.answers
    row.answers += recall_facts(model, tokenizer, cache, context.facts)
    if is_first:
        row.tokens_per_s = 1 / statistics.median(_decode_steps(model, cache, logits, settings.decode_tokens))


def _decode_steps(model: Any, cache: Any, logits: torch.Tensor, steps: int) -> Iterator[float]:
    """Seconds of each step of a greedy decode."""
    cache = copy.deepcopy(cache)
    for _ in range(steps):
        tokens = logits.argmax(-1)[:, None]
        began = time.perf_counter()
        logits = forward(model, cache, tokens)
        if logits.is_cuda:
            torch.cuda.synchronize()
        yield time.perf_counter() - began


# ------------------------------------------------------------------ reference


def _measure_reference(model: Any, tokenizer: Any, result: Result, progress: Callable[[str], None]) -> None:
    """The layer whose cut hurts recall most stays whole, the others share the rest.

    Chosen by answers, on a context of its own: what a perfect signal might find, no method.
    """
    settings = result.settings
    layer = _layer_that_recalls(model, tokenizer, settings, progress)
    if layer is None:
        return
    result.whole_layer = layer
    for budget in settings.budgets:
        row = Measured(_REFERENCE_POLICY, budget, REFERENCE)
        for context in result.contexts:
            progress(f"{_REFERENCE_POLICY} {budget:.0%} {REFERENCE}")
            budgets = _one_whole(len(context.tokens), budget, settings, row_layers(result), layer)
            if budgets is not None:
                cache = SqueezeCache(model, policy=_REFERENCE_POLICY, allocator=budgets)
                _measure(model, tokenizer, settings, row, context, cache)
        if len(row.bytes) == len(result.contexts):
            result.rows.append(row)


def row_layers(result: Result) -> int:
    """Number of layers of the model that was measured."""
    return result.rows[0].plans[0].n_layers


def _layer_that_recalls(model: Any, tokenizer: Any, settings: Settings, progress: Callable[[str], None]) -> int | None:
    """The layer that costs most right answers when only it is cut; ``None`` if no layer stands out."""
    context = build_contexts(tokenizer, settings, salt=" reference")[0]
    n_layers = model.config.get_text_config().num_hidden_layers
    whole = len(context.tokens) + settings.decode_tokens

    def right(cut: int | None) -> int:
        progress("looking for the layer that recalls")
        budgets = [whole] * n_layers
        if cut is not None:
            budgets[cut] = max(8, int(_TRIAL_CUT * whole))
        cache = SqueezeCache(model, policy=_REFERENCE_POLICY, allocator=budgets)
        read(model, cache, context.tokens)
        return sum(recall_facts(model, tokenizer, cache, context.facts))

    ceiling = right(None)
    scores = [right(layer) for layer in range(n_layers)]
    worst = min(scores)
    return scores.index(worst) if scores.count(worst) == 1 and worst < ceiling else None


def _one_whole(tokens: int, budget: float, settings: Settings, n_layers: int, layer: int) -> Sequence[int] | None:
    """``budget`` of the context in all, one layer whole; ``None`` if the others would get next to nothing."""
    total = n_layers * max(1, round(budget * tokens))
    whole = tokens + settings.decode_tokens
    rest, extra = divmod(total - whole, n_layers - 1) if n_layers > 1 else (0, 0)
    if rest < 8:
        return None
    budgets = [rest] * n_layers
    budgets[layer] = whole + extra
    return budgets
