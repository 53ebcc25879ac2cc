"""Recall in prose through ``squeeze serve``, beside the library with the same plans, equal budgets and a full cache.

``python benchmarks/serve_recall.py`` (with vLLM installed): SmolLM2 reads texts of some 900 tokens with eight numbers
in them, and is asked for each by the OpenAI client, question and text in one prompt, greedy, in fp32. Plans of
``--budget`` tokens by KV head come from ``squeeze vllm plan --allocator calibrated``; with ``probe`` each prompt has
its own (``--per-prompt``). All questions to a text begin alike, and prefix caching is on, as it is in vLLM. Written to
``--out`` as it goes; ways that are there already stay.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from squeezeattention import BudgetPlan, SqueezeCache, load_smollm2
from squeezeattention.evaluation.runner import token_counter
from squeezeattention.policies import StreamingLLM
from squeezeattention.smollm2 import NAME
from squeezeattention.tasks import resolve_task

BLOCK = 32
WAYS = ("probe", "calibrated", "uniform", "full")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--contexts", type=int, default=3)
    parser.add_argument("--length", type=int, default=900)
    parser.add_argument("--budget", type=int, default=256, help="tokens of a KV head, on average")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ways", nargs="*", default=list(WAYS))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/serve_recall.json"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model, tokenizer = load_smollm2()
    asked = questions(tokenizer, args)
    record: dict[str, Any] = {
        "model": NAME, "budget": args.budget, "questions": len(asked), "seed": args.seed,
        "tokens": [len(prompt) for prompt, _, _ in asked], "ways": {},
    }  # fmt: skip
    if args.out.exists() and (known := json.loads(args.out.read_text()))["tokens"] == record["tokens"]:
        record["ways"] = known["ways"]
    with tempfile.TemporaryDirectory() as folder:
        for way in args.ways:
            plan = make_plan(Path(folder), way, args)
            served, told = ask_server(plan, way, asked, len(asked) // args.contexts)
            library = ask_library(model, plan, way, asked, args.budget)
            record["ways"][way] = {
                "served": right(tokenizer, served, asked), "library": right(tokenizer, library, asked),
                "same_tokens": sum(a == b for a, b in zip(served, library, strict=True)), **told,
            }  # fmt: skip
            args.out.write_text(json.dumps(record, indent=1) + "\n")
            print(way, record["ways"][way], flush=True)


def questions(tokenizer: Any, args: argparse.Namespace) -> list[tuple[list[int], str, int]]:
    """Prompts with the question in them, the right answers, and the tokens that an answer may have."""
    task, count, found = resolve_task("facts"), token_counter(tokenizer), []
    for index in range(args.contexts):
        sample = task.sample(count, args.length, args.seed, index)
        for question in sample.questions:
            prompt = tokenizer(sample.context + question.text).input_ids
            found.append((prompt, question.answers[0], question.max_new_tokens))
    return found


def make_plan(folder: Path, way: str, args: argparse.Namespace) -> Path | None:
    """The file of a plan; ``None`` for the full cache."""
    path = folder / f"{way}.json"
    if way == "full":
        return None
    if way in ("uniform", "probe"):
        BudgetPlan.from_budgets([args.budget] * 30).save(path)
        return path
    squeeze(
        "vllm", "plan", NAME, "-t", "facts", "--length", args.length, "--samples", 1, "--budget", args.budget,
        "--allocator", way, "--by-head", "--block-size", BLOCK, "--dtype", "float32", "-o", path,
    )  # fmt: skip
    return path


def squeeze(*words: object) -> None:
    subprocess.run(command(*words), check=True, stdout=subprocess.DEVNULL)


def command(*words: object) -> list[str]:
    return [sys.executable, "-m", "squeezeattention", *map(str, words)]


@contextmanager
def serving(plan: Path | None, way: str) -> Iterator[str]:
    """A server of the model, and its address; without a plan it is vLLM as it comes."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    more = ["--dtype", "float32", "--enforce-eager", "--max-model-len", "1536", "--max-num-batched-tokens", "1536"]
    if plan is None:
        from squeezeattention.named import named_folder

        folder = named_folder(NAME, warn=print, tell=print)
        words = [
            sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder), "--served-model-name",
            NAME, "--host", "127.0.0.1", "--port", str(port), "--block-size", str(BLOCK), *more,
        ]  # fmt: skip
    else:
        own = ("--per-prompt", "--allocator", "probe") if way == "probe" else ()
        words = command("serve", NAME, "--plan", plan, *own, "--block-size", BLOCK, "--port", port, "--", *more)
    environment = {
        "VLLM_HOST_IP": "127.0.0.1", "VLLM_USE_V2_MODEL_RUNNER": "0", "VLLM_CPU_KVCACHE_SPACE": "1", **os.environ,
    }  # fmt: skip
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(words, env=environment, stdout=log, stderr=log)
        try:
            for _ in range(600):
                if process.poll() is not None:
                    log.seek(0)
                    raise RuntimeError(f"the server has ended: {log.read()[-4000:]}")
                try:
                    get(f"http://127.0.0.1:{port}/health")
                    break
                except (urllib.error.URLError, OSError):
                    time.sleep(0.5)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(60)


