"""Eviction policies: which tokens a layer keeps. One short file each, one registry line each."""

from __future__ import annotations

from ..registry import Registry
from .base import EvictionPolicy, Tokens
from .criticalkv import CriticalKV
from .defensivekv import DefensiveKV
from .echo import Echo
from .expected_attention import ExpectedAttention
from .h2o import H2O
from .keydiff import KeyDiff
from .kvzip import KVzip
from .rkv import RKV
from .scored import Scored
from .sliding_window import SlidingWindow
from .snapkv import SnapKV
from .streaming_llm import StreamingLLM
from .tova import TOVA
from .view import LayerView

POLICIES: Registry[EvictionPolicy] = Registry("policy", name=str)
POLICIES.register("sliding_window", SlidingWindow)
POLICIES.register("streaming_llm", StreamingLLM)
POLICIES.register("h2o", H2O)
POLICIES.register("snapkv", SnapKV)
POLICIES.register("keydiff", KeyDiff)
POLICIES.register("echo", Echo)
POLICIES.register("tova", TOVA)
POLICIES.register("criticalkv", CriticalKV)
POLICIES.register("expected_attention", ExpectedAttention)
POLICIES.register("defensivekv", DefensiveKV)
POLICIES.register("kvzip", KVzip)
POLICIES.register("rkv", RKV)


def resolve_policy(spec: str | EvictionPolicy, **options: object) -> EvictionPolicy:
    """A policy from its registered name (with ``options``) or an :class:`EvictionPolicy` as it is.

    Raises :class:`~squeezeattention.errors.UnknownNameError` or
    :class:`~squeezeattention.errors.ConfigError`.
    """
    return POLICIES.resolve(spec, EvictionPolicy, **options)  # type: ignore[type-abstract]


__all__ = [
    "H2O", "POLICIES", "RKV", "TOVA", "CriticalKV", "DefensiveKV", "Echo", "EvictionPolicy", "ExpectedAttention",
    "KVzip", "KeyDiff", "LayerView", "Scored", "SlidingWindow", "SnapKV", "StreamingLLM", "Tokens", "resolve_policy",
]  # fmt: skip
