"""From options and texts to what layers did on them, and one plan for all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..allocators import Allocator, resolve_allocator
from ..errors import InputError
from ..plan import BudgetPlan
from ..stability import Observation, freeze
from .console import progress_bar
from .texts import Text

if TYPE_CHECKING:
    from ..policies import EvictionPolicy


@dataclass(frozen=True)
class Recipe:
    """What plans are made with, as the options say it."""

    budget: str | None
    policy: str | EvictionPolicy
    allocator: str | Allocator | None
    p: float | None = None
    signal: str | None = None
    outliers: str | None = None

    def observe(self, model: Any, texts: Sequence[Text], chunk: int | None) -> list[Observation]:
        """Read every text into a cache of its own; what stays of it is its plan."""
        from .. import SqueezeCache
        from ..tasks.driving import read

        seen = []
        with progress_bar() as progress:
            for number, text in enumerate(texts):
                progress(number, len(texts), f"{text.source} ({len(text.tokens):,} tokens)")
                cache = SqueezeCache(
                    model, self.budget, self.policy, self.allocator, self.p, signal=self.signal, outliers=self.outliers
                )
                read(model, cache, text.tokens, chunk=chunk)
                if (made := cache.plan) is None:
                    raise InputError(f"{text.source} gave no plan: nothing was read")
                seen.append(Observation(text.source, text.task, made))
            progress(len(texts), len(texts), "done")
        return seen

    def freeze(self, plans: Sequence[BudgetPlan], by: str | None = None) -> BudgetPlan:
        """One plan for all; of one plan, itself."""
        from ..policies import resolve_policy

        if len(plans) == 1:
            return plans[0]
        rule = resolve_allocator(self.allocator, p=self.p, outliers=self.outliers)
        return freeze(plans, rule, floor=resolve_policy(self.policy).minimum, by=by)