def get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=20) as answer:
        text: str = answer.read().decode()
        return text


def ask_server(
    plan: Path | None, way: str, asked: Sequence[tuple[list[int], str, int]], of_a_text: int
) -> tuple[list[list[int]], dict[str, Any]]:
    """Answers in tokens, and by the server's own account what a text holds and what was found of earlier ones; seconds
    a question, and until its first token: of the first of ``of_a_text`` questions, and of those behind it."""
    from openai import OpenAI

    with serving(plan, way) as url:
        client, replies, first, whole = OpenAI(base_url=f"{url}/v1", api_key="none"), [], [], []
        for prompt, _, tokens in asked:
            begin, reply = time.perf_counter(), []
            for part in client.completions.create(
                model=NAME, prompt=prompt, max_tokens=tokens, temperature=0.0, stream=True,
                extra_body={"ignore_eos": True, "return_token_ids": True},
            ):  # fmt: skip
                if not reply:
                    first.append(time.perf_counter() - begin)
                reply += part.choices[0].token_ids
            replies.append(reply)
            whole.append(time.perf_counter() - begin)
        told = get(f"{url}/metrics").splitlines()
    blocks = metric(told, "squeeze_blocks_per_sequence")
    found, asked_for = (metric(told, f"vllm:prefix_cache_{what}_total") for what in ("hits", "queries"))
    return replies, {
        "blocks_per_sequence": blocks,
        "seconds_per_question": statistics.fmean(whole),
        "seconds_to_first_token": {
            "new_text": statistics.median(first[::of_a_text]),
            "same_text": statistics.median(value for index, value in enumerate(first) if index % of_a_text),
        },
        "prefix_hit_rate": found / asked_for if found is not None and asked_for else None,
    }


def metric(lines: Sequence[str], name: str) -> float | None:
    told = [line for line in lines if line.startswith(name)]
    return float(told[0].rsplit(" ", 1)[1]) if told else None


@torch.no_grad()
def ask_library(
    model: Any, plan: Path | None, way: str, asked: Sequence[tuple[list[int], str, int]], budget: int
) -> list[list[int]]:
    """The same in transformers; whole blocks of sinks where the server keeps such."""
    replies = []
    for prompt, _, tokens in asked:
        cache = None
        if way == "probe":
            cache = SqueezeCache(model, budget, StreamingLLM(4), "probe")
        elif plan is not None:
            policy = StreamingLLM(BLOCK if way == "uniform" else 4)
            cache = SqueezeCache(model, policy=policy, allocator=BudgetPlan.load(plan))
        ids = torch.tensor([prompt])
        out = model.generate(
            ids, past_key_values=cache, max_new_tokens=tokens, do_sample=False, eos_token_id=None, pad_token_id=0
        )
        replies.append(out[0, len(prompt) :].tolist())
    return replies


def right(tokenizer: Any, replies: Sequence[list[int]], asked: Sequence[tuple[list[int], str, int]]) -> int:
    return sum(answer in tokenizer.decode(reply) for reply, (_, answer, _) in zip(replies, asked, strict=True))


if __name__ == "__main__":
    main()
