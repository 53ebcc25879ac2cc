"""Lets a model read pieces of its prompt again, over the cache that holds it, for signals that ask for this.

::

    prompt      t0 t1 ... | lead piece 0 | ... | lead piece 1 | ... tn     all of it is held, and stays as it is
    replayed                                                             [ lead piece 0 ]   rows of one batch, which see
                                                                         [ lead piece 1 ]   the prompt and themselves

Nothing of what is read again is stored; the logits are not computed.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..signals.replay import Replay
from .arguments import cache_name

if TYPE_CHECKING:
    from ..cache.cache import SqueezeCache


@dataclass(frozen=True)
class Replayed:
    """A forward that repeats pieces of the prompt."""

    positions: torch.Tensor
    """[B * k, m] int64: where the repeated tokens sit, behind the prompt."""
    columns: torch.Tensor
    """[B, k, c] int64: positions in the prompt of the tokens that are repeated, their lead left out."""
    see: Callable[[int, torch.Tensor], None]
    """(layer, attention fp32 [B, H, k, c] that those received)."""


def replay_prompt(
    cache: SqueezeCache, signal: Replay, text: Sequence[torch.Tensor], before: Sequence[int], after: Sequence[int]
) -> None:
    """Show ``signal`` how the pieces that it asks for look back at the prompt.

    ``text``: what the prompt's forwards were given, ids ``[B, q]`` or embeddings ``[B, q, W]``, chunk by chunk;
    ``before`` and ``after``: positions of each row's (or all rows') next token when they began and when they ended.
    """
    rows = text[0].shape[0]
    before, after = (list(ends) * rows if len(ends) == 1 else list(ends) for ends in (before, after))
    counts = [end - begin for begin, end in zip(before, after, strict=True)]
    starts = [signal.starts(count) for count in counts]
    told = torch.tensor([bool(found) for found in starts])
    if not told.any() and signal.knows:
        return
    layers = cache.layers
    if not told.any():
        for layer in layers:
            signal.see_replay(layer.index, torch.zeros(*layer.store.shape, 1, 1), told)
        return
    whole = torch.cat(list(text), dim=1)
    columns = whole.shape[1]
    first = torch.tensor([found or [signal.lead] * signal.pieces for found in starts])  # [B, k]
    step = torch.arange(signal.lead + signal.length) - signal.lead
    index = torch.tensor(counts).neg().add(columns)[:, None, None] + first[..., None] + step
    index = index.clamp(0, columns - 1).to(whole.device)
    asked = (torch.tensor(before)[:, None, None] + first[..., None] + torch.arange(signal.length)).to(whole.device)
    pieces = torch.stack([whole[row, index[row]] for row in range(rows)])  # [B, k, m(, W)]
    begin = torch.tensor(_begins(cache, after, len(step)), device=whole.device)
    positions = begin[:, None] + torch.arange(len(step), device=whole.device)
    together = signal.pieces if all(layer.reads_in_place for layer in layers) else 1
    received: dict[int, list[torch.Tensor]] = {layer.index: [] for layer in layers}
    for group in range(0, signal.pieces, together):
        some = slice(group, group + together)
        at = positions.repeat_interleave(together, dim=0)
        replayed = Replayed(at, asked[:, some], lambda layer, found: received[layer].append(found))
        _forward(cache, pieces[:, some].flatten(0, 1), replayed)
    for layer in layers:
        found = torch.cat(received[layer.index], dim=2)
        signal.see_replay(layer.index, found, told)
        if layer.scorer is not None and layer.policy.wants_replay:
            layer.scorer.fit(layer.store, asked.flatten(1), found.flatten(2), told)


def _begins(cache: SqueezeCache, after: Sequence[int], length: int) -> list[int]:
    """The position where each row's repetition begins: behind the prompt, or as far as a model has positions."""
    longest = getattr(cache._attachment.layout.config, "max_position_embeddings", None)
    if not isinstance(longest, int):
        return list(after)
    return [min(row, max(0, longest - length)) for row in after]


def _forward(cache: SqueezeCache, tokens: torch.Tensor, replayed: Replayed) -> None:
    decoder: nn.Module = cache._attachment.layout.decoder
    given: dict[str, Any] = {
        "input_ids" if tokens.ndim == 2 else "inputs_embeds": tokens,
        "position_ids": replayed.positions,
        cache_name(decoder): cache,
        "use_cache": True,
    }
    names = inspect.signature(type(decoder).forward).parameters
    if "position_ids" not in names and not any(p.kind is p.VAR_KEYWORD for p in names.values()):
        del given["position_ids"]
    with torch.no_grad(), _replaying(cache, replayed):
        decoder(**given)


@contextmanager
def _replaying(cache: SqueezeCache, replayed: Replayed) -> Iterator[None]:
    """The cache's next forward is one that repeats."""
    cache._replayed = replayed
    try:
        yield
    finally:
        cache._replayed = None
