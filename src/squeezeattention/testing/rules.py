"""Which allocators a test can give to any model."""

from __future__ import annotations

from ..allocators import ALLOCATORS
from ..policies import resolve_policy
from ..signals import SIGNALS


def rules_for(policy: str | None = None) -> list[str]:
    """Allocators that need no file about the model; with a policy, those that it goes with."""
    names = [name for name in ALLOCATORS if not ALLOCATORS.create(name).needs_calibration]
    if policy is None:
        return names
    chosen = resolve_policy(policy)
    if chosen.needs_scores or chosen.scores_tokens:
        return names
    return [name for name in names if not SIGNALS.create(ALLOCATORS.create(name).signal).wants_scores]
