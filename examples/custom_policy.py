"""A new eviction policy in one short file: keep every ``stride``-th token and the newest ones.

Run it with ``python examples/custom_policy.py``; nothing in the library has to change.
"""

from __future__ import annotations

import torch

from squeezeattention import POLICIES, EvictionPolicy, SqueezeCache, load_embedded
from squeezeattention.policies import Tokens


class Strided(EvictionPolicy):
    """A sparse memory of the far past: landmarks every ``stride`` tokens outlive all others."""

    name = "strided"

    def __init__(self, stride: int = 8) -> None:
        self.stride = stride

    def priority(self, tokens: Tokens, budget: int) -> torch.Tensor:
        is_landmark = tokens.positions % self.stride == 0
        is_recent = tokens.positions > tokens.newest - budget // 2
        # Newest half first, then landmarks, then the rest; among equals the older token goes.
        return is_recent.long() * 2 + is_landmark.long()


POLICIES.register("strided", Strided, replace=True)


def main() -> None:
    model, tokenizer = load_embedded()
    inputs = tokenizer("def area(width, height):\n" * 12, return_tensors="pt")
    cache = SqueezeCache(model, budget=0.3, policy="strided")
    model.generate(**inputs, past_key_values=cache, max_new_tokens=16, do_sample=False)
    print(cache.plan)
    print(cache.memory())
    print(cache.kept_positions(0)[0, 0].tolist())


if __name__ == "__main__":
    main()
