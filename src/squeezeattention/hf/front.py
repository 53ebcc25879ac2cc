"""What stands in front of a decoder's forward while a cache needs it: long prompts in pieces, decode steps compiled.

Everything else goes on to the forward that was there before.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from ..cache.step import ACTIVE
from .arguments import by_name, cache_of
from .compiled import compiled_forward, compiled_head
from .shadow import shadow
from .split import is_split, split_forward
from .untouched import put

#: Where a module keeps the forward that was put before its class's own (accelerate does that), while ours is in front.
BEFORE = "_squeezeattention_forward"


def put_in_front(decoder: nn.Module) -> Callable[[], None]:
    """Let :func:`_route` take a decoder's calls; returns what undoes it."""
    before = decoder.__dict__.get("forward")
    kept = None if before is None else put(decoder, BEFORE, before)
    undo_shadow = shadow(decoder, "forward", _route)

    def undo() -> None:
        undo_shadow()
        if kept is not None:
            kept()

    return undo


def put_before_head(model: nn.Module) -> Callable[[], None] | None:
    """The same for the head that turns a compiled step's hidden state into logits, if it is a plain matrix."""
    find: Callable[[], nn.Module | None] | None = getattr(model, "get_output_embeddings", None)
    head = None if find is None else find()
    if type(head) is not nn.Linear or "forward" in vars(head):
        return None
    return shadow(head, "forward", compiled_head)


def _route(decoder: nn.Module, *args: Any, **kwargs: Any) -> Any:
    given = by_name(decoder, args, kwargs)
    cache = cache_of(given)
    if cache is not None and is_split(cache, given):
        return split_forward(decoder, cache, given)
    before = decoder.__dict__.get(BEFORE)
    step = ACTIVE.step
    if step is not None and step.static:
        return compiled_forward(decoder, step, given, before)
    return type(decoder).forward(decoder, *args, **kwargs) if before is None else before(*args, **kwargs)
