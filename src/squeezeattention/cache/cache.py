"""SqueezeCache: a transformers cache that is squeezed in two dimensions, layers and tokens."""

from __future__ import annotations

import contextlib
import copy
import os
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from transformers.cache_utils import Cache

from ..allocators import Allocator, resolve_allocator
from ..attention.rope import Rerotation
from ..defaults import DEFAULT_BUDGET, DEFAULT_POLICY, MIN_TOKENS
from ..errors import (
    BudgetError,
    CacheStateError,
    ConfigError,
    InputError,
    SqueezeError,
    UnsupportedFeatureError,
    UnsupportedModelError,
)
from ..hf import compat
from ..hf.attachment import attach
from ..hf.parts import parts_for
from ..hf.replay import Replayed, Text, replay_prompt, replay_sample
from ..kernels.choosing import checked
from ..plan import Budget, BudgetPlan
from ..policies import EvictionPolicy, StreamingLLM
from ..signals import Replay, Signal, resolve_signal
from .checks import check_holes, check_rows, check_same_text, read_mask
from .columns import Columns
from .layer import SqueezeLayer
from .memory import MemoryReport
from .options import (
    check_has_scores,
    check_used,
    checked_compile,
    checked_new_tokens,
    checked_prefill,
    checked_tokens,
    chosen_kernels,
    policy_with,
)
from .planning import ENDLESS, Planner
from .saving import load_cache, save_cache
from .static import StaticDecode
from .step import Final, Positions, Step


