"""From a policy's ranking to the tokens that stay, or the one that goes."""

from __future__ import annotations

import torch

from ..errors import ConfigError
from .base import EvictionPolicy, Tokens, checked_priority, oldest_of_lowest


def _ranked(policy: EvictionPolicy, tokens: Tokens, budget: int, window: int | None) -> torch.Tensor:
    """The policy's priority with empty slots and tokens outside the native window at the very bottom."""
    priority = checked_priority(policy, tokens, budget)
    gone = tokens.positions < 0
    if window is not None:
        gone = gone | (tokens.positions <= tokens.newest - window)
    lowest = -torch.inf if priority.dtype.is_floating_point else torch.iinfo(priority.dtype).min
    return torch.where(gone, lowest, priority)


def victim(
    policy: EvictionPolicy, tokens: Tokens, budget: int, window: int | None, *, dense: bool = False
) -> torch.Tensor:
    """Slot that the incoming token takes in a full layer: lowest priority, oldest among equals.

    ``dense`` promises that every slot holds a token that can be seen. Returns int64 ``[B or 1, H or 1, 1]``.
    """
    if dense:
        return policy.victim(tokens, budget)
    return oldest_of_lowest(_ranked(policy, tokens, budget, window), tokens.positions)


def survivors(policy: EvictionPolicy, tokens: Tokens, budget: int, window: int | None) -> torch.Tensor:
    """The ``budget`` tokens that stay, by ascending position.

    Returns int64 ``[B or 1, H or 1, min(budget, N)]``: slot indices, -1 = nothing (at the end).
    """
    priority = _ranked(policy, tokens, budget, window)
    if priority.is_floating_point() and bool(priority.isnan().any()):
        raise ConfigError(
            f"{type(policy).__name__}.priority gave NaN for some tokens, which have no place in a ranking"
        )
    positions = tokens.positions.expand_as(priority)
    by_age = positions.argsort(dim=-1, descending=True)
    order = priority.gather(-1, by_age).argsort(dim=-1, descending=True, stable=True)
    chosen = by_age.gather(-1, order[..., :budget])
    kept = positions.gather(-1, chosen)
    dead = kept < 0
    if window is not None:
        dead = dead | (kept <= tokens.newest - window)
    rank = kept.masked_fill(dead, torch.iinfo(torch.int64).max).argsort(dim=-1)
    return chosen.masked_fill(dead, -1).gather(-1, rank)
