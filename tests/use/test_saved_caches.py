"""A cache that is saved and read goes on as the one that was not saved: the same numbers, in every layout."""

import copy
import inspect
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from squeezeattention import SqueezeCache
from squeezeattention.cache import cache_file
from squeezeattention.errors import CacheFileError, CacheStateError, UnsupportedFeatureError
from squeezeattention.hf import compiled
from squeezeattention.policies import SlidingWindow
from squeezeattention.testing import left_padded, position_ids, tiny_model

GENERATOR = torch.Generator().manual_seed(8)
ROWS = [torch.randint(3, 101, (n,), generator=GENERATOR).tolist() for n in (70, 41, 58)]
LATER = torch.randint(3, 101, (3, 40), generator=GENERATOR)
HEADS = [[30, 12], [9, 40], [24, 24], [16, 31]]

LAYOUTS = {
    "equal heads": ("llama", {"policy": "h2o", "allocator": "uniform", "budget": 20}),
    "ragged heads": ("llama", {"policy": "h2o", "allocator": HEADS}),
    "each row its own": ("llama", {"policy": "h2o", "allocator": "squeeze", "budget": 0.3, "min_tokens": 1}),
    "the default": ("llama", {"budget": 0.4, "min_tokens": 1}),
    "native windows": ("gemma3", {"policy": "h2o", "allocator": "squeeze", "budget": 15}),
    "windows and sinks": ("gpt-oss", {"policy": "streaming_llm", "allocator": "uniform", "budget": 15}),
    "moved sinks": ("llama", {"policy": "streaming_llm", "positions": "cache", "allocator": "uniform", "budget": 15}),
    "moved sinks of heads": ("llama", {"policy": "streaming_llm", "positions": "cache", "allocator": HEADS}),
    "room left": ("llama", {"policy": "h2o", "allocator": "uniform", "budget": 400}),
    "all of it": ("llama", {"policy": "snapkv", "allocator": "uniform", "budget": 1.0}),
    "queries kept": ("llama", {"policy": "snapkv", "allocator": "adakv", "budget": 30}),
    "statistics kept": ("llama", {"policy": "expected_attention", "allocator": "probe", "budget": 30}),
    "latents": ("deepseek-v3", {"policy": "tova", "allocator": "uniform", "budget": 25}),
    "in pieces": ("llama", {"policy": "h2o", "allocator": "cake", "budget": 9, "prefill": "bounded", "chunk_size": 9}),
    "tails kept": ("falcon-new", {"policy": "h2o", "allocator": "cake", "budget": 25}),
    "measured together": (
        "llama", {"policy": "h2o", "allocator": "probe", "budget": 25, "signal": ["replay", "cosine", "span"]},
    ),
}  # fmt: skip


def forward(model, cache, mask, tokens):
    """One forward of ``tokens``; ``mask`` is that of the first prompt."""
    columns = cache.get_seq_length() + tokens.shape[1]
    whole = torch.cat([mask, mask.new_ones(len(mask), columns)], dim=1)[:, :columns]
    given = {"input_ids": tokens, "attention_mask": whole, "past_key_values": cache}
    if "position_ids" in inspect.signature(type(model).forward).parameters:
        given["position_ids"] = position_ids(whole)[:, -tokens.shape[1] :]
    with torch.no_grad():
        return model(**given).logits


def decode(model, cache, mask, tokens):
    """Logits of each of ``tokens``, one a step."""
    return torch.cat([forward(model, cache, mask, token) for token in tokens.split(1, dim=1)], dim=1)


def read(model, cache, rows=ROWS):
    """A prompt and some steps; returns the prompt's mask."""
    ids, mask = left_padded(rows)
    forward(model, cache, mask, ids)
    decode(model, cache, mask, LATER[: len(rows), :5])
    return mask


def goes_on(model, cache, mask):
    """Decode steps, a further turn, and decode steps after it."""
    rows = LATER[: len(mask)]
    steps = decode(model, cache, mask, rows[:, 5:17])
    turn = forward(model, cache, mask, rows[:, 17:30])
    cache.compact()
    return steps, turn, decode(model, cache, mask, rows[:, 30:])


