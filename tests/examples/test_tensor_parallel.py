"""Two processes that divide the heads: the tokens and the plan of one, half of its cache each."""

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from squeezeattention import SqueezeCache
from squeezeattention.testing import tiny_model

SCRIPT = Path(__file__).parents[2] / "examples" / "tensor_parallel.py"


@pytest.mark.processes
@pytest.mark.parametrize("policy", ["h2o", "streaming_llm"])
def test_two_processes_agree_with_one(policy, tmp_path):
    model = tiny_model("llama")
    model.save_pretrained(tmp_path)
    prompt = torch.randint(3, 101, (1, 60), generator=torch.Generator().manual_seed(5))
    cache = SqueezeCache(model, 0.3, policy, "squeeze")
    want = model.generate(prompt, past_key_values=cache, max_new_tokens=24, do_sample=False, pad_token_id=0)
    given = ",".join(map(str, prompt[0].tolist()))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    run = subprocess.run(
        [
            sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_addr", "127.0.0.1",
            "--master_port", str(port), SCRIPT, tmp_path, "--tokens", given, "--budget",
            "0.3", "--policy", policy, "--max-new-tokens", "24", "--dtype", "float32",
        ],
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout.strip().splitlines()[-1])
    assert found["tokens"] == want[0, prompt.shape[1] :].tolist()
    assert found["budgets"] == list(cache.plan.budgets)
    assert found["bytes_of_this_process"] == [cache.memory().bytes // 2]
