"""Choosing the kernels: refused where they cannot run."""

import pytest

from squeezeattention import SqueezeCache
from squeezeattention.errors import ConfigError, MissingExtraError
from squeezeattention.testing import tiny_model


def test_an_unknown_choice():
    with pytest.raises(ConfigError, match="torch, triton"):
        SqueezeCache(tiny_model("llama"), kernels="fast")


def test_no_gpu(monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with pytest.raises(ConfigError, match="CUDA"):
        SqueezeCache(tiny_model("llama"), kernels="triton")


def test_no_triton(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "triton", None)
    with pytest.raises(MissingExtraError, match=r"squeezeattention\[triton\]"):
        SqueezeCache(tiny_model("llama"), kernels="triton")
