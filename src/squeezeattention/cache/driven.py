"""What a model's forwards, and ``generate``, do to a cache."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from ..by_row import by_row
from ..errors import CacheStateError, InputError, UnsupportedFeatureError
from ..hf import compat
from ..hf.layout import LAYERS_CHANGED
from ..hf.offsets import offsets_of
from .checks import (
    check_counted,
    check_holes,
    check_rows,
    check_runs_as_written,
    check_same_text,
    check_tokens,
    read_mask,
)
from .planned import Planned
from .step import Step


class Driven(Planned):
    """Checks what a forward is given before anything is changed, and counts it when it is over.

    :mod:`squeezeattention.hf` calls: :meth:`_begin`, then each attention layer :meth:`update`, then :meth:`_end`; and
    around a ``generate`` call :meth:`_check_new_prompt`, :meth:`_expect`, :meth:`prefilling`, :meth:`_note_text`.
    """

    compile: bool | str
    _uncompiled: str | None
    _detached: bool

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Called by each attention layer with its new keys and values."""
        self._check_usable()
        return self.layers[layer_idx].update(key_states, value_states)

    def _check_usable(self) -> None:
        if self._detached:
            raise CacheStateError("this cache was detached from its model; make a new SqueezeCache")
        if self._failed:
            raise CacheStateError(
                f"this cache is unusable because {self._failed}; call cache.reset() or make a new one"
            )

    def _expect(self, total_tokens: int) -> None:
        """``generate`` will not go beyond so many columns."""
        self._expected = total_tokens

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
            # What it hides of earlier turns was counted then.
            totals = self._next_after(mask[:, seen:].bool().sum(1).tolist())
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
            self._totals = self._next_after(new)
        try:
            yield
        finally:
            self._in_prefill, self._totals = before
            self._looked_over = False

    def _begin(self, decoder: nn.Module, arguments: dict[str, Any]) -> Step:
        """Check one forward pass and describe it. Nothing is changed unless all is well."""
        self._check_usable()
        if decoder is not self._attachment.layout.decoder:
            raise CacheStateError("this cache belongs to another model; make a SqueezeCache for each model")
        if self._replayed is not None:
            length = self._replayed.positions.shape[1]
            return Step(self, length, [0], None, decoding=False, observe=False, replayed=self._replayed)
        check_runs_as_written()
        given = arguments.get("input_ids")
        if given is None:
            given = arguments.get("inputs_embeds")
        given = check_tokens(given)
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
        if not decoding and (turned_by := self._turns_keys):
            check_counted(arguments.get("position_ids"), length, real, turned_by)
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
        self._rows, repeated = rows, not decoding and self._wants_replay
        step = Step(
            self, length, self._next, real, decoding, observe=not decoding and self._observes,
            columns=self.get_seq_length() + length,
            given=given if repeated else None, before=self._at,
            position_ids=arguments.get("position_ids") if repeated else None,
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

    def _how_far_ahead(self, given: Any) -> list[int]:
        """Of each row (or of all), by the position ids ``[(kinds,) batch or 1, tokens]`` of a forward that is over."""
        if not isinstance(given, torch.Tensor):
            return [0]
        last = given[..., -1]
        if last.ndim == 2:  # time, height and width of an image's tokens; some models count the tokens before these
            last = last[-3:].amax(dim=0)
        rows = max(len(last), len(self._next))
        told, read = by_row(last.tolist(), rows), by_row(self._next, rows)
        return [position + 1 - tokens for position, tokens in zip(told, read, strict=True)]

    @property
    def _turns_keys(self) -> str | None:
        """What turns queries or keys by counting tokens, if anything does."""
        if any(layer.rerotation is not None for layer in self.layers):
            return 'positions="cache"'
        return f"policy={self.policy.name!r}" if any(layer.parts.turning for layer in self.layers) else None

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
        """After a forward pass: count its tokens, or mark the cache if it died half way.

        Raises :class:`CacheStateError` if a layer computed its attention elsewhere, or not at all.
        """
        if not failed:
            self._check_attended(step)
        if step.replayed is not None:  # nothing was stored
            return
        if failed:  # some layers have the new tokens and some have not: nothing of it can be used
            self._clear()
            self._failed = "a forward pass with it failed half way"
            return
        if step.static:
            self._static.leave(self.layers)
        if not step.decoding:
            self._offsets = offsets_of(self._attachment.model)
            self._static.clear()
            self._trim_before(len(self.layers), step)
            self._is_cut = False
        if not step.decoding and not self._reading:
            self._from = self._next
        self._next = self._after(step)
        if step.given is not None:
            self._reading.append((step.given, step.real))
            self._ahead = self._how_far_ahead(step.position_ids)
        if step.real is not None:
            self._padded = True
            self._columns.note(step.columns - step.length, step.real)
        if self.prefill == "bounded" and not step.decoding:
            self._cut(self._announced(), more=True)

    def _check_attended(self, step: Step) -> None:
        """What a layer computes over the cache without us, it computes without a mask: wrong numbers, not an error."""
        if step.static or len(step.attended) == len(self.layers):
            return
        missing = [index for index in range(len(self.layers)) if index not in step.attended]
        if step.replayed is None:
            self._clear()
            self._failed = "the model's layers are others than when it was made"
        raise CacheStateError(f"layer {missing[0]} of the model did not attend to this cache: {LAYERS_CHANGED}")

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
