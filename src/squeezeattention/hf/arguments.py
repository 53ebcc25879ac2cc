"""Reading the arguments of a decoder's forward, however they were given."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..errors import UnsupportedFeatureError
from . import compat

if TYPE_CHECKING:
    from ..cache.cache import SqueezeCache

#: What forwards of models call their cache.
CACHE_ARGUMENTS = (*compat.CACHE_NAMES, "layer_past", "past_key_value")


def by_name(decoder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a decoder's forward, all by their names."""
    if not args:
        return kwargs
    names = list(inspect.signature(type(decoder).forward).parameters)[1:]
    return {**dict(zip(names, args, strict=False)), **kwargs}


def cache_of(kwargs: dict[str, Any]) -> SqueezeCache | None:
    """Our cache among the arguments of a forward, if there is one."""
    from ..cache.cache import SqueezeCache

    return next((kwargs[name] for name in CACHE_ARGUMENTS if isinstance(kwargs.get(name), SqueezeCache)), None)


def cache_name(model: nn.Module) -> str:
    """What the forward of a whole model calls its cache: models written before transformers 5.24 say otherwise."""
    return _cache_name(type(model).forward)


@functools.cache
def _cache_name(forward: Callable[..., Any]) -> str:
    names = inspect.signature(forward).parameters
    return next((name for name in compat.CACHE_NAMES if name in names), compat.generate_cache_name())


def wants(decoder: nn.Module, kwargs: dict[str, Any], name: str) -> bool:
    """Whether a forward with these arguments is to give an output that is named so."""
    given = kwargs.get(name)
    return bool(getattr(decoder.config, name, False) if given is None else given)


def refuse_unsupported(decoder: nn.Module, kwargs: dict[str, Any]) -> None:
    """:class:`UnsupportedFeatureError` for what a forward with a cache of ours cannot read or give."""
    if kwargs.get("encoder_hidden_states") is not None:
        raise UnsupportedFeatureError(
            "encoder_hidden_states: a SqueezeCache holds a text's own keys and values, not those of another text or an "
            "image; leave them out, or use the model's own cache"
        )
    if decoder.training and any(getattr(part, "gradient_checkpointing", False) for part in decoder.modules()):
        raise UnsupportedFeatureError(
            "gradient checkpointing takes the cache from a model's layers while it trains: call model.eval() or "
            "model.gradient_checkpointing_disable() before using a SqueezeCache, or leave the cache out"
        )
    if wants(decoder, kwargs, "output_attentions"):
        raise UnsupportedFeatureError(
            "output_attentions=True: a SqueezeCache never makes the whole matrix of attention, which has no place for "
            "evicted tokens; read it from a forward with the model's own cache, or write a Signal, which sees it"
        )


def new_tokens(kwargs: dict[str, Any]) -> int:
    """New tokens of a row."""
    given = kwargs.get("input_ids")
    given = kwargs.get("inputs_embeds") if given is None else given
    return given.shape[1] if isinstance(given, torch.Tensor) and given.ndim > 1 else 0
