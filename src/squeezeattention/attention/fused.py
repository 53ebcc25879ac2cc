"""Attention by the kernels behind torch's scaled_dot_product_attention, with the log-sum-exp that they compute anyway.

The public function keeps it for itself. Asked here is the operator that it would have called for the same tensors.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F
from torch.nn.attention import SDPBackend

from .core import Scoring
from .visibility import Visibility


def in_one_dtype(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Under autocast in its dtype, as the public function would see to."""
    device = tensors[0].device.type
    if not torch.is_autocast_enabled(device):
        return tensors
    return tuple(one.to(torch.get_autocast_dtype(device)) for one in tensors)


def attend_with_totals(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, visibility: Visibility, scoring: Scoring
) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Output ``[B, Hq, q, Dv]`` and fp32 log-sum-exp of each row ``[B, Hq, q]``; ``None`` where no kernel gives both.

    Shapes as in :func:`core.attend`. None does for masks other than plain causal order, for capped scores, and for
    types and GPUs for which torch has no fused kernel.
    """
    if not visibility.is_staircase or scoring.softcap is not None or not query.dtype == key.dtype == value.dtype:
        return None
    length, tokens = query.shape[2], key.shape[2]
    # Torch's causal mask begins in the upper left corner: right for tokens that are the queries' own. Those that were
    # there before are seen by all queries.
    found = _fused(
        query, key[:, :, tokens - length :], value[:, :, tokens - length :], scoring.scale, causal=length > 1
    )
    if found is not None and tokens > length:
        before = _fused(
            query, key[:, :, : tokens - length], value[:, :, : tokens - length], scoring.scale, causal=False
        )
        found = None if before is None else _joined(before, found)
    if found is None or scoring.sink_logits is None:
        return found
    out, total = found
    with_sink = torch.logaddexp(total, scoring.sink_logits.float().reshape(-1, query.shape[1], 1))
    return out * (total - with_sink).exp().to(out.dtype)[..., None], with_sink


def _joined(
    one: tuple[torch.Tensor, torch.Tensor], other: tuple[torch.Tensor, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention over the tokens of both."""
    total = torch.logaddexp(one[1], other[1])
    out = sum(part.float() * (own - total).exp()[..., None] for part, own in (one, other))
    return out.to(one[0].dtype), total  # type: ignore[union-attr]


def _fused(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float, *, causal: bool
) -> tuple[torch.Tensor, torch.Tensor] | None:
    choice = torch._fused_sdp_choice(
        query, key, value, None, 0.0, causal, scale=scale, enable_gqa=query.shape[1] != key.shape[1]
    )
    aten, width, out_width = torch.ops.aten, query.shape[-1], value.shape[-1]
    found: Any
    if choice == SDPBackend.FLASH_ATTENTION.value and query.device.type == "cpu":
        found = aten._scaled_dot_product_flash_attention_for_cpu(query, key, value, 0.0, causal, scale=scale)
    elif choice == SDPBackend.FLASH_ATTENTION.value:
        # Its heads are multiples of 8 wide, which the public function sees to as well.
        query, key, value = (F.pad(one, (0, -one.shape[-1] % 8)) if width % 8 else one for one in (query, key, value))
        found = aten._scaled_dot_product_flash_attention(query, key, value, 0.0, causal, False, scale=scale)
    elif choice == SDPBackend.EFFICIENT_ATTENTION.value:
        found = aten._scaled_dot_product_efficient_attention(query, key, value, None, True, 0.0, causal, scale=scale)
    elif choice == SDPBackend.CUDNN_ATTENTION.value:
        found = aten._scaled_dot_product_cudnn_attention(
            query, key, value, None, True, 0.0, causal, False, scale=scale
        )  # fmt: skip
    else:
        return None
    # Some fill rows up to whole blocks, some give them a last dimension of 1.
    total = found[1].flatten(2)[..., : query.shape[2]]
    return found[0][..., :out_width], total
