"""One way to hold the cache, and the cache that follows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from transformers import DynamicCache

from .. import SqueezeCache
from ..allocators import ALLOCATORS, Allocator, Calibrated, Measured, Scaled, names_file
from ..allocators import takes as takes_option
from ..allocators.measured import is_measured
from ..cache.options import check_has_scores, checked_prefill
from ..calibration import Calibration, is_calibration
from ..errors import BudgetError, ConfigError
from ..plan import Budget, BudgetPlan
from ..policies import resolve_policy
from ..signals import resolve_signal
from .spec import Spec

UNIFORM = "uniform"


@dataclass(frozen=True)
class Config:
    """A policy, an allocator and a budget; the full cache without all three."""

    policy: Spec | None = None
    allocator: Spec | None = None
    """With ``p`` and, where they are not the defaults, ``signal``, ``prefill`` and ``chunk_size`` among its options."""
    budget: str | None = None
    """As :func:`budget_text` writes it."""

    @property
    def id(self) -> str:
        return "full" if self.policy is None else f"{self.policy}/{self.allocator}/{self.budget}"

    @property
    def p(self) -> float | None:
        value = None if self.allocator is None else self.allocator.get("p")
        return None if value is None else float(value)

    @property
    def reading(self) -> tuple[str, ...]:
        """How a prompt is read for it: what one reading can serve has the same."""
        if self.policy is None or self.allocator is None:
            return ("full",)
        _, given = _make(self.allocator)
        if given.get("prefill") == "bounded":
            return (self.id,)
        return (str(self.policy), str(self.allocator)) if given else (str(self.policy),)

    @property
    def signal(self) -> str | None:
        """The signal that its allocator goes by, where that is the allocator's own."""
        if self.allocator is None:
            return None
        allocator, given = _make(self.allocator)
        return allocator.signal if allocator.needs_signal and "signal" not in given else None

    def make_allocator(self) -> Allocator:
        """The allocator. Raises :class:`ConfigError` for the full cache, which has none."""
        if self.allocator is None:
            raise ConfigError("the full cache has no allocator")
        return _make(self.allocator)[0]

    def check(self) -> Config:
        """Return the config if a cache can be made of it; else raise what making it would raise."""
        if self.policy is not None and self.allocator is not None:
            policy = resolve_policy(self.policy.name, **dict(self.policy.options))
            allocator, given = _make(self.allocator)
            check_has_scores(policy, resolve_signal(given.get("signal", allocator.signal)))
            checked_prefill(given.get("prefill", "exact"))
            budget = Budget.parse(self.budget)
            if budget.kind == "tokens" and budget.value < policy.minimum:
                raise BudgetError(
                    f"a budget of {budget} is too small: {policy.name} needs at least {policy.minimum} tokens"
                )
        return self

    def make_cache(self, model: Any, new_tokens: int, others: Sequence[str] = ()) -> Any:
        """An empty cache for one prompt that ``new_tokens`` tokens will follow; a share is what it says. ``others`` are
        signals that watch beside its own."""
        if self.policy is None or self.allocator is None or self.budget is None:
            return DynamicCache(config=model.config)
        allocator, given = _make(self.allocator)
        if self.signal is not None and others:
            given["signal"] = [self.signal, *others]
        return SqueezeCache(
            model, self.budget, resolve_policy(self.policy.name, **dict(self.policy.options)),
            allocator, new_tokens=new_tokens, min_tokens=1, **given,
        )  # fmt: skip

    def to_dict(self) -> dict[str, str | None]:
        """Plain JSON values."""
        if self.policy is None:
            return {"id": self.id, "policy": None, "allocator": None, "budget": None}
        return {"id": self.id, "policy": str(self.policy), "allocator": str(self.allocator), "budget": self.budget}


def read_together(configs: Sequence[Config]) -> list[list[Config]]:
    """Groups that one reading of a prompt serves, in the order in which they come first."""
    groups: dict[tuple[str, ...], list[Config]] = {}
    for config in configs:
        groups.setdefault(config.reading, []).append(config)
    return list(groups.values())


def takes(allocator: Spec, option: str) -> bool:
    """Whether an allocator has an option of this name."""
    if names_file(allocator.name):
        return option in (
            _MEASURED if is_measured(allocator.name) else _CALIBRATED if is_calibration(allocator.name) else ()
        )
    return takes_option(allocator.name, option)


#: Of files with measured losses, and of calibrations; a saved plan has none.
_MEASURED, _CALIBRATED = ("by", "floor"), ("floor", "power")


#: Options of the cache that are written beside the allocator's own: ``squeeze:prefill=bounded``.
_CACHE_OPTIONS = ("signal", "prefill", "chunk_size")


def _make(spec: Spec) -> tuple[Allocator, dict[str, Any]]:
    """The allocator, and the options of the cache that are given with it.

    A file is a plan, whose shares are scaled to each budget, measured losses, or a calibration.
    """
    options: dict[str, Any] = dict(spec.options)
    given = {name: options.pop(name) for name in _CACHE_OPTIONS if name in options and not takes(spec, name)}
    if not names_file(spec.name):
        return ALLOCATORS.create(spec.name, **options), given
    if wrong := sorted(name for name in options if not takes(spec, name)):
        raise ConfigError(f"{spec.name} has no option {', '.join(wrong)}")
    if is_measured(spec.name):
        return Measured.load(spec.name, **options), given
    if is_calibration(spec.name):
        return Calibrated(calibration=Calibration.load(spec.name), **options), given
    return Scaled(BudgetPlan.load(spec.name)), given


def budget_text(value: object) -> str:
    """The one text of a budget: ``"20%"`` and 0.2 are both ``"0.2"``. Raises :class:`BudgetError`."""
    budget = Budget.parse(value)
    if budget.kind == "share":
        return format(Decimal(repr(float(budget.value))), "f")
    return f"{budget.value}{'B' if budget.kind == 'bytes' else ''}"
