"""The tokens of one layer and their budget: where a new one goes, and which makes room for it."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..attention.rope import Rerotation
from ..errors import CacheStateError, ConfigError
from ..policies import EvictionPolicy, Scored, Tokens
from ..policies.ranking import survivors, victim
from ..policies.scored import SURE
from .blocks import Blocks, takes
from .cutting import as_rectangle, cut_units
from .memory import LayerMemory
from .parts import Parts
from .ragged import RaggedStore, same_room
from .scorer import TokenScorer
from .sinks import place_sinks, restore_sinks
from .slots import note_fill, note_full, slots_of
from .step import Step
from .store import LayerStore, ring_at, ring_slots, storage_bytes


class LayerTokens:
    """What a layer holds, without attention.

    While a prompt is read (``budget is None``, or a new turn) tokens are appended; :meth:`compact` cuts them to the
    budget; after that each decode step replaces one token in place. They lie

    * in a rectangle (:class:`LayerStore`) while a prompt is read, and where all KV heads and rows keep as many;
    * else in a ragged store;
    * in blocks, which are made of either, for compiled steps. Asking for :attr:`store` ends them.
    """

    device: torch.device
    _store: LayerStore | RaggedStore
    _blocks: Blocks | None

    def __init__(
        self,
        index: int,
        window: int | None,
        policy: EvictionPolicy,
        rerotation: Rerotation | None = None,
        accelerated: bool = False,
        parts: Parts | None = None,
    ) -> None:
        self.index = index
        self.window = window
        self.policy = policy
        self.rerotation = rerotation
        self.accelerated = accelerated  # by Triton kernels
        self.parts = parts or Parts()
        self.clear()

    def clear(self) -> None:
        """Forget everything."""
        self.store = LayerStore()
        self.seen = 0
        self.budget: int | None = None
        self._ring: int | None = None
        self._lossy = False  # something was evicted
        self._may_have_holes = False  # slots may stay empty although later ones are in use
        self._has_padding = False  # among what was read and has not been cut yet
        self._sink_keys: torch.Tensor | None = None
        self._next_slot: torch.Tensor | None = None  # where the next token goes, if a kernel has found it already
        self._settled = False  # all columns of the budget are there and stay where they are
        self._full = False  # ... and are full for good
        self._had_holes = False  # ... before the empty columns came
        self._direct = True  # the model attends to the very tensors that it is handed
        self.scorer = TokenScorer(self.policy, self.window, self.parts) if isinstance(self.policy, Scored) else None

    @property
    def store(self) -> LayerStore | RaggedStore:
        """The tokens, as they lie but for compiled steps: these have them in blocks, which are left by asking."""
        if self._blocks is not None:
            self._ring = self._ring if self._blocks.ring is not None else None
            self._store, self._blocks, self._settled = self._blocks.store(), None, False
        return self._store

    @store.setter
    def store(self, store: LayerStore | RaggedStore) -> None:
        self._store, self._blocks = store, None

    @property
    def batch_size(self) -> int:
        return self.store.shape[0] or -1

    @property
    def is_ragged(self) -> bool:
        """Whether KV heads or rows hold different numbers of tokens."""
        return isinstance(self.store, RaggedStore)

    @property
    def reads_in_place(self) -> bool:
        """Whether attention can read the store: the model hands on to it what it was handed, as it was."""
        return self._direct

    @property
    def _in_place_now(self) -> bool:
        return self._blocks is not None or (self._direct and isinstance(self.store, RaggedStore))

    @property
    def _follows(self) -> bool:
        """Whether a decode step's attention becomes the tokens' scores."""
        return self.scorer is not None and self.scorer.policy.follows

    # ----------------------------------------------------------- taking tokens in

    def _insert(self, step: Step, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Put one token a row in its place, evicting one where the layer is full."""
        self._rescore_if_due()
        if isinstance(self.store, RaggedStore):
            note_full(self.store, self.seen)
            self._insert_ragged(self.store, step, keys, values)
            return
        budget, store = self._require_budget(), self.store
        slot: int | torch.Tensor
        positions: int | torch.Tensor
        if self._ring is not None:
            newest = max(step.start)
            if len(step.start) == 1:
                ring, positions = self._ring, newest
                slot = newest if newest < ring else ring + (newest - ring) % (budget - ring)
            else:
                slot, positions = step.ring_slots(self.device, self._ring, budget), step.newest(self.device)
            columns = max(store.used, min(budget, newest + 1))
            self._lossy = self._lossy or newest >= budget
        elif store.used < budget:
            slot, columns = store.used, store.used + 1
            positions = step.start[0] if len(step.start) == 1 else step.newest(self.device)
        else:
            positions, columns = step.newest(self.device), store.used
            slot = self._next_slot if self._next_slot is not None else self._victim(step, store, budget)
            self._lossy = True
        if store.reserve(columns, budget):
            step.cache._note_bytes(self)
        store.used = columns
        store.insert(slot, keys, values, positions, self._score_of_new(step, keys, values))
        self._place_sinks()

    def _insert_static(self, step: Step, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Like :meth:`_insert`, for a settled layer: the slot follows from tensors alone."""
        if self._blocks is not None:
            score = self._score_of_new(step, keys, values)
            self._blocks.insert(keys, values, step.positions(self.device), score)
            return
        store = self.store
        if isinstance(store, RaggedStore):
            self._insert_ragged(store, step, keys, values)
            return
        budget, positions = self._require_budget(), step.newest(self.device)
        if self._ring is not None:
            slot = ring_slots(positions, self._ring, budget)
        else:
            slot = self._next_slot if self._next_slot is not None else self._victim(step, store, budget)
        store.insert(slot, keys, values, positions, self._score_of_new(step, keys, values))

    def _insert_ragged(self, store: RaggedStore, step: Step, keys: torch.Tensor, values: torch.Tensor) -> None:
        positions = step.positions(self.device)
        if self._next_slot is None:
            slots = slots_of(store, self.policy, positions, self.window, None if step.static else step.start)
        else:
            slots = self._next_slot
        new = step.of_units(self.device, *store.shape)
        store.insert(slots, keys, values, new, self._score_of_new(step, keys, values))
        self._place_sinks()

    def _victim(self, step: Step, store: LayerStore, budget: int) -> torch.Tensor:
        """Slot of the token that makes room, int64 ``[B or 1, H or 1, 1]``."""
        dense = self._full if step.static else len(step.start) == 1 and self.window is None and not self._may_have_holes
        tokens = Tokens(store.used_positions(), step.newest(self.device), store.used_scores())
        return victim(self.policy, tokens, budget, self.window, dense=dense)

    def _score_of_new(self, step: Step, keys: torch.Tensor, values: torch.Tensor) -> float | torch.Tensor:
        """What :meth:`LayerStore.insert` is to put down for the new tokens."""
        if self.scorer is None:
            return 0.0
        sinks = step.static or min(step.start) < self.scorer.policy.sinks  # some of them may be
        return self.scorer.of_new(keys, values, step.positions(self.device), sinks=sinks)

    def hide(self, gone: torch.Tensor) -> None:
        """Drop the tokens at the positions ``gone``, bool ``[B or 1, positions]``; their slots are holes."""
        if self.store.is_empty:
            return
        self.store.hide(gone)
        self._lossy = self._may_have_holes = True
        self._settled, self._full, self._next_slot = False, False, None

    def note_holes(self) -> None:
        """Slots may be empty although all rows, or the only one, look full by their positions."""
        self._may_have_holes = True

    def select_rows(self, rows: torch.Tensor) -> None:
        self._next_slot = None
        if self.scorer is not None:
            self.scorer.select_rows(rows)
        if isinstance(self.store, RaggedStore):
            self._restore_sinks()
            before, self.store = self.store, self.store.selected(rows)
            self.store.note_policy(self.policy, self.window)
            if self.store.units is before.units and not self._may_have_holes:
                self.store.follow(before)
            self._place_sinks()
            return
        self.store.select_rows(rows)
        if self._sink_keys is not None:
            self._sink_keys = self._sink_keys.index_select(0, rows.to(self._sink_keys.device))

    # ------------------------------------------------------------- compiled steps

    @property
    def is_settled(self) -> bool:
        """Whether a compiled step finds its buffers."""
        return self._settled

    def settle(self, rows: int, room: int | None) -> None:
        """Make all columns that tokens will lie in now, empty where there is none yet, for compiled steps of so many
        rows; ``room``: tokens of a row, if there will be no more than that."""
        columns = self.budget if self.budget is None or room is None else min(self.budget, room)
        if self._settled and (self._holds(columns) or self.seen == 0):
            return
        store = self.store
        if store.is_empty:
            return
        if not isinstance(store, RaggedStore):
            self._had_holes, self._may_have_holes, self._lossy = self._may_have_holes, True, True
        if self._direct and takes(self.policy):
            self._next_slot = None
            self._blocks, self._store = Blocks(store, self.budget, columns, self.policy, self.window), LayerStore()
        elif isinstance(store, RaggedStore):
            store.settle()
        else:
            store.settle(self._require_budget() if columns is None else columns, rows)
        if self.scorer is not None:
            self.scorer.settle()
        self._settled = True

    def _holds(self, columns: int | None) -> bool:
        """Whether there is room for so many tokens."""
        if columns is None or (self._blocks is None and isinstance(self.store, RaggedStore)):
            return True
        return self.store.capacity >= columns if self._blocks is None else self._blocks.holds(columns)

    def note_full(self, step: Step) -> None:
        """Before a compiled step: whether every slot holds a token that is seen, so that no mask is needed."""
        self._rescore_if_due()
        if self._blocks is not None:
            return
        if isinstance(self.store, RaggedStore):
            note_full(self.store, self.seen)
            return
        in_window = self.window is None or self._ring is not None
        self._full = in_window and not self._had_holes and min(step.start) >= self.store.capacity

    # -------------------------------------------------------------------- cutting

    def rescore(self) -> None:
        """Score all tokens held, where the policy goes by that."""
        if self.scorer is not None:
            self.scorer.rescore(self.store, self.seen)

    def _rescore_if_due(self) -> None:
        if self.scorer is None or not self.scorer.is_due(self.seen):
            return
        if self._blocks is None:
            self.scorer.rescore(self.store, self.seen)
        else:  # they stay where they are
            held = self._blocks.store()
            self.scorer.rescore(held, self.seen)
            self._blocks.set_scores(held)

    def ranking(self, after: Sequence[int], budgets: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Scores fp32 and positions int64 of all tokens held, ``[B, H, N]`` twice; what the policy keeps in any case
        has infinite scores. ``after``: position of each row's next token, or of all rows'; ``budgets`` likewise."""
        held, scores = self.store.used_positions(), self.store.used_scores()
        if scores is None:
            raise ConfigError(f"policy {self.policy.name!r} has no scores to rank the tokens of all layers by")
        positions = held.expand(*self.store.shape, -1)
        spared = [self.policy.recent_tokens(budget) or 0 for budget in budgets]
        newest, recent = (torch.tensor(rows, device=held.device)[:, None, None] for rows in (after, spared))
        sure = (positions >= newest - recent) | (scores >= SURE)
        return scores.masked_fill(sure, torch.inf), positions

    def compact(
        self, budget: int | Sequence[Sequence[int]], newest: list[int], padded: bool, *, more: bool = False
    ) -> None:
        """Cut the layer to ``budget`` tokens, or for each row and KV head to so many; ``newest`` is the position of
        each row's last token. With ``more`` of the prompt to come, no room is made beyond what is held."""
        limit = self.window
        if not isinstance(budget, int):
            budget = [[tokens if limit is None else min(tokens, limit) for tokens in row] for row in budget]
            equal = same_room(budget)
            budget = budget if equal is None else equal
        elif limit is not None:
            budget = min(budget, limit)
        self._restore_sinks()
        self.rescore()
        self._has_padding &= more
        if isinstance(budget, int) and isinstance(self.store, LayerStore):
            self._compact_equal(self.store, budget, newest, padded)
        elif not self.store.is_empty:
            self._compact_ragged(budget, newest, more)
        if self.scorer is not None:
            self.scorer.note_heads(self.store)

    def _compact_ragged(self, budget: int | Sequence[Sequence[int]], newest: list[int], more: bool) -> None:
        """Cut to budgets that differ, or away from such."""
        rows, heads = self.store.shape
        room = [[budget] * heads] * rows if isinstance(budget, int) else budget
        if more:
            budget = room
        store = cut_units(self.store, room, newest, self.policy, self.window, more=more)
        self._lossy, self._may_have_holes, self._settled, self._next_slot = True, len(newest) > 1, False, None
        if isinstance(budget, int):
            self.store, self.budget = as_rectangle(store), budget
            self._ring, self._may_have_holes = ring_at(self.policy, self.window, budget), True
        else:
            self.store, self.budget, self._ring = store, None, None
            if not more:
                note_fill(store, [row + 1 for row in newest], self.seen)
        self._place_sinks()

    def _compact_equal(self, store: LayerStore, budget: int, newest: list[int], padded: bool) -> None:
        self.budget = budget
        self._ring = ring_at(self.policy, self.window, budget)
        fits = store.used <= budget and not padded and not self._lossy
        if fits:
            return
        # A ring slot belongs to certain positions: those evicted in an earlier turn leave it empty for a while. Nor do
        # tokens that left a native window leave anything behind, and rows that lost as much may have gained less.
        uneven = self._ring is not None or self.window is not None or len(newest) > 1
        self._may_have_holes |= self._lossy and uneven
        self._lossy = self._lossy or store.used > budget
        last = torch.tensor(newest, device=self.device)[:, None, None]
        tokens = Tokens(store.used_positions(), last, store.used_scores())
        index = survivors(self.policy, tokens, budget, self.window)
        if padded and len(newest) == 1:  # that leaves no holes in the only row, whose heads keep as many
            index = index[..., : int((index >= 0).sum(-1).max())]
        slots = columns = None
        if self._ring is not None:
            shape = torch.broadcast_shapes(index.shape[:2], tokens.positions.shape[:2])
            kept = tokens.positions.expand(*shape, -1).gather(-1, index.clamp(min=0).expand(*shape, -1))
            index = index.expand(*shape, -1)
            slots, columns = ring_slots(kept, self._ring, budget), min(budget, max(newest) + 1)
        store.keep(index, slots, columns)
        self._place_sinks()

    def _place_sinks(self) -> None:
        if self.rerotation is not None:
            ring = self._ring if self._lossy else None
            self._sink_keys = place_sinks(self.store, ring, self.rerotation, self._sink_keys)

    def _restore_sinks(self) -> None:
        restore_sinks(self.store, self._sink_keys)
        self._sink_keys = None

    def _require_budget(self) -> int:
        if self.budget is None:
            raise CacheStateError(f"layer {self.index} has no budget yet: nothing was read before this decode step")
        return self.budget

    # ------------------------------------------------------------------ reporting

    def tokens_held(self) -> int:
        """Tokens of the longest row and head."""
        return max((max(row) for row in self.heads_held()), default=0)

    def heads_held(self) -> list[list[int]]:
        """Tokens of each row and KV head."""
        if self._blocks is not None:
            return self._blocks.counts()
        if self.store.is_empty:
            return []
        counts = (self.store.used_positions() >= 0).sum(-1).expand(*self.store.shape)
        found: list[list[int]] = counts.tolist()
        return found

    def kv_bytes(self) -> int:
        """Bytes of the key and value storages, measured."""
        return self._buffers.kv_bytes()

    @property
    def _buffers(self) -> LayerStore | RaggedStore | Blocks:
        return self.store if self._blocks is None else self._blocks

    def trim(self) -> None:
        """Give spare room back."""
        if self._blocks is None:
            self.store.trim()

    def memory(self, rows: int) -> LayerMemory:
        seen = self.seen if self.window is None else min(self.seen, self.window)
        scorer = 0 if self.scorer is None else self.scorer.kept_bytes()
        buffers = self._buffers
        return LayerMemory(
            tokens=self.tokens_held(),
            bytes=buffers.kv_bytes(),
            index_bytes=buffers.index_bytes() + storage_bytes(self._sink_keys) + scorer,
            full_bytes=rows * seen * buffers.bytes_per_token,
        )
