"""What is asked of the engine: ``--additional-config '{"squeeze": ...}'``."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..allocators import Probe
from ..errors import ConfigError, UnsupportedFeatureError
from ..plan import BudgetPlan
from .blocks import BlockPlan
from .lengths import ByLength
from .prompts import PerPrompt, PromptPlanner

if TYPE_CHECKING:
    from ..policies import EvictionPolicy
    from .head_plans import HeadPlanner

PREFILLS = ("full", "windowed")
DESIGNS = ("compact", "slab")
#: policy of a plan -> leading tokens that it keeps, unless they are given: those that whole blocks can follow
SINKS = {"streaming_llm": 4, "sliding_window": 0}
_KEYS = {"plan", "prefill", "sinks", "policy", "design", "per_prompt"}


def what_lacks(policy: EvictionPolicy) -> str | None:
    """What a policy looks at and the slab does not have; ``None``: nothing.

    It has keys and values, the attention that a step pays, and at a prompt's end the prompt's queries.
    """
    from ..policies import Scored

    if not isinstance(policy, Scored):
        return None
    lacks = {
        "a repetition of the prompt": policy.replays > 0,
        "the projection of its values": policy.weighs_values,
        "the mean of all queries": policy.foresees_queries,
        "queries of the answer": policy.last_queries > 0 and policy.every is not None,
        "each new token alone": type(policy).score_new is not Scored.score_new,
    }
    return next((what for what, is_so in lacks.items() if is_so), None)


@dataclass(frozen=True)
class EngineSettings:
    """A plan and how it is carried out.

    ``prefill``: "full": a prompt is attended to in full, as in the paper, and cut when it has been read; "windowed":
    prompt tokens see what generated ones see, and no more than that is ever held. ``design``: "compact" keeps whole
    blocks of sinks and newest tokens; "slab" ranks single tokens, in blocks that a request keeps, and is what budgets
    by KV head take.
    ``per_prompt``: the plan gives the total and the groups of layers, each prompt's own signal the budgets.
    """

    plan: BudgetPlan
    """With several plans that of the longest prompts."""
    policy: str
    sinks: int
    prefill: str = "full"
    design: str = "compact"
    per_prompt: PerPrompt | None = None
    shorter: tuple[BudgetPlan, ...] = ()
    """Plans of shorter prompts, shortest first: a request gets the first one whose ``prompt_tokens`` its own do not
    exceed."""

    @classmethod
    def read(cls, given: object) -> EngineSettings:
        """From ``{"plan": PATH or the plan itself, "prefill": ..., "sinks": ..., ...}``, or a path alone; several plans
        by KV head, for prompts of different lengths, are a list.

        Raises :class:`ConfigError`, :class:`~squeezeattention.errors.PlanError` (an unreadable or damaged plan) or
        :class:`UnsupportedFeatureError` (a policy that whole blocks cannot follow).
        """
        from ..policies import POLICIES

        if isinstance(given, (str, os.PathLike)):
            given = {"plan": given}
        if not isinstance(given, Mapping) or "plan" not in given:
            raise ConfigError(f'squeeze must be the path of a plan or {{"plan": ..., ...}}, got {given!r}')
        if unknown := set(given) - _KEYS:
            raise ConfigError(f"unknown settings of squeeze: {', '.join(sorted(map(str, unknown)))}; known are "
                              f"{', '.join(sorted(_KEYS))}")  # fmt: skip
        source = given["plan"]
        plans = sorted_by_length([_plan_from(one) for one in (source if isinstance(source, list) else [source])])
        plan = plans[-1]
        policy = given.get("policy", plan.policy or "streaming_llm")
        if (lack := what_lacks(POLICIES.create(policy))) is not None:
            fine = [name for name in POLICIES if what_lacks(POLICIES.create(name)) is None]
            raise UnsupportedFeatureError(
                f"policy {policy!r} scores tokens by {lack}, which the engine does not keep; use one of "
                f"{', '.join(fine)}"
            )
        per_prompt = PerPrompt.read(given.get("per_prompt"), plan)
        looks_back = per_prompt is not None and per_prompt.by_head
        by_head = plan.head_budgets is not None or looks_back
        design = given.get("design", "compact" if policy in SINKS and not by_head else "slab")
        if design not in DESIGNS:
            raise ConfigError(f"design must be one of {', '.join(DESIGNS)}, got {design!r}")
        if design == "compact" and by_head:
            raise UnsupportedFeatureError(
                "the plan has budgets by KV head, and the compact design cannot: vLLM has one block table for all KV "
                'heads of a layer. Leave out "design", or make a plan with budgets by layer (--allocator squeeze)'
            )
        if design == "compact" and policy not in SINKS:
            raise UnsupportedFeatureError(
                f'policy {policy!r} ranks single tokens, and the compact design keeps whole blocks: use "slab", or one '
                f"of {', '.join(sorted(SINKS))}"
            )
        prefill = given.get("prefill", "full")
        if prefill not in PREFILLS:
            raise ConfigError(f"prefill must be one of {', '.join(PREFILLS)}, got {prefill!r}")
        if design == "slab" and prefill != "full":
            raise UnsupportedFeatureError('the slab design reads prompts in full; leave out "prefill"')
        sinks = given.get("sinks", SINKS.get(policy, 0))
        if isinstance(sinks, bool) or not isinstance(sinks, int) or sinks < 0:
            raise ConfigError(f"sinks must be a whole number >= 0, got {sinks!r}")
        if per_prompt is not None and by_head and not looks_back:
            raise UnsupportedFeatureError(
                f"plans per prompt by {per_prompt.allocator!r} divide a total among layers, and this plan has budgets "
                'by KV head: say "per_prompt": {"allocator": "probe"}, or make a plan with budgets by layer '
                "(--allocator squeeze)"
            )
        if looks_back and len(plans) > 1:
            raise UnsupportedFeatureError(
                f"plans per prompt by {Probe.name!r} have one total for all prompts, and {len(plans)} plans were "
                "given: give one of them"
            )
        if per_prompt is not None and not looks_back and (design, prefill) != ("compact", "full"):
            raise UnsupportedFeatureError(
                f"plans per prompt by {per_prompt.allocator!r} need the compact design and "
                f'"prefill": "full": a prompt is measured as a whole, then cut; got {design!r} and {prefill!r}'
            )
        return cls(plan, policy, sinks, prefill, design, per_prompt, tuple(plans[:-1]))

    @property
    def by_head(self) -> bool:
        """Whether KV heads have budgets of their own."""
        return self.plan.head_budgets is not None or (self.per_prompt is not None and self.per_prompt.by_head)

    @property
    def plans(self) -> ByLength[BudgetPlan]:
        """The plan for a prompt's length."""
        plans = (*self.shorter, self.plan)
        return ByLength(tuple(plan.prompt_tokens or 0 for plan in plans), plans)

    def blocks(self, block_size: int, n_layers: int, n_heads: int | None = None) -> BlockPlan:
        """The plan (of the longest prompts) in blocks, once it is sure that it has the model's layers, and its KV heads
        if they are known."""
        return self.blocks_of(self.plan, block_size, n_layers, n_heads)

    def blocks_of(self, plan: BudgetPlan, block_size: int, n_layers: int, n_heads: int | None = None) -> BlockPlan:
        """The same of any of the plans."""
        plan.check_model(None, n_layers)
        if plan.head_budgets is not None:
            return BlockPlan.of_heads(plan, block_size, n_heads or len(plan.head_budgets[0]))
        return BlockPlan.of(plan, block_size, sinks=self.sinks if self.design == "compact" else 0)

    def rooms(self, blocks: BlockPlan, n_heads: int, plan: BudgetPlan | None = None) -> tuple[tuple[int, ...], ...]:
        """``[layers][n_heads]``: the tokens of each KV head, as the blocks round them."""
        return blocks.rooms(plan or self.plan, n_heads, minimum=self.make_policy().minimum)

    def planner(self, block_size: int) -> PromptPlanner | None:
        """Who divides the total among layers for each prompt; ``None`` if nobody does."""
        if self.per_prompt is None or self.per_prompt.by_head:
            return None
        return PromptPlanner.of(self.plan, self.per_prompt, block_size, sinks=self.sinks)

    def head_planner(self, block_size: int) -> HeadPlanner | None:
        """Who divides it among layers and KV heads; ``None`` if nobody does."""
        if self.per_prompt is None or not self.per_prompt.by_head:
            return None
        from .head_plans import HeadPlanner

        return HeadPlanner.of(self.plan, self.per_prompt, self.make_policy(), block_size)

    def check(self, block_size: int) -> None:
        """Raise what :meth:`blocks`, :meth:`planner` or :meth:`head_planner` would, before there is a model."""
        if self.planner(block_size) is None and self.head_planner(block_size) is None:
            for plan in self.plans.values:
                blocks = self.blocks_of(plan, block_size, self.plan.n_layers)
                if plan.head_budgets is not None:
                    self.rooms(blocks, len(plan.head_budgets[0]), plan)

    def make_policy(self) -> EvictionPolicy:
        """The policy, for the slab design."""
        from ..policies import POLICIES, StreamingLLM

        return StreamingLLM(self.sinks) if self.policy == StreamingLLM.name else POLICIES.create(self.policy)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values that :meth:`read` takes, without a path: for processes that may run elsewhere."""
        return {
            "plan": [plan.to_dict() for plan in self.plans.values] if self.shorter else self.plan.to_dict(),
            "policy": self.policy,
            "sinks": self.sinks,
            "prefill": self.prefill,
            "design": self.design,
            "per_prompt": None if self.per_prompt is None else self.per_prompt.to_dict(),
        }


def _plan_from(source: object) -> BudgetPlan:
    if isinstance(source, Mapping):
        return BudgetPlan.from_dict(source)
    if isinstance(source, (str, os.PathLike)):
        return BudgetPlan.load(source)
    raise ConfigError(f"the plan must be a path or a JSON object, or a list of such, got {source!r}")


def sorted_by_length(plans: list[BudgetPlan]) -> list[BudgetPlan]:
    """Plans for prompts of different lengths, shortest first.

    Raises :class:`ConfigError` unless they say of how long prompts they are, each of its own and all of one policy, and
    :class:`UnsupportedFeatureError` for budgets by layer.
    """
    if not plans:
        raise ConfigError("squeeze needs a plan, and the list of plans is empty")
    if len(plans) == 1:
        return plans
    if any(plan.head_budgets is None for plan in plans):
        raise UnsupportedFeatureError(
            "plans for prompts of different lengths need budgets by KV head, in single tokens: make them with "
            "`squeeze vllm plan --by-head`, or give one plan"
        )
    lengths = [plan.prompt_tokens for plan in plans]
    if None in lengths or len(set(lengths)) < len(lengths):
        raise ConfigError(
            f"plans for prompts of different lengths must say of how many tokens (prompt_tokens), each another number; "
            f"got {', '.join(map(str, lengths))}"
        )
    if len({(plan.policy, plan.model, plan.n_layers) for plan in plans}) > 1:
        raise ConfigError("plans for prompts of different lengths must be of one model and one policy")
    return sorted(plans, key=lambda plan: plan.prompt_tokens or 0)
