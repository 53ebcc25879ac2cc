"""What is asked of the engine: ``--additional-config '{"squeeze": ...}'``."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import ConfigError, UnsupportedFeatureError
from ..plan import BudgetPlan
from .blocks import BlockPlan

PREFILLS = ("full", "windowed")
#: policy of a plan -> leading tokens that it keeps, unless they are given
SINKS = {"streaming_llm": 4, "sliding_window": 0}
_KEYS = {"plan", "prefill", "sinks", "policy"}


@dataclass(frozen=True)
class EngineSettings:
    """A plan and how it is carried out.

    ``prefill``: "full": a prompt is attended to in full, as in the paper, and cut when it has been read; "windowed":
    prompt tokens see what generated ones see, and no more than that is ever held.
    """

    plan: BudgetPlan
    sinks: int
    prefill: str = "full"

    @classmethod
    def read(cls, given: object) -> EngineSettings:
        """From ``{"plan": PATH or the plan itself, "prefill": ..., "sinks": ..., "policy": ...}``, or a path alone.

        Raises :class:`ConfigError`, :class:`~squeezeattention.errors.PlanError` (an unreadable or damaged plan) or
        :class:`UnsupportedFeatureError` (a policy that whole blocks cannot follow).
        """
        if isinstance(given, (str, os.PathLike)):
            given = {"plan": given}
        if not isinstance(given, Mapping) or "plan" not in given:
            raise ConfigError(f'squeeze must be the path of a plan or {{"plan": ..., ...}}, got {given!r}')
        if unknown := set(given) - _KEYS:
            raise ConfigError(f"unknown settings of squeeze: {', '.join(sorted(map(str, unknown)))}; known are "
                              f"{', '.join(sorted(_KEYS))}")  # fmt: skip
        source = given["plan"]
        if isinstance(source, Mapping):
            plan = BudgetPlan.from_dict(source)
        elif isinstance(source, (str, os.PathLike)):
            plan = BudgetPlan.load(source)
        else:
            raise ConfigError(f"the plan must be a path or a JSON object, got {source!r}")
        policy = given.get("policy", plan.policy or "streaming_llm")
        if policy not in SINKS:
            raise UnsupportedFeatureError(
                f"policy {policy!r} ranks single tokens, and vLLM's cache is made of blocks; use one of "
                f'{", ".join(sorted(SINKS))} (make the plan with --policy, or give "policy")'
            )
        prefill = given.get("prefill", "full")
        if prefill not in PREFILLS:
            raise ConfigError(f"prefill must be one of {', '.join(PREFILLS)}, got {prefill!r}")
        sinks = given.get("sinks", SINKS[policy])
        if isinstance(sinks, bool) or not isinstance(sinks, int) or sinks < 0:
            raise ConfigError(f"sinks must be a whole number >= 0, got {sinks!r}")
        return cls(plan, sinks, prefill)

    def blocks(self, block_size: int, n_layers: int, fingerprint: str | None = None) -> BlockPlan:
        """The plan in blocks, once it is sure that it is of this model."""
        self.plan.check_model(fingerprint, n_layers)
        return BlockPlan.of(self.plan, block_size, sinks=self.sinks)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values that :meth:`read` takes, without a path: for processes that may run elsewhere."""
        return {"plan": self.plan.to_dict(), "sinks": self.sinks, "prefill": self.prefill}
