"""A layer's slab without vLLM: requests of different budgets in one batch are what they are alone."""

import pytest
import torch

from squeezeattention import POLICIES
from squeezeattention.engine.lengths import ByLength
from squeezeattention.engine.places import PlacesByRoom
from squeezeattention.engine.settings import what_lacks
from squeezeattention.engine.slab import SlabBatch, SlabLayer
from squeezeattention.errors import CacheStateError

HEADS, QUERY_HEADS, WIDTH, BLOCK = 4, 8, 32, 8
ROOMS = ByLength((10, 30, 80), ((8, 24, 16, 16), (7, 9, 40, 8), (20, 12, 60, 36)))
PROMPTS, STEPS = (5, 25, 30, 100), 34
SERVED = [name for name in POLICIES if what_lacks(POLICIES.create(name)) is None]


def drawn(requests):
    """Queries, keys and values ``[T, heads, D]`` of each request, prompt and answer."""
    generator = torch.Generator().manual_seed(3)
    return [
        [torch.randn(tokens + STEPS, heads, WIDTH, generator=generator) for heads in (QUERY_HEADS, HEADS, HEADS)]
        for tokens in requests
    ]


def told(policy, texts, tables, dtype=torch.float32):
    """What each request's tokens come to, all requests in each step."""
    layer = SlabLayer(POLICIES.create(policy), ROOMS.of, WIDTH**-0.5)
    cache = torch.full((40, HEADS, BLOCK, 2 * WIDTH), torch.nan, dtype=dtype)
    prompts = [len(text[0]) - STEPS for text in texts]
    out = [[] for _ in texts]
    with torch.inference_mode():
        for step in range(-1, STEPS):
            spans = [(0, n) if step < 0 else (n + step, n + step + 1) for n in prompts]
            offsets = [0]
            for first, last in spans:
                offsets.append(offsets[-1] + last - first)
            parts = [torch.cat([t[i][a:b] for t, (a, b) in zip(texts, spans, strict=True)]).to(dtype) for i in range(3)]
            batch = SlabBatch(offsets, [first for first, _ in spans], prompts, torch.tensor(tables))
            found = layer.attend(*parts, cache, batch)
            for own, first, last in zip(out, offsets, offsets[1:], strict=False):
                own.append(found[first:last])
    return [torch.cat(own) for own in out]


@pytest.mark.parametrize("policy", SERVED)
def test_a_batch_is_its_requests(policy):
    """With more lengths than are taken one by one (attention/segments.py), in blocks that lie anywhere."""
    texts = drawn(PROMPTS)
    blocks = torch.randperm(40, generator=torch.Generator().manual_seed(1))[:16].view(4, 4).tolist()
    together = told(policy, texts, blocks)
    for index, text in enumerate(texts):
        (alone,) = told(policy, [text], [[3, 0, 2, 9]])
        assert (together[index] - alone).abs().max() <= 1e-5


def test_half_precision():
    texts = drawn(PROMPTS[:2])
    blocks = [[0, 1, 2, 3], [4, 5, 6, 7]]
    for half, whole in zip(told("h2o", texts, blocks, torch.bfloat16), told("h2o", texts, blocks), strict=True):
        assert (half.float() - whole)[:30].abs().max() < 0.1


def test_too_few_blocks():
    places = PlacesByRoom(POLICIES.create("h2o")).of([(8, 24)], torch.device("cpu"))
    cache = torch.zeros(4, 2, 8, 2)
    assert len(places.slots(torch.tensor([[3, 1]]), cache)) == 32
    with pytest.raises(CacheStateError, match="keeps 32 tokens of its KV heads, and has 1 blocks of 16"):
        places.slots(torch.tensor([[3]]), cache)


def test_lengths():
    assert [ROOMS.of(tokens)[0] for tokens in (1, 10, 11, 30, 31, 81, 9999)] == [8, 8, 7, 7, 20, 20, 20]
    assert ByLength.always(3).of(700) == 3
    assert ROOMS.map(sum).values == (64, 64, 128)
    assert ROOMS.longest == (20, 12, 60, 36)
