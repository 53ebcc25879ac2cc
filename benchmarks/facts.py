"""What SmolLM2 still knows of eight facts in a text after its cache was cut, and what going on with the text costs.

``python benchmarks/facts.py``: texts of 1,200 to 2,000 tokens of prose (``--text FILES``; without, the chapter of this
package), eight facts at random places in each, the cache cut to 20 and 30 % of the bytes, then one question for each
fact, greedy, the whole number or nothing; and the loss of the 64 tokens that follow in the text. Every way of cutting
answers the same questions; intervals are of the difference to the full cache, by bootstrap over texts.

Written as it goes to ``--out``; what is there already is not measured again.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import DynamicCache

from facts_summary import full_of, lines_of
from squeezeattention import load_smollm2
from squeezeattention.demo import Settings, build_contexts
from squeezeattention.demo.measure import Measured, ask
from squeezeattention.demo.scenario import Context
from squeezeattention.evaluation.config import Config, budget_text, read_together
from squeezeattention.evaluation.reading import Reading
from squeezeattention.evaluation.spec import Spec
from squeezeattention.tasks.driving import forward, read

BUDGETS = (0.2, 0.3)
WAYS = ("h2o/uniform", "h2o/squeeze", "h2o/probe", "h2o/calibrated", "echo/global")
FOLLOWING = 64
#: Tokens that a cache is told to expect of an answer.
NEW_TOKENS = 24


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_arguments(parser)
    parser.add_argument("--ways", nargs="*", default=list(WAYS))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/facts.json"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    record: dict[str, Any] = {"seed": args.seed, "budgets": BUDGETS, "rows": []}
    if args.out.exists():
        record = json.loads(args.out.read_text())
    done = {(row["text"], row["cache"]) for row in record["rows"]}
    model, tokenizer = load_smollm2()
    for number in range(args.contexts):
        wanted = [name for name in ("full", *args.ways) if (number, name) not in done]
        if wanted:
            record["rows"] += measure(model, tokenizer, args, number, wanted)
            args.out.write_text(json.dumps(record, indent=1) + "\n")
        show(record)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What chooses the texts."""
    parser.add_argument("--text", type=Path, nargs="*", default=[])
    parser.add_argument("--contexts", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)


def context_of(tokenizer: Any, args: argparse.Namespace, number: int) -> Context:
    """The text of this number, with its facts."""
    rng = random.Random(f"{args.seed}/{number}")
    text = args.text[number % len(args.text)] if args.text else None
    settings = Settings(length=rng.randrange(1200, 2001), contexts=1, seed=rng.randrange(2**31), text=text)
    (context,) = build_contexts(tokenizer, settings)
    return context


def measure(model: Any, tokenizer: Any, args: argparse.Namespace, number: int, wanted: list[str]) -> list[dict]:
    context = context_of(tokenizer, args, number)
    following = context.tokens[-FOLLOWING:]  # of the same text: what comes before is what the caches have read
    shorter = replace(context, tokens=context.tokens[:-FOLLOWING])
    rows = []
    if "full" in wanted:
        found = Measured("full", 1.0)
        cache = DynamicCache(config=model.config)
        read(model, cache, context.tokens)
        found.bytes.append(sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers))
        ask(model, tokenizer, found, context, cache)
        cache = DynamicCache(config=model.config)
        logits = read(model, cache, shorter.tokens)
        rows.append(row_of(found, number, None, loss(model, cache, logits, following), len(context.tokens)))
    found_of = {}
    for group in read_together(configs_of([name for name in wanted if name != "full"])):
        with contextlib.closing(Reading(model, context.tokens, group, NEW_TOKENS, None)) as reading:
            for config in group:
                cache, seconds = reading.cut(config)
                found = Measured(label_of(config), float(config.budget))
                found.bytes.append(cache.memory().bytes)
                ask(model, tokenizer, found, context, cache.twin(allocator=cache.plan))
                found_of[config] = row_of(found, number, found.budget, None, len(context.tokens), seconds)
        with contextlib.closing(Reading(model, shorter.tokens, group, NEW_TOKENS, None)) as reading:
            for config in group:
                cache, _ = reading.cut(config)
                found_of[config]["nats"] = loss(model, cache, reading.logits, following)
    return [*rows, *found_of.values()]


def configs_of(ways: list[str]) -> list[Config]:
    """Of ``policy/allocator`` at both budgets."""
    named = [tuple(map(Spec, way.split("/"))) for way in ways]
    return [Config(policy, rule, budget_text(budget)) for policy, rule in named for budget in BUDGETS]


def label_of(config: Config) -> str:
    return f"{config.policy}/{config.allocator}"


def row_of(found: Measured, number: int, budget: float | None, nats: float | None, tokens: int, seconds: float = 0.0):
    return {
        "text": number, "tokens": tokens, "cache": found.label, "budget": budget, "right": found.answers,
        "bytes": found.bytes[0], "nats": nats, "read_seconds": round(seconds, 2),
    }  # fmt: skip


@torch.no_grad()
def loss(model: Any, cache: Any, logits: torch.Tensor, following: list[int]) -> float:
    """Mean nats of the tokens that follow, fed one by one: budgets hold at every step."""
    losses = []
    for token in following:
        losses.append(float(torch.nn.functional.cross_entropy(logits, torch.tensor([token]))))
        logits = forward(model, cache, torch.tensor([[token]]))
    return statistics.fmean(losses)


def show(record: dict[str, Any]) -> None:
    texts, questions, share = full_of(record)
    print(f"\n{texts} texts, {questions} questions; full cache {share:.3f}")
    for line in lines_of(record):
        print(f"{line.cache:16s} {line.share:5.1%} of the bytes: {line.right:.3f} = {line.kept:4.0%} of the full cache "
              f"({line.low:.0%} to {line.high:.0%}), {line.nats:+.3f} nats", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
