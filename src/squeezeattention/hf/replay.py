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

from ..by_row import by_row
from ..positions import longest_of
from ..signals.replay import Replay
from .arguments import cache_name
from .turning import frequencies_kept

if TYPE_CHECKING:
    from ..cache.cache import SqueezeCache

#: What a forward was given: ids ``[B, q]`` or embeddings ``[B, q, W]``, and bool ``[B, q]``, False = padding, if any.
Text = tuple[torch.Tensor, torch.Tensor | None]
#: Pieces of a whole prompt: their tokens, and those that lead in.
_LENGTH, _LEAD = 64, 8
#: Tokens of a row that are read again in one forward, at most.
_TOGETHER = 2048


@dataclass(frozen=True)
class Replayed:
    """A forward that repeats pieces of the prompt."""

    positions: torch.Tensor
    """[B * k, m] int64: where the repeated tokens sit, behind the prompt."""
    turned: torch.Tensor
    """[B * k, m] int64: the same as the model counts, whose images' tokens may share positions."""
    columns: torch.Tensor
    """[B, k, c] int64: positions in the prompt of the tokens that are repeated, their lead left out."""
    see: Callable[[int, torch.Tensor], None]
    """(layer, attention fp32 [B, H, k, c] that those received)."""
    columns_before: int
    """What a model that is not told positions is to count from: as far as it has any."""


def replay_sample(
    cache: SqueezeCache, signal: Replay, text: Sequence[Text], before: Sequence[int], after: Sequence[int]
) -> None:
    """Show ``signal`` how the pieces that it asks for look back at the prompt.

    ``text``: what the prompt's forwards were given, chunk by chunk;
    ``before`` and ``after``: positions of each row's (or all rows') next token when they began and when they ended.
    """
    reading = _Reading.of(_alike(cache, text), before, after)
    starts = [signal.starts(count) for count in reading.counts]
    told = torch.tensor([bool(found) for found in starts])
    if not told.any() and signal.knows:
        return
    layers = cache.layers
    if not told.any():
        for layer in layers:
            signal.see_replay(layer.index, torch.zeros(*layer.store.shape, 1, 1), told)
        return
    first = torch.tensor([found or [signal.lead] * signal.pieces for found in starts])  # [B, k]
    _, received = _replay(cache, reading, first, signal.lead, signal.length)
    for layer in layers:
        signal.see_replay(layer.index, received[layer.index], told)


def replay_prompt(cache: SqueezeCache, text: Sequence[Text], before: Sequence[int], after: Sequence[int]) -> None:
    """Let the model repeat as much of the prompt as the policy wants, and the policy see how each token was looked at;
    arguments as above."""
    reading = _Reading.of(_alike(cache, text), before, after)
    lead, length = _piece(cache)
    starts = [_starts(count, cache.policy.replays, length) for count in reading.counts]
    pieces = max(1, *map(len, starts), 1)
    first = torch.tensor(
        [own + [count] * (pieces - len(own)) for own, count in zip(starts, reading.counts, strict=True)]
    )
    asked, received = _replay(cache, reading, first, lead, length)
    begin = torch.tensor(reading.before)
    for layer in cache.layers:
        if layer.scorer is not None:
            layer.scorer.see_received(layer.store, asked.flatten(1), received[layer.index].flatten(2), begin)


