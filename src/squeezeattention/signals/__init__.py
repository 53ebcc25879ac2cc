"""Layer signals: how much each layer matters for this prompt. One short file each, one registry line each."""

from __future__ import annotations

from collections.abc import Sequence

from ..registry import Registry
from .base import AttentionSample, Signal
from .cosine import Cosine
from .entropy import Entropy
from .far_output import FarOutput
from .last_queries import LastQueries
from .locality import Locality
from .preference import Preference
from .replay import Replay
from .sampled import SampledAttention
from .sharpness import Sharpness
from .span import Span
from .streaming_mass import StreamingMass
from .together import Together
from .top_scores import LayerScores, TopScores
from .top_tokens import TopTokens

SIGNALS: Registry[Signal] = Registry("signal", name=str)
SIGNALS.register("cosine", Cosine)
SIGNALS.register("replay", Replay)
SIGNALS.register("locality", Locality)
SIGNALS.register("sharpness", Sharpness)
SIGNALS.register("far_output", FarOutput)
SIGNALS.register("span", Span)
SIGNALS.register("entropy", Entropy)
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
    "Entropy",
    "FarOutput",
    "LastQueries",
    "LayerScores",
    "Locality",
    "Preference",
    "Replay",
    "SampledAttention",
    "Sharpness",
    "Signal",
    "Span",
    "StreamingMass",
    "Together",
    "TopScores",
    "TopTokens",
    "resolve_signal",
]
