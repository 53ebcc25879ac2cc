"""Policies that score a layer's tokens at the prompt's end, by what the layer holds: what most papers propose."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import torch

from ..errors import ConfigError
from .by_score import ByScore
from .view import LayerView

#: What no score reaches: tokens that stay whatever the others are worth.
SURE = torch.finfo(torch.float32).max


class Scored(ByScore):
    """Keeps ``sinks`` first tokens, the newest ``window`` (half of a budget at most), and those of the highest score.

    A scorer is one class with :meth:`score`. It ranks all that a layer holds at the end of a prompt, and, while text is
    generated, each new token by itself if it knows how (:meth:`score_new`), or everything anew after ``every`` steps;
    a token that has not been scored yet stays.
    """

    scores_tokens: ClassVar[bool] = True
    nested: ClassVar[bool] = True
    #: Newest queries that :meth:`LayerView.attention` is to show.
    last_queries: ClassVar[int] = 0
    #: Decode steps after which everything held is scored anew; ``None``: never.
    every: ClassVar[int | None] = None
    #: Whether each decode step's own attention becomes the scores, by :meth:`follow`.
    follows: ClassVar[bool] = False
    #: Whether :meth:`LayerView.value_norms` is asked for.
    weighs_values: ClassVar[bool] = False
    #: Whether :meth:`LayerView.future_queries` is asked for.
    foresees_queries: ClassVar[bool] = False

    def __init__(self, sinks: int = 4, window: int = 32) -> None:
        for name, value, least in (("sinks", sinks, 0), ("window", window, 1)):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ConfigError(f"{name} must be a whole number of at least {least}, got {value!r}")
        self.sinks, self.window = sinks, window

    @abstractmethod
    def score(self, view: LayerView) -> torch.Tensor:
        """What each token is worth: fp32 ``[B, H, N]``, not negative. Empty slots may have anything."""

    def score_new(self, view: LayerView) -> torch.Tensor | None:
        """The same of new tokens, which alone ``view`` has; ``None``: they stay until everything is scored anew."""
        return None

    #: Repeated tokens of a row that :meth:`fit` needs to learn from; ``None``: nothing is learned.
    fits_from: ClassVar[int | None] = None

    def fit(self, view: LayerView, received: torch.Tensor) -> torch.Tensor:
        """With :attr:`replays`: what :attr:`LayerView.fitted` is to be, ``[B, ...]``.

        ``view`` has the tokens that were repeated (position -1: none), ``received`` fp32 ``[B, H, n]`` the attention
        that they got from their repetition.
        """
        raise ConfigError(f"policy {self.name!r} learns from a replay, but has no fit()")

    def follow(self, received: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """With :attr:`follows`: the scores after a decode step whose query paid ``received`` fp32 ``[B, H, N]``, mean
        over the query heads of a group, to the tokens at ``positions`` int64 ``[B or 1, H or 1, N]``."""
        return received

    @property
    def minimum(self) -> int:
        return self.sinks + 2

    def recent_count(self, budget: int) -> int:
        return max(1, min(self.window, (budget - self.sinks) // 2))

    def __repr__(self) -> str:
        return f"{type(self).__name__}(sinks={self.sinks}, window={self.window})"


def scores_of(policy: Scored, view: LayerView) -> torch.Tensor:
    """``policy``'s scores with sinks above all others; :class:`ConfigError` if they cannot be a ranking."""
    found = policy.score(view)
    shape = view.keys.shape[:3]
    if not isinstance(found, torch.Tensor) or not found.is_floating_point() or found.shape != shape:
        got = f"{found.dtype} {list(found.shape)}" if isinstance(found, torch.Tensor) else type(found).__name__
        raise ConfigError(f"{type(policy).__name__}.score must return floats {list(shape)}, got {got}")
    found = found.detach().float()
    if not bool(((found >= 0) | (view.positions < 0)).all()):
        raise ConfigError(f"{type(policy).__name__}.score gave NaN or negative numbers for some tokens")
    # An empty slot takes the next token before any token makes room, whatever was said of it.
    return found.masked_fill(view.positions < policy.sinks, SURE).masked_fill(view.positions < 0, 0.0)
