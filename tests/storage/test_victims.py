"""A policy's own way to its victim agrees with its ranking, ties and odd floats included."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from squeezeattention.policies import H2O, POLICIES, Tokens
from squeezeattention.policies.base import oldest_of_lowest
from squeezeattention.policies.ranking import survivors


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


@settings(max_examples=200, deadline=None)
@given(
    size=st.integers(6, 60), seed=st.integers(0, 2**31), window=st.none() | st.integers(3, 40),
    name=st.sampled_from(POLICIES.names()), data=st.data(),
)  # fmt: skip
def test_what_stays_in_a_small_budget_stays_in_a_larger_one(size, seed, window, name, data):
    """Of those that say so; padding in front, ties among the scores."""
    policy = POLICIES.create(name)
    assert policy.nested
    assert policy.minimum <= 6
    small = data.draw(st.integers(policy.minimum, size))
    large = data.draw(st.integers(small, size))
    generator = torch.Generator().manual_seed(seed)
    pads = torch.randint(size // 2, (2, 1, 1), generator=generator)
    positions = torch.arange(size).expand(2, 3, size) - pads
    positions = positions.clamp(min=-1)
    scores = torch.randint(5, (2, 3, size), generator=generator).float()
    newest = positions.amax(dim=-1, keepdim=True)[:, :1]

    def kept(positions, scores, budget):
        index = survivors(policy, Tokens(positions, newest, scores), budget, window).expand(2, 3, -1)
        taken = index.clamp(min=0)
        return positions.expand(2, 3, -1).gather(-1, taken).masked_fill(index < 0, -1), scores.gather(-1, taken)

    twice, _ = kept(*kept(positions, scores, large), small)
    once, _ = kept(positions, scores, small)
    assert torch.equal(twice, once)
