"""Budgets of KV heads for each prompt, in an engine: one pool of places for all of a request's layers.

::

    a request's blocks   layer 0 [ 7 | 3 ]  layer 1 [ 9 | 4 ]  ...     as many for every prompt, of every layer's table
    its pool             [ 7 | 3 | 9 | 4 | ............... ]           P places: one token of one KV head each
    this prompt          [ layer 0: head 0 | head 1 ][ layer 1 ...]    divided anew, to the token

Where each layer has a block table of its own, all layers' pages lie in one tensor, so a block serves whichever layer.
What the scheduler has to know, how many blocks a request holds, hangs on no prompt.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from ..allocators import Allocator
from ..cache.planning import Planner
from ..errors import BudgetError
from ..plan import Budget, BudgetPlan
from ..policies import EvictionPolicy
from .blocks import BlockPlan, LayerBlocks
from .prompts import PerPrompt


@dataclass(frozen=True)
class PoolRooms:
    """How one prompt divides its pool."""

    plan: BudgetPlan
    rooms: tuple[tuple[int, ...], ...]
    """[layers][H] tokens of each KV head."""
    begins: tuple[int, ...]
    """[layers] the place where each layer's begin."""

    @classmethod
    def of(cls, plan: BudgetPlan, n_heads: int) -> PoolRooms:
        rooms = tuple(plan.heads(layer, n_heads) for layer in range(plan.n_layers))
        return cls(plan, rooms, tuple(itertools.accumulate(map(sum, rooms[:-1]), initial=0)))


@dataclass(frozen=True)
class HeadPlanner:
    """Budgets of KV heads for each prompt, of the same total for all of them."""

    rule: Allocator
    policy: EvictionPolicy
    n_layers: int
    blocks: int
    """Of all layers together."""
    block_size: int
    fingerprint: str = ""
    """Of the model, for plans that are made."""

    @classmethod
    def of(cls, plan: BudgetPlan, asked: PerPrompt, policy: EvictionPolicy, block_size: int) -> HeadPlanner:
        """Total as the plan's, in whole blocks, and never more.

        Raises :class:`BudgetError` if it is less than a block for each layer, or than the policy needs.
        """
        heads = plan.head_budgets
        total = plan.total if heads is None else sum(map(sum, heads)) // len(heads[0])
        planner = cls(asked.rule(), policy, plan.n_layers, total // block_size, block_size, plan.model or "")
        if planner.blocks < plan.n_layers:
            raise BudgetError(
                f"a plan of {total} tokens is {planner.blocks} blocks of {block_size}, less than one for each of "
                f"{plan.n_layers} layers: use a larger budget or smaller blocks (--block-size)"
            )
        if planner.base_budget < policy.minimum:
            raise BudgetError(
                f"{planner.base_budget} tokens for each KV head are less than the {policy.minimum} that "
                f"{policy.name} needs: use a larger budget"
            )
        return planner

    @property
    def base_budget(self) -> int:
        """Tokens of a KV head, mean."""
        return self.blocks * self.block_size // self.n_layers

    def nominal(self) -> BlockPlan:
        """As many blocks of each layer's table as makes the total; whose they are each prompt decides."""
        each, more = divmod(self.blocks, self.n_layers)
        counts = [each + (layer < more) for layer in range(self.n_layers)]
        return BlockPlan(tuple(LayerBlocks(0, count) for count in counts), self.block_size)

    def plan(
        self, signal_values: Sequence[Sequence[float]], *, prompt_tokens: int, total_tokens: int | None
    ) -> BudgetPlan:
        """Budgets for a prompt: what :class:`~squeezeattention.SqueezeCache` makes of the same values.

        Args:
            signal_values: ``[layers][H]``.
            total_tokens: of prompt and answer, if known: no head can use more.
        """
        planner = Planner(
            Budget("tokens", self.base_budget), self.rule, self.policy, self.rule.signal,
            (None,) * self.n_layers, self.fingerprint,
        )  # fmt: skip
        return planner.plan(
            signal_values=signal_values, prompt_tokens=prompt_tokens, total_tokens=total_tokens,
            bytes_per_token=(1,) * self.n_layers,
        )  # fmt: skip
