"""What the cache costs and what it gains, as ratios measured in one run: ``make bench``.

A random Llama (8 layers, width 512, 8 heads and 2 KV heads of 64, fp32) reads a prompt of 4,096 tokens and goes on,
with transformers' own DynamicCache and with a SqueezeCache of each policy at a 20 % budget. Variants are interleaved,
round by round, and compared by the median of their per-round ratios, so that a busy machine shifts both sides. Peak
memory is the growth of the process's resident set, each variant in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from squeezeattention import SqueezeCache

POLICIES = ("sliding_window", "streaming_llm", "h2o")
VARIANTS = ("full", *POLICIES)


def build(args: argparse.Namespace) -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=4096, hidden_size=512, intermediate_size=1408, num_hidden_layers=args.layers,
        num_attention_heads=8, num_key_value_heads=args.kv_heads, max_position_embeddings=32768,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def make_cache(model: Any, variant: str, budget: float) -> Any:
    if variant == "full":
        return DynamicCache(config=model.config)
    return SqueezeCache(model, budget=budget, policy=variant)


@torch.no_grad()
def prefill(model: Any, cache: Any, ids: torch.Tensor) -> float:
    """Seconds to read the prompt; a SqueezeCache is planned and cut within them."""
    began = time.perf_counter()
    model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
    if isinstance(cache, SqueezeCache):
        cache.compact()
    return time.perf_counter() - began


@torch.no_grad()
def decode(model: Any, cache: Any, steps: int) -> float:
    """Seconds for ``steps`` decode steps."""
    token = torch.tensor([[7]])
    began = time.perf_counter()
    for _ in range(steps):
        token = model(input_ids=token, past_key_values=cache, use_cache=True).logits[:, -1:].argmax(-1)
    return time.perf_counter() - began


def measure_peak(args: argparse.Namespace) -> None:
    """Growth of the resident set over the model, while the prompt is read (runs in a process of its own)."""
    model = build(args)
    ids = torch.randint(0, 4096, (1, args.prompt))
    cache = make_cache(model, args.peak_of, args.budget)
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
    before = high_water()
    prefill(model, cache, ids)
    print(high_water() - before)


def high_water() -> int:
    """Highest resident set of this process so far, KiB (Linux)."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+)", status)[1])  # type: ignore[index]


def peaks(args: argparse.Namespace) -> dict[str, float]:
    """MiB per variant."""
    found = {}
    for variant in VARIANTS:
        command = [sys.executable, __file__, "--peak-of", variant, "--prompt", str(args.prompt),
                   "--layers", str(args.layers), "--kv-heads", str(args.kv_heads)]  # fmt: skip
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        found[variant] = int(done.stdout.split()[-1]) / 1024
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompt", type=int, default=4096)
    parser.add_argument("--steps", type=int, default=64, help="decode steps a round")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--kv-heads", type=int, default=2)
    parser.add_argument("--budget", type=float, default=0.2)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    parser.add_argument("--peak-of", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.peak_of:
        measure_peak(args)
        return

    model = build(args)
    times: dict[str, dict[str, list[float]]] = {v: {"prefill": [], "decode": []} for v in VARIANTS}
    memory = {}
    for round_ in range(args.rounds + 1):
        ids = torch.randint(0, 4096, (1, args.prompt))
        for variant in VARIANTS:
            cache = make_cache(model, variant, args.budget)
            seconds = prefill(model, cache, ids), decode(model, cache, args.steps)
            if round_:  # the first round warms up
                times[variant]["prefill"].append(seconds[0])
                times[variant]["decode"].append(seconds[1])
            if isinstance(cache, SqueezeCache):
                report = cache.memory()
                memory[variant] = {"held": report.bytes, "index": report.index_bytes, "full": report.full_bytes}
            print(f"\rround {round_}/{args.rounds} {variant:<15}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    peak = peaks(args)
    rows = []
    for variant in VARIANTS:
        ratios = {
            kind: statistics.median(
                own / full for own, full in zip(times[variant][kind], times["full"][kind], strict=True)
            )
            for kind in ("prefill", "decode")
        }
        rows.append({
            "variant": variant,
            "prefill_s": statistics.median(times[variant]["prefill"]),
            "prefill_ratio": ratios["prefill"],
            "decode_tokens_per_s": args.steps / statistics.median(times[variant]["decode"]),
            "decode_speedup": 1 / ratios["decode"],
            "peak_mib": peak[variant],
            "peak_ratio": peak[variant] / peak["full"],
            **{f"kv_{name}_bytes": size for name, size in memory.get(variant, {}).items()},
        })  # fmt: skip
    setting = {
        "layers": args.layers, "hidden": 512, "heads": 8, "kv_heads": args.kv_heads, "head_dim": 64, "dtype": "float32",
        "prompt": args.prompt, "decode_steps": args.steps, "rounds": args.rounds, "budget": args.budget,
        "allocator": "squeeze", "threads": args.threads, "torch": torch.__version__,
        "transformers": transformers.__version__, "machine": platform.machine(),
    }  # fmt: skip
    print(f"{'variant':<15} {'prefill':>9} {'ratio':>6} {'decode':>12} {'speed-up':>8} {'peak':>9} {'ratio':>6}")
    for row in rows:
        print(
            f"{row['variant']:<15} {row['prefill_s']:>8.2f}s {row['prefill_ratio']:>6.3f} "
            f"{row['decode_tokens_per_s']:>6.1f} tok/s {row['decode_speedup']:>7.2f}x {row['peak_mib']:>5.0f} MiB "
            f"{row['peak_ratio']:>6.2f}"
        )
    if args.out:
        args.out.write_text(json.dumps({"setting": setting, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
