"""Scorers against naive twins: what they keep of a prompt, from the stock model's own keys, values and attention."""

import copy

import pytest
import torch
from transformers import DynamicCache

from squeezeattention import POLICIES, SqueezeCache
from squeezeattention.hf.layout import inspect_model
from squeezeattention.policies import Scored
from squeezeattention.signals import Replay
from squeezeattention.testing import NaiveReference, left_padded, position_ids, teacher_forced, tiny_model

SCORERS = [name for name in POLICIES if isinstance(POLICIES.create(name), Scored)]
FAMILIES = ["llama", "llama-mha", "qwen3", "gpt2", "gemma2", "gpt-oss", "falcon-7b"]
BUDGET, SINKS = 40, 4


def text(length: int, seed: int = 1) -> list[int]:
    return torch.randint(3, 101, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def stock(family, row):
    """Keys and values [H, N, D] of each layer, and attention [Hq, N, N], as the stock model has them."""
    eager = tiny_model(family, attn_implementation="eager")
    cache = DynamicCache()  # plain layers: windows hide, they do not cut
    with torch.no_grad():
        out = eager(torch.tensor([row]), past_key_values=cache, output_attentions=True)
    return eager, cache, [w[0] for w in out.attentions]


def group(weights, heads):
    """[Hq, ...] -> [H, G, ...]."""
    return weights.unflatten(0, (heads, -1))


def snapkv(family, row):
    _, cache, attentions = stock(family, row)
    found = []
    for layer, weights in zip(cache.layers, attentions, strict=True):
        received = group(weights[:, -32:], layer.keys.shape[1]).sum((1, 2))
        pooled = torch.stack([received[:, max(0, i - 2) : i + 3].mean(1) for i in range(len(row))], dim=1)
        found.append(pooled)
    return found


def keydiff(family, row):
    _, cache, _ = stock(family, row)
    found = []
    for layer in cache.layers:
        keys = layer.keys[0].double()
        unit = keys / keys.norm(dim=-1, keepdim=True)
        found.append(1 - torch.cosine_similarity(keys, unit.mean(1, keepdim=True), dim=-1))
    return found


def echo(family, row):
    """Each piece is read again by itself, over a copy of the stock cache."""
    eager, cache, _ = stock(family, row)
    signal, found = Replay(), []
    asked, received = [], [[] for _ in cache.layers]
    for start in signal.starts(len(row)):
        piece = row[start - signal.lead : start + signal.length]
        at = torch.arange(len(row), len(row) + len(piece))[None]
        with torch.no_grad():
            out = eager(
                torch.tensor([piece]), position_ids=at, past_key_values=copy.deepcopy(cache), output_attentions=True
            )
        columns = list(range(start, start + signal.length))
        asked += columns
        for layer, weights in enumerate(out.attentions):
            heads = cache.layers[layer].keys.shape[1]
            received[layer].append(group(weights[0][..., columns], heads).amax((1, 2)))
    for layer, got in zip(cache.layers, received, strict=True):
        keys, values = layer.keys[0].double(), layer.values[0].double()
        scores = []
        for head in range(len(keys)):
            k, v = keys[head], values[head]
            root = [k[asked].square().mean().sqrt(), v[asked].square().mean().sqrt()]
            norms = torch.stack([k.norm(dim=-1).log(), v.norm(dim=-1).log(), torch.ones(len(row)).double()], dim=1)
            x = torch.cat([k / root[0], v / root[1], norms], dim=1)
            y = (torch.cat([part[head] for part in got]).double() + 1e-3).log()
            sample = x[asked]
            penalty = 0.3 * len(asked) * torch.eye(x.shape[1]).double()
            scores.append(x @ torch.linalg.solve(sample.T @ sample + penalty, sample.T @ y))
        found.append(torch.stack(scores))
    return found


TWINS = {"snapkv": snapkv, "keydiff": keydiff, "echo": echo}


def choice(scores: list[float], budget: int, newest: int) -> set[int]:
    """Sinks, the newest, and the best of the others."""
    recent = max(1, min(32, (budget - SINKS) // 2))
    sure = set(range(SINKS)) | set(range(newest - recent + 1, newest + 1))
    rest = sorted((p for p in range(newest + 1) if p not in sure), key=lambda p: (-scores[p], -p))
    return sure | set(rest[: budget - len(sure)])


@pytest.mark.parametrize("name", SCORERS)
@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_kept_of_a_prompt_equals_the_naive_choice(name, family):
    """Alone, in chunks, and as a left-padded row of a batch."""
    model = tiny_model(family, **({"attn_implementation": "eager"} if family == "gemma2" else {}))
    windows = inspect_model(model).windows
    rows = [text(97), text(120, seed=2)]
    for chunk in (None, 25):
        cache = SqueezeCache(model, allocator=[BUDGET] * len(windows), policy=name)
        teacher_forced(model, cache, rows, chunk=chunk)
        cache.compact()
        for index, row in enumerate(rows):
            for layer, scores in enumerate(TWINS[name](family, row)):
                if windows[layer] is not None:
                    continue  # with a window smaller than the budget there is nothing to choose
                kept = cache.kept_positions(layer)[index].tolist()
                for head, own in enumerate(kept):
                    want = choice(scores[head].tolist(), BUDGET, len(row) - 1)
                    # Two of forty may be others: scores are compared in fp32, those of a regression as well.
                    assert len(want ^ {p for p in own if p >= 0}) <= 4, (layer, head)


@pytest.mark.parametrize("name", SCORERS)
@pytest.mark.parametrize("family", ["llama", "gpt-oss", "qwen3-window", "falcon-new"])
def test_attention_sees_what_is_kept_and_no_step_exceeds_the_budget(name, family):
    """140 steps, past every moment of scoring anew, over heads with budgets of their own."""
    model = tiny_model(family)
    windows = inspect_model(model).windows
    row = text(70)
    probe = SqueezeCache(model, budget=8)
    teacher_forced(model, probe, [row[:5]])
    heads = probe.kept_positions(0).shape[1]
    budgets = [[12 + 7 * ((layer + head) % 5) for head in range(heads)] for layer in range(len(windows))]
    cache = SqueezeCache(model, allocator=budgets, policy=name)

    def kept_now(layer, head, held, budget, newest):
        own = {p for p in cache.kept_positions(layer)[0][head].tolist() if p >= 0}
        assert own <= held | {newest}
        assert len(own) <= budget
        assert set(range(max(0, newest - 3), newest + 1)) <= own
        return own

    reference = NaiveReference(model, kept_now, windows, heads)
    with torch.no_grad():
        got = model(torch.tensor([row]), past_key_values=cache).logits[0]
        cache.compact()
    assert (got - reference.read(row)).abs().max() <= 1e-4
    reference.cut(budgets)
    for token in text(140, seed=3):
        with torch.no_grad():
            got = model(torch.tensor([[token]]), past_key_values=cache).logits[0, 0]
        reference.silent = True
        want = reference.step(token)
        reference.silent = False
        if cache.get_seq_length() % 20 == 0:
            want = reference.logits()[-1]
            assert (got - want).abs().max() <= 1e-4


def test_any_two_scorers_differ():
    model = tiny_model("llama")
    kept = {}
    for name in POLICIES:
        cache = SqueezeCache(model, budget=BUDGET, allocator="uniform", policy=name)
        teacher_forced(model, cache, [text(120)])
        kept[name] = [tuple(map(tuple, cache.kept_positions(layer)[0].tolist())) for layer in range(4)]
    assert len({str(found) for found in kept.values()}) == len(kept)


def test_ranking_over_all_layers_and_heads():
    """The counts of the plan are those of one ranking of all tokens, beside floors and rounding."""
    model = tiny_model("llama")
    row = text(200)
    cache = SqueezeCache(model, budget=50, allocator="global", policy="echo")
    teacher_forced(model, cache, [row])
    plan = cache.plan
    assert plan.total == 4 * 50
    assert plan.head_budgets is not None
    scores = torch.stack(echo("llama", row))  # [layers, heads, N]
    scores[..., :SINKS] = scores[..., -23:] = torch.inf
    threshold = scores.flatten().kthvalue(scores.numel() - 50 * 8 + 1).values
    counts = (scores >= threshold).sum(-1)
    for layer, heads in enumerate(plan.head_budgets):
        for head, tokens in enumerate(heads):
            assert abs(tokens - max(36 if 36 < 50 // 4 else 50 // 4, int(counts[layer, head]))) <= 6
    ids, mask = left_padded([row])
    assert position_ids(mask).max() == ids.shape[1] - 1
