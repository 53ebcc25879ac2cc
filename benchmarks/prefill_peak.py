"""Peak of keys and values while a long prompt is read, and the time it takes: full cache, exact and bounded prefill.

A random Llama (8 layers, width 512, fp32) reads one prompt of 16,384 tokens in ``model.generate``, as users would, each
variant in a process of its own.
Bytes of keys and values are those of the storages at their highest; the resident set is the growth of the process over
the model. ``python benchmarks/prefill_peak.py --out benchmarks/prefill_peak.json``
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import DynamicCache

from overheads import build, high_water, prefill
from squeezeattention import SqueezeCache

#: name -> how the prompt is held; its budget relative to the others'
VARIANTS: dict[str, dict[str, Any]] = {
    "full": {},
    "exact, squeeze": {"policy": "streaming_llm", "allocator": "squeeze"},
    "exact, uniform": {"policy": "streaming_llm", "allocator": "uniform"},
    "exact, squeeze, H2O": {"policy": "h2o", "allocator": "squeeze"},
    "exact, squeeze, a tenth of the budget": {"policy": "streaming_llm", "allocator": "squeeze", "budget": 0.1},
    "exact, probe, H2O": {"policy": "h2o", "allocator": "probe"},
    "exact, echo": {"policy": "echo", "allocator": "global"},
    "bounded, squeeze": {"policy": "streaming_llm", "allocator": "squeeze", "prefill": "bounded"},
    "bounded, squeeze, H2O": {"policy": "h2o", "allocator": "squeeze", "prefill": "bounded"},
}


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """One variant, in this process."""
    model = build(args)
    options = VARIANTS[args.variant]
    ids = torch.randint(0, 4096, (1, args.prompt))
    prefill(model, DynamicCache(config=model.config), ids[:, :64])  # the first forward allocates for good
    Path("/proc/self/clear_refs").write_text("5")
    before = high_water()
    if not options:
        cache: Any = DynamicCache(config=model.config)
    else:
        options = {"budget": 1.0, **options}
        options["budget"] *= args.budget
        cache = SqueezeCache(model, chunk_size=args.chunk, **options)
    began = time.perf_counter()
    model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        past_key_values=cache,
        max_new_tokens=1,
        do_sample=False,
        pad_token_id=0,
    )
    seconds = time.perf_counter() - began
    if not options:
        held = peak = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    else:
        held, peak = cache.memory().bytes, cache.memory().peak_bytes
    return {
        "variant": args.variant, "seconds": seconds, "kv_peak_bytes": peak, "kv_held_bytes": held,
        "resident_mib": (high_water() - before) / 1024,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompt", type=int, default=16384)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--kv-heads", type=int, default=2)
    parser.add_argument("--budget", type=float, default=0.2)
    parser.add_argument("--chunk", type=int, default=512)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path)
    parser.add_argument("--variant", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.variant:
        print(json.dumps(measure(args)))
        return
    rows = []
    for name in VARIANTS:
        command = [sys.executable, __file__, *sys.argv[1:], "--variant", name]
        run = subprocess.run(command, check=True, capture_output=True, text=True)
        rows.append(json.loads(run.stdout.splitlines()[-1]))
        full, row = rows[0], rows[-1]
        row["kv_peak_share"] = row["kv_peak_bytes"] / full["kv_peak_bytes"]
        row["time_ratio"] = row["seconds"] / full["seconds"]
        print(
            f"{name:<24} {row['seconds']:>6.1f} s {row['time_ratio']:>5.2f}x   keys and values at peak "
            f"{row['kv_peak_bytes'] / 2**20:>6.1f} MiB {row['kv_peak_share']:>6.1%}   "
            f"resident {row['resident_mib']:>5.0f} MiB",
            flush=True,
        )
    setting = {
        "layers": args.layers, "hidden": 512, "heads": 8, "kv_heads": args.kv_heads, "dtype": "float32",
        "prompt": args.prompt, "budget": args.budget, "chunk": args.chunk, "threads": args.threads,
        "torch": torch.__version__, "transformers": transformers.__version__, "machine": platform.machine(),
    }  # fmt: skip
    if args.out:
        args.out.write_text(json.dumps({"setting": setting, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
