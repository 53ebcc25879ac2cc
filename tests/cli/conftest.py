"""A small model in a folder, texts, and a runner of the ``squeeze`` command."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from squeezeattention import load_embedded
from squeezeattention.cli.app import app
from squeezeattention.cli.console import ERR, OUT
from squeezeattention.testing import tiny_model

Run = Callable[..., Any]


@pytest.fixture(autouse=True)
def wide_console():
    """Tables are not wrapped to the width of whatever terminal runs the tests."""
    before = OUT.width, ERR.width
    OUT.width = ERR.width = 200
    yield
    OUT.width, ERR.width = before


@pytest.fixture
def squeeze(monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run the command with some arguments; the result has exit_code, stdout and stderr."""
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setenv("NO_COLOR", "1")

    def run(*arguments: object, text: bytes | str | None = None) -> Any:
        return CliRunner().invoke(app, [str(argument) for argument in arguments], input=text)

    return run


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random four-layer model with the embedded tokenizer, as ``save_pretrained`` writes it."""
    folder = tmp_path_factory.mktemp("model")
    _, tokenizer = load_embedded()
    model = tiny_model("llama", vocab_size=len(tokenizer), eos_token_id=None)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def prompt_file(tmp_path: Path) -> Path:
    """About 150 tokens of source code."""
    path = tmp_path / "prompt.py"
    path.write_text(inspect.getsource(inspect.getdoc)[:500])
    return path


def is_figure(path: Path) -> bool:
    """Whether a file is a PNG of a sensible size that is not all of one colour."""
    import matplotlib.image

    pixels = matplotlib.image.imread(path)
    height, width = pixels.shape[:2]
    return bool(width > 600 and height > 300 and pixels[..., :3].std() > 0.05)
