"""A long forward in pieces: what a cache with a bounded prefill is read with, whoever calls the model.

The decoder's own forward is called once a piece, hooks and all, so that every piece is a step of its own; the hidden
states of the pieces are put together again.
"""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..errors import UnsupportedFeatureError
from .shadow import shadow

if TYPE_CHECKING:
    from ..cache.cache import SqueezeCache

#: Where a module keeps the forward that was put before its class's own (accelerate does that), while ours is in front.
BEFORE = "_squeezeattention_forward"
_CACHE_NAMES = ("past_key_values", "layer_past", "past_key_value")
#: Arguments with a column for each new token, besides the attention mask.
_PER_TOKEN = ("input_ids", "inputs_embeds", "token_type_ids")


def split_prompts(decoder: nn.Module) -> Callable[[], None]:
    """Put :func:`split_forward` in front of a decoder's forward; returns what undoes it."""
    before = decoder.__dict__.get("forward")
    if before is not None:
        decoder.__dict__[BEFORE] = before
    undo_shadow, reference = shadow(decoder, "forward", split_forward), weakref.ref(decoder)

    def undo() -> None:
        undo_shadow()
        if (module := reference()) is not None:
            module.__dict__.pop(BEFORE, None)

    return undo


def by_name(decoder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a decoder's forward, all by their names."""
    if not args:
        return kwargs
    names = list(inspect.signature(type(decoder).forward).parameters)[1:]
    return {**dict(zip(names, args, strict=False)), **kwargs}


def cache_of(kwargs: dict[str, Any]) -> SqueezeCache | None:
    """Our cache among the arguments of a forward, if there is one."""
    from ..cache.cache import SqueezeCache

    return next((kwargs[name] for name in _CACHE_NAMES if isinstance(kwargs.get(name), SqueezeCache)), None)


def is_split(cache: SqueezeCache, kwargs: dict[str, Any]) -> bool:
    """Whether a forward with these arguments goes in pieces."""
    return cache.prefill == "bounded" and _length(kwargs) > cache.chunk_size


def split_forward(decoder: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """The decoder's forward, in pieces where :func:`is_split` says so.

    Raises :class:`UnsupportedFeatureError` for outputs that cannot be put together.
    """
    given = by_name(decoder, args, kwargs)
    cache = cache_of(given)
    if cache is None or not is_split(cache, given):
        before = decoder.__dict__.get(BEFORE)
        return type(decoder).forward(decoder, *args, **kwargs) if before is None else before(*args, **kwargs)
    for name in ("output_hidden_states", "output_attentions", "output_router_logits"):
        wanted = given.get(name)
        if wanted if wanted is not None else getattr(decoder.config, name, False):
            raise UnsupportedFeatureError(f'{name}=True does not go with prefill="bounded", which reads in pieces')
    with cache._reading_pieces(given.get("attention_mask"), _length(given)):
        outputs = [decoder(**piece) for piece in _pieces(given, cache.chunk_size, cache.get_seq_length())]
    whole = outputs[-1]
    hidden = torch.cat([output[0] for output in outputs], dim=1)
    if isinstance(whole, tuple):
        return hidden, *whole[1:]
    whole["last_hidden_state"] = hidden
    return whole


def _length(kwargs: dict[str, Any]) -> int:
    """New tokens of a row."""
    given = kwargs.get("input_ids")
    given = kwargs.get("inputs_embeds") if given is None else given
    return given.shape[1] if isinstance(given, torch.Tensor) and given.ndim > 1 else 0


def _pieces(given: dict[str, Any], size: int, seen: int) -> list[dict[str, Any]]:
    """The arguments of each piece; ``seen`` columns came before."""
    length = _length(given)
    mask, positions = given.get("attention_mask"), given.get("position_ids")
    found = []
    for start in range(0, length, size):
        stop = min(start + size, length)
        piece = dict(given)
        for name in _PER_TOKEN:
            if isinstance(given.get(name), torch.Tensor):
                piece[name] = given[name][:, start:stop]
        if isinstance(positions, torch.Tensor):
            piece["position_ids"] = positions[..., start:stop]
        if isinstance(cache_position := given.get("cache_position"), torch.Tensor):
            piece["cache_position"] = cache_position[start:stop]
        if isinstance(mask, torch.Tensor) and mask.ndim == 2:
            whole = mask.shape[1] != length or not seen  # all columns so far, or those of the new tokens alone
            before = mask.shape[1] - length
            piece["attention_mask"] = mask[:, : before + stop] if whole else mask[:, start:stop]
        found.append(piece)
    return found
