"""What has become of each column of a batch's text: read as padding, held, or hidden by a later attention mask."""

from __future__ import annotations

import torch
from torch.nn import functional

from ..errors import InputError


class Columns:
    """Of all rows. Columns that no tensor here speaks of are tokens, and shown: most texts need none.

    A token's position is the number of tokens that were read before it in its row, hidden ones among them: those that
    come later do not move when one is hidden.
    """

    def __init__(self) -> None:
        self._read: torch.Tensor | None = None  # [B, n] bool, False = was padding
        self._shown: torch.Tensor | None = None  # [B, n] bool, False = padding, or hidden since

    def agrees(self, before: torch.Tensor) -> torch.Tensor:
        """Whether a mask of the columns read, bool ``[B, seen]``, says nothing new: a bool scalar on its device."""
        if self._shown is None:
            return before.all()
        known = self._shown.shape[1]
        return (before[:, :known] == self._shown.to(before.device)).all() & before[:, known:].all()

    def check(self, before: torch.Tensor) -> None:
        """:class:`InputError` if a mask shows a column again that is gone."""
        gone = ~self._of_shown(before.shape[1], before)
        back = (gone & before).nonzero()
        if len(back):
            row, column = back[0].tolist()
            raise InputError(
                f"attention_mask shows column {column} of row {row}, which was padding or hidden by an earlier mask: "
                "it was dropped and cannot come back. Keep it hidden, or call cache.reset() and read the text again"
            )

    def begins_with_padding(self, new: torch.Tensor, seen: int) -> bool:
        """Whether padding of new tokens, bool ``[B, length]`` after ``seen``, lies before its row's first token."""
        if seen:
            begun = new.new_ones(len(new), 1) if self._read is None else _filled(self._read, seen).any(1, keepdim=True)
            new = torch.cat([begun.to(new.device), new], dim=1)
        return not bool((new[:, :-1] & ~new[:, 1:]).any())

    def hide(self, before: torch.Tensor) -> torch.Tensor:
        """Take note of a mask that :meth:`check` let pass; what it hides, bool ``[B or 1, positions]``."""
        seen = before.shape[1]
        hidden = self._of_shown(seen, before) & ~before
        self._shown = before
        if self._read is None:
            gone = hidden
        else:
            read = _filled(self._read, seen).to(before.device)
            place = torch.where(read, read.cumsum(1) - 1, seen)  # the extra column swallows padding
            gone = hidden.new_zeros(len(hidden), seen + 1).scatter_(1, place, hidden)[:, :seen]
        return gone[:1] if bool((gone == gone[:1]).all()) else gone

    def note(self, seen: int, real: torch.Tensor) -> None:
        """``real`` bool ``[B, length]`` was read after ``seen`` columns, with padding."""
        self._shown = torch.cat([self._of_shown(seen, real), real], dim=1)
        before = real[:, :0] if self._read is None else self._read.to(real.device)
        self._read = torch.cat([_filled(before, seen), real], dim=1)

    def select_rows(self, rows: torch.Tensor) -> None:
        """The batch now consists of these rows."""
        if self._read is not None:
            self._read = self._read.index_select(0, rows.to(self._read.device))
        if self._shown is not None:
            self._shown = self._shown.index_select(0, rows.to(self._shown.device))

    def _of_shown(self, seen: int, like: torch.Tensor) -> torch.Tensor:
        if self._shown is None:
            return like.new_ones(len(like), seen, dtype=torch.bool)
        return _filled(self._shown, seen).to(like.device)


def _filled(columns: torch.Tensor, seen: int) -> torch.Tensor:
    """What is known, and tokens up to so many columns."""
    return functional.pad(columns, (0, seen - columns.shape[1]), value=True)
