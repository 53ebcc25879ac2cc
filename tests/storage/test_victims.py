"""A policy's own way to its victim agrees with its ranking, ties and odd floats included."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from squeezeattention.policies import H2O, Tokens
from squeezeattention.policies.base import oldest_of_lowest


class Renamed(H2O):
    """Ranks otherwise: the short way of H2O would be wrong for it."""

    def priority(self, tokens, budget):
        return -super().priority(tokens, budget)


@settings(max_examples=300, deadline=None)
@given(
    levels=st.lists(st.sampled_from([0.0, 1e-42, 1e-3, 0.5, 1.0, 7.25, 3e38]), min_size=4, max_size=40),
    seed=st.integers(0, 2**31),
    recent=st.sampled_from([0.1, 0.5, 0.9]),
)
def test_h2o_takes_the_oldest_of_the_lowest(levels, seed, recent):
    generator = torch.Generator().manual_seed(seed)
    size = len(levels)
    scores = torch.tensor(levels)[torch.randint(size, (2, 3, size), generator=generator)]
    positions = torch.stack([torch.randperm(4 * size, generator=generator)[:size] for _ in range(6)]).view(2, 3, size)
    tokens = Tokens(positions, positions.amax(dim=(1, 2), keepdim=True) + 1, scores)
    for policy in (H2O(recent), Renamed(recent)):
        want = oldest_of_lowest(policy.priority(tokens, size), positions)
        assert torch.equal(policy.victim(tokens, size), want)
