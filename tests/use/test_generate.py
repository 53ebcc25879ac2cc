"""generate, pipelines, streamers, beams, turns, copies, threads: against stock caches and the reference."""

import copy
import functools
import threading

import pytest
import torch
from transformers import DynamicCache, PreTrainedTokenizerFast, TextIteratorStreamer, TextStreamer, pipeline

from squeezeattention import POLICIES, SqueezeCache, load_embedded, squeeze
from squeezeattention.errors import CacheStateError, UnsupportedFeatureError
from squeezeattention.hf import compat
from squeezeattention.hf.layout import inspect_model
from squeezeattention.testing import NaiveReference, left_padded, position_ids, tiny_model

FAMILIES = ("llama", "qwen3-window")
TOLERANCE = 1e-4
BIG = 400
GENERATOR = torch.Generator().manual_seed(11)
ROWS = [torch.randint(3, 101, (n,), generator=GENERATOR).tolist() for n in (37, 12, 29)]
IDS, MASK = left_padded(ROWS)


@pytest.fixture(scope="module", params=FAMILIES)
def model(request):
    return tiny_model(request.param)


@pytest.fixture(scope="module")
def llama():
    return tiny_model("llama")


def generate(model, rows=ROWS, cache=None, new=12, **options):
    ids, mask = left_padded(rows)
    options = {"do_sample": False, "max_new_tokens": new, "min_new_tokens": new, **options}
    return model.generate(ids, attention_mask=mask, past_key_values=cache, **options)


def rich(model, *args, **options):
    """Logits of every generated token [B, S, V] and the text."""
    out = generate(model, *args, output_logits=True, return_dict_in_generate=True, **options)
    return torch.stack(out.logits, dim=1), out.sequences


def budgets_of(plan):
    """By layer, or by layer and head."""
    return plan.budgets if plan.head_budgets is None else plan.head_budgets


def within(cache):
    for row, plan in enumerate(cache.plans):
        for layer, heads in enumerate(cache.head_lengths(row)):
            assert all(n <= b for n, b in zip(heads, plan.heads(layer, len(heads)), strict=True)), (heads, plan)


# ------------------------------------------------------------ equal to the stock


@pytest.mark.parametrize("policy", POLICIES.names())
@pytest.mark.parametrize("rows", [ROWS[:1], ROWS], ids=["one", "padded"])
def test_greedy(model, policy, rows):
    want = generate(model, rows)
    assert generate(model, rows, SqueezeCache(model, budget=BIG, policy=policy)).tolist() == want.tolist()
    with squeeze(model, budget=BIG, policy=policy):
        assert generate(model, rows).tolist() == want.tolist()


@pytest.mark.parametrize("policy", POLICIES.names())
def test_sampling(model, policy):
    options = {"do_sample": True, "top_k": 20, "temperature": 1.3, "num_return_sequences": 2}
    torch.manual_seed(5)
    want = generate(model, **options)
    torch.manual_seed(5)
    got = generate(model, cache=SqueezeCache(model, budget=BIG, policy=policy), **options)
    assert got.tolist() == want.tolist()
    torch.manual_seed(6)
    assert generate(model, **options).tolist() != want.tolist()


@pytest.mark.parametrize("policy", POLICIES.names())
def test_beams(model, policy):
    options = {
        "num_beams": 3, "num_return_sequences": 2, "output_scores": True, "return_dict_in_generate": True,
    }  # fmt: skip
    want = generate(model, **options)
    got = generate(model, cache=SqueezeCache(model, budget=BIG, policy=policy), **options)
    assert got.sequences.tolist() == want.sequences.tolist()
    assert (got.sequences_scores - want.sequences_scores).abs().max() < TOLERANCE


