"""The presses of kvpress on prompts of an evaluation whose questions are visible: the other half of kvpress_quality.py.

``python benchmarks/kvpress_visible.py --python PATH``, with the interpreter of an environment that has kvpress. A press
reads text and question and cuts them, the prompt's last token and the answer come on top: what an evaluation's caches
are asked, whose answers stand in its record. As there, bytes are those of what is not masked.

Written as it goes to ``--out``; what is there already is not measured again.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
from collections.abc import Collection
from pathlib import Path
from typing import Any

from kvpress_quality import WORKER
from squeezeattention import load_smollm2
from squeezeattention.evaluation.answering import end_tokens
from squeezeattention.evaluation.exercises import score_answer
from squeezeattention.evaluation.following import Following
from squeezeattention.evaluation.grid import Settings
from squeezeattention.evaluation.measure import digest
from squeezeattention.evaluation.runner import make_sample, token_counter

ROOT = Path(__file__).parent.parent
RECORD = ROOT / "benchmarks" / "eval" / "smollm2-visible"
PRESSES = ("streaming_llm", "snapkv", "adakv+snapkv", "tova", "expected_attention", "kvzip")


def digests_of(folder: Path) -> dict[str, str]:
    """Of each sample of an evaluation, by its name."""
    rows = [json.loads(line) for line in (folder / "results.jsonl").read_text(encoding="utf-8").splitlines()]
    return {f"{row['task']}/{row['length']}/{row['seed']}/{row['index']}": row["digest"] for row in rows}


def until_end(tokens: list[int], ends: Collection[int]) -> list[int]:
    """An answer up to the model's end token, which is left out."""
    return list(itertools.takewhile(lambda token: token not in ends, tokens))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--python", type=Path, required=True, help="interpreter of an environment that has kvpress")
    parser.add_argument("--presses", nargs="*", default=list(PRESSES))
    parser.add_argument("--budgets", type=float, nargs="*", default=[0.2, 0.3])
    parser.add_argument("--samples", type=int, default=1, help="of each text of the evaluation")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "kvpress_visible.json")
    args = parser.parse_args()
    record: dict[str, Any] = json.loads(args.out.read_text()) if args.out.exists() else {"rows": []}
    done = {(row["sample"], row["cache"], row["budget"]) for row in record["rows"]}
    settings = Settings.from_dict(json.loads((RECORD / "run.json").read_text())["settings"])
    digests = digests_of(RECORD)
    tasks, (model, tokenizer) = settings.make_tasks(), load_smollm2()
    count = token_counter(tokenizer)
    worker = subprocess.Popen(
        [args.python, WORKER, "--model", model.config.name_or_path, "--threads", str(args.threads)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    for keep in args.budgets:
        for key in (key for key in settings.samples_of_all() if key.index < args.samples):
            task = tasks[key.task]
            sample = make_sample(task, count, key)
            if digest(sample) != digests[key.id]:
                raise SystemExit(f"{key.id} is not the sample of the record: another text, tokenizer or release")
            context = list(tokenizer(sample.context, verbose=False).input_ids)
            follows = Following(tokenizer, sample, context, visible=True)
            for press in args.presses:
                if (key.id, press, keep) in done:
                    continue
                scores, sizes = [], []
                for question, (prompt, then) in zip(sample.questions, follows.prompts, strict=True):
                    (one,) = then
                    asked = {"press": press, "keep": keep, "tokens": prompt, "prompts": [one.tokens],
                             "steps": one.max_new_tokens}  # fmt: skip
                    print(json.dumps(asked), file=worker.stdin, flush=True)
                    answer = json.loads(worker.stdout.readline())  # type: ignore[union-attr]
                    said = until_end(answer["said"][0], end_tokens(model))
                    text = tokenizer.decode(said, skip_special_tokens=True)
                    scores.append(score_answer(task, sample, question, text))
                    sizes.append(answer["bytes"])
                record["rows"].append({
                    "sample": key.id, "cache": press, "budget": keep, "scores": scores,
                    "bytes": sum(sizes) / len(sizes),
                })  # fmt: skip
                record["versions"] = answer["versions"]
                args.out.write_text(json.dumps(record, indent=1) + "\n")
                print(key.id, press, keep, scores, flush=True)
    worker.stdin.close()  # type: ignore[union-attr]
    worker.wait()


if __name__ == "__main__":
    main()
