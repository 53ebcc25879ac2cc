"""The evaluations behind docs/results.md, each a ``squeeze eval`` of its own: ``make results``.

Grids that are complete are left as they are, one that was stopped goes on. ``--only NAME`` runs some of them,
``--model`` another model (into a folder of its own), ``--list`` shows the commands.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent / "eval"


def _each(option: str, *values: object) -> list[str]:
    return [text for value in values for text in (option, str(value))]


BOTH = _each("--policy", "streaming_llm", "h2o")
GRIDS: dict[str, list[str]] = {
    # 1. What do bytes buy, with uniform budgets, the published rule and this project's?
    "bytes": [
        *_each("-t", "recall", "niah_single_1", "code"), *BOTH, *_each("--allocator", "uniform", "squeeze", "reach"),
        *_each("--budget", 0.1, 0.2, 0.3, 0.5, 0.7), "--length", "1024", "--samples", "6", "--seed", "11",
    ],
    # 2. Is p = 0.3 to 0.4 right, and k = 3?
    "p": [
        "-t", "recall", "--policy", "streaming_llm",
        *_each("--allocator", "squeeze", "squeeze:groups=2", "squeeze:groups=4"),
        *_each("--p", 0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0), "--budget", "0.3", "--length", "512", "--samples", "10",
        "--seed", "12",
    ],
    # 3. Who wins at equal bytes?
    "allocators": [
        *_each("-t", "recall", "code"), *BOTH,
        *_each("--allocator", "uniform", "squeeze", "squeeze:outliers=clamp", "reach", "cake", "zigzag", "lazy",
               "dynamickv", "pyramid", "random", "inverted"),
        "--budget", "0.2", "--length", "512", "--samples", "10", "--seed", "13",
    ],
    # 5. What does the bounded prefill cost?
    "bounded": [
        "-t", "recall", *BOTH,
        *_each("--allocator", "uniform", "squeeze", "squeeze:prefill=bounded,chunk_size=128", "reach",
               "reach:prefill=bounded,chunk_size=128"),
        *_each("--budget", 0.3, 0.5), "--length", "1024", "--samples", "6", "--seed", "11",
    ],
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--only", nargs="+", choices=list(GRIDS), default=list(GRIDS))
    parser.add_argument("--list", action="store_true", help="show the commands and end")
    args = parser.parse_args()
    for name in args.only:
        folder = HERE / f"{Path(args.model).name}-{name}"
        command = ["squeeze", "eval", "run", "--model", args.model, *GRIDS[name], "-o", str(folder)]
        print(" ".join(command), flush=True)
        if not args.list:
            command[0] = str(Path(sys.executable).with_name("squeeze"))
            subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
