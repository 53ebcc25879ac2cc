"""The attention that each token received, from the log-sum-exp of each row of scores: plain torch, in few large blocks.

Where kernels are launched one by one (a GPU) many small blocks cost more than what they compute; see core.py for the
small ones that suit a processor's cache.
"""

from __future__ import annotations

import torch

from .core import Scoring, grouped_mass, hide_later

#: Elements of one block of scores: 256 MiB in fp32, if there is room ...
_ELEMENTS, _LEAST_ELEMENTS = 2**26, 2**22
#: ... which several rows of a batch share only if each of them gets so many queries.
_QUERIES = 128


def causal_sums(
    query: torch.Tensor, key: torch.Tensor, total: torch.Tensor, scoring: Scoring, score_heads: int
) -> torch.Tensor:
    """Sum over the queries, mean over the query heads of each score head: fp32 ``[B, score_heads, N]``.

    ``query`` ``[B, Hq, q, D]`` are the last of the N tokens of ``key`` ``[B, H, N, D]``, each of which sees all tokens
    up to its own; ``total`` fp32 ``[B, Hq, q]``: log-sum-exp of each row of scores.
    """
    batch, query_heads, length, width = query.shape
    heads, tokens = key.shape[1:3]
    elements = _room(query.device)
    some = max(1, min(batch, elements // (query_heads * tokens * min(length, _QUERIES))))
    rows = max(1, min(length, elements // (some * query_heads * tokens)))
    scores = query.new_zeros(batch, score_heads, tokens, dtype=torch.float32)
    for row in range(0, batch, some):
        own = slice(row, min(row + some, batch))
        for start in range(0, length, rows):
            stop = min(start + rows, length)
            seen = tokens - length + stop
            shape = (own.stop - row, heads, query_heads // heads * (stop - start))
            logits = scoring.logits(query[own, :, start:stop].reshape(*shape, width), key[own, :, :seen])
            logits.sub_(total[own, :, start:stop].reshape(*shape, 1))
            hide_later(logits, stop - start)
            scores[own, :, :seen] += grouped_mass(logits.exp_(), score_heads, query_heads)
    return scores


def _room(device: torch.device) -> int:
    """Elements of a block: no more than a quarter of the memory that is free."""
    if device.type != "cuda":
        return _ELEMENTS
    unused, _ = torch.cuda.mem_get_info(device)
    unused += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return max(_LEAST_ELEMENTS, min(_ELEMENTS, unused // 16))
