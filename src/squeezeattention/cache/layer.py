"""One layer of the cache: its tokens, its budget, and attention over them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from transformers.cache_utils import CacheLayerMixin

from ..attention.accelerated import NextVictim, attend_accelerated, attend_one_accelerated
from ..attention.blocks import attend_one_by_blocks, attend_one_by_blocks_accelerated
from ..attention.core import Scoring, attend, attend_one, probabilities_of
from ..attention.ragged import attend_one_ragged, attend_one_ragged_accelerated, attend_ragged
from ..attention.replay import attend_replayed
from ..attention.rope import Rerotation
from ..attention.visibility import Visibility
from ..errors import CacheStateError, ConfigError, UnsupportedFeatureError, UnsupportedModelError
from ..policies import EvictionPolicy, Scored, Tokens
from ..policies.ranking import survivors, victim
from ..policies.scored import SURE
from ..signals import AttentionSample
from .blocks import Blocks, takes
from .cutting import as_rectangle, cut_units
from .memory import LayerMemory
from .parts import Parts
from .ragged import RaggedStore, same_room
from .scorer import TokenScorer
from .sinks import place_sinks, restore_sinks
from .slots import masks_of, note_fill, note_full, slots_of
from .step import ACTIVE, Step, current_step
from .store import LayerStore, ring_at, ring_slots, storage_bytes

if TYPE_CHECKING:
    from ..hf.replay import Replayed

#: Computes plain causal attention of a fresh prompt the way the model would: (query, key, value) -> output.
Native = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


class SqueezeLayer(CacheLayerMixin):
    """Tokens of one decoder layer.

    While a prompt is read (``budget is None``, or a new turn) tokens are appended; :meth:`compact` cuts them to
    the budget; after that each decode step replaces one token in place. transformers sees a layer that has
    *seen* everything and asks for the mask of new tokens only: which stored token is visible is decided here.

    Tokens lie in a rectangle while a prompt is read and where all KV heads and rows keep as many; else in a ragged
    store, whose keys attention reads where they are: what the model is handed then is its new tokens alone, which
    come back to :meth:`attend` as they were. A model that makes its keys out of what is cached (MLA) is handed a
    rectangle with holes.
    """

    is_compileable = False
    is_croppable = False
    is_sliding = False

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
        self.index = index  # not the base class's constructor: keys and values are the store's
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
        self._attended = False  # since the last update
        self._lossy = False  # something was evicted
        self._may_have_holes = False  # slots may stay empty although later ones are in use
        self._has_padding = False  # among what was read and has not been cut yet
        self._sink_keys: torch.Tensor | None = None
        self._next_slot: torch.Tensor | None = None  # where the next token goes, if a kernel has found it already
        self._settled = False  # all columns of the budget are there and stay where they are
        self._full = False  # ... and are full for good
        self._had_holes = False  # ... before the empty columns came
        self._handed: tuple[object, ...] = ()  # what the model was handed last
        self._direct = True  # the model attends to the very tensors that it is handed
        self.tells_heads_apart = True  # its attention's KV heads are those that are cached
        self.scorer = TokenScorer(self.policy, self.window, self.parts) if isinstance(self.policy, Scored) else None
        self._drops_gradients = False  # what a gradient would flow through was stored without its graph
        self.is_initialized = False

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

    # -------------------------------------------------- called by transformers

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        self.dtypes = key_states.dtype, value_states.dtype
        self.is_initialized = True

    @property
    def keys(self) -> torch.Tensor | None:
        """What the layer holds, ``[B, H, N, D]`` in no certain order (:meth:`SqueezeCache.kept_positions` has the
        positions); ``None`` before the first prompt. Read it, do not write.

        Raises :class:`UnsupportedFeatureError` where KV heads or rows hold different numbers of tokens.
        """
        return self._held()[0]

    @property
    def values(self) -> torch.Tensor | None:
        """As :attr:`keys`."""
        return self._held()[1]

    def _held(self) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        if self.store.is_empty:
            return None, None
        if isinstance(self.store, RaggedStore):
            raise UnsupportedFeatureError(
                f"layer {self.index} holds different numbers of tokens for its KV heads or rows, which is no tensor of "
                'keys; use budgets by layer, such as allocator="uniform", or cache.kept_positions(layer)'
            )
        return self.store.view()

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Take the new tokens in; return all keys and values that attention needs now."""
        step = current_step()
        if step is None or step.cache.layers[self.index] is not self:
            raise CacheStateError(
                "this cache was used outside the model it was made for; make a SqueezeCache for each model "
                "and pass it as past_key_values to that model's forward or generate"
            )
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        if key_states.requires_grad or value_states.requires_grad:
            self._drops_gradients = True
        if step.replayed is not None:
            return self._hand_over_replayed(key_states, value_states)
        if self.dtypes != (key_states.dtype, value_states.dtype):
            key_states, value_states = self._agree_on_dtypes(step, key_states, value_states)
        if step.static:  # what the host knows changes outside of the graph
            self._insert_static(step, key_states, value_states)
            return self._hand_over(key_states, value_states)
        if step.decoding:
            self._insert(step, key_states, value_states)
        else:
            step.cache._trim_before(self.index, step)
            self._settled, self._next_slot = False, None
            self._has_padding |= step.real is not None
            self.store = self.store.append(key_states, value_states, step.positions(key_states.device))
            step.cache._note_bytes(self)
        self.seen += step.length
        self._attended = False
        keys, values = self._hand_over(key_states, value_states)
        if not step.decoding:
            self._handed = _identity(keys, values)
        return keys, values

    def _agree_on_dtypes(
        self, step: Step, keys: torch.Tensor, values: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """New tokens and those that are held in the wider of their dtypes (autocast that begins or ends in the middle
        of a text), as joining them would give."""
        held = self.dtypes
        wide = torch.promote_types(held[0], keys.dtype), torch.promote_types(held[1], values.dtype)
        if wide != held and not step.static:
            self.dtypes = wide
            self.store = self.store.in_dtypes(*wide)
            if self._sink_keys is not None:
                self._sink_keys = self._sink_keys.to(wide[0])
            self._settled, self._next_slot = False, None
            step.cache._note_bytes(self)
        return keys.to(self.dtypes[0]), values.to(self.dtypes[1])

    def _hand_over(self, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What the model is to pass on to attention: see the class."""
        return (keys, values) if self._in_place_now else self.store.view()

    def _hand_over_replayed(self, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens of the prompt that come again are not stored; nor copied behind the others, if that can be spared."""
        if self._direct:
            return keys, values
        held_keys, held_values = self.store.view()
        return torch.cat([held_keys, keys], dim=2), torch.cat([held_values, values], dim=2)

    @property
    def reads_in_place(self) -> bool:
        """Whether attention can read the store: the model hands on to it what it was handed, as it was."""
        return self._direct

    @property
    def is_ragged(self) -> bool:
        """Whether KV heads or rows hold different numbers of tokens."""
        return isinstance(self.store, RaggedStore)

    @property
    def _follows(self) -> bool:
        """Whether a decode step's attention becomes the tokens' scores."""
        return self.scorer is not None and self.scorer.policy.follows

    @property
    def _in_place_now(self) -> bool:
        return self._blocks is not None or (self._direct and isinstance(self.store, RaggedStore))

    def check_handed(self, key: torch.Tensor) -> None:
        """Raise if attention is given other keys than the model was handed."""
        step = current_step()
        expected = self.store.used if step is None or not self._in_place_now else step.length
        if step is not None and step.replayed is not None:
            expected = step.length + (0 if self._direct else self.store.used)
        if key.shape[2] != expected:
            raise CacheStateError(
                f"layer {self.index} was given {key.shape[2]} keys where its cache holds {expected}: the model does "
                "not attend to what its cache returned"
            )

    def get_seq_length(self) -> int | torch.Tensor:
        """Columns seen so far (padding included), not columns stored; a tensor inside a compiled step."""
        step = current_step()
        return self.seen if step is None or not step.static else step.seen(self.device)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        step = current_step()
        if step is None and ACTIVE.around is not None and (cache := ACTIVE.around()) is not None:
            ACTIVE.asks = cache.layers[self.index] is self
        return query_length, self.seen if step is None or not step.static else 0

    def get_max_length(self) -> int:
        return -1

    get_max_cache_shape = get_max_length  # its name before transformers 5.15

    def reset(self) -> None:
        self.clear()

    def crop(self, *args: Any, **kwargs: Any) -> None:
        raise UnsupportedFeatureError(
            "a SqueezeCache cannot be cropped: evicted tokens are gone. Assisted and prompt-lookup decoding need "
            "cropping; use plain greedy, sampling or beam search"
        )

    def offload(self) -> None:
        raise UnsupportedFeatureError("a SqueezeCache does not offload its layers; it is small on purpose")

    prefetch = offload

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        self.select_rows(beam_idx)

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        self.select_rows(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        if not self.store.is_empty:
            rows = torch.arange(self.batch_size, device=self.device)
            self.select_rows(rows.repeat_interleave(repeats))

    @property
    def batch_size(self) -> int:
        return self.store.shape[0] or -1

    # ---------------------------------------------------------------- storing

    def note_holes(self) -> None:
        """Slots may be empty although all rows, or the only one, look full by their positions."""
        self._may_have_holes = True

    def hide(self, gone: torch.Tensor) -> None:
        """Drop the tokens at the positions ``gone``, bool ``[B or 1, positions]``; their slots are holes."""
        if self.store.is_empty:
            return
        self.store.hide(gone)
        self._lossy = self._may_have_holes = True
        self._settled, self._full, self._next_slot = False, False, None

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

    def _victim(self, step: Step, store: LayerStore, budget: int) -> torch.Tensor:
        """Slot of the token that makes room, int64 ``[B or 1, H or 1, 1]``."""
        dense = self._full if step.static else len(step.start) == 1 and self.window is None and not self._may_have_holes
        tokens = Tokens(store.used_positions(), step.newest(self.device), store.used_scores())
        return victim(self.policy, tokens, budget, self.window, dense=dense)

    def _insert_ragged(self, store: RaggedStore, step: Step, keys: torch.Tensor, values: torch.Tensor) -> None:
        positions = step.positions(self.device)
        if self._next_slot is None:
            slots = slots_of(store, self.policy, positions, self.window, None if step.static else step.start)
        else:
            slots = self._next_slot
        new = step.of_units(self.device, *store.shape)
        store.insert(slots, keys, values, new, self._score_of_new(step, keys, values))
        self._place_sinks()

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

    def rescore(self) -> None:
        """Score all tokens held, where the policy goes by that."""
        if self.scorer is not None:
            self.scorer.rescore(self.store, self.seen)

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

    def _rescore_if_due(self) -> None:
        if self.scorer is None or not self.scorer.is_due(self.seen):
            return
        if self._blocks is None:
            self.scorer.rescore(self.store, self.seen)
        else:  # they stay where they are
            held = self._blocks.store()
            self.scorer.rescore(held, self.seen)
            self._blocks.set_scores(held)

    def _score_of_new(self, step: Step, keys: torch.Tensor, values: torch.Tensor) -> float | torch.Tensor:
        """What :meth:`LayerStore.insert` is to put down for the new tokens."""
        if self.scorer is None:
            return 0.0
        sinks = step.static or min(step.start) < self.scorer.policy.sinks  # some of them may be
        return self.scorer.of_new(keys, values, step.positions(self.device), sinks=sinks)

    def _place_sinks(self) -> None:
        if self.rerotation is not None:
            ring = self._ring if self._lossy else None
            self._sink_keys = place_sinks(self.store, ring, self.rerotation, self._sink_keys)

    def _restore_sinks(self) -> None:
        restore_sinks(self.store, self._sink_keys)
        self._sink_keys = None

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

    def _require_budget(self) -> int:
        if self.budget is None:
            raise CacheStateError(f"layer {self.index} has no budget yet: nothing was read before this decode step")
        return self.budget

    # -------------------------------------------------------------- attention

    def attend(
        self,
        step: Step,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scoring: Scoring,
        native: Native | None,
    ) -> torch.Tensor:
        """Attention of the step's queries ``[B, Hq, q, D]`` over what :meth:`update` returned.

        ``key`` and ``value`` are as the model made them of that (MLA expands its latents first).
        ``native`` computes plain causal attention of a fresh prompt, where the model's own kernel can.
        """
        dtype = query.dtype
        if dtype != key.dtype and not torch.is_autocast_enabled(
            query.device.type
        ):  # tokens held are wider than new ones
            query = query.to(torch.promote_types(dtype, key.dtype))
        out = self._attend(step, query, key, value, scoring, native)
        if out.requires_grad and self._drops_gradients and not torch.compiler.is_dynamo_compiling():
            out.register_hook(refuse_gradient)
        return out if query.dtype == dtype else out.to(dtype)

    def _attend(
        self,
        step: Step,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scoring: Scoring,
        native: Native | None,
    ) -> torch.Tensor:
        if self._blocks is not None and step.static:
            return self._attend_by_blocks(step, self._blocks, query, scoring)
        store = self.store
        if step.replayed is not None:
            return self._attend_replayed(step.replayed, query, key, value, scoring)
        if not step.decoding and isinstance(store, LayerStore):
            self._direct = self._handed == _identity(key, value)
            self.tells_heads_apart = store.shape[1] in (1, key.shape[1])
            if self.scorer is not None and not self.tells_heads_apart:
                raise self._unscorable("it rearranges its KV heads after caching")
        if self.scorer is not None:
            self.scorer.see_queries(query, step.positions(query.device), scoring)
            if not self._direct and (not step.decoding or self.scorer.is_due(self.seen)):
                self.scorer.see_expanded(key, store)
        score_heads = None
        if self.policy.needs_scores or self._follows:
            self._check_scorable(key, store.shape[1])
            score_heads = store.shape[1] if self.policy.needs_scores or step.decoding else None
        if isinstance(store, RaggedStore) and self._in_place_now:
            return self._attend_in_place(step, store, query, scoring)
        heads_agree = score_heads in (None, key.shape[1]) and isinstance(store, LayerStore)
        if step.decoding and self.accelerated and heads_agree:
            scores = store.used_scores() if score_heads is not None else None
            if scores is not None and self._follows:
                scores = torch.zeros_like(scores)
            out, self._next_slot = attend_one_accelerated(
                query, key, value, self._decode_mask(step), scoring, scores, self._following(step)
            )
            if scores is not None:
                self._gather(scores, added=True)
            return out
        if step.decoding:
            out, mass = attend_one(query, key, value, self._decode_mask(step), scoring, score_heads=score_heads)
        else:
            visibility = Visibility(
                queries=step.positions(query.device),
                tokens=store.used_positions(),
                window=self.window,
                fresh=store.used == step.length,
                ragged=step.real is not None,
                ordered=len(step.start) == 1 and not self._may_have_holes and not self._has_padding,
            )
            self._show(step, query, key, value, visibility, scoring)
            if native is not None and visibility.is_causal and scoring.is_plain and score_heads is None:
                return native(query, key, value)
            if self.accelerated and score_heads is not None:
                out, mass = attend_accelerated(query, key, value, visibility, scoring, score_heads=score_heads)
            else:
                out, mass = attend(query, key, value, visibility, scoring, score_heads=score_heads)
        if mass is not None:
            self._gather(mass)
        return out

    def _attend_by_blocks(self, step: Step, blocks: Blocks, query: torch.Tensor, scoring: Scoring) -> torch.Tensor:
        """Attention of a compiled step."""
        positions = step.positions(query.device)
        if self.scorer is not None:
            self.scorer.see_queries(query, positions, scoring)
        attend_one = attend_one_by_blocks_accelerated if self.accelerated else attend_one_by_blocks
        return attend_one(query, blocks, positions, scoring, scores=self.policy.needs_scores)

    def _gather(self, mass: torch.Tensor, *, added: bool = False) -> None:
        """Take in the attention that tokens received, fp32 ``[B, H, N]``; ``added``: the scores have it already."""
        if self._follows and self.scorer is not None:
            self.scorer.follow(self.store, mass)
        elif not added:
            self.store.add_scores(mass)

    def _attend_in_place(self, step: Step, store: RaggedStore, query: torch.Tensor, scoring: Scoring) -> torch.Tensor:
        """Attention over a ragged store's own tokens."""
        positions, scores = step.positions(query.device), self.policy.needs_scores
        if step.decoding:
            return self._attend_one_in_place(store, query, positions, scoring)
        visibility = Visibility(
            positions, store.used_positions(), self.window, fresh=False, ragged=step.real is not None
        )
        if step.observe and step.cache.signal.wants_attention:
            self._show(step, query, *store.view(), visibility, scoring)
        return attend_ragged(query, store, visibility, scoring, scores=scores, accelerated=self.accelerated)

    def _attend_one_in_place(
        self, store: RaggedStore, query: torch.Tensor, positions: torch.Tensor, scoring: Scoring
    ) -> torch.Tensor:
        """The same of a decode step."""
        scores = self.policy.needs_scores or self._follows
        if self._follows and store.scores is not None:
            store.scores.zero_()
        if self.accelerated:
            out, self._next_slot = attend_one_ragged_accelerated(
                query, store, positions, self.window, scoring, scores=scores,
                recent=store.recent_of_unit if self.policy.needs_scores and self.window is None else None,
            )  # fmt: skip
        else:
            out = attend_one_ragged(query, store, masks_of(store, positions, self.window), scoring, scores=scores)
        if self._follows and (received := store.used_scores()) is not None:
            self._gather(received)
        return out

    def _attend_replayed(
        self, replayed: Replayed, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scoring: Scoring
    ) -> torch.Tensor:
        """Attention of tokens of the prompt that come again."""
        if self._direct:
            held_key, held_value = self.store.view()
        else:
            held_key, key = key[:, :, : self.store.used], key[:, :, self.store.used :]
            held_value, value = value[:, :, : self.store.used], value[:, :, self.store.used :]
        if not torch.is_autocast_enabled(query.device.type):  # as it may have been when the prompt was read
            held_key, held_value = held_key.to(query.dtype), held_value.to(value.dtype)
        device = query.device
        positions, columns = replayed.positions.to(device), replayed.columns.to(device)
        pieces, heads = columns.shape[1], self.store.shape[1]
        held = self.store.used_positions()
        if heads != key.shape[1]:  # the model has made more heads of what is cached
            held = held.repeat_interleave(key.shape[1] // heads, dim=1) if held.shape[1] > 1 else held
        out, received = attend_replayed(
            query, key, value, held_key, held_value, held, positions[::pieces], columns, self.window, scoring
        )
        replayed.see(self.index, received.unflatten(1, (heads, -1)).amax(dim=2))
        return out

    def _show(
        self,
        step: Step,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        visibility: Visibility,
        scoring: Scoring,
    ) -> None:
        """Let the signal see this attention, if it wants to."""
        if step.observe and step.cache.signal.wants_attention:
            with torch.no_grad():  # what a signal keeps must not hold a forward's graph
                step.cache.signal.see_attention(self.index, self._sample(query, key, value, visibility, scoring))

    def _following(self, step: Step) -> NextVictim | None:
        """What a kernel needs to find the slot that the next token takes; ``None``: it is not to be searched so."""
        store, budget = self.store, self._require_budget()
        recent = self.policy.recent_tokens(budget)
        if recent is None or self._follows or self._ring is not None or self.window is not None or store.used < budget:
            return None
        positions = store.used_positions()
        return NextVictim(positions, step.positions(positions.device)[:, 0] + 1, recent)

    def _check_scorable(self, key: torch.Tensor, score_heads: int) -> None:
        """Scores need one attention call a step, over heads that can be told apart."""
        if self._settled:  # seen to in the prompt
            return
        if self._attended or score_heads not in (1, key.shape[1]):
            raise self._unscorable(
                "it attends twice in a layer" if self._attended else "it rearranges its KV heads after caching"
            )
        self._attended = True

    def _unscorable(self, why: str) -> UnsupportedModelError:
        return UnsupportedModelError(
            f"policy {self.policy.name!r} cannot gather this model's attention: {why}; use "
            '"streaming_llm" or "sliding_window" with budgets by layer, such as allocator="uniform"'
        )

    def _sample(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, visibility: Visibility, scoring: Scoring
    ) -> AttentionSample:
        """What a signal may see of this layer's attention; nothing is computed before it asks."""
        return AttentionSample(
            queries=query,
            keys=key,
            values=value,
            query_positions=visibility.queries,
            key_positions=visibility.tokens,
            probabilities_of=functools.partial(probabilities_of, key, visibility, scoring),
        )

    def _decode_mask(self, step: Step) -> torch.Tensor | None:
        """Visible slots, bool ``[B or 1, H or 1, used]``; ``None`` if all are."""
        if step.static:
            all_seen = self._full
        else:
            rows_full = len(step.start) == 1 or min(step.start) + 1 >= self.store.used
            in_window = self.window is None or self._ring is not None
            all_seen = rows_full and in_window and not self._may_have_holes
        if all_seen:
            return None
        positions = self.store.used_positions()
        visible = positions >= 0
        if self.window is not None:
            visible &= positions > step.positions(positions.device)[:, None] - self.window
        return visible

    # -------------------------------------------------------------- reporting

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


def refuse_gradient(gradient: torch.Tensor) -> None:
    """A hook of what attention gave: part of the gradient is missing behind it."""
    raise UnsupportedFeatureError(
        "a backward pass through a SqueezeCache: keys and values are kept without their graph, so gradients would be "
        "wrong. Compute the loss without this cache (use_cache=False), or run the forward under torch.no_grad()"
    )


def _identity(keys: torch.Tensor, values: torch.Tensor) -> tuple[object, ...]:
    """What tells two tensors from any others, without keeping them alive."""
    return (keys.data_ptr(), keys.shape, keys.stride(), values.data_ptr(), values.shape, values.stride())
