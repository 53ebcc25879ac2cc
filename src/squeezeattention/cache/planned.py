"""A cache's prompts: read, planned, cut."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import torch
from transformers.cache_utils import Cache

from ..allocators import Allocator
from ..by_row import by_row
from ..errors import SqueezeError, UnsupportedModelError
from ..hf.attachment import Attachment
from ..hf.replay import Replayed, Text, replay_prompt, replay_sample
from ..plan import Budget, BudgetPlan
from ..policies import EvictionPolicy
from ..signals import Replay, Signal
from .columns import Columns
from .layer import SqueezeLayer
from .planning import ENDLESS, Planner
from .static import StaticDecode
from .step import Final, Positions, Step
from .tokens import LayerTokens

Self = TypeVar("Self", bound="Planned")


class Planned(Cache):
    """Knows what was read since the last cut, and cuts every layer to a plan of it when the prompt is over.

    ::

        prompt    forward, forward, ...   compact()         decode steps
        layers    append all              cut to the plan   each replaces a token

    The plan goes by what the signal saw (:meth:`_cut`). Layers that are done with the prompt's last piece are cut
    before the others read it where that is known to be the last (:meth:`_trim_before`).
    """

    layers: list[SqueezeLayer]
    policy: EvictionPolicy
    allocator: Allocator
    signal: Signal
    prefill: str
    _attachment: Attachment
    _budget: Budget
    _planner: Planner
    _new_tokens: int | None

    @property
    def _is_fixed(self) -> bool:
        return not self.allocator.needs_signal and self.allocator.name == "fixed"

    @property
    def _keeps_all(self) -> bool:
        """Whether nothing is ever evicted, however long the text gets."""
        return self._budget.is_whole and not self._is_fixed

    @property
    def _observes(self) -> bool:
        return self.allocator.needs_signal

    @property
    def observes_hidden(self) -> bool:
        """Whether the next prompt's residual stream will be looked at."""
        return self._observes and self.signal.wants_hidden

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
        self._offsets: list[torch.Tensor | None] = []  # what the model keeps on itself of the text's positions
        self._static = StaticDecode()
        self._at = Positions()
        self._replayed: Replayed | None = None  # what the forward under way repeats, if it does
        self._reading: list[Text] = []  # what was given since the last cut, if it is to be repeated
        self._from: list[int] = [0]  # where it begins in each row
        self._ahead: list[int] = [0]  # how far the model's positions are ahead of each row's tokens (or of all), there
        self._cuts = 0
        self._held = [0] * len(self.layers)
        self._peak = 0
        self.signal.start(len(self.layers))

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
            budget = by_row([plan.heads(layer.index, heads) for plan in plans], rows)
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
    def prefilling(self: Self, total_tokens: int | Sequence[int] | None = None) -> Iterator[Self]:
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
        return self._next_after(step.real.sum(1).tolist())

    def _next_after(self, counts: Sequence[int]) -> list[int]:
        """The position of each row's next token after so many more of its own."""
        return [after + count for after, count in zip(by_row(self._next, len(counts)), counts, strict=True)]

    def _note_bytes(self, layer: LayerTokens) -> None:
        """Keep the peak up to date after a layer's storage changed."""
        self._held[layer.index] = layer.kv_bytes()
        self._peak = max(self._peak, sum(self._held))

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
