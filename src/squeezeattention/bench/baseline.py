"""The full cache at its best: attention of a compiled step without repeating keys and values for their query heads.

Where KV heads are shared, transformers' own ``sdpa`` repeats keys and values under ``torch.compile``, since the fast
kernels take no mask together with ``enable_gqa``: that reads and writes a static cache several times over at each
step. A token's query heads stand beside each other instead, as rows of one query, which every kernel takes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.nn import functional as F

from ..hf import compat

#: The name under which transformers knows it, while a bench runs.
NAME = "bench_grouped_sdpa"


def grouped_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """As transformers' ``sdpa``: query ``[B, Hq, 1, D]``, keys and values ``[B, H, N, D]`` -> ``[B, 1, Hq, D]``.

    Prompts, and masks that tell query heads apart, are handed to ``sdpa`` itself.
    """
    batch, query_heads, length, width = query.shape
    heads = key.shape[1]
    shared = attention_mask is None or attention_mask.shape[1] == 1
    unusual = any(kwargs.get(name) is not None for name in ("position_bias", "softcap", "s_aux", "cache"))
    if length != 1 or not shared or unusual or query_heads == heads:
        own = compat.attention_function("sdpa", None)
        return own(module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **kwargs)  # type: ignore[misc]
    packed = query.reshape(batch, heads, query_heads // heads, width)
    out = F.scaled_dot_product_attention(packed, key, value, attn_mask=attention_mask, scale=scaling)
    return out.reshape(batch, query_heads, 1, -1).transpose(1, 2), None


def compiled_step(model: Any, backend: str = "inductor", dynamic: bool | None = None) -> Callable[..., Any]:
    """``model`` compiled whole, on a GPU as CUDA graphs; what a step gives is overwritten by the next one."""
    on_gpu = model.device.type == "cuda"
    call: Callable[..., Any] = torch.compile(
        model, fullgraph=True, dynamic=dynamic, backend=backend, mode="reduce-overhead" if on_gpu else None
    )
    if not on_gpu:
        return call

    def step(**given: Any) -> Any:
        torch.compiler.cudagraph_mark_step_begin()  # or it may be taken for a part of the step before
        return call(**given)

    return step


@contextlib.contextmanager
def best_attention(model: Any) -> Iterator[bool]:
    """Inside, ``model`` attends by :func:`grouped_attention`; gives ``False`` where it is left as it is, since it does
    not attend by ``sdpa`` through transformers' interface."""
    config = model.config.get_text_config()
    before = compat.raw_implementation(config)
    if compat.implementation(config) != "sdpa" or not getattr(model, "_supports_attention_backend", False):
        yield False
        return
    compat.register(NAME, grouped_attention, compat.mask_function("sdpa"))
    compat.set_implementation(config, NAME)
    try:
        yield True
    finally:
        compat.set_implementation(config, before)
