"""Column sums from the log-sum-exp of each row: the kernel, and plain torch in few blocks, against the naive twin."""

import os
import subprocess
import sys

import pytest
import torch

from squeezeattention.attention import sums as plain
from squeezeattention.attention.accelerated import attend_accelerated
from squeezeattention.attention.core import Scoring, attend
from squeezeattention.attention.fused import attend_with_totals
from squeezeattention.attention.visibility import Visibility
from squeezeattention.kernels import naive

#: batch, KV heads, group, queries, tokens, width
SHAPES = [
    (1, 1, 1, 1, 1, 16),
    (2, 2, 3, 70, 70, 24),
    (1, 2, 4, 200, 200, 64),
    (2, 3, 2, 33, 100, 32),
    (1, 2, 1, 65, 333, 40),
    (3, 1, 2, 129, 130, 16),
]


def drawn(*shape, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(*shape, generator=generator).to(dtype)


class Case:
    """The last queries of some tokens, laid out as a model does: heads side by side in each token's row."""

    def __init__(self, batch, heads, group, length, tokens, width, dtype=torch.float32):
        self.query = drawn(batch, length, heads * group, width, dtype=dtype).transpose(1, 2)
        self.key = drawn(batch, tokens, heads, width, seed=1, dtype=dtype).transpose(1, 2)
        self.value = drawn(batch, heads, tokens, width, seed=2, dtype=dtype)
        self.positions = torch.arange(tokens).repeat(batch, 1)
        self.at, self.scale = self.positions[:, tokens - length :], width**-0.5
        self.heads = heads

    def visibility(self, **more):
        fresh = self.query.shape[2] == self.key.shape[2]
        given = {"window": None, "fresh": fresh, "ragged": False, "ordered": True, **more}
        return Visibility(self.at, self.positions[:, None], **given)

    def naive(self, sinks=None, **more):
        given = (self.query, self.key, self.at, self.positions[:, None], more.get("window"), self.scale)
        return naive.attention_mass(*given, more.get("softcap"), sinks)

    def output(self, sinks=None):
        """A whole matrix of scores."""
        batch, query_heads, length, _ = self.query.shape
        group, tokens = query_heads // self.heads, self.key.shape[2]
        key, value = (one.float().repeat_interleave(group, dim=1) for one in (self.key, self.value))
        logits = self.query.float() @ key.transpose(-1, -2) * self.scale
        logits.masked_fill_(~torch.ones(length, tokens, dtype=torch.bool).tril_(tokens - length), -torch.inf)
        if sinks is not None:
            logits = torch.cat([logits, sinks[None, :, None, None].expand(batch, -1, length, 1)], dim=-1)
        return logits.softmax(-1)[..., :tokens] @ value


def close(one, other, limit=2e-5):
    assert one.shape == other.shape
    assert (one.float() - other.float()).abs().max() <= limit


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("sinks", [False, True])
def test_output_and_totals(shape, sinks):
    case = Case(*shape)
    logits = drawn(case.query.shape[1], seed=4) if sinks else None
    out, total = attend_with_totals(
        case.query, case.key, case.value, case.visibility(), Scoring(case.scale, sink_logits=logits)
    )
    close(out, case.output(logits))
    close(total, case.naive(logits)[1])


def test_what_no_fused_kernel_computes():
    case = Case(1, 2, 2, 20, 20, 16)
    given = case.query, case.key, case.value
    assert attend_with_totals(*given, case.visibility(window=9), Scoring(0.2)) is None
    assert attend_with_totals(*given, case.visibility(), Scoring(0.2, softcap=5.0)) is None
    assert attend_with_totals(*given, case.visibility(fresh=False, ordered=False), Scoring(0.2)) is None
    assert attend_with_totals(case.query, case.key, case.value.double(), case.visibility(), Scoring(0.2)) is None


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("elements", [1, 4000, 2**26])
def test_plain_blocks(shape, elements, monkeypatch):
    """However large a block may be; one KV head's scores or the mean of all."""
    monkeypatch.setattr(plain, "_ELEMENTS", elements)
    case = Case(*shape)
    want, total = case.naive()
    close(plain.causal_sums(case.query, case.key, total, Scoring(case.scale), case.heads), want)
    close(plain.causal_sums(case.query, case.key, total, Scoring(case.scale), 1), want.mean(1, keepdim=True))


def test_few_blocks():
    """A long prompt's scores are made in as many pieces as they have times 256 MiB."""
    products = []

    class Counting(Scoring):
        def logits(self, query, key):
            products.append((query.shape[0] * query.shape[1] * query.shape[2], key.shape[2]))
            return query.new_zeros(*query.shape[:3], key.shape[2])

    query, key = torch.zeros(1, 8, 4096, 1), torch.zeros(1, 2, 4096, 1)
    plain.causal_sums(query, key, torch.zeros(1, 8, 4096), Counting(1.0), 2)
    assert len(products) == 8 * 4096 * 4096 // plain._ELEMENTS
    assert sum(rows for rows, _ in products) == 8 * 4096


pytest.importorskip("triton")
# As in test_kernels.py: the interpreter is chosen when a kernel is defined.
if os.environ.get("TRITON_INTERPRET") != "1":

    def test_under_the_interpreter():
        env = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", __file__]
        run = subprocess.run([*command, "-k", "kernel"], env=env, capture_output=True, text=True, check=False)
        assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-2000:]
        assert "passed" in run.stdout