@pytest.mark.parametrize("policy", POLICIES.names())
@pytest.mark.parametrize("rows", [ROWS[:1], ROWS], ids=["one", "padded"])
def test_beams_within_small_budgets(model, policy, rows):
    """Each beam's score is what its tokens score when they are fed one by one to a cache of their own."""
    cache = SqueezeCache(model, budget=11, policy=policy)
    new = 12
    out = generate(
        model, rows, cache, new, num_beams=3, num_return_sequences=3, length_penalty=0.0, output_scores=True,
        return_dict_in_generate=True,
    )  # fmt: skip
    within(cache)
    assert cache.kept_positions(0).shape[0] == 3 * len(rows)
    width = max(map(len, rows))
    for beam, score in zip(range(len(out.sequences)), out.sequences_scores.tolist(), strict=True):
        row = rows[beam // 3]
        alone = SqueezeCache(model, policy=policy, allocator=cache.plans[beam])
        text = out.sequences[beam : beam + 1, width:]
        with torch.no_grad():
            logits = [model(input_ids=torch.tensor([row]), past_key_values=alone).logits[:, -1]]
            for step in range(new - 1):
                logits.append(model(input_ids=text[:, [step]], past_key_values=alone).logits[:, -1])
        logprobs = torch.stack(logits, 1).log_softmax(-1).gather(-1, text[..., None])
        assert abs(logprobs.sum().item() - score) < 1e-3


@pytest.mark.parametrize("policy", POLICIES.names())
def test_returned_sequences_with_small_budgets(model, policy):
    cache = SqueezeCache(model, budget=11, policy=policy)
    torch.manual_seed(1)
    out = generate(model, cache=cache, do_sample=True, num_return_sequences=3)
    assert out.shape[0] == 9
    within(cache)


# ------------------------------------------------------- streamers and pipelines


@pytest.fixture(scope="module")
def tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {"<pad>": 0, "<s>": 1, "</s>": 2, **{f"w{i}": i for i in range(3, 101)}}
    core = Tokenizer(models.WordLevel(words, unk_token="w3"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", bos_token="<s>", eos_token="</s>", padding_side="left"
    )


def text_of(row):
    return " ".join(f"w{token}" for token in row)


def test_text_streamer(llama, tokenizer, capsys):
    want = generate(llama, ROWS[:1], SqueezeCache(llama, budget=11))
    capsys.readouterr()
    with squeeze(llama, budget=11):
        generate(llama, ROWS[:1], streamer=TextStreamer(tokenizer, skip_prompt=True))
    assert capsys.readouterr().out.split() == text_of(want[0, len(ROWS[0]) :].tolist()).split()


def test_iterator_streamer(llama, tokenizer):
    want = generate(llama, ROWS[:1], SqueezeCache(llama, budget=11))
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, timeout=20)
    cache = SqueezeCache(llama, budget=11)
    thread = threading.Thread(
        target=generate, args=(llama, ROWS[:1], cache), kwargs={"streamer": streamer}, daemon=True
    )
    thread.start()
    said = "".join(streamer).split()
    thread.join(20)
    assert said == text_of(want[0, len(ROWS[0]) :].tolist()).split()
    within(cache)


def test_stop_strings():
    """``generate`` hands the tokenizer, which it needs for these, on to the model."""
    model, tokenizer = load_embedded()
    ids = tokenizer("def first(values):\n    return values[0]\n\n\ndef", return_tensors="pt").input_ids
    options = {"max_new_tokens": 12, "min_new_tokens": 4, "do_sample": False, "tokenizer": tokenizer}
    whole = model.generate(ids, **options)
    stop = tokenizer.decode(whole[0, -6:-4])
    want = model.generate(ids, stop_strings=[stop], **options)
    assert ids.shape[1] < want.shape[1] < whole.shape[1]
    cache = SqueezeCache(model, budget=1.0)
    assert torch.equal(model.generate(ids, past_key_values=cache, stop_strings=[stop], **options), want)


@pytest.mark.parametrize("batch", [1, 3])
def test_pipeline(llama, tokenizer, batch):
    pipe = pipeline("text-generation", model=llama, tokenizer=tokenizer, device="cpu")
    texts = [text_of(row) for row in ROWS]
    options = {
        "max_new_tokens": 9,
        "do_sample": False,
        "batch_size": batch,
        "return_full_text": False,
        "min_new_tokens": 9,
    }
    stock = [out[0]["generated_text"] for out in pipe(texts, **options)]
    with squeeze(llama, budget=BIG):
        assert [out[0]["generated_text"] for out in pipe(texts, **options)] == stock
    budgets = [9, 6, 14, 8]
    with squeeze(llama, allocator=budgets, policy="streaming_llm"):
        got = [out[0]["generated_text"].split() for out in pipe(texts, **options)]
    for row, said in zip(ROWS, got, strict=True):
        cache = SqueezeCache(llama, allocator=budgets, policy="streaming_llm")
        want = generate(llama, [row], cache, 9)[0, len(row) :].tolist()
        assert said == text_of(want).split()
    assert [out[0]["generated_text"] for out in pipe(texts, **options)] == stock


# ---------------------------------------------------------------- chunked prompts


@pytest.mark.parametrize("chunk", [4, 11])  # of 37 tokens: a remainder of exactly 1, and of more
@pytest.mark.parametrize("policy", POLICIES.names())
def test_chunks(model, policy, chunk):
    """Row 2 has 12 tokens of 37: whole chunks of it are padding."""
    whole, in_chunks = (
        SqueezeCache(model, budget=10, policy=policy),
        SqueezeCache(model, budget=10, policy=policy),
    )
    want, text = rich(model, cache=whole)
    got, again = rich(model, cache=in_chunks, prefill_chunk_size=chunk)
    assert [plan.budgets for plan in in_chunks.plans] == [plan.budgets for plan in whole.plans]
    assert again.tolist() == text.tolist()
    assert (got - want).abs().max() <= TOLERANCE
    for layer in range(len(whole.layers)):
        assert in_chunks.kept_positions(layer).tolist() == whole.kept_positions(layer).tolist()
    with squeeze(model, budget=10, policy=policy):
        assert generate(model, prefill_chunk_size=chunk).tolist() == text.tolist()


# -------------------------------------------------------------------------- turns

TURNS = [torch.randint(3, 101, (15,), generator=GENERATOR).tolist() for _ in range(3)]
LATER = [torch.randint(3, 101, (4,), generator=GENERATOR).tolist() for _ in range(3)]
#: How budgets move from turn to turn: not at all; with the text; with the text, nothing being cut at first.
BUDGETS = {
    "tokens": {"budget": 10},
    "fixed": {"allocator": [7, 30, 12, 9]},
    "roomy": {"budget": 40, "allocator": "uniform"},
    "share": {"budget": 0.4},
    "whole": {"budget": 1.0, "allocator": "uniform"},
}


def assert_same_tokens(cache, row, reference):
    """Both hold the same visible tokens (one that left a native window may go sooner or later)."""
    newest = len(reference.tokens) - 1
    for layer, window in enumerate(reference.windows):
        oldest = 0 if window is None else max(0, newest - window + 1)
        kept = [{p for p in head if p >= oldest} for head in cache.kept_positions(layer)[row].tolist()]
        assert kept == [{p for p in head if p >= oldest} for head in reference.kept[layer]], (row, layer)


@pytest.mark.parametrize(("batch", "chunk"), [(1, None), (2, 3)], ids=["one", "batch in chunks"])
@pytest.mark.parametrize(
    ("family", "kind"),
    [*(("llama", kind) for kind in BUDGETS), *(("qwen3-window", kind) for kind in ("tokens", "whole"))],
)
@pytest.mark.parametrize("policy", ["sliding_window", "streaming_llm", "h2o"])
def test_turns(family, policy, kind, batch, chunk):
    """Three turns on one cache, the whole text so far each time; the batch is left-padded."""
    if chunk and compat.chunks_start_anew():
        pytest.skip("refused with this release of transformers")
    model = tiny_model(family)
    cache = SqueezeCache(model, policy=policy, **BUDGETS[kind])
    windows, kv_heads = inspect_model(model).windows, model.config.num_key_value_heads
    references = [NaiveReference(model, policy, windows, kv_heads) for _ in range(batch)]
    for reference in references:
        reference.silent = policy != "h2o"
    compared = [[] for _ in range(batch)]  # our logits, by position in the row's own text
    text, mask = torch.zeros(batch, 0, dtype=torch.long), torch.zeros(batch, 0, dtype=torch.long)
    last = [[] for _ in range(batch)]
    for turn, new in enumerate((ROWS[:batch], TURNS[:batch], LATER[:batch])):
        added, real = left_padded(new)
        text, mask = torch.cat([text, added], dim=1), torch.cat([mask, real], dim=1)
        out = model.generate(
            text, attention_mask=mask, past_key_values=cache, max_new_tokens=9, min_new_tokens=9,
            do_sample=False, output_logits=True, return_dict_in_generate=True,
            prefill_chunk_size=chunk if turn else None,
        )  # fmt: skip
        within(cache)
        said = out.sequences[:, text.shape[1] :]
        for row, reference in enumerate(references):
            read = [reference.read(last[row] + new[row])]
            reference.cut(budgets_of(cache.plans[row]))
            read += [reference.step(token)[None] for token in said[row, :-1].tolist()]
            ours = torch.stack(out.logits, dim=1)[row]
            first = len(reference.tokens) - len(said[row])
            compared[row].append((first, ours, torch.cat(read)[-len(ours) :]))
            last[row] = said[row, -1:].tolist()
            assert_same_tokens(cache, row, reference)
        text, mask = out.sequences, torch.cat([mask, torch.ones_like(said)], dim=1)
    for row, reference in enumerate(references):
        if policy != "h2o":
            every = reference.logits()
        for turn, (first, ours, direct) in enumerate(compared[row]):
            want = direct if policy == "h2o" else every[first : first + len(ours)]
            assert (ours - want).abs().max() <= TOLERANCE, (turn, row, (ours - want).abs().amax(-1))


@pytest.mark.parametrize("anew", [True, False])
def test_a_later_turn_in_chunks_is_refused_where_generate_would_read_everything_again(model, monkeypatch, anew):
    cache = SqueezeCache(model, budget=10)
    text = generate(model, [ROWS[0]], cache)
    more = torch.cat([text, torch.tensor([ROWS[0][:9]])], dim=1)
    monkeypatch.setattr(compat, "chunks_start_anew", lambda: anew)
    if not anew:
        monkeypatch.undo()
        if compat.chunks_start_anew():
            pytest.skip("this release of transformers reads everything again")
        model.generate(more, past_key_values=cache, prefill_chunk_size=4, max_new_tokens=2, do_sample=False)
        return
    with pytest.raises(UnsupportedFeatureError, match="reads the whole text again"):
        model.generate(more, past_key_values=cache, prefill_chunk_size=4, max_new_tokens=2, do_sample=False)
    model.generate(more, past_key_values=cache, max_new_tokens=2, do_sample=False)  # nothing was lost


@pytest.mark.parametrize(
    ("family", "kind", "chunk"),
    [("llama", "tokens", 1), ("llama", "whole", None), ("qwen3-window", "share", 4)],
)
@pytest.mark.parametrize("policy", ["sliding_window", "streaming_llm", "h2o"])
def test_turns_of_different_length(family, policy, kind, chunk):
    """By hand: the last token is fed, then the new turns come left-padded (a row may even have none)."""
    model = tiny_model(family)
    cache = SqueezeCache(model, policy=policy, **BUDGETS[kind])
    windows, kv_heads = inspect_model(model).windows, model.config.num_key_value_heads
    references = [NaiveReference(model, policy, windows, kv_heads) for _ in ROWS]
    generator = torch.Generator().manual_seed(2)
    mask = torch.zeros(3, 0, dtype=torch.long)
    turns = [ROWS, [ROWS[0][:9], ROWS[1][:2], ROWS[2][:5]], [ROWS[0][:1], ROWS[1][:1], ROWS[2][:7]]]
    with torch.no_grad():
        for turn in turns:
            text, real = left_padded(turn)
            mask = torch.cat([mask, real], dim=1)
            width, size, parts = mask.shape[1], text.shape[1], []
            with cache.prefilling():
                for first in range(0, size, chunk or size):
                    stop = min(first + (chunk or size), size)
                    seen = mask[:, : width - size + stop]
                    parts.append(
                        model(
                            input_ids=text[:, first:stop], attention_mask=seen, past_key_values=cache,
                            position_ids=position_ids(seen)[:, first - stop :],
                        ).logits
                    )  # fmt: skip
            ours = torch.cat(parts, dim=1)
            fed = torch.randint(3, 101, (3, 9), generator=generator)
            steps = []
            for step in range(9):
                mask = torch.cat([mask, torch.ones(3, 1, dtype=torch.long)], dim=1)
                steps.append(
                    model(
                        input_ids=fed[:, [step]], attention_mask=mask, past_key_values=cache,
                        position_ids=position_ids(mask)[:, -1:],
                    ).logits
                )  # fmt: skip
                within(cache)
            steps = torch.cat(steps, dim=1)
            for row, reference in enumerate(references):
                want = reference.read(turn[row])
                assert (ours[row, -len(turn[row]) :] - want).abs().max() <= TOLERANCE
                reference.cut(budgets_of(cache.plans[row]))
                want = torch.stack([reference.step(token) for token in fed[row].tolist()])
                assert (steps[row] - want).abs().max() <= TOLERANCE
                assert_same_tokens(cache, row, reference)


@pytest.mark.parametrize("policy", POLICIES.names())
@pytest.mark.parametrize("chunk", [None, 1])
def test_padding_between_turns_of_generate(model, policy, chunk):
    """New turns of different length: what was said, then pads, then the turn; each row as if alone."""
    if chunk and compat.chunks_start_anew():
        pytest.skip("refused with this release of transformers")
    budgets = [9, 20, 12, 7]
    cache = SqueezeCache(model, policy=policy, allocator=budgets)
    text, mask = generate(model, ROWS, cache), left_padded(ROWS)[1]
    turns = [ROWS[0][:9], ROWS[1][:2], ROWS[2][:5]]
    added, real = left_padded(turns)
    mask = torch.cat([mask, torch.ones(3, 12, dtype=torch.long), real], dim=1)
    options = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False}
    got = model.generate(
        torch.cat([text, added], dim=1), attention_mask=mask, past_key_values=cache, prefill_chunk_size=chunk,
        **options,
    )[:, -8:]  # fmt: skip
    for row, turn in enumerate(turns):
        alone = SqueezeCache(model, policy=policy, allocator=budgets)
        first = generate(model, [ROWS[row]], alone)
        both = torch.cat([first, torch.tensor([turn])], dim=1)
        want = model.generate(
            both, attention_mask=torch.ones_like(both), past_key_values=alone, **options
        )[0, -8:]  # fmt: skip
        assert got[row].tolist() == want.tolist()


