"""A long forward in pieces: what a cache with a bounded prefill is read with, whoever calls the model.

The decoder's own forward is called once a piece, hooks and all, so that every piece is a step of its own; the hidden
states of the pieces are put together again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..errors import UnsupportedFeatureError
from .arguments import new_tokens, refuse_unsupported, wants
from .turning import alike_up_to, longest

if TYPE_CHECKING:
    from ..cache.cache import SqueezeCache

#: Arguments with a column for each new token, besides the attention mask.
_PER_TOKEN = ("input_ids", "inputs_embeds", "token_type_ids", "mm_token_type_ids", "per_layer_inputs")
#: Which tokens are of images, ``[B, length]``, and what some layers add to each of those (Qwen3-VL).
_VISUAL, _DEEPSTACK = "visual_pos_masks", "deepstack_visual_embeds"
#: All arguments that are known how to cut.
_CUT = frozenset({*_PER_TOKEN, "attention_mask", "position_ids", "cache_position", _VISUAL, _DEEPSTACK})


def is_split(cache: SqueezeCache, kwargs: dict[str, Any]) -> bool:
    """Whether a forward with these arguments goes in pieces."""
    return cache.prefill == "bounded" and cache._replayed is None and new_tokens(kwargs) > cache.chunk_size


def split_forward(decoder: nn.Module, cache: SqueezeCache, given: dict[str, Any]) -> Any:
    """The decoder's forward in pieces.

    Raises :class:`UnsupportedFeatureError` for outputs that cannot be put together.
    """
    refuse_unsupported(decoder, given)
    for name in ("output_hidden_states", "output_router_logits"):
        if wants(decoder, given, name):
            raise UnsupportedFeatureError(f'{name}=True does not go with prefill="bounded", which reads in pieces')
    for name, value in given.items():
        if name not in _CUT and _has_tensors(value):
            raise UnsupportedFeatureError(
                f'{type(decoder).__name__} is given {name}, and prefill="bounded" does not know which of it goes with '
                'which piece of the prompt; use prefill="exact"'
            )
    _refuse_other_frequencies(decoder, cache, given)
    with cache._reading_pieces(given.get("attention_mask"), new_tokens(given)):
        outputs = [decoder(**piece) for piece in _pieces(given, cache.chunk_size, cache.get_seq_length())]
    whole = outputs[-1]
    hidden = torch.cat([output[0] for output in outputs], dim=1)
    if isinstance(whole, tuple):
        return hidden, *whole[1:]
    whole["last_hidden_state"] = hidden
    return whole


def _refuse_other_frequencies(decoder: nn.Module, cache: SqueezeCache, given: dict[str, Any]) -> None:
    """One forward turns all keys alike; in pieces the first ones would be turned as those of a short text."""
    limit = alike_up_to(decoder)
    if limit is None or longest(given.get("position_ids"), cache.get_seq_length(), new_tokens(given)) <= limit:
        return
    raise UnsupportedFeatureError(
        f"{type(decoder).__name__} turns the keys of texts of more than {limit} tokens in another way than those of "
        'shorter ones, and prefill="bounded" reads such a text in pieces, of which the first are short; use '
        'prefill="exact"'
    )


def _has_tensors(value: Any) -> bool:
    """Whether there is more than a single number in it."""
    if isinstance(value, torch.Tensor):
        return value.numel() > 1
    if isinstance(value, dict):
        return any(map(_has_tensors, value.values()))
    return isinstance(value, (list, tuple)) and any(map(_has_tensors, value))


def _pieces(given: dict[str, Any], size: int, seen: int) -> list[dict[str, Any]]:
    """The arguments of each piece; ``seen`` columns came before."""
    length = new_tokens(given)
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
        if isinstance(visual := given.get(_VISUAL), torch.Tensor):
            piece[_VISUAL] = visual[:, start:stop]
            column = visual.nonzero()[:, 1]  # of each token of an image, row by row
            inside = (column >= start) & (column < stop)
            if given.get(_DEEPSTACK) is not None:
                piece[_DEEPSTACK] = [added[inside.to(added.device)] for added in given[_DEEPSTACK]]
        if isinstance(mask, torch.Tensor) and mask.ndim == 2:
            whole = mask.shape[1] != length or not seen  # all columns so far, or those of the new tokens alone
            before = mask.shape[1] - length
            piece["attention_mask"] = mask[:, : before + stop] if whole else mask[:, start:stop]
        found.append(piece)
    return found
