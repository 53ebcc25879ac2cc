"""The measurements behind docs/results.md, each some ``squeeze`` commands: ``make results``.

Evaluations that are complete are left as they are, one that was stopped goes on. ``--only NAME`` runs some of them,
``--model`` other models (each into folders of its own), ``--list`` shows the commands.

``--model smollm2 --texts FOLDER`` is the grid on a real model: prose of four novels, plain text of Project Gutenberg's
editions as alice.txt, sherlock_holmes.txt, war_of_the_worlds.txt and frankenstein.txt.
"""

from __future__ import annotations

import argparse
import os
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

BOOKS = ("alice", "sherlock_holmes", "war_of_the_worlds", "frankenstein")
BOOKS_AT = Path("build/texts")  # a link to where they are, so that records name no machine's folders


def _books(task: str, **options: object) -> list[str]:
    given = "".join(f",{name}={value}" for name, value in options.items())
    return _each("-t", *(f"{task}:path={BOOKS_AT / book}.txt{given}" for book in BOOKS))


def _ways(allocators: str, *policies: str) -> list[str]:
    return _each("--policy", *(f"{policy}/{allocator}" for policy in policies for allocator in allocators.split()))


SCORERS = ("snapkv", "criticalkv", "defensivekv", "tova", "keydiff", "rkv", "expected_attention", "kvzip", "echo")
ALL_WAYS = [
    *_ways("uniform squeeze probe calibrated", "streaming_llm", "h2o"),
    *_ways("uniform probe adakv global", "snapkv", "tova", "keydiff", "expected_attention", "kvzip", "echo"),
]
BEST_WAYS = [
    *_ways("uniform squeeze probe calibrated", "h2o"), *_ways("uniform probe", "streaming_llm"),
    *_ways("global", "snapkv", "kvzip"), *_ways("probe global", "echo"),
]  # fmt: skip
LAYER_RULES = (
    "uniform", "squeeze", "squeeze:signal=cosine,outliers=clamp", "lookup", "reach", "focus", "cake", "zigzag", "lazy",
    "dynamickv", "pyramid", "random", "probe",
)  # fmt: skip
MIDDLE = _each("--budget", 0.2, 0.3)
OUTER = _each("--budget", 0.1, 0.5)
#: The same for models that can answer questions about prose.
PROSE: dict[str, list[str]] = {
    # What do scorers and selections keep of facts that are asked for after the cut ...
    "facts": [*_books("facts"), *ALL_WAYS, *MIDDLE, "--length", "1600", "--samples", "4", "--seed", "51"],
    # ... with less and with more?
    "sweep": [*_books("facts"), *BEST_WAYS, *OUTER, "--length", "1600", "--samples", "4", "--seed", "51"],
    # ... with the scorers that are kin to others?
    "scorers": [
        *_books("facts"), *_ways("uniform probe adakv global", "criticalkv", "defensivekv", "rkv"), *MIDDLE,
        "--length", "1600", "--samples", "2", "--seed", "51",
    ],
    # Does any rule that gives every head of a layer the same do better than equal budgets?
    "layers": [
        *_books("facts"), *_ways(" ".join(LAYER_RULES), "h2o"), *MIDDLE, "--length", "1600", "--samples", "2",
        "--seed", "51",
    ],
    # What if the question stands in the prompt?
    "visible": [
        *_books("facts"), *BEST_WAYS, *MIDDLE, "--length", "1600", "--samples", "4", "--seed", "52",
        "--question", "visible",
    ],
    # What does going on with the text cost?
    "following": [
        *_books("text_file", following=64), *BEST_WAYS, *_each("--budget", 0.1, 0.2, 0.3, 0.5), "--length", "1600",
        "--samples", "4", "--seed", "53",
    ],
    # The same facts in longer texts
    "long": [*_books("facts"), *BEST_WAYS, *MIDDLE, "--length", "4000", "--samples", "2", "--seed", "54"],
}  # fmt: skip
REAL = "smollm2"
TEXTS = [*_each("-t", "recall", "niah_single_1", "code", "vt"), "--length", "512", "--samples", "12", "--seed", "21"]
NAMES = ("stability", "oracle", *GRIDS)


def names_for(model: str) -> tuple[str, ...]:
    """What is measured on a model."""
    return tuple(PROSE) if model == REAL else NAMES


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
    options = [option.format(model=short) for option in {**GRIDS, **PROSE}[name]]
    return [(["eval", "run", "--model", model, *options, "-o", str(OUT / f"{short}-{name}")], None)]


def link(texts: Path) -> None:
    """Have the books at :data:`BOOKS_AT`; an error that names those that are not there."""
    if missing := [book for book in BOOKS if not (texts / f"{book}.txt").is_file()]:
        raise SystemExit(f"{texts} has no {', '.join(f'{book}.txt' for book in missing)}")
    at = ROOT / BOOKS_AT
    at.parent.mkdir(exist_ok=True)
    at.unlink(missing_ok=True)
    at.symlink_to(texts.resolve())


def side_by_side(command: list[str], folder: Path, workers: int) -> None:
    """An evaluation in parts that run at once, of a core or more each, put together in ``folder``."""
    threads = str(max(1, (os.cpu_count() or workers) // workers))
    parts = [Path("build/parts") / f"{folder.name}-{which}-of-{workers}" for which in range(1, workers + 1)]
    running = [
        subprocess.Popen(
            [*command, str(part), "--part", f"{which}/{workers}"], cwd=ROOT, stdout=subprocess.DEVNULL,
            env={**os.environ, "OMP_NUM_THREADS": threads},
        )
        for which, part in enumerate(parts, 1)
    ]  # fmt: skip
    if failed := [worker.args for worker in running if worker.wait()]:
        raise SystemExit(f"{len(failed)} of {workers} parts failed: the same command goes on with them")
    subprocess.run([command[0], "eval", "merge", *map(str, parts), "-o", str(folder)], check=True, cwd=ROOT)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", nargs="+", default=["embedded"], help="names, or folders as seen from the root")
    parser.add_argument("--only", nargs="+", choices=[*NAMES, *PROSE])
    parser.add_argument("--texts", type=Path, help=f"folder with {', '.join(BOOKS)} as .txt, for --model {REAL}")
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="parts of an evaluation that run at once")
    parser.add_argument("--list", action="store_true", help="show the commands and end")
    args = parser.parse_args()
    squeeze = str(Path(sys.executable).with_name("squeeze"))
    if args.texts:
        link(args.texts)
    for model in args.model:
        for name in names_for(model):
            for words, file in commands(name, model) if name in (args.only or [name]) else ():
                print("squeeze", *words, *([">", str(file)] if file else []), flush=True)
                if args.list or (file and (ROOT / file).exists()):
                    continue
                if args.workers > 1 and not file and not (ROOT / words[-1]).exists():
                    side_by_side([squeeze, *words[:-1]], Path(words[-1]), args.workers)
                    continue
                run = subprocess.run([squeeze, *words], check=True, cwd=ROOT, stdout=subprocess.PIPE if file else None)
                if file:
                    (ROOT / file).write_bytes(run.stdout)


if __name__ == "__main__":
    main()