@pytest.mark.parametrize("batch", [1, 3])
def test_a_turn_of_new_tokens_only(llama, batch):
    """generate also takes just the new tokens, with the mask of the whole text."""
    rows = [row[:12] for row in ROWS[:batch]] if batch == 1 else ROWS
    first, mask = SqueezeCache(llama, budget=10), left_padded(rows)[1]
    text = generate(llama, rows, first)
    mask = torch.cat([mask, torch.ones(batch, 12 + 5, dtype=torch.long)], dim=1)
    new = torch.full((batch, 5), 7)
    second = copy.deepcopy(first)
    options = {"attention_mask": mask, "max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
    want = llama.generate(torch.cat([text, new], dim=1), past_key_values=first, **options)
    unseen = torch.cat([text[:, -1:], new], dim=1)
    got = llama.generate(unseen, past_key_values=second, **options)
    assert got[:, -6:].tolist() == want[:, -6:].tolist()


def test_turns_by_hand_equal_turns_of_generate(model):
    for policy in POLICIES:
        cache, manual = (SqueezeCache(model, budget=10, policy=policy) for _ in range(2))
        text = generate(model, ROWS[:1], cache)
        more = torch.cat([text, torch.tensor([TURNS[0]])], dim=1)
        out = model.generate(
            more, attention_mask=torch.ones_like(more), past_key_values=cache, max_new_tokens=5,
            min_new_tokens=5, do_sample=False,
        )  # fmt: skip
        with torch.no_grad():
            model(input_ids=text[:, :37], past_key_values=manual)
            for step in range(37, text.shape[1] - 1):
                model(input_ids=text[:, [step]], past_key_values=manual)
            logits = model(input_ids=more[:, text.shape[1] - 1 :], past_key_values=manual).logits[:, -1:]
            said = [logits.argmax(-1)]
            for _ in range(4):
                said.append(model(input_ids=said[-1], past_key_values=manual).logits.argmax(-1))
        if 2 not in torch.cat(said, 1):  # the end token, which generate was told to avoid
            assert torch.cat(said, 1).tolist() == out[:, -5:].tolist()


# ------------------------------------------------------ several caches and prompts


def stepwise(model, cache, row, steps=15):
    """Logits of a prompt and of given tokens, one forward at a time (a generator)."""
    with torch.no_grad():
        yield model(input_ids=torch.tensor([row]), past_key_values=cache).logits
        for step in range(steps):
            yield model(input_ids=torch.tensor([[3 + step * 7 % 90]]), past_key_values=cache).logits


@pytest.mark.parametrize("policy", POLICIES.names())
def test_caches_taking_turns_on_one_model(model, policy):
    def caches():
        return (
            SqueezeCache(model, budget=10, policy=policy),
            SqueezeCache(model, budget=0.3, policy=policy, allocator="uniform", min_tokens=1),
            DynamicCache(config=model.config),
        )

    alone = [list(stepwise(model, cache, row)) for cache, row in zip(caches(), ROWS, strict=True)]
    walks = [stepwise(model, cache, row) for cache, row in zip(caches(), ROWS, strict=True)]
    for step in range(16):
        for index, walk in enumerate(walks):
            assert torch.equal(next(walk), alone[index][step])


def test_caches_that_share_one_signal_object(llama):
    """Two prompts read in chunks, alternately, with the same Signal instance."""
    from squeezeattention.signals import Cosine

    def alone(row):
        cache = SqueezeCache(llama, budget=10, signal=Cosine())
        with torch.no_grad():
            llama(input_ids=torch.tensor([row]), past_key_values=cache)
        return cache.plan

    shared = Cosine()
    rows = [ROWS[0][:24], ROWS[2][:24]]
    caches = [SqueezeCache(llama, budget=10, signal=shared) for _ in rows]
    with torch.no_grad():
        for start in (0, 12):
            for cache, row in zip(caches, rows, strict=True):
                llama(input_ids=torch.tensor([row[start : start + 12]]), past_key_values=cache)
    for cache, row in zip(caches, rows, strict=True):
        assert cache.plan.signal_values == pytest.approx(alone(row).signal_values, abs=1e-5)


@pytest.mark.parametrize("policy", POLICIES.names())
@pytest.mark.parametrize("positions", ["original", "cache"])
def test_prompt_after_prompt(llama, policy, positions):
    """A cache that is reset and a squeezed model start every prompt from nothing."""
    options = {"budget": 9, "policy": policy}
    if positions == "cache":
        if policy != "streaming_llm":
            return
        options["positions"] = "cache"
    prompts = [ROWS, ROWS[:1], ROWS[1:], [ROWS[0][:3]], ROWS[:1]]
    want = []
    for rows in prompts:
        cache = SqueezeCache(llama, **options)
        want.append((*rich(llama, rows, cache), cache.plans, cache.memory()))
    cache = SqueezeCache(llama, **options)
    with squeeze(llama, **options) as handle:
        for rows, (logits, text, plan, memory) in zip(prompts, want, strict=True):
            for current in (cache, None):
                got, said = rich(llama, rows, current)
                assert torch.equal(got, logits)
                assert torch.equal(said, text)
                held = current or handle.cache
                assert held.plans == plan
                assert held.memory() == memory
            cache.reset()


@pytest.mark.parametrize("policy", POLICIES.names())
@pytest.mark.parametrize("batch", [3])
def test_copies_of_a_cache_go_their_own_ways(model, policy, batch):
    context = SqueezeCache(model, budget=10, policy=policy)
    ids, mask = left_padded(ROWS[:batch])

    def read(cache):
        with torch.no_grad(), cache.prefilling():
            model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=position_ids(mask),
                past_key_values=cache,
            )

    def feed(cache, token):
        seen = mask
        logits = []
        with torch.no_grad():
            for step in range(18):
                seen = torch.cat([seen, torch.ones(batch, 1, dtype=torch.long)], dim=1)
                given = torch.full((batch, 1), token + step)
                place = position_ids(seen)[:, -1:]
                logits.append(
                    model(input_ids=given, attention_mask=seen, position_ids=place, past_key_values=cache).logits
                )
        return torch.cat(logits, dim=1)

    want = []
    for token in (5, 50):
        fresh = SqueezeCache(model, budget=10, policy=policy)
        read(fresh)
        want.append(feed(fresh, token))
    read(context)
    one, other = copy.deepcopy(context), copy.deepcopy(context)
    assert torch.equal(feed(one, 5), want[0])
    assert torch.equal(feed(other, 50), want[1])
    del one, other
    before = context.kept_positions(0)
    assert torch.equal(feed(copy.deepcopy(context), 50), want[1])
    assert torch.equal(context.kept_positions(0), before)
    assert torch.equal(feed(context, 5), want[0])


