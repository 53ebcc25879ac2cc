"""A layer's cache as vLLM's scheduler sees it: sinks and newest blocks stay, the gap between them is given back."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

from vllm.v1.core.single_type_kv_cache_manager import (
    CircularBufferManager,
    SingleTypeKVCacheManager,
    SlidingWindowManager,
)
from vllm.v1.kv_cache_interface import AttentionSpec, CircularBufferSpec, KVCacheSpec, SlidingWindowSpec
from vllm.v1.kv_cache_spec_registry import KVCacheSpecRegistry

from ..errors import UnsupportedFeatureError
from .blocks import LayerBlocks
from .lengths import ByLength


@dataclasses.dataclass(frozen=True, kw_only=True)
class SqueezeSpec(SlidingWindowSpec):
    """Layers of equal specs share a block table. A sliding window to the admission check, which knows no other kind
    of cache that gives blocks back."""

    layer: LayerBlocks
    granule: int
    """Tokens of the blocks that ``layer`` counts; ``block_size`` may become a part of it, a kernel's own."""
    windowed_prefill: bool
    lane: int
    """Sets equal layers apart (see lanes.py)."""
    per_prompt: bool = False
    """Whether each request has a number of newest blocks of its own."""

    @classmethod
    def of(
        cls, spec: AttentionSpec, layer: LayerBlocks, *, windowed_prefill: bool, lane: int, per_prompt: bool = False
    ) -> SqueezeSpec:
        """The same layer's cache with a budget."""
        common = {field.name: getattr(spec, field.name) for field in dataclasses.fields(AttentionSpec)}
        return cls(
            **common, sliding_window=layer.recent * spec.block_size, layer=layer, granule=spec.block_size,
            windowed_prefill=windowed_prefill, lane=lane, per_prompt=per_prompt,
        )  # fmt: skip

    @property
    def cuts_read_prompts(self) -> bool:
        """Whether what follows a prompt sees less than its tokens did."""
        return not self.windowed_prefill

    def max_admission_blocks_per_request(self, max_in_flight_tokens: int, max_model_len: int) -> int:
        """The most blocks that a request ever holds: all of its prompt, or budget and in-flight tokens."""
        longest = -(-max_model_len // self.block_size)
        if not self.windowed_prefill:
            return longest
        return min(longest, self.layer.total + -(-max_in_flight_tokens // self.block_size) + 1)

    def is_uniform_with_collection(self, kv_cache_specs: dict[str, KVCacheSpec]) -> bool:
        return all(spec == self for spec in kv_cache_specs.values())


class _WholePrompts(SingleTypeKVCacheManager):
    """What later requests that begin alike may share, in the two designs: the prompt's blocks, all of them."""

    @classmethod
    def reachable_block_mask(cls, *args: Any, **kwargs: Any) -> list[bool] | None:
        return None  # every block can serve a hit

    @classmethod
    def find_longest_cache_hit(
        cls,
        block_hashes: Sequence[Any],
        max_length: int,
        kv_cache_group_ids: list[int],
        block_pool: Any,
        kv_cache_spec: KVCacheSpec,
        drop_eagle_block: bool,
        alignment_tokens: int,
        dcp_world_size: int = 1,
        pcp_world_size: int = 1,
    ) -> tuple[tuple[list[Any], ...], int]:
        """The longest prefix that is there without a hole."""
        found: tuple[list[Any], ...] = tuple([] for _ in kv_cache_group_ids)
        size = kv_cache_spec.block_size
        for index in range(max_length // size):
            blocks = block_pool.get_cached_block(block_hashes[index], kv_cache_group_ids)
            if blocks is None:
                break
            for row, block in zip(found, blocks, strict=True):
                row.append(block)
        while found and len(found[0]) * size % alignment_tokens:
            for row in found:
                row.pop()
        return found, len(found[0]) * size


class SqueezeManager(_WholePrompts, SlidingWindowManager):
    """Frees what no later token of a request will see."""

    def __init__(self, kv_cache_spec: SqueezeSpec, **kwargs: Any) -> None:
        super().__init__(kv_cache_spec, **kwargs)
        self._chosen: dict[str, LayerBlocks] = {}

    def choose(self, request_id: str, recent: Sequence[int]) -> None:
        """What the worker chose for a request's prompt, for each lane; nothing is freed of it before."""
        if request_id in self.req_to_blocks:
            spec: SqueezeSpec = self.kv_cache_spec
            self._chosen[request_id] = LayerBlocks(spec.layer.sinks, recent[spec.lane])

    def free(self, request_id: str) -> None:
        self._chosen.pop(request_id, None)  # preempted, it is read again, and chosen for again
        super().free(request_id)

    def remove_skipped_blocks(
        self, request_id: str, processed_computed_tokens: int, num_prompt_tokens: int | None = None
    ) -> None:
        spec: SqueezeSpec = self.kv_cache_spec
        in_prompt = num_prompt_tokens is None or processed_computed_tokens < num_prompt_tokens
        if in_prompt and not spec.windowed_prefill:
            return  # the rest of the prompt sees all of it
        layer = self._chosen.get(request_id) if spec.per_prompt else spec.layer
        if layer is None:
            return
        first = layer.first_recent(processed_computed_tokens // self.block_size)
        self._remove_blocks_in_range(request_id, spec.layer.sinks, first)

    def get_num_skipped_tokens(self, num_computed_tokens: int) -> int:
        return 0  # never a head: the gap lies behind the sinks

    def cache_blocks(self, request: Any, num_tokens: int, *args: Any, **kwargs: Any) -> None:
        """For other requests that begin alike.

        After a full prefill, what was generated is not what a prompt with the same tokens would leave: those saw less.
        """
        if not self.kv_cache_spec.windowed_prefill:
            num_tokens = min(num_tokens, request.num_prompt_tokens)
        super().cache_blocks(request, num_tokens, *args, **kwargs)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SlabSpec(CircularBufferSpec):
    """Blocks that a request claims when it is admitted and keeps to its end; with ``whole_prompts`` also those of its
    prompt, in front of them, until that has been read::

        block table    [ prompt: tokens // block_size, rounded up | slab ]
    """

    slots: ByLength[int]
    """Tokens of a request in each KV head, on average, by the length of its prompt: a multiple of ``block_size``, also
    where a kernel has smaller blocks."""
    lane: int
    granule: int
    """Tokens of the blocks that are handed out; ``block_size`` may become a part of it, a kernel's own."""
    whole_prompts: bool
    """Whether prompts lie in blocks while they are read: where that may take several steps, or was done before."""

    @classmethod
    def of(cls, spec: AttentionSpec, slots: ByLength[int], *, lane: int, whole_prompts: bool) -> SlabSpec:
        """The same layer's cache as a slab."""
        common = {field.name: getattr(spec, field.name) for field in dataclasses.fields(AttentionSpec)}
        return cls(**common, slots=slots, lane=lane, granule=spec.block_size, whole_prompts=whole_prompts)

    def blocks(self, prompt_tokens: int) -> int:
        """Blocks of the slab of a request with such a prompt."""
        return self.slots.of(prompt_tokens) // self.block_size

    def prompt_blocks(self, prompt_tokens: int) -> int:
        """Blocks in front of the slab."""
        if not self.whole_prompts:
            return 0
        return -(-prompt_tokens // self.granule) * (self.granule // self.block_size)

    cuts_read_prompts: ClassVar[bool] = True

    @property
    def most_blocks(self) -> int:
        return max(self.slots.values) // self.block_size

    @property
    def prefix_cacheable(self) -> bool:
        return self.whole_prompts

    def max_memory_usage_bytes(self, vllm_config: Any) -> int:
        prompt = self.prompt_blocks(vllm_config.model_config.max_model_len)
        return int((prompt + self.most_blocks) * self.page_size_bytes)

    def max_num_blocks_per_req(self, vllm_config: Any, max_len: int) -> int:
        # Wide enough for the runner to look a slot up for any position; what it finds is not used.
        return max(self.most_blocks + self.prompt_blocks(max_len), -(-max_len // self.block_size))

    def is_uniform_with_collection(self, kv_cache_specs: dict[str, KVCacheSpec]) -> bool:
        return all(spec == self for spec in kv_cache_specs.values())


class SlabManager(_WholePrompts, CircularBufferManager):
    """All blocks of a request at once, its prompt's and its slab's: one that is running is never short of any."""

    def __init__(self, kv_cache_spec: SlabSpec, **kwargs: Any) -> None:
        super().__init__(kv_cache_spec, **kwargs)
        self._prompts: dict[str, int] = {}  # tokens of each request's

    def get_num_blocks_to_allocate(
        self, request_id: str, num_tokens: int, new_computed_blocks: Sequence[Any], *args: Any, **kwargs: Any
    ) -> int:
        held = len(self.req_to_blocks.get(request_id, ())) + len(new_computed_blocks)
        waiting = self._get_num_evictable_blocks(new_computed_blocks)  # a hit takes them out of the free ones
        return max(0, self._blocks(request_id, num_tokens) - held) + waiting

    def allocate_new_blocks(self, request_id: str, num_tokens: int, *args: Any, **kwargs: Any) -> list[Any]:
        held = self.req_to_blocks[request_id]
        blocks: list[Any] = self.block_pool.get_new_blocks(max(0, self._blocks(request_id, num_tokens) - len(held)))
        held.extend(blocks)
        return blocks

    def _blocks(self, request_id: str, num_tokens: int) -> int:
        """Columns of a request's table, from the beginning on."""
        spec: SlabSpec = self.kv_cache_spec
        # Whether one can be admitted is asked with all of its tokens, before it is known how many are its prompt's.
        prompt = self._prompts.get(request_id, num_tokens)
        return spec.prompt_blocks(prompt) + spec.blocks(prompt)

    def remove_skipped_blocks(
        self, request_id: str, processed_computed_tokens: int, num_prompt_tokens: int | None = None
    ) -> None:
        """Give the prompt's blocks back once it has been read: what stays of it lies in the slab."""
        if num_prompt_tokens is None:
            return
        self._prompts[request_id] = num_prompt_tokens  # told before anything is given
        if processed_computed_tokens >= num_prompt_tokens:
            self._remove_blocks_in_range(request_id, 0, self.kv_cache_spec.prompt_blocks(num_prompt_tokens))

    def pop_blocks_for_free(self, request_id: str) -> list[Any]:
        self._prompts.pop(request_id, None)
        blocks: list[Any] = super().pop_blocks_for_free(request_id)
        return blocks

    def add_local_computed_blocks(self, *args: Any, **kwargs: Any) -> None:
        SingleTypeKVCacheManager.add_local_computed_blocks(self, *args, **kwargs)

    def cache_blocks(self, request: Any, num_tokens: int, *args: Any, **kwargs: Any) -> None:
        """The prompt's, for other requests that begin alike; what is generated lies in no block of its own."""
        prompt = min(num_tokens, request.num_prompt_tokens)
        SingleTypeKVCacheManager.cache_blocks(self, request, prompt, *args, **kwargs)

    def allocate_external_computed_blocks(self, request_id: str, *args: Any, **kwargs: Any) -> None:
        raise UnsupportedFeatureError("the slab design of a squeeze plan takes no tokens from a KV connector")


def _register() -> None:
    KVCacheSpecRegistry._ensure_registered()  # else its own kinds are never registered
    KVCacheSpecRegistry.register(SqueezeSpec, SqueezeManager, uniform_type_base_spec=SqueezeSpec)
    KVCacheSpecRegistry.register(SlabSpec, SlabManager, uniform_type_base_spec=SlabSpec)


# On import: a scheduler whose workers are other processes gets to know specs by unpickling them, which imports this.
# Without a manager of its own a spec would be served as a plain sliding window, and lose its sinks.
_register()
