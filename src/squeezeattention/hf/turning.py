"""Rotary embeddings whose frequencies depend on how long the text is (dynamic NTK, LongRoPE): what they keep of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

#: What transformers keeps in such a module besides its buffers, with a layer type in front where each has its own.
_STATE = ("max_seq_len_cached", "attention_scaling", "original_inv_freq")


@contextmanager
def frequencies_kept(decoder: nn.Module) -> Iterator[None]:
    """Leave the frequencies as they were: forwards inside are not part of the text."""
    before = [
        (module, dict(module._buffers), {name: value for name, value in vars(module).items() if name.endswith(_STATE)})
        for module in decoder.modules() if _kinds(module)
    ]  # fmt: skip
    try:
        yield
    finally:
        for module, buffers, state in before:
            module._buffers.update(buffers)
            vars(module).update(state)


def alike_up_to(decoder: nn.Module) -> int | None:
    """Tokens up to which a text may grow before its frequencies are others; ``None``: they never are."""
    found = []
    for module in decoder.modules():
        kinds = _kinds(module)
        if "longrope" in kinds:
            found.append(_switch_of(getattr(module, "config", None)))
        if kinds - {"longrope"}:
            found.append(getattr(module, "original_max_seq_len", None))
    return min((length for length in found if length is not None), default=None)


def _kinds(module: nn.Module) -> set[str]:
    """Those of a module's rotary types that depend on the length."""
    kind = getattr(module, "rope_type", None)
    names = kind.values() if isinstance(kind, dict) else [kind]
    return {name for name in names if isinstance(name, str) and ("dynamic" in name or name == "longrope")}


def _switch_of(config: Any) -> int | None:
    """Where LongRoPE goes over to its long factors: the first, if layers differ."""
    settings = getattr(config, "rope_parameters", None) or {}
    of_layers = [one for one in settings.values() if isinstance(one, dict)]
    name = "original_max_position_embeddings"
    lengths = [one.get(name) for one in (settings, *of_layers)] + [getattr(config, name, None)]
    return min((length for length in lengths if isinstance(length, int)), default=None)


def longest(given: Any, seen: int, length: int) -> int:
    """Tokens that a text has after a forward, by its positions where they are given."""
    return int(given.max()) + 1 if isinstance(given, torch.Tensor) and given.numel() else seen + length
