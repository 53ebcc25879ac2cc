"""Driving a model by hand: read a text into a cache, then decode greedily from it, with any cache."""

from __future__ import annotations

import copy
import inspect
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from .. import SqueezeCache
from ..hf.arguments import cache_name


def read(model: Any, cache: Any, tokens: Sequence[int], *, chunk: int | None = None) -> torch.Tensor:
    """Read one text into a cache, whole or in chunks, and end it there; returns the last logits ``[1, V]``.

    A :class:`SqueezeCache` is compacted when this returns.
    """
    if not isinstance(cache, SqueezeCache):
        return read_chunks(model, cache, tokens, chunk)
    with cache.prefilling(cache.get_seq_length() + len(tokens)):
        return read_chunks(model, cache, tokens, chunk)


def read_chunks(model: Any, cache: Any, tokens: Sequence[int], chunk: int | None) -> torch.Tensor:
    """Forward passes over one text, of ``chunk`` tokens each or of all; returns the last logits ``[1, V]``."""
    ids = torch.tensor([list(tokens)], device=model.device)
    logits = torch.empty(0)
    for part in ids.split(chunk or ids.shape[1], dim=1):
        logits = forward(model, cache, part)
    return logits


@torch.no_grad()
def forward(model: Any, cache: Any, ids: torch.Tensor) -> torch.Tensor:
    """One forward pass of ``ids`` ``[B, q]`` on top of the cache; returns the last logits ``[B, V]``."""
    start = cache.get_seq_length()
    positions = torch.arange(start, start + ids.shape[1], device=ids.device).expand(ids.shape[0], -1)
    options: dict[str, Any] = {"logits_to_keep": 1} if keeps_few_logits(model) else {}
    out = model(input_ids=ids, position_ids=positions, use_cache=True, **{cache_name(model): cache}, **options)
    logits: torch.Tensor = out.logits[:, -1]
    return logits


def keeps_few_logits(model: Any) -> bool:
    """Whether the model's forward takes ``logits_to_keep``."""
    return "logits_to_keep" in inspect.signature(type(model).forward).parameters


def batches_of_one_length(rows: Sequence[Sequence[int]], most: int | None = None) -> Iterator[list[int]]:
    """Indices of rows of the same length, at most ``most`` at a time: they need no padding."""
    by_length: dict[int, list[int]] = defaultdict(list)
    for index, row in enumerate(rows):
        by_length[len(row)].append(index)
    for indices in by_length.values():
        size = most or len(indices)
        for start in range(0, len(indices), size):
            yield indices[start : start + size]


def repeated(cache: Any, rows: int) -> Any:
    """An independent copy of a one-row cache with its row ``rows`` times, to go on in several ways."""
    twin = copy.deepcopy(cache)
    if rows > 1:
        twin.batch_repeat_interleave(rows)
    return twin


def step_by_step(model: Any, cache: Any, ids: torch.Tensor) -> torch.Tensor:
    """Feed ``ids`` ``[B, q]`` one token at a time, as decode steps: budgets hold, plans stay as they are."""
    logits = torch.empty(0)
    for column in ids.split(1, dim=1):
        logits = forward(model, cache, column)
    return logits


def greedy(
    model: Any,
    cache: Any,
    logits: torch.Tensor,
    steps: int,
    *,
    stop: Callable[[list[list[int]]], bool] | None = None,
) -> list[list[int]]:
    """Up to ``steps`` greedy tokens of every row, from the logits ``[B, V]`` of what was read last.

    ``stop`` sees the tokens so far after each step and may end it.
    """
    rows: list[list[int]] = [[] for _ in range(logits.shape[0])]
    for step in range(steps):
        tokens = logits.argmax(-1)
        for row, token in zip(rows, tokens.tolist(), strict=True):
            row.append(int(token))
        if step == steps - 1 or (stop is not None and stop(rows)):
            break
        logits = forward(model, cache, tokens[:, None])
    return rows
