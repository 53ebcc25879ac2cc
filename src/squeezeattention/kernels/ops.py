"""The decode kernels as operators of torch: a compiled step calls each as one node of its graph.

What is launched follows from sizes on the host, goes to the tensors' device and may fail with a name (launching.py),
which a tracer would have to see through. A plain step calls the kernels' functions directly: an operator costs more on
the host than the launch does.
"""

from __future__ import annotations

import torch

from . import decode, ragged

_NO_SLOTS = (0,)


def _finds(*needed: object) -> bool:
    """Whether a kernel is given all that the next token's slots follow from."""
    return all(given is not None for given in needed)


@torch.library.custom_op("squeezeattention::decode_attention", mutates_args=("scores",))
def _decode(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    visible: torch.Tensor | None,
    scale: float,
    softcap: float | None,
    sink_logits: torch.Tensor | None,
    scores: torch.Tensor | None,
    positions: torch.Tensor | None,
    newest: torch.Tensor | None,
    recent: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    out, chosen = decode.decode_attention(
        query, keys, values, visible, scale, softcap, sink_logits, scores=scores, positions=positions, newest=newest,
        recent=recent,
    )  # fmt: skip
    return out, query.new_empty(_NO_SLOTS, dtype=torch.int64) if chosen is None else chosen


@_decode.register_fake
def _(query, keys, values, visible, scale, softcap, sink_logits, scores, positions, newest, recent):  # type: ignore[no-untyped-def]
    slots = keys.shape[:2] if _finds(scores, positions, newest) else _NO_SLOTS
    out = query.new_empty(*query.shape[:2], values.shape[-1])
    return out, query.new_empty(slots, dtype=torch.int64)


@torch.library.custom_op("squeezeattention::ragged_decode_attention", mutates_args=("scores",))
def _ragged(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    begins: torch.Tensor,
    rooms: torch.Tensor,
    largest: int,
    heads: int,
    scale: float,
    softcap: float | None,
    sink_logits: torch.Tensor | None,
    positions: torch.Tensor | None,
    query_positions: torch.Tensor | None,
    window: int | None,
    dense: bool,
    scores: torch.Tensor | None,
    recent: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    out, chosen = ragged.ragged_decode_attention(
        query, keys, values, begins, rooms, largest, heads, scale, softcap, sink_logits, positions=positions,
        query_positions=query_positions, window=window, dense=dense, scores=scores, recent=recent,
    )  # fmt: skip
    return out, query.new_empty(_NO_SLOTS, dtype=torch.int64) if chosen is None else chosen


@_ragged.register_fake
def _(query, keys, values, begins, rooms, largest, heads, scale, softcap, sink_logits, positions, query_positions, window, dense, scores, recent):  # type: ignore[no-untyped-def]  # fmt: skip  # noqa: E501
    slots = query.shape[:1] if _finds(scores, positions, query_positions, recent) else _NO_SLOTS
    return query.new_empty(*query.shape[:2], values.shape[1]), query.new_empty(slots, dtype=torch.int64)


def decode_attention(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    visible: torch.Tensor | None,
    scale: float,
    softcap: float | None = None,
    sink_logits: torch.Tensor | None = None,
    *,
    scores: torch.Tensor | None = None,
    positions: torch.Tensor | None = None,
    newest: torch.Tensor | None = None,
    recent: int = 0,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """:func:`decode.decode_attention`, while a step is traced as one operator."""
    if not torch.compiler.is_dynamo_compiling():
        return decode.decode_attention(
            query, keys, values, visible, scale, softcap, sink_logits, scores=scores, positions=positions,
            newest=newest, recent=recent,
        )  # fmt: skip
    out, chosen = _decode(
        query, keys, values, visible, scale, softcap, sink_logits, scores, positions, newest, recent
    )  # fmt: skip
    return out, chosen if _finds(scores, positions, newest) else None


def ragged_decode_attention(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    begins: torch.Tensor,
    rooms: torch.Tensor,
    largest: int,
    heads: int,
    scale: float,
    softcap: float | None = None,
    sink_logits: torch.Tensor | None = None,
    *,
    positions: torch.Tensor | None = None,
    query_positions: torch.Tensor | None = None,
    window: int | None = None,
    dense: bool = False,
    scores: torch.Tensor | None = None,
    recent: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """:func:`ragged.ragged_decode_attention`, while a step is traced as one operator."""
    if not torch.compiler.is_dynamo_compiling():
        return ragged.ragged_decode_attention(
            query, keys, values, begins, rooms, largest, heads, scale, softcap, sink_logits, positions=positions,
            query_positions=query_positions, window=window, dense=dense, scores=scores, recent=recent,
        )  # fmt: skip
    out, chosen = _ragged(
        query, keys, values, begins, rooms, largest, heads, scale, softcap, sink_logits, positions, query_positions,
        window, dense, scores, recent,
    )  # fmt: skip
    return out, chosen if _finds(scores, positions, query_positions, recent) else None
