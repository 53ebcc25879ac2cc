"""Texts that are not novels, and calibrations on them: ``python benchmarks/kinds.py --data FOLDER --spanish FILE``.

Code is Python's own library, news are XSum's test part and chat the questions of MT-bench and Arena-Hard in SmolLM2's
template (``--data``: xsum/test.jsonl, chat/*.jsonl); Spanish is a novel (``--spanish``: Don Quijote, plain text of
Project Gutenberg's edition). Each text is written to build/kinds, the calibration on it to benchmarks/calibrations, and
one on pieces of 256 tokens of this package's chapter; ``results.py --only transfer kinds`` then measures what a
calibration on one kind is worth on another.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
TEXTS, CALIBRATIONS = Path("build/kinds"), Path("benchmarks/calibrations")
#: Characters of a text, about four to a token, and of the part that a calibration reads.
WHOLE, READ = 160_000, 32_000
FILES = ("argparse", "tarfile", "inspect", "pydoc", "subprocess", "typing")


def code(args: argparse.Namespace) -> Iterator[str]:
    folder = Path(argparse.__file__).parent
    yield from ((folder / f"{name}.py").read_text(encoding="utf-8") for name in FILES)


def news(args: argparse.Namespace) -> Iterator[str]:
    for line in (args.data / "xsum" / "test.jsonl").open(encoding="utf-8"):
        yield json.loads(line)["document"]


def chat(args: argparse.Namespace) -> Iterator[str]:
    for name in ("mt_bench", "arena_hard"):
        for line in (args.data / "chat" / f"{name}.jsonl").open(encoding="utf-8"):
            for turn in json.loads(line)["turns"]:
                said = turn["content"] if isinstance(turn, dict) else turn
                yield f"<|im_start|>user\n{said}<|im_end|>\n<|im_start|>assistant\n"


def spanish(args: argparse.Namespace) -> Iterator[str]:
    yield args.spanish.read_text(encoding="utf-8")[WHOLE:]  # what comes before is about the edition and in verse


KINDS: dict[str, Callable[[argparse.Namespace], Iterator[str]]] = {
    "code": code, "news": news, "chat": chat, "spanish": spanish
}  # fmt: skip
#: Pieces too short for much to look back at.
SHORT = ("short", "src/squeezeattention/tasks/chapter.txt", ["--part", "256"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--spanish", type=Path, required=True)
    args = parser.parse_args()
    for folder in (TEXTS, CALIBRATIONS):
        (ROOT / folder).mkdir(parents=True, exist_ok=True)
    for name, pages in KINDS.items():
        text = "\n\n".join(pages(args))
        if len(text) < WHOLE + READ:
            raise SystemExit(f"{name}: {len(text)} characters are too few")
        (ROOT / TEXTS / f"{name}.txt").write_text(text[:WHOLE], encoding="utf-8")
        calibrate(name, text[WHOLE : WHOLE + READ], [])
    name, path, options = SHORT
    calibrate(name, (ROOT / path).read_text(encoding="utf-8"), options)


def calibrate(name: str, text: str, options: list[str]) -> None:
    """A calibration on a part of which nothing is asked; one that is there stays."""
    to = CALIBRATIONS / f"{name}.json"
    if not (ROOT / to).exists():
        squeeze = Path(sys.executable).with_name("squeeze")
        command = [str(squeeze), "calibrate", "smollm2", "-f", "-", "-o", str(to), *options]
        subprocess.run(command, input=text, text=True, check=True, cwd=ROOT)


if __name__ == "__main__":
    main()
