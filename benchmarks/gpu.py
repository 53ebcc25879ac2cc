"""The tables that need a GPU: ``python benchmarks/gpu.py`` on a machine that has one.

Mistral 7B's shape in bf16 with random weights, 20 % kept, each policy with the published rule, against the full cache,
by the paper's batches and at the largest batch that fits; plain and compiled, with torch's kernels and with this
library's. Records go to ``benchmarks/gpu/``; none is there yet.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent / "gpu"
LOADS = {"512": (512, 1024), "16k": (16384, 1024)}
COMMON = ["--allocator", "squeeze", "--budget", "0.2", "--compile", "--dtype", "bfloat16", "--device", "cuda"]


def commands(shape: str) -> list[list[str]]:
    """One ``squeeze bench`` for each load, kind of kernels and question."""
    found = []
    for kernels in ("torch", "triton"):
        for name, (prompt, new) in LOADS.items():
            sizes = ["--prompt", str(prompt), "-n", str(new), "--kernels", kernels]
            batches = [text for batch in (1, 32, 64, 128, 224) for text in ("--batch", str(batch))]
            for what, options in (("batches", batches), ("largest", ["--largest-batch"])):
                file = HERE / f"{shape}-{name}-{kernels}-{what}"
                found.append([
                    "bench", shape, *sizes, *options, *COMMON, "-o", f"{file}.json", "--plot", f"{file}.png",
                ])  # fmt: skip
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", default="mistral-7b")
    parser.add_argument("--list", action="store_true", help="show the commands and end")
    args = parser.parse_args()
    for command in commands(args.shape):
        print("squeeze", *command, flush=True)
        if not args.list:
            HERE.mkdir(exist_ok=True)
            subprocess.run([str(Path(sys.executable).with_name("squeeze")), *command], check=True)


if __name__ == "__main__":
    main()
