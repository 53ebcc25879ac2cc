"""What depends on how long a prompt is, and on nothing else of it: scheduler and workers come to the same."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")
U = TypeVar("U")


@dataclass(frozen=True)
class ByLength(Generic[T]):
    """A value for prompts of up to ``limits[i]`` tokens each, ascending; the last one also for all that are longer."""

    limits: tuple[int, ...]
    values: tuple[T, ...]

    @classmethod
    def always(cls, value: T) -> ByLength[T]:
        """The same for all prompts."""
        return cls((0,), (value,))

    def of(self, prompt_tokens: int) -> T:
        """The value for a prompt of so many tokens."""
        return self.values[min(bisect_left(self.limits, prompt_tokens), len(self.values) - 1)]

    @property
    def longest(self) -> T:
        """The value for the longest prompts."""
        return self.values[-1]

    def map(self, function: Callable[[T], U]) -> ByLength[U]:
        """``function`` of each value."""
        return ByLength(self.limits, tuple(map(function, self.values)))
