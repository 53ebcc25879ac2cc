"""The measurements behind docs/results.md, each some ``squeeze`` commands: ``make results``.

Evaluations that are complete are left as they are, one that was stopped goes on. ``--only NAME`` runs some of them,
``--model`` other models (each into folders of its own), ``--list`` shows the commands.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
OUT = Path("benchmarks/eval")


def _each(option: str, *values: object) -> list[str]:
    return [text for value in values for text in (option, str(value))]


BOTH = _each("--policy", "streaming_llm", "h2o")
RULER = _each("-t", "niah_single_1", "niah_multikey_2", "vt", "cwe", "fwe")
RULES = ("squeeze", "lookup", "reach", "focus")

#: question -> options of `squeeze eval run`; seeds were fixed before anything was measured with them
GRIDS: dict[str, list[str]] = {
    # 1. What do bytes buy, with uniform budgets, the published rule and this project's?
    "bytes": [
        "-t", "recall", *BOTH, *_each("--allocator", "uniform", *RULES),
        *_each("--budget", 0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 0.9), *_each("--length", 512, 800), "--samples", "8",
        "--seed", "11",
    ],
    # 1a. ... and how near to the whole cache do uniform budgets have to come?
    "whole": [
        "-t", "recall", *BOTH, "--allocator", "uniform", *_each("--budget", 0.95, 0.98), *_each("--length", 512, 800),
        "--samples", "8", "--seed", "11",
    ],
    # 1b. ... with needles and a pass key instead of facts in code?
    "needles": [
        *_each("-t", "niah_single_1", "niah_multikey_2", "passkey"), *BOTH, *_each("--allocator", "uniform", "lookup"),
        *_each("--budget", 0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 0.95), "--length", "512", "--samples", "12", "--seed", "31",
    ],
    # 1c. ... and on RULER's tasks, in rows as long as training's? (the full cache says what the model can do)
    "ruler": [
        *RULER, "--policy", "streaming_llm",
        *_each("--allocator", "uniform", "lookup"), "--budget", "0.3", "--length", "2048", "--samples", "30",
        "--seed", "15",
    ],
    # 1d. ... and in short rows, which every model has read?
    "short": [
        *RULER, "--policy", "streaming_llm",
        *_each("--allocator", "uniform", "lookup"), "--budget", "0.3", "--length", "512", "--samples", "15",
        "--seed", "15",
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
        *_each("--allocator", "uniform", "squeeze", "squeeze:outliers=clamp", "lookup", "reach", "focus", "cake",
               "zigzag", "lazy", "dynamickv", "pyramid", "random", "inverted"),
        "--budget", "0.2", "--length", "512", "--samples", "10", "--seed", "13",
    ],
    # 3b. ... and where more is asked than to find one thing? (for models that can do it)
    "tasks": [
        *_each("-t", "niah_multikey_2", "vt", "fwe"), *BOTH,
        *_each("--allocator", "uniform", "squeeze", "lookup", "reach", "focus", "cake", "dynamickv"),
        *_each("--budget", 0.2, 0.4), "--length", "512", "--samples", "8", "--seed", "16",
    ],
    # 4. What does a frozen plan lose? (after "stability", which makes the plans)
    "frozen": [
        *_each("-t", "recall", "code"), "--policy", "streaming_llm",
        *_each("--allocator", "uniform", *RULES, *(OUT / f"{{model}}-frozen-{rule}.json" for rule in RULES)),
        *_each("--budget", 0.2, 0.3), "--length", "512", "--samples", "10", "--seed", "22",
    ],
    # 5. What does the bounded prefill cost?
    "bounded": [
        "-t", "recall", *BOTH,
        *_each("--allocator", "uniform", "squeeze", "squeeze:prefill=bounded,chunk_size=128", "lookup",
               "lookup:prefill=bounded,chunk_size=128"),
        *_each("--budget", 0.3, 0.5), "--length", "1024", "--samples", "6", "--seed", "11",
    ],
}  # fmt: skip
TEXTS = [*_each("-t", "recall", "niah_single_1", "code", "vt"), "--length", "512", "--samples", "12", "--seed", "21"]
NAMES = ("stability", "oracle", *GRIDS)


def commands(name: str, model: str) -> list[tuple[list[str], Path | None]]:
    """Commands of a question, and the file that takes what each prints, if one does."""
    short = Path(model).name
    if name == "stability":
        return [
            (
                ["plan", model, *TEXTS, "--policy", "streaming_llm", "--allocator", rule, "--budget", "0.2",
                 "-o", str(OUT / f"{short}-frozen-{rule}.json"), "--json"],
                OUT / f"{short}-stability-{rule}.json",
            )
            for rule in RULES
        ]  # fmt: skip
    if name == "oracle":  # which signal ranks the layers as cutting them does?
        words = ["-t", "recall", "--length", "512", "--samples", "8", "--seed", "23", "--alone", "--json"]
        return [(["oracle", model, *words], OUT / f"{short}-oracle.json")]
    options = [option.format(model=short) for option in GRIDS[name]]
    return [(["eval", "run", "--model", model, *options, "-o", str(OUT / f"{short}-{name}")], None)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", nargs="+", default=["embedded"], help="names, or folders as seen from the root")
    parser.add_argument("--only", nargs="+", choices=NAMES, default=list(NAMES))
    parser.add_argument("--list", action="store_true", help="show the commands and end")
    args = parser.parse_args()
    squeeze = str(Path(sys.executable).with_name("squeeze"))
    for model in args.model:
        for name in NAMES:
            for words, file in commands(name, model) if name in args.only else ():
                print("squeeze", *words, *([">", str(file)] if file else []), flush=True)
                if args.list or (file and (ROOT / file).exists()):
                    continue
                run = subprocess.run([squeeze, *words], check=True, cwd=ROOT, stdout=subprocess.PIPE if file else None)
                if file:
                    (ROOT / file).write_bytes(run.stdout)


if __name__ == "__main__":
    main()
