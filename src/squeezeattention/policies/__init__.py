"""Eviction policies: which tokens a layer keeps. One short file each, one registry line each."""

from __future__ import annotations

from ..registry import Registry
from .base import EvictionPolicy, Tokens
from .echo import Echo
from .h2o import H2O
from .keydiff import KeyDiff
from .scored import Scored
from .sliding_window import SlidingWindow
from .snapkv import SnapKV
from .streaming_llm import StreamingLLM
from .view import LayerView

POLICIES: Registry[EvictionPolicy] = Registry("policy", name=str)
POLICIES.register("sliding_window", SlidingWindow)
POLICIES.register("streaming_llm", StreamingLLM)
POLICIES.register("h2o", H2O)
POLICIES.register("snapkv", SnapKV)
POLICIES.register("keydiff", KeyDiff)
POLICIES.register("echo", Echo)


def resolve_policy(spec: str | EvictionPolicy, **options: object) -> EvictionPolicy:
    """A policy from its registered name (with ``options``) or an :class:`EvictionPolicy` as it is.

    Raises :class:`~squeezeattention.errors.UnknownNameError` or
    :class:`~squeezeattention.errors.ConfigError`.
    """
    return POLICIES.resolve(spec, EvictionPolicy, **options)  # type: ignore[type-abstract]


__all__ = [
    "H2O", "POLICIES", "Echo", "EvictionPolicy", "KeyDiff", "LayerView", "Scored", "SlidingWindow", "SnapKV",
    "StreamingLLM", "Tokens", "resolve_policy",
]  # fmt: skip
