"""A plan in blocks: what a paged cache can keep of each layer, and of each of its KV heads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import BudgetError, ConfigError
from ..plan import BudgetPlan
from ..plan.fit import fit_budgets
from ..plan.kmeans import kmeans_1d


@dataclass(frozen=True, order=True)
class LayerBlocks:
    """What one layer keeps: its first ``sinks`` blocks and its newest ``recent``, the one being filled included."""

    sinks: int
    recent: int

    @property
    def total(self) -> int:
        """Blocks held once the text is longer than this."""
        return self.sinks + self.recent

    def first_recent(self, block: int) -> int:
        """The oldest block, sinks apart, that a token in ``block`` sees."""
        return max(self.sinks, block - self.recent + 1)

    def held(self, tokens: int, block_size: int) -> int:
        """Blocks held by a text of ``tokens`` tokens whose newest one has been given its slot, prompt over."""
        return min(-(-tokens // block_size), self.total)


@dataclass(frozen=True)
class BlockPlan:
    """Whole blocks per layer, never more in all than the tokens of the plan they are made of."""

    layers: tuple[LayerBlocks, ...]
    block_size: int

    @classmethod
    def of(cls, plan: BudgetPlan, block_size: int, *, sinks: int) -> BlockPlan:
        """Blocks for the budgets of ``plan``; ``sinks``: leading tokens that every layer keeps.

        Every layer gets the sinks' blocks and one of the newest at least, and what is left of the plan's total by
        largest remainder. Raises :class:`BudgetError` if the total cannot pay for that, or a budget is below a block.
        """
        _check_block_size(block_size)
        if isinstance(sinks, bool) or not isinstance(sinks, int) or sinks < 0:
            raise ConfigError(f"sinks must be a whole number >= 0, got {sinks!r}")
        for layer, budget in enumerate(plan.budgets):
            if budget < block_size:
                raise BudgetError(
                    f"layer {layer} has a budget of {budget} tokens, less than a block of {block_size}: use a larger "
                    "budget or smaller blocks (--block-size)"
                )
        leading = -(-sinks // block_size)
        least = leading + 1
        total = sum(plan.budgets) // block_size
        if total < least * len(plan.budgets):
            raise BudgetError(
                f"a plan of {sum(plan.budgets)} tokens is {total} blocks of {block_size}, but {len(plan.budgets)} "
                f"layers need {least} each ({leading} of sinks and the one being filled): use a larger budget or "
                "smaller blocks (--block-size)"
            )
        counts = _whole_blocks(plan.budgets, block_size, total, least)
        return cls(tuple(LayerBlocks(leading, count - leading) for count in counts), block_size)

    @classmethod
    def of_heads(cls, plan: BudgetPlan, block_size: int, n_heads: int) -> BlockPlan:
        """Blocks for a plan whose KV heads have budgets of their own, which share their layer's blocks.

        A block has ``block_size`` tokens of each of ``n_heads`` heads, or all of them of one. Layers with less than a
        block are given one, and those with most pay; else as :meth:`of`, with no sinks of its own. Raises
        :class:`BudgetError` if there are fewer blocks than layers.
        """
        _check_block_size(block_size)
        counts = [sum(plan.heads(layer, n_heads)) for layer in range(plan.n_layers)]
        size = block_size * n_heads
        total = sum(counts) // size
        if total < len(counts):
            raise BudgetError(
                f"a plan of {sum(counts)} tokens in {n_heads} KV heads of {len(counts)} layers is {total} blocks of "
                f"{block_size}, less than one a layer: use a larger budget or smaller blocks (--block-size)"
            )
        blocks = _whole_blocks(counts, size, total, 1)
        return cls(tuple(LayerBlocks(0, count) for count in blocks), block_size)

    def leveled(self, levels: int) -> BlockPlan:
        """At most so many different sizes, and no more blocks: layers of a cluster get its mean, rounded down.

        Layers of one size share a block table, and many tables are slow.
        """
        counts = [layer.total for layer in self.layers]
        if len(set(counts)) <= levels:
            return self
        clusters = kmeans_1d([float(count) for count in counts], levels)
        members = {
            cluster: [c for c, own in zip(counts, clusters, strict=True) if own == cluster] for cluster in clusters
        }
        means = {cluster: sum(own) // len(own) for cluster, own in members.items()}
        layers = tuple(
            LayerBlocks(layer.sinks, means[cluster] - layer.sinks)
            for layer, cluster in zip(self.layers, clusters, strict=True)
        )
        return BlockPlan(layers, self.block_size)

    def rooms(self, plan: BudgetPlan, n_heads: int, *, minimum: int = 1) -> tuple[tuple[int, ...], ...]:
        """``[layers][n_heads]``: what each KV head keeps of its layer's blocks, which they fill together.

        In proportion to ``plan``, each ``minimum`` tokens at least. Raises :class:`BudgetError` where a layer's blocks
        cannot pay for that, and :class:`~squeezeattention.errors.PlanError` for a plan of other heads.
        """
        found = []
        for layer, tokens in enumerate(self.tokens):
            if tokens < minimum:
                raise BudgetError(
                    f"layer {layer} has a budget of {tokens} tokens in each KV head, but the policy needs {minimum}: "
                    "use a larger budget"
                )
            heads = plan.heads(layer, n_heads)
            found.append(tuple(fit_budgets(heads, tokens, [None] * n_heads, min(minimum, tokens))))
        return tuple(found)

    @property
    def total(self) -> int:
        """Blocks of all layers together, for one long text."""
        return sum(layer.total for layer in self.layers)

    @property
    def tokens(self) -> tuple[int, ...]:
        """Budgets in tokens, as the blocks round them."""
        return tuple(layer.total * self.block_size for layer in self.layers)


def _check_block_size(block_size: int) -> None:
    if isinstance(block_size, bool) or not isinstance(block_size, int) or block_size < 1:
        raise ConfigError(f"a block must have a whole number of tokens >= 1, got {block_size!r}")


def _whole_blocks(budgets: Sequence[int], size: int, total: int, least: int) -> list[int]:
    """Largest remainder; layers below ``least`` are raised to it and those with most pay."""
    counts = [budget // size for budget in budgets]
    by_remainder = sorted(range(len(budgets)), key=lambda layer: (-(budgets[layer] % size), layer))
    for layer in by_remainder[: total - sum(counts)]:
        counts[layer] += 1
    counts = [max(count, least) for count in counts]
    while sum(counts) > total:
        counts[counts.index(max(counts))] -= 1
    return counts
