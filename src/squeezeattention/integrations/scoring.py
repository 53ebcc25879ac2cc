"""Log-likelihoods through a cache that evicts: a context is read and cut, what follows goes in token by token.

One forward over context and continuation, as harnesses do it, never evicts anything: every token of the
continuation would still see the whole context.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from .. import SqueezeCache
from ..hf.arguments import cache_name
from ..tasks.driving import keeps_few_logits
from .caches import CacheMaker

Tokens = Sequence[int]


class Group(NamedTuple):
    """A context of at least two tokens, and the continuations that are to be scored after it."""

    context: Tokens
    continuations: Sequence[Tokens]


class Text(NamedTuple):
    """A text of which the last ``scored`` tokens are scored, at least one but not the first."""

    tokens: Tokens
    scored: int


class Score(NamedTuple):
    """How likely a continuation is."""

    log_likelihood: float
    """Sum over its tokens, in nats."""
    greedy: bool
    """Whether greedy decoding would have written it."""


@dataclass
class Scorer:
    """Scores batches; each batch has caches, and plans, of its own."""

    model: Any
    caches: CacheMaker
    dtype: torch.dtype | None = None
    """Of the log-probabilities; ``None`` is the logits' own."""
    tell: Callable[[str, SqueezeCache], None] = lambda point, cache: None
    """Told each cache at the point where what it holds is to be measured: "end of context" or "end of text"."""

    @torch.no_grad()
    def after_contexts(self, groups: Sequence[Group], rows: int) -> list[list[Score]]:
        """Read all contexts as one batch, cut them, then score their continuations, ``rows`` at a time.

        The last token of a context is held back and fed as the first decode step. Otherwise the first token of
        every continuation, often the only one, would be predicted from the whole context.
        """
        longest = max(len(tokens) for group in groups for tokens in group.continuations)
        whole = max(len(group.context) for group in groups) + longest
        cache = self.caches.make(self.model, whole=whole, new_tokens=1 + longest)
        _, positions = self._read(cache, [group.context[:-1] for group in groups], every_logit=False)
        self.tell("end of context", cache)
        logits = self._step(cache, self._tensor([group.context[-1] for group in groups]), positions)
        positions += 1

        wanted = [(row, tokens) for row, group in enumerate(groups) for tokens in group.continuations]
        scores: list[list[Score]] = [[] for _ in groups]
        for start in range(0, len(wanted), rows):
            part = wanted[start : start + rows]
            which = self._tensor([row for row, _ in part])
            twin = copy.deepcopy(cache) if start + rows < len(wanted) else cache
            twin.batch_select_indices(which)
            found = self._continue(twin, logits[which], positions[which], [tokens for _, tokens in part])
            for (row, _), score in zip(part, found, strict=True):
                scores[row].append(score)
        cache.detach()
        return scores

    @torch.no_grad()
    def alone(self, texts: Sequence[Text]) -> list[Score]:
        """Score texts that have next to no context: until the cache is full in one forward, then token by token."""
        cache, fill = self.caches.make_alone(self.model, whole=max(len(text.tokens) for text in texts))
        unscored = [len(text.tokens) - text.scored for text in texts]
        lengths = [min(max(before, fill), len(text.tokens) - 1) for before, text in zip(unscored, texts, strict=True)]
        prompts = [text.tokens[:length] for length, text in zip(lengths, texts, strict=True)]
        logits, positions = self._read(cache, prompts, every_logit=True)
        first = [
            self._given(row[len(row) - len(prompt) :][before - 1 : -1], prompt[before:])
            for row, prompt, before in zip(logits, prompts, unscored, strict=True)
        ]
        remaining = [text.tokens[length:] for length, text in zip(lengths, texts, strict=True)]
        rest = self._continue(cache, logits[:, -1], positions, remaining)
        self.tell("end of text", cache)
        cache.detach()
        return [
            Score(a.log_likelihood + b.log_likelihood, a.greedy and b.greedy) for a, b in zip(first, rest, strict=True)
        ]

    # ------------------------------------------------------------------ pieces

    def _read(
        self, cache: SqueezeCache, prompts: Sequence[Tokens], *, every_logit: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Read a batch of prompts, padded on the left, and cut them.

        Returns the logits ``[B, T, V]`` (``[B, 1, V]`` unless ``every_logit``) and each row's next position ``[B]``.
        """
        width = max(map(len, prompts))
        ids = self._tensor([[0] * (width - len(prompt)) + list(prompt) for prompt in prompts])
        lengths = self._tensor([len(prompt) for prompt in prompts])
        columns = torch.arange(width, device=ids.device)
        mask = columns >= width - lengths[:, None]
        positions = (columns - (width - lengths[:, None])).clamp(min=0)
        few = not every_logit and keeps_few_logits(self.model)
        with cache.prefilling():
            out = self.model(
                input_ids=ids, attention_mask=None if bool(mask.all()) else mask.long(), position_ids=positions,
                use_cache=True, **{cache_name(self.model): cache}, **({"logits_to_keep": 1} if few else {}),
            )  # fmt: skip
        return out.logits, lengths

    def _step(self, cache: SqueezeCache, tokens: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Feed one token ``[B]`` a row at its position ``[B]``; returns the logits ``[B, V]``."""
        given = {cache_name(self.model): cache}
        logits: torch.Tensor = self.model(
            input_ids=tokens[:, None], position_ids=positions[:, None], use_cache=True, **given
        ).logits[:, -1]
        return logits

    def _continue(
        self, cache: SqueezeCache, logits: torch.Tensor, positions: torch.Tensor, continuations: Sequence[Tokens]
    ) -> list[Score]:
        """Score continuations as decode steps; ``logits`` ``[B, V]`` predict their first tokens."""
        width = max(map(len, continuations))
        lengths = self._tensor([len(tokens) for tokens in continuations])
        # A row that is through goes on with any token: nobody looks at it again.
        wanted = self._tensor([list(tokens) + [0] * (width - len(tokens)) for tokens in continuations])
        total = torch.zeros(len(continuations), device=wanted.device)
        greedy = torch.ones_like(total, dtype=torch.bool)
        for column in range(width):
            tokens = wanted[:, column]
            counts = column < lengths
            found = self._log_probabilities(logits).gather(1, tokens[:, None])[:, 0]
            total += torch.where(counts, found.float(), 0.0)
            greedy &= (logits.argmax(-1) == tokens) | ~counts
            if column + 1 < width:
                logits = self._step(cache, tokens, positions + column)
        return [Score(*pair) for pair in zip(total.tolist(), greedy.tolist(), strict=True)]

    def _given(self, logits: torch.Tensor, tokens: Tokens) -> Score:
        """Score tokens from logits ``[n, V]`` that are there already; none are certain."""
        wanted = self._tensor(list(tokens)).long()
        found = self._log_probabilities(logits).gather(1, wanted[:, None])
        return Score(float(found.float().sum()), bool((logits.argmax(-1) == wanted).all()))

    def _log_probabilities(self, logits: torch.Tensor) -> torch.Tensor:
        return torch.log_softmax(logits, dim=-1, dtype=self.dtype)

    def _tensor(self, values: Any) -> torch.Tensor:
        return torch.tensor(values, device=self.model.device)
