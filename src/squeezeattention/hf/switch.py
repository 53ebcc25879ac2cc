"""Pointing a config at our attention functions, and back.

Several models may share one config, so switches are counted per config.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from . import compat
from .dispatch import PREFIX, implementation_name
from .untouched import StandIn

_LIVE: dict[int, Switch] = {}


class Switch:
    """One config whose attention implementation is wrapped."""

    def __init__(self, config: Any) -> None:
        self.config = config
        self.users = 0
        self.own = compat.raw_implementation(config)
        self.renew()

    def renew(self) -> None:
        """Wrap whatever implementation the config names now; a later choice of the user's is kept."""
        current = compat.raw_implementation(self.config)
        if current is None or not current.startswith(PREFIX):
            wrapped = implementation_name(compat.implementation(self.config))
            self.own = current
            compat.set_implementation(self.config, StandIn(wrapped, current))  # copies have the model's own

    def release(self) -> None:
        self.users -= 1
        if self.users == 0:
            _LIVE.pop(id(self.config), None)
            current = compat.raw_implementation(self.config)
            if current is not None and current.startswith(PREFIX):
                compat.set_implementation(self.config, self.own)


def switch_implementation(model: nn.Module) -> list[Switch]:
    """Wrap the implementation of every config in the model; undo with :meth:`Switch.release`."""
    configs = {id(m.config): m.config for m in model.modules() if hasattr(m, "config")}
    switches = []
    for key, config in configs.items():
        if not hasattr(config, "_attn_implementation_internal"):
            continue
        switch = _LIVE.get(key)
        if switch is None:
            switch = _LIVE[key] = Switch(config)
        switch.users += 1
        switches.append(switch)
    return switches


def is_switched(config: Any) -> bool:
    """Whether a live attachment has wrapped this very config."""
    return id(config) in _LIVE
