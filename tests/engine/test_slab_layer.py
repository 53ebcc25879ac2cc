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


def read_in_pieces(policy, texts, slabs, prompts, *, size, apart=False):
    """As :func:`told`, each prompt in pieces of ``size``, lying whole in blocks of ``prompts`` [R, m] until its end;
    ``apart``: cut behind the step, as a pool that has other layers in front."""
    layer = SlabLayer(POLICIES.create(policy), ROOMS.of, WIDTH**-0.5)
    cache = torch.full((120, HEADS, BLOCK, 2 * WIDTH), torch.nan)
    lengths, at, out, chosen = [len(text[0]) - STEPS for text in texts], [0] * len(texts), [[] for _ in texts], {}
    slabs = [[119] * apart + own for own in slabs]
    with torch.inference_mode():
        while any(done < length + STEPS for done, length in zip(at, lengths, strict=True)):
            spans = [
                (n, min(n + size, p) if n < p else min(n + 1, p + STEPS)) for n, p in zip(at, lengths, strict=True)
            ]
            offsets = [0]
            for first, last in spans:
                offsets.append(offsets[-1] + last - first)
            parts = [torch.cat([t[i][a:b] for t, (a, b) in zip(texts, spans, strict=True)]) for i in range(3)]
            given = [chosen.get(index) for index in range(len(texts))] if apart else None
            batch = SlabBatch(offsets, at, lengths, torch.tensor(slabs), torch.tensor(prompts), given)
            found = layer.attend(*parts, cache, batch)
            for index, (first, last) in enumerate(spans):
                out[index].append(found[offsets[index] : offsets[index + 1]])
                if apart and first < lengths[index] == last:
                    chosen[index] = (BLOCK * HEADS, ROOMS.of(last))
                    tables = (torch.tensor(one[index]) for one in (prompts, slabs))
                    layer.cut(index, last, *tables, *chosen[index], cache)
            at = [last for _, last in spans]
    return [torch.cat(own) for own in out]


@pytest.mark.parametrize("policy", SERVED)
@pytest.mark.parametrize("apart", [False, True])
def test_prompts_in_pieces(policy, apart):
    """Are what they are whole, whether they are cut as they end or behind that."""
    texts = drawn(PROMPTS)
    blocks = torch.randperm(118, generator=torch.Generator().manual_seed(2))
    slabs, prompts = blocks[:16].view(4, 4).tolist(), blocks[16:72].view(4, 14).tolist()
    for size in (7, 30, 200):
        pieces = read_in_pieces(policy, texts, slabs, prompts, size=size, apart=apart)
        for index, text in enumerate(texts):
            (alone,) = told(policy, [text], [[3, 0, 2, 9]])
            assert (pieces[index] - alone).abs().max() <= 1e-5


@pytest.mark.parametrize("apart", [False, True])
def test_prompts_that_share_blocks_end_in_one_step(apart):
    """What each one's last query looks at is its own, also where both have the same tokens in the same blocks."""
    one, other = drawn((60, 60))
    other = [torch.cat([mine[:40], theirs[40:]]) for mine, theirs in zip(one, other, strict=True)]
    table = list(range(40, 48))
    prompts = [table, [*table[:5], 60, 61, 62]]
    found = read_in_pieces("tova", [one, other], [[0, 1, 2, 3], [4, 5, 6, 7]], prompts, size=60, apart=apart)
    for index, text in enumerate((one, other)):
        (alone,) = told("tova", [text], [[3, 0, 2, 9]])
        assert (found[index] - alone).abs().max() <= 1e-5


def test_a_prompt_in_pieces_needs_blocks_to_lie_in():
    layer = SlabLayer(POLICIES.create("h2o"), ROOMS.of, WIDTH**-0.5)
    query, key, value = (part[:5] for part in drawn((5,))[0])
    batch = SlabBatch([0, 5], [3], [20], torch.tensor([[0, 1, 2, 3]]))
    with pytest.raises(
        CacheStateError, match="from token 3 on, and the engine was set up for prompts that are read in"
    ):
        layer.attend(query, key, value, torch.zeros(40, HEADS, BLOCK, 2 * WIDTH), batch)


def test_an_answer_without_budgets_is_an_error():
    layer = SlabLayer(POLICIES.create("h2o"), ROOMS.of, WIDTH**-0.5)
    query, key, value = (part[:1] for part in drawn((5,))[0])
    tables = torch.tensor([[0, 1, 2, 3]])
    batch = SlabBatch([0, 1], [5], [5], tables, tables, [None])
    with pytest.raises(CacheStateError, match="no budgets were chosen"):
        layer.attend(query, key, value, torch.zeros(40, HEADS, BLOCK, 2 * WIDTH), batch)


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