@pytest.mark.parametrize("policy", POLICIES.names())
def test_copy_of_a_cache_that_was_used_with_gradients_on(llama, policy):
    """A forward outside ``no_grad`` must not tie the cache to its graph."""
    cache = SqueezeCache(llama, budget=10, policy=policy)
    llama(input_ids=IDS[:1], past_key_values=cache)
    llama(input_ids=IDS[:1, :1], past_key_values=cache)
    for layer in cache.layers:
        store = layer.store
        for tensor in (store.keys, store.values, store.scores):
            assert tensor is None or not tensor.requires_grad
    twin = copy.deepcopy(cache)
    assert twin.kept_positions(0).tolist() == cache.kept_positions(0).tolist()


@pytest.mark.parametrize("family", ["llama", "falcon-new", "qwen3-window"])
@pytest.mark.parametrize("how", ["cache", "squeeze"])
def test_copy_of_an_attached_model(family, how):
    model = tiny_model(family)
    stock, ours = generate(model), generate(model, cache=SqueezeCache(model, budget=10))
    held = squeeze(model, budget=10) if how == "squeeze" else SqueezeCache(model, budget=10)
    twin = copy.deepcopy(model)
    assert generate(twin).tolist() == stock.tolist()
    assert generate(twin, cache=SqueezeCache(twin, budget=10)).tolist() == ours.tolist()
    assert generate(twin).tolist() == stock.tolist()
    with squeeze(twin, budget=10):
        assert generate(twin).tolist() == ours.tolist()
    if how == "squeeze":
        assert generate(model).tolist() == ours.tolist()  # the first is still squeezed
    else:
        assert generate(model, cache=held).tolist() == ours.tolist()
    held.detach()
    assert generate(model).tolist() == stock.tolist()
    assert generate(twin).tolist() == stock.tolist()
    assert generate(twin, cache=SqueezeCache(twin, budget=10)).tolist() == ours.tolist()


