"""SqueezeCache: a transformers cache that is squeezed in two dimensions, layers and tokens."""

from __future__ import annotations

import copy
import os
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from ..allocators import Allocator, resolve_allocator
from ..attention.rope import Rerotation
from ..by_row import by_row
from ..defaults import DEFAULT_BUDGET, DEFAULT_POLICY, MIN_TOKENS
from ..errors import (
    BudgetError,
    CacheStateError,
    ConfigError,
    UnsupportedFeatureError,
    UnsupportedModelError,
)
from ..hf.attachment import attach
from ..hf.parts import parts_for
from ..kernels.choosing import checked
from ..plan import Budget, BudgetPlan
from ..policies import EvictionPolicy, StreamingLLM
from ..signals import Signal, resolve_signal
from .driven import Driven
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
from .planning import Planner
from .saving import load_cache, save_cache


class SqueezeCache(Driven):
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
            pairs = zip(by_row(plans, rows), by_row(self._next, rows), strict=True)
            plans = [self._planner.grown(plan, tokens) for plan, tokens in pairs]
        return by_row(plans, self._rows)

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

    def __copy__(self) -> SqueezeCache:
        raise UnsupportedFeatureError(
            "a shallow copy of a SqueezeCache would share its layers but not its count of tokens; use "
            "copy.deepcopy(cache), or cache.twin(...) for another budget"
        )

    def _like(self) -> SqueezeCache:
        """A cache with the same settings, as new."""
        other = copy.deepcopy(self)
        other.reset()
        return other

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
