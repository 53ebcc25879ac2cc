"""Decode speed beside kvpress, whose releases need an older transformers: two processes, turn by turn.

``python benchmarks/kvpress_side.py --python PATH`` with the interpreter of an environment that has kvpress
(``pip install kvpress``). Both sides have the same random Llama (8 layers x 512, 2 KV heads, fp32), a prompt of 4,096
tokens of which 20 % is kept, and 256 more tokens in rounds; a round lets every variant take its steps once, so that a
busy machine shifts all of them. kvpress's presses cut the prompt and grow afterwards; "flat" cuts again at every step,
which is what a bound on memory takes there. Ratios are medians over the rounds.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import time
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import DynamicCache

from squeezeattention import POLICIES, SqueezeCache
from squeezeattention.bench import build
from squeezeattention.bench.variants import cache_bytes

GROWING = ("knorm", "streaming", "tova")
WORKER = Path(__file__).with_name("kvpress_worker.py")


class Ours:
    """One prompt and what follows, with a cache of this library, or the full one."""

    def __init__(self, model: Any, name: str, ids: torch.Tensor, keep: float) -> None:
        self.model = model
        policy, _, compiled = name.partition(" ")
        self.cache: Any = DynamicCache(config=model.config)
        if policy != "full":
            self.cache = SqueezeCache(model, keep, policy, "squeeze", compile=bool(compiled))
        model(ids, past_key_values=self.cache, use_cache=True, logits_to_keep=1)
        self.token, self.position = torch.tensor([[7]]), ids.shape[1]
        if compiled:
            self.decode(2)  # compiles

    def decode(self, steps: int) -> float:
        began = time.perf_counter()
        for _ in range(steps):
            at = torch.tensor([[self.position]])
            logits = self.model(self.token, past_key_values=self.cache, use_cache=True, position_ids=at).logits
            self.token, self.position = logits[:, -1:].argmax(-1), self.position + 1
        return time.perf_counter() - began


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--python", type=Path, required=True, help="interpreter of an environment that has kvpress")
    parser.add_argument("--prompt", type=int, default=4096)
    parser.add_argument("--steps", type=int, default=16, help="of a round")
    parser.add_argument("--rounds", type=int, default=16)
    parser.add_argument("--keep", type=float, default=0.2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--compile", action="store_true", help="this library's steps through torch.compile as well")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model = build("small")
    ids = torch.randint(0, 4096, (1, args.prompt), generator=torch.Generator().manual_seed(0))
    names = [*POLICIES.names(), *(f"{name} compiled" for name in POLICIES.names() if args.compile)]
    ours = {name: Ours(model, name, ids, args.keep) for name in ("full", *names)}
    theirs = [*GROWING, *(f"{name} flat" for name in GROWING)]
    command = [str(args.python), str(WORKER), "--prompt", str(args.prompt), "--keep", str(args.keep), "--threads",
               str(args.threads)]  # fmt: skip
    rounds: list[dict[str, float]] = []
    held: dict[str, int] = {}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as worker:
        if worker.stdin is None or worker.stdout is None:
            raise RuntimeError("the worker has no pipes")
        for index in range(args.rounds):
            seconds = {name: one.decode(args.steps) for name, one in ours.items()}
            for name in theirs:
                print(name, args.steps, file=worker.stdin, flush=True)
                took, count = worker.stdout.readline().split()
                seconds[f"kvpress {name}"], held[f"kvpress {name}"] = float(took), int(count)
            rounds.append(seconds)
            print(f"round {index + 1} of {args.rounds}", flush=True)
        worker.stdin.close()
    held |= {name: cache_bytes(one.cache)[0] for name, one in ours.items()}
    rates = {name: args.steps / statistics.median(one[name] for one in rounds) for name in rounds[0]}
    best_growing = [min(one[f"kvpress {name}"] for name in GROWING) for one in rounds]
    best_flat = [min(one[f"kvpress {name} flat"] for name in GROWING) for one in rounds]
    table = []
    for name in rounds[0]:
        row = {
            "variant": name, "tokens_per_s": rates[name], "kv_bytes": held[name],
            "against_full": statistics.median(one["full"] / one[name] for one in rounds),
            "against_best_growing": statistics.median(
                other / one[name] for other, one in zip(best_growing, rounds, strict=True)
            ),
            "against_best_flat": statistics.median(
                other / one[name] for other, one in zip(best_flat, rounds, strict=True)
            ),
        }  # fmt: skip
        table.append(row)
        print(f"{name:<26} {row['tokens_per_s']:>6.1f} tok/s  {row['against_full']:>5.2f}x full  "
              f"{row['against_best_growing']:>5.2f}x growing  {row['against_best_flat']:>5.2f}x flat  "
              f"{row['kv_bytes'] / 2**20:>6.2f} MiB")  # fmt: skip
    if args.out:
        setting = {
            "shape": "small", "prompt": args.prompt, "keep": args.keep, "steps": args.steps, "rounds": args.rounds,
            "threads": args.threads, "kvpress": _version_there(args.python, "kvpress"),
            "transformers_there": _version_there(args.python, "transformers"),
            "torch": torch.__version__, "transformers": transformers.__version__, "machine": platform.machine(),
        }  # fmt: skip
        args.out.write_text(json.dumps({"setting": setting, "rows": table}, indent=1) + "\n")


def _version_there(python: Path, package: str) -> str:
    code = f"from importlib.metadata import version; print(version({package!r}))"
    return subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=True).stdout.strip()


if __name__ == "__main__":
    main()