def same(one, other):
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("rows", [ROWS, ROWS[:1]], ids=["padded", "alone"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_it_goes_on_as_if_it_had_not_been_saved(layout, rows, tmp_path):
    family, settings = LAYOUTS[layout]
    model = tiny_model(family)
    cache = SqueezeCache(model, **settings)
    mask = read(model, cache, rows)
    cache.save(tmp_path / "cache")
    loaded = SqueezeCache.load(tiny_model(family), tmp_path / "cache")
    model_of_loaded = loaded._attachment.model
    assert loaded.plans == cache.plans
    assert loaded.head_lengths() == cache.head_lengths()
    assert loaded.memory() == cache.memory()
    assert repr(loaded) == repr(cache)
    for layer in range(len(cache.layers)):
        assert torch.equal(loaded.kept_positions(layer), cache.kept_positions(layer))
    same(goes_on(model_of_loaded, loaded, mask), goes_on(model, cache, mask))
    assert loaded.plans == cache.plans


def test_it_holds_what_the_stock_cache_holds(tmp_path):
    """Nothing is evicted: the logits are those of the whole text at once."""
    model = tiny_model("llama")
    cache = SqueezeCache(model, 400, "h2o", "uniform")
    mask = read(model, cache)
    cache.save(tmp_path / "cache")
    loaded = SqueezeCache.load(model, tmp_path / "cache")
    got = goes_on(model, loaded, mask)
    ids = torch.cat([left_padded(ROWS)[0], LATER], dim=1)
    whole = torch.cat([mask, torch.ones_like(LATER)], dim=1)
    with torch.no_grad():
        want = model(input_ids=ids, attention_mask=whole, position_ids=position_ids(whole)).logits
    torch.testing.assert_close(torch.cat(got, dim=1), want[:, -35:], atol=1e-4, rtol=0)
    loaded.reset()
    read(model, loaded)
    same(goes_on(model, loaded, mask), got)


@pytest.mark.parametrize("allocator", ["uniform", HEADS], ids=["equal", "ragged"])
def test_compiled_steps(allocator, tmp_path, monkeypatch):
    """Buffers of compiled steps have all their columns from the first step on; nothing compiles them here."""
    monkeypatch.setattr(compiled, "_compiler", lambda mode: compiled._forward)
    model = tiny_model("llama")
    budget = {} if allocator is HEADS else {"budget": 100}
    cache = SqueezeCache(model, policy="h2o", allocator=allocator, compile=True, **budget)
    eager = SqueezeCache(model, policy="h2o", allocator=allocator, **budget)
    mask = read(model, cache)
    cache.save(tmp_path / "cache")
    loaded = SqueezeCache.load(model, tmp_path / "cache")
    plain = SqueezeCache.load(model, tmp_path / "cache", compile=False)
    assert loaded.compile
    assert not plain.compile
    want = goes_on(model, eager, read(model, eager))
    same(goes_on(model, loaded, mask), goes_on(model, cache, mask))
    for got, part in zip(goes_on(model, plain, mask), want, strict=True):
        torch.testing.assert_close(got, part, atol=1e-4, rtol=0)


def test_generate_goes_on(tmp_path):
    model = tiny_model("llama")
    ids = torch.tensor(ROWS[:1])
    options = {"do_sample": False, "max_new_tokens": 12, "min_new_tokens": 12}
    cache = SqueezeCache(model, 0.3, min_tokens=1)
    text = torch.cat([model.generate(ids, past_key_values=cache, **options), LATER[:1]], dim=1)
    cache.save(tmp_path / "cache")
    loaded = SqueezeCache.load(model, tmp_path / "cache")
    other = text.clone()
    other[0, 3] += 1
    with pytest.raises(CacheStateError, match="another text"):
        model.generate(other, past_key_values=loaded, **options)
    want = model.generate(text, past_key_values=cache, **options)
    assert model.generate(text, past_key_values=loaded, **options).tolist() == want.tolist()


def test_in_a_new_process(tmp_path):
    model = tiny_model("llama")
    model.save_pretrained(tmp_path / "model")
    cache = SqueezeCache(model, 0.3, min_tokens=1)
    mask = read(model, cache)
    cache.save(tmp_path / "cache")
    torch.save({"mask": mask, "want": decode(model, cache, mask, LATER[:, 5:])}, tmp_path / "want")
    code = f"""
import sys, torch
from pathlib import Path
from transformers import AutoModelForCausalLM
sys.path.insert(0, {str(Path(__file__).parent)!r})
from squeezeattention import SqueezeCache
from test_saved_caches import LATER, decode
folder = Path({str(tmp_path)!r})
model = AutoModelForCausalLM.from_pretrained(folder / "model")
told = torch.load(folder / "want")
cache = SqueezeCache.load(model, folder / "cache")
assert torch.equal(decode(model, cache, told["mask"], LATER[:, 5:]), told["want"])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("kind", ["cpu", "disk"])
def test_offloaded_weights(kind, tmp_path):
    """Weights that lie elsewhere are the same weights."""
    accelerate = pytest.importorskip("accelerate")
    model, device = tiny_model("llama"), torch.device("cpu")
    cache = SqueezeCache(model, 20, "h2o", "squeeze")
    mask = read(model, cache)
    cache.save(tmp_path / "cache")
    elsewhere, other = tiny_model("llama"), tiny_model("llama", seed=1)
    for number, one in enumerate((elsewhere, other)):
        if kind == "cpu":
            accelerate.cpu_offload(one, execution_device=device)
        else:
            accelerate.disk_offload(one, str(tmp_path / f"weights{number}"), device)
    with pytest.raises(CacheFileError, match="the weights differ"):
        SqueezeCache.load(other, tmp_path / "cache")
    loaded = SqueezeCache.load(elsewhere, tmp_path / "cache")
    loaded.save(tmp_path / "again")
    want = goes_on(model, cache, mask)
    same(goes_on(elsewhere, loaded, mask), want)
    same(goes_on(model, SqueezeCache.load(model, tmp_path / "again"), mask), want)


def test_an_empty_cache_and_one_that_was_cut_another_way(tmp_path):
    model = tiny_model("llama")
    cache = SqueezeCache(model, 0.3, "h2o", "squeeze", min_tokens=1)
    cache.save(tmp_path / "cache")
    loaded = SqueezeCache.load(model, tmp_path / "cache")
    same(goes_on(model, loaded, read(model, loaded)), goes_on(model, cache, read(model, cache)))
    mask = torch.ones(3, 75, dtype=torch.int64)
    twin = SqueezeCache.load(model, tmp_path / "cache")
    with twin.prefilling():
        model(input_ids=torch.tensor([ROWS[0]] * 3), past_key_values=twin)
        uniform = twin.twin(allocator="uniform", budget=14)
    decode(model, uniform, mask[:, :70], LATER[:, :5])
    uniform.save(tmp_path / "uniform")
    same(
        goes_on(model, SqueezeCache.load(model, tmp_path / "uniform"), mask),
        goes_on(model, copy.deepcopy(uniform), mask),
    )


class Newest(SlidingWindow):
    """A policy of somebody else's."""

    name = "newest"

    def __init__(self, note=None):
        self.note = note


def test_rules_of_others(tmp_path):
    model = tiny_model("llama")
    cache = SqueezeCache(model, 20, Newest({"a": (1, 2.5)}), "uniform")
    mask = read(model, cache)
    cache.save(tmp_path / "cache")
    loaded = SqueezeCache.load(model, tmp_path / "cache")
    assert type(loaded.policy) is Newest
    assert loaded.policy.note == {"a": (1, 2.5)}
    same(goes_on(model, loaded, mask), goes_on(model, cache, mask))
    cache = SqueezeCache(model, 20, Newest(lambda: 1), "uniform")
    read(model, cache)
    with pytest.raises(UnsupportedFeatureError, match=r"settings\.policy\.note is a function"):
        cache.save(tmp_path / "cache")


# --------------------------------------------------------------------- refusals


@pytest.fixture
def saved(tmp_path):
    model = tiny_model("llama")
    cache = SqueezeCache(model, 20, "h2o", "uniform")
    read(model, cache)
    cache.save(tmp_path / "cache")
    return tmp_path / "cache"


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (lambda: tiny_model("llama", seed=1), "the weights differ"),
        (lambda: tiny_model("mistral"), "shape llama"),
        (lambda: tiny_model("llama", num_hidden_layers=3), "shape llama"),
        (lambda: tiny_model("llama", dtype=torch.bfloat16), r"dtype torch\.float32"),
        (
            lambda: tiny_model("llama", rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}),
            "configs differ in rope_parameters",
        ),
    ],
)
def test_caches_of_other_models_are_refused(other, words, saved):
    model = other()
    with pytest.raises(CacheFileError, match=words):
        SqueezeCache.load(model, saved)
    assert model.config._attn_implementation == "sdpa"  # nothing was attached
    assert not model.model._forward_pre_hooks


