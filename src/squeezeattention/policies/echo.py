"""Tokens that the model would look back at if the text came again, found by letting it repeat a small part."""

from __future__ import annotations

import torch

from .scored import Scored
from .view import LayerView

#: Attention below this is as good as none.
_LEAST = 1e-3
#: Ridge: what squares of weights cost, in parts of the samples' number.
_RIDGE = 0.3


class Echo(Scored):
    """Keeps the tokens that would be looked at most if the model were to repeat its prompt.

    KVzip (2505.23416) lets the model repeat the whole prompt and scores each token by the attention that it gets: the
    tokens that matter for anything one may ask later, at the cost of a second prefill. Here the model repeats a sample
    (what ``allocator="probe"`` replays, at no further cost), and a ridge regression for each KV head learns from that
    which of its keys and values get such attention; it then scores all the others, and each token that is generated.
    Nothing is trained beforehand, and no attention is gathered while the prompt is read.

    A text too short to be replayed scores nothing: all tokens are alike, and the newest stay.
    """

    name = "echo"
    wants_replay = True

    def fit(self, view: LayerView, told: torch.Tensor, received: torch.Tensor) -> torch.Tensor:
        """Weights fp32 ``[B, H, F]`` of :func:`features`."""
        x, y = features(view.keys, view.values), (received + _LEAST).log()
        width = view.keys.shape[-1]
        scale = torch.ones_like(x[:, :, :1])  # keys and values of any size weigh the same
        for part in (slice(0, width), slice(width, -3)):
            scale[..., part] = x[..., part].square().mean(dim=(2, 3), keepdim=True).sqrt().clamp(min=1e-6)
        x = x / scale
        ridge = torch.eye(x.shape[-1], device=x.device) * (_RIDGE * x.shape[2])
        weights = torch.linalg.solve(x.transpose(-1, -2) @ x + ridge, x.transpose(-1, -2) @ y[..., None])[..., 0]
        return weights / scale[:, :, 0] * told[:, None, None].to(weights)

    def score(self, view: LayerView) -> torch.Tensor:
        if view.fitted is None:
            return torch.zeros(view.keys.shape[:3], device=view.keys.device)
        logs = (features(view.keys, view.values) @ view.fitted[..., None])[..., 0]
        return logs.clamp(max=10.0).exp()

    def score_new(self, view: LayerView) -> torch.Tensor | None:
        return self.score(view)


def features(keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """What a token's score is read from, fp32 ``[B, H, N, D + Dv + 3]``: key, value, logs of their norms, and 1."""
    keys, values = keys.float(), values.float()
    norms = [one.norm(dim=-1, keepdim=True).clamp(min=1e-6).log() for one in (keys, values)]
    return torch.cat([keys, values, *norms, torch.ones_like(norms[0])], dim=-1)
