"""Falcon computes attention by itself: its attention modules get a forward of ours while attached.

Falcon-7B shares one KV head, Falcon-40B ("new decoder architecture") one per group. transformers repeats the
heads of the latter *before* they are cached; here only the real ones are.
"""

from __future__ import annotations

import sys
from typing import Any

import torch

from ..cache.step import current_step
from ..errors import UnsupportedFeatureError, UnsupportedModelError
from .dispatch import run_layer

FALCON_FAMILIES = ("falcon",)


def check_falcon(config: Any, name: str) -> None:
    if config.alibi:
        raise UnsupportedModelError(f"{name} uses ALiBi; ALiBi models are not supported")


def split_heads(module: Any, fused: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Fused ``[B, q, W]`` -> query ``[B, Hq, q, D]``, key and value ``[B, H, q, D]`` with the real KV heads."""
    batch, length, _ = fused.shape
    heads, width = module.num_heads, module.head_dim
    if module.new_decoder_architecture:
        groups = module.num_kv_heads
        qkv = fused.view(batch, length, groups, heads // groups + 2, width)
        query = qkv[..., :-2, :].reshape(batch, length, heads, width)
        key, value = qkv[..., -2, :], qkv[..., -1, :]
    elif module.multi_query:
        qkv = fused.view(batch, length, heads + 2, width)
        query, key, value = qkv[..., :-2, :], qkv[..., [-2], :], qkv[..., [-1], :]
    else:
        qkv = fused.view(batch, length, heads, 3, width)
        query, key, value = qkv[..., 0, :], qkv[..., 1, :], qkv[..., 2, :]
    return query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)


def forward(module: Any, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
    """Forward of an attention module: ours while a step of ours runs, its class's own otherwise."""
    step = current_step()
    if step is None:
        return type(module).forward(module, hidden_states, *args, **kwargs)
    if module.training and module.attention_dropout.p > 0:
        raise UnsupportedFeatureError("attention dropout is on: call model.eval() before using a SqueezeCache")
    query, key, value = split_heads(module, module.query_key_value(hidden_states))
    cos, sin = kwargs["position_embeddings"]
    rotate = vars(sys.modules[type(module).__module__])["apply_rotary_pos_emb"]
    query, key = rotate(query, key, cos, sin)
    key, value = step.cache.update(key, value, module.layer_idx)
    out = run_layer(step, module, query, key, value, scaling=module.head_dim**-0.5, native=None)
    return module.dense(out.flatten(2)), None
