"""Putting a method in front of an object's own, on that object alone, so that it can be taken away again."""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

from torch import nn

from . import compat
from .dispatch import PREFIX


def shadow(owner: nn.Module, name: str, function: Callable[..., Any]) -> Callable[[], None]:
    """Make ``owner.name(...)`` call ``function(owner, ...)``; returns what undoes it.

    A bound method rather than a closure: a deep copy of the module is then bound to the copy.
    """
    before = owner.__dict__.get(name)
    owner.__dict__[name] = types.MethodType(function, owner)

    def undo() -> None:
        if before is None:
            owner.__dict__.pop(name, None)
        else:
            owner.__dict__[name] = before

    return undo


def scrub(model: nn.Module, hooks: tuple[Callable[..., Any], ...]) -> None:
    """Wipe what a deep copy of an attached model has inherited, before it is attached to itself."""
    for module in model.modules():
        for table in (module._forward_pre_hooks, module._forward_hooks):
            for key in [key for key, hook in table.items() if hook in hooks]:
                del table[key]
        for name, value in list(vars(module).items()):
            if isinstance(value, types.MethodType) and value.__func__.__module__.startswith(_OURS):
                del module.__dict__[name]
        config = getattr(module, "config", None)
        name = getattr(config, "_attn_implementation_internal", None)
        if isinstance(name, str) and name.startswith(PREFIX):
            compat.set_implementation(config, name.removeprefix(PREFIX))


_OURS = __name__.rpartition(".")[0]