# ------------------------------------------------------------------------ threads


@pytest.mark.parametrize("family", ["llama", "falcon-7b"])
def test_two_threads(family):
    """One with our cache, one with the stock cache, at once on one model."""
    model = tiny_model(family)
    stock = generate(model, new=25)
    ours = generate(model, cache=SqueezeCache(model, budget=10), new=25)
    model = tiny_model(family)
    barrier, said, errors = threading.Barrier(2), {"ours": [], "stock": []}, []

    def work(name):
        try:
            barrier.wait(20)
            for _ in range(3):
                cache = SqueezeCache(model, budget=10) if name == "ours" else None
                said[name].append(generate(model, cache=cache, new=25).tolist())
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(name,)) for name in said]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not errors
    assert said["ours"] == [ours.tolist()] * 3
    assert said["stock"] == [stock.tolist()] * 3


@pytest.mark.parametrize("family", ["llama", "falcon-7b"])
def test_another_thread_in_the_middle_of_the_first_prompt(family):
    """What the first prompt finds out about a model must not be mixed up with another thread's forward."""
    quiet = tiny_model(family)
    cache = SqueezeCache(quiet, budget=10)
    want, plans = generate(quiet, cache=cache).tolist(), cache.plans
    stock = generate(quiet).tolist()
    model, me, said = tiny_model(family), threading.get_ident(), []

    def interrupt(module, args):
        if threading.get_ident() == me:
            thread = threading.Thread(target=lambda: said.append(generate(model, new=1)))
            thread.start()
            thread.join(20)

    hooks = [layer.mlp.register_forward_pre_hook(interrupt) for layer in inspect_model(model).layers]
    try:
        cache = SqueezeCache(model, budget=10)
        got = generate(model, cache=cache).tolist()
    finally:
        for hook in hooks:
            hook.remove()
    assert said
    assert all(out[:, -1].tolist() == [row[IDS.shape[1]] for row in stock] for out in said)
    assert got == want
    assert cache.plans == plans


