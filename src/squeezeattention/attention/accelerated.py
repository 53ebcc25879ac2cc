"""Attention through the Triton kernels, where they compute what is asked; see ``kernels/``."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .core import Scoring, attend, attend_rows
from .fused import attend_with_totals, in_one_dtype
from .visibility import Visibility


@dataclass(frozen=True)
class NextVictim:
    """What a kernel needs to find the slot that the next token takes: see :func:`kernels.naive.victim`."""

    positions: torch.Tensor
    """[B or 1, H or 1, N] int64, the token of this step among them."""
    newest: torch.Tensor
    """[B or 1] int64: position of the next token."""
    recent: int


def attend_one_accelerated(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    scoring: Scoring,
    scores: torch.Tensor | None,
    following: NextVictim | None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """As :func:`core.attend_one`, but ``scores`` [B, H, N] are added to in place.

    Returns the output and, with ``following``, the next token's slot, int64 ``[B, H, 1]``.
    """
    from ..kernels.ops import decode_attention

    more = {} if following is None else vars(following)
    out, chosen = decode_attention(
        query[:, :, 0], key, value, mask, scoring.scale, scoring.softcap, scoring.sink_logits, scores=scores, **more
    )
    return out[:, :, None], None if chosen is None else chosen[..., None]


def attend_accelerated(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    visibility: Visibility,
    scoring: Scoring,
    *,
    score_heads: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """As :func:`core.attend` with scores: the output by the fastest way, the scores by a pass of their own."""
    if visibility.fresh and visibility.ragged:
        return attend_rows(_attend_row, query, key, value, visibility, scoring, score_heads)  # type: ignore[return-value]
    return _attend_row(query, key, value, visibility, scoring, score_heads=score_heads)


def _attend_row(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    visibility: Visibility,
    scoring: Scoring,
    *,
    score_heads: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    from ..kernels.mass import attention_mass
    from ..kernels.sums import causal_sums

    query, key, value = in_one_dtype(query, key, value)
    found = attend_with_totals(query, key, value, visibility, scoring)
    with torch.no_grad():
        if found is not None:
            mass = causal_sums(query, key, found[1], scoring.scale)
        else:
            mass, _ = attention_mass(
                query, key, visibility.queries, visibility.tokens, visibility.window, scoring.scale, scoring.softcap,
                scoring.sink_logits,
            )  # fmt: skip
    out = attend(query, key, value, visibility, scoring)[0] if found is None else found[0]
    return out, mass if mass.shape[1] == score_heads else mass.mean(1, keepdim=True)
