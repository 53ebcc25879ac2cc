"""What a model would score that names things from the text without knowing which: the floor under a task's score.

Two guesses, each of as many different names as are asked for: any of the names that the text has, and names drawn by
how often it has them, which for tasks of counting is already half an answer. Texts are those of ``squeeze eval`` with
the same tokenizer, length, seed and samples, and so is the metric.
``python benchmarks/chance.py --length 512 1024 2048 --out benchmarks/chance.json``
"""

from __future__ import annotations

import argparse
import json
import random
import re
import statistics
from collections import Counter
from pathlib import Path

from squeezeattention.cli.inputs import load_model
from squeezeattention.evaluation.exercises import make_task, score_answer
from squeezeattention.evaluation.runner import token_counter

#: Task -> what an answer looks like in its text.
NAMES = {
    "niah_multikey_2": r"is: (\d+)\.",
    "vt": r"VAR ([A-Z]+)",
    "vt:chains=3": r"VAR ([A-Z]+)",
    "cwe": r"\d+\. (\S+)",
    "fwe": r"(?<= )([a-z]{6})(?= )",
}


def guess(rng: random.Random, names: Counter[str], count: int, *, by_occurrence: bool) -> list[str]:
    """``count`` different names (or all there are)."""
    left, drawn = dict(names) if by_occurrence else dict.fromkeys(names, 1), []
    while left and len(drawn) < count:
        drawn += rng.choices(list(left), list(left.values()))
        del left[drawn[-1]]
    return drawn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="embedded", help="whose tokenizer says how long a text is")
    parser.add_argument("--length", type=int, nargs="+", default=[512, 1024, 2048])
    parser.add_argument("--samples", type=int, default=30)
    parser.add_argument("--seed", type=int, default=15)
    parser.add_argument("--guesses", type=int, default=200, help="of each sample")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    _, tokenizer = load_model(args.model)
    count = token_counter(tokenizer)
    rows, rng = [], random.Random(args.seed)
    for task, form in NAMES.items():
        exercise = make_task(task)
        for length in args.length:
            samples = [exercise.sample(count, length, args.seed, index) for index in range(args.samples)]
            row: dict[str, object] = {"task": task, "length": length, "samples": args.samples, "seed": args.seed}
            for kind in ("any", "by_occurrence"):
                scores = []
                for sample in samples:
                    names, question = Counter(re.findall(form, sample.context)), sample.questions[0]
                    for _ in range(args.guesses):
                        drawn = guess(rng, names, len(question.answers), by_occurrence=kind == "by_occurrence")
                        scores.append(score_answer(exercise, sample, question, " ".join(drawn)))
                row[kind] = round(100 * statistics.fmean(scores), 1)
            rows.append(row)
            print(row, flush=True)
    if args.out:
        args.out.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
