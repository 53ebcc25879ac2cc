"""Plans per prompt inside an engine whose layers share block tables: groups of layers, budgets for each request.

::

    calibration        layers 0 .. 31   -- ordered by what attention changed -->   groups of 4: g0, g1, ... g7
    a prompt, read     its own cosine of each layer -- mean of a group's layers -->  the allocator's budgets, in blocks

Layers of a group share a block table for as long as the engine runs, so which layers go together is calibrated; what
each group keeps is the prompt's own. With as many groups as layers it is the paper's method, to the block.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..allocators import ALLOCATORS, Allocator, Probe, resolve_allocator
from ..errors import BudgetError, ConfigError, UnsupportedFeatureError
from ..plan import BudgetPlan, build_plan
from .blocks import BlockPlan, LayerBlocks
from .lanes import MOST_GROUPS, Lanes

SIGNAL = "cosine"  # what an engine's own kernels leave to be measured: attention is closed
REPLAY = Probe.signal  # what this library's attention sees, in the slab design
_KEYS = {"allocator", "p", "groups"}
RULE = "squeeze"  # where none is asked for


@dataclass(frozen=True)
class PerPrompt:
    """How budgets follow each prompt: an allocator's name, its ``p``, and the number of groups of layers."""

    allocator: str
    p: float | None = None
    groups: int | None = None

    @classmethod
    def read(cls, given: object, plan: BudgetPlan) -> PerPrompt | None:
        """From ``true`` (the allocator that the plan was made with, or one for such plans), ``{"allocator": ...,
        "p": ..., "groups": ...}``, or ``None`` for ``false``.

        Raises :class:`ConfigError`, or :class:`UnsupportedFeatureError` for an allocator of another signal.
        """
        if given is None or given is False:
            return None
        chosen: Mapping[str, Any] = {} if given is True else given if isinstance(given, Mapping) else {"": given}
        if unknown := set(chosen) - _KEYS:
            raise ConfigError(
                f"per_prompt must be true, false or an object of {', '.join(sorted(_KEYS))}; got {given!r}"
                if "" in unknown
                else f"unknown settings of per_prompt: {', '.join(sorted(map(str, unknown)))}; known are "
                f"{', '.join(sorted(_KEYS))}"
            )
        planned = plan.allocator in ALLOCATORS
        by_heads = plan.head_budgets is not None
        name = chosen.get("allocator", plan.allocator if planned else Probe.name if by_heads else RULE)
        if not isinstance(name, str):
            raise ConfigError(f"the allocator of per_prompt must be a name, got {name!r}")
        p = chosen.get("p", plan.p if name == plan.allocator else None)
        groups = chosen.get("groups")
        if groups is not None and (isinstance(groups, bool) or not isinstance(groups, int) or groups < 1):
            raise ConfigError(f"groups of per_prompt must be a whole number >= 1, got {groups!r}")
        asked = cls(name, p, groups)
        rule = asked.rule()
        if not rule.needs_signal or rule.signal not in (SIGNAL, REPLAY):
            what = f"follows {rule.signal}" if rule.needs_signal else "is the same for all prompts"
            raise UnsupportedFeatureError(
                f"allocator {name!r} {what}; plans per prompt in the engine follow the {SIGNAL} of layers, or what "
                f'their KV heads look back at: say "per_prompt": {{"allocator": "{RULE}"}} or {{"allocator": '
                f'"{Probe.name}"}}, or leave it out'
            )
        if asked.by_head and (p is not None or groups is not None):
            raise ConfigError(
                f"p and groups are of allocators that follow the {SIGNAL}, not of {name!r}: leave them out"
            )
        return asked

    @property
    def by_head(self) -> bool:
        """Whether it divides among KV heads, by what the model looks back at when it repeats some of the prompt."""
        return self.rule().signal == REPLAY

    def rule(self) -> Allocator:
        return resolve_allocator(self.allocator, p=self.p)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values that :meth:`read` takes."""
        return {"allocator": self.allocator, "p": self.p, "groups": self.groups}


@dataclass(frozen=True)
class PromptPlanner:
    """Budgets in blocks for each prompt, of the same total for all of them."""

    members: tuple[tuple[int, ...], ...]
    """Layers of each group."""
    rule: Allocator
    base_budget: int
    """Tokens per layer, mean."""
    block_size: int
    sinks: int
    """Leading tokens that every layer keeps."""

    @classmethod
    def of(cls, plan: BudgetPlan, asked: PerPrompt, block_size: int, *, sinks: int) -> PromptPlanner:
        """Groups by the order of the plan's layers, total as the plan's.

        Raises :class:`BudgetError` if the total cannot pay for every layer's sinks and one more block, and
        :class:`ConfigError` for a number of groups that vLLM would divide otherwise.
        """
        order = sorted(
            range(plan.n_layers),
            key=plan.signal_values.__getitem__ if plan.signal_values else lambda layer: -plan.budgets[layer],
        )
        count = asked.groups or max(n for n in range(1, min(MOST_GROUPS, len(order)) + 1) if _divides(len(order), n))
        if not _divides(len(order), count):
            raise ConfigError(
                f"{count} groups of {len(order)} layers cannot have (nearly) equal sizes, which vLLM asks for: use one "
                f"of {', '.join(str(n) for n in range(1, len(order) + 1) if _divides(len(order), n))}"
            )
        planner = cls(
            tuple(tuple(sorted(order[first:last])) for first, last in _cuts(len(order), count)),
            asked.rule(), plan.total // plan.n_layers, block_size, sinks,
        )  # fmt: skip
        if planner.base_budget < planner.least:
            raise BudgetError(
                f"{planner.base_budget} tokens per layer are less than the {planner.least} of the sinks' blocks and "
                "one more: use a larger budget or smaller blocks (--block-size)"
            )
        return planner

    @property
    def least(self) -> int:
        """Tokens that every layer keeps at least: the sinks' blocks and the one being filled."""
        return (-(-self.sinks // self.block_size) + 1) * self.block_size

    @property
    def blocks_per_sequence(self) -> int:
        """Blocks that a text holds once its prompt is read, whatever the prompt."""
        return self.base_budget * len(self.members) // self.block_size

    def nominal(self) -> BlockPlan:
        """What each layer keeps if all groups keep the same, as nearly as whole blocks allow."""
        groups, group_of = self._nominal_groups(), self._group_of()
        return BlockPlan(tuple(groups[group_of[layer]] for layer in sorted(group_of)), self.block_size)

    def lanes(self) -> Lanes:
        """Each group a lane of its own."""
        group_of = self._group_of()
        return Lanes(
            tuple(group_of[layer] for layer in sorted(group_of)), max(map(len, self.members)), self._nominal_groups()
        )

    def _nominal_groups(self) -> tuple[LayerBlocks, ...]:
        same = BudgetPlan.from_budgets([self.base_budget] * len(self.members))
        return BlockPlan.of(same, self.block_size, sinks=self.sinks).layers

    def _group_of(self) -> dict[int, int]:
        return {layer: index for index, layers in enumerate(self.members) for layer in layers}

    def plan(self, signal_values: Sequence[float]) -> tuple[LayerBlocks, ...]:
        """What each group keeps of a prompt; ``signal_values``: its signal in every layer."""
        means = [statistics.fmean(signal_values[layer] for layer in layers) for layers in self.members]
        budgets = build_plan(
            self.rule, signal_values=means, base_budget=self.base_budget, caps=[None] * len(means), floor=self.least
        )
        return BlockPlan.of(budgets, self.block_size, sinks=self.sinks).layers


def _divides(layers: int, groups: int) -> bool:
    """Whether vLLM keeps groups that differ by at most one layer as they are (see lanes.py)."""
    return 1 <= groups <= layers and (layers % groups == 0 or layers // groups >= 3)


def _cuts(layers: int, groups: int) -> list[tuple[int, int]]:
    ends = [layers * index // groups for index in range(groups + 1)]
    return list(itertools.pairwise(ends))