def test_files_that_are_no_whole_cache_are_refused(saved, tmp_path, monkeypatch):
    model, whole = tiny_model("llama"), saved.read_bytes()
    for name, content in (("cut", whole[:-40]), ("short", whole[:100]), ("empty", b""), ("text", b"Hello" * 99)):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CacheFileError, match="cannot read a cache"):
            SqueezeCache.load(model, tmp_path / name)
    for missing in (tmp_path / "none", tmp_path):
        with pytest.raises(CacheFileError, match="cannot read a cache"):
            SqueezeCache.load(model, missing)
    for at in (len(whole) - 40, whole.index(b"prompt_tokens") + 20):  # in a tensor; in the plan
        damaged = bytearray(whole)
        damaged[at] ^= 1
        (tmp_path / "damaged").write_bytes(damaged)
        with pytest.raises(CacheFileError, match=r"is damaged|cannot read"):
            SqueezeCache.load(model, tmp_path / "damaged")
    save_file({"a": torch.zeros(3)}, tmp_path / "other")
    with pytest.raises(CacheFileError, match="holds no cache"):
        SqueezeCache.load(model, tmp_path / "other")
    monkeypatch.setattr(cache_file, "__version__", "99.1")
    with pytest.raises(CacheFileError, match=r"saved by release .*, and this is 99\.1"):
        SqueezeCache.load(model, saved)
    assert model.config._attn_implementation == "sdpa"


