"""Attention backends of layers that have a budget: metadata over what is seen, or attention over slots.

What vLLM does not tell the builders of metadata, where prompts end and what was chosen for each, they find in
:data:`BATCH` while it is built.
"""

from __future__ import annotations

import contextvars
import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..errors import CacheStateError, UnsupportedFeatureError
from .choosing import PromptChoices
from .lengths import ByLength
from .repeating import HeadChoices
from .segments import split
from .slab import Repetition, SlabBatch, SlabLayer


@dataclasses.dataclass(frozen=True)
class Batch:
    """What builders of metadata are not told by vLLM."""

    prompts: Any
    """[rows] tokens of each row's prompt."""
    requests: Sequence[str]
    choices: PromptChoices | HeadChoices | None
    pool: Any = None
    """[rows, P] blocks of all layers' slabs, where prompts have budgets of their own for KV heads (head_plans.py)."""


BATCH: contextvars.ContextVar[Batch | None] = contextvars.ContextVar("squeezeattention_batch", default=None)


def _batch() -> Batch:
    batch = BATCH.get()
    if batch is None:
        raise UnsupportedFeatureError(
            "this model runner does not say where prompts end: set VLLM_USE_V2_MODEL_RUNNER=0 (or, with the compact "
            'design, use "prefill": "windowed")'
        )
    return batch


def _prompt_lengths(rows: int) -> Any:
    """[rows] tokens of each prompt of the batch whose metadata is being built."""
    return _batch().prompts[:rows]


def _newest_blocks(spec: Any, starts: Any, prompts: Any) -> Any:
    """Blocks behind the sinks that a query sees: of the layer, or [rows], as chosen for each prompt.

    ``starts`` and ``prompts``: [rows] first token of this step and tokens of the prompt. Raises
    :class:`CacheStateError` if nothing was chosen for a prompt that has been read.
    """
    batch = _batch() if spec.per_prompt else None
    if batch is None or batch.choices is None or isinstance(batch.choices, HeadChoices):
        return spec.layer.recent
    # Prompts that are still being read are attended to in full; rows past the requests are padding.
    recent = np.full(len(starts), spec.layer.recent, dtype=np.int64)
    for row, request in enumerate(batch.requests[: len(starts)]):
        choice = batch.choices.chosen.get(request)
        if choice is not None:
            recent[row] = choice[spec.lane]
        elif starts[row] >= prompts[row]:
            raise CacheStateError(
                f"no budgets were chosen for request {request!r}, whose {prompts[row]} tokens of prompt have been read "
                f"({starts[row]} tokens are computed): please report this"
            )
    return recent


@functools.cache
def squeezed_backend(backend: type) -> type:
    """A backend whose metadata shows each query what its layer keeps."""
    from vllm.v1.attention.backend import AttentionCGSupport, subclass_attention_backend

    class Builder(backend.get_builder_cls()):  # type: ignore[misc]
        supports_update_block_table = False

        @classmethod
        def get_cudagraph_support(cls, vllm_config: Any, kv_cache_spec: Any) -> Any:
            return AttentionCGSupport.NEVER  # tables are made anew at each step

        def build(self, common_prefix_len: int, common_attn_metadata: Any, fast_build: bool = False) -> Any:
            seen = what_is_seen(self.kv_cache_spec, common_attn_metadata)
            return super().build(0, seen, fast_build)

        def use_cascade_attention(self, *args: Any, **kwargs: Any) -> bool:
            return False

    return subclass_attention_backend("Squeeze", backend, Builder)


def what_is_seen(spec: Any, common: Any) -> Any:
    """The batch as segments (see segments.py), each a request of its own to the kernel."""
    import torch

    offsets = common.query_start_loc_cpu[: common.num_reqs + 1].numpy().astype(np.int64)
    stop = common.seq_lens_cpu_upper_bound[: common.num_reqs].numpy().astype(np.int64)
    counts = np.diff(offsets)
    free = np.zeros_like(stop)
    if not spec.windowed_prefill:
        free = _prompt_lengths(common.num_reqs).numpy().astype(np.int64)
    starts = np.maximum(stop - counts, 0)
    parts = split(
        starts, np.maximum(stop, counts), free, sinks=spec.layer.sinks,
        recent=_newest_blocks(spec, starts, free), granule=spec.granule, block_size=spec.block_size,
    )  # fmt: skip
    device, table = common.seq_lens.device, common.block_table_tensor
    rows, columns, lengths = (
        torch.from_numpy(array).to(device, non_blocking=True) for array in (parts.request, parts.columns, parts.length)
    )
    starts = torch.from_numpy(np.concatenate([[0], np.cumsum(parts.queries)]).astype(np.int32))
    return dataclasses.replace(
        common,
        query_start_loc=starts.to(device, non_blocking=True),
        query_start_loc_cpu=starts,
        seq_lens=lengths.int(),
        seq_lens_cpu_upper_bound=torch.from_numpy(parts.length).int(),
        num_reqs=len(parts.request),
        max_query_len=int(parts.queries.max(initial=0)),
        max_seq_len=int(parts.length.max(initial=0)),
        block_table_tensor=table[rows[:, None], columns],
        is_prefilling=None if common.is_prefilling is None else common.is_prefilling[parts.request],
    )


