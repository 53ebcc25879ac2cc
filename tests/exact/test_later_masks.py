"""Masks that hide what was read before: pads of a row that ended early, a passage that is taken back."""

import pytest
import torch
from transformers import DynamicCache

from squeezeattention import SqueezeCache
from squeezeattention.errors import InputError, UnsupportedFeatureError
from squeezeattention.testing import position_ids, tiny_model

IDS = torch.randint(3, 101, (3, 60), generator=torch.Generator().manual_seed(3))
#: Row 1 is padded on the left from the start; in the second turn part of the first is gone, in the third more.
FIRST = torch.ones_like(IDS)
FIRST[1, :6] = 0
SECOND = FIRST.clone()
SECOND[0, 15:22] = SECOND[2, 9:14] = 0
THIRD = SECOND.clone()
THIRD[:, 30:33] = THIRD[0, 3] = 0
STORY = [(0, 16, FIRST), *((i, i + 1, FIRST) for i in range(16, 22)), (22, 40, SECOND)]
STORY += [*((i, i + 1, SECOND) for i in range(40, 46)), *((i, i + 1, THIRD) for i in range(46, 50)), (50, 60, THIRD)]


def told(model, cache, rows, story=STORY):
    """The logits of some rows, 0 at padding, with masks as long as the text so far."""
    parts = []
    with torch.no_grad():
        for start, stop, mask in story:
            mask = mask[:, :stop][rows]
            parts.append(
                model(
                    input_ids=IDS[rows, start:stop], attention_mask=mask, past_key_values=cache, use_cache=True,
                    position_ids=position_ids(mask)[:, start:],
                ).logits
            )  # fmt: skip
    return torch.cat(parts, dim=1) * FIRST[rows, story[0][0] : story[-1][1], None]


@pytest.mark.parametrize("rows", [[0], [0, 1, 2]])
@pytest.mark.parametrize("prefill", ["exact", "bounded"])
@pytest.mark.parametrize(
    ("family", "policy", "allocator"),
    [
        ("llama", "echo", "global"), ("llama", "h2o", "adakv"), ("llama", "snapkv", "probe"),
        ("qwen3-window", "streaming_llm", "squeeze"), ("qwen3-window", "h2o", "probe"),
        ("deepseek-v3", "tova", "uniform"), ("falcon-new", "sliding_window", "uniform"), ("gpt-oss", "echo", "global"),
    ],
)  # fmt: skip
def test_what_a_later_mask_hides_is_not_seen(family, policy, allocator, prefill, rows):
    model = tiny_model(family)
    want = told(model, DynamicCache(config=model.config), rows)
    cache = SqueezeCache(
        model, budget=100, policy=policy, allocator=allocator, new_tokens=60, prefill=prefill, chunk_size=7
    )
    torch.testing.assert_close(told(model, cache, rows), want, atol=1e-4, rtol=0)


def test_a_small_budget_holds_nothing_of_it():
    """Against one forward over the text with an explicit mask: of the newest 20 tokens those that are left."""
    model, stop = tiny_model("llama"), 40
    cache = SqueezeCache(model, budget=20, policy="sliding_window", allocator="uniform")
    mask = torch.ones(1, stop + 8, dtype=torch.long)
    with torch.no_grad():
        model(IDS[:1, :stop], past_key_values=cache)
        cache.compact()  # holds 20 ... 39
        mask[:, 25:30] = 0
        got = []
        for at in range(stop, stop + 8):
            given = {"attention_mask": mask[:, : at + 1], "position_ids": torch.tensor([[at]])}
            got.append(model(IDS[:1, [at]], past_key_values=cache, **given))
    assert cache.kept_positions(0).tolist() == [[list(range(30, 48))] * 2]
    seen = torch.ones(48, 48, dtype=torch.bool).tril()
    for query in range(stop, 48):
        seen[query, : query - 19] = seen[query, 25:30] = False
    with torch.no_grad():
        want = model(IDS[:1, :48], attention_mask=seen[None, None], use_cache=False).logits[0, stop:]
    torch.testing.assert_close(torch.cat([out.logits[0] for out in got]), want, atol=1e-4, rtol=0)


def test_a_batch_goes_on_after_a_row_that_ended_early():
    """``generate`` feeds pads to a row that is done; the next turn's mask, made from the ids, hides them."""
    model = tiny_model("llama")
    ids, mask, new = IDS[:2, :16], FIRST[:2, :16], IDS[:2, 40:50]
    options = {"max_new_tokens": 8, "do_sample": False}
    model.generation_config.eos_token_id = int(model.generate(ids, attention_mask=mask, **options)[0, 18])
    said = []
    for cache in (DynamicCache(), SqueezeCache(model, budget=100)):
        text = model.generate(ids, attention_mask=mask, past_key_values=cache, **options)
        whole = torch.cat([text, new], dim=1)
        shown = torch.cat([mask, (text[:, 16:] != 0).long(), torch.ones_like(new)], dim=1)
        said.append(
            model.generate(
                whole, attention_mask=shown, past_key_values=cache, output_logits=True, return_dict_in_generate=True,
                min_new_tokens=6, **options,
            )
        )  # fmt: skip
    assert (shown[0, 16:24] == 0).any()
    assert torch.equal(said[0].sequences, said[1].sequences)
    torch.testing.assert_close(torch.stack(said[1].logits), torch.stack(said[0].logits), atol=1e-4, rtol=0)


@pytest.mark.parametrize("policy", ["h2o", "streaming_llm"])
def test_in_graphs(graphs, policy):
    model = tiny_model("llama")
    want = told(model, DynamicCache(), [0, 1, 2])
    cache = SqueezeCache(model, budget=100, policy=policy, allocator="uniform", new_tokens=60, compile=True)
    torch.testing.assert_close(told(model, cache, [0, 1, 2]), want, atol=1e-4, rtol=0)
    assert graphs


@pytest.mark.parametrize("shown", [2, 17])
def test_what_is_gone_cannot_come_back(shown):
    """Left padding, or what an earlier mask hid; the cache goes on as if nobody had asked."""
    model = tiny_model("llama")
    want, cache = told(model, DynamicCache(), [0, 1]), SqueezeCache(model, budget=100)
    told(model, cache, [0, 1], STORY[:-1])
    row = 1 if shown == 2 else 0
    mask = THIRD[:2].clone()
    mask[row, shown] = 1
    with pytest.raises(InputError, match=rf"column {shown} of row {row}.*dropped"):
        model(IDS[:2, 50:60], attention_mask=mask, past_key_values=cache)
    torch.testing.assert_close(told(model, cache, [0, 1], STORY[-1:]), want[:, 50:], atol=1e-4, rtol=0)


def test_moved_sinks_cannot_follow():
    model = tiny_model("llama")
    cache = SqueezeCache(model, budget=20, policy="streaming_llm", allocator="uniform", positions="cache")
    told(model, cache, [0], [(0, 24, FIRST)])
    with pytest.raises(UnsupportedFeatureError, match="hides tokens"):
        told(model, cache, [0], [(24, 40, SECOND)])
