"""Every touch of transformers that has changed between releases, in one place (supported: >= 5.5)."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import transformers
from transformers.generation.utils import GenerationMixin
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface, causal_mask_function
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, AttentionInterface

from ..errors import UnsupportedFeatureError, UnsupportedModelError

OLDEST = (5, 5)
#: The first release whose models take the number of columns seen as a tensor.
OLDEST_COMPILED = (5, 15)
#: What models and ``generate`` call their cache, the newest name first ("cache" from 5.24 on).
CACHE_NAMES = ("cache", "past_key_values")


def release() -> str:
    """The installed release."""
    return str(transformers.__version__)


def _release() -> tuple[int, ...]:
    return tuple(int(part) for part in release().split(".")[:2])


@functools.cache
def generate_cache_name() -> str:
    """What ``generate`` and the methods it calls name the cache."""
    names = inspect.signature(GenerationMixin.prepare_inputs_for_generation).parameters
    return next(name for name in CACHE_NAMES if name in names)


def check_compiles() -> None:
    """Refuse ``compile=True`` where the models cannot be traced with tensors for lengths."""
    if _release() < OLDEST_COMPILED:
        raise UnsupportedFeatureError(
            f"compile=True needs transformers >= {OLDEST_COMPILED[0]}.{OLDEST_COMPILED[1]}, this is {release()}"
        )


def check_version() -> None:
    """Refuse a transformers release from before the cache and mask interfaces this library stands on."""
    if _release() < OLDEST:
        raise UnsupportedModelError(
            f"transformers {release()} is too old: squeezeattention needs >= {OLDEST[0]}.{OLDEST[1]}"
        )


def implementation(config: Any) -> str:
    """Name of the attention implementation a config asks for ("sdpa", "eager", ...)."""
    return str(config._attn_implementation or "eager")


def set_implementation(config: Any, name: str | None) -> None:
    """Set it without the checks of ``set_attn_implementation``, which know built-in names only."""
    config._attn_implementation_internal = name


def raw_implementation(config: Any) -> str | None:
    """What :func:`set_implementation` would restore."""
    found: str | None = config._attn_implementation_internal
    return found


@functools.cache
def chunks_start_anew() -> bool:
    """Whether ``generate(prefill_chunk_size=...)`` reads a later turn's whole text again (5.5 does)."""
    return "torch.split(input_ids" in inspect.getsource(GenerationMixin._prefill)


def uses_interface(model: Any) -> bool:
    """Whether the model's attention goes through transformers' ``AttentionInterface``."""
    return bool(type(model)._can_set_attn_implementation())


def attention_function(name: str, default: Callable[..., Any] | None) -> Callable[..., Any] | None:
    """The registered attention function ``name``, or ``default`` ("eager" is the model's own)."""
    if name == "eager":
        return default
    found: Callable[..., Any] | None = ALL_ATTENTION_FUNCTIONS.get(name, default)
    return found


def mask_function(name: str) -> Callable[..., Any]:
    """The registered mask builder ``name``."""
    found: Callable[..., Any] = ALL_MASK_ATTENTION_FUNCTIONS[name]
    return found


def has_mask_function(name: str) -> bool:
    return name in ALL_MASK_ATTENTION_FUNCTIONS


def is_plain_causal(pattern: Any) -> bool:
    """Whether a mask's pattern is causal order and nothing else."""
    return pattern is causal_mask_function


def is_builtin(name: str) -> bool:
    """Whether attention and masks of this name are what transformers itself computes, not what a user registered."""
    tables: tuple[Any, ...] = (ALL_ATTENTION_FUNCTIONS, ALL_MASK_ATTENTION_FUNCTIONS)
    return all(_is_of_transformers(table[name]) for table in tables if name in table)


def _is_of_transformers(function: Any) -> bool:
    while isinstance(function, functools.partial):
        function = function.func
    return str(getattr(function, "__module__", "")).partition(".")[0] == "transformers"


def register(name: str, attention: Callable[..., Any], mask: Callable[..., Any]) -> None:
    """Make an implementation name known. Other models and other names are not affected."""
    AttentionInterface.register(name, attention)
    AttentionMaskInterface.register(name, mask)
