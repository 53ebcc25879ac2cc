"""What is put on a model while a cache lives stays out of every copy of it: ``copy``, ``pickle``, ``torch.save``.

A module that has something of ours carries a ``__reduce_ex__`` of its own, which both modules ask; it gives the state
that the module would have without us, itself left out. A config's implementation name is a text that copies as the
one it stands for.
"""

from __future__ import annotations

import types
import weakref
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from torch import nn

_REDUCE, _RECORD = "__reduce_ex__", "_squeezeattention"
#: What an entry of ours stands before, if there was none.
_MISSING = object()


class _Record:
    """What we have put on one module. The module has it, so that nothing else keeps the module alive."""

    def __init__(self) -> None:
        self.entries: dict[str, dict[object, Any]] = {}  # by name: what was there, and ours by token, the latest last
        self.hooks: set[int] = set()  # keys in the module's tables of hooks


def put(module: nn.Module, name: str, value: Any) -> Callable[[], None]:
    """Put ``value`` into the module's dictionary; returns what undoes it, in any order."""
    token = object()
    _record(module).entries.setdefault(name, {None: module.__dict__.get(name, _MISSING)})[token] = value
    module.__dict__[name] = value
    reference = weakref.ref(module)

    def undo() -> None:
        if (owner := reference()) is None:
            return
        entries = owner.__dict__[_RECORD].entries
        del entries[name][token]
        _restore(owner.__dict__, name, list(entries[name].values())[-1])
        if len(entries[name]) == 1:
            del entries[name]
        _forget(owner)

    return undo


def hooked(module: nn.Module, handle: Any) -> Callable[[], None]:
    """Keep a hook of ours out of copies; returns what removes it."""
    _record(module).hooks.add(handle.id)
    reference = weakref.ref(module)

    def undo() -> None:
        handle.remove()
        if (owner := reference()) is not None:
            owner.__dict__[_RECORD].hooks.discard(handle.id)
            _forget(owner)

    return undo


def _record(module: nn.Module) -> _Record:
    record = module.__dict__.get(_RECORD)
    if record is None:
        record = module.__dict__[_RECORD] = _Record()
        module.__dict__[_REDUCE] = types.MethodType(_reduce, module)
    return record


def _forget(module: nn.Module) -> None:
    record = module.__dict__[_RECORD]
    if not record.entries and not record.hooks:
        del module.__dict__[_RECORD], module.__dict__[_REDUCE]


def _restore(entries: dict[str, Any], name: str, before: Any) -> None:
    if before is _MISSING:
        entries.pop(name, None)
    else:
        entries[name] = before


def _reduce(module: nn.Module, protocol: Any) -> Any:
    """How an untouched module of this class says how it is made again."""
    reduced: Any = type(module).__reduce_ex__(module, protocol)
    made, arguments, state, *rest = reduced
    return made, arguments, _untouched(state) if isinstance(state, dict) else state, *rest


def _untouched(state: dict[str, Any]) -> dict[str, Any]:
    state = dict(state)
    record = state.pop(_RECORD, None)
    state.pop(_REDUCE, None)
    if record is None:
        return state
    for name in record.entries.keys() & state.keys():  # modules leave some out themselves
        entries = record.entries[name]
        _restore(state, name, entries[None])
    for name, table in state.items():
        if "hooks" in name and isinstance(table, OrderedDict) and not record.hooks.isdisjoint(table):
            state[name] = OrderedDict((key, hook) for key, hook in table.items() if key not in record.hooks)
    return state


class StandIn(str):
    """A name that is copied and pickled as another one (or as ``None``)."""

    own: str | None

    def __new__(cls, name: str, own: str | None) -> StandIn:
        made = super().__new__(cls, name)
        made.own = own
        return made

    def __reduce_ex__(self, protocol: Any) -> Any:
        return (type(None), ()) if self.own is None else (str, (self.own,))  # what any process can load
