"""Budgets and blocks held, among the other figures of the server's ``/metrics``."""

from __future__ import annotations

from typing import Any

from prometheus_client import Gauge
from vllm.v1.metrics.loggers import StatLoggerBase

from .carried import carried

_GAUGES: dict[str, Gauge] = {}  # a name can be registered once in a process


def _gauge(name: str, text: str, *labels: str) -> Gauge:
    if name not in _GAUGES:
        _GAUGES[name] = Gauge(name, text, ["engine", *labels], multiprocess_mode="mostrecent")
    return _GAUGES[name]


class SqueezeStats(StatLoggerBase):
    """Entry point ``vllm.stat_logger_plugins``; silent for an engine without a plan."""

    def __init__(self, vllm_config: Any, engine_index: int = 0) -> None:
        self._config, self._plan = vllm_config, carried(vllm_config)

    def log_engine_initialized(self) -> None:
        pass

    def record(
        self, scheduler_stats: Any, iteration_stats: Any, mm_cache_stats: Any = None, engine_idx: int = 0
    ) -> None:
        if self._plan is None:
            return
        engine = str(engine_idx)
        for layer, tokens in enumerate(self._plan.blocks.tokens):
            _gauge("squeeze_layer_budget_tokens", "Tokens that a layer keeps of each text.", "layer").labels(
                engine, str(layer)
            ).set(tokens)
        per_text = self._plan.lanes.blocks_per_sequence
        _gauge("squeeze_blocks_per_sequence", "Blocks that a text holds once its prompt is read.").labels(engine).set(
            per_text
        )
        total = self._config.cache_config.num_gpu_blocks
        if scheduler_stats is not None and total:
            held = round(scheduler_stats.kv_cache_usage * (total - 1))
            _gauge("squeeze_blocks_held", "Blocks of the cache that are in use.").labels(engine).set(held)
