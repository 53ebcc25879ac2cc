"""The worker's side of budgets by KV head for each prompt: when a prompt has been read, the model repeats some of it.

::

    step that ends a prompt    all layers   its keys and values lie whole in the prompt's blocks, nothing is cut
    behind it                  all layers   the model reads pieces of the prompt again: how they look back, for Replay
                               the library's rule divides the plan's total; each layer's tokens that stay are copied
                               into the slab
    next step                  sees the slab; the scheduler gives the prompt's blocks back, as it would have anyway

Nothing of what is repeated is stored, no request is made for it, and the scheduler is told nothing. A request that is
preempted and read again keeps its budgets, and is cut to them layer by layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..positions import longest_of
from ..signals import Replay
from .head_plans import HeadPlanner, PoolRooms
from .slab import Repetition, SlabLayer


@dataclass(frozen=True)
class _Layer:
    """One layer of the model, by its place in it."""

    name: str
    module: Any
    """vLLM's, which has the cache."""
    group: int
    """Its block table."""

    @property
    def slab(self) -> SlabLayer:
        slab: SlabLayer = self.module.impl.slab
        return slab


class HeadChoices:
    """Choices of one runner's requests, for as long as they live."""

    def __init__(self, planner: HeadPlanner) -> None:
        self.planner = planner
        self.chosen: dict[str, PoolRooms] = {}
        self._layers: list[_Layer] = []

    def forget(self, requests: Sequence[str]) -> None:
        for request in requests:
            self.chosen.pop(request, None)

    def report(self) -> None:
        """Nothing that the scheduler would have to know."""

    def after_step(self, runner: Any, scheduled: dict[str, int]) -> None:
        """Choose for the prompts that end in this step, and cut them."""
        batch = runner.input_batch
        starts, prompts = batch.num_computed_tokens_cpu, batch.num_prompt_tokens
        for row, request in enumerate(batch.req_ids):
            start, prompt = int(starts[row]), int(prompts[row])
            if start < prompt <= start + scheduled[request] and request not in self.chosen:
                with torch.inference_mode():
                    self.chosen[request] = self._choose(runner, row, request, prompt)
                    self._cut(runner, row, prompt, self.chosen[request])

    # ------------------------------------------------------------------ choice

    def _choose(self, runner: Any, row: int, request: str, prompt: int) -> PoolRooms:
        layers = self._known(runner)
        signal = Replay()
        signal.start(len(layers))
        starts = signal.starts(prompt)
        if starts:
            ids = torch.from_numpy(runner.input_batch.token_ids_cpu[row, :prompt].copy()).long()
            self._repeat(runner, row, ids.to(runner.device), starts, signal)
        else:
            for index, layer in enumerate(layers):
                signal.see_replay(index, torch.zeros(1, layer.module.impl.num_kv_heads, 1, 1), torch.tensor([False]))
        params = runner.requests[request].sampling_params
        new = None if params is None else params.max_tokens
        plan = self.planner.plan(
            signal.values()[0], prompt_tokens=prompt, total_tokens=None if new is None else prompt + new
        )
        return PoolRooms.of(plan, layers[0].module.impl.num_kv_heads)

    def _repeat(self, runner: Any, row: int, ids: torch.Tensor, starts: Sequence[int], signal: Replay) -> None:
        """A forward over the pieces that ``signal`` asks for of a prompt int64 ``[N]``, behind which they stand."""
        from vllm.forward_context import set_forward_context

        prompt, length = len(ids), signal.lead + signal.length
        first = torch.tensor(starts, device=ids.device)[:, None]
        places = first + torch.arange(-signal.lead, signal.length, device=ids.device)  # [k, m]
        longest = longest_of(runner.model_config.hf_text_config)
        begin = prompt if longest is None else min(prompt, max(0, longest - length))
        at = (begin + torch.arange(length, device=ids.device)).repeat(len(starts))
        told = torch.tensor([True])
        metadata = {}
        for index, layer in enumerate(self._known(runner)):

            def see(received: torch.Tensor, index: int = index) -> None:
                signal.see_replay(index, received, told)

            table = runner.input_batch.block_table[layer.group].get_device_tensor(row + 1)[row].long()
            metadata[layer.name] = Repetition(table, prompt, places[:, signal.lead :], see)
        with set_forward_context(metadata, runner.vllm_config, num_tokens=len(at), slot_mapping={}, skip_compiled=True):
            runner._model_forward(input_ids=ids[places.flatten()], positions=at)

    # --------------------------------------------------------------------- cut

    def _cut(self, runner: Any, row: int, prompt: int, rooms: PoolRooms) -> None:
        pool = pool_tables(runner, [prompt], [row])[0]
        for index, layer in enumerate(self._known(runner)):
            table = runner.input_batch.block_table[layer.group].get_device_tensor(row + 1)[row].long()
            begin, own = rooms.begins[index], rooms.rooms[index]
            layer.slab.cut(row, prompt, table, pool, begin, own, layer.module.kv_cache)

    def _known(self, runner: Any) -> list[_Layer]:
        if not self._layers:
            from vllm.model_executor.models.utils import extract_layer_index

            context = runner.compilation_config.static_forward_context
            found = [
                (extract_layer_index(name), _Layer(name, context[name], group))
                for group, members in enumerate(runner.kv_cache_config.kv_cache_groups)
                for name in members.layer_names
            ]
            self._layers = [layer for _, layer in sorted(found, key=lambda pair: pair[0])]
        return self._layers


def pool_tables(runner: Any, prompts: Sequence[int], rows: Sequence[int]) -> torch.Tensor:
    """Int64 ``[R, P]``: blocks of the slabs of these rows of a runner's batch, the layers' one behind the other;
    ``prompts``: tokens of theirs."""
    parts = []
    for group, members in enumerate(runner.kv_cache_config.kv_cache_groups):
        spec, table = members.kv_cache_spec, runner.input_batch.block_table[group]
        ratio = spec.block_size // table.block_size  # a kernel's blocks may be parts of those that are handed out
        front = torch.tensor([spec.prompt_blocks(tokens) * ratio for tokens in prompts])
        columns = front[:, None] + torch.arange(spec.most_blocks * ratio)
        own = table.get_device_tensor(max(rows) + 1)
        own = own[torch.tensor(list(rows), device=own.device)].long()
        parts.append(own.gather(1, columns.to(own.device)))
    return torch.cat(parts, dim=1)
