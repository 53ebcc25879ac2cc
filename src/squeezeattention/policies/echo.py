"""Tokens that the model would look back at if the text came again, found by letting it repeat a part of it."""

from __future__ import annotations

import torch

from ..errors import ConfigError
from .scored import Scored
from .view import LayerView

#: Attention below this is as good as none.
_LEAST = 1e-3
#: Ridge: what squares of weights cost, in parts of the samples' number.
_RIDGE = 0.3


class Echo(Scored):
    """Keeps the tokens that are looked at most when the model repeats its prompt.

    KVzip (2505.23416) lets the model repeat the whole prompt and scores each token by the attention that it gets: the
    tokens that matter for anything one may ask later, at the cost of a second prefill. Here no more than ``replay``
    tokens are repeated, in pieces of 64 that are evenly spread over the text; of a text that is no longer, all are. A
    ridge regression for each head learns from them which of its keys and values get such attention, and scores all
    tokens that were not repeated, and those that are generated. Nothing is trained beforehand, and no attention is
    gathered while the prompt is read.

    Of a text of less than 128 tokens nothing is learned: what is generated then stays, the least of the prompt makes
    room. Raises :class:`ConfigError` for a ``replay`` of less than a piece.
    """

    name = "echo"
    allocator = "global"
    fits_from = 128

    def __init__(self, sinks: int = 4, window: int = 32, replay: int = 2048) -> None:
        super().__init__(sinks, window)
        if isinstance(replay, bool) or not isinstance(replay, int) or replay < 64:
            raise ConfigError(f"replay must be a whole number of at least 64 tokens, got {replay!r}")
        self.replays = replay

    def __repr__(self) -> str:
        return f"Echo(sinks={self.sinks}, window={self.window}, replay={self.replays})"

    def fit(self, view: LayerView, received: torch.Tensor) -> torch.Tensor:
        """Weights fp32 ``[B, H, F]`` of :func:`features`; zeros where nothing can be learned."""
        told = (view.positions >= 0)[..., None]
        x, y = features(view.keys, view.values) * told, (received + _LEAST).log()[..., None] * told
        count = told.sum(dim=2, keepdim=True).clamp(min=1).float()
        width = view.keys.shape[-1]
        scale = torch.ones_like(x[:, :, :1])  # keys and values of any size weigh the same
        for part in (slice(0, width), slice(width, -3)):
            size = x[..., part].square().mean(dim=3, keepdim=True).sum(dim=2, keepdim=True) / count
            scale[..., part] = size.sqrt().clamp(min=1e-6)
        x = x / scale
        ridge = torch.eye(x.shape[-1], device=x.device) * (_RIDGE * count)
        weights = torch.linalg.solve(x.transpose(-1, -2) @ x + ridge, x.transpose(-1, -2) @ y)[..., 0]
        return weights / scale[:, :, 0]

    def score(self, view: LayerView) -> torch.Tensor:
        if view.fitted is None:
            foreseen = torch.ones(view.keys.shape[:3], device=view.keys.device)
        else:  # 1, more than any attention, where the weights are zeros
            logs = (features(view.keys, view.values) @ view.fitted[..., None])[..., 0]
            foreseen = (logs.clamp(max=10.0).exp() - _LEAST).clamp(min=0.0)
        return foreseen if view.received is None else torch.where(view.received >= 0, view.received, foreseen)

    def score_new(self, view: LayerView) -> torch.Tensor | None:
        return self.score(view)


def features(keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """What a token's score is read from, fp32 ``[B, H, N, D + Dv + 3]``: key, value, logs of their norms, and 1."""
    keys, values = keys.float(), values.float()
    norms = [one.norm(dim=-1, keepdim=True).clamp(min=1e-6).log() for one in (keys, values)]
    return torch.cat([keys, values, *norms, torch.ones_like(norms[0])], dim=-1)
