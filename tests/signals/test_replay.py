"""What replaying says of each KV head, against the stock model that reads each piece again by itself."""

import pytest
import torch

from squeezeattention import SqueezeCache, load_embedded
from squeezeattention.errors import ConfigError
from squeezeattention.signals import Replay
from squeezeattention.testing import teacher_forced, tiny_model

from ..naive_replay import naive

FAMILIES = ["llama", "llama-mha", "gpt2", "qwen3-window", "gpt-oss", "falcon-7b", "mixtral", "olmo2"]
ROWS = [
    torch.randint(3, 101, (length,), generator=torch.Generator().manual_seed(length)).tolist()
    for length in (117, 90, 150)
]


def told(model, rows, signal, **options):
    """The needs that a cache finds, by row, layer and head."""
    cache = SqueezeCache(model, budget=0.5, allocator="probe", signal=signal, min_tokens=1)
    teacher_forced(model, cache, rows, **options)
    cache.compact()
    return cache.signal.needs()


@pytest.mark.parametrize("chunk", [None, 31])
@pytest.mark.parametrize("family", FAMILIES)
def test_needs_of_rows_in_a_batch_equal_the_naive_ones(family, chunk):
    model, signal = tiny_model(family), Replay(pieces=3, length=17, lead=5)
    for row, found in zip(ROWS, told(model, ROWS, signal, chunk=chunk), strict=True):
        for layer, (own, want) in enumerate(zip(found, naive(family, row, signal), strict=True)):
            # A token at the very threshold may fall on either side of it.
            assert own == pytest.approx(want, abs=1.01 / (3 * 17)), layer


def test_the_layer_that_looks_back_is_found():
    """The embedded model has one, found by cutting each layer alone (docs/embedded-model.md)."""
    model, tokenizer = load_embedded()
    text = "The code of the red house is 4417. A dog ran by. The code of the blue house is 9023. It was late. " * 6
    (needs,) = told(model, [tokenizer(text).input_ids], Replay())
    assert max(range(len(needs)), key=lambda layer: max(needs[layer])) == 1


def test_short_texts_say_nothing_and_turns_are_averaged():
    model, signal = tiny_model("llama"), Replay(pieces=2, length=20, lead=4)
    cache = SqueezeCache(model, budget=400, allocator="probe", signal=signal)
    with torch.no_grad():
        model(torch.tensor([ROWS[0][:23]]), past_key_values=cache)
        assert "no KV head looked back" in cache.plan.warnings[0]
        model(torch.tensor([ROWS[0][23:100]]), past_key_values=cache)
        cache.compact()
        first = cache.signal.needs()[0]
        model(torch.tensor([ROWS[1][:10]]), past_key_values=cache)
        cache.compact()
        assert cache.signal.needs()[0] == first  # too short to say anything new
        model(torch.tensor([ROWS[2]]), past_key_values=cache)
        cache.compact()
        assert cache.signal.needs()[0] != first
    cache.reset()
    assert cache.signal.needs() == []


@pytest.mark.parametrize(("tokens", "until"), [(1000, 1.0), (1000, 0.25), (137, 0.5), (300, 0.1), (25, 0.25)])
def test_pieces_lie_in_the_part_that_was_asked_for(tokens, until):
    signal = Replay(pieces=4, length=20, lead=5, until=until)
    starts = signal.starts(tokens)
    assert len(starts) == 4
    assert starts == sorted(starts)
    end = max(until * tokens, signal.lead + signal.length)  # a part too short for a piece has one of the beginning
    assert min(starts) >= signal.lead
    assert max(starts) + signal.length <= end
    assert len(set(starts)) == 4 or until * tokens < 2 * signal.length


def test_needs_of_the_beginning_equal_the_naive_ones():
    signal = Replay(pieces=3, length=17, lead=5, until=0.4)
    (found,), whole = told(tiny_model("llama"), ROWS[:1], signal), naive("llama", ROWS[0], Replay(3, 17, 5))
    want = naive("llama", ROWS[0], signal)
    assert want != whole
    for own, naively in zip(found, want, strict=True):
        assert own == pytest.approx(naively, abs=1.01 / (3 * 17))


@pytest.mark.parametrize(
    "options",
    [{"pieces": 0}, {"length": 0}, {"lead": -1}, {"share": 0.0}, {"share": 1}, {"until": 0.0}, {"until": 1.5}],
)
def test_bad_settings(options):
    with pytest.raises(ConfigError, match=next(iter(options))):
        Replay(**options)
