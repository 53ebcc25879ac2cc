"""CUDA graphs: those that inductor left out, and why (it falls back to single launches without a warning); and how to
forget them.
"""

from __future__ import annotations

import logging

import torch
from torch._dynamo.utils import counters

from .machine import free_memory

#: Where it writes the reasons, by release: to a channel of its own, which is off, or to that of hints.
_CHANNELS = (
    "torch._inductor.cudagraph_utils.__cudagraphs",
    "torch._inductor.cudagraph_utils.__perf_hints",
)


def forget_compiled(device: torch.device) -> None:
    """Forget compiled code and CUDA graphs: what comes next compiles as the first of its process would."""
    torch._dynamo.reset()
    if device.type == "cuda":
        from torch._inductor.cudagraph_trees import reset_cudagraph_trees

        reset_cudagraph_trees()
    free_memory(device)


class SkippedGraphs(logging.Handler):
    """Inside, what inductor runs without CUDA graphs is collected: ``count`` of graphs, and the ``reasons``."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.count = 0
        self.reasons: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if text not in self.reasons:
            self.reasons.append(text)

    def __enter__(self) -> SkippedGraphs:
        self._before = counters["inductor"]["cudagraph_skips"]
        self._levels = [(logger, logger.level) for logger in map(logging.getLogger, _CHANNELS)]
        for logger, _ in self._levels:
            logger.addHandler(self)
            logger.setLevel(min(logger.getEffectiveLevel(), logging.WARNING))
        return self

    def __exit__(self, *_: object) -> None:
        self.count = counters["inductor"]["cudagraph_skips"] - self._before
        for logger, level in self._levels:
            logger.removeHandler(self)
            logger.setLevel(level)