def _piece(cache: SqueezeCache) -> tuple[int, int]:
    """Tokens that lead in a piece of a whole prompt, and that it has: fewer where a model has few positions."""
    longest = longest_of(cache._attachment.layout.config)
    if longest is None:
        return _LEAD, _LENGTH
    lead = min(_LEAD, longest // 2)
    return lead, min(_LENGTH, longest - lead)


def _starts(count: int, most: float, length: int) -> list[int]:
    """Where the pieces begin of a row of ``count`` tokens: side by side, or evenly spread if they are too many."""
    if count <= most:
        return list(range(0, count, length))
    pieces = max(1, int(most) // length)
    room = max(0, count - length)
    return [int(room * (piece + 0.5) / pieces) for piece in range(pieces)]


def _alike(cache: SqueezeCache, text: Sequence[Text]) -> Sequence[Text]:
    """The text's pieces as embeddings, where some were given so and others as ids."""
    if len({given.ndim for given, _ in text}) == 1:
        return text
    find: Any = cache._attachment.model.get_input_embeddings
    embed = find()
    with torch.no_grad():
        return [(embed(given) if given.ndim == 2 else given, real) for given, real in text]


@dataclass(frozen=True)
class _Reading:
    """What was read since the last cut."""

    whole: torch.Tensor
    """Ids ``[B, columns]`` or embeddings, padded on the left."""
    counts: list[int]
    """Each row's tokens."""
    before: list[int]
    """The position of each row's first."""
    after: list[int]

    @classmethod
    def of(cls, text: Sequence[Text], before: Sequence[int], after: Sequence[int]) -> _Reading:
        rows = len(text[0][0])
        begin, end = (by_row(ends, rows) for ends in (before, after))
        counts = [last - first for first, last in zip(begin, end, strict=True)]
        whole = torch.cat([given for given, _ in text], dim=1)
        if any(real is not None for _, real in text):
            ones = whole.new_ones(whole.shape[:2], dtype=torch.uint8)
            shown = [ones[:, : given.shape[1]] if real is None else real.to(ones) for given, real in text]
            order = torch.cat(shown, dim=1).argsort(dim=1, stable=True)  # padding first
            whole = whole[torch.arange(rows, device=whole.device)[:, None], order]
        return cls(whole, counts, begin, end)

    def take(self, place: torch.Tensor) -> torch.Tensor:
        """The tokens at ``place`` int64 ``[B, ...]`` of each row, which is a ring: before its first comes its last."""
        extra = (1,) * (place.ndim - 1)
        counts = torch.tensor(self.counts).clamp(min=1).view(-1, *extra)
        index = (place % counts - counts + self.whole.shape[1]).to(self.whole.device)
        return self.whole[torch.arange(len(place), device=index.device).view(-1, *extra), index]

    def positions(self, place: torch.Tensor) -> torch.Tensor:
        """Where these tokens sit, -1 for those beyond a row's last."""
        extra = (1,) * (place.ndim - 1)
        counts, before = (torch.tensor(one).view(-1, *extra) for one in (self.counts, self.before))
        return (place + before).masked_fill(place >= counts, -1)


def _replay(
    cache: SqueezeCache, reading: _Reading, first: torch.Tensor, lead: int, length: int
) -> tuple[torch.Tensor, dict[int, torch.Tensor]]:
    """Read pieces of each row again, which begin at ``first`` int64 ``[B, k]`` of its tokens, their lead not counted.

    Returns the positions of their ``length`` tokens, int64 ``[B, k, length]`` (-1 = none), and for each layer the
    attention that these received, fp32 ``[B, H, k, length]``.
    """
    layers, pieces = cache.layers, first.shape[1]
    device = reading.whole.device
    tokens = reading.take(first[..., None] + torch.arange(-lead, length))  # [B, k, m(, W)]
    asked = reading.positions(first[..., None] + torch.arange(length)).to(device)
    longest = longest_of(cache._attachment.layout.config)
    told = [row + ahead for row, ahead in zip(reading.after, by_row(cache._ahead, len(reading.after)), strict=True)]
    begins = torch.tensor([_begins(longest, ends, lead + length) for ends in (reading.after, told)], device=device)
    (columns_before,) = _begins(longest, [int(cache.get_seq_length())], lead + length)
    positions = begins[..., None] + torch.arange(lead + length, device=device)  # ours, and the model's
    direct = all(layer.reads_in_place for layer in layers)
    together = min(pieces, max(1, _TOGETHER // (lead + length))) if direct else 1
    received: dict[int, list[torch.Tensor]] = {layer.index: [] for layer in layers}

    def see(layer: int, found: torch.Tensor) -> None:
        received[layer].append(found)

    for group in range(0, pieces, together):
        some = slice(group, min(group + together, pieces))
        at, turned = positions.repeat_interleave(some.stop - some.start, dim=1)
        replayed = Replayed(at, turned, asked[:, some], see, columns_before)
        _forward(cache, tokens[:, some].flatten(0, 1), replayed)
    return asked, {layer: torch.cat(found, dim=2) for layer, found in received.items()}


def _begins(longest: int | None, after: Sequence[int], length: int) -> list[int]:
    """The position where each row's repetition begins: behind the prompt, or as far as a model has positions."""
    if longest is None:
        return list(after)
    return [min(row, max(0, longest - length)) for row in after]


def _forward(cache: SqueezeCache, tokens: torch.Tensor, replayed: Replayed) -> None:
    decoder: nn.Module = cache._attachment.layout.decoder
    given: dict[str, Any] = {
        "input_ids" if tokens.ndim == 2 else "inputs_embeds": tokens,
        "position_ids": replayed.turned,
        cache_name(decoder): cache,
        "use_cache": True,
    }
    names = inspect.signature(type(decoder).forward).parameters
    if "position_ids" not in names and not any(p.kind is p.VAR_KEYWORD for p in names.values()):
        del given["position_ids"]
    with torch.no_grad(), _replaying(cache, replayed), frequencies_kept(decoder):
        decoder(**given)


@contextmanager
def _replaying(cache: SqueezeCache, replayed: Replayed) -> Iterator[None]:
    """The cache's next forward is one that repeats."""
    cache._replayed = replayed
    try:
        yield
    finally:
        cache._replayed = None
