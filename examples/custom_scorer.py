"""A new token scorer in one short file: keep the tokens whose values are long and that are looked at now and then.

Run it with ``python examples/custom_scorer.py``; nothing in the library has to change. By name it works in every
command, too: ``squeeze generate embedded -f FILE --policy loud --include examples/custom_scorer.py``.
"""

from __future__ import annotations

import torch

from squeezeattention import POLICIES, SqueezeCache, load_embedded
from squeezeattention.policies import LayerView, Scored


class Loud(Scored):
    """Score = attention of the newest 16 queries times the norm of the token's value."""

    name = "loud"
    last_queries = 16  # whose attention the view is to show
    every = 64  # steps after which everything is scored anew; new tokens stay until then

    def score(self, view: LayerView) -> torch.Tensor:
        """[B, H, N]; sinks and the newest tokens stay whatever their score is."""
        looked_at = view.attention().mean(dim=(2, 3))  # over the group's query heads, and the queries
        return looked_at * view.values.float().norm(dim=-1)


POLICIES.register("loud", Loud, replace=True)


def main() -> None:
    model, tokenizer = load_embedded()
    inputs = tokenizer("def area(width, height):\n" * 12, return_tensors="pt")
    cache = SqueezeCache(model, budget=48, policy="loud", allocator="adakv")  # heads share by the scores
    model.generate(**inputs, past_key_values=cache, max_new_tokens=16, do_sample=False)
    print(cache.plan)
    print(cache.head_lengths())
    print(cache.kept_positions(0)[0, 0].tolist())


if __name__ == "__main__":
    main()
