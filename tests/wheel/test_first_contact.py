"""What a newcomer does in the first hour, with the package as it is installed: it works, and the cache holds less.

``make test-newest`` and ``make test-oldest`` run this with a wheel and without constraints; there the package must come
from the environment, not from a source tree beside it.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import squeezeattention
from squeezeattention import load_embedded

README = Path(__file__).parents[2] / "README.md"


def squeeze(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "squeezeattention", *map(str, arguments)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


with_wheel = pytest.mark.skipif("SQUEEZE_WHEEL" not in os.environ, reason="make test-newest and test-oldest run it")


@with_wheel
def test_the_package_is_the_installed_one() -> None:
    assert "site-packages" in Path(squeezeattention.__file__).parts


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README.read_text(), re.DOTALL)


def test_the_python_of_the_readme(tmp_path: Path) -> None:
    """With the embedded model in place of ``path`` and a long text in place of dots; what it prints is checked too."""
    model, tokenizer = load_embedded()
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    text = "".join(f"def area_{i}(width, height):\n    return width * height + {i}\n\n" for i in range(40))
    seen: dict[str, Any] = {"path": str(tmp_path), "long_text": text}
    [block] = blocks("python")
    exec(compile(block, str(README), "exec"), seen)  # as a reader would run it
    for cache in (seen["cache"], seen["squeezed_cache"]):
        memory = cache.memory()
        assert 0 < memory.bytes < 0.5 * memory.full_bytes
        assert sum(map(sum, cache.head_lengths())) <= 2 * cache.plan.total  # the model has two KV heads
    assert seen["cache"].get_seq_length() == seen["output"].shape[1] - 1


@pytest.mark.parametrize("name", ["cache", "past_key_values"])
def test_both_names_of_the_cache(name: str) -> None:
    model, tokenizer = load_embedded()
    ids = tokenizer("import os\n" * 200, return_tensors="pt").input_ids
    cache = squeezeattention.SqueezeCache(model, budget=0.2)
    out = model.generate(ids, **{name: cache}, max_new_tokens=8, do_sample=False)
    assert isinstance(out, torch.Tensor)
    assert cache.memory().bytes < 0.3 * cache.memory().full_bytes


def test_generate(tmp_path: Path) -> None:
    (tmp_path / "long.py").write_text("import os\nimport sys\n" * 150)
    result = squeeze("generate", "embedded", "-f", tmp_path / "long.py", "--budget", "0.2", "-n", 8, "--json")
    assert result.returncode == 0, result.stderr
    memory = json.loads(result.stdout)["memory"]
    assert 0 < memory["bytes"] < 0.3 * memory["full_bytes"]


@with_wheel
def test_demo(tmp_path: Path) -> None:
    result = squeeze("demo", "--model", "embedded", "--quick", "--out", tmp_path / "demo", "--json")
    assert result.returncode == 0, result.stderr
    data = json.loads(result.stdout)
    assert data["full"]["right"] > 0.8 * data["full"]["n"]
    for row in data["rows"]:
        for size, full in zip(row["bytes"], data["full"]["bytes"], strict=True):
            assert 0 < size <= (row["budget"] + 0.02) * full, row["cache"]
    best = max(row["right"] / row["n"] for row in data["rows"] if not row["cache"].endswith("uniform"))
    assert best > 0.8


@with_wheel
def test_evaluation(tmp_path: Path) -> None:
    result = squeeze("eval", "embedded", "--quick", "--samples", 2, "--out", tmp_path / "eval", "--json")
    assert result.returncode == 0, result.stderr
    data = json.loads(result.stdout)
    assert data["errors"] == []
    cells = [cell for cell in data["results"] if cell["task"] == "recall"]
    (full,) = (cell for cell in cells if cell["policy"] is None)
    assert full["score"] > 0.8
    squeezed = [cell for cell in cells if cell["policy"] is not None]
    assert all(0 < cell["share"] < 0.6 for cell in squeezed)
    assert max(cell["score"] for cell in squeezed) > 0.8