# -------------------------------------------------------------------- the slab


@functools.cache
def slab_impl() -> type:
    """Attention of a layer whose tokens are chosen one by one (slab.py), in place of its backend's."""
    from vllm.v1.attention.backend import AttentionImpl

    class SlabImpl(AttentionImpl):
        def __init__(self, layer: Any, policy: Any, rooms: ByLength[tuple[int, ...]]) -> None:
            given = layer.impl
            self.num_heads, self.head_size, self.scale = given.num_heads, given.head_size, given.scale
            self.num_kv_heads = given.num_kv_heads
            unsupported = {
                "attention sinks": getattr(given, "sinks", None) is not None,
                "ALiBi": getattr(given, "alibi_slopes", None) is not None,
                "a quantised cache": layer.kv_cache_dtype not in ("auto", "float16", "bfloat16", "float32"),
                "shared caches": layer.kv_sharing_target_layer_name is not None,
            }
            if found := [name for name, is_on in unsupported.items() if is_on]:
                raise UnsupportedFeatureError(f"the slab design cannot be combined with {', '.join(found)}")
            softcap = getattr(given, "logits_soft_cap", None) or None
            self.slab = SlabLayer(policy, rooms.of, given.scale, softcap)

        def do_kv_cache_update(self, *args: Any, **kwargs: Any) -> None:
            """What stays is written once attention is known."""

        def forward(
            self, layer: Any, query: Any, key: Any, value: Any, kv_cache: Any, attn_metadata: Any, output: Any,
            output_scale: Any = None, output_block_scale: Any = None,
        ) -> Any:  # fmt: skip
            if attn_metadata is None:  # warming up
                return output
            shape = (self.num_kv_heads, 2 * self.head_size)
            fits = kv_cache.ndim == 4 and (kv_cache.shape[1], kv_cache.shape[3]) == shape
            if not fits or not kv_cache.is_contiguous():
                raise UnsupportedFeatureError(
                    f"the slab design knows caches of blocks x heads x tokens x keys and values, in this order in "
                    f"memory; this backend's is {tuple(kv_cache.shape)} with strides {kv_cache.stride()}"
                )
            repeats = isinstance(attn_metadata, Repetition)
            attend = self.slab.repeat if repeats else self.slab.attend
            tokens = len(query) if repeats else attn_metadata.offsets[-1]
            output[:tokens] = attend(query[:tokens], key[:tokens], value[:tokens], kv_cache, attn_metadata)
            return output

    return SlabImpl


@functools.cache
def slab_backend(backend: type) -> type:
    """A backend whose metadata is a :class:`SlabBatch`."""
    import torch
    from vllm.model_executor.models.utils import extract_layer_index
    from vllm.v1.attention.backend import AttentionCGSupport, AttentionMetadataBuilder, subclass_attention_backend

    class Builder(AttentionMetadataBuilder):
        def __init__(self, kv_cache_spec: Any, layer_names: Any, vllm_config: Any, device: Any) -> None:
            super().__init__(kv_cache_spec, layer_names, vllm_config, device)
            self._layers = [extract_layer_index(name) for name in layer_names]

        @classmethod
        def get_cudagraph_support(cls, vllm_config: Any, kv_cache_spec: Any) -> Any:
            return AttentionCGSupport.NEVER

        def build(self, common_prefix_len: int, common_attn_metadata: Any, fast_build: bool = False) -> SlabBatch:
            common, rows, spec = common_attn_metadata, common_attn_metadata.num_reqs, self.kv_cache_spec
            offsets = common.query_start_loc_cpu[: rows + 1].tolist()
            stops = common.seq_lens_cpu_upper_bound[:rows].tolist()
            starts = [stop - (last - first) for stop, first, last in zip(stops, offsets, offsets[1:], strict=False)]
            prompts, table = _prompt_lengths(rows).tolist(), common.block_table_tensor[:rows].long()
            batch = _batch()
            if isinstance(batch.choices, HeadChoices):
                (layer,) = self._layers  # each has a block table of its own
                known = [batch.choices.chosen.get(request) for request in batch.requests[:rows]]
                chosen = [None if own is None else (own.begins[layer], own.rooms[layer]) for own in known]
                return SlabBatch(offsets, starts, prompts, batch.pool, table, chosen)
            if not spec.whole_prompts:
                return SlabBatch(offsets, starts, prompts, table[:, : spec.most_blocks])
            front = torch.tensor([spec.prompt_blocks(tokens) for tokens in prompts], device=table.device)
            columns = front[:, None] + torch.arange(spec.most_blocks, device=table.device)
            slab = table.gather(1, columns.clamp(max=table.shape[1] - 1))  # the longest prompts' may end before
            return SlabBatch(offsets, starts, prompts, slab, table)

    return subclass_attention_backend("Slab", backend, Builder)
