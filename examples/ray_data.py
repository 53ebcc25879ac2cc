"""A file of prompts through a pool of models: Ray Data (``pip install "ray[data]"``).

``python examples/ray_data.py MODEL prompts.jsonl answers.jsonl --actors 2``: lines of ``{"prompt": ...}`` in, the same
lines with ``"text"`` out, in order. Each prompt has a plan of its own.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import ray

from squeezeattention import SqueezeCache
from squeezeattention.cli.inputs import load_model


class Generator:
    """One actor: a model, and a cache that is made as new for each prompt."""

    def __init__(self, model: str, budget: str, policy: str, allocator: str, new_tokens: int) -> None:
        self.model, self.tokenizer = load_model(model)
        self.cache = SqueezeCache(self.model, budget, policy, allocator)
        self.new_tokens = new_tokens

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        texts, tokens = [], []
        for prompt in batch["prompt"]:
            self.cache.reset()
            ids = self.tokenizer(prompt, return_tensors="pt").input_ids.to(self.model.device)
            out = self.model.generate(ids, past_key_values=self.cache, max_new_tokens=self.new_tokens, do_sample=False)
            texts.append(self.tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True))
            tokens.append(sum(self.cache.lengths()))
        return {**batch, "text": texts, "tokens_held": tokens}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("prompts", type=Path)
    parser.add_argument("answers", type=Path)
    parser.add_argument("--actors", type=int, default=2)
    parser.add_argument("--budget", default="0.2")
    parser.add_argument("--policy", default="h2o")
    parser.add_argument("--allocator", default="squeeze")
    parser.add_argument("--max-new-tokens", type=int, default=64)
    args = parser.parse_args()
    lines = [json.loads(line) for line in args.prompts.read_text().splitlines() if line.strip()]
    ray.init(address="local", include_dashboard=False, _node_ip_address="127.0.0.1")
    rows = ray.data.from_items([{"line": number, **line} for number, line in enumerate(lines)])
    told = rows.map_batches(
        Generator,
        fn_constructor_args=(args.model, args.budget, args.policy, args.allocator, args.max_new_tokens),
        batch_size=4,
        concurrency=args.actors,
    ).take_all()
    ordered = sorted(told, key=lambda row: row["line"])
    args.answers.write_text("".join(json.dumps(row, default=int) + "\n" for row in ordered))


if __name__ == "__main__":
    main()
