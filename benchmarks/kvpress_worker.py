"""The other side of kvpress_side.py: runs in an environment that has kvpress, and knows nothing of this library.

Reads lines ``NAME STEPS`` and answers with the seconds that so many decode steps took; the first one of a name reads
the prompt before the clock starts.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import sys
import time
from typing import Any

import torch
from kvpress import DecodingPress, KnormPress, PrefillDecodingPress, StreamingLLMPress, TOVAPress
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

PRESSES = {"knorm": KnormPress, "streaming": StreamingLLMPress, "tova": TOVAPress}


class Text:
    """One prompt and what follows, under a press. ``flat``: cut again at every step, so that nothing grows."""

    def __init__(self, model: Any, name: str, ids: torch.Tensor, keep: float) -> None:
        kind, _, flat = name.partition(" ")
        press = PRESSES[kind](compression_ratio=1 - keep)
        if flat:
            size = int(ids.shape[1] * keep)
            later = DecodingPress(PRESSES[kind](), compression_interval=1, target_size=size)
            press = PrefillDecodingPress(press, later)
        self.model, self.flat, self.press = model, bool(flat), press
        self.cache, self.position = DynamicCache(), ids.shape[1]
        with press(model):
            at = torch.arange(ids.shape[1])  # newer releases of transformers hand on what they are given, and make none
            model(ids, past_key_values=self.cache, use_cache=True, logits_to_keep=1, cache_position=at)
        self.token = torch.tensor([[7]])

    def decode(self, steps: int) -> float:
        with self.press(self.model) if self.flat else contextlib.nullcontext():
            began = time.perf_counter()
            for _ in range(steps):
                at = torch.tensor([self.position])
                logits = self.model(
                    self.token, past_key_values=self.cache, use_cache=True, cache_position=at, position_ids=at[None]
                ).logits
                self.token, self.position = logits[:, -1:].argmax(-1), self.position + 1
            return time.perf_counter() - began

    def held(self) -> int:
        return sum(layer.keys.nbytes + layer.values.nbytes for layer in self.cache.layers)


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--prompt", type=int, required=True)
    parser.add_argument("--keep", type=float, required=True)
    parser.add_argument("--threads", type=int, required=True)
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=4096, hidden_size=512, intermediate_size=1408, num_hidden_layers=8, num_attention_heads=8,
        num_key_value_heads=2, max_position_embeddings=131072,
    )).eval()  # fmt: skip
    ids = torch.randint(0, 4096, (1, args.prompt), generator=torch.Generator().manual_seed(0))
    texts: dict[str, Text] = {}
    for line in sys.stdin:
        name, steps = line.rsplit(maxsplit=1)
        if name not in texts:
            texts[name] = Text(model, name, ids, args.keep)
        print(texts[name].decode(int(steps)), texts[name].held(), flush=True)


if __name__ == "__main__":
    main()
