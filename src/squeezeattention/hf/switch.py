"""Pointing a config at our attention functions, and back.

Several models may share one config, so switches are counted per config.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from . import compat
from .dispatch import PREFIX, implementation_name
from .untouched import StandIn

_LIVE: dict[int, Switch] = {}
_LOCK = threading.Lock()


class Switch:
    """One config whose attention implementation is wrapped."""

    def __init__(self, config: Any) -> None:
        self.config = config
        self.users = 0
        self._plain = 0  # forwards under way that want a plain text for a name
        self.own = compat.raw_implementation(config)
        self.renew()

    def renew(self) -> None:
        """Wrap whatever implementation the config names now; a later choice of the user's is kept."""
        current = compat.raw_implementation(self.config)
        if current is None or not current.startswith(PREFIX):
            wrapped = implementation_name(compat.implementation(self.config))
            self.own = current
            compat.set_implementation(self.config, StandIn(wrapped, current))  # copies have the model's own

    @contextmanager
    def plain(self) -> Iterator[None]:
        """A name that compilers know what to do with: one of the type ``str`` itself, for as long as it is traced and
        its guards are checked. A copy of the model that is made meanwhile is put right when it is used (``scrub``)."""
        with _LOCK:
            self._plain += 1
            current = compat.raw_implementation(self.config)
            if isinstance(current, StandIn):
                compat.set_implementation(self.config, str(current))
        try:
            yield
        finally:
            with _LOCK:
                self._plain -= 1
                current = compat.raw_implementation(self.config)
                if not self._plain and current is not None and current.startswith(PREFIX):
                    compat.set_implementation(self.config, StandIn(current, self.own))

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