class SqueezeCache(Cache):
    """KV cache whose layers hold different numbers of tokens, chosen per prompt (SqueezeAttention, ICLR 2025).

    Pass it as ``past_key_values`` to ``model.generate(...)`` or ``model(...)``; from transformers 5.24 on ``cache``
    is its name. The prompt is attended to exactly; at its end every layer is cut to its budget, and each decode step
    keeps it there.

    A prompt ends with the call of ``generate`` that reads it, before the first single-token forward after it,
    or when :meth:`compact` is called or anything is asked of the cache (:attr:`plan`, :meth:`lengths`, ...);
    forwards of several tokens before that are chunks of one prompt. More tokens later are a new turn: they
    see what was kept, and the layers are planned again at the turn's end. :meth:`reset` makes it as new.

    Args:
        model: a decoder-only transformers model. It is attached to while caches of it are alive; any other
            cache on it works as before.
        budget: int = tokens per layer on average; float in (0, 1] = share of the prompt (of each row's own; 1.0
            holds the whole text, answers included); text such as "512MiB" = bytes
            of keys and values per sequence. ``None`` is a share of 0.2.
        policy: which tokens stay: "echo" (the default), "h2o", "streaming_llm", "sliding_window", those of other papers
            (``squeezeattention.POLICIES``), or an :class:`EvictionPolicy`.
        allocator: how the cache is divided among layers and KV heads; ``None`` is the policy's own ("global" for "echo"
            and "kvzip", "probe" for all others), or "squeeze", the paper's, where its parameters ``p`` or ``outliers``
            are given. A name (``squeezeattention.ALLOCATORS``), an :class:`Allocator`, a :class:`BudgetPlan`, or a list
            of tokens per layer, or per layer a list of tokens per KV head (these fix the budgets: give no ``budget``).
        p: share of the average budget that the least important group keeps, in (0, 1].
        signal: what tells important layers and heads from others (by name or an object); ``None`` = the allocator's;
            of several the first decides, the others are there for :meth:`twin`
            own, which is the paper's "cosine" for "squeeze". Rules that measure nothing take none.
        outliers: "keep" (the paper) or "clamp", for the "squeeze" family.
        positions: "original" or "cache" (re-rotated sinks, StreamingLLM on RoPE models).
        sinks: leading tokens that StreamingLLM keeps (default 4).
        new_tokens: how many tokens will be generated, if known (``generate`` tells): no layer is given more
            than it can use.
        min_tokens: a share of a short prompt gives no fewer tokens a layer on average than this; the plan says when.
            Budgets in tokens and bytes mean what they say.
        prefill: "exact": every prompt token sees all before it, as in the paper. "bounded": the prompt goes in
            pieces of ``chunk_size`` tokens; after each the layers are planned by what was measured so far and cut,
            so that no more than the budget and one piece is ever held, however long the prompt.
        chunk_size: tokens of a piece, with ``prefill="bounded"``.
        compile: decode steps go through ``torch.compile`` (on a GPU: CUDA graphs), in buffers that hold all columns
            of the budget from the first step on. A model that cannot be compiled decodes as without, and a
            :class:`~squeezeattention.errors.CompileWarning` says why, once for each cache; with "strict" it is a
            :class:`~squeezeattention.errors.CompileError` instead.
        kernels: who computes decoding and H2O's scores. "triton": this library's own kernels, on a CUDA device (extra
            ``triton``); "torch": plain torch; "auto": "triton" where it is installed and the kernels serve the model
            and its device, else "torch". :attr:`kernels` says what it came to.

    Raises:
        ConfigError, BudgetError, UnknownNameError: an argument cannot work.
        UnsupportedModelError: the model cannot be carried exactly.
        PlanError: the plan is of another model.
        MissingExtraError: ``kernels="triton"`` without Triton.

    Reading and decoding raise :class:`KernelError` where a kernel cannot be compiled or launched.
    """

    layers: list[SqueezeLayer]

    def __init__(
        self,
        model: nn.Module,
        budget: int | float | str | Budget | None = None,
        policy: str | EvictionPolicy = DEFAULT_POLICY,
        allocator: str | Allocator | BudgetPlan | Sequence[int] | Sequence[Sequence[int]] | None = None,
        p: float | None = None,
        *,
        signal: str | Signal | Sequence[str | Signal] | None = None,
        outliers: str | None = None,
        positions: str | None = None,
        sinks: int | None = None,
        new_tokens: int | None = None,
        min_tokens: int = MIN_TOKENS,
        prefill: str = "exact",
        chunk_size: int = 512,
        compile: bool | str = False,
        kernels: str = "auto",
    ) -> None:
        self._budget = Budget.parse(DEFAULT_BUDGET if budget is None else budget)
        self.policy = policy_with(policy, positions=positions, sinks=sinks)
        self.allocator = resolve_allocator(allocator, p=p, outliers=outliers, policy=self.policy)
        check_used(self.allocator, budget=budget, signal=signal)
        # A copy: its sums are this cache's own.
        self.signal = copy.deepcopy(resolve_signal(self.allocator.signal if signal is None else signal))
        check_has_scores(self.policy, self.signal)
        self._new_tokens = checked_new_tokens(new_tokens)
        min_tokens = checked_tokens("min_tokens", min_tokens)
        self.prefill = checked_prefill(prefill)
        self.chunk_size = checked_tokens("chunk_size", chunk_size)
        self.compile = checked_compile(compile, self.policy)
        self._uncompiled: str | None = None  # why steps that were to be compiled are not
        self._kernels_asked = checked(kernels)
        if self._budget.kind == "tokens" and self._budget.value < self.policy.minimum and not self._is_fixed:
            raise BudgetError(
                f"a budget of {self._budget.value} tokens a layer is too small: {self.policy.name} needs at least "
                f"{self.policy.minimum}"
            )
        self._lease(model)
        try:
            layers = self._make_layers(min_tokens)
        except BaseException:
            self._release()
            raise
        super().__init__(layers=layers)
        self._clear()

    def _make_layers(self, min_tokens: int) -> list[SqueezeLayer]:
        """The layers for the model's layout, once it is sure that plan and options fit it."""
        layout = self._attachment.layout
        self.allocator = self.allocator.for_model(self._attachment.model)
        plan = self.allocator.allocate(None, layout.n_layers).plan if self._is_fixed else None
        if plan is not None:
            plan.check_model(layout.fingerprint, layout.n_layers)
        rerotation = None
        if isinstance(self.policy, StreamingLLM) and self.policy.positions == "cache":
            if any(layout.windows):
                raise UnsupportedModelError('positions="cache" is for models without native sliding windows')
            rerotation = Rerotation.build(layout.decoder, layout.attentions[0], layout.config)
        self._planner = Planner(
            self._budget, self.allocator, self.policy, self.signal.name, layout.windows, layout.fingerprint,
            min_tokens,
        )  # fmt: skip
        parts = parts_for(self.policy, layout)
        if self.observes_hidden:
            _ = self._attachment.spots  # raises where attention cannot be told from the rest
        self._kernels = chosen_kernels(self._kernels_asked, layout)
        return [
            SqueezeLayer(index, window, self.policy, rerotation, self._kernels.accelerated, own)
            for index, (window, own) in enumerate(zip(layout.windows, parts, strict=True))
        ]

    def _lease(self, model: nn.Module) -> None:
        """Attach to the model for as long as this cache lives."""
        self._attachment = attach(model)
        if self.prefill == "bounded" or self.compile:
            self._attachment.stand_in_front()
        self._release = weakref.finalize(self, self._attachment.release)
        self._detached = False

    @property
    def kernels(self) -> str:
        """Who computes decoding and H2O's scores: "triton" or "torch".

        ``repr`` also says why, where "auto" came to torch on a GPU.
        """
        return self._kernels.name

    @property
    def _is_fixed(self) -> bool:
        return not self.allocator.needs_signal and self.allocator.name == "fixed"

    @property
    def _keeps_all(self) -> bool:
        """Whether nothing is ever evicted, however long the text gets."""
        return self._budget.is_whole and not self._is_fixed

    def _clear(self) -> None:
        for layer in self.layers:
            layer.clear()
        self._plans: list[BudgetPlan] = []  # of each row; one entry while all rows have the same
        self._next: list[int] = [0]  # position of each row's next token; one entry while all rows agree
        self._columns = Columns()
        self._padded = False
        self._open = False  # a prompt is being read
        self._first_turn = True
        self._in_prefill = False  # ... and its end will be told
        self._looked_over = False  # ... and where it is padded was looked at
        self._told: int | None = None  # columns of all text when the prompt is over, if a ``generate`` call reads it
        self._virtual = 0  # ... and those that it did not know of
        self._failed: str | None = None
        self._expected: int | None = None
        self._text: torch.Tensor | None = None  # what ``generate`` has read and written, [batch, columns], if it told
        self._totals: list[int] | None = (
            None  # tokens of each row (or of the longest) when the prompt is over, if known
        )
        self._cramped = False  # ... but no room beyond what was held then
        self._is_cut = False  # all layers have budgets that go by everything that was read
        self._trimmed = 0  # leading layers that were cut while the prompt's last piece was still being read
        self._decided = 0  # ... to the plan's own budgets
        self._rows = 0
        self._inference = False  # something was written under torch.inference_mode()
        self._precision: tuple[object, ...] = ()  # of the last forward
        self._static = StaticDecode()
        self._at = Positions()
        self._replayed: Replayed | None = None  # what the forward under way repeats, if it does
        self._reading: list[Text] = []  # what was given since the last cut, if it is to be repeated
        self._from: list[int] = [0]  # where it begins in each row
        self._cuts = 0
        self._held = [0] * len(self.layers)
        self._peak = 0
        self.signal.start(len(self.layers))

    # ---------------------------------------------------------------- reading

    @property
    def plan(self) -> BudgetPlan | None:
        """The plan of the current prompt; ``None`` before the first one. Of a batch whose rows have the same budgets,
        that of the longest row.

        Raises :class:`CacheStateError` where the rows of a batch have budgets of their own: see :attr:`plans`.
        """
        plans = self.plans
        if not plans:
            return None
        first = plans[0]
        if any((other.budgets, other.head_budgets) != (first.budgets, first.head_budgets) for other in plans):
            raise CacheStateError("each row of this batch has a plan of its own: cache.plans has them all")
        return max(plans, key=lambda plan: plan.prompt_tokens or 0)

    @property
    def plans(self) -> list[BudgetPlan]:
        """Each row's plan, which is the one that it would have alone; empty before the first prompt."""
        self.compact()
        plans = self._plans
        if self._keeps_all and plans:
            rows = max(len(plans), len(self._next))
            held = self._next * rows if len(self._next) == 1 else self._next
            plans = [
                self._planner.grown(plan, tokens)
                for plan, tokens in zip(plans * rows if len(plans) == 1 else plans, held, strict=True)
            ]
        return plans * self._rows if len(plans) == 1 else list(plans)

    def lengths(self) -> list[int]:
        """Tokens that each layer holds now (of the longest row and KV head)."""
        self.compact()
        return [layer.tokens_held() for layer in self.layers]

    def head_lengths(self, row: int | None = None) -> list[list[int]]:
        """Tokens that each KV head of each layer holds now, of one row or (``None``) of the longest row.

        Raises :class:`ConfigError` for a row that does not exist.
        """
        self.compact()
        held = [layer.heads_held() for layer in self.layers]
        if row is None:
            return [[max(heads) for heads in zip(*rows, strict=True)] for rows in held]
        if not -self._rows <= row < self._rows:
            raise ConfigError(f"row {row} does not exist: the cache holds {self._rows}")
        return [rows[row] for rows in held]

    def kept_positions(self, layer: int) -> torch.Tensor:
        """Original positions that a layer holds: int64 ``[batch, kv_heads, slots]``, ascending.

        Position 0 is a row's first real token; -1 marks an empty slot (they come first).
        """
        self.compact()
        if not -len(self.layers) <= layer < len(self.layers):
            raise ConfigError(f"layer {layer} does not exist: the model has {len(self.layers)} layers")
        store = self.layers[layer].store
        if store.is_empty:
            return torch.empty(0, 0, 0, dtype=torch.int64)
        positions = store.used_positions().expand(*store.shape, -1).sort(dim=-1).values
        return positions[..., (positions >= 0).any(0).any(0)].clone()

    def memory(self) -> MemoryReport:
        """Bytes held, at peak, and of a full cache; measured from the storages."""
        self.compact()
        self._leave_inference_mode()
        for layer in self.layers:  # room for tokens that may never come would count as theirs
            layer.trim()
            self._held[layer.index] = layer.kv_bytes()
        return MemoryReport(tuple(layer.memory(self._rows) for layer in self.layers), self._peak)

    # -------------------------------------------------------------- lifecycle

    def compact(self) -> None:
        """End the prompt that is being read, if any: plan it and cut every layer to its budget."""
        if not self._open or self._in_prefill or self._failed:
            return
        self._leave_inference_mode()
        if not self._is_cut:
            self._cut(self._next)
        elif self._cramped:
            for layer in (layer for layer in self.layers if layer.is_ragged):
                self._cut_layer(layer, self._plans, self._next, padded=self._padded)
            self._cramped = False
        self._open = self._first_turn = False
        self._totals = None
        self.signal.end_turn()

    def _cut(self, prompt_tokens: Sequence[int], *, more: bool = False) -> None:
        """Plan each row for a prompt of so many tokens, by what was seen of it so far, and cut every layer.

        With ``more`` to come, no room is made beyond what is held.
        """
        self._replay()
        try:
            values = None
            if self._observes:
                sizes = [layer.store.bytes_per_token for layer in self.layers]
                bases = [self._planner.base_tokens(tokens, sizes) for tokens in prompt_tokens]
                self.signal.see_budget(bases)
                if self.signal.wants_scores:
                    for layer in self.layers:
                        layer.rescore()
                        self.signal.see_scores(layer.index, *layer.ranking(self._next, bases))
                values = self.signal.values()
                if not isinstance(values[0], Sequence):  # one that speaks for all rows
                    values = [values] * self._rows
            plans = self._make_plans(values, prompt_tokens, self.get_seq_length(), self._next)
        except SqueezeError:
            self._failed = "its prompt could not be planned"
            raise
        for layer in self.layers[self._decided :]:
            self._cut_layer(layer, plans, self._next, padded=self._padded, more=more)
        self._plans, self._trimmed, self._decided, self._is_cut, self._cramped = plans, 0, 0, True, more

    def _replay(self) -> None:
        """Let the model repeat some of what was read since the last cut, or all, if somebody wants to see that.

        Needs hardly change along a text: of the pieces of a bounded prefill the first, second, fourth ... are asked for
        the signal's sample.
        """
        if not self._wants_replay:
            return
        self._cuts += 1
        if self._reading:
            read = self._reading, self._from, self._next
            if self._prober is not None and self._cuts & (self._cuts - 1) == 0:
                replay_sample(self, self._prober, *read)
            if self.policy.replays:
                replay_prompt(self, *read)
        self._reading = []

    @property
    def _prober(self) -> Replay | None:
        """The signal, if it wants to see some of the prompt repeated."""
        if not self._observes:
            return None
        return next((one for one in self.signal.parts if isinstance(one, Replay)), None)

    @property
    def _wants_replay(self) -> bool:
        """Whether the prompt's tokens will be asked for again at its end."""
        return self.policy.replays > 0 or self._prober is not None

    def _make_plans(
        self, values: Sequence[Any] | None, prompt_tokens: Sequence[int], columns: int, after: Sequence[int]
    ) -> list[BudgetPlan]:
        """A plan for each row, or one for all; ``after``: positions of the rows' next tokens after so many columns."""
        sizes = [layer.store.bytes_per_token for layer in self.layers]
        made: dict[tuple[int, int | None], BudgetPlan] = {}
        plans = []
        for row in range(max(len(prompt_tokens), 0 if values is None else len(values))):
            tokens, following = (rows[row if len(rows) > 1 else 0] for rows in (prompt_tokens, after))
            total = self._expected_tokens(tokens, columns - following)
            plan = made.get((tokens, total)) if values is None else None
            if plan is None:
                plan = made[tokens, total] = self._planner.plan(
                    signal_values=None if values is None else values[row], prompt_tokens=tokens, total_tokens=total,
                    bytes_per_token=sizes,
                )  # fmt: skip
            plans.append(plan)
        if any(plan.head_budgets for plan in plans) and not all(layer.tells_heads_apart for layer in self.layers):
            raise UnsupportedModelError(
                "this model rearranges its KV heads after caching, so they cannot have budgets of their own; use "
                'budgets by layer, such as allocator="uniform"'
            )
        return plans

    def _expected_tokens(self, prompt_tokens: int, padding: int) -> int | None:
        """A row's prompt and answer, if it is known how long that may get."""
        if self._new_tokens is not None:
            return prompt_tokens + self._new_tokens
        return None if self._expected is None else self._expected - padding

    def _cut_layer(
        self,
        layer: SqueezeLayer,
        plans: Sequence[BudgetPlan],
        after: Sequence[int],
        *,
        padded: bool,
        more: bool = False,
    ) -> None:
        rows, heads = layer.store.shape
        budget: int | list[tuple[int, ...]]
        if self._keeps_all:
            budget = ENDLESS
        elif len(plans) == 1 and plans[0].head_budgets is None:
            budget = plans[0].budgets[layer.index]
        else:
            each = [plan.heads(layer.index, heads) for plan in plans]
            budget = each * rows if len(each) == 1 else each
        layer.compact(budget, [row - 1 for row in after], padded, more=more)
        self._note_bytes(layer)

    def _trim_before(self, index: int, step: Step) -> None:
        """Cut the layers before ``index``, which are done with the prompt's last piece, to what is known of their
        budgets: then the whole prompt is never held in all layers at once.

        Where no signal decides these are the budgets themselves; else the most that each layer could still get, and
        the plan cuts it again. What is left is what one cut at the prompt's end leaves.
        """
        if step.final is None:
            step.final = self._final(step)
        final = step.final
        if final.plans:
            for layer in self.layers[self._trimmed : index]:
                if final.decided or layer.store.used > min(plan.budgets[layer.index] for plan in final.plans):
                    padded = self._padded or step.real is not None
                    self._cut_layer(layer, final.plans, final.after, padded=padded)
            self._trimmed = max(self._trimmed, index)
            if final.decided:
                self._decided = self._trimmed

    def _final(self, step: Step) -> Final:
        """What is known of the layers' budgets, if it is known that the prompt ends with this step."""
        unknown = Final((), (), decided=False)
        # What is still to be asked of the whole text needs it whole.
        if self._totals is None or step.decoding or self._wants_replay:
            return unknown
        after = self._after(step)
        if max(after) != max(self._totals):
            return unknown
        try:
            if self._is_fixed or (not self.allocator.needs_signal and self._planner.budget.kind != "bytes"):
                return Final(self._make_plans(None, after, step.columns, after), after, decided=True)
            if not self.policy.nested or self.signal.wants_scores:
                return unknown
            most = [
                self._planner.most(prompt_tokens=row, total_tokens=self._expected_tokens(row, step.columns - row))
                for row in after
            ]
        except SqueezeError:  # said at the prompt's end, where nothing is half done
            return unknown
        known = [row for row in most if row is not None]
        # A layer that cannot lose anything yet is left alone, and so are all: the end may still be told wrongly.
        if len(known) < len(most) or all(min(row) >= tokens for row, tokens in zip(known, after, strict=True)):
            return unknown
        return Final([BudgetPlan.from_budgets(row) for row in known], after, decided=False)

    @contextlib.contextmanager
    def prefilling(self, total_tokens: int | Sequence[int] | None = None) -> Iterator[SqueezeCache]:
        """Forwards inside are chunks of one prompt, whatever their length; it ends with the block.

        What the cache held before is an earlier turn. ``total_tokens``: real tokens of the longest row, or of each row,
        at the end, earlier turns included, if known. Layers are then cut while the last chunk is read, as far as their
        budgets are known (and tokens after it are an :class:`InputError`); with ``prefill="bounded"`` a share of the
        prompt is of that from the first chunk on, without it of what was read so far.
        """
        self.compact()
        self._in_prefill = True
        if total_tokens is None:
            self._totals = None
        else:
            self._totals = list(total_tokens) if isinstance(total_tokens, Sequence) else [total_tokens]
        try:
            yield self
        finally:
            self._in_prefill, self._told = False, None
        self.compact()

    @contextlib.contextmanager
    def _reading_pieces(self, mask: Any, length: int) -> Iterator[None]:
        """Forwards inside are pieces of one that has ``length`` tokens a row and this mask."""
        self._check_usable()
        self._note_virtual(self.get_seq_length() + length)
        before = self._in_prefill, self._totals
        given = mask if isinstance(mask, torch.Tensor) and mask.ndim == 2 else None
        if given is not None and not self._in_prefill and given.shape[1] == self.get_seq_length() + length:
            check_rows(given)
        if given is not None and self._first_turn:
            real = given[:, -length:].bool()
            if not self._columns.begins_with_padding(real, self.get_seq_length()):
                check_holes(real, self._may_have_holes)
        self._in_prefill = self._looked_over = True
        if self._totals is None:
            new = [length] * len(self._next) if given is None else given[:, -length:].bool().sum(1).tolist()
            rows = self._next * len(new) if len(self._next) == 1 else self._next
            self._totals = [row + count for row, count in zip(rows, new, strict=True)]
        try:
            yield
        finally:
            self._in_prefill, self._totals = before
            self._looked_over = False

    def reset(self) -> None:
        """Forget everything; the next prompt gets what a fresh cache gives."""
        self._clear()

    def detach(self) -> None:
        """Take this cache off its model (also happens when it is garbage collected). It cannot be used after."""
        self._detached = True
        self._release()

    def __deepcopy__(self, memo: dict[int, Any]) -> SqueezeCache:
        """An independent cache with the same content, for example to answer several questions on one context."""
        twin = object.__new__(type(self))
        memo[id(self)] = twin
        twin.__dict__.update(self._content(memo))
        twin._lease(self._attachment.model)
        return twin

    def _like(self) -> SqueezeCache:
        """A cache with the same settings, as new."""
        other = copy.deepcopy(self)
        other.reset()
        return other

    def _content(self, memo: dict[int, Any]) -> dict[str, Any]:
        """A copy of everything that a forward may change; the rest as it is."""
        shared = {"_attachment", "_release", "_planner", "policy", "allocator", "_plans"}
        return {name: value if name in shared else copy.deepcopy(value, memo) for name, value in self.__dict__.items()}

    def _leave_inference_mode(self) -> None:
        """Outside of ``torch.inference_mode()``, what was made under it can be read but not written: copy it once."""
        if torch.is_inference_mode_enabled():
            self._inference = True
        elif self._inference:
            self._inference = False
            self.__dict__.update(self._content({id(self): self}))

    def twin(
        self,
        *,
        budget: int | float | str | Budget | None = None,
        allocator: str | Allocator | BudgetPlan | Sequence[int] | Sequence[Sequence[int]] | None = None,
    ) -> SqueezeCache:
        """An independent copy that goes on with another budget or allocator; what is not given stays.

        Within :meth:`prefilling` its prompt ends here, and is cut as if the copy had been made with these: a prompt
        that is read once can be cut in many ways. After the cut they count from the next turn on.

        Raises :class:`ConfigError` for an allocator that goes by another signal than was looked at,
        :class:`CacheStateError` where layers were cut while the prompt was read, and what the constructor raises.
        """
        self._check_usable()
        if self._open and (self._trimmed or self._is_cut):
            raise CacheStateError(
                "layers of this cache were cut while the prompt was read, so a twin cannot be cut another way; use "
                'prefill="exact", and prefilling() without total_tokens'
            )
        other = self.allocator if allocator is None else resolve_allocator(allocator)
        other = other.for_model(self._attachment.model)
        check_used(other, budget=budget, signal=None)
        wanted = self.signal.name if allocator is None else resolve_signal(other.signal).name
        names = [one.name for one in self.signal.parts] if self._observes else []
        if other.needs_signal and wanted not in names:
            seen = f"looked at {' and '.join(map(repr, names))} only" if names else "looked at no signal"
            raise ConfigError(
                f"allocator {other.name!r} goes by the signal {other.signal!r}, but this cache {seen}; make one with it"
            )
        if self._open:
            self._replay()  # once for all twins
        twin = copy.deepcopy(self)
        twin._budget = self._budget if budget is None else Budget.parse(budget)
        twin.allocator = other
        if other.needs_signal:
            twin.signal = next(one for one in twin.signal.parts if one.name == wanted)
        twin._planner = replace(self._planner, budget=twin._budget, allocator=other, signal=twin.signal.name)
        twin._in_prefill = False
        return twin

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise UnsupportedFeatureError(
            "a SqueezeCache belongs to a live model and cannot be pickled; use cache.save(path) and "
            "SqueezeCache.load(model, path)"
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write what the cache holds, its settings and its plan to a safetensors file, whole or not at all.

        A prompt that is being read ends here. Raises :class:`CacheFileError` if it cannot be written, and
        :class:`CacheStateError` within :meth:`prefilling` or a forward pass.
        """
        save_cache(self, path)

    @classmethod
    def load(
        cls,
        model: nn.Module,
        path: str | os.PathLike[str],
        *,
        compile: bool | str | None = None,
        kernels: str | None = None,
    ) -> SqueezeCache:
        """A cache from :meth:`save` that goes on where that one was, with the same model and release of this library.

        ``compile`` and ``kernels`` are those of the machine at hand; ``None``: as they were.

        Raises :class:`CacheFileError` for a file that is no whole cache, or one of another model.
        """
        return load_cache(cls, model, path, compile=compile, kernels=kernels)

    # ---------------------------------------------------- called by the model

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Called by each attention layer with its new keys and values."""
        self._check_usable()
        return self.layers[layer_idx].update(key_states, value_states)

    def _expect(self, total_tokens: int) -> None:
        """``generate`` will not go beyond so many columns."""
        self._expected = total_tokens

    def _check_usable(self) -> None:
        if self._detached:
            raise CacheStateError("this cache was detached from its model; make a new SqueezeCache")
        if self._failed:
            raise CacheStateError(
                f"this cache is unusable because {self._failed}; call cache.reset() or make a new one"
            )

    def _check_new_prompt(
        self, input_ids: torch.Tensor, model_kwargs: dict[str, Any], generation_config: Any
    ) -> list[int]:
        """The prompt of a ``generate`` call, before any chunk of it is read.

        Returns the tokens of each row, or of all, when it has been read, earlier turns included.
        """
        self._check_usable()
        seen, mask = self.get_seq_length(), model_kwargs.get("attention_mask")
        embeddings = model_kwargs.get("inputs_embeds")
        totals: list[int] | None = None
        if isinstance(mask, torch.Tensor) and mask.ndim == 2:
            columns = mask.shape[1]
            check_rows(mask)
            new = mask[:, seen:].bool().sum(1).tolist()  # what it hides of earlier turns was counted then
            before = self._next * len(new) if len(self._next) == 1 else self._next
            totals = [row + count for row, count in zip(before, new, strict=True)]
        else:  # a mask of ones alone is dropped on the way here
            given = input_ids.shape[1] if embeddings is None else embeddings.shape[1]
            columns = max(given, getattr(generation_config, "_mask_length", None) or 0)
        if seen and getattr(generation_config, "prefill_chunk_size", None) and compat.chunks_start_anew():
            raise UnsupportedFeatureError(
                "this release of transformers reads the whole text again when a later turn comes in chunks; leave "
                "prefill_chunk_size out after the first turn, or install a newer transformers"
            )
        if self._virtual:
            raise UnsupportedFeatureError(
                f"this text began with {self._virtual} tokens that generate did not know of (PEFT's virtual tokens), "
                "so it cannot tell where a later turn begins: call cache.reset() and pass the whole text"
            )
        self._told = columns
        if seen and columns <= seen:
            raise CacheStateError(
                f"this cache already holds a text of {seen} tokens, and the prompt has {columns}: pass the whole "
                "text so far to go on with it, or call cache.reset() for a new prompt"
            )
        if seen and embeddings is None and input_ids.shape[1] == columns and self._text is not None:
            check_same_text(self._text[:, :seen], input_ids)
        return [row + columns - seen for row in self._next] if totals is None else totals

    def _note_text(self, text: torch.Tensor) -> None:
        """What a ``generate`` call returned, prompt and answer."""
        self._text = text if text.shape[0] == self._rows else None

    @property
    def _observes(self) -> bool:
        return self.allocator.needs_signal

    @property
    def observes_hidden(self) -> bool:
        """Whether the next prompt's residual stream will be looked at."""
        return self._observes and self.signal.wants_hidden

    def _begin(self, decoder: nn.Module, arguments: dict[str, Any]) -> Step:
        """Check one forward pass and describe it. Nothing is changed unless all is well."""
        self._check_usable()
        if decoder is not self._attachment.layout.decoder:
            raise CacheStateError("this cache belongs to another model; make a SqueezeCache for each model")
        if self._replayed is not None:
            length = self._replayed.positions.shape[1]
            return Step(self, length, [0], None, decoding=False, observe=False, replayed=self._replayed)
        given = arguments.get("input_ids")
        if given is None:
            given = arguments.get("inputs_embeds")
        if given is None or given.shape[1] == 0 or given.shape[0] == 0:
            raise InputError("the prompt is empty: give at least one token")
        rows, length = given.shape[:2]
        if self._rows and rows != self._rows:
            raise InputError(
                f"this cache holds a batch of {self._rows}, but {rows} rows were given; call cache.reset()"
            )
        self._leave_inference_mode()
        single = length == 1 and self.get_seq_length() > 0 and not self._in_prefill
        given_mask = read_mask(
            arguments.get("attention_mask"), rows, length, self.get_seq_length(), self._columns,
            first_turn=self._first_turn and not self._looked_over, whole=not self._in_prefill,
            holes=self._may_have_holes,
        )  # fmt: skip
        real = given_mask.real
        decoding = single and real is None
        if self._trimmed and not decoding:
            raise InputError(
                f"a prompt of {max(self._totals or [0])} tokens was announced and has been cut, but goes on; call "
                "cache.reset() and give prefilling() the number of tokens of the longest row when the prompt is over"
            )
        if given_mask.before is not None:
            self._hide(given_mask.before)
        self._note_virtual(self.get_seq_length() + length)
        if decoding:
            self.compact()
        self._open = self._open or not decoding
        self._rows = rows
        step = Step(
            self, length, self._next, real, decoding, observe=not decoding and self._observes,
            columns=self.get_seq_length() + length,
            given=given if not decoding and self._wants_replay else None, before=self._at,
        )  # fmt: skip
        precision = self._precision_of(decoder, given.device.type)
        as_before, self._precision = precision == self._precision, precision
        if decoding and self.compile and not as_before:  # buffers may change their dtypes
            self._static.clear()
        elif decoding and self.compile and self._uncompiled is None:
            # The last token that ``generate`` writes is never read.
            self._static.enter(step, self.layers, None if self._expected is None else self._expected - 1)
            for layer in self.layers:
                self._note_bytes(layer)
        return step

    def _note_virtual(self, columns: int) -> None:
        """More columns than the prompt of a ``generate`` call has: others (PEFT) have put virtual tokens in front."""
        if self._told is None or columns <= self._told:
            return
        virtual = columns - self._told
        self._told, self._virtual = columns, self._virtual + virtual
        if self._expected is not None:
            self._expected += virtual
        if self._totals is not None:
            self._totals = [tokens + virtual for tokens in self._totals]

    @property
    def _may_have_holes(self) -> bool:
        """Whether padding between tokens changes nothing for the others: windows, and sinks that move, count it."""
        return not any(self._planner.windows) and all(layer.rerotation is None for layer in self.layers)

    @staticmethod
    def _precision_of(decoder: nn.Module, device: str) -> tuple[object, ...]:
        """What the dtype of new keys and values follows from."""
        autocast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        return autocast, next((parameter.dtype for parameter in decoder.parameters()), None)

    def _hide(self, before: torch.Tensor) -> None:
        """Drop what a mask of the columns read before, bool ``[rows, columns]``, hides from now on."""
        if any(layer.rerotation is not None for layer in self.layers):
            raise UnsupportedFeatureError(
                'attention_mask hides tokens that were read before, and positions="cache" cannot tell how far their '
                'followers moved: use positions="original", or call cache.reset() and read the text again'
            )
        gone = self._columns.hide(before)
        for layer in self.layers:
            layer.hide(gone)
        self._static.clear()

    def _end(self, step: Step, *, failed: bool) -> None:
        """After a forward pass: count its tokens, or mark the cache if it died half way."""
        if step.replayed is not None:  # nothing was stored
            return
        if failed:  # some layers have the new tokens and some have not: nothing of it can be used
            self._clear()
            self._failed = "a forward pass with it failed half way"
            return
        if step.static:
            self._static.leave(self.layers)
        if not step.decoding:
            self._static.clear()
            self._trim_before(len(self.layers), step)
            self._is_cut = False
        if not step.decoding and not self._reading:
            self._from = self._next
        self._next = self._after(step)
        if step.given is not None:
            self._reading.append((step.given, step.real))
        if step.real is not None:
            self._padded = True
            self._columns.note(step.columns - step.length, step.real)
        if self.prefill == "bounded" and not step.decoding:
            self._cut(self._announced(), more=True)

    def _announced(self) -> list[int]:
        """Tokens of each row when the prompt is over, as far as known: at least those that were read."""
        totals = self._totals or [0]
        if len(totals) == len(self._next):
            return [max(row, total, 1) for row, total in zip(self._next, totals, strict=True)]
        to_come = max(0, max(totals) - max(self._next))  # by as much as the longest, each row grows
        return [max(1, row + to_come) for row in self._next]

    def _after(self, step: Step) -> list[int]:
        """The position of each row's next token when ``step`` is over."""
        if step.real is None:
            return [after + step.length for after in self._next]
        counts = step.real.sum(1).tolist()
        before = self._next * len(counts) if len(self._next) == 1 else self._next
        return [after + count for after, count in zip(before, counts, strict=True)]

    def _note_bytes(self, layer: SqueezeLayer) -> None:
        """Keep the peak up to date after a layer's storage changed."""
        self._held[layer.index] = layer.kv_bytes()
        self._peak = max(self._peak, sum(self._held))

    # ----------------------------------------------- the rest of the interface

    def crop(self, *args: Any, **kwargs: Any) -> None:
        self.layers[0].crop()

    @property
    def max_cache_len(self) -> int:
        """Columns that a text may have, as other caches say it: no end."""
        return -1

    def activate_past_recording(self) -> None:
        raise UnsupportedFeatureError(
            "assisted and prompt-lookup decoding roll the cache back, which an evicting cache cannot do; use greedy, "
            "sampling or beam search"
        )

    def early_initialization(self, *args: Any, **kwargs: Any) -> None:
        raise UnsupportedFeatureError(
            "a SqueezeCache takes its shapes from the first prompt; there is nothing to do early"
        )

    def _select(self, rows: torch.Tensor) -> None:
        if self._in_prefill and self._reading:
            raise CacheStateError(
                "rows were chosen while a prompt is read that will be repeated at its end: leave prefilling() first"
            )
        self.compact()  # by the rows that read the prompt
        self._text = None
        self._leave_inference_mode()
        for layer in self.layers:
            layer.select_rows(rows)
        self.signal.select_rows(rows)
        self._columns.select_rows(rows)
        self._static.clear()
        chosen = rows.tolist()
        if len(self._next) > 1:
            self._next = [self._next[row] for row in chosen]
            for layer in self.layers:  # one row left of several may be shorter than its slots
                layer.note_holes()
        if len(self._plans) > 1:
            self._plans = [self._plans[row] for row in chosen]
        self._rows = len(chosen)

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        self._select(beam_idx)

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        self._select(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        self._select(torch.arange(self._rows).repeat_interleave(repeats))

    @property
    def batch_size(self) -> int:
        return self._rows or -1

    def __iter__(self) -> Iterator[tuple[torch.Tensor | None, torch.Tensor | None, None]]:
        """Each layer's keys and values (:attr:`SqueezeLayer.keys`), and the third thing of transformers' caches."""
        for layer in self.layers:
            yield layer.keys, layer.values, None

    def __repr__(self) -> str:
        """The settings and, once a prompt has been cut, the budgets in force. Asking changes nothing."""
        budget = "fixed" if self._is_fixed else str(self._budget)
        if self._plans:
            budgets = [tokens for plan in self._plans for tokens in plan.budgets]
            low, high, total = min(budgets), max(budgets), sum(plan.total for plan in self._plans)
            rows = f" of {len(self._plans)} rows" if len(self._plans) > 1 else ""
            budget += f" ({low if low == high else f'{low} to {high}'} tokens a layer, {total} in all{rows})"
        return (
            f"SqueezeCache(budget={budget}, policy={self.policy!r}, allocator={self.allocator.name!r}, "
            f"kernels={str(self._kernels)!r}, layers={len(self.layers)}, seen={self.get_seq_length()})"
        )
