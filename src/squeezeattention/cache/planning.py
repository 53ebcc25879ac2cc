"""From what a prompt showed to the budgets of its layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..allocators.base import Allocator
from ..errors import BudgetError
from ..plan import Budget, BudgetPlan, build_plan
from ..plan.fit import total_tokens as tokens_of_all
from ..policies import EvictionPolicy

#: More tokens than any cache holds, and few enough to compute with.
ENDLESS = 2**40


@dataclass(frozen=True)
class Planner:
    """Everything about a plan that does not depend on the prompt."""

    budget: Budget
    allocator: Allocator
    policy: EvictionPolicy
    signal: str
    windows: tuple[int | None, ...]
    fingerprint: str
    min_tokens: int = 1
    """Tokens a layer on average that a share never goes below, however short the prompt."""

    def base_tokens(self, prompt_tokens: int, bytes_per_token: Sequence[int], total_tokens: int | None = None) -> int:
        """What the budget means for a prompt: tokens per layer on average. Raises :class:`BudgetError`."""
        base = min(self.budget.base_tokens(prompt_tokens, sum(bytes_per_token)), ENDLESS)
        floor = self.policy.minimum
        if self.budget.kind == "share":
            whole = total_tokens if self.budget.is_whole and total_tokens is not None else 0
            return max(base, whole, self.min_tokens, floor)
        if base < floor:
            raise BudgetError(
                f"a budget of {self.budget} is {base} tokens a layer, but {self.policy.name} needs at least {floor}"
            )
        return base

    def plan(
        self,
        *,
        signal_values: Sequence[float] | Sequence[Sequence[float]] | None,
        prompt_tokens: int,
        total_tokens: int | None,
        bytes_per_token: Sequence[int],
    ) -> BudgetPlan:
        """Budgets for a prompt, one row of a batch.

        Args:
            signal_values: of each layer, or of each layer's KV heads; ``None`` if the allocator needs none.
            prompt_tokens: real tokens of the row, earlier turns included.
            total_tokens: prompt and new tokens, if known: no layer can use more.
            bytes_per_token: of each layer, for one sequence.
        """
        base, floor = self.base_tokens(prompt_tokens, bytes_per_token, total_tokens), self.policy.minimum
        caps = self._caps(base, prompt_tokens, total_tokens)

        def attempt(tokens: int) -> BudgetPlan:
            return build_plan(
                self.allocator, signal_values=signal_values, base_budget=tokens, caps=caps, floor=floor,
                signal=self.signal if signal_values is not None else None, policy=self.policy.name,
                prompt_tokens=prompt_tokens, model=self.fingerprint,
            )  # fmt: skip

        plan = attempt(base)
        if self.budget.kind == "bytes" and len(set(bytes_per_token)) > 1:
            plan = self._within_bytes(attempt, base, floor, bytes_per_token)
        return replace(plan, warnings=(*plan.warnings, *self._remarks(prompt_tokens, plan)))

    def _remarks(self, prompt_tokens: int, plan: BudgetPlan) -> tuple[str, ...]:
        """What somebody who asked for a share would not expect of this plan."""
        if self.budget.kind != "share" or plan.allocator == "fixed":
            return ()
        asked = self.budget.base_tokens(prompt_tokens, 1)
        if asked >= self.min_tokens:
            return ()
        return (
            f"{self.budget} ({prompt_tokens} tokens) would be {asked} a layer; a share gives no fewer than "
            f"min_tokens={self.min_tokens}",
        )

    def grown(self, plan: BudgetPlan, tokens: int) -> BudgetPlan:
        """A plan that holds the whole text, once that has ``tokens`` and is longer than was foreseen."""
        if tokens <= plan.base_budget:
            return plan
        caps = tuple(tokens if window is None else min(tokens, window) for window in self.windows)
        return replace(plan, budgets=caps, caps=caps, base_budget=tokens).check()

    def most(self, *, prompt_tokens: int, total_tokens: int | None) -> list[int] | None:
        """The most tokens each layer could get in a plan for this prompt, whatever the signal says: all but the
        others' floors. ``None`` where that hangs on the sizes of layers that have read nothing yet."""
        if self.budget.kind == "bytes":
            return None
        base = self.base_tokens(prompt_tokens, (), total_tokens)
        caps = self._caps(base, prompt_tokens, total_tokens)
        floors = [min(self.policy.minimum, cap) for cap in caps]
        spare = tokens_of_all(base, caps) - sum(floors)
        return [min(cap, floor + spare) for cap, floor in zip(caps, floors, strict=True)]

    def _caps(self, base: int, prompt_tokens: int, total_tokens: int | None) -> list[int]:
        """The most tokens that each layer can use."""
        # How long the answer gets is a guess: who asked for more than that is given what he asked for, in all layers.
        most = max(prompt_tokens, base, 0 if total_tokens is None else total_tokens)
        return [most if window is None else min(most, window) for window in self.windows]

    def _within_bytes(self, attempt, base: int, floor: int, bytes_per_token: Sequence[int]) -> BudgetPlan:  # type: ignore[no-untyped-def]
        """Layers of unequal width: moving a token moves bytes, so look for the largest base that fits."""
        limit = int(self.budget.value)

        def cost(plan: BudgetPlan) -> int:
            return sum(b * size for b, size in zip(plan.budgets, bytes_per_token, strict=True))

        low, high = floor, base
        if cost(attempt(low)) > limit:
            raise BudgetError(f"a budget of {self.budget} cannot hold {floor} tokens a layer")
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if cost(attempt(middle)) <= limit else (low, middle - 1)
        return attempt(low)