# ------------------------------------------------------------------ another text


@pytest.mark.parametrize("returns", [True, False])
def test_another_text_on_a_used_cache_is_refused(llama, returns):
    ids, mask = left_padded(ROWS)
    options = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0, "return_dict_in_generate": returns}
    cache = SqueezeCache(llama, budget=12, policy="streaming_llm", allocator="uniform")
    out = llama.generate(ids, attention_mask=mask, past_key_values=cache, **options)
    text = out.sequences if returns else out
    seen, kept = cache.get_seq_length(), cache.kept_positions(1)
    for row, column in ((0, 3), (1, 36), (2, seen - 1)):
        other = torch.cat([text, text[:, :5]], dim=1)
        other[row, column] = 3 + (other[row, column] == 3)
        with pytest.raises(CacheStateError, match=f"another text.*column {column} on, of {seen} read"):
            llama.generate(other, attention_mask=torch.ones_like(other), past_key_values=cache, **options)
        assert (cache.get_seq_length(), cache.kept_positions(1).tolist()) == (seen, kept.tolist())
    more = torch.cat([text, text[:, :5]], dim=1)
    whole = torch.cat([mask, torch.ones(3, more.shape[1] - mask.shape[1], dtype=torch.long)], dim=1)
    more[:, seen] = 3 + (more[:, seen] == 3)  # it was written, but never read
    llama.generate(more, attention_mask=whole, past_key_values=cache, **options)
    cache.reset()
    llama.generate((ids + mask) % 100, attention_mask=mask, past_key_values=cache, **options)


