"""Each kernel against its naive twin, under Triton's interpreter: odd sizes, groups, masks, poisoned buffers."""

import functools
import os
import subprocess
import sys

import pytest
import torch

pytest.importorskip("triton")
# The interpreter is chosen when a kernel is defined: a process of its own, whatever ran before in this one.
if os.environ.get("TRITON_INTERPRET") != "1":

    def test_under_the_interpreter():
        env = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", __file__]
        run = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
        assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-2000:]
        assert "passed" in run.stdout

else:
    from squeezeattention import SqueezeCache
    from squeezeattention.hf import compiled
    from squeezeattention.kernels import decode, mass, naive
    from squeezeattention.testing import teacher_forced, tiny_model

    SHAPES = [
        # batch, KV heads, group, tokens, width of keys, of values
        (1, 1, 1, 1, 16, 16),
        (2, 3, 1, 37, 32, 32),
        (3, 2, 4, 300, 40, 24),
        (1, 2, 7, 65, 64, 64),
        (1, 1, 5, 1025, 16, 48),
    ]

    def drawn(*shape, seed=0, dtype=torch.float32):
        generator = torch.Generator().manual_seed(seed + sum(shape))
        return torch.randn(*shape, generator=generator).to(dtype)

    def close(one, other, dtype=torch.float32):
        assert one.shape == other.shape
        limit = 2e-5 if dtype == torch.float32 else 2e-2
        assert (one.float() - other.float()).abs().max() <= limit

    @pytest.mark.parametrize("shape", SHAPES, ids=str)
    @pytest.mark.parametrize(
        ("masked", "extra"),
        [(None, {}), ("shared", {"sinks": True}), ("each", {"softcap": 5.0}), (None, {"softcap": 5.0, "sinks": True})],
        ids=str,
    )
    def test_decode_attention(shape, masked, extra):
        batch, heads, group, tokens, width, out = shape
        query, keys, values = (
            drawn(batch, heads * group, width), drawn(batch, heads, tokens, width, seed=1),
            drawn(batch, heads, tokens, out, seed=2),
        )  # fmt: skip
        visible = None
        if masked:
            visible = drawn(*((1, 1) if masked == "shared" else (batch, heads)), tokens, seed=3) > 0
            hidden = ~visible.expand(batch, heads, tokens)
            keys[hidden], values[hidden] = torch.nan, torch.nan
        scale, cap = width**-0.5, extra.get("softcap")
        sinks = drawn(heads * group, seed=4) if "sinks" in extra else None
        want, probability = naive.decode_attention(query, keys, values, visible, scale, cap, sinks)
        scores = torch.rand(batch, heads, tokens)
        before = scores.clone()
        got, chosen = decode.decode_attention(query, keys, values, visible, scale, cap, sinks, scores=scores)
        assert chosen is None
        close(got, want)
        close(scores - before, probability)
        plain, _ = decode.decode_attention(query, keys, values, visible, scale, cap, sinks)
        assert torch.equal(plain, got)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_half_precision_and_views(dtype):
        """A store with spare room hands over a view; a model may hand over transposed queries."""
        room = drawn(2, 2, 90, 32, dtype=dtype), drawn(2, 2, 90, 32, seed=1, dtype=dtype)
        keys, values = (buffer[:, :, :77] for buffer in room)
        for buffer in room:
            buffer[:, :, 77:] = torch.nan
        query = drawn(2, 32, 6, seed=2, dtype=dtype).transpose(1, 2)
        want, _ = naive.decode_attention(query, keys, values, None, 0.2)
        got, _ = decode.decode_attention(query, keys, values, None, 0.2)
        assert got.dtype == dtype
        close(got, want, dtype)

    @pytest.mark.parametrize(("tokens", "rows"), [(3, 1), (130, 2), (1500, 1)])
    @pytest.mark.parametrize("holes", [False, True])
    def test_the_next_victim(tokens, holes, rows):
        batch, heads, recent = 2, 3, tokens // 2
        query, keys = drawn(batch, heads, 16), drawn(batch, heads, tokens, 16, seed=1)
        positions = torch.stack([torch.randperm(3 * tokens)[:tokens] for _ in range(batch * heads)])
        positions = positions.view(batch, heads, tokens)
        if holes:
            positions[0, 1, tokens // 3] = -1
        newest = torch.tensor([3 * tokens, 2 * tokens][:rows])
        # Equal scores: the older one goes.
        scores = torch.randint(0, 3, (batch, heads, tokens)).float()
        _, chosen = decode.decode_attention(
            query, keys, keys, positions >= 0, 0.0, scores=scores, positions=positions, newest=newest, recent=recent
        )
        assert torch.equal(chosen, naive.victim(scores, positions, newest, recent))

    @pytest.mark.parametrize("shape", [(1, 1, 1, 5, 5, 16), (2, 2, 3, 70, 70, 24), (2, 3, 2, 33, 100, 32)], ids=str)
    @pytest.mark.parametrize(("window", "extra"), [(None, {}), (None, {"softcap": 5.0}), (9, {"sinks": True})], ids=str)
    def test_attention_mass(shape, window, extra):
        batch, heads, group, length, tokens, width = shape
        query, keys = drawn(batch, heads * group, length, width), drawn(batch, heads, tokens, width, seed=1)
        at = (torch.arange(length) + tokens - length).repeat(batch, 1)
        held = torch.arange(tokens).repeat(batch, heads, 1)
        if batch > 1:  # a padded row, and holes that hold anything
            at[0] -= 2
            held[0] -= 2
            at[0, at[0] < 0], held[held < 0] = -1, -1
            held[1, 0, tokens // 4] = -1
            keys[held < 0] = torch.nan
        sinks = drawn(heads * group, seed=4) if "sinks" in extra else None
        given = (query, torch.nan_to_num(keys), at, held, window, width**-0.5, extra.get("softcap"), sinks)
        want, totals = naive.attention_mass(*given)
        got, found = mass.attention_mass(query, keys, *given[2:])
        close(got, want)
        finite = totals.isfinite()
        assert torch.equal(found.isfinite(), finite)
        close(found[finite], totals[finite])
        again, _ = mass.attention_mass(query, keys, *given[2:], total=totals)
        close(again, want)

    LENGTHS, STEPS, BUDGET = (19, 12), 5, 7

    @pytest.mark.parametrize(
        ("family", "policy"),
        [
            ("llama", "h2o"),
            ("gemma2", "h2o"),
            ("mistral-window", "h2o"),
            ("gpt-oss", "streaming_llm"),
            ("llama", "tova"),
        ],
    )
    @pytest.mark.parametrize("static", [False, True])
    def test_a_cache_with_kernels(family, policy, static, monkeypatch):
        if static and family != "llama":
            pytest.skip("one family is enough")
        if static:  # traced as one graph or an error; what is left out is the compiler behind it
            torch._dynamo.reset()  # graphs of other cases count against a limit
            compiler = functools.partial(torch.compile, compiled._forward, fullgraph=True, backend="aot_eager")
            monkeypatch.setattr(compiled, "_compiler", lambda mode: compiler())
        model = tiny_model(family, **({"attn_implementation": "eager"} if family == "gemma2" else {}))
        generator = torch.Generator().manual_seed(5)
        rows = [torch.randint(3, 101, (n,), generator=generator).tolist() for n in LENGTHS]
        generated = torch.randint(3, 101, (len(rows), STEPS), generator=generator)
        plain = SqueezeCache(model, budget=BUDGET, policy=policy)
        want = teacher_forced(model, plain, rows, generated)
        cache = SqueezeCache(model, budget=BUDGET, policy=policy, kernels="triton", compile=static and "strict")
        got = teacher_forced(model, cache, rows, generated)
        assert max((a - b).abs().max().item() for a, b in zip(got, want, strict=True)) <= 1e-4
        for layer in range(len(cache.layers)):
            assert torch.equal(cache.kept_positions(layer), plain.kept_positions(layer))
