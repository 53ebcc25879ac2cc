"""What the cache costs and what it gains, as ratios measured in one run: ``make bench``.

A random Llama (8 layers, width 512, 8 heads of 64, fp32) reads prompts of 4,096 tokens and goes on, with transformers'
own DynamicCache and with a SqueezeCache of each policy at a 20 % budget; as one sequence and as a batch, since one
sequence spends most of a step on the weights. Variants are interleaved, round by round, and compared by the median of
their per-round ratios, so that a busy machine shifts both sides. Prompts are timed with one sequence; every decode
round goes on from where the last one ended. Peak memory is the growth of the process's resident set, each variant in
a process of its own, the median of three.
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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from squeezeattention import SqueezeCache
from squeezeattention.cache.memory import MemoryReport

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
    return SqueezeCache(model, budget=budget, policy=variant, allocator="squeeze")


@torch.no_grad()
def prefill(model: Any, cache: Any, ids: torch.Tensor) -> float:
    """Seconds to read the prompt; a SqueezeCache is planned and cut within them."""
    began = time.perf_counter()
    model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
    if isinstance(cache, SqueezeCache):
        cache.compact()
    return time.perf_counter() - began


@torch.no_grad()
def decode(model: Any, cache: Any, steps: int, batch: int = 1) -> float:
    """Seconds for ``steps`` decode steps."""
    token = torch.full((batch, 1), 7)
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


def peaks(args: argparse.Namespace, repeats: int = 3) -> dict[str, float]:
    """MiB per variant: the median of a few processes (an allocator's luck is worth tens of MiB)."""
    found = {}
    for variant in VARIANTS:
        tell(f"peak of {variant}")
        command = [sys.executable, __file__, "--peak-of", variant, "--prompt", str(args.prompt),
                   "--layers", str(args.layers), "--shapes", args.shape, "--budget", str(args.budget)]  # fmt: skip
        runs = [subprocess.run(command, check=True, capture_output=True, text=True) for _ in range(repeats)]
        found[variant] = statistics.median(int(run.stdout.split()[-1]) / 1024 for run in runs)
    return found


@dataclass
class Timings:
    """Seconds of one variant, a value each round."""

    prefill: list[float] = field(default_factory=list)
    decode: list[float] = field(default_factory=list)
    memory: MemoryReport | None = None


def time_variants(model: Any, args: argparse.Namespace, batch: int) -> dict[str, Timings]:
    """All variants, interleaved, and a full cache of 8 tokens: the floor of a decode step."""
    found = {name: Timings() for name in (*VARIANTS, "floor")}
    caches: dict[str, Any] = {}
    for round_ in range(1 + (args.prefill_rounds if batch == 1 else 0)):
        ids = torch.randint(0, 4096, (batch, args.prompt))
        for name, own in found.items():
            tell(f"batch {batch}, prompt {round_} {name}")
            caches[name] = make_cache(model, "full" if name == "floor" else name, args.budget)
            seconds = prefill(model, caches[name], ids[:, :8] if name == "floor" else ids)
            if round_:  # the first round warms up
                own.prefill.append(seconds)
    for round_ in range(1 + args.rounds):
        for name, own in found.items():
            tell(f"batch {batch}, decode {round_} {name}")
            seconds = decode(model, caches[name], args.steps, batch)
            if round_:
                own.decode.append(seconds)
    for name, cache in caches.items():
        if isinstance(cache, SqueezeCache):
            found[name].memory = cache.memory()
    return found


def tell(what: str) -> None:
    print(f"\r{what:<60}", end="", file=sys.stderr, flush=True)


def summarize(name: str, own: Timings, full: Timings, args: argparse.Namespace, batch: int) -> dict[str, Any]:
    """Medians of one variant, and the medians of its per-round ratios to the full cache."""
    row: dict[str, Any] = {
        "variant": name,
        "batch": batch,
        "decode_tokens_per_s": batch * args.steps / statistics.median(own.decode),
        "decode_speedup": statistics.median(b / a for a, b in zip(own.decode, full.decode, strict=True)),
    }
    if own.prefill and name != "floor":
        row["prefill_s"] = statistics.median(own.prefill)
        row["prefill_ratio"] = statistics.median(a / b for a, b in zip(own.prefill, full.prefill, strict=True))
    if own.memory is not None:
        row["kv_bytes"] = own.memory.bytes
        row["kv_index_bytes"] = own.memory.index_bytes
        row["kv_full_bytes"] = own.memory.full_bytes
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompt", type=int, default=4096)
    parser.add_argument("--steps", type=int, default=16, help="decode steps a round")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--prefill-rounds", type=int, default=5)
    parser.add_argument("--layers", type=int, default=8)
    cores = torch.get_num_threads()
    parser.add_argument("--shapes", nargs="+", default=[f"8:{cores}", "8:1", f"2:{cores}"], metavar="KV_HEADS:THREADS")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--budget", type=float, default=0.2)
    parser.add_argument("--no-peaks", action="store_true", help="leave out peak memory, the slow part")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    parser.add_argument("--peak-of", help=argparse.SUPPRESS)
    args = parser.parse_args()
    records = []
    for shape in dict.fromkeys(args.shapes):
        args.shape = shape
        args.kv_heads, args.threads = map(int, shape.split(":"))
        torch.set_num_threads(args.threads)
        if args.peak_of:
            measure_peak(args)
            return
        model, rows = build(args), []
        for batch in args.batch:
            times = time_variants(model, args, batch)
            rows += [summarize(name, own, times["full"], args, batch) for name, own in times.items()]
        again = any(record["kv_heads"] == args.kv_heads for record in records)
        peak = {} if args.no_peaks or again else peaks(args)
        for row in rows:
            if row["batch"] == 1 and row["variant"] in peak:
                row["peak_mib"] = peak[row["variant"]]
                row["peak_ratio"] = peak[row["variant"]] / peak["full"]
        show(args, rows)
        records.append({"kv_heads": args.kv_heads, "threads": args.threads, "rows": rows})
    setting = {
        "layers": args.layers, "hidden": 512, "intermediate": 1408, "heads": 8, "head_dim": 64, "dtype": "float32",
        "prompt": args.prompt, "decode_steps": args.steps, "rounds": args.rounds,
        "prefill_rounds": args.prefill_rounds, "budget": args.budget,
        "allocator": "squeeze", "torch": torch.__version__,
        "transformers": transformers.__version__, "machine": platform.machine(),
    }  # fmt: skip
    if args.out:
        args.out.write_text(json.dumps({"setting": setting, "shapes": records}, indent=1) + "\n")


def show(args: argparse.Namespace, rows: list[dict[str, Any]]) -> None:
    print(f"{args.kv_heads} KV heads, {args.threads} threads")
    print(f"batch {'variant':<15} {'prefill':>9}  ratio {'decode':>12} speed-up {'peak':>9}  ratio")
    for row in rows:
        has = "prefill_s" in row
        read = f"{row['prefill_s']:>8.2f}s {row['prefill_ratio']:>6.3f}" if has else f"{'':>16}"
        line = f"{row['batch']:>5} {row['variant']:<15} {read}"
        line += f" {row['decode_tokens_per_s']:>6.1f} tok/s {row['decode_speedup']:>7.2f}x"
        if "peak_mib" in row:
            line += f" {row['peak_mib']:>5.0f} MiB {row['peak_ratio']:>6.2f}"
        print(line)


if __name__ == "__main__":
    main()
