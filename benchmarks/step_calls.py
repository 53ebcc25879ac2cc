"""What one plain decode step asks of the device: operators called for each layer, and waits of the host.

A GPU is fast enough to wait for its host in a decode step of a small cache, so what counts there is how often it is
called; this can be counted anywhere. Tiny random Llamas of two and four layers, attention "sdpa", take a step with a
full layer; what two layers more add, halved, is a layer's, the rest is the step's own. transformers' DynamicCache is
the measure. "ragged": KV heads with budgets of their own.

``python benchmarks/step_calls.py --out benchmarks/step_calls.json``
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import DynamicCache

from squeezeattention import SqueezeCache
from squeezeattention.testing import CountCalls, left_padded, teacher_forced, tiny_model

POLICIES = ("sliding_window", "streaming_llm", "h2o", "snapkv", "tova", "echo")
PROMPT, BUDGET, STEPS = 64, 20, 40
#: Of the two KV heads.
HEADS = [16, 24]


def variants() -> dict[str, Callable[[Any], Any]]:
    """Caches by name."""

    def equal(policy: str) -> Callable[[Any], Any]:
        return lambda model: SqueezeCache(model, BUDGET, policy, allocator="uniform")

    def ragged(policy: str) -> Callable[[Any], Any]:
        return lambda model: SqueezeCache(model, policy=policy, allocator=[HEADS] * model.config.num_hidden_layers)

    return {
        "full": lambda model: DynamicCache(config=model.config),
        **{policy: equal(policy) for policy in POLICIES},
        **{f"{policy}, ragged": ragged(policy) for policy in POLICIES},
    }


@torch.no_grad()
def count(make: Callable[[Any], Any], layers: int, rows: int) -> CountCalls:
    """One decode step after ``STEPS`` others; more than one row are padded on the left."""
    model = tiny_model("llama", num_hidden_layers=layers, attn_implementation="sdpa")
    cache, tokens = make(model), torch.arange(3, 3 + PROMPT)
    texts = [tokens[row * 5 :].tolist() for row in range(rows)]
    teacher_forced(model, cache, texts, torch.full((rows, STEPS), 7))
    _, mask = left_padded(texts)
    token, positions = torch.full((rows, 1), 7), mask.sum(1, keepdim=True) + STEPS
    # No mask: a full cache would need one, but makes no other calls of its own for it.
    with CountCalls() as found:
        model(input_ids=token, position_ids=positions, past_key_values=cache, use_cache=True)
    return found


def row_of(name: str, make: Callable[[Any], Any], rows: int) -> dict[str, Any]:
    """A line of the record."""
    few, many = (count(make, layers, rows) for layers in (2, 4))
    calls, launches = (many.calls - few.calls) / 2, (many.launches - few.launches) / 2
    return {
        "cache": name, "rows": rows, "calls_a_layer": calls, "launches_a_layer": launches,
        "calls_a_step": few.calls - 2 * calls, "launches_a_step": few.launches - 2 * launches,
        "synchronisations": dict(many.waits),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 3], help="sequences in the batch")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    args = parser.parse_args()
    table = []
    for rows in args.rows:
        full: dict[str, Any] = {}
        for name, make in variants().items():
            row = row_of(name, make, rows)
            full = full or row
            row["ratio"] = round(row["calls_a_layer"] / full["calls_a_layer"], 3)
            table.append(row)
            print(
                f"{rows} rows  {name:24} {row['calls_a_layer']:6.1f} calls ({row['ratio']:.2f}x), "
                f"{row['launches_a_layer']:5.1f} launches a layer; {row['calls_a_step']:.0f} a step; "
                f"waits {row['synchronisations'] or 'none'}",
                flush=True,
            )
    setting = {"torch": torch.__version__, "transformers": transformers.__version__, "prompt": PROMPT, "budget": BUDGET}
    if args.out:
        args.out.write_text(json.dumps({"setting": setting, "rows": table}, indent=1) + "\n")


if __name__ == "__main__":
    main()
