"""The tokens of one layer: keys, values, positions and scores in flat buffers.

While a prompt is read, a store grows by :meth:`LayerStore.append`. Once the layer's budget is known it is cut
by :meth:`LayerStore.keep`; from then on a step writes one token by :meth:`LayerStore.insert` and nothing moves::

    column      0 ...                          used        capacity
    keys      [ s0 s1 s2 s3 | newest and older ....  | spare room ]    [B, H, capacity, D]
    positions [ 0  1  2  3  | 37 38 39 30 31 ... 36  | -1  -1  -1 ]    [B or 1, H or 1, capacity]

A *ring* store (sinks and the newest tokens) has a slot of its own for each position, ``slot(p) = p`` for a sink
and ``s + (p - s) mod (budget - s)`` otherwise: no head pointer, no search, and rows of different length (left
padding) are right without knowing of each other. Other policies overwrite the slot of their victim.
Positions have one row (or head) for all where all agree. Those that the host knows are put down when somebody reads
them: a step of a full ring asks for none.
"""

from __future__ import annotations

import torch

from ..policies import EvictionPolicy

#: Spare room when an unfilled layer runs out of columns: at least this many tokens, at most an eighth.
_GROWTH = 32
#: Positions that are put down one by one; more of them go to the device as a tensor, for which the host waits.
_FEW = 4


def without_graph(tensor: torch.Tensor) -> torch.Tensor:
    """Detached, if there is anything to detach it from."""
    return tensor.detach() if tensor.requires_grad else tensor


def mark_static(buffer: torch.Tensor) -> None:
    """Let a CUDA graph read and write it in place: graphs that write what they were handed are not recorded otherwise.

    Where it lies is not guarded: another prompt's buffers are recorded anew, but nothing is compiled again.
    """
    if buffer.device.type == "cuda":
        torch._dynamo.mark_static_address(buffer, guard=False)


def _copy_if_view(tensor: torch.Tensor) -> torch.Tensor:
    """Detach, and copy a slice of something bigger (fused qkv) so that the rest can be freed."""
    tensor = tensor.detach()
    if tensor.untyped_storage().nbytes() > tensor.numel() * tensor.element_size():
        return tensor.clone(memory_format=torch.contiguous_format)
    return tensor


def storage_bytes(*tensors: torch.Tensor | None) -> int:
    """Bytes of the distinct storages behind ``tensors``."""
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors if t is not None}
    return sum(storages.values())


