"""A decode step over KV heads of different lengths beside one over equal heads of the same total.

``python benchmarks/ragged_decode.py``: a random Llama (8 layers, width 512, 8 KV heads of 64, fp32) reads 2,048 tokens
and goes on with 512 a head on average. ``whole``: some heads keep everything, the others 96; ``drawn``: a random share
for each head, the same in all rows; ``rows``: drawn for each row of the batch too. Steps are interleaved and compared
by the median of the steps' own times; every variant holds the same number of bytes.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from squeezeattention import SqueezeCache
from squeezeattention.allocators.base import Allocation, HeadAllocator

LAYERS, HEADS, TOKENS, BUDGET, STEPS = 8, 8, 2048, 512, 64


class Drawn(HeadAllocator):
    """Shares at random; asked once for each row."""

    name = "drawn"
    signal = "replay"

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng

    def allocate_heads(self, signal_values: Sequence[Sequence[float]], n_layers: int) -> Allocation:
        shares = tuple(tuple(self.rng.random() + 0.05 for _ in layer) for layer in signal_values)
        return Allocation((1.0,) * n_layers, (1,) * n_layers, heads=shares)


def drawn(rng: random.Random) -> list[list[int]]:
    """The same total in every layer, by random shares."""
    plan = []
    for _ in range(LAYERS):
        shares = [rng.random() + 0.05 for _ in range(HEADS)]
        layer = [int(BUDGET * HEADS * share / sum(shares)) for share in shares]
        layer[0] += BUDGET * HEADS - sum(layer)
        plan.append(layer)
    return plan


def whole(rng: random.Random) -> list[list[int]]:
    """As many heads as can be keep all, the others 96."""
    plan = [[96] * HEADS for _ in range(LAYERS)]
    left = (BUDGET - 96) * LAYERS * HEADS
    units = [(layer, head) for layer in range(LAYERS) for head in range(HEADS)]
    for layer, head in rng.sample(units, len(units)):
        more = min(left, TOKENS + STEPS - 96)
        plan[layer][head] += more
        left -= more
    return plan


@torch.no_grad()
def measure(model: Any, policy: str, batch: int) -> dict[str, Any]:
    rng = random.Random(0)
    ids = torch.randint(3, 1000, (batch, TOKENS), generator=torch.Generator().manual_seed(batch))
    rules: dict[str, Any] = {"equal": "uniform", "whole": whole(rng), "drawn": drawn(rng)}
    if batch > 1:
        rules["rows"] = Drawn(rng)
    caches = {}
    for name, rule in rules.items():
        cache = SqueezeCache(model, policy=policy, allocator=rule, budget=None if isinstance(rule, list) else BUDGET)
        model(input_ids=ids, past_key_values=cache, logits_to_keep=1)
        cache.compact()
        caches[name] = cache
    times: dict[str, list[float]] = {name: [] for name in caches}
    token = ids[:, :1]
    for _ in range(STEPS):
        for name, cache in rng.sample(list(caches.items()), len(caches)):
            began = time.perf_counter()
            model(input_ids=token, past_key_values=cache, logits_to_keep=1)
            times[name].append(time.perf_counter() - began)
    step = {name: statistics.median(values[8:]) for name, values in times.items()}
    return {
        "policy": policy, "batch": batch,
        "milliseconds": {name: round(seconds * 1e3, 2) for name, seconds in step.items()},
        "ratio": {name: round(seconds / step["equal"], 3) for name, seconds in step.items()},
        "bytes": {name: cache.memory().bytes for name, cache in caches.items()},
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=1000, hidden_size=512, intermediate_size=1376, num_hidden_layers=LAYERS,
            num_attention_heads=HEADS, num_key_value_heads=HEADS, max_position_embeddings=4096,
        )
    ).eval()  # fmt: skip
    record: dict[str, Any] = {"torch": torch.__version__, "machine": platform.machine(), "rows": []}
    for threads in args.threads:
        torch.set_num_threads(threads)
        for policy in ("streaming_llm", "h2o"):
            for batch in (1, 4):
                row = {"threads": threads, **measure(model, policy, batch)}
                record["rows"].append(row)
                print(threads, policy, batch, row["milliseconds"], row["ratio"], flush=True)
    if args.out:
        args.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