def test_what_cannot_be_saved_leaves_the_old_file(saved, tmp_path):
    before = saved.read_bytes()
    model = tiny_model("llama")
    cache = SqueezeCache(model, 20, "h2o", "uniform")
    with cache.prefilling():
        model(input_ids=torch.tensor(ROWS[:1]), past_key_values=cache)
        with pytest.raises(CacheStateError, match="being read"):
            cache.save(saved)
    hook = model.model.layers[1].register_forward_pre_hook(lambda *_: cache.save(saved))
    with pytest.raises(CacheStateError, match="being read"):
        model(input_ids=LATER[:1], past_key_values=cache)
    hook.remove()
    cache.reset()
    with pytest.raises(CacheFileError, match="cannot write"):
        cache.save(tmp_path / "no folder" / "cache")
    cache.detach()
    with pytest.raises(CacheStateError, match="detached"):
        cache.save(saved)
    assert saved.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["cache"]


def test_a_user_may_name_another_kernel(saved):
    with pytest.raises(ValueError, match="kernels must be one of"):
        SqueezeCache.load(tiny_model("llama"), saved, kernels="mine")


def test_the_example(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    example = Path(__file__).parents[2] / "examples" / "saved_cache.py"
    assert len(example.read_text().splitlines()) < 50
    runpy.run_path(str(example))["main"]()
    assert "same answer" in capsys.readouterr().out
