"""Caches for texts of a known length, from one set of settings."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from .. import SqueezeCache
from ..allocators import default_allocator, name_or_plan, resolve_allocator
from ..cache.options import check_used
from ..defaults import DEFAULT_BUDGET, DEFAULT_POLICY
from ..errors import ConfigError
from ..plan import Budget, BudgetPlan
from ..policies import POLICIES
from ..signals import SIGNALS
from ..tasks.driving import read


@dataclass
class CacheMaker:
    """What :class:`SqueezeCache` takes, checked as far as it can be without a model.

    A share of 1 keeps everything, whatever follows the prompt; any smaller one is of the prompt, as always.

    Raises:
        ConfigError, BudgetError, UnknownNameError, PlanError: an argument cannot work.
    """

    budget: Any = None
    """As of a :class:`SqueezeCache`; none with a saved plan."""
    policy: str = DEFAULT_POLICY
    allocator: str | None = None
    """A name, or a saved plan (``plan.json``)."""
    p: float | None = None
    options: dict[str, Any] = field(default_factory=dict)
    """``signal``, ``outliers``, ``positions``, ``sinks``; those that are ``None`` are left out."""

    def __post_init__(self) -> None:
        self.asked = Budget.parse(DEFAULT_BUDGET if self.budget is None else self.budget)
        policy = POLICIES.create(self.policy)
        self.options = {name: value for name, value in self.options.items() if value is not None}
        if self.allocator is None:
            self.allocator = default_allocator(policy.allocator, self.p, self.options.get("outliers"))
        if not isinstance(self.allocator, str):
            raise ConfigError(f"allocator must be a name or the path of a saved plan, got {self.allocator!r}")
        self._rule = name_or_plan(self.allocator)
        if (signal := self.options.get("signal")) is not None:
            SIGNALS.factory(signal)
        check_used(
            resolve_allocator(self._rule, p=self.p, outliers=self.options.get("outliers")),
            budget=self.budget, signal=signal,
        )  # fmt: skip

    @property
    def is_share(self) -> bool:
        """Whether a prompt's length decides how much is kept; a plan has its budgets already."""
        return self.asked.kind == "share" and not isinstance(self._rule, BudgetPlan)

    def make(self, model: Any, *, whole: int, new_tokens: int) -> SqueezeCache:
        """An empty cache for texts of at most ``whole`` tokens, ``new_tokens`` of them after the prompt."""
        if self.is_share and self.asked.value == 1:
            return self._make(model, max(whole, self._minimum), new_tokens)
        return self._make(model, self.asked, new_tokens)

    def make_alone(self, model: Any, *, whole: int) -> tuple[SqueezeCache, int]:
        """An empty cache for texts without a prompt, and the tokens that fill it.

        A share is of the whole text here. Until the cache is full nothing has to go, so these tokens can be read
        at once.
        """
        fill = self._tokens(model)
        if fill is None:
            fill = max(self.asked.base_tokens(whole, 1), self._minimum)
            return self._make(model, fill, max(0, whole - fill)), fill
        return self._make(model, self.asked, max(0, whole - fill)), fill

    def _make(self, model: Any, budget: Any, new_tokens: int | None) -> SqueezeCache:
        # In a harness a share is what it says, however short the prompt.
        options = {"min_tokens": 1, **self.options}
        size = None if isinstance(self._rule, BudgetPlan) else budget
        return SqueezeCache(model, size, self.policy, self._rule, self.p, new_tokens=new_tokens, **options)

    @cached_property
    def _minimum(self) -> int:
        """Tokens that the policy cannot do without."""
        options = {"sinks": self.options["sinks"]} if "sinks" in self.options else {}
        return POLICIES.create(self.policy, **options).minimum

    def _tokens(self, model: Any) -> int | None:
        """Tokens a layer on average, ``None`` for a share: bytes are divided by what a token takes."""
        if self.is_share:
            return None
        cache = self._make(model, self.asked, None)
        read(model, cache, [0])
        plan = cache.plan
        cache.detach()
        return 1 if plan is None else plan.base_budget

    def describe(self) -> dict[str, Any]:
        """The settings as JSON values."""
        named = {"budget": str(self.asked), "policy": self.policy, "allocator": self.allocator, "p": self.p}
        return {name: value for name, value in {**named, **self.options}.items() if value is not None}
