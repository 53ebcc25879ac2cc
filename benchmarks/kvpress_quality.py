"""The presses of kvpress on the texts and questions of facts.py: what they still know at equal bytes.

``python benchmarks/kvpress_quality.py --python PATH --text FILES``, with the interpreter of an environment that has
kvpress (its releases need an older transformers), and otherwise the arguments of facts.py, so that texts, questions and
the full cache's answers are those of its record. Presses cut the prompt once; questions and answers come on top of what
they keep, where this library's caches stay at their budget. Presses with budgets per head (AdaKV, KVzip) only mask what
they evict: here the bytes of what is not masked count, as if the rest were freed.

Written as it goes to ``--out``; what is there already is not measured again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
from pathlib import Path
from typing import Any

from facts import BUDGETS, add_arguments, context_of
from facts_summary import lines_of
from squeezeattention import load_smollm2
from squeezeattention.demo.measure import is_right

PRESSES = (
    "knorm", "streaming_llm", "tova", "snapkv", "keydiff", "expected_attention", "adakv+snapkv",
    "adakv+expected_attention", "kvzip",
)  # fmt: skip
WORKER = Path(__file__).with_name("kvpress_quality_worker.py")
_SPARE = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--python", type=Path, required=True, help="interpreter of an environment that has kvpress")
    add_arguments(parser)
    parser.add_argument("--presses", nargs="*", default=list(PRESSES))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/kvpress_quality.json"))
    args = parser.parse_args()
    record: dict[str, Any] = {"seed": args.seed, "rows": []}
    if args.out.exists():
        record = json.loads(args.out.read_text())
    done = {(row["text"], row["cache"], row["budget"]) for row in record["rows"]}
    model, tokenizer = load_smollm2()
    worker = subprocess.Popen(
        [args.python, WORKER, "--model", model.config.name_or_path, "--threads", str(args.threads)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    for number in range(args.contexts):
        context = context_of(tokenizer, args, number)
        prompts = [tokenizer(fact.prompt, add_special_tokens=False).input_ids for fact in context.facts]
        longest = max(len(tokenizer(f" {fact.value}", add_special_tokens=False).input_ids) for fact in context.facts)
        for press in ("full", *args.presses):
            for keep in (None,) if press == "full" else BUDGETS:
                name = press if press == "full" else f"kvpress {press}"
                if (number, name, keep) in done:
                    continue
                asked = {
                    "press": press, "keep": keep, "tokens": context.tokens, "prompts": prompts,
                    "steps": longest + _SPARE,
                }  # fmt: skip
                print(json.dumps(asked), file=worker.stdin, flush=True)
                answer = json.loads(worker.stdout.readline())  # type: ignore[union-attr]
                said = [text.strip() for text in tokenizer.batch_decode(answer["said"])]
                right = [is_right(fact, one) for fact, one in zip(context.facts, said, strict=True)]
                record["rows"].append({
                    "text": number, "tokens": len(context.tokens), "cache": name, "budget": keep, "right": right,
                    "bytes": answer["bytes"], "nats": 0.0,
                })  # fmt: skip
                record["versions"] = answer["versions"]
                args.out.write_text(json.dumps(record, indent=1) + "\n")
        for line in lines_of(record):
            print(f"{line.cache:34s} {line.share:5.1%} of the bytes: {line.right:.3f} = {line.kept:4.0%} of the full "
                  f"cache ({line.low:.0%} to {line.high:.0%})", flush=True)  # fmt: skip
    worker.stdin.close()  # type: ignore[union-attr]
    worker.wait()


if __name__ == "__main__":
    main()
