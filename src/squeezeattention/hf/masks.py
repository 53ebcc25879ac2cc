"""What masks a model asks for, and which of them reaches each layer's attention.

The cache decides by positions what a token sees, so no mask is ever filled: a model is handed one of a single number,
seen from everywhere (:func:`stand_in`), which says what was asked for. What arrives at attention is then either that,
and it must be what the layer was planned for, or a mask that the model has made by itself, which is refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch

from ..errors import InputError, UnsupportedModelError
from . import compat

if TYPE_CHECKING:
    from ..cache.layer import SqueezeLayer
    from ..cache.step import Step

#: Where a stand-in says what it stands for.
_ASKED = "_squeezeattention_asked"


#: A mask that is not causal order, with or without a window: both ways in an image, chunks, a model's own pattern.
OTHER: Literal["other"] = "other"
Window = int | None | Literal["other"]


@dataclass(frozen=True)
class Asked:
    """A causal mask that a model asked for."""

    window: int | None
    padding: torch.Tensor | None
    """The 2-D mask that it was to be made of."""


def window_of(arguments: dict[str, Any]) -> Window:
    """The native window (``None``: everything before) of the mask that these arguments of a mask function ask for, or
    ``OTHER``."""
    pattern, window = arguments["mask_function"], arguments.get("local_size")
    if arguments.get("use_vmap"):
        return OTHER
    if window is None and compat.is_plain_causal(pattern):
        return None
    return window if isinstance(window, int) and _is_window(pattern, window) else OTHER


def _is_window(pattern: Any, window: int) -> bool:
    """Whether a mask's pattern is that of a sliding window, seen from a query far behind it and the one after."""
    key = torch.arange(3 * window + 8)
    zero = torch.zeros((), dtype=torch.int64)
    for at in (3 * window + 4, 3 * window + 5):
        query = torch.tensor(at)
        try:
            seen = pattern(zero, zero, query, key)
        except (IndexError, RuntimeError):  # it looks something up for each token of this text
            return False
        if not torch.equal(seen.expand_as(key), (key <= query) & (key > query - window)):
            return False
    return True


def stand_in(arguments: dict[str, Any], *, eager: bool) -> torch.Tensor | None:
    """What a model is handed instead of the mask that these arguments of a mask function ask for; ``None`` if that is
    of a kind that nothing can stand for."""
    window = window_of(arguments)
    if window == OTHER:
        return None
    asked = Asked(window, arguments.get("attention_mask"))
    length, device = arguments["q_length"], arguments.get("device")
    if device is None and asked.padding is not None:
        device = asked.padding.device
    one = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=device)
    if eager:  # added to scores there
        one = torch.zeros(1, 1, 1, 1, dtype=arguments.get("dtype", torch.float32), device=device)
    mask = one.expand(arguments["batch_size"], 1, length, length)
    setattr(mask, _ASKED, asked)
    return mask


def asked_of(mask: Any) -> Asked | None:
    """What a stand-in stands for; ``None`` of any other mask."""
    return getattr(mask, _ASKED, None)


def padding_of(given: Any) -> Any:
    """A mask argument of a decoder as the 2-D mask that it was made of, where stand-ins have come from outside of it.

    Raises :class:`InputError` for prepared masks of others.
    """
    prepared = list(given.values()) if isinstance(given, dict) else [given]
    asked = [asked_of(mask) for mask in prepared]
    known = [one for one in asked if one is not None]
    if isinstance(given, dict) and (not known or len(known) < len(asked)):
        raise InputError(
            "prepared masks are not supported: a pattern beside the causal order, such as that of an image's tokens, "
            "cannot be followed once tokens are evicted; pass the 2-D attention_mask of the tokenizer, and text"
        )
    return known[0].padding if known else given


def check_mask(
    step: Step, module: torch.nn.Module, layer: SqueezeLayer, given: Any, *, eager: bool, masked: bool
) -> None:
    """:class:`UnsupportedModelError` unless the mask that attention was given is the one that this layer's is.

    ``eager``: an implementation that hides nothing without a mask; ``masked``: one that is handed stand-ins.
    """
    name = f"layer {layer.index} of {type(module).__name__}"
    if given is None:
        if step.decoding or step.length == 1 or not masked:
            return
        if eager or getattr(module, "is_causal", True) is False:
            raise UnsupportedModelError(f"{name} attends without a mask, to later tokens as well; not supported")
        window: int | None = None
    else:
        found = next((asked for mask, asked in step.asked if _is_same(mask, given)), None)
        if found is None:
            raise UnsupportedModelError(
                f"{name} attends with a mask of its own (a pattern beside the causal order, such as an image's tokens "
                "that see each other both ways), which a compacted cache cannot follow; not supported"
            )
        window = found.window
    if window != layer.window:
        of = "everything before" if window is None else f"a window of {window} tokens"
        expected = "everything before" if layer.window is None else f"a window of {layer.window} tokens"
        raise UnsupportedModelError(f"{name} attends to {of}, where its config says {expected}; not supported")


def _is_same(mask: torch.Tensor, given: Any) -> bool:
    """Whether a mask is (a view of) this stand-in, or its copy on another device."""
    if not isinstance(given, torch.Tensor) or given.dtype != mask.dtype:
        return False
    if given.device == mask.device:
        return given.untyped_storage().data_ptr() == mask.untyped_storage().data_ptr()
    return given.shape == mask.shape and bool((given == mask.flatten()[0].to(given.device)).all())