def test_what_is_not_known_is_not_refused(llama):
    """Tokens alone under a mask of all, other rows, and a cache that was driven by hand."""
    ids = torch.tensor([ROWS[0]])
    options = {"max_new_tokens": 3, "do_sample": False, "pad_token_id": 0}
    cache = SqueezeCache(llama, budget=12, allocator="uniform")
    text = llama.generate(ids, past_key_values=cache, **options)
    new = text[:, :6]
    mask = torch.ones(1, cache.get_seq_length() + 6, dtype=torch.long)
    llama.generate(new, attention_mask=mask, past_key_values=cache, **options)
    by_hand = SqueezeCache(llama, budget=12, allocator="uniform")
    with torch.no_grad():
        llama(input_ids=ids, past_key_values=by_hand)
    by_hand.compact()
    other = torch.cat([(ids + 1) % 100, ids[:, :4]], dim=1)
    llama.generate(other, attention_mask=torch.ones_like(other), past_key_values=by_hand, **options)


def test_a_look_at_the_masks_ends_no_other_threads_forward(monkeypatch):
    """Another thread's forward reaches the first layer while the hook of the look is there."""
    model = tiny_model("llama")
    want, found = generate(model, new=2), []
    forward = type(model.model).forward

    @functools.wraps(forward)
    def meanwhile(decoder, *args, **kwargs):
        if threading.current_thread() is threading.main_thread() and not found:
            other = threading.Thread(target=lambda: found.append(generate(model, new=2)))
            other.start()
            other.join(60)
        return forward(decoder, *args, **kwargs)

    monkeypatch.setattr(type(model.model), "forward", meanwhile)
    SqueezeCache(model, budget=10)
    assert found
    assert torch.equal(found[0], want)
