"""Where right answers look in a text, by layer and KV head, and what of it a cut cache still has.

An answer that is copied from a text is found by the heads that look at it there. The full cache reads the text, and is
then given each question with its right answer, token by token: the attention that the tokens of the answer's place in
the text receive from those that foresee it is what the answer *needed*. It is read off H2O's sums, which are these::

    text  ... The code of Anna is [4 1 7] . ...      question  ... of Anna is  4  1  7
                                   ^ ^ ^____________________________________|__|__|     summed by layer and KV head

A cache that was cut keeps the share of it that went to the tokens which it holds, in the head that looked there.
"""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch

from .. import SqueezeCache
from ..errors import InputError, UnsupportedFeatureError
from ..tasks.base import Sample, Task
from ..tasks.driving import read, repeated, step_by_step
from .answering import Asked, ask
from .config import Config, read_together
from .exercises import score_answer
from .following import Following
from .holding import holding_of
from .reading import Reading

#: fp32 ``[H]`` for each layer.
Heads = list[torch.Tensor]


@dataclass(frozen=True)
class Need:
    """What the right answers of one or more samples looked at."""

    heads: list[list[float]]
    """Attention on the answers' places, by layer and KV head: sums over tokens that foresee, means over query heads."""
    questions: int
    """Those whose answer stands in the text, which alone count."""
    tokens: int
    """Of the texts that are places of answers."""

    @property
    def total(self) -> float:
        return sum(map(sum, self.heads))

    def leading(self, share: float = 0.5) -> list[tuple[int, int]]:
        """The fewest (layer, KV head) that have ``share`` of it, those with most first."""
        units = [(own, layer, head) for layer, row in enumerate(self.heads) for head, own in enumerate(row)]
        found, held = [], 0.0
        for own, layer, head in sorted(units, key=lambda unit: -unit[0]):
            if held >= share * self.total:
                break
            found.append((layer, head))
            held += own
        return found


@dataclass(frozen=True)
class Kept:
    """What one way of cutting has left of it."""

    config: Config
    heads: list[list[float]]
    """As :attr:`Need.heads`, of the tokens that are still held."""
    share: float
    """Of all that was needed."""
    bytes: float
    """Held right after the cut, over what the full cache holds then: means over the samples."""
    right: float
    """Mean score of the answers that are then given."""


@dataclass(frozen=True)
class Why:
    """Needs of some samples, and how each way of cutting, the full cache first, met them."""

    need: Need
    ways: list[Kept]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "questions": self.need.questions,
            "tokens": self.need.tokens,
            "needed": self.need.heads,
            "half_in": [list(unit) for unit in self.need.leading()],
            "units": sum(map(len, self.need.heads)),
            "ways": [
                {**way.config.to_dict(), "kept": way.share, "bytes": way.bytes, "score": way.right, "heads": way.heads}
                for way in self.ways
            ],
        }


def why(
    model: Any,
    tokenizer: Any,
    task: Task,
    samples: Sequence[Sample],
    configs: Sequence[Config],
    progress: Callable[[int, int, str], None] = lambda done, total, what: None,
) -> Why:
    """Read each sample with the full cache, see where its answers look, and cut it in each way.

    ``configs``: ways to cut, the full cache not among them.

    Raises :class:`InputError` if no answer stands in its text to the letter, :class:`UnsupportedFeatureError` for a
    tokenizer that does not say which letters its tokens are, and what the caches raise.
    """
    ways = [Config(), *configs]
    total, done = len(samples) * (1 + len(ways)), 0
    needed: Heads | None = None
    tallies = {config: _Tally() for config in ways}
    questions = tokens = 0
    for sample in samples:
        if not sample.questions or sample.continuation:
            raise InputError(f"task {task.name!r} asks nothing, so no answer can be looked up: give one with questions")
        progress(done, total, "where answers look")
        received, places = _look(model, tokenizer, sample)
        needed = _add(needed, [layer.sum(dim=-1) for layer in received])
        questions += sum(map(bool, places))
        tokens += len({place for own in places for place in own})
        done += 1
        for config, score, share, mine in _cut(model, tokenizer, task, sample, ways, received):
            tallies[config].add(score, share, mine)
            done += 1
            progress(done, total, config.id.replace("/", " "))
    if needed is None or not questions:
        raise InputError(
            "no answer stands in its text to the letter, so none can be looked up there: ask for a task whose answers "
            "are copied, such as facts or recall"
        )
    need = Need(_numbers(needed), questions, tokens)
    return Why(need, [tally.kept(config, need) for config, tally in tallies.items()])


