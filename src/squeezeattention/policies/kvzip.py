"""KVzip (Kim et al., NeurIPS 2025, arXiv 2505.23416): tokens that are looked at when the text is repeated."""

from __future__ import annotations

import math

import torch

from .scored import Scored
from .view import LayerView


class KVzip(Scored):
    """Keeps the tokens that get most attention when the model repeats its whole prompt: what any question may need.

    At the prompt's end all of it is read again, in pieces of 64 tokens, each behind the prompt and led in by the 8
    tokens before it (those before the first piece are the text's last): a little more than a second prefill, whose
    logits are not computed. A token's score is the most attention that any query of its piece pays to it, with any
    query head of the group; ``allocator="global"`` ranks over all layers and heads as the paper does. In a later turn
    the new tokens are repeated, over all that is held, and the others keep their scores. The paper evicts nothing while
    text is generated; here each new token stays, and the least of the prompt makes room.
    """

    name = "kvzip"
    allocator = "global"
    replays = math.inf

    def score(self, view: LayerView) -> torch.Tensor:
        if view.received is None:
            return torch.zeros(view.keys.shape[:3], device=view.keys.device)
        return view.received.clamp(min=0.0)
