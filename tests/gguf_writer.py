"""GGUF files as llama.cpp writes them, of a tiny random Llama, for tests: fp32, so nothing is lost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from squeezeattention.testing import tiny_model

#: What becomes one token.
MERGES = ["t h", "th e", "i n", "a n"]
CHAT = "{% for m in messages %}<s>{{ m['role'] }} {{ m['content'] }}</s>{% endfor %}"


def vocabulary() -> list[str]:
    """Three special tokens, every byte in GPT-2's spelling, and what the merges make."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    return ["<unk>", "<s>", "</s>", *bytes_to_unicode().values(), *(merge.replace(" ", "") for merge in MERGES)]


def tiny_llama(seed: int = 0) -> Any:
    return tiny_model("llama", seed=seed, vocab_size=len(vocabulary()))


def write_gguf(
    path: Path, model: Any, *, arch: str = "llama", leave_out: str = "", extra: tuple[str, ...] = ()
) -> Path:
    """Write a Llama; ``leave_out`` one tensor, or write an ``extra`` one."""
    gguf = pytest.importorskip("gguf", reason="the extra gguf is not installed")
    import numpy

    config, tokens = model.config, vocabulary()
    writer = gguf.GGUFWriter(path, arch)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, 3, *[1] * (len(tokens) - 3)])
    writer.add_token_merges(MERGES)
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHAT)
    for name, weights in _tensors(model):
        if name != leave_out:
            writer.add_tensor(name, weights)
    for name in extra:
        writer.add_tensor(name, numpy.full(4, 8, dtype="float32"))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


_NAMES = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip


def _tensors(model: Any) -> Any:
    heads = {"attn_q": model.config.num_attention_heads, "attn_k": model.config.num_key_value_heads}
    for name, weights in model.state_dict().items():
        if name.startswith("model.layers."):
            _, _, layer, own = name.removesuffix(".weight").split(".", 3)
            kind, prefix = _NAMES[own], f"blk.{layer}."
        else:
            kind, prefix = _NAMES[name.removesuffix(".weight")], ""
        array = weights.float().numpy()
        if kind in heads:  # llama.cpp rotates neighbours, transformers halves
            shape = (heads[kind], 2, array.shape[0] // heads[kind] // 2, array.shape[1])
            array = array.reshape(shape).swapaxes(1, 2).reshape(array.shape).copy()
        yield f"{prefix}{kind}.weight", array
