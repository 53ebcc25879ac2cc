"""Putting a method in front of an object's own, on that object alone, so that it can be taken away again."""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

from torch import nn

from . import compat
from .dispatch import PREFIX
from .switch import is_switched
from .untouched import put


def shadow(owner: nn.Module, name: str, function: Callable[..., Any]) -> Callable[[], None]:
    """Make ``owner.name(...)`` call ``function(owner, ...)``; returns what undoes it."""
    return put(owner, name, types.MethodType(function, owner))


def scrub(model: nn.Module, hooks: tuple[Callable[..., Any], ...], attached: set[nn.Module]) -> None:
    """Wipe what a deep copy of an attached model has inherited; ``attached`` decoders are left alone."""
    alive = {id(part) for decoder in attached for part in decoder.modules()}
    for module in model.modules():
        if id(module) in alive:
            continue
        for table in (module._forward_pre_hooks, module._forward_hooks):
            for key in [key for key, hook in table.items() if hook in hooks]:
                del table[key]
        for name, value in list(vars(module).items()):
            if isinstance(value, types.MethodType) and value.__func__.__module__.startswith(_OURS):
                del module.__dict__[name]
        config = getattr(module, "config", None)
        given = getattr(config, "_attn_implementation_internal", None)
        if isinstance(given, str) and given.startswith(PREFIX) and not is_switched(config):
            compat.set_implementation(config, given.removeprefix(PREFIX))


_OURS = __name__.rpartition(".")[0]
