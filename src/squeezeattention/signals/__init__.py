"""Layer signals: how much each layer matters for this prompt. One short file each, one registry line each."""

from __future__ import annotations

from collections.abc import Sequence

from ..registry import Registry
from .base import AttentionSample, Signal
from .cosine import Cosine
from .last_queries import LastQueries
from .preference import Preference
from .replay import Replay
from .sampled import SampledAttention
from .span import Span
from .streaming_mass import StreamingMass
from .together import Together
from .top_scores import LayerScores, TopScores
from .top_tokens import TopTokens

SIGNALS: Registry[Signal] = Registry("signal", name=str)
SIGNALS.register("cosine", Cosine)
SIGNALS.register("replay", Replay)
SIGNALS.register("span", Span)
SIGNALS.register("preference", Preference)
SIGNALS.register("streaming_mass", StreamingMass)
SIGNALS.register("top_tokens", TopTokens)
SIGNALS.register("top_scores", TopScores)
SIGNALS.register("layer_scores", LayerScores)


def resolve_signal(spec: str | Signal | Sequence[str | Signal]) -> Signal:
    """A signal from its registered name, or a :class:`Signal` as it is; several as one that has them watch together."""
    if isinstance(spec, Sequence) and not isinstance(spec, str):
        return Together([resolve_signal(one) for one in spec])
    return SIGNALS.resolve(spec, Signal)  # type: ignore[type-abstract]


__all__ = [
    "SIGNALS",
    "AttentionSample",
    "Cosine",
    "LastQueries",
    "LayerScores",
    "Preference",
    "Replay",
    "SampledAttention",
    "Signal",
    "Span",
    "StreamingMass",
    "Together",
    "TopScores",
    "TopTokens",
    "resolve_signal",
]
