"""What SmolLM2 still knows of eight facts in a text after its cache was cut, and what going on with the text costs.

``python benchmarks/facts.py``: texts of 1,200 to 2,000 tokens of prose (``--text FILES``; without, the chapter of this
package), eight facts at random places in each, the cache cut to 20 and 30 % of the bytes, then one question for each
fact, greedy, the whole number or nothing; and the loss of the 64 tokens that follow in the text. Every way of cutting
answers the same questions; intervals are of the difference to the full cache, by bootstrap over texts.

Written as it goes to ``--out``; what is there already is not measured again.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import DynamicCache

from facts_summary import full_of, lines_of
from squeezeattention import SqueezeCache, load_smollm2
from squeezeattention.allocators import resolve_allocator
from squeezeattention.demo import Settings, build_contexts
from squeezeattention.demo.measure import Measured, Way, ask, read_together
from squeezeattention.demo.scenario import Context
from squeezeattention.tasks.driving import forward, read

BUDGETS = (0.2, 0.3)
WAYS = ("h2o/uniform", "h2o/squeeze", "h2o/probe", "h2o/calibrated", "echo/global")
FOLLOWING = 64


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
    ways = [
        Way(policy, resolve_allocator(rule)) for policy, rule in (one.split("/") for one in wanted if one != "full")
    ]
    for group in read_together(ways):
        for text_of, questions in ((context, True), (shorter, False)):
            reader = SqueezeCache(model, BUDGETS[0], group[0].policy, group[0].allocator, new_tokens=24, min_tokens=1)
            with reader.prefilling():
                began = time.perf_counter()
                logits = forward(model, reader, torch.tensor([text_of.tokens]))
                reader.twin()
                seconds = time.perf_counter() - began
                for way in group:
                    for budget in BUDGETS:
                        cache = reader.twin(budget=budget, allocator=way.allocator)
                        cache.compact()
                        if questions:
                            found = Measured(way.label, budget)
                            found.bytes.append(cache.memory().bytes)
                            ask(model, tokenizer, found, context, cache.twin(allocator=cache.plan))
                            rows.append(row_of(found, number, budget, None, len(context.tokens), seconds))
                        else:
                            value = loss(model, cache, logits, following)
                            next(
                                row for row in rows if (row["cache"], row["budget"]) == (way.label, budget)
                            )["nats"] = value  # fmt: skip
    return rows


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
