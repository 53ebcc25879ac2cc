"""What each signal adds to prefill: the time spent inside it, as a share of the prompt's.

Timed inside one run, so a machine that speeds up or slows down shifts both. Shapes and prompts as given; one row.
``python benchmarks/signal_cost.py --out benchmarks/signal_cost.json``
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from pathlib import Path
from typing import Any

import torch
import transformers

from squeezeattention import SqueezeCache
from squeezeattention.bench import build
from squeezeattention.signals import SIGNALS

METHODS = ("see_hidden", "see_attention", "see_budget", "values")


def timed(signal: Any) -> list[float]:
    """Wrap a signal's methods; the list's only number grows by the seconds spent in them."""
    spent = [0.0]

    def wrap(method: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            try:
                return method(*args, **kwargs)
            finally:
                spent[0] += time.perf_counter() - began

        return call

    for name in METHODS:
        setattr(signal, name, wrap(getattr(signal, name)))
    return spent


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", default="small")
    parser.add_argument("--layers", type=int)
    parser.add_argument("--prompt", type=int, nargs="+", default=[4096])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--signals", nargs="+", default=SIGNALS.names())
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    model, rows = build(args.shape, layers=args.layers), []
    for prompt in args.prompt:
        ids = torch.randint(0, model.config.vocab_size, (1, prompt), generator=torch.Generator().manual_seed(0))
        for name in args.signals:
            shares = []
            for _ in range(args.rounds):
                cache = SqueezeCache(model, 0.2, "streaming_llm", "squeeze", signal=name)
                spent = timed(cache.signal)
                began = time.perf_counter()
                model(ids, past_key_values=cache, logits_to_keep=1)
                cache.compact()
                shares.append(spent[0] / (time.perf_counter() - began - spent[0]))
            rows.append({"prompt": prompt, "signal": name, "share": statistics.median(shares), "rounds": shares})
            print(f"{prompt:>6} {name:<16} {statistics.median(shares):.2%}", flush=True)
    if args.out:
        setting = {
            "shape": args.shape, "layers": args.layers, "threads": torch.get_num_threads(), "torch": torch.__version__,
            "transformers": transformers.__version__, "machine": platform.machine(),
        }  # fmt: skip
        args.out.write_text(json.dumps({"setting": setting, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
