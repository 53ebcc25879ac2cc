"""Everything that touches vLLM itself, for the releases in ``TESTED``.

vLLM loads :func:`register` in each of its processes (entry point ``vllm.general_plugins``). These methods are wrapped:

===========================================  =======================================================================
``Attention.get_kv_cache_spec``              a layer of the plan asks for its blocks (spec.py)
``Attention.get_attn_backend``               its backend builds metadata over what is seen (segments.py)
``GPUModelRunner._build_attention_metadata`` tells the builders where each prompt ends: a request that was preempted
                                             reads its answer again, and must not take it for prompt
``GPUModelRunner.get_kv_cache_spec``         plans per prompt: the model's layers are looked at (observation.py)
``GPUModelRunner.execute_model``             ... budgets are chosen for the prompts that a step ends (choosing.py, or
                                             repeating.py, which runs the model again and cuts them)
``GPUModelRunner.sample_tokens``             ... the step's output takes the choices along
``Scheduler.update_from_output``             ... and the scheduler gives back what they do not keep
``KVCacheManager.get_computed_blocks``       a request that was preempted finds no more than its prompt in the prefix
                                             cache: what it has generated saw other tokens than a prompt's would
``InputProcessor.__init__``                  made before the workers, whose errors do not arrive as what they are:
                                             refuses what a plan cannot be combined with
``InputProcessor.resolve_watermarking``      asked by every beam search before it begins, which a plan would not bound
===========================================  =======================================================================

Each does what it did before unless ``additional_config`` has a ``squeeze`` entry.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from ..errors import ConfigError, UnsupportedFeatureError
from .backends import BATCH, Batch, slab_backend, slab_impl, squeezed_backend
from .carried import MARK, carried, check_engine, check_version, given_to, installed
from .choosing import PromptChoices
from .observation import CosineObserver
from .repeating import HeadChoices, pool_tables


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
    from vllm.v1.core.kv_cache_manager import KVCacheManager
    from vllm.v1.core.sched.scheduler import Scheduler
    from vllm.v1.engine.input_processor import InputProcessor
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    _wrap(Attention, "get_kv_cache_spec", _get_kv_cache_spec)
    _wrap(Attention, "get_attn_backend", _get_attn_backend)
    _wrap(GPUModelRunner, "_build_attention_metadata", _build_attention_metadata)
    _wrap(GPUModelRunner, "get_kv_cache_spec", _observe)
    _wrap(GPUModelRunner, "execute_model", _execute_model)
    _wrap(GPUModelRunner, "sample_tokens", _sample_tokens)
    _wrap(Scheduler, "update_from_output", _update_from_output)
    _wrap(KVCacheManager, "get_computed_blocks", _get_computed_blocks)
    _wrap(InputProcessor, "__init__", _check_config)
    _wrap(InputProcessor, "resolve_watermarking", _check_params)


def _refuse_plans(reason: str) -> None:
    from vllm.config import VllmConfig

    def refuse(original: Callable[..., Any], config: Any, *args: Any, **kwargs: Any) -> Any:
        if given_to(config) is not None:
            check_version(installed())
            raise UnsupportedFeatureError(f"this vLLM ({installed()}) cannot carry a squeeze plan: {reason}")
        return original(config, *args, **kwargs)

    _wrap(VllmConfig, "__post_init__", refuse)


def _wrap(owner: type, name: str, function: Callable[..., Any]) -> None:
    """Make ``owner.name(...)`` call ``function(original, self, ...)``, once."""
    original = vars(owner)[name]
    if getattr(original, MARK, False):
        return

    @functools.wraps(original)
    def wrapped(self: Any, *args: Any, **kwargs: Any) -> Any:
        return function(original, self, *args, **kwargs)

    setattr(wrapped, MARK, True)
    setattr(owner, name, wrapped)


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
    vars(layer)[MARK] = plan.settings.design
    if plan.slab is not None:
        if not isinstance(layer.impl, slab_impl()):
            rooms = plan.slab.map(lambda own: own.rooms[index][: layer.impl.num_kv_heads])  # equal, on several ranks
            layer.impl = slab_impl()(layer, plan.settings.make_policy(), rooms)
        slots = plan.slab.map(lambda own: own.blocks.layers[index].total * spec.block_size)
        return SlabSpec.of(spec, slots, lane=lane, whole_prompts=plan.whole_prompts)
    return SqueezeSpec.of(spec, blocks, windowed_prefill=plan.settings.prefill == "windowed", lane=lane,
                          per_prompt=plan.planner is not None)  # fmt: skip


def _index(layer: Any) -> int:
    from vllm.model_executor.models.utils import extract_layer_index

    return int(extract_layer_index(layer.layer_name))


def _get_attn_backend(original: Callable[..., Any], layer: Any) -> Any:
    # The engine asks for a layer's cache first; the current config is not at hand in every process by now.
    backend = original(layer)
    wrapped = {"compact": squeezed_backend, "slab": slab_backend}.get(vars(layer).get(MARK, ""))
    return backend if wrapped is None else wrapped(backend)


def _build_attention_metadata(original: Callable[..., Any], runner: Any, *args: Any, **kwargs: Any) -> Any:
    batch, choices, pool = runner.input_batch, _choices(runner), None
    if isinstance(choices, HeadChoices) and batch.req_ids:
        rows = range(len(batch.req_ids))
        pool = pool_tables(runner, [int(batch.num_prompt_tokens[row]) for row in rows], rows)
    token = BATCH.set(Batch(batch.num_prompt_tokens_cpu_tensor, batch.req_ids, choices, pool))
    try:
        return original(runner, *args, **kwargs)
    finally:
        BATCH.reset(token)


def _check_config(original: Callable[..., Any], processor: Any, vllm_config: Any, *args: Any, **kwargs: Any) -> Any:
    check_engine(vllm_config)
    return original(processor, vllm_config, *args, **kwargs)


def _check_params(original: Callable[..., Any], processor: Any, params: Any) -> Any:
    """A beam search gives each beam back as a prompt for every token, and prompts are attended to in full."""
    from vllm.sampling_params import BeamSearchParams

    if isinstance(params, BeamSearchParams):
        plan = carried(processor.vllm_config)
        if plan is not None and (plan.is_slab or plan.settings.prefill == "full"):
            raise UnsupportedFeatureError(
                "beam search in vLLM reads all text again as a prompt for each token, so no token would see what the "
                'squeeze plan keeps; use greedy decoding or sampling, a plan with prefill="windowed", or beams in '
                "transformers"
            )
    return original(processor, params)


def _get_computed_blocks(original: Callable[..., Any], manager: Any, request: Any) -> Any:
    blocks, tokens, *more = original(manager, request)
    spec = manager.kv_cache_config.kv_cache_groups[0].kv_cache_spec if tokens >= request.num_prompt_tokens else None
    if spec is not None and getattr(spec, "cuts_read_prompts", False):
        # ... and its prompt's last token is read, so that it is cut again.
        tokens = (request.num_prompt_tokens - 1) // spec.block_size * spec.block_size
        blocks = manager.truncate_computed_blocks(blocks, tokens)
    return blocks, tokens, *more


# ------------------------------------------------------------ plans per prompt


def _choices(runner: Any) -> PromptChoices | HeadChoices | None:
    choices: PromptChoices | HeadChoices | None = vars(runner).get(MARK)
    return choices


def _observe(original: Callable[..., Any], runner: Any) -> Any:
    specs, plan = original(runner), carried(runner.vllm_config)
    if plan is not None and plan.heads is not None and _choices(runner) is None:
        vars(runner)[MARK] = HeadChoices(plan.heads)
    if plan is not None and plan.planner is not None and _choices(runner) is None:
        observer = CosineObserver(len(plan.lanes.lanes), runner.max_num_tokens, runner.device)
        observer.attach(runner.get_model())
        vars(runner)[MARK] = PromptChoices(plan.planner, observer)
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
        vars(result)[MARK] = news
        return result
    later = result.get_output  # an output that is still being computed

    def get_output() -> Any:
        output = later()
        vars(output)[MARK] = news
        return output

    result.get_output = get_output
    return result


def _update_from_output(original: Callable[..., Any], scheduler: Any, scheduled: Any, output: Any) -> Any:
    for request, recent in vars(output).get(MARK, {}).items():
        for manager in scheduler.kv_cache_manager.coordinator.single_type_managers:
            manager.choose(request, recent)
    return original(scheduler, scheduled, output)
