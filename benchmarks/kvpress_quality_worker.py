"""The other side of kvpress_quality.py: runs in an environment that has kvpress, and knows nothing of this library.

Reads a JSON line for each way to cut a prompt, and answers with greedy tokens after each question and the bytes kept.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import importlib.metadata
import json
import logging
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import kvpress
import torch
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

PRESSES = {
    "knorm": kvpress.KnormPress, "streaming_llm": kvpress.StreamingLLMPress, "tova": kvpress.TOVAPress,
    "snapkv": kvpress.SnapKVPress, "keydiff": kvpress.KeyDiffPress,
    "expected_attention": kvpress.ExpectedAttentionPress, "kvzip": kvpress.KVzipPress,
}  # fmt: skip


def press_of(name: str, ratio: float) -> Any:
    head, _, inner = name.partition("+")
    if inner:
        return kvpress.AdaKVPress(PRESSES[inner](compression_ratio=ratio))
    return PRESSES[head](compression_ratio=ratio)


def answer(model: Any, asked: dict[str, Any]) -> dict[str, Any]:
    """Read, cut, and answer every question from a copy of what is left."""
    ids = torch.tensor([asked["tokens"]])
    attentions = [layer.self_attn for layer in model.model.layers]
    for attention in attentions:
        attention.masked_key_indices = None
    cache = DynamicCache()
    press = contextlib.nullcontext() if asked["keep"] is None else press_of(asked["press"], 1 - asked["keep"])(model)
    with press:
        model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
    masked = [getattr(attention, "masked_key_indices", None) for attention in attentions]
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    width = cache.layers[0].keys.shape[-1] * cache.layers[0].keys.element_size() * 2
    held -= sum(len(found[0]) * width for found in masked if found is not None)
    said: list[list[int]] = [[] for _ in asked["prompts"]]
    by_length: dict[int, list[int]] = {}
    for index, prompt in enumerate(asked["prompts"]):
        by_length.setdefault(len(prompt), []).append(index)
    for indices in by_length.values():
        rows = len(indices)
        twin = copy.deepcopy(cache)
        twin.batch_repeat_interleave(rows)
        for attention, found in zip(attentions, masked, strict=True):
            if found is not None:
                _, heads, columns = found
                batch = torch.arange(rows).repeat_interleave(len(heads))
                attention.masked_key_indices = (batch, heads.repeat(rows), columns.repeat(rows))
        fed, at = torch.tensor([asked["prompts"][index] for index in indices]), ids.shape[1]
        for _ in range(asked["steps"]):
            positions = torch.arange(at, at + fed.shape[1])
            logits = model(
                input_ids=fed, past_key_values=twin, use_cache=True, logits_to_keep=1, cache_position=positions,
                position_ids=positions[None].expand(rows, -1),
            ).logits  # fmt: skip
            at += fed.shape[1]
            fed = logits[:, -1:].argmax(-1)
            for index, token in zip(indices, fed[:, 0].tolist(), strict=True):
                said[index].append(token)
    for attention in attentions:
        attention.masked_key_indices = None
    versions = {name: importlib.metadata.version(name) for name in ("kvpress", "transformers", "torch")}
    return {"said": said, "bytes": held, "versions": versions}


def plain_tokenizer(source: Path, folder: Path) -> str:
    """The tokenizer where KVzip looks for it, under a class that older releases know, and without a chat template,
    since texts are read as they are."""
    shutil.copy(source / "tokenizer.json", folder)
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    shutil.copy(source / "config.json", folder)
    return str(folder)


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--threads", type=int, required=True)
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    torch.set_num_threads(args.threads)
    config = LlamaConfig.from_pretrained(args.model)
    rotary = json.loads((Path(args.model) / "config.json").read_text()).get("rope_parameters") or {}
    if "rope_theta" in rotary:  # where newer releases of transformers write it
        config.rope_theta = rotary["rope_theta"]
    model = LlamaForCausalLM.from_pretrained(args.model, config=config, dtype=torch.float32).eval()
    with tempfile.TemporaryDirectory() as folder:
        model.config._name_or_path = plain_tokenizer(Path(args.model), Path(folder))
        for line in sys.stdin:
            print(json.dumps(answer(model, json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
