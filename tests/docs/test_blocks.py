"""Every block of code in the README and in docs/ works as it stands there.

Commands are parsed as they are written, and run on a small model, shorter texts and fewer of them; what would start
a server or take a network is parsed only. Python is run with small things in place of what a page leaves to the reader.
"""

from __future__ import annotations

import json
import re
import shlex
import sys
import zipfile
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from squeezeattention import BudgetPlan, SqueezeCache, load_embedded
from squeezeattention.bench import machine
from squeezeattention.cli.app import app
from squeezeattention.engine import EngineSettings
from squeezeattention.stability import Observation
from squeezeattention.testing import tiny_model

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
TEMPLATE = "{% for message in messages %}{{ message.content }}\n{% endfor %}"
TEXT = "".join(f"def area_{i}(width, height):\n    return width * height + {i}\n\n" for i in range(14))

#: What makes a command small: the model, shapes, and how much of everything.
SMALLER = {
    r"\b(PATH|MODEL|embedded|smollm2)\b(?!\.)": "{model}",
    r"\bbench \S+": "bench tiny --prompt 24 -n 2 --policy streaming_llm",
    r"--quick": "-t recall --length 200 --samples 1 --policy h2o --budget 0.3",
    r"--length \d+": "--length 200",
    r"--samples \d+": "--samples 1",
    r"--prompt \d+": "--prompt 24",
    r"(-n|--new) \d+": "-n 2",
    r"--batch (8|32)": "--batch 2",
    r"--batch 64": "",
    r"--budget 0.1 --budget 0.2": "",
    r"--budget 1024": "--budget 64",
    r"-t niah_multikey_2 -t vt -t cwe": "-t vt",
    r"--compile|--largest-batch": "",
    r"longbench_hotpotqa": "longbench_hotpotqa:path=LongBench/data.zip",
    r"--stream": "--stream -n 4",
    r"oracle {model}": "oracle {model} --samples 1 --length 200 --alone --signal cosine",
}
#: Commands that are parsed, and not run.
PARSED = ("demo", "serve")


def blocks(page: Path, language: str) -> list[str]:
    return [code for kind, code in BLOCK.findall(page.read_text(encoding="utf-8")) if kind == language]


def test_every_block_is_of_a_kind_that_is_run_here() -> None:
    """Only a drawing has no language."""
    kinds = {(page.name, kind) for page in PAGES for kind, _ in BLOCK.findall(page.read_text(encoding="utf-8"))}
    assert {kind for _, kind in kinds} == {"", "console", "python"}
    assert {name for name, kind in kinds if not kind} == {"architecture.md", "vllm.md"}


# --------------------------------------------------------------------- commands


