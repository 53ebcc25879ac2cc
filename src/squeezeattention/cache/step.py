"""What one forward pass is about: made before the first layer runs, read by every layer."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from .store import ring_slots

if TYPE_CHECKING:
    from ..hf.replay import Replayed
    from ..plan import BudgetPlan
    from .cache import SqueezeCache


@dataclass(frozen=True)
class Final:
    """What layers may be cut to while the prompt's last tokens are still being read."""

    plans: Sequence[BudgetPlan]
    """For each row (or for all) what its layers will keep, or the most that they could; empty: not known."""
    after: Sequence[int]
    """Each row's length when the prompt is over."""
    decided: bool
    """Whether these are the prompt's own plans."""


class Positions:
    """Where the last decode step was, on each device: the next one is a step further, which the host need not tell."""

    def __init__(self) -> None:
        self._held: dict[torch.device, tuple[list[int], torch.Tensor]] = {}

    def positions(self, start: list[int], device: torch.device) -> torch.Tensor:
        """``start`` as a tensor, int64 [B or 1, 1]."""
        if len(start) == 1:
            return torch.full((1, 1), start[0], device=device)
        before, held = self._held.get(device, ([], None))
        if held is not None and [one + 1 for one in before] == start:
            found = held + 1
        else:
            found = torch.tensor(start, device=device)[:, None]
        self._held[device] = start, found
        return found


@dataclass
class Step:
    """One forward pass over ``length`` new tokens a row."""

    cache: SqueezeCache
    length: int
    start: list[int]
    """Position of each row's first new real token (one entry if all rows agree)."""
    real: torch.Tensor | None
    """[B, length] bool, False = padding; ``None`` = no padding in these tokens."""
    decoding: bool
    """One new token a row, and the prompt is over."""
    observe: bool
    """Prompt tokens whose signal is wanted."""
    columns: int = 0
    """Columns seen when this pass is over, padding included."""
    given: torch.Tensor | None = None
    """Ids [B, length] or embeddings of this pass, if they may be repeated later."""
    position_ids: torch.Tensor | None = None
    """The model's own positions, if it was told them and the prompt may be repeated."""
    replayed: Replayed | None = None
    """What is repeated, if this pass repeats tokens of the prompt and stores nothing."""
    static: bool = False
    """A decode step for a compiler: what follows from ``start`` is read from tensors (see static.py)."""
    before: Positions = field(default_factory=Positions)
    """Where the cache's last decode step was."""
    final: Final | None = None
    """What is known of the prompt's end before it is reached; ``None``: not asked yet."""
    asked: list[tuple[torch.Tensor, Any]] = field(default_factory=list)
    """Masks that the model was handed in this pass, and what each stands for (hf/masks.py)."""
    attended: set[int] = field(default_factory=set)
    """Layers whose attention was computed over this cache; not noted in a static step."""
    handles: list[Any] = field(default_factory=list)
    """Hooks of this pass, removed at its end."""
    _positions: dict[torch.device, torch.Tensor] = field(default_factory=dict)
    _seen: dict[torch.device, torch.Tensor] = field(default_factory=dict)
    _shared: dict[tuple[Any, ...], torch.Tensor] = field(default_factory=dict)
    """What several layers ask for."""

    def share(self, positions: dict[torch.device, torch.Tensor], seen: dict[torch.device, torch.Tensor]) -> None:
        """Read positions and columns seen from these."""
        self._positions, self._seen = positions, seen

    def seen(self, device: torch.device) -> torch.Tensor:
        """Columns before this step, int64 scalar on ``device``; of a static step only."""
        return self._seen[device]

    def positions(self, device: torch.device) -> torch.Tensor:
        """[B or 1, length] int64 positions of the new tokens on ``device``, -1 = padding."""
        found = self._positions.get(device)
        if found is None and self.decoding:
            found = self._positions[device] = self.before.positions(self.start, device)
        if found is None:
            start = torch.tensor(self.start, device=device)[:, None]
            if self.real is None:
                found = start if self.length == 1 else start + torch.arange(self.length, device=device)
            else:
                real = self.real.to(device)
                found = (start + real.long().cumsum(1) - 1).masked_fill(~real, -1)
            self._positions[device] = found
        return found

    def newest(self, device: torch.device) -> torch.Tensor:
        """The same of a decode step, [B or 1, 1, 1]."""
        if self.static:
            return self.positions(device)[:, None]
        return self._once((device,), lambda: self.positions(device)[:, None])

    def of_units(self, device: torch.device, rows: int, heads: int) -> torch.Tensor:
        """The same, [rows * heads]."""

        def spread() -> torch.Tensor:
            return self.positions(device).expand(rows, heads).reshape(-1)

        return spread() if self.static else self._once((device, rows, heads), spread)

    def ring_slots(self, device: torch.device, sinks: int, budget: int) -> torch.Tensor:
        """Slots of a decode step's tokens in a ring of so many, [B or 1, 1, 1]."""
        return self._once(("ring", device, sinks, budget), lambda: ring_slots(self.newest(device), sinks, budget))

    def _once(self, key: tuple[Any, ...], make: Callable[[], torch.Tensor]) -> torch.Tensor:
        found = self._shared.get(key)
        if found is None:
            found = self._shared[key] = make()
        return found


class _Active(threading.local):
    """The step that this thread's model is in, if its cache is ours: the innermost, where forwards are nested."""

    step: Step | None = None
    around: weakref.ref[SqueezeCache] | None = None
    """The cache of ours that a forward around its decoder's was given, until the decoder's begins."""
    asks: bool = False
    """That cache was just asked for the sizes of a mask, so the mask made next is for it."""
    windows: list[Any] | None = None
    """Where masks that are asked for are noted, if anybody wants to know."""
    hidden: weakref.ref[torch.Tensor] | None = None
    """What the last compiled step gave, as long as somebody has it."""


ACTIVE = _Active()


class Traced:
    """The step that a compiled forward is given, as long as it is traced: it sets this itself, so that the compiler
    knows it by the forward's arguments. What is kept per thread it does not see on every release (torch 2.11)."""

    step: Step | None = None


TRACED = Traced()


def current_step() -> Step | None:
    """The step under way in this thread, or in the forward that is being traced. (``is_compiling`` would say yes in
    every thread while one of them compiles.)"""
    return TRACED.step if torch.compiler.is_dynamo_compiling() else ACTIVE.step


class _Forwards(threading.local):
    """This thread's forwards of attached decoders, the innermost last, each with its step if its cache is ours."""

    def __init__(self) -> None:
        self.stack: list[tuple[int, Step | None]] = []

    def enter(self, decoder: object, step: Step | None) -> None:
        self.stack.append((id(decoder), step))
        ACTIVE.step = step

    def leave(self, decoder: object) -> list[Step]:
        """Forget this decoder's forward and all inside it; their steps, the innermost first."""
        places = [place for place, (owner, _) in enumerate(self.stack) if owner == id(decoder)]
        if not places:
            return []
        ended = [step for _, step in reversed(self.stack[places[-1] :]) if step is not None]
        del self.stack[places[-1] :]
        ACTIVE.step = self.stack[-1][1] if self.stack else None
        return ended


FORWARDS = _Forwards()
