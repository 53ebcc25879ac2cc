"""The recipes for Ray run, in two processes, and answer what one model alone does."""

import json
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from squeezeattention import SqueezeCache
from squeezeattention.embedded import load_embedded

pytest.importorskip("ray")
EXAMPLES = Path(__file__).parents[2] / "examples"
PROMPTS = ["import os\n\ndef read(path):\n    with open(path", "class Area:\n    def __init__(self", "for n in range("]
NEW = 12


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def alone(prompt, budget, allocator):
    model, tokenizer = load_embedded()
    ids = tokenizer(prompt, return_tensors="pt").input_ids
    cache = SqueezeCache(model, budget, "h2o", allocator)
    out = model.generate(ids, past_key_values=cache, max_new_tokens=NEW, do_sample=False)
    return tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True), sum(cache.lengths())


def test_a_file_through_a_pool(tmp_path):
    prompts, answers = tmp_path / "prompts.jsonl", tmp_path / "answers.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": prompt * 4}) + "\n" for prompt in PROMPTS * 4))
    command = [sys.executable, EXAMPLES / "ray_data.py", "embedded", prompts, answers, "--max-new-tokens", str(NEW)]
    run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert run.returncode == 0, run.stderr[-3000:]
    told = [json.loads(line) for line in answers.read_text().splitlines()]
    assert [row["prompt"] for row in told] == [prompt * 4 for prompt in PROMPTS * 4]
    for row, prompt in zip(told, PROMPTS, strict=False):
        assert (row["text"], row["tokens_held"]) == alone(prompt * 4, "0.2", "squeeze")


def test_replicas_behind_one_address(tmp_path):
    port, log = free_port(), tmp_path / "log"
    command = [
        sys.executable, EXAMPLES / "ray_serve.py", "embedded", "--port", str(port), "--budget", "24", "--allocator",
        "uniform", "--max-new-tokens", str(NEW),
    ]  # fmt: skip

    def ask(prompt):
        body = json.dumps({"prompt": prompt}).encode()
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/", body, timeout=60) as answer:
            return json.loads(answer.read())["text"]

    with log.open("w") as out:
        server = subprocess.Popen(command, stdout=out, stderr=out)
    try:
        for _ in range(240):
            assert server.poll() is None, log.read_text()[-3000:]
            if "ready at" in log.read_text():
                break
            time.sleep(0.5)
        with ThreadPoolExecutor(6) as pool:
            told = list(pool.map(ask, PROMPTS * 4))
        # Rows of a batch do not disturb each other where budgets do not hang on them.
        assert told == [alone(prompt, 24, "uniform")[0] for prompt in PROMPTS] * 4
        with pytest.raises(urllib.error.HTTPError):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/", b"{}", timeout=60)
    finally:
        server.send_signal(signal.SIGINT)
        try:
            server.wait(60)
        except subprocess.TimeoutExpired:
            server.kill()
