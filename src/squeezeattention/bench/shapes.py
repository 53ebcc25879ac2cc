"""Well-known models by name, as shapes with random weights: speed and memory do not depend on the values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers

from ..registry import Registry

#: Positions, so that long prompts fit whatever a model was trained on.
_LONG = 131072


def _llama_like(kind: str, **sizes: Any) -> Callable[[], Any]:
    def config() -> Any:
        return getattr(transformers, kind)(max_position_embeddings=_LONG, **sizes)

    return config


SHAPES: Registry[Any] = Registry("shape")
SHAPES.register("mistral-7b", _llama_like(
    "MistralConfig", vocab_size=32000, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32,
    num_attention_heads=32, num_key_value_heads=8, sliding_window=None,
))  # fmt: skip
SHAPES.register("llama2-7b", _llama_like(
    "LlamaConfig", vocab_size=32000, hidden_size=4096, intermediate_size=11008, num_hidden_layers=32,
    num_attention_heads=32, num_key_value_heads=32,
))  # fmt: skip
SHAPES.register("llama2-70b", _llama_like(
    "LlamaConfig", vocab_size=32000, hidden_size=8192, intermediate_size=28672, num_hidden_layers=80,
    num_attention_heads=64, num_key_value_heads=8,
))  # fmt: skip
SHAPES.register("mixtral-8x7b", _llama_like(
    "MixtralConfig", vocab_size=32000, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32,
    num_attention_heads=32, num_key_value_heads=8, num_local_experts=8, num_experts_per_tok=2, sliding_window=None,
))  # fmt: skip
SHAPES.register("falcon-7b", _llama_like(
    "FalconConfig", vocab_size=65024, hidden_size=4544, num_hidden_layers=32, num_attention_heads=71,
    multi_query=True, parallel_attn=True, new_decoder_architecture=False, alibi=False, bias=False,
))  # fmt: skip
SHAPES.register("opt-6.7b", _llama_like(
    "OPTConfig", vocab_size=50272, hidden_size=4096, ffn_dim=16384, num_hidden_layers=32, num_attention_heads=32,
    word_embed_proj_dim=4096, do_layer_norm_before=True,
))  # fmt: skip
SHAPES.register("gpt-neox-20b", _llama_like(
    "GPTNeoXConfig", vocab_size=50432, hidden_size=6144, intermediate_size=24576, num_hidden_layers=44,
    num_attention_heads=64, use_parallel_residual=True,
))  # fmt: skip
SHAPES.register("llama3-8b", _llama_like(
    "LlamaConfig", vocab_size=128256, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32,
    num_attention_heads=32, num_key_value_heads=8,
))  # fmt: skip
SHAPES.register("qwen3-8b", _llama_like(
    "Qwen3Config", vocab_size=151936, hidden_size=4096, intermediate_size=12288, num_hidden_layers=36,
    num_attention_heads=32, num_key_value_heads=8, head_dim=128,
))  # fmt: skip
SHAPES.register("small", _llama_like(
    "LlamaConfig", vocab_size=4096, hidden_size=512, intermediate_size=1408, num_hidden_layers=8,
    num_attention_heads=8, num_key_value_heads=2,
))  # fmt: skip
SHAPES.register("tiny", _llama_like(
    "LlamaConfig", vocab_size=1024, hidden_size=256, intermediate_size=704, num_hidden_layers=4,
    num_attention_heads=4, num_key_value_heads=2,
))  # fmt: skip


def shape_names() -> list[str]:
    return SHAPES.names()


def build(
    name: str, *, layers: int | None = None, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu",
    seed: int = 0,
) -> Any:  # fmt: skip
    """A model of that shape with random weights, or of its first ``layers`` layers only.

    Raises :class:`~squeezeattention.errors.UnknownNameError`.
    """
    config = SHAPES.create(name)
    if layers is not None:
        config.num_hidden_layers = layers
    for token in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(config, token, None)
    torch.manual_seed(seed)
    with torch.device(device):
        return transformers.AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
