"""Mistakes of a user: one line on stderr and exit code 2; a bug: 1; Ctrl-C: 130."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

import squeezeattention.cli.generate as generate_command
from squeezeattention import load_embedded
from squeezeattention.cli.inputs import Prompt, tokenize
from squeezeattention.errors import InputError
from squeezeattention.testing import tiny_model

from ..conftest import refused


def test_file_that_is_not_there(squeeze: Any, tmp_path: Path) -> None:
    for command in ("generate", "plan"):
        refused(squeeze(command, "embedded", "-f", tmp_path / "none"), "none", "No such file")


def test_folder_as_prompt(squeeze: Any, tmp_path: Path) -> None:
    refused(squeeze("generate", "embedded", "-f", tmp_path), str(tmp_path), "directory")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_file_without_permission(squeeze: Any, prompt_file: Path) -> None:
    prompt_file.chmod(0)
    refused(squeeze("generate", "embedded", "-f", prompt_file), str(prompt_file), "Permission")


@pytest.mark.parametrize("data", [b"\xff\xfe\x00a", b"abc\0def"])
def test_binary_prompt(squeeze: Any, tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "data.bin"
    path.write_bytes(data)
    refused(squeeze("generate", "embedded", "-f", path), str(path), "UTF-8 text")
    refused(squeeze("generate", "embedded", text=data), "stdin", "UTF-8 text")


def test_empty_prompts(squeeze: Any, tmp_path: Path) -> None:
    (tmp_path / "empty").write_text(" \n")
    refused(squeeze("generate", "embedded", "-f", tmp_path / "empty"), "empty", str(tmp_path))
    refused(squeeze("generate", "embedded", "-p", ""), "empty")
    refused(squeeze("plan", "embedded", text=""), "empty", "stdin")


def test_prompt_given_twice(squeeze: Any, prompt_file: Path) -> None:
    refused(squeeze("generate", "embedded", "-f", prompt_file, "-p", "x"), "once")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--policy", "h20"), ("unknown policy 'h20'", "did you mean 'h2o'", "streaming_llm")),
        (("--allocator", "sqeeze"), ("unknown allocator", "did you mean 'squeeze'")),
        (("--budget", "0"), ("budget", "512MiB")),
        (("--budget", "1.5"), ("budget",)),
        (("--budget", "ten"), ("'ten'",)),
        (("--budget", "3", "--policy", "streaming_llm"), ("too small", "streaming_llm")),
        (("--p", "0"), ("p must be",)),
        (("--outliers", "drop"), ("keep", "clamp")),
        (("--positions", "cache"), ("streaming_llm",)),
        (("--dtype", "float8"), ("float8", "bfloat16")),
        (("--device", "abacus"), ("abacus",)),
        (("--sample", "--temperature", "0"), ("temperature",)),
        (("--sample", "--top-p", "1.5"), ("--top-p",)),
        (("--temperature", "0.5"), ("--temperature", "--sample")),
        (("--top-p", "0.5", "--seed", "3"), ("--top-p and --seed", "--sample")),
        (("--top-k", "5"), ("--top-k", "--sample")),
        (("--system", "be brief"), ("--system", "chat template", "no instruct model")),
        (("--system", "be brief", "--raw"), ("--system", "--raw")),
        (("--chat",), ("--chat", "chat template", "no instruct model")),
        (("--question", " "), ("--question", "empty")),
        (("--allocator", "uniform", "--p", "0.3"), ("'uniform' has no p",)),
        (("--allocator", "uniform", "--signal", "cosine"), ("signal='cosine'", "measures nothing")),
        (("--stream", "--json"), ("--stream", "--json")),
        (("--save-plan", "/no/such/folder/plan.json"), ("/no/such/folder",)),
    ],
)
def test_bad_options(squeeze: Any, options: tuple[str, ...], words: tuple[str, ...]) -> None:
    refused(squeeze("generate", "embedded", "-p", "x = 1", *options), *words)


def test_corrupt_plan(squeeze: Any, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    for text, word in (("{", "not JSON"), ('{"a": 1}', "not a budget plan"), ("", "not JSON")):
        path.write_text(text)
        refused(squeeze("generate", "embedded", "-p", "x", "--allocator", path), str(path), word)
    refused(squeeze("generate", "embedded", "-p", "x", "--allocator", "none.json"), "none.json")


def test_plan_of_another_model(squeeze: Any, model_folder: Path, prompt_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    squeeze("plan", model_folder, "-f", prompt_file, "-o", path)
    refused(
        squeeze("generate", "embedded", "-p", "x", "--allocator", path),
        "4 layers",
        f"the model has {load_embedded()[0].config.num_hidden_layers}",
    )
    refused(squeeze("plan", model_folder, "-p", "x = 1", "--allocator", path), "measures nothing")


def test_models_that_cannot_be_loaded(squeeze: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    refused(squeeze("generate", tmp_path / "none", "-p", "x"), "no such folder", "none")
    refused(squeeze("generate", tmp_path, "-p", "x"), str(tmp_path), "no config.json")
    (tmp_path / "config.json").write_text("{}")
    refused(squeeze("generate", tmp_path, "-p", "x"), str(tmp_path), "no tokenizer", "tokenizer.json")
    (tmp_path / "tokenizer.json").write_text("{}")
    refused(squeeze("generate", tmp_path, "-p", "x"), str(tmp_path), "embedded")
    refused(squeeze("generate", "no body/no model", "-p", "x"), "no body/no model")
    refused(squeeze("generate", "embedded", "-p", "x", "--device", "meta"), "meta")


@pytest.mark.parametrize("model", [models.WordLevel({}, unk_token="?"), models.BPE({}, [])])
def test_tokenizers_without_tokens(squeeze: Any, model_folder: Path, tmp_path: Path, model: models.Model) -> None:
    shutil.copy(model_folder / "config.json", tmp_path)
    PreTrainedTokenizerFast(tokenizer_object=Tokenizer(model)).save_pretrained(tmp_path)
    refused(squeeze("generate", tmp_path, "-p", "x"), str(tmp_path), "no tokens")


def test_tokenizers_that_lack_words(squeeze: Any, model_folder: Path, tmp_path: Path) -> None:
    for file in model_folder.glob("*model*"):
        shutil.copy(file, tmp_path)
    shutil.copy(model_folder / "config.json", tmp_path)
    tokenizer = Tokenizer(models.WordLevel({"x": 0}, unk_token="?"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(tmp_path)
    refused(squeeze("generate", tmp_path, "-p", "y"), "tokenizer cannot write")
    tokenizer = Tokenizer(models.WordLevel({"?": 0}, unk_token="?"))  # all of a text is one token
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(tmp_path)
    refused(squeeze("eval", tmp_path, "-t", "recall", "--length", 200, "-o", tmp_path / "out"), "this tokenizer")


def test_outputs_that_cannot_be_written(squeeze: Any, tmp_path: Path) -> None:
    for option in ("-o", "--plot"):
        refused(squeeze("plan", "embedded", "-p", "x", option, tmp_path), "folder")
    (tmp_path / "file").write_text("")
    refused(squeeze("demo", "--out", tmp_path / "file"), "is a file")


def test_impossible_demos(squeeze: Any, tmp_path: Path) -> None:
    out = ("--model", "embedded", "--out", tmp_path / "out")
    refused(squeeze("demo", "--length", 10, *out), "length", "64")
    refused(squeeze("demo", "--facts", 1000, *out), "1000")
    refused(squeeze("demo", "--length", 64, "--facts", 20, *out), "20 facts")
    (tmp_path / "text").write_text("A chapter.")
    refused(squeeze("demo", "--text", tmp_path / "text", *out), "source code only", "--model smollm2")
    assert not (tmp_path / "out").exists()


def test_usage_errors_exit_with_2(squeeze: Any) -> None:
    assert squeeze("generate").exit_code == 2
    assert squeeze("generate", "embedded", "--no-such-option").exit_code == 2
    assert squeeze("generate", "embedded", "-p", "x", "-n", 0).exit_code == 2
    assert squeeze("nothing").exit_code == 2


@pytest.mark.parametrize(("raised", "code"), [(KeyboardInterrupt, 130), (RuntimeError, 1)])
def test_interrupts_and_bugs(
    squeeze: Any, monkeypatch: pytest.MonkeyPatch, raised: type[BaseException], code: int
) -> None:
    def fail(*args: Any) -> None:
        raise raised("boom")

    monkeypatch.setattr(generate_command, "load_model", fail)
    assert squeeze("generate", "embedded", "-p", "x").exit_code == code


def _python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)


def test_without_typer_one_line_names_the_extra() -> None:
    done = _python("import sys; sys.modules['typer'] = None; from squeezeattention.cli import main; main()")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert 'pip install "squeezeattention[cli]"' in done.stderr


def test_the_library_imports_without_any_extra() -> None:
    done = _python(
        "import sys\n"
        "for name in ('typer', 'rich', 'matplotlib'): sys.modules[name] = None\n"
        "import squeezeattention, squeezeattention.plots, squeezeattention.demo, squeezeattention.evaluation\n"
    )
    assert done.returncode == 0, done.stderr


def test_outputs_are_tried_before_the_work(squeeze: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where it is the file system that says no; and trying leaves nothing behind."""

    def fail(*args: Any, **options: Any) -> Any:
        raise AssertionError("the work has begun")

    for module in ("generate", "plan", "demo", "oracle", "vllm", "evaluate", "bench"):
        monkeypatch.setattr(f"squeezeattention.cli.{module}.load_model", fail)
    (tmp_path / "file").write_text("kept")
    inside = tmp_path / "file" / "deep"
    with monkeypatch.context() as patch:
        patch.setattr("tempfile.TemporaryFile", full)
        for command in (
            ("bench", "embedded", "-o"), ("bench", "embedded", "--plot"), ("plan", "embedded", "-p", "x", "-o"),
            ("generate", "embedded", "-p", "x", "--save-plan"), ("oracle", "embedded", "-o"),
            ("vllm", "plan", "embedded", "-p", "x", "-o"), ("demo", "--out"), ("eval", "embedded", "--out"),
        ):  # fmt: skip
            refused(squeeze(*command, tmp_path / "new"), "cannot write", "No space left on device")
    for command in (("demo", "--out"), ("eval", "embedded", "--out")):
        refused(squeeze(*command, inside), "cannot write", "is a file")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "kept"


def full(*args: Any, **options: Any) -> Any:
    raise OSError(28, "No space left on device")


def test_a_tokenizer_that_is_not_the_models() -> None:
    class Tokenizer:
        def __call__(self, text: str, **options: Any) -> Any:
            return SimpleNamespace(input_ids=[3, 30])

    model = tiny_model("llama", vocab_size=20)
    with pytest.raises(InputError, match="token 30, and the model knows 20"):
        tokenize(model, Tokenizer(), Prompt("notes.txt", "some words"))
