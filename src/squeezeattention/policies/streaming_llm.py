"""StreamingLLM (Xiao et al., ICLR 2024, arXiv 2309.17453): attention sinks and the newest tokens."""

from __future__ import annotations

from typing import Literal

import torch

from ..errors import ConfigError
from .base import EvictionPolicy, Tokens


class StreamingLLM(EvictionPolicy):
    """Keeps the first ``sinks`` tokens and the last ``budget - sinks``.

    ``positions="original"`` leaves every key where it was; ``"cache"`` moves the sinks' rotary angle so that
    they always sit right before the window, as in the paper (RoPE models only).
    """

    name = "streaming_llm"
    nested = True

    def __init__(self, sinks: int = 4, positions: Literal["original", "cache"] = "original") -> None:
        if isinstance(sinks, bool) or not isinstance(sinks, int) or sinks < 0:
            raise ConfigError(f"sinks must be an integer >= 0, got {sinks!r}")
        if positions not in ("original", "cache"):
            raise ConfigError(f'positions must be "original" or "cache", got {positions!r}')
        self.sinks = sinks
        self.positions = positions

    @property
    def minimum(self) -> int:
        return self.sinks + 1

    @property
    def ring(self) -> int:
        return self.sinks

    def priority(self, tokens: Tokens, budget: int) -> torch.Tensor:
        is_sink = tokens.positions < self.sinks
        return tokens.positions.masked_fill(is_sink, torch.iinfo(torch.int64).max)

    def __repr__(self) -> str:
        return f"StreamingLLM(sinks={self.sinks}, positions={self.positions!r})"
