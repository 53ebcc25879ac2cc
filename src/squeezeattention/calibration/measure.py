"""Letting a model read whole texts again, to find which KV heads look back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from .. import SqueezeCache
from ..defaults import CALIBRATION_PART
from ..errors import CacheStateError, ConfigError, InputError
from ..hf.layout import inspect_model
from ..positions import longest_text
from ..signals import Replay
from ..tasks.driving import read
from .record import Calibration
from .weights import sample_weights

_PIECE, _LEAD = 32, 8


def calibrate(
    model: Any,
    tokenizer: Any,
    texts: Sequence[str | Sequence[int]],
    *,
    length: int = CALIBRATION_PART,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Calibration:
    """Measure once what ``allocator="probe"`` measures on every prompt, on all of the texts instead of a sample.

    Each text (a string, or token ids) is read in parts of at most ``length`` tokens, and after each part all of it is
    read again, in pieces of 32 tokens: about three times the cost of reading. Any text of the kind that the model
    reads will do; needs are the model's more than the text's.

    Raises :class:`ConfigError` for settings that cannot work, :class:`InputError` for texts of which none is long
    enough to be replayed (40 tokens).
    """
    if isinstance(length, bool) or not isinstance(length, int) or length < _LEAD + _PIECE:
        raise ConfigError(f"length must be a whole number of at least {_LEAD + _PIECE} tokens, got {length!r}")
    if isinstance(texts, str):
        raise ConfigError("texts must be a list of texts, got one text: [text]")
    if (longest := longest_text(model)) is not None:
        length = min(length, longest)
    ids = [tokenizer(text).input_ids if isinstance(text, str) else list(text) for text in texts]
    parts = [text[start : start + length] for text in ids for start in range(0, len(text), length)]
    parts = [part for part in parts if len(part) >= _LEAD + _PIECE]
    if not parts:
        raise InputError(f"nothing to calibrate on: no text has {_LEAD + _PIECE} tokens")
    sums: list[list[float]] = []
    tokens = sum(map(len, parts))
    for done, part in enumerate(parts):
        progress(done, len(parts))
        needs = _needs(model, part)
        weight = len(part) / tokens
        weighted = [[need * weight for need in layer] for layer in needs]
        pairs = zip(sums or [[0.0] * len(layer) for layer in needs], weighted, strict=True)
        sums = [[old + new for old, new in zip(*pair, strict=True)] for pair in pairs]
    progress(len(parts), len(parts))
    return Calibration(
        inspect_model(model).fingerprint, sample_weights(model), tuple(map(tuple, sums)), len(ids), tokens
    )


def _needs(model: Any, tokens: Sequence[int]) -> list[list[float]]:
    signal = Replay(pieces=max(1, (len(tokens) - _LEAD) // _PIECE), length=_PIECE, lead=_LEAD)
    cache = SqueezeCache(model, budget=1.0, allocator="probe", signal=signal)
    read(model, cache, tokens)
    if not isinstance(cache.signal, Replay):  # its own copy of it
        raise CacheStateError("the cache has lost its signal")
    (needs,) = cache.signal.needs()
    cache.detach()
    return needs
