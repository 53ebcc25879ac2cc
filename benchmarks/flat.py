"""Whether a long generation stays as fast and as small as it began.

A random Llama of the ``small`` shape (8 layers x 512, 2 KV heads, fp32) reads 2,048 tokens and generates 10,000 with
each policy at a 20 % budget. From step 500 on, every 500 steps, the cache is timed turn by turn against a copy of
itself from step 500: their ratio is 1 if nothing grows, whatever else the machine does. Bytes are measured from the
storages, and the process's resident memory is read at the same points.
``python benchmarks/flat.py --out benchmarks/flat.json``
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import statistics
import time
from pathlib import Path
from typing import Any

import torch
import transformers

from squeezeattention import POLICIES, SqueezeCache
from squeezeattention.bench import build

START = 500


@torch.no_grad()
def run_steps(model: Any, cache: Any, token: torch.Tensor, steps: int) -> tuple[torch.Tensor, float]:
    """The last token and seconds for so many decode steps."""
    began = time.perf_counter()
    for _ in range(steps):
        token = model(input_ids=token, past_key_values=cache, use_cache=True).logits[:, -1:].argmax(-1)
    return token, time.perf_counter() - began


def resident() -> int:
    """Bytes of this process in memory."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) * 1024


@torch.no_grad()
def watch(model: Any, policy: str, args: argparse.Namespace) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, model.config.vocab_size, (1, args.prompt), generator=generator)
    cache = SqueezeCache(model, args.budget, policy, "squeeze")
    token = model(input_ids=ids, past_key_values=cache, logits_to_keep=1).logits.argmax(-1)
    token, _ = run_steps(model, cache, token, START)
    young, points = copy.deepcopy(cache), []
    for step in range(START, args.steps + 1, args.every):
        twin, ratios = copy.deepcopy(young), []
        other = token
        for _ in range(args.turns):
            token, old = run_steps(model, cache, token, args.turn)
            other, new = run_steps(model, twin, other, args.turn)
            ratios.append(old / new)
        del twin
        memory = cache.memory()
        points.append({
            "step": step, "ratio": statistics.median(ratios), "kv_bytes": memory.bytes,
            "index_bytes": memory.index_bytes, "resident_bytes": resident(),
        })  # fmt: skip
        print(f"{policy:<15} step {step:>6}  {points[-1]['ratio']:.3f}  {memory.bytes / 2**20:.2f} MiB  "
              f"{points[-1]['resident_bytes'] / 2**20:.0f} MiB resident", flush=True)  # fmt: skip
        token, _ = run_steps(model, cache, token, args.every - args.turns * args.turn)
    return {"policy": policy, "points": points}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompt", type=int, default=2048)
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--every", type=int, default=500)
    parser.add_argument("--turns", type=int, default=7, help="turns of cache and copy at each point")
    parser.add_argument("--turn", type=int, default=8, help="steps of a turn")
    parser.add_argument("--budget", type=float, default=0.2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model = build("small")
    found = [watch(model, policy, args) for policy in POLICIES.names()]
    for one in found:
        ratios = [point["ratio"] for point in one["points"]]
        print(
            f"{one['policy']:<15} ratio {min(ratios):.3f} to {max(ratios):.3f}, median {statistics.median(ratios):.3f}"
        )
    if args.out:
        setting = {
            "shape": "small", "prompt": args.prompt, "steps": args.steps, "budget": args.budget,
            "threads": args.threads,
            "torch": torch.__version__, "transformers": transformers.__version__, "machine": platform.machine(),
        }  # fmt: skip
        args.out.write_text(json.dumps({"setting": setting, "policies": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
