"""Layer signals: how much each layer matters for this prompt. One short file each, one registry line each."""

from __future__ import annotations

from ..registry import Registry
from .base import AttentionSample, Signal
from .cosine import Cosine
from .entropy import Entropy
from .far_output import FarOutput
from .locality import Locality
from .sampled import SampledAttention
from .span import Span

SIGNALS: Registry[Signal] = Registry("signal")
SIGNALS.register("cosine", Cosine)
SIGNALS.register("locality", Locality)
SIGNALS.register("far_output", FarOutput)
SIGNALS.register("span", Span)
SIGNALS.register("entropy", Entropy)


def resolve_signal(spec: str | Signal) -> Signal:
    """A signal from its registered name, or a :class:`Signal` as it is."""
    return SIGNALS.resolve(spec, Signal)  # type: ignore[type-abstract]


__all__ = [
    "SIGNALS",
    "AttentionSample",
    "Cosine",
    "Entropy",
    "FarOutput",
    "Locality",
    "SampledAttention",
    "Signal",
    "Span",
    "resolve_signal",
]
