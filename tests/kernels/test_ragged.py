"""Attention over units of different room in one launch, against its naive twin, under Triton's interpreter."""

import functools
import os
import subprocess
import sys

import pytest
import torch

pytest.importorskip("triton")
# As in test_kernels.py: the interpreter is chosen when a kernel is defined.
if os.environ.get("TRITON_INTERPRET") != "1":

    def test_under_the_interpreter():
        env = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", __file__]
        run = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
        assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-2000:]
        assert "passed" in run.stdout

else:
    from squeezeattention import SqueezeCache
    from squeezeattention.cache import slots
    from squeezeattention.cache.ragged import RaggedStore
    from squeezeattention.cache.units import Units
    from squeezeattention.hf import compiled
    from squeezeattention.kernels import naive, ragged
    from squeezeattention.testing import teacher_forced, tiny_model

    class Case:
        """Units whose slots hold tokens of one row each, newest anywhere, some of them holes full of NaN."""

        def __init__(self, rows, heads, group, width, out, dtype=torch.float32, *, seed=0, holes=True, largest=300):
            generator = torch.Generator().manual_seed(seed)

            def drawn(*shape):
                return torch.randn(*shape, generator=generator)

            sizes = [1, largest, *torch.randint(1, largest, (rows * heads,), generator=generator).tolist()]
            room = [sizes[row * heads : (row + 1) * heads] for row in range(rows)]
            self.units = units = Units(room, torch.device("cpu"))
            self.heads, self.group, self.scale = heads, group, width**-0.5
            self.query = drawn(rows * heads, group, width).to(dtype)
            self.keys, self.values = drawn(units.slots, width).to(dtype), drawn(units.slots, out).to(dtype)
            self.scores = torch.rand(units.slots, generator=generator)
            self.sinks = drawn(heads * group)
            self.at = torch.randint(2 * largest, 3 * largest, (rows,), generator=generator)
            self.positions = torch.empty(units.slots, dtype=torch.int64)
            for unit, (begin, size) in enumerate(zip(units.begin.tolist(), units.room, strict=True)):
                held = int(self.at[unit // heads]) - torch.randperm(2 * largest, generator=generator)[:size]
                held[0] = self.at[unit // heads]  # the query's own token
                self.positions[begin : begin + size] = held
                if holes and unit % 2:
                    empty = torch.rand(size, generator=generator) < 0.2
                    empty[0] = False
                    self.positions[begin : begin + size][empty] = -1
            for buffer in (self.keys, self.values):
                buffer[self.positions < 0] = torch.nan
            self.recent = (units.rooms + 1) // 2

        def naive(self, **more):
            given = (self.query, self.keys, self.values, self.units.begin, self.units.rooms, self.heads, self.scale)
            return naive.ragged_decode_attention(*given, **more)

        def kernel(self, **more):
            given = (
                self.query, self.keys, self.values, self.units.begin, self.units.rooms, max(self.units.room),
                self.heads, self.scale,
            )  # fmt: skip
            return ragged.ragged_decode_attention(*given, **more)

        def seen(self, window=None):
            return {"positions": self.positions, "query_positions": self.at, "window": window}

        def victims(self, scores, at=None):
            at = self.at if at is None else at
            return naive.ragged_victims(
                scores, self.positions, self.units.begin, self.units.rooms, self.heads, at, self.recent
            )

    def close(one, other, dtype=torch.float32):
        assert one.shape == other.shape
        limit = 2e-5 if dtype == torch.float32 else 2e-2
        assert (one.float() - other.float()).abs().max() <= limit

    EXTRAS = [{}, {"softcap": 5.0}, {"sinks": True}, {"window": 150}, {"window": 90, "softcap": 3.0, "sinks": True}]

    @pytest.mark.parametrize("group", [1, 3, 4, 7, 8])
    @pytest.mark.parametrize(
        ("extra", "dtype"), [*((one, torch.float32) for one in EXTRAS), (EXTRAS[-1], torch.bfloat16)], ids=str
    )
    def test_one_launch(group, extra, dtype):
        case = Case(2, 3, group, 24, 40, dtype, seed=group)
        given = {
            **case.seen(extra.get("window")), "softcap": extra.get("softcap"),
            "sink_logits": case.sinks if "sinks" in extra else None,
        }  # fmt: skip
        want, mass = case.naive(**given)
        got, chosen = case.kernel(**given)
        assert chosen is None
        assert got.dtype == dtype
        close(got, want, dtype)
        before = case.scores.clone()
        again, chosen = case.kernel(**given, scores=case.scores, recent=case.recent)
        assert torch.equal(again, got)
        close(case.scores - before, mass)
        assert torch.equal(chosen, case.victims(case.scores))

    @pytest.mark.parametrize("splits", [1, 2, 70])
    def test_splits(splits, monkeypatch):
        """However the slots are divided: a chunk of splits more than one, and units with fewer than the largest."""
        monkeypatch.setattr(ragged, "spans", lambda slots, units, largest: ((largest // splits // 64 + 1) * 64, splits))
        case = Case(1, 4, 2, 16, 16, largest=splits * 64 - 30, seed=splits)
        want, mass = case.naive(**case.seen(), sink_logits=case.sinks)
        before = case.scores.clone()
        got, chosen = case.kernel(**case.seen(), sink_logits=case.sinks, scores=case.scores, recent=case.recent)
        close(got, want)
        close(case.scores - before, mass)
        assert torch.equal(chosen, case.victims(case.scores))

    def test_without_positions():
        """All slots are seen; the query and the buffers may be views."""
        case = Case(2, 2, 3, 24, 40, holes=False)
        want, mass = case.naive()
        case.query = case.query.transpose(0, 1).contiguous().transpose(0, 1)
        wide = torch.full((len(case.keys), 64), torch.nan)
        wide[:, :24] = case.keys
        case.keys = wide[:, :24]
        before = case.scores.clone()
        got, chosen = case.kernel(scores=case.scores)
        assert chosen is None
        close(got, want)
        close(case.scores - before, mass)

    @pytest.mark.parametrize("holes", [False, True])
    @pytest.mark.parametrize("one_row", [False, True])
    def test_victims(holes, one_row):
        """Among equal scores the oldest goes; what is recent stays, even where all is."""
        case = Case(3, 2, 1, 16, 16, holes=holes, seed=3)
        at = case.at.max().reshape(1) if one_row else case.at
        generator = torch.Generator().manual_seed(1)
        case.scores = torch.randint(0, 3, (case.units.slots,), generator=generator).float()
        case.recent[0], case.recent[3] = 1000, 0
        before = case.scores.clone()
        case.query.zero_()
        _, chosen = case.kernel(positions=case.positions, query_positions=at, scores=case.scores, recent=case.recent)
        mass = case.naive(positions=case.positions)[1]
        close(case.scores - before, mass)
        assert torch.equal(chosen, case.victims(case.scores, at))
        held = case.positions[chosen]
        if not holes:
            assert (held >= 0).all()

    def test_what_is_launched():
        """Splits are even in length, few where units are, and never much more than there is work for."""
        sizes = [(1, 1, 1), (10**6, 8, 10**6 - 7), (5 * 10**6, 512, 30_000), (40_000, 512, 30_000)]
        for total, units, largest in sizes:
            span, splits = ragged.spans(total, units, largest)
            assert span % 64 == 0
            assert span * (splits - 1) < largest <= span * splits
            assert units * splits <= 8 * 528 + units

    BUDGETS = [[5, 12], [9, 8], [7, 7], [20, 6]]

    @pytest.mark.parametrize(
        ("family", "policy"),
        [
            ("llama", "h2o"), ("llama", "streaming_llm"), ("gemma2", "h2o"), ("mistral-window", "h2o"),
            ("gpt-oss", "h2o"), ("gpt-oss", "streaming_llm"), ("llama", "tova"), ("gpt-oss", "tova"),
        ],
    )  # fmt: skip
    @pytest.mark.parametrize("how", ["padded", "static", "beams"])
    def test_a_cache_whose_heads_differ(family, policy, how, monkeypatch):
        """As without kernels, in one launch a layer and step; the slot that one found is where the next token goes."""
        if how != "padded" and family != "llama":
            pytest.skip("one family is enough")
        if how == "static":  # traced as one graph or an error; what is left out is the compiler behind it
            torch._dynamo.reset()  # graphs of other cases count against a limit
            compiler = functools.partial(torch.compile, compiled._forward, fullgraph=True, backend="aot_eager")
            monkeypatch.setattr(compiled, "_compiler", lambda mode: compiler())
        model = tiny_model(family, **({"attn_implementation": "eager"} if family == "gemma2" else {}))
        generator = torch.Generator().manual_seed(5)
        rows = [torch.randint(3, 101, (n,), generator=generator).tolist() for n in (19, 19 if how == "beams" else 12)]
        steps = 6 if how == "beams" else 4
        generated = torch.randint(3, 101, (len(rows), steps), generator=generator)
        launches, searches = [], []
        kernel, search = ragged.ragged_decode_attention, slots._columns_by_score
        monkeypatch.setattr(ragged, "ragged_decode_attention", lambda *a, **b: launches.append(b) or kernel(*a, **b))
        if how != "static":  # a traced step would be traced anew for each that is counted
            monkeypatch.setattr(slots, "_columns_by_score", lambda *a, **b: searches.append(a) or search(*a, **b))

        budgets = [[tokens + 2 for tokens in heads] for heads in BUDGETS] if policy == "tova" else BUDGETS

        def run(**more):
            cache = SqueezeCache(model, policy=policy, allocator=budgets, **more)
            steps = []

            def swap():
                steps.append(None)
                if how == "beams" and len(steps) in (2, 4):
                    cache.reorder_cache(torch.tensor([1, 0] if len(steps) == 2 else [1, 1]))

            return cache, teacher_forced(model, cache, rows, generated, after_step=swap)

        plain, want = run()
        assert not launches
        searches.clear()
        cache, got = run(kernels="triton", compile=how == "static" and "strict")
        differ = sum(isinstance(layer.store, RaggedStore) for layer in cache.layers)
        assert differ >= 2
        blocks = (
            how == "static" and policy != "tova"
        )  # compiled steps have all layers in these, and search by themselves
        assert len(launches) == (len(cache.layers) if blocks else differ) * generated.shape[1]
        if (family, policy) == ("llama", "h2o") and not blocks:
            # Once in each of the three layers whose heads differ, and again when rows have changed.
            assert len(searches) == {"padded": 3, "beams": 3 * 3, "static": 0}[how]
            assert all(launch["recent"] is not None for launch in launches)
        assert max((a - b).abs().max().item() for a, b in zip(got, want, strict=True)) <= 1e-4
        for layer in range(len(cache.layers)):
            assert torch.equal(cache.kept_positions(layer), plain.kept_positions(layer))

    @pytest.mark.parametrize("policy", ["h2o", "streaming_llm"])
    def test_compiled_steps_take_other_budgets_as_data(policy, monkeypatch):
        model = tiny_model("llama", num_hidden_layers=2)
        traced = []

        def backend(graph, example_inputs):
            traced.append(graph)
            return graph.forward

        torch._dynamo.reset()
        call = torch.compile(compiled._forward, fullgraph=True, backend=backend)
        monkeypatch.setattr(compiled, "_compiler", lambda mode: call)
        generated = torch.arange(3, 12)[None]
        for plan in ([10, 20], [[8, 14], [30, 25]], [[70, 9], [12, 32]]):
            rows = [list(range(3, 40))]
            plain = SqueezeCache(model, allocator=plan, policy=policy, kernels="torch")
            cache = SqueezeCache(model, allocator=plan, policy=policy, kernels="triton", compile="strict")
            want, got = (teacher_forced(model, one, rows, generated) for one in (plain, cache))
            assert (got[0] - want[0]).abs().max() <= 1e-4
            for layer in range(2):
                assert torch.equal(cache.kept_positions(layer), plain.kept_positions(layer))
        assert len(traced) == 1  # what the kernel is launched for is data, too
        torch._dynamo.reset()