def among(positions: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """Whether ``chosen``, bool ``[..., n]``, has each of ``positions``, int64 ``[..., N]``, -1 = none."""
    shape = torch.broadcast_shapes(positions.shape[:-1], chosen.shape[:-1])
    positions, chosen = positions.expand(*shape, -1), chosen.to(positions.device).expand(*shape, -1)
    return chosen.gather(-1, positions.clamp(0, chosen.shape[-1] - 1)) & (positions >= 0)


def ring_slots(positions: torch.Tensor, sinks: int, budget: int | torch.Tensor) -> torch.Tensor:
    """Slot of each position in a ring store (empty positions give a slot, too: mask them)."""
    return torch.where(positions < sinks, positions, sinks + (positions - sinks) % (budget - sinks))


def ring_at(policy: EvictionPolicy, window: int | None, budget: int) -> int | None:
    """Leading tokens with a slot of their own, or ``None`` where slots must be searched.

    A natively windowed layer has no use for a sink that its window has left behind. With room for the
    whole window a plain ring is just that; with less, the sinks must go as they leave it: search.
    """
    ring = policy.ring
    if not ring or window is None:
        return ring
    return 0 if budget >= window else None


class LayerStore:
    """Buffers of one layer. ``used`` columns hold tokens (or holes, position -1); see the module's diagram."""

    def __init__(self) -> None:
        self.keys: torch.Tensor | None = None
        self.values: torch.Tensor | None = None
        self.positions = None
        self.scores: torch.Tensor | None = None
        self.used = 0

    # ------------------------------------------------------------------ views

    @property
    def positions(self) -> torch.Tensor | None:
        """``[B or 1, H or 1, capacity]`` int64, -1 = hole."""
        if self._unwritten:
            self._write_positions()
        return self._positions

    @positions.setter
    def positions(self, positions: torch.Tensor | None) -> None:
        self._positions = positions
        self._unwritten: dict[int, int] = {}  # by slot: of all rows and heads

    def _write_positions(self) -> None:
        new, held = self._unwritten, self._positions
        if held is None:
            raise RuntimeError("an empty store has no positions")
        if held.is_inference() and not torch.is_inference_mode_enabled():
            held = held.clone()
        self.positions = held
        if len(new) <= _FEW:
            for slot, position in new.items():
                held.narrow(-1, slot, 1).fill_(position)
        else:
            slots, at = torch.tensor([list(new), list(new.values())], device=held.device)
            held.index_copy_(-1, slots, at.expand(*held.shape[:2], -1))

    @property
    def is_empty(self) -> bool:
        return self.keys is None

    @property
    def capacity(self) -> int:
        return 0 if self.keys is None else self.keys.shape[2]

    def view(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys ``[B, H, used, D]`` and values ``[B, H, used, Dv]`` (views)."""
        if self.keys is None or self.values is None:
            raise RuntimeError("an empty store has no view")
        if self.used == self.capacity:
            return self.keys, self.values
        return self.keys[:, :, : self.used], self.values[:, :, : self.used]

    def used_positions(self) -> torch.Tensor:
        """``[B or 1, H or 1, used]`` int64, -1 = hole."""
        positions = self._held_positions
        return positions if self.used == self.capacity else positions[..., : self.used]

    def used_scores(self) -> torch.Tensor | None:
        """``[B, H, used]`` fp32, or ``None``."""
        if self.scores is None or self.used == self.capacity:
            return self.scores
        return self.scores[..., : self.used]

    @property
    def bytes_per_token(self) -> int:
        """Bytes of one token's key and value in this layer, for one sequence."""
        if self.keys is None or self.values is None:
            return 0
        heads = self.keys.shape[1]
        return heads * (
            self.keys.shape[3] * self.keys.element_size() + self.values.shape[3] * self.values.element_size()
        )

    def kv_bytes(self) -> int:
        """Bytes of the key and value storages, measured."""
        return storage_bytes(self.keys, self.values)

    def index_bytes(self) -> int:
        """Bytes of positions and scores, measured."""
        return storage_bytes(self.positions, self.scores)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and KV heads; ``(0, 0)`` of an empty store."""
        return (0, 0) if self.keys is None else (self.keys.shape[0], self.keys.shape[1])

    def take(self, units: torch.Tensor, columns: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values ``[n, D]`` of units' (``row * heads + head``) columns, int64 ``[n]`` twice."""
        keys, values = self.view()
        rows, heads = units // keys.shape[1], units % keys.shape[1]
        return keys[rows, heads, columns], values[rows, heads, columns]

    # ----------------------------------------------------------------- prompt

    def append(self, keys: torch.Tensor, values: torch.Tensor, positions: torch.Tensor) -> LayerStore:
        """This store with ``q`` tokens more behind the others: ``[B, H, q, D]`` twice, positions ``[B or 1, q]``."""
        keys, values = _copy_if_view(keys), _copy_if_view(values)
        positions = positions[:, None, :]
        if self.keys is None:  # positions are one tensor for all layers, which each will write to
            self.keys, self.values, self.positions = keys, values, positions.clone()
        else:
            old_keys, old_values = self.view()
            old_positions = self.used_positions()
            rows = max(old_positions.shape[0], positions.shape[0])
            heads = old_positions.shape[1]
            self.keys = torch.cat([old_keys, keys], dim=2)
            self.values = torch.cat([old_values, values], dim=2)
            self.positions = torch.cat(
                [
                    old_positions.expand(rows, heads, -1),
                    positions.expand(rows, heads, -1),
                ],
                dim=-1,
            )
        self.used += keys.shape[2]
        if self.scores is not None:
            self.scores = torch.nn.functional.pad(self.scores, (0, self.used - self.scores.shape[-1]))
        return self

    def add_scores(self, scores: torch.Tensor) -> None:
        """Add ``[B, H, used]`` fp32 to the running sums (started at zero)."""
        scores = without_graph(scores)  # a forward with gradients on must not hold its graph here
        held = self.used_scores()
        if held is None:
            self.scores = scores
        else:
            held.add_(scores)

    def set_scores(self, scores: torch.Tensor) -> None:
        """Scores fp32 ``[B, H, used]`` instead of those there are; in place, where there are any."""
        if self.scores is None or self.scores.shape[-1] != self.capacity:
            self.scores = scores.new_zeros(*scores.shape[:2], self.capacity)
        self.scores[..., : self.used] = scores

    def keep(self, index: torch.Tensor, slots: torch.Tensor | None = None, columns: int | None = None) -> None:
        """Keep only the tokens ``index`` (``[B or 1, H or 1, m]`` columns, -1 = none), freeing the rest.

        ``slots`` (same shape) says where each goes; without it they stay in the order given. ``columns`` is
        the new width (``m`` if not given).
        """
        keys, values = self.view()
        positions = self.used_positions()
        source = index
        if slots is not None or columns not in (None, index.shape[-1]):
            width = columns if columns is not None else index.shape[-1]
            source = torch.full((*index.shape[:2], width + 1), -1, dtype=index.dtype, device=index.device)
            if slots is None:
                source[..., : index.shape[-1]] = index
            else:  # the extra column swallows the absent ones
                source.scatter_(-1, slots.masked_fill(index < 0, width), index)
            source = source[..., :width]
        hole, take = source < 0, source.clamp(min=0)
        self.keys = _gather_tokens(keys, take)
        self.values = _gather_tokens(values, take)
        shape = (
            max(positions.shape[0], take.shape[0]),
            max(positions.shape[1], take.shape[1]),
        )
        self.positions = positions.expand(*shape, -1).gather(-1, take.expand(*shape, -1)).masked_fill(hole, -1)
        if self.scores is not None:
            batch, heads = self.scores.shape[:2]
            self.scores = self.scores.gather(-1, take.expand(batch, heads, -1)).masked_fill(hole, 0.0)
        self.used = source.shape[-1]

    # ----------------------------------------------------------------- decode

    def reserve(self, columns: int, most: int) -> bool:
        """Make room for ``columns`` columns; spare room never goes past ``most``. True if anything moved."""
        if columns <= self.capacity:
            return False
        wanted = min(most, columns + max(_GROWTH, columns // 8))
        extra = max(wanted, columns) - self.used
        keys, values = self.view()
        pad = torch.nn.functional.pad
        self.keys = pad(keys, (0, 0, 0, extra))
        self.values = pad(values, (0, 0, 0, extra))
        self.positions = pad(self.used_positions(), (0, extra), value=-1)
        if self.scores is not None:
            self.scores = pad(self.scores[..., : self.used], (0, extra))
        return True

    def in_dtypes(self, keys: torch.dtype, values: torch.dtype) -> LayerStore:
        """This store with keys and values of these dtypes."""
        if self.keys is not None and self.values is not None:
            self.keys, self.values = self.keys.to(keys), self.values.to(values)
        return self

    def trim(self) -> None:
        """Give spare room back."""
        if self.used < self.capacity:
            (keys, values), positions, scores = self.view(), self.used_positions(), self.used_scores()
            self.keys, self.values, self.positions = keys.clone(), values.clone(), positions.clone()
            self.scores = None if scores is None else scores.clone()

    def settle(self, columns: int, rows: int) -> None:
        """Make ``columns`` columns, all in use (holes where there is no token), with positions of their own for each
        of ``rows`` rows and, if scores tell heads apart, each head. From now on :meth:`insert` moves nothing."""
        if self.keys is None or self.positions is None:
            raise RuntimeError("settle needs a store that holds a prompt")
        self.reserve(columns, columns)
        self.used = self.capacity
        heads = self.positions.shape[1] if self.scores is None else self.keys.shape[1]
        rows = max(rows, self.positions.shape[0]) if self.scores is None else self.keys.shape[0]
        self.positions = self.positions.expand(rows, heads, -1).contiguous()
        for buffer in (self.keys, self.values, self.positions, self.scores):
            if buffer is not None:
                mark_static(buffer)

    def insert(
        self,
        slot: int | torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        positions: int | torch.Tensor,
        score: float | torch.Tensor = 0.0,
    ) -> None:
        """Write one token a row in place: ``[B, H, 1, D]`` twice, and its score, one for all or ``[B, H, 1]``.

        ``slot`` is a column for all, or int64 ``[B or 1, H or 1, 1]``; ``positions`` are int64 ``[B or 1, 1, 1]``, or
        one for all where the slot is.
        """
        if self.keys is None or self.values is None:
            raise RuntimeError("insert needs a store that holds a prompt")
        keys, values = without_graph(keys), without_graph(values)
        if isinstance(slot, int):
            self.keys.narrow(2, slot, 1).copy_(keys)
            self.values.narrow(2, slot, 1).copy_(values)
            if isinstance(positions, int):
                self._unwritten[slot] = positions
            else:
                self._held_positions.narrow(-1, slot, 1).copy_(positions)
            if self.scores is not None:
                column = self.scores.narrow(-1, slot, 1)
                _ = column.copy_(score) if isinstance(score, torch.Tensor) else column.fill_(score)
            return
        if isinstance(positions, int):
            raise TypeError("a slot in a tensor wants positions in a tensor")
        held = self._held_positions
        if slot.numel() == 1:
            column = slot.view(1)
            self.keys.index_copy_(2, column, keys)
            self.values.index_copy_(2, column, values)
            held.index_copy_(-1, column, positions.expand(*held.shape[:2], 1))
            if self.scores is not None:
                if isinstance(score, torch.Tensor):
                    self.scores.index_copy_(-1, column, score)
                else:
                    self.scores.index_fill_(-1, column, score)
            return
        batch, heads, _, width = keys.shape
        index = slot[..., None].expand(batch, heads, 1, width)
        self.keys.scatter_(2, index, keys)
        if values.shape[-1] != width:
            index = slot[..., None].expand(batch, heads, 1, values.shape[-1])
        self.values.scatter_(2, index, values)
        shape = (max(held.shape[0], slot.shape[0]), max(held.shape[1], slot.shape[1]))
        if held.shape[:2] != shape:
            self.positions = held = held.expand(*shape, -1).contiguous()
        held.scatter_(-1, _expanded(slot, *shape), _expanded(positions, *shape))
        if self.scores is not None:
            _put_scores(self.scores, _expanded(slot, batch, heads), score)

    @property
    def _held_positions(self) -> torch.Tensor:
        """All positions; of a store that holds something."""
        positions = self.positions
        if positions is None:
            raise RuntimeError("an empty store has no positions")
        return positions

    # ------------------------------------------------------------------- rows

    def hide(self, gone: torch.Tensor) -> None:
        """Make holes of the tokens at the positions ``gone``, bool ``[B or 1, positions]``."""
        if self.positions is None:
            return
        self.positions = self.positions.masked_fill(among(self.positions, gone[:, None]), -1)

    def select_rows(self, rows: torch.Tensor) -> None:
        """Reorder or repeat rows: ``rows`` holds indices into the batch."""
        if self.keys is None or self.values is None or self.positions is None:
            return
        rows = rows.to(self.keys.device)
        self.keys = self.keys.index_select(0, rows)
        self.values = self.values.index_select(0, rows)
        if self.positions.shape[0] > 1:
            self.positions = self.positions.index_select(0, rows)
        if self.scores is not None:
            self.scores = self.scores.index_select(0, rows)


def _expanded(of_tokens: torch.Tensor, rows: int, heads: int) -> torch.Tensor:
    """``[B or 1, H or 1, 1]`` as ``[rows, heads, 1]``."""
    return of_tokens if of_tokens.shape[:2] == (rows, heads) else of_tokens.expand(rows, heads, 1)


def _put_scores(scores: torch.Tensor, slots: torch.Tensor, score: float | torch.Tensor) -> None:
    if isinstance(score, torch.Tensor):
        scores.scatter_(-1, slots, score)
    else:
        scores.scatter_(-1, slots, score)


def _gather_tokens(source: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """``source`` [B, H, N, D] at ``index`` [B or 1, H or 1, m] along N, contiguous."""
    if index.shape[:2] == (1, 1):
        return source.index_select(2, index[0, 0])
    batch, heads, _, width = source.shape
    index = index.expand(batch, heads, -1)[..., None].expand(-1, -1, -1, width)
    return source.gather(2, index)
