"""The measurements behind docs/results.md, each some ``squeeze`` commands: ``make results``.

Evaluations that are complete are left as they are, one that was stopped goes on. ``--only NAME`` runs some of them,
``--model`` other models (each into folders of its own), ``--list`` shows the commands.

``--model smollm2 --texts FOLDER`` is the grid on a real model: prose of four novels, plain text of Project Gutenberg's
editions as alice.txt, sherlock_holmes.txt, war_of_the_worlds.txt and frankenstein.txt. ``--data FOLDER`` has XSum's and
CNN/DailyMail's test parts as xsum/test.jsonl and cnn_dailymail/test.jsonl. Texts of other kinds are made before, by
kinds.py.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import kinds
import samples

ROOT = Path(__file__).parent.parent
OUT = Path("benchmarks/eval")


def _each(option: str, *values: object) -> list[str]:
    return [text for value in values for text in (option, str(value))]


def _ways(allocators: str, *policies: str) -> list[str]:
    return _each("--policy", *(f"{policy}/{allocator}" for policy in policies for allocator in allocators.split()))


RULER = _each("-t", "niah_single_1", "niah_multikey_2", "vt", "cwe", "fwe")

#: question -> options of `squeeze eval run`, for models that were trained here; seeds were fixed before anything was
#: measured with them
GRIDS: dict[str, list[str]] = {
    # What do bytes buy in a model in which one layer finds what is asked for?
    "bytes": [
        *_each("-t", "recall", "code"), *_ways("uniform squeeze probe", "h2o", "streaming_llm"),
        *_ways("global", "echo"), *_each("--budget", 0.1, 0.2, 0.3, 0.5), "--length", "512", "--samples", "8",
        "--seed", "11",
    ],
    # What can it do on RULER's tasks, in rows as long as training's ...
    "ruler": [
        *RULER, *_ways("uniform", "streaming_llm"), "--budget", "0.3", "--length", "2048", "--samples", "30",
        "--seed", "15",
    ],
    # ... and in short rows, which every model has read?
    "short": [
        *RULER, *_ways("uniform", "streaming_llm"), "--budget", "0.3", "--length", "512", "--samples", "15",
        "--seed", "15",
    ],
    # Is p = 0.3 to 0.4 right, and k = 3?
    "p": [
        "-t", "recall", "--policy", "streaming_llm",
        *_each("--allocator", "squeeze", "squeeze:groups=2", "squeeze:groups=4"),
        *_each("--p", 0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0), "--budget", "0.3", "--length", "512", "--samples", "10",
        "--seed", "12",
    ],
    # What does the bounded prefill cost?
    "bounded": [
        "-t", "recall", *_each("--policy", "streaming_llm", "h2o"),
        *_each("--allocator", "uniform", "squeeze", "squeeze:prefill=bounded,chunk_size=128"),
        *_each("--budget", 0.3, 0.5), "--length", "1024", "--samples", "6", "--seed", "11",
    ],
}  # fmt: skip

BOOKS = ("alice", "sherlock_holmes", "war_of_the_worlds", "frankenstein")
BOOKS_AT, DATA_AT = Path("build/texts"), Path("build/data")  # links, so that records name no machine's folders


def _books(task: str, **options: object) -> list[str]:
    given = "".join(f",{name}={value}" for name, value in options.items())
    return _each("-t", *(f"{task}:path={BOOKS_AT / book}.txt{given}" for book in BOOKS))


ALL_WAYS = [
    *_ways("uniform squeeze probe calibrated", "streaming_llm", "h2o"),
    *_ways("uniform probe adakv global", "snapkv", "tova", "keydiff", "expected_attention", "kvzip", "echo"),
]
BEST_WAYS = [
    *_ways("uniform squeeze probe calibrated", "h2o"), *_ways("uniform probe", "streaming_llm"),
    *_ways("probe", "tova"), *_ways("probe global", "echo"),
]  # fmt: skip
LAYER_RULES = "uniform squeeze squeeze:outliers=clamp cake zigzag lazy dynamickv pyramid random probe:heads=equal probe"
DIVIDING = " ".join(
    (
        "probe", *(f"probe:power={power}" for power in (0.5, 1.0, 2.0, 3.0)),
        *(f"probe:floor={tokens}" for tokens in (8, 32, 128)),
    )
)  # fmt: skip
SAMPLING = " ".join(f"probe:signal={name}" for name in samples.NAMES)
CALIBRATED_ON = " ".join(f"{kinds.CALIBRATIONS / name}.json" for name in (*kinds.KINDS, kinds.SHORT[0]))
MIDDLE = _each("--budget", 0.2, 0.3)
#: The same for models that can answer questions about prose.
PROSE: dict[str, list[str]] = {
    # What do scorers and selections keep of facts that are asked for after the cut ...
    "facts": [*_books("facts"), *ALL_WAYS, *MIDDLE, "--length", "1600", "--samples", "2", "--seed", "51"],
    # ... and with less and with more?
    "sweep": [
        *_books("facts"), *BEST_WAYS, *_each("--budget", 0.05, 0.1, 0.5), "--length", "1600", "--samples", "2",
        "--seed", "51",
    ],
    # Scorers that are kin to others
    "scorers": [
        *_books("facts"), *_ways("uniform probe adakv global", "criticalkv", "defensivekv", "rkv"), *MIDDLE,
        "--length", "1600", "--samples", "2", "--seed", "51",
    ],
    # Does any rule that gives every head of a layer the same do better than equal budgets, probe's own need among them?
    "layers": [
        *_books("facts"), *_ways(LAYER_RULES, "h2o"), "--budget", "0.3", "--length", "1600", "--samples", "1",
        "--seed", "51",
    ],
    # What does going on with the text cost?
    "following": [
        *_books("text_file", following=600), *BEST_WAYS, *MIDDLE, "--length", "1600", "--samples", "2", "--seed", "53",
    ],
    # What if the question stands in the prompt?
    "visible": [
        *_books("facts"), *BEST_WAYS, *MIDDLE, "--length", "1600", "--samples", "2", "--seed", "52",
        "--question", "visible",
    ],
    # A conversation of several turns: what was said in an early one?
    "conversations": [
        *_books("conversation"), *BEST_WAYS, *MIDDLE, "--length", "1600", "--samples", "2", "--seed", "55", "--chat",
    ],
    # Summaries under the paper's policies, with its rule and others
    **{
        name: [
            "-t", f"{name}:path={DATA_AT / name / 'test.jsonl'}", "--chat",
            *_ways("uniform squeeze probe", "streaming_llm", "sliding_window", "h2o"), *_ways("global", "echo"),
            *_each("--budget", 0.2, 0.4), "--length", "1024", "--samples", "12", "--seed", "61",
        ]
        for name in ("xsum", "cnn_dailymail")
    },
    # How should `probe` divide: how steeply by need, above which floor ...
    "dividing": [
        *_books("facts"), *_ways(DIVIDING, "h2o"), *MIDDLE, "--length", "1600", "--samples", "2", "--seed", "51",
    ],
    # ... and how much of a text must be repeated?
    "repeating": [
        *_books("facts"), *_ways("global", *(f"echo:replay={tokens}" for tokens in (128, 256, 512, 1024))), *MIDDLE,
        "--length", "1600", "--samples", "2", "--seed", "51",
    ],
    # What must `probe` repeat: how much, from where, led in by what?
    "sampling": [
        "--include", "benchmarks/samples.py", *_books("facts"), *_ways(SAMPLING, "h2o"), *MIDDLE, "--length", "1600",
        "--samples", "2", "--seed", "51",
    ],
    # What is a calibration on one kind of texts worth on novels ...
    "transfer": [
        *_books("facts"), *_ways(CALIBRATED_ON, "h2o"), *MIDDLE, "--length", "1600", "--samples", "2", "--seed", "51",
    ],
    # ... and one on novels on other kinds?
    "kinds": [
        *_each("-t", *(f"facts:path={kinds.TEXTS / name}.txt" for name in kinds.KINDS)),
        *_ways("uniform probe calibrated", "h2o"), *_ways("global", "echo"), *MIDDLE, "--length", "1600", "--samples",
        "2", "--seed", "56",
    ],
    # The same facts in longer texts
    "long": [*_books("facts"), *BEST_WAYS, *MIDDLE, "--length", "4000", "--samples", "2", "--seed", "54"],
}  # fmt: skip
REAL = "smollm2"
#: Where right answers look on it: the picture of the docs, and the record (``--only why``).
WHY = [
    "why", REAL, "--length", "1200", "--samples", "2", "--seed", "7", "--budget", "0.2",
    *_ways("uniform squeeze probe", "h2o"), *_ways("global", "echo"), "--plot", "docs/why.png", "--json",
]  # fmt: skip
WHY_AT = Path("benchmarks/why.json")
NAMES = tuple(GRIDS)


def names_for(model: str) -> tuple[str, ...]:
    """What is measured on a model."""
    return (*PROSE, "why") if model == REAL else NAMES


def look(squeeze: str) -> None:
    """:data:`WHY`, unless its record is there."""
    if not (ROOT / WHY_AT).exists():
        found = subprocess.run([squeeze, *WHY], check=True, cwd=ROOT, stdout=subprocess.PIPE)
        (ROOT / WHY_AT).write_bytes(found.stdout)


def command(name: str, model: str) -> list[str]:
    """The words after ``squeeze`` that answer a question; of an evaluation the last is the folder."""
    if name == "why":
        return WHY
    given = ["eval", "run", "--model", model, *{**GRIDS, **PROSE}[name]]
    return [*given, "-o", str(OUT / f"{Path(model).name}-{name}")]


def link(folder: Path, at: Path, files: Sequence[str]) -> None:
    """Have ``folder`` at ``at``; an error that names those of ``files`` that are not in it."""
    if missing := [name for name in files if not (folder / name).is_file()]:
        raise SystemExit(f"{folder} has no {', '.join(missing)}")
    at = ROOT / at
    at.parent.mkdir(exist_ok=True)
    at.unlink(missing_ok=True)
    at.symlink_to(folder.resolve())


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
    parser.add_argument("--only", nargs="+", choices=[*NAMES, *names_for(REAL)])
    parser.add_argument("--texts", type=Path, help=f"folder with {', '.join(BOOKS)} as .txt, for --model {REAL}")
    parser.add_argument("--data", type=Path, help=f"folder with xsum/ and cnn_dailymail/, for --model {REAL}")
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="parts of an evaluation that run at once")
    parser.add_argument("--list", action="store_true", help="show the commands and end")
    args = parser.parse_args()
    squeeze = str(Path(sys.executable).with_name("squeeze"))
    if args.texts:
        link(args.texts, BOOKS_AT, [f"{book}.txt" for book in BOOKS])
    if args.data:
        link(args.data, DATA_AT, ["xsum/test.jsonl", "cnn_dailymail/test.jsonl"])
    for model in args.model:
        for name in names_for(model):
            if name not in (args.only or [name]):
                continue
            words = command(name, model)
            print("squeeze", *words, flush=True)
            if args.list:
                continue
            if name == "why":
                look(squeeze)
            elif args.workers > 1 and not (ROOT / words[-1]).exists():
                side_by_side([squeeze, *words[:-1]], Path(words[-1]), args.workers)
            else:
                subprocess.run([squeeze, *words], check=True, cwd=ROOT)


if __name__ == "__main__":
    main()
