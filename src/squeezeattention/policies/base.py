"""What an eviction policy is: one function that ranks a layer's tokens."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch

from ..errors import ConfigError


@dataclass(frozen=True)
class Tokens:
    """The tokens a layer holds, as a policy sees them.

    Leading dimensions are 1 where all rows (or all KV heads) agree, so they broadcast.
    """

    positions: torch.Tensor
    """[B or 1, H or 1, N] int64: original position of each slot in its row, -1 = empty slot."""
    newest: torch.Tensor
    """[B or 1, 1, 1] int64: position of the newest token of each row (while decoding: the incoming one)."""
    gathered: torch.Tensor | None = None
    """:attr:`scores`, ``None`` if the policy did not ask for them."""

    @property
    def scores(self) -> torch.Tensor:
        """[B, H, N] fp32: attention each token received so far.

        Raises :class:`~squeezeattention.errors.ConfigError` if the policy did not ask for it.
        """
        if self.gathered is None:
            raise ConfigError("this policy looks at scores, but none were gathered: give its class needs_scores = True")
        return self.gathered


class EvictionPolicy(ABC):
    """Decides which tokens of a layer stay.

    A policy is stateless: one :meth:`priority` serves the cut after the prompt (the ``budget`` tokens of
    highest priority stay) and each decode step (the token of lowest priority makes room). Ties go against
    the older token. Empty slots, and tokens that have left a layer's native window, go first; that is
    handled outside.
    """

    name: ClassVar[str]
    #: Whether attention mass per token has to be gathered (costs a score pass in prefill).
    needs_scores: ClassVar[bool] = False
    #: Whether tokens are scored by what the layer holds of them, see :class:`Scored`.
    scores_tokens: ClassVar[bool] = False
    #: How the cache is divided among layers and KV heads where nobody says: the allocator that serves this policy best.
    allocator: ClassVar[str] = "probe"
    #: Tokens of the prompt that the model is to repeat at its end, at most: 0 for none, ``math.inf`` for all.
    replays: float = 0
    #: Whether what stays in a small budget would stay in a larger one too, so that cutting twice is cutting once. A
    #: class with a priority() of its own has to say so itself.
    nested: ClassVar[bool] = False

    def __init_subclass__(cls, **kwargs: object) -> None:
        super().__init_subclass__(**kwargs)
        if "priority" in vars(cls) and "nested" not in vars(cls):
            cls.nested = False

    @property
    def minimum(self) -> int:
        """Smallest budget (tokens) that makes sense for this policy."""
        return 1

    @property
    def ring(self) -> int | None:
        """``s`` if the kept set is always "the first s tokens and the newest others", else ``None``.

        Such a set needs no ranking: the token at position ``p`` has a slot of its own that can be computed
        (see :class:`~squeezeattention.cache.store.LayerStore`).
        """
        return None

    @abstractmethod
    def priority(self, tokens: Tokens, budget: int) -> torch.Tensor:
        """Rank of each token, higher = kept longer. Broadcasts to ``[B, H, N]``; any real dtype."""

    def victim(self, tokens: Tokens, budget: int) -> torch.Tensor:
        """Slot that makes room when all hold tokens: lowest priority, the oldest among equals.

        Returns int64 ``[B or 1, H or 1, 1]``. Follows from :meth:`priority`; a policy may know a shorter way.
        """
        return oldest_of_lowest(checked_priority(self, tokens, budget), tokens.positions)

    def recent_tokens(self, budget: int) -> int | None:
        """``n`` if the victim is the token of lowest score but for the ``n`` newest, the oldest among equals.

        Then a kernel may find it on its way through the scores. ``None``: ask :meth:`victim`.
        """
        return None

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


def checked_priority(policy: EvictionPolicy, tokens: Tokens, budget: int) -> torch.Tensor:
    """What :meth:`EvictionPolicy.priority` gives; :class:`ConfigError` if it cannot be a ranking of these tokens."""
    found = policy.priority(tokens, budget)
    who = f"{type(policy).__name__}.priority"
    if not isinstance(found, torch.Tensor):
        raise ConfigError(f"{who} must return a tensor with a number for each token, got {type(found).__name__}")
    if found.dtype == torch.bool or found.dtype.is_complex:
        raise ConfigError(f"{who} must return real numbers, got {found.dtype}: two or more ranks as integers or floats")
    known = (tokens.positions if tokens.gathered is None else tokens.gathered).shape
    shape, slots = tuple(found.shape), known[-1]
    broadcasts = all(have == most or 1 in (have, most) for have, most in zip(shape[::-1], known[::-1], strict=False))
    if not (len(shape) <= 3 and shape[-1:] == (slots,) and broadcasts):
        raise ConfigError(
            f"{who} must return a number for each token, [batch, KV heads, {slots}] with 1 where all agree, got "
            f"{list(shape)}"
        )
    return found


def oldest_of_lowest(priority: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Slot of lowest priority, of lowest position among equals: int64 ``[..., 1]``."""
    lowest = priority == priority.amin(dim=-1, keepdim=True)
    age = torch.where(lowest, positions, torch.iinfo(torch.int64).max)
    return age.argmin(dim=-1, keepdim=True)
