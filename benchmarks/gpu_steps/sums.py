"""H2O's sums from the log-sum-exp of torch's fused attention: right, and at what cost beside the attention itself."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F

from squeezeattention.attention import sums as plain
from squeezeattention.attention.core import Scoring
from squeezeattention.attention.fused import attend_with_totals
from squeezeattention.attention.visibility import Visibility
from squeezeattention.kernels import naive, sums

from .common import Session, timed

#: Ways to cut the work that are timed beside the one in use.
TILES = ((128, 64, 4, 2), (128, 64, 4, 3), (128, 64, 8, 2), (128, 64, 8, 3), (128, 128, 8, 2), (64, 128, 4, 3))


def drawn(session: Session, *shape: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(*shape, generator=generator).to(session.device, dtype)


def last_queries(positions: torch.Tensor, length: int) -> Visibility:
    """The last ``length`` tokens of each row look at all of them."""
    fresh = length == positions.shape[1]
    at = positions[:, positions.shape[1] - length :]
    return Visibility(at, positions[:, None], None, fresh=fresh, ragged=False, ordered=True)


def compared(
    session: Session, shape: tuple[int, ...], dtype: torch.dtype
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """What was found and what is right, for a whole prompt and for the second piece of one; ``shape`` as in checks.py.

    The kernel and the large blocks of plain torch start from the naive log-sum-exp; beside them stands what torch's
    fused attention gives, where it has a kernel for these types.
    """
    batch, heads, group, tokens, width, _ = shape
    found = {}
    for name, length in (("whole", tokens), ("piece", tokens // 3)):
        # Heads lie side by side in each token's row, as models hand them over.
        query = drawn(session, batch, length, heads * group, width, dtype=dtype).transpose(1, 2)
        keys = drawn(session, batch, tokens, heads, width, dtype=dtype, seed=1).transpose(1, 2)
        scoring = Scoring(width**-0.5)
        seen = last_queries(torch.arange(tokens, device=session.device)[None], length)
        want, total = naive.attention_mass(query, keys, seen.queries, seen.tokens, None, scoring.scale)
        if session.device.type == "cuda":
            found[f"{name}, kernel"] = (sums.causal_sums(query, keys, total, scoring.scale), want)
        found[f"{name}, blocks"] = (plain.causal_sums(query, keys, total, scoring, heads), want)
        if (fused := attend_with_totals(query, keys, keys, seen, scoring)) is not None:
            found[f"{name}, totals"] = (fused[1], total)
    return found


def alone(session: Session, length: int) -> dict[str, Any]:
    """Milliseconds of SDPA's causal forward, the same with totals, and the sums: 32 query heads on 8, 128 wide."""
    heads, width, dtype = (32, 8), 128, torch.bfloat16
    if session.tiny:
        heads, width, dtype = (4, 2), 16, torch.float32
    query = torch.randn(1, length, heads[0], width, dtype=dtype, device=session.device).transpose(1, 2)
    keys = torch.randn(1, length, heads[1], width, dtype=dtype, device=session.device).transpose(1, 2)
    scoring = Scoring(width**-0.5)
    seen = last_queries(torch.arange(length, device=session.device)[None], length)
    fused = attend_with_totals(query, keys, keys, seen, scoring)
    found: dict[str, Any] = {
        "length": length,
        "sdpa_ms": timed(
            session.device, lambda: F.scaled_dot_product_attention(query, keys, keys, is_causal=True, enable_gqa=True)
        ),
        "backend": torch._fused_sdp_choice(query, keys, keys, None, 0.0, True, enable_gqa=True),
    }
    if fused is None:
        return found
    total = fused[1]
    found["with_totals_ms"] = timed(session.device, lambda: attend_with_totals(query, keys, keys, seen, scoring))
    found["blocks_ms"] = timed(session.device, lambda: plain.causal_sums(query, keys, total, scoring, heads[1]))
    if session.device.type != "cuda":
        return found
    found["sums_ms"] = timed(session.device, lambda: sums.causal_sums(query, keys, total, scoring.scale))
    found["sums_of_sdpa"] = found["sums_ms"] / found["sdpa_ms"]
    found["tiles_ms"] = {
        " ".join(map(str, tiles)): timed(
            session.device,
            lambda t=tiles: sums.causal_sums(query, keys, total, scoring.scale, tiles=sums.Tiles(*t)),
        )
        for tiles in TILES
    }
    return found
