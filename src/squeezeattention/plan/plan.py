"""The budget plan: how many tokens every layer keeps, and why."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import PlanError
from .codec import decode, encode, read_json, write_json
from .invariants import check_plan
from .table import plan_rich, plan_text

if TYPE_CHECKING:
    from rich.console import Group


@dataclass(frozen=True, kw_only=True)
class BudgetPlan:
    """Token budgets of all layers for one prompt. Sequences may be lists; they are kept as tuples.

    A layer's budget is what each of its KV heads keeps, or with ``head_budgets`` what they keep on average, rounded up.
    The budgets sum to ``min(n_layers * base_budget, sum(caps))``, or to ``exact_total`` where that is set
    (budgets given by hand need not divide evenly). :meth:`check` proves this and all other invariants.
    """

    budgets: tuple[int, ...]  # tokens per layer
    groups: tuple[int, ...]  # 1 = the most important group; all 1 without groups
    base_budget: int  # average tokens per layer; rounded up under exact_total
    caps: tuple[int | None, ...]  # most tokens that a layer can use; None = no limit
    allocator: str
    signal_values: tuple[float, ...] | None = None  # what the signal measured, per layer: low = matters more
    floor: int = 1  # least tokens per layer: min(floor, cap)
    signal: str | None = None
    policy: str | None = None
    p: float | None = None
    prompt_tokens: int | None = None
    model: str | None = None  # a fingerprint such as "llama-10x2x64"
    exact_total: int | None = None
    warnings: tuple[str, ...] = ()
    head_budgets: tuple[tuple[int, ...], ...] | None = None  # tokens of each KV head, per layer; None: heads are equal

    def __post_init__(self) -> None:
        for name in ("budgets", "groups", "caps", "signal_values", "warnings"):
            value = getattr(self, name)
            if name == "signal_values" and value is None:
                continue
            if isinstance(value, str) or not isinstance(value, Iterable):
                raise PlanError(f"{name} of a budget plan must be a sequence, got {value!r}")
            object.__setattr__(self, name, tuple(value))
        if self.head_budgets is not None:
            object.__setattr__(self, "head_budgets", _nested(self.head_budgets))

    @classmethod
    def from_budgets(cls, budgets: Iterable[int | Iterable[int]], *, allocator: str = "fixed") -> BudgetPlan:
        """A checked plan of given budgets: one group, no caps, ``exact_total`` set to their sum.

        ``budgets`` has a number for each layer, or for each layer a list with a number for each KV head.
        """
        given = tuple(budgets)
        by_head = any(isinstance(layer, Iterable) for layer in given)
        heads = _nested(given) if by_head else None
        values: tuple[Any, ...] = given if heads is None else tuple(map(_mean, heads))
        total = sum(value for value in values if isinstance(value, int))
        return cls(
            budgets=values,
            groups=(1,) * len(values),
            base_budget=-(-total // max(1, len(values))),
            caps=(None,) * len(values),
            allocator=allocator,
            exact_total=total,
            head_budgets=heads,
        ).check()

    @property
    def total(self) -> int:
        """Tokens of all layers together."""
        return sum(self.budgets)

    @property
    def n_layers(self) -> int:
        return len(self.budgets)

    def heads(self, layer: int, n_heads: int) -> tuple[int, ...]:
        """Tokens of each of a layer's ``n_heads`` KV heads; :class:`PlanError` if the plan has another number."""
        if self.head_budgets is None:
            return (self.budgets[layer],) * n_heads
        found = self.head_budgets[layer]
        if len(found) != n_heads:
            raise PlanError(
                f"the plan has budgets for {len(found)} KV heads in layer {layer}, but the model keeps {n_heads}; "
                "make a plan with this model"
            )
        return found

    @property
    def shares(self) -> tuple[float, ...]:
        """Each layer's budget relative to the average layer's; they add up to ``n_layers``."""
        return tuple(self.n_layers * budget / self.total for budget in self.budgets)

    @property
    def group_sizes(self) -> dict[int, int]:
        """Number of layers by group, most important group first."""
        return dict(sorted(Counter(self.groups).items()))

    def check(self) -> BudgetPlan:
        """Prove every invariant and return the plan; :class:`PlanError` names the broken one, with terms."""
        check_plan(self)
        return self

    def check_model(self, fingerprint: str | None, n_layers: int) -> BudgetPlan:
        """Return the plan if it fits this model; else :class:`PlanError`."""
        if self.n_layers != n_layers:
            raise PlanError(
                f"the plan has budgets for {self.n_layers} layers, but the model has {n_layers}; "
                "make a plan with this model"
            )
        if None not in (self.model, fingerprint) and self.model != fingerprint:
            raise PlanError(
                f"the plan belongs to the model {self.model!r}, but this one is {fingerprint!r}; "
                "make a plan with this model"
            )
        return self

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, with the format and its version."""
        return encode(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> BudgetPlan:
        """A checked plan from :meth:`to_dict`; whatever is wrong with it is a :class:`PlanError`."""
        return cls(**decode(data)).check()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a JSON file, whole or not at all. Raises :class:`PlanError`."""
        write_json(path, self.check().to_dict())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> BudgetPlan:
        """Read and check a file of :meth:`save`; every failure is a :class:`PlanError` with the path."""
        data = read_json(path)
        try:
            return cls.from_dict(data)
        except PlanError as error:
            raise PlanError(f"{os.fspath(path)}: {error}") from error

    def __str__(self) -> str:
        return plan_text(self)

    def __rich__(self) -> Group:
        return plan_rich(self)


def _nested(heads: object) -> tuple[tuple[int, ...], ...]:
    """Budgets of heads as tuples; :class:`PlanError` if they are not one list per layer."""
    if not isinstance(heads, Iterable) or isinstance(heads, str):
        raise PlanError(f"head_budgets of a budget plan must have a list for each layer, got {heads!r}")
    layers = tuple(heads)
    for layer in layers:
        if not isinstance(layer, Iterable) or isinstance(layer, str):
            raise PlanError(f"head_budgets of a budget plan must have a list for each layer, but one is {layer!r}")
    return tuple(tuple(layer) for layer in layers)


def _mean(heads: tuple[int, ...]) -> int:
    """A layer's budget: what its heads keep on average, rounded up; 0, which no check lets pass, for what is none."""
    numbers = [head for head in heads if isinstance(head, int)]
    return -(-sum(numbers) // max(1, len(numbers)))
