"""Rules that divide the cache among the layers, by name."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..defaults import DEFAULT_ALLOCATOR
from ..errors import ConfigError
from ..plan.plan import BudgetPlan
from ..registry import Registry
from .adakv import AdaKV
from .base import Allocation, Allocator, check_p
from .cake import Cake
from .calibrated import Calibrated
from .dynamickv import DynamicKV
from .fixed import Fixed
from .inverted import Inverted
from .lazy import Lazy
from .measured import Measured, is_measured
from .over_all import OverAll
from .probe import Probe
from .proportional import Proportional
from .pyramid import Pyramid
from .random import Random
from .scaled import Scaled
from .squeeze import Squeeze, check_outliers
from .uniform import Uniform
from .zigzag import ZigZag

if TYPE_CHECKING:
    from ..policies import EvictionPolicy

__all__ = [
    "ALLOCATORS",
    "DEFAULT_ALLOCATOR",
    "AdaKV",
    "Allocation",
    "Allocator",
    "Cake",
    "Calibrated",
    "DynamicKV",
    "Fixed",
    "Inverted",
    "Lazy",
    "Measured",
    "OverAll",
    "Probe",
    "Proportional",
    "Pyramid",
    "Random",
    "Scaled",
    "Squeeze",
    "Uniform",
    "ZigZag",
    "default_allocator",
    "name_or_plan",
    "names_file",
    "resolve_allocator",
    "takes",
]

ALLOCATORS: Registry[Allocator] = Registry("allocator", name=str, needs_signal=bool)
for _allocator in (
    Squeeze, Probe, Calibrated, OverAll, AdaKV, Uniform, Pyramid, Random, Inverted, Cake, ZigZag, Lazy, DynamicKV,
):  # fmt: skip
    ALLOCATORS.register(_allocator.name, _allocator)


def names_file(text: str) -> bool:
    """Whether a command line means a file by an allocator."""
    return text.endswith(".json") or (text not in ALLOCATORS and Path(text).is_file())


def name_or_plan(text: str | None) -> str | BudgetPlan | Measured | Calibrated | None:
    """What a command line means by an allocator: a name, or what was saved in a file: a plan, measured losses, or a
    calibration.

    ``None``, where none was named, stays ``None``.

    Raises :class:`PlanError` for a file that holds neither.
    """
    if text is None or not names_file(text):
        return text
    if is_measured(text):
        return Measured.load(text)
    from ..calibration.record import Calibration, is_calibration

    return Calibrated(calibration=Calibration.load(text)) if is_calibration(text) else BudgetPlan.load(text)


def takes(name: str, option: str) -> bool:
    """Whether the allocator of this name has an option of that name."""
    return option in inspect.signature(ALLOCATORS.factory(name)).parameters


def default_allocator(own: str, p: float | None = None, outliers: str | None = None) -> str:
    """What is meant where no allocator is named: the policy's ``own``, or the paper's rule by its own parameters."""
    return own if p is None and outliers is None else Squeeze.name


def resolve_allocator(
    spec: str | Allocator | BudgetPlan | Sequence[int] | Sequence[Sequence[int]] | None,
    *,
    p: float | None = None,
    outliers: str | None = None,
    policy: EvictionPolicy | None = None,
) -> Allocator:
    """The allocator that ``spec`` names, is, or fixes; for ``None`` that of ``policy``, or of the default policy.

    A plan fixes budgets, and so does a list: of tokens per layer, or per layer of such lists per KV head.
    ``p`` and ``outliers`` go to named allocators that take them (:func:`takes`). To give one to any other, to fixed
    budgets, or to an instance that was built otherwise is a :class:`ConfigError`, as is anything that is no allocator.
    """
    options: dict[str, object] = {}
    if spec is None:
        spec = DEFAULT_ALLOCATOR if policy is None else policy.allocator
        spec = default_allocator(spec, p, outliers)
    if p is not None:
        options["p"] = check_p(p)
    if outliers is not None:
        check_outliers(outliers)
        options["outliers"] = outliers
    if isinstance(spec, str):
        if wrong := [name for name in options if not takes(spec, name)]:
            able = [name for name in ALLOCATORS if all(takes(name, option) for option in wrong)]
            raise ConfigError(
                f"allocator {spec!r} has no {' and no '.join(wrong)}; leave it out, or use one of: {', '.join(able)}"
            )
        return ALLOCATORS.create(spec, **options)
    if isinstance(spec, BudgetPlan | list | tuple):
        spec = Fixed(spec)
    if not isinstance(spec, Allocator):
        raise ConfigError(
            f"cannot use {spec!r} as an allocator: give one of {', '.join(ALLOCATORS)}, an Allocator, a "
            "BudgetPlan, or a list of tokens per layer or of such lists per KV head"
        )
    ALLOCATORS.resolve(spec, Allocator)  # type: ignore[type-abstract]  # does it say what it has to?
    for name, value in options.items():
        own = None if isinstance(spec, Fixed) else getattr(spec, name, None)
        if own is None:
            raise ConfigError(f"{name}={value!r} changes nothing of {spec!r}; leave it out")
        if own != value:
            raise ConfigError(f"{name} was given twice: {value!r}, and {own!r} in {spec!r}; give it once")
    return spec
