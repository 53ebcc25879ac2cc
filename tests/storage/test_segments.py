"""A decode step over many lengths at once, against softmax and sums made unit by unit."""

import pytest
import torch

from squeezeattention.attention import ragged, segments
from squeezeattention.attention.core import Scoring
from squeezeattention.cache.ragged import RaggedStore
from squeezeattention.cache.units import Units


def a_store(rows, heads, width, out, dtype, *, seed, same=False):
    generator = torch.Generator().manual_seed(seed)
    sizes = (torch.randperm(60, generator=generator)[: rows * heads] + 1).tolist()
    if same:  # some units are of one length, so that they do not lie as they are numbered
        sizes[1] = sizes[4] = sizes[0]
    units = Units([sizes[row * heads : (row + 1) * heads] for row in range(rows)], torch.device("cpu"))
    keys = torch.randn(units.slots, width, generator=generator, dtype=dtype)
    values = torch.randn(units.slots, out, generator=generator, dtype=dtype)
    return RaggedStore(units, keys, values, torch.zeros(units.slots, dtype=torch.int64), torch.rand(units.slots))


def masks(store, *, seed):
    generator = torch.Generator().manual_seed(seed)
    found = []
    for number, run in enumerate(store.runs):
        mask = torch.rand(run.run.units, run.room, generator=generator) < 0.7
        mask[:, 0] = True
        found.append(mask if number % 3 else None)
    return found


def expected(query, store, seen, scale, softcap):
    units, group = store.units, query.shape[1] // store.units.heads
    out = torch.empty(*query.shape[:2], store.values.shape[1], dtype=query.dtype)
    received = torch.zeros(units.slots)
    for run, mask in zip(store.runs, seen, strict=True):
        for place in range(run.run.units):
            unit = units.sequence[run.run.start + place]
            row, head = divmod(unit, units.heads)
            for of in range(group):
                logits = run.keys[place] @ query[row, head * group + of, 0] * scale
                if softcap is not None:
                    logits = softcap * torch.tanh(logits / softcap)
                if mask is not None:
                    logits[~mask[place]] = -torch.inf
                weights = logits.softmax(0)
                out[row, head * group + of] = weights @ run.values[place]
                begin = int(units.begin[unit])
                received[begin : begin + run.room] += weights.float() / group
    return out[:, :, None], received


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("group", [1, 3, 4, 7])
@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("same", [False, True])
def test_it_is_attention_of_each_unit(dtype, group, softcap, masked, same):
    store = a_store(3, 4, 8, 6, dtype, seed=group, same=same)
    query = torch.randn(3, 4 * group, 1, 8, dtype=dtype)
    seen = masks(store, seed=group) if masked else [None] * len(store.runs)
    scoring = Scoring(0.4, softcap)
    assert segments.takes(store, query, scoring)
    before = store.scores.clone()
    out = ragged.attend_one_ragged(query, store, seen, scoring, scores=True)
    right, received = expected(query, store, seen, 0.4, softcap)
    torch.testing.assert_close(out, right, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(store.scores - before, received, atol=1e-5, rtol=1e-5)


def test_what_it_cannot_do_is_done_unit_by_unit():
    few = a_store(1, 2, 8, 8, torch.float32, seed=0)
    assert not segments.takes(few, torch.randn(1, 2, 1, 8), Scoring(1.0))
    store = a_store(2, 4, 8, 8, torch.float32, seed=0)
    query = torch.randn(2, 4, 1, 8)
    assert segments.takes(store, query, Scoring(1.0))
    assert not segments.takes(store, query, Scoring(1.0, sink_logits=torch.zeros(4)))
    assert not segments.takes(store, query.bfloat16(), Scoring(1.0))
    assert not segments.takes(store, query.clone().requires_grad_(), Scoring(1.0))
    half = a_store(2, 4, 8, 8, torch.bfloat16, seed=0)
    assert not segments.takes(half, query.bfloat16(), Scoring(1.0))


def test_no_word_of_sparse_tensors_reaches_a_user(recwarn):
    store = a_store(2, 4, 8, 8, torch.float32, seed=1)
    ragged.attend_one_ragged(torch.randn(2, 4, 1, 8), store, [None] * len(store.runs), Scoring(1.0), scores=False)
    assert not recwarn.list
