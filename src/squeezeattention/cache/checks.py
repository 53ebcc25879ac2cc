"""What a batch of token rows must look like: checked before anything of a cache changes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from ..errors import CacheStateError, InputError, UnsupportedFeatureError
from .columns import Columns


def check_tokens(given: Any) -> torch.Tensor:
    """The ids ``[batch, tokens]`` or embeddings ``[batch, tokens, width]`` of a forward, if they are such."""
    if given is not None and not isinstance(given, torch.Tensor):
        raise InputError(f"input_ids and inputs_embeds must be tensors, got {type(given).__name__}")
    if given is not None and given.ndim < 2:
        raise InputError(
            f"input_ids must be [batch, tokens], got shape {tuple(given.shape)}: one text is a batch of one, "
            "input_ids[None]"
        )
    if given is None or given.shape[1] == 0 or given.shape[0] == 0:
        raise InputError("the prompt is empty: give at least one token")
    return given


def check_runs_as_written() -> None:
    """No forward is recorded now, to be played again: what changes from step to step would stay as it was then. Nor is
    it run on tensors that stand for others (``torch.func``), which cannot be kept."""
    transforms: Any = getattr(torch._C, "_functorch", None)
    if transforms is not None and transforms.peek_interpreter_stack() is not None:
        raise UnsupportedFeatureError(
            "torch.func's transforms (vmap, grad, jvp, ...) cannot go through a SqueezeCache, which keeps what it is "
            "given: call them on the model without one (use_cache=False); a batch needs no vmap"
        )
    traced: bool = torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
    if traced or torch.compiler.is_exporting():
        raise UnsupportedFeatureError(
            "torch.jit.trace and torch.export record one forward, and a SqueezeCache changes with each: record the "
            "model without it (use_cache=False); compile=True compiles decode steps with it"
        )


def check_counted(given: Any, length: int, real: torch.Tensor | None, turned_by: str) -> None:
    """Position ids ``[(kinds,) batch or 1, tokens]``, if given, count the real tokens one by one, from wherever."""
    if not isinstance(given, torch.Tensor):
        return
    count = torch.arange(length, device=given.device)[None]
    hidden = torch.zeros_like(count, dtype=torch.bool)
    if real is not None:
        real = real.to(given.device)
        count, hidden = real.long().cumsum(1), ~real
    ahead = given - count
    most = ahead.masked_fill(hidden, torch.iinfo(torch.int64).min).amax(dim=-1)
    least = ahead.masked_fill(hidden, torch.iinfo(torch.int64).max).amin(dim=-1)
    if bool((most > least).any()):
        raise UnsupportedFeatureError(
            f"{turned_by} turns keys by counting tokens, and this text's position_ids do not count them one by one "
            '(those of an image share positions, for one); use another policy, such as "snapkv", or '
            'positions="original"'
        )


def check_rows(mask: torch.Tensor) -> None:
    """Every row of a whole prompt, ``[batch, tokens]``, has a real token, and its last token is real."""
    mask = mask.bool()
    if mask.shape[1] == 0:
        raise InputError("the prompt is empty: give at least one token")
    empty = (~mask.any(1)).nonzero().flatten().tolist()
    if empty:
        raise InputError(f"row {empty[0]} is all padding; every row needs at least one real token")
    if not bool(mask[:, -1].all()):
        raise _right_padding()


def check_same_text(held: torch.Tensor, given: torch.Tensor) -> None:
    """The token ids ``given``, ``[batch, columns]``, go on with those of the text that is ``held``."""
    columns = held.shape[1]
    if held.shape[0] != given.shape[0]:
        return  # rows were chosen or repeated: which is which is not known
    differs = (held.to(given.device) != given[:, :columns]).any(0)
    if bool(differs.any()):
        first = int(differs.nonzero()[0])
        raise CacheStateError(
            f"this cache holds another text: the prompt differs from column {first} on, of {columns} read. "
            "Pass the whole text so far to go on with it, or call cache.reset() for a new prompt"
        )


@dataclass(frozen=True)
class Given:
    """What an attention mask says of one forward."""

    real: torch.Tensor | None = None
    """bool ``[rows, length]``, False = padding among the new tokens; ``None``: there is none."""
    before: torch.Tensor | None = None
    """bool ``[rows, seen]``, the columns read before, if some that were seen are to be hidden from now on."""


def read_mask(
    mask: Any, rows: int, length: int, seen: int, columns: Columns, *, first_turn: bool, whole: bool, holes: bool
) -> Given:
    """What a mask says of ``length`` new tokens after ``seen``, which became ``columns``.

    ``whole``: no more tokens of this prompt will follow. ``first_turn``: the prompt is the first one, and where its
    padding may be has not been looked at. ``holes``: it may have padding between its tokens.
    """
    if mask is None:
        return Given()
    if isinstance(mask, dict):
        raise InputError("prepared masks are not supported; pass the 2-D attention_mask of the tokenizer")
    if not isinstance(mask, torch.Tensor):
        raise InputError(f"attention_mask must be a tensor [batch, tokens], got {type(mask).__name__}")
    if mask.ndim != 2:
        raise InputError(
            f"attention_mask must be 2-D [batch, tokens], got {tuple(mask.shape)}: a custom pattern cannot be "
            "followed once tokens are evicted"
        )
    total = seen + length
    if mask.shape != (rows, total) and mask.shape != (rows, length):
        raise InputError(
            f"attention_mask has shape {tuple(mask.shape)}, but {rows} rows of {total} tokens were seen in all"
        )
    mask = mask.bool()
    new, before = mask[:, -length:], mask[:, :-length]  # none before: it speaks of the new tokens alone
    no_padding, as_before = (
        torch.stack([new.all(), columns.agrees(before)]).tolist() if before.shape[1] else (bool(new.all()), True)
    )
    if not as_before:
        columns.check(before)
    if not no_padding:
        if whole and mask.shape[1] == total:
            check_rows(mask)
        # Later turns may be padded where they begin: the middle of the text.
        if first_turn and not columns.begins_with_padding(new, seen):
            check_holes(new, holes)
    return Given(None if no_padding else new, None if as_before else before)


def check_holes(new: torch.Tensor, holes: bool) -> None:
    """Padding between tokens, such as virtual ones in front of a text that is padded on the left, and what follows."""
    if not bool(new[:, -1].all()):
        raise _right_padding()
    if not holes:
        raise InputError(
            "padding between a prompt's tokens (PEFT's prompt tuning puts virtual tokens in front of left padding) "
            'cannot be carried exactly by a model with native sliding windows or with positions="cache": give texts of '
            "one length, or one text at a time"
        )


def _right_padding() -> InputError:
    return InputError(
        "right padding (a pad after a real token) cannot be cached exactly; pad on the left: "
        'tokenizer.padding_side = "left"'
    )
