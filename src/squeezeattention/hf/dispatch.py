"""The attention and mask functions a model calls while attached.

They are registered under names that carry the model's own implementation (``squeeze_sdpa``, ``squeeze_eager``,
...): with a step of ours under way they serve our cache, otherwise they hand over to that implementation, so an
attached model with any other cache computes exactly what it did before. Nothing global is replaced.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch

from ..attention.core import Scoring
from ..cache.layer import Native
from ..cache.step import ACTIVE, Step, current_step
from ..errors import UnsupportedFeatureError, UnsupportedModelError
from . import compat
from .masks import asked_of, check_mask, stand_in, window_of

PREFIX = "squeeze_"

#: Arguments that reach an attention function and do not change what it computes here. (``generate(stop_strings=...)``
#: hands its tokenizer on to the model.)
_HARMLESS = frozenset({
    "position_ids", "use_cache", "cache_position", "output_attentions", "output_hidden_states", "is_causal",
    "output_router_logits", "return_dict", "logits_to_keep", "num_items_in_batch", "past_key_values", "cache",
    "layer_past", "head_mask", "position_embeddings", "token_type_ids", "labels", "cu_seq_lens_q", "cu_seq_lens_k",
    "max_length_q", "max_length_k", "tokenizer",
})  # fmt: skip
#: Implementations whose masks are no tensors of queries and keys.
_WITHOUT_TENSORS = ("flash_attention_2", "flash_attention_3", "flash_attention_4", "flex_attention")
#: Implementations that compute plain causal attention when they are given no mask.
_NATIVE = ("sdpa", "flash_attention_2", "flash_attention_3", "flash_attention_4")


def implementation_name(own: str) -> str:
    """Registered name that serves our caches and falls back to ``own``; registered on first use."""
    if own.startswith(PREFIX):
        return own
    name = PREFIX + own
    if not compat.has_mask_function(own):
        raise UnsupportedModelError(
            f"the model's attention implementation {own!r} builds no mask this library knows; load the model with "
            'attn_implementation="sdpa" or "eager"'
        )
    if not compat.is_builtin(own):
        raise UnsupportedModelError(
            f"the model's attention implementation {own!r} is a function that was registered by hand, which a "
            'SqueezeCache would not call; choose another: model.set_attn_implementation("sdpa")'
        )
    compat.register(name, _attention(own), _mask(own))
    return name


def _attention(own: str) -> Callable[..., Any]:
    def squeeze_attention(
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        scaling: float | None = None,
        dropout: float = 0.0,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        step = current_step()
        if step is None:
            return _own_function(own, module)(
                module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **kwargs
            )
        if dropout:
            raise UnsupportedFeatureError("attention dropout is on: call model.eval() before using a SqueezeCache")
        if getattr(module, "layer_idx", None) is None:
            raise UnsupportedModelError(
                f"{type(module).__name__}, which is no layer of the text, runs inside the decoder (an encoder of "
                "images there, for one): what it attends to is not in the cache; not supported"
            )
        layer = step.cache.layers[module.layer_idx]  # type: ignore[index]
        check_mask(step, module, layer, attention_mask, eager=own == "eager", masked=own not in _WITHOUT_TENSORS)
        native: Native | None = None
        if own in _NATIVE:

            def native(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
                function = _own_function(own, module)
                return function(module, q, k, v, None, scaling=scaling, dropout=0.0, **kwargs)[0]

        return run_layer(step, module, query, key, value, scaling=scaling, native=native, **kwargs), None

    return squeeze_attention


def _own_function(own: str, module: torch.nn.Module) -> Callable[..., Any]:
    eager = vars(sys.modules[type(module).__module__]).get("eager_attention_forward")
    function = compat.attention_function(own, eager)
    if function is None:
        raise UnsupportedModelError(f"{type(module).__name__} has no {own!r} attention to hand over to")
    return function


def _mask(own: str) -> Callable[..., Any]:
    def squeeze_mask(*args: Any, **kwargs: Any) -> Any:
        step = current_step()
        if step is not None and step.decoding and not kwargs.get("use_vmap"):
            return None  # the prompt has shown which layer has which
        asks = step is not None
        if step is None:
            asks, ACTIVE.asks = ACTIVE.asks, False  # a forward around the decoder's prepares masks for our cache
            if ACTIVE.windows is not None:  # somebody wants to know what the model asks for
                ACTIVE.windows.append(window_of(kwargs))
        mask = stand_in(kwargs, eager=own == "eager") if asks else None
        if mask is None:
            return compat.mask_function(own)(*args, **kwargs)
        if step is None:
            return mask
        if own in _WITHOUT_TENSORS:
            return None
        step.asked.append((mask, asked_of(mask)))
        return mask

    return squeeze_mask


def run_layer(
    step: Step,
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    scaling: float | None,
    native: Native | None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> torch.Tensor:
    """Attention of one layer under our cache: query ``[B, Hq, q, D]`` -> ``[B, q, Hq, Dv]``."""
    unknown = [name for name, given in kwargs.items() if given is not None and name not in _HARMLESS]
    if unknown:
        raise UnsupportedModelError(
            f"{type(module).__name__} passes attention arguments that are not understood: {', '.join(sorted(unknown))}"
        )
    index: int = module.layer_idx  # type: ignore[assignment]
    layer = step.cache.layers[index]
    if sliding_window is not None and sliding_window != layer.window:
        raise UnsupportedModelError(
            f"layer {index} of {type(module).__name__} attends in a window of {sliding_window} tokens, but its config "
            f"says {layer.window}"
        )
    layer.check_handed(key)
    if not step.static:
        step.attended.add(index)
    scoring = Scoring(query.shape[-1] ** -0.5 if scaling is None else scaling, softcap, s_aux)

    def plain(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return native(q, k, v).transpose(1, 2)  # type: ignore[misc]

    out = layer.attend(step, query, key, value, scoring, None if native is None else plain)
    return out.transpose(1, 2).contiguous()
