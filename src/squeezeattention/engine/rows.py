"""Keys and values in vLLM's pool as rows: a slot is one key and one value of one KV head.

The pool is ``[blocks, H, b, 2 * D]``, contiguous; its slots are counted through as the first three dimensions are.
"""

from __future__ import annotations

import torch


def write(cache: torch.Tensor, slots: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> None:
    """Keys and values ``[n, D]`` into slots int64 ``[n]``."""
    rows = cache.view(-1, keys.shape[-1])  # [2 * slots, D]: each slot's key, then its value
    rows[2 * slots] = keys.to(cache.dtype)
    rows[2 * slots + 1] = values.to(cache.dtype)


def read(cache: torch.Tensor, slots: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values ``[n, D]`` of slots int64 ``[n]``: copies."""
    rows = cache.view(-1, cache.shape[-1] // 2)
    found = rows.index_select(0, torch.cat([2 * slots, 2 * slots + 1])).to(dtype)
    return found[: len(slots)], found[len(slots) :]


def prompt_slots(table: torch.Tensor, tokens: int, cache: torch.Tensor) -> torch.Tensor:
    """Int64 ``[H, tokens]``: where a prompt lies whole, in blocks int64 ``[n]`` of b tokens of each KV head.

    The token at position p is the ``p % b``-th of block ``table[p // b]``.
    """
    _, heads, size, _ = cache.shape
    at = torch.arange(tokens, device=table.device)
    block = table[torch.div(at, size, rounding_mode="floor")] * (heads * size)
    return block + at % size + torch.arange(heads, device=table.device)[:, None] * size


def read_prompt(cache: torch.Tensor, lies: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values ``[1, H, N, D]`` of a prompt that lies in slots int64 ``[H, N]``: copies."""
    keys, values = read(cache, lies.flatten(), dtype)
    return keys.view(1, *lies.shape, -1), values.view(1, *lies.shape, -1)
