"""Tiny random models of the supported families (four layers, odd vocabulary, short native windows).

Weights are drawn wide enough for attention to be peaked, so that evicting a token changes the output.
"""

from __future__ import annotations

from typing import Any

import torch

from ..errors import UnknownNameError

WINDOW = 23

_COMMON: dict[str, Any] = {
    "vocab_size": 101, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
_MOE = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
_NO_GQA = {"num_key_value_heads": 4}
_MIXED = ["sliding_attention", "full_attention"] * 2
_MLA = {
    "q_lora_rank": 16, "kv_lora_rank": 8, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 12,
    "n_routed_experts": 4, "n_group": 2, "topk_group": 1, "num_experts_per_tok": 2, "moe_intermediate_size": 24,
    "first_k_dense_replace": 2, "num_key_value_heads": 4, "n_shared_experts": 1,
}  # fmt: skip

#: name -> (config class, model class, what differs from the common tiny shape)
FAMILIES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", "LlamaForCausalLM", {}),
    "llama-mha": ("LlamaConfig", "LlamaForCausalLM", _NO_GQA),
    "mistral": ("MistralConfig", "MistralForCausalLM", {"sliding_window": None}),
    "mistral-window": ("MistralConfig", "MistralForCausalLM", {"sliding_window": WINDOW}),
    "mixtral": ("MixtralConfig", "MixtralForCausalLM", _MOE),
    "falcon-7b": ("FalconConfig", "FalconForCausalLM", {"multi_query": True, "ffn_hidden_size": 48}),
    "falcon-new": (
        "FalconConfig", "FalconForCausalLM",
        {"new_decoder_architecture": True, "num_kv_heads": 2, "ffn_hidden_size": 48},
    ),
    "falcon-mha": (
        "FalconConfig", "FalconForCausalLM",
        {"multi_query": False, "parallel_attn": False, "ffn_hidden_size": 48},
    ),
    "opt": ("OPTConfig", "OPTForCausalLM", {"ffn_dim": 48, "word_embed_proj_dim": 32, "dropout": 0.0}),
    "gpt-neox": ("GPTNeoXConfig", "GPTNeoXForCausalLM", {"rotary_pct": 0.5}),
    "gpt-neox-sequential": ("GPTNeoXConfig", "GPTNeoXForCausalLM", {"use_parallel_residual": False}),
    "gpt2": ("GPT2Config", "GPT2LMHeadModel", {"n_embd": 32, "n_layer": 4, "n_head": 4, "n_positions": 512}),
    "qwen2": ("Qwen2Config", "Qwen2ForCausalLM", {}),
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM", {"head_dim": 16}),
    "qwen3-window": (
        "Qwen3Config", "Qwen3ForCausalLM",
        {"head_dim": 16, "use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 2},
    ),
    "qwen3-moe": ("Qwen3MoeConfig", "Qwen3MoeForCausalLM", {**_MOE, "head_dim": 16}),
    "gemma2": (
        "Gemma2Config", "Gemma2ForCausalLM",
        {"head_dim": 16, "sliding_window": WINDOW, "query_pre_attn_scalar": 16, "attn_logit_softcapping": 5.0},
    ),
    "gemma3": (
        "Gemma3TextConfig", "Gemma3ForCausalLM",
        {"head_dim": 16, "sliding_window": WINDOW, "query_pre_attn_scalar": 16, "layer_types": _MIXED},
    ),
    "phi": ("PhiConfig", "PhiForCausalLM", {"partial_rotary_factor": 0.5}),
    "phi3": ("Phi3Config", "Phi3ForCausalLM", {"sliding_window": None}),
    "phi3-window": ("Phi3Config", "Phi3ForCausalLM", {"sliding_window": WINDOW}),
    "stablelm": ("StableLmConfig", "StableLmForCausalLM", {"partial_rotary_factor": 0.5}),
    "granite": (
        "GraniteConfig", "GraniteForCausalLM", {"residual_multiplier": 0.5, "attention_multiplier": 0.3},
    ),
    "olmo2": ("Olmo2Config", "Olmo2ForCausalLM", {}),
    "cohere": ("CohereConfig", "CohereForCausalLM", {}),
    "gpt-oss": (
        "GptOssConfig", "GptOssForCausalLM",
        {**_MOE, "head_dim": 16, "sliding_window": WINDOW, "layer_types": _MIXED},
    ),
    "starcoder2": ("Starcoder2Config", "Starcoder2ForCausalLM", {"sliding_window": None}),
    "deepseek-v3": ("DeepseekV3Config", "DeepseekV3ForCausalLM", _MLA),
}  # fmt: skip


def tiny_model(family: str, *, dtype: torch.dtype = torch.float32, seed: int = 0, **changes: Any) -> Any:
    """A random model of ``family`` in evaluation mode; ``changes`` override its config."""
    import transformers

    if family not in FAMILIES:
        raise UnknownNameError(f"unknown family {family!r}; choose one of: {', '.join(FAMILIES)}")
    config_class, model_class, differences = FAMILIES[family]
    config = getattr(transformers, config_class)(**{**_COMMON, **differences, **changes})
    state = torch.random.get_rng_state()
    torch.manual_seed(seed)
    try:
        model = getattr(transformers, model_class)(config).eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.ndim >= 2:
                    parameter.normal_(std=0.9 * parameter.shape[-1] ** -0.5)
                elif "sinks" in name:
                    parameter.normal_(std=1.0)
                elif "norm" not in name and "ln" not in name:
                    parameter.normal_(std=0.1)
    finally:
        torch.random.set_rng_state(state)
    return model.to(dtype)