def commands(page: Path) -> Iterator[str]:
    """Each command of a page without its remark."""
    for block in blocks(page, "console"):
        for line in block.replace("\\\n", " ").splitlines():
            for command in re.split(r"\s{2,}#", line)[0].split(";"):
                if command.strip():
                    yield " ".join(command.split())


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A random model of four layers in a folder, with a tokenizer that can chat."""
    folder = tmp_path_factory.mktemp("model")
    _, tokenizer = load_embedded()
    tiny_model("llama", vocab_size=len(tokenizer), eos_token_id=None).save_pretrained(folder)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with the files that the pages speak of."""
    for name in ("prompts/a.txt", "prompts/b.txt", "prompt.txt", "examples/custom_policy.py", "docs/using.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(TEXT)
    (tmp_path / "log.jsonl").write_text(json.dumps({"prompt": TEXT, "task": "code"}) + "\n")
    (tmp_path / "LongBench").mkdir()
    rows = [{"context": TEXT, "input": "What?", "answers": ["7"], "_id": str(number)} for number in range(4)]
    with zipfile.ZipFile(tmp_path / "LongBench" / "data.zip", "w") as archive:
        archive.writestr("data/hotpotqa.jsonl", "\n".join(map(json.dumps, rows)))
    monkeypatch.setattr(machine, "_BUFFER", 2**22)  # bandwidth is measured in no time
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SQUEEZE_CACHE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COLUMNS", "160")
    return tmp_path


def expanded(arguments: list[str], here: Path) -> list[str]:
    """As a shell does it."""
    found = [sorted(str(path.relative_to(here)) for path in here.glob(word)) if "*" in word else [word]
             for word in arguments]  # fmt: skip
    return [word for words in found for word in words]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands(page: Path, model: str, here: Path) -> None:
    run: Callable[..., Any] = CliRunner().invoke
    for command in commands(page):
        program, *arguments = shlex.split(command)
        if program == "make":
            assert re.search(rf"^{arguments[0]}:", (ROOT / "Makefile").read_text(), re.MULTILINE), command
        elif program == "python":
            assert arguments[0] == "-m"
            assert find_spec(arguments[1]), command
        elif program == "pip":
            extras = re.findall(r"\[([\w,-]+)\]", " ".join(arguments))
            known = re.findall(r"(?m)^([\w-]+) = \[", (ROOT / "pyproject.toml").read_text())
            assert {extra for group in extras for extra in group.split(",")} <= set(known), command
        else:
            assert program == "squeeze", command
            told = run(app, [*arguments, "--help"])  # reads all options, then runs nothing
            assert told.exit_code == 0, (command, told.stderr)
            if arguments[0] in PARSED:
                continue
            small = command
            for pattern, instead in SMALLER.items():
                small = re.sub(pattern, instead, small)
            if "FOLDER" in small:
                grid = ("-t", "recall", "--length", 200, "--samples", 2, "--budget", 0.3, "--allocator", "squeeze")
                made = run(app, [*map(str, ("eval", model, *grid, "--policy", "h2o", "--out", "FOLDER"))])
                assert made.exit_code == 0, (made.stderr, made.exception)
            result = run(app, expanded(shlex.split(small.format(model=model))[1:], here))
            assert result.exit_code == 0, (small, result.stderr, result.exception)


# ----------------------------------------------------------------------- Python


def given(page: str, model: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What a page leaves to its reader."""
    if page in ("README", "start"):
        return {"path": model, "long_text": TEXT}
    if page == "evaluation":
        return {"count_tokens": lambda text: len(text.split())}
    if page == "vllm":
        vllm: Any = ModuleType("vllm")
        vllm.LLM = lambda model, **options: options
        monkeypatch.setitem(sys.modules, "vllm", vllm)
        return {"model": model}
    _, tokenizer = load_embedded()
    tokenizer.chat_template = TEMPLATE
    small = tiny_model("llama", vocab_size=len(tokenizer), eos_token_id=None)
    caches = [SqueezeCache(small, 0.3, "h2o", "squeeze", min_tokens=1) for _ in range(3)]
    for seed, cache in enumerate(caches):
        with torch.no_grad(), cache.prefilling():
            ids = torch.randint(3, 101, (1, 60), generator=torch.Generator().manual_seed(seed))
            small(input_ids=ids, past_key_values=cache)
    observations = [Observation(f"text {i}", "ab"[i % 2], cache.plan) for i, cache in enumerate(caches) if cache.plan]
    _, tokenizer = load_embedded()
    tokenizer.chat_template = TEMPLATE
    return {
        "model": small,
        "tokenizer": tokenizer,
        "cache": caches[0],
        "SqueezeCache": SqueezeCache,
        "observations": observations,
    }


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=lambda page: page.stem)
def test_python(page: Path, model: str, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for block in blocks(page, "python"):
        seen = given(page.stem, model, monkeypatch)
        held = seen["cache"].lengths() if "cache" in seen else None
        exec(compile(block, str(page), "exec"), seen)  # as a reader would run it
        if held is not None:
            assert seen["cache"].lengths() == held
        if page.stem == "evaluation":
            assert TEXT in seen["sample"].context
        if page.stem == "vllm":
            BudgetPlan.from_budgets([64] * 4).save("plan.json")
            assert EngineSettings.read(seen["llm"]["additional_config"]["squeeze"]).prefill == "full"
