"""The native windows that a model's layers have, by the masks that its forward asks for rather than by its config."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import nn

from ..cache.step import ACTIVE
from ..device import execution_device
from ..errors import SqueezeError, UnsupportedModelError
from .layout import Layout
from .masks import OTHER, Window

Windows = tuple[int | None, ...]
_FOUND: weakref.WeakKeyDictionary[nn.Module, tuple[Windows, Windows]] = weakref.WeakKeyDictionary()  # by decoder


class _Reached(Exception):
    """The first layer is about to run: its masks have been asked for."""


def windows_of(layout: Layout) -> Windows:
    """Each layer's; the model must be attached to.

    Raises :class:`UnsupportedModelError` for masks that are not causal, or windows that no layer of the config has.
    """
    known = _FOUND.get(layout.decoder)
    if known is None or known[0] != layout.windows:
        asked = _asked(layout)
        known = _FOUND[layout.decoder] = layout.windows, _reconciled(layout, asked)
    return known[1]


def _reconciled(layout: Layout, asked: set[Window]) -> Windows:
    """Which layer has which window. What each layer's attention is really given is checked when a prompt is read."""
    if asked == {OTHER}:
        raise UnsupportedModelError(
            f"{type(layout.decoder).__name__} asks for a pattern beside the causal order (bidirectional parts, chunks, "
            "...), which a compacted cache cannot follow; not supported"
        )
    config, asked = set(layout.windows), asked - {OTHER}  # a layer that is given such a mask will refuse it
    if asked <= config or asked >= config:
        return layout.windows
    if len(asked) == 1:
        return tuple(asked) * layout.n_layers  # type: ignore[return-value]
    readable = sorted(str(window) for window in asked)
    raise UnsupportedModelError(
        f"{type(layout.decoder).__name__} asks for attention in windows of {', '.join(readable)} tokens (None: all), "
        f"and its config says {layout.windows}: which layer has which is not known"
    )


def _asked(layout: Layout) -> set[Window]:
    """The windows of the masks that are made before the first layer of a short forward; empty: none, or not known."""
    decoder, first = layout.decoder, layout.layers[0]

    def stop(*_: Any) -> None:
        if ACTIVE.windows is not None:  # another thread may be using the model
            raise _Reached

    handle = first.register_forward_pre_hook(stop, prepend=True)
    modes = {module: module.training for module in decoder.modules()}
    before, ACTIVE.windows = ACTIVE.windows, []
    step, ACTIVE.step = ACTIVE.step, None
    try:
        decoder.eval()  # dropout would move the random numbers of others
        ids = torch.tensor([[0, 1]], device=execution_device(decoder))
        with torch.no_grad():
            decoder(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
    except _Reached:
        return set(ACTIVE.windows)
    except SqueezeError:
        raise
    except Exception:  # a decoder that wants more than text: a prompt will tell
        return set()
    finally:
        handle.remove()
        ACTIVE.windows, ACTIVE.step = before, step
        for module, mode in modes.items():
            module.training = mode
    return set()
