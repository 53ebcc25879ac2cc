"""What a layer signal is: one number per layer, gathered while the prompt is read."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch


@dataclass(frozen=True)
class AttentionSample:
    """The attention of a layer's prompt tokens, for signals that look at where a layer reads.

    Nothing of size [T, T] is ever made: a signal samples rows of ``queries`` and asks for their probabilities.
    """

    queries: torch.Tensor
    """[B, Hq, q, D] after rotary embedding."""
    keys: torch.Tensor
    """[B, H, N, D]; H divides Hq."""
    values: torch.Tensor
    """[B, H, N, Dv]."""
    query_positions: torch.Tensor
    """[B or 1, q] int64, -1 = padding."""
    key_positions: torch.Tensor
    """[B or 1, H or 1, N] int64, -1 = hole."""
    probabilities_of: Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
    """queries [B, Hq, R, D], of this or an earlier chunk, and their positions int64 [B or 1, R] (-1 = none) ->
    probabilities [B, Hq, R, N] fp32, their log-sum-exp [B, Hq, R]; with the layer's mask, window, softcap and scale."""

    def probabilities(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The same of these rows of :attr:`queries`, int64 ``[R]``, any device."""
        rows = rows.to(self.queries.device)
        return self.probabilities_of(self.queries[:, :, rows], self.query_positions[:, rows])


class Signal(ABC):
    """Accumulates over the chunks of one prompt; ``values()`` is the only synchronisation with a device."""

    name: ClassVar[str]
    #: What :meth:`values` holds, for tables and pictures, where the name does not say it (``1 - span``).
    label: ClassVar[str] = ""
    #: Whether :meth:`see_hidden` wants the residual stream around each attention block.
    wants_hidden: ClassVar[bool] = False
    #: Whether :meth:`see_attention` wants each layer's queries and keys.
    wants_attention: ClassVar[bool] = False

    #: Whether :meth:`see_scores` wants the scores of the tokens that each layer holds, at the prompt's end.
    wants_scores: ClassVar[bool] = False

    @property
    def parts(self) -> tuple[Signal, ...]:
        """The signals that this one is made of: itself, unless several watch together."""
        return (self,)

    @abstractmethod
    def start(self, n_layers: int) -> None:
        """Forget everything; a prompt for a model of ``n_layers`` layers follows."""

    def see_hidden(self, layer: int, before: torch.Tensor, after: torch.Tensor, real: torch.Tensor | None) -> None:  # noqa: B027 (optional)
        """Residual stream ``[B, q, W]`` before and after a layer's attention; ``real`` bool ``[B, q]``."""

    def see_attention(self, layer: int, sample: AttentionSample) -> None:  # noqa: B027 (optional)
        """Attention of the prompt tokens just read."""

    def see_scores(self, layer: int, scores: torch.Tensor, positions: torch.Tensor) -> None:  # noqa: B027 (optional)
        """What the policy would keep first: fp32 ``[B, H, N]``, infinite for what stays in any case, and the positions
        of these tokens, int64 ``[B, H, N]``, -1 = no token."""

    def see_budget(self, tokens: Sequence[int]) -> None:  # noqa: B027 (optional)
        """Each row's average budget of a layer, told right before :meth:`values`, for ranks over all layers' tokens."""

    def select_rows(self, rows: torch.Tensor) -> None:  # noqa: B027 (optional)
        """The batch now consists of these rows (int64, with repeats), for signals that keep something per row."""

    def end_turn(self) -> None:  # noqa: B027 (optional)
        """The prompt is over, and :meth:`values` has been asked for the last time: what comes is another turn. Of a
        prompt that is read in pieces values are asked for after each."""

    @abstractmethod
    def values(self) -> list[list[float]]:
        """For each row of the batch one number per layer, over all its prompt tokens seen. Higher = the layer matters
        *less*. Rows know nothing of each other: each has the plan that it would have alone."""
