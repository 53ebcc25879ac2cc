"""The worker's side of plans per prompt: when a prompt has been read, its budgets are chosen, and reported.

::

    worker                                            scheduler (another process, with several workers)
    step n    reads the prompt's end, chooses  ---->  after step n   frees what the choice does not keep
    step n+1  shows queries what is kept              (blocks that a query may see are never freed before)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from .observation import CosineObserver
from .prompts import PromptPlanner

Choice = tuple[int, ...]
"""Newest blocks that each group of layers keeps."""


class PromptChoices:
    """Choices of one runner's requests, for as long as they live: a request that is preempted keeps its own."""

    def __init__(self, planner: PromptPlanner, observer: CosineObserver) -> None:
        self.planner, self.observer = planner, observer
        self._groups: list[list[int]] = []  # layers of each block table, once they are known
        self.chosen: dict[str, Choice] = {}
        self.news: dict[str, Choice] = {}

    def forget(self, requests: Sequence[str]) -> None:
        for request in requests:
            self.chosen.pop(request, None)

    def after_step(self, runner: Any, scheduled: dict[str, int]) -> None:
        """Keep the step's cosines, and choose for the prompts that end in it."""
        batch, config = runner.input_batch, runner.kv_cache_config
        starts, prompts = batch.num_computed_tokens_cpu, batch.num_prompt_tokens
        if not any(starts[row] < prompts[row] for row in range(len(batch.req_ids))):
            return  # answers alone, which no plan depends on
        self._groups = self._groups or [_layers(group.layer_names) for group in config.kv_cache_groups]
        groups = self._groups
        tables = [batch.block_table[index] for index in range(len(groups))]
        tokens = sum(scheduled[request] for request in batch.req_ids)
        for layers, group, table in zip(groups, config.kv_cache_groups, tables, strict=True):
            slots = table.slot_mapping.gpu[:tokens]
            self.observer.keep(layers, slots, config.num_blocks * group.kv_cache_spec.granule)
        ended = []
        for row, request in enumerate(batch.req_ids):
            start, prompt = int(starts[row]), int(prompts[row])
            if start < prompt <= start + scheduled[request]:
                ended.append((row, request, prompt))
        if not ended:
            return
        signal = torch.zeros(len(ended), len(self.observer.step), device=self.observer.step.device)
        for index, (row, _, prompt) in enumerate(ended):
            for layers, table in zip(groups, tables, strict=True):
                signal[index, layers] = self.observer.means(layers, _slots(table, row, prompt))
        for (_, request, _), values in zip(ended, _agreed(signal).tolist(), strict=True):
            if request not in self.chosen:
                self.chosen[request] = tuple(blocks.recent for blocks in self.planner.plan(values))
            self.news[request] = self.chosen[request]

    def report(self) -> dict[str, Choice]:
        """What the scheduler has not been told yet."""
        news, self.news = self.news, {}
        return news


def _layers(names: Sequence[str]) -> list[int]:
    from vllm.model_executor.models.utils import extract_layer_index

    return [int(extract_layer_index(name)) for name in names]


def _slots(table: Any, row: int, tokens: int) -> torch.Tensor:
    """[tokens] where the keys of a row's first tokens are."""
    size = table.block_size
    blocks = table.block_table.gpu[row, : -(-tokens // size)].long()
    offsets = torch.arange(size, device=blocks.device)
    return (blocks[:, None] * size + offsets).flatten()[:tokens]


def _agreed(signal: torch.Tensor) -> torch.Tensor:
    """The first rank's: each rank keeps its own heads, of the same tokens."""
    from vllm.distributed.parallel_state import get_tp_group

    group = get_tp_group()
    return group.broadcast(signal, src=0) if group.world_size > 1 else signal
