"""How many texts fit: blocks of the shared pool, and what one text holds of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .blocks import BlockPlan
from .lanes import Lanes, assign_lanes


@dataclass(frozen=True)
class Forecast:
    """What a plan in blocks costs in vLLM, for texts longer than their budgets and with their prompt read."""

    blocks: BlockPlan
    lanes: Lanes
    token_bytes: int
    """Keys and values of one token in one layer."""
    memory: int | None = None
    """Bytes for keys and values, if known."""

    @classmethod
    def of(cls, blocks: BlockPlan, token_bytes: int, memory: int | None = None) -> Forecast:
        return cls(blocks, assign_lanes(blocks.layers), token_bytes, memory)

    @property
    def pool_block_bytes(self) -> int:
        """A block of the pool has room for the same tokens of every layer of a group."""
        return self.blocks.block_size * self.token_bytes * self.lanes.group_size

    @property
    def sequence_bytes(self) -> int:
        """What one text holds, padding included."""
        return self.lanes.blocks_per_sequence * self.pool_block_bytes

    @property
    def waste(self) -> float:
        """Share of that which no layer uses."""
        return self.lanes.waste(self.blocks.layers)

    @property
    def n_blocks(self) -> int | None:
        return None if self.memory is None else self.memory // self.pool_block_bytes

    @property
    def max_num_seqs(self) -> int | None:
        """Texts that never have to be preempted once their prompts are read. One block is vLLM's own."""
        return None if self.n_blocks is None else max(0, self.n_blocks - 1) // self.lanes.blocks_per_sequence

    def stock_seqs(self, tokens: int) -> int | None:
        """Texts of so many tokens that fit into the same memory without a plan."""
        if self.memory is None:
            return None
        n_layers = len(self.blocks.layers)
        pool = self.memory // (self.blocks.block_size * self.token_bytes * n_layers)
        return max(0, pool - 1) // -(-tokens // self.blocks.block_size)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "block_size": self.blocks.block_size,
            "layers": [{"sink_blocks": layer.sinks, "recent_blocks": layer.recent} for layer in self.blocks.layers],
            "groups": self.lanes.n_groups,
            "layers_per_group": self.lanes.group_size,
            "padding_waste": self.waste,
            "blocks_per_sequence": self.lanes.blocks_per_sequence,
            "bytes_per_sequence": self.sequence_bytes,
            "memory": self.memory,
            "n_blocks": self.n_blocks,
            "max_num_seqs": self.max_num_seqs,
        }