else:
    from squeezeattention.kernels import sums as kernels

    @pytest.mark.parametrize("shape", SHAPES, ids=str)
    @pytest.mark.parametrize("tiles", [None, kernels.Tiles(16, 64, 4, 3), kernels.Tiles(64, 16, 4, 3)], ids=str)
    def test_kernel(shape, tiles):
        case = Case(*shape)
        sinks = drawn(case.query.shape[1], seed=4)
        want, total = case.naive(sinks)
        close(kernels.causal_sums(case.query, case.key, total, case.scale, tiles=tiles), want)

    def test_kernel_heads_at_a_time(monkeypatch):
        """Heads are gone through in groups, of which the last may have fewer."""
        monkeypatch.setattr(kernels, "_CACHED", 4 * 2 * 40 * 16)
        case = Case(1, 5, 1, 40, 40, 16)
        want, total = case.naive()
        close(kernels.causal_sums(case.query, case.key, total, case.scale, tiles=kernels.Tiles(16, 16, 4, 3)), want)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_kernel_of_halves(dtype):
        case = Case(1, 2, 4, 150, 150, 64, dtype)
        want, total = case.naive()
        close(kernels.causal_sums(case.query, case.key, total, case.scale), want, 1e-4)

    def test_kernel_of_rows_that_saw_nothing():
        case = Case(1, 1, 1, 20, 20, 16)
        want, total = case.naive()
        total[..., 7] = -torch.inf
        row = torch.zeros(20)
        row[:8] = (case.query[0, 0, 7] @ case.key[0, 0, :8].T * case.scale).softmax(0)
        close(kernels.causal_sums(case.query, case.key, total, case.scale)[0, 0], want[0, 0] - row)

    @pytest.mark.parametrize("padded", [False, True])
    def test_kernel_in_attention(padded, monkeypatch):
        """A row alone gives the same, whatever padding is beside it; the general kernels are not asked."""
        from squeezeattention.kernels import mass

        monkeypatch.setattr(mass, "attention_mass", None)
        case = Case(2, 2, 2, 50, 50, 16)
        if padded:
            case.positions = torch.stack([torch.arange(50), (torch.arange(50) - 9).clamp(min=-1)])
            case.at = case.positions
        seen = case.visibility(ragged=padded)
        out, mass_ = attend_accelerated(case.query, case.key, case.value, seen, Scoring(case.scale), score_heads=2)
        want, sums = attend(case.query, case.key, case.value, seen, Scoring(case.scale), score_heads=2)
        close(out, want)
        close(mass_, sums)