def _look(model: Any, tokenizer: Any, sample: Sample) -> tuple[list[torch.Tensor], list[list[int]]]:
    """Attention that the places of a sample's answers receive, fp32 ``[H, N]`` for each layer, 0 elsewhere; and the
    places, for each question."""
    context, spans = _tokens(tokenizer, sample.context)
    plain = [_plain(tokenizer, question.text) for question in sample.questions]
    answers = [_plain(tokenizer, question.reply or f" {question.answers[0]}") for question in sample.questions]
    places = [_places(sample.context, spans, question.answers) for question in sample.questions]
    longest = max(len(asked) + len(said) for asked, said in zip(plain, answers, strict=True))
    budget = len(context) + longest
    cache = SqueezeCache(model, budget, "h2o", "uniform", new_tokens=longest, min_tokens=1)
    read(model, cache, context[:-1])
    found: list[torch.Tensor] = []
    for asked, said, own in zip(plain, answers, places, strict=True):
        if not own or not said:
            continue
        fed = [context[-1], *asked, *said]
        twin = repeated(cache, 1)
        first = len(fed) - len(said) - 1  # the token that foresees the answer's first
        if first:
            step_by_step(model, twin, torch.tensor([fed[:first]], device=model.device))
        before = _sums(twin, len(context))
        step_by_step(model, twin, torch.tensor([fed[first:-1]], device=model.device))
        only = torch.zeros(len(context))
        only[own] = 1.0
        more = [(after - start) * only for after, start in zip(_sums(twin, len(context)), before, strict=True)]
        found = more if not found else [left + right for left, right in zip(found, more, strict=True)]
        twin.reset()
    if not found:
        found = [torch.zeros_like(sums) for sums in _sums(cache, len(context))]
    cache.detach()
    return found, places


def _cut(
    model: Any,
    tokenizer: Any,
    task: Task,
    sample: Sample,
    configs: Sequence[Config],
    received: Sequence[torch.Tensor],
) -> Iterator[tuple[Config, float, float, Heads]]:
    """For each way: the mean score of the answers, the share of the full cache's bytes, and what it still has."""
    follows = Following(tokenizer, sample, _tokens(tokenizer, sample.context)[0], visible=False)
    ((prompt, then),) = follows.prompts
    asked = cast("list[Asked]", then)  # a sample with questions has no continuation
    for group in read_together(configs):
        with contextlib.closing(Reading(model, prompt, group, follows.longest, None)) as reading:
            for config in group:
                cache, _ = reading.cut(config)
                held = holding_of(cache)
                mine = [_held(cache, layer, own) for layer, own in enumerate(received)]
                said = ask(model, tokenizer, cache, asked, len(asked)).texts
                scores = [
                    score_answer(task, sample, one, text) for one, text in zip(sample.questions, said, strict=True)
                ]
                yield config, sum(scores) / len(scores), held.bytes / max(1, held.full_bytes), mine


def _held(cache: Any, layer: int, received: torch.Tensor) -> torch.Tensor:
    """What of ``received`` fp32 ``[H, N]`` went to tokens that a layer of a cache holds: ``[H]``."""
    if not isinstance(cache, SqueezeCache):
        return received.sum(dim=-1)
    positions = cache.kept_positions(layer)[0].cpu()
    there = (positions >= 0) & (positions < received.shape[-1])
    return received.gather(1, positions.clamp(0, received.shape[-1] - 1)).masked_fill(~there, 0.0).sum(dim=-1)


def _sums(cache: SqueezeCache, tokens: int) -> list[torch.Tensor]:
    """H2O's sums of the first ``tokens`` positions: fp32 ``[H, tokens]`` on the CPU for each layer."""
    found = []
    for layer in cache.layers:
        scores = layer.store.used_scores()
        if scores is None:  # a policy that sums has them
            raise UnsupportedFeatureError(f"layer {layer.index} of this model keeps no sums of attention")
        positions = layer.store.used_positions().expand(*layer.store.shape, -1)[0].cpu()
        real = (positions >= 0) & (positions < tokens)
        own = scores[0].float().cpu().masked_fill(~real, 0.0)
        found.append(torch.zeros(len(own), tokens).scatter_add_(1, positions.clamp(0, tokens - 1), own))
    return found


def _places(text: str, spans: Sequence[tuple[int, int]], answers: Sequence[str]) -> list[int]:
    """Tokens of a text in which one of the answers stands, everywhere that it does."""
    found = set()
    for answer in filter(None, answers):
        at = text.find(answer)
        while at >= 0:
            end = at + len(answer)
            found |= {token for token, (first, last) in enumerate(spans) if first < end and last > at}
            at = text.find(answer, at + 1)
    return sorted(found)


def _tokens(tokenizer: Any, text: str) -> tuple[list[int], list[tuple[int, int]]]:
    """Ids of a text, special tokens with them, and the letters that each stands for; special ones stand for none."""
    if not getattr(tokenizer, "is_fast", False):
        raise UnsupportedFeatureError(
            f"{type(tokenizer).__name__} does not say which letters its tokens stand for, so answers cannot be looked "
            "up in the text: a fast tokenizer (tokenizer.is_fast) does"
        )
    given = tokenizer(text, return_offsets_mapping=True, verbose=False)
    return list(given["input_ids"]), [tuple(span) for span in given["offset_mapping"]]


def _plain(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False).input_ids)


def _add(before: Heads | None, more: Heads) -> Heads:
    return more if before is None else [old + new for old, new in zip(before, more, strict=True)]


class _Tally:
    """One way of cutting, over the samples."""

    def __init__(self) -> None:
        self.scores: list[float] = []
        self.shares: list[float] = []
        self.heads: Heads | None = None

    def add(self, score: float, share: float, heads: Heads) -> None:
        self.scores.append(score)
        self.shares.append(share)
        self.heads = _add(self.heads, heads)

    def kept(self, config: Config, need: Need) -> Kept:
        heads = _numbers(self.heads or [])
        share = sum(map(sum, heads)) / need.total if need.total else 0.0
        return Kept(config, heads, share, statistics.fmean(self.shares), statistics.fmean(self.scores))


def _numbers(heads: Heads) -> list[list[float]]:
    return [layer.tolist() for layer in heads]
