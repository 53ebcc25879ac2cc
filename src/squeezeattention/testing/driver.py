"""Driving a model with a cache by hand: left-padded batches, chunks, given tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from .. import SqueezeCache
from ..hf.arguments import cache_name


def left_padded(rows: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and attention mask ``[B, T]`` of rows of different length, padded on the left with 0."""
    width = max(map(len, rows))
    ids, mask = torch.zeros(2, len(rows), width, dtype=torch.long)
    for index, row in enumerate(rows):
        ids[index, width - len(row) :] = torch.tensor(row)
        mask[index, width - len(row) :] = 1
    return ids, mask


def position_ids(mask: torch.Tensor) -> torch.Tensor:
    """What ``generate`` passes: the running count of real tokens."""
    return (mask.cumsum(1) - 1).clamp(min=0)


def teacher_forced(
    model: Any,
    cache: Any,
    rows: Sequence[Sequence[int]],
    generated: torch.Tensor | None = None,
    *,
    chunk: int | None = None,
    after_step: Callable[[], None] | None = None,
) -> list[torch.Tensor]:
    """Read a batch of prompts (whole or in chunks), then feed ``generated`` [B, S] token by token.

    ``after_step`` is called before the first of these and after each.

    Returns each row's logits ``[T + S, V]``, its padding left out.
    """
    ids, mask = left_padded(rows)
    parts: list[torch.Tensor] = []
    with torch.no_grad():
        if chunk is None or not isinstance(cache, SqueezeCache):
            parts.append(_forward(model, cache, ids, mask, 0))
        else:
            with cache.prefilling():
                for start in range(0, ids.shape[1], chunk):
                    stop = start + chunk
                    parts.append(_forward(model, cache, ids[:, start:stop], mask[:, :stop], start))
        if generated is not None:
            mask = torch.cat([mask, torch.ones_like(generated)], dim=1)
            if after_step is not None:
                after_step()
            for index in range(generated.shape[1]):
                start = ids.shape[1] + index
                tokens = generated[:, index : index + 1]
                parts.append(_forward(model, cache, tokens, mask[:, : start + 1], start))
                if after_step is not None:
                    after_step()
    logits = torch.cat(parts, dim=1)
    return [logits[index, ids.shape[1] - len(row) :] for index, row in enumerate(rows)]


def _forward(model: Any, cache: Any, tokens: torch.Tensor, mask: torch.Tensor, start: int) -> torch.Tensor:
    given = None if bool(mask.all()) else mask
    positions = position_ids(mask)[:, start:]
    out: torch.Tensor = model(
        input_ids=tokens, attention_mask=given, position_ids=positions, use_cache=True, **{cache_name(model): cache}
    ).logits
    return out
