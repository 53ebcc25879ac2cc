"""Scorers against naive twins: what they keep of a prompt, from the stock model's own keys, values and attention."""

import copy
import sys

import pytest
import torch
from torch.nn import functional as F
from transformers import DynamicCache

from squeezeattention import POLICIES, SqueezeCache
from squeezeattention.errors import ConfigError, UnsupportedModelError
from squeezeattention.hf.layout import inspect_model
from squeezeattention.policies import Echo, Scored
from squeezeattention.signals import LayerScores
from squeezeattention.testing import NaiveReference, left_padded, position_ids, teacher_forced, tiny_model

SCORERS = [name for name in POLICIES if isinstance(POLICIES.create(name), Scored)]
FAMILIES = ["llama", "llama-mha", "qwen3", "gpt2", "gemma2", "gpt-oss", "falcon-7b"]
BUDGET, SINKS = 40, 4
#: Groups of three and seven query heads.
GROUPS = {
    "llama-3": {"hidden_size": 48, "num_attention_heads": 6, "num_key_value_heads": 2},
    "llama-7": {"hidden_size": 56, "num_attention_heads": 7, "num_key_value_heads": 1},
}


def make(family, **changes):
    return tiny_model(family.split("-")[0] if family in GROUPS else family, **GROUPS.get(family, {}), **changes)


def text(length: int, seed: int = 1) -> list[int]:
    return torch.randint(3, 101, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def stock(family, row):
    """Keys and values [H, N, D] of each layer, and attention [Hq, N, N], as the stock model has them."""
    eager = make(family, attn_implementation="eager")
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


def repeated(family, row, starts):
    """The most attention that tokens get from their repetition, [H, n] for each layer, and which those are: pieces of
    64, each by itself over a copy of the stock cache, led in by the 8 tokens before it (the text is a ring)."""
    eager, cache, _ = stock(family, row)
    asked, received = [], [[] for _ in cache.layers]
    for start in starts:
        piece = [row[place % len(row)] for place in range(start - 8, start + 64)]
        at = torch.arange(len(row), len(row) + len(piece))[None]
        with torch.no_grad():
            out = eager(
                torch.tensor([piece]), position_ids=at, past_key_values=copy.deepcopy(cache), output_attentions=True
            )
        columns = list(range(start, min(start + 64, len(row))))
        asked += columns
        for layer, weights in enumerate(out.attentions):
            heads = cache.layers[layer].keys.shape[1]
            received[layer].append(group(weights[0][..., columns], heads).amax((1, 2)))
    return cache, asked, [torch.cat(got, dim=-1) for got in received]


def kvzip(family, row):
    """All of the text, one piece after another."""
    return repeated(family, row, range(0, len(row), 64))[2]


def echo(family, row, most=2048):
    """As many pieces as may be, evenly spread; a regression in fp64 says the rest."""
    if len(row) <= most:
        return kvzip(family, row)
    pieces = most // 64
    starts = [int((len(row) - 64) * (2 * piece + 1) / (2 * pieces)) for piece in range(pieces)]
    cache, asked, received = repeated(family, row, starts)
    found = []
    for layer, got in zip(cache.layers, received, strict=True):
        keys, values = layer.keys[0].double(), layer.values[0].double()
        scores = []
        for head in range(len(keys)):
            k, v = keys[head], values[head]
            root = [k[asked].square().mean().sqrt(), v[asked].square().mean().sqrt()]
            norms = torch.stack([k.norm(dim=-1).log(), v.norm(dim=-1).log(), torch.ones(len(row)).double()], dim=1)
            x = torch.cat([k / root[0], v / root[1], norms], dim=1)
            sample, y = x[asked], (got[head].double() + 1e-3).log()
            penalty = 0.3 * len(asked) * torch.eye(x.shape[1]).double()
            own = (x @ torch.linalg.solve(sample.T @ sample + penalty, sample.T @ y)).exp() - 1e-3
            own[asked] = got[head].double()
            scores.append(own)
        found.append(torch.stack(scores))
    return found


def tova(family, row):
    """The newest query, over all query heads: the same for every KV head."""
    _, cache, attentions = stock(family, row)
    return [
        weights[:, -1].mean(0).expand(layer.keys.shape[1], -1)
        for layer, weights in zip(cache.layers, attentions, strict=True)
    ]


def moved(family, row):
    """L1 norm of what each token's value adds to the residual stream through each query head: [Hq, N] by layer."""
    eager, cache, attentions = stock(family, row)
    found = []
    for module, layer, weights in zip(inspect_model(eager).attentions, cache.layers, attentions, strict=True):
        project = next(getattr(module, name) for name in ("o_proj", "c_proj", "dense") if hasattr(module, name))
        values, heads = layer.values[0], len(weights)
        norms = []
        for head in range(heads):
            alone = torch.zeros(len(row), heads, values.shape[-1])
            alone[:, head] = values[head * len(values) // heads]
            with torch.no_grad():
                norms.append((project(alone.flatten(1)) - project(torch.zeros_like(alone.flatten(1)))).abs().sum(-1))
        found.append(torch.stack(norms))
    return found


def criticalkv(family, row):
    """Two lists, read down side by side."""
    found = []
    for attention, norms in zip(snapkv(family, row), moved(family, row), strict=True):
        heads = len(attention)
        attention = attention / (32 * len(norms) // heads)
        weighed = (attention + 1e-4) * group(norms, heads).mean(1)
        scores = torch.zeros_like(attention)
        for head in range(heads):
            lists = [one[head].argsort(descending=True).tolist() for one in (attention, weighed)]
            merged = dict.fromkeys(token for pair in zip(*lists, strict=True) for token in pair)
            for place, token in enumerate(merged):
                scores[head, token] = len(row) - place
        found.append(scores)
    return found


def queries(family, row, monkeypatch):
    """Of each layer, before and after rotary embedding [Hq, N, D], and the rotations at the next 512 positions."""
    eager = make(family, attn_implementation="eager")
    attentions = inspect_model(eager).attentions
    seen, turned = [], []
    if family == "gpt2":
        for module in attentions:
            module.c_attn.register_forward_hook(lambda m, a, out: seen.append(out[0, :, :32].unflatten(-1, (4, 8))))
        with torch.no_grad():
            eager(torch.tensor([row]))
        own = [one.transpose(0, 1) for one in seen]
        return own, own, [torch.eye(8)[None]] * len(own)
    namespace = sys.modules[type(attentions[0]).__module__]
    rotate = namespace.apply_rotary_pos_emb

    def recorded(q, k, cos, sin, *args, **kwargs):
        out = rotate(q, k, cos, sin, *args, **kwargs)
        seen.append(q[0])
        turned.append(out[0][0])
        return out

    with monkeypatch.context() as patch, torch.no_grad():
        patch.setattr(namespace, "apply_rotary_pos_emb", recorded)
        eager(torch.tensor([row]))
        at = torch.arange(len(row), len(row) + 512)[None]
        cos, sin = inspect_model(eager).decoder.rotary_emb(torch.zeros(1), at)
        width = seen[0].shape[-1]
        basis = torch.eye(width)[None, :, None].expand(-1, -1, 512, -1)  # a unit vector in place of a head
        matrices = rotate(basis, basis, cos, sin)[0][0].permute(1, 2, 0)  # [512, D, D]: columns are what they become
    return seen, turned, [matrices] * len(seen)


def expected_attention(family, row, monkeypatch):
    _, cache, _ = stock(family, row)
    before, _, rotations = queries(family, row, monkeypatch)
    found = []
    for layer, own, matrices in zip(cache.layers, before, rotations, strict=True):
        keys, values = layer.keys[0].double(), layer.values[0].double()
        turn = matrices.double().mean(0)
        scores = torch.zeros(len(own), len(row)).double()
        for head, asked in enumerate(own[:, 4:].double()):
            kv = head * len(keys) // len(own)
            mean, covariance = turn @ asked.mean(0), turn @ asked.T.cov(correction=0) @ turn.T
            z = [k @ mean / len(k) ** 0.5 + k @ covariance @ k / (2 * len(k)) for k in keys[kv, 4:]]
            scores[head, 4:] = torch.stack(z).softmax(0)
        found.append((group(scores, len(keys)).mean(1) + 0.02) * values.norm(dim=-1))
    return found


def rkv(family, row, monkeypatch):
    eager, cache, _ = stock(family, row)
    _, after, _ = queries(family, row, monkeypatch)
    cap = getattr(eager.config, "attn_logit_softcapping", None)
    found = []
    for layer, own in zip(cache.layers, after, strict=True):
        keys = layer.keys[0].double()
        past = len(row) - 8
        logits = group(own[:, past:].double(), len(keys)) @ keys[:, None, :past].mT / keys.shape[-1] ** 0.5
        if cap:
            logits = cap * (logits / cap).tanh()
        looked = torch.zeros(len(keys), len(row)).double()
        looked[:, :past] = logits.amax(1).softmax(-1).mean(1)
        importance = torch.stack([looked[:, max(0, i - 3) : i + 4].amax(1) for i in range(len(row))], dim=1)
        redundancy = []
        for head in keys:
            cosines = torch.cosine_similarity(head[:, None], head[None], dim=-1).fill_diagonal_(0)
            for one in cosines:
                if (one > 0.5).any():
                    one[(one > 0.5).nonzero().max()] = 0
            redundancy.append(cosines.mean(0).softmax(0))
        found.append(1 + 0.1 * importance - 0.9 * torch.stack(redundancy))
    return found


def defensivekv(family, row):
    _, cache, attentions = stock(family, row)
    found = []
    past = len(row) - 32
    for layer, weights, norms in zip(cache.layers, attentions, moved(family, row), strict=True):
        heads = layer.keys.shape[1]
        rows = group(weights[:, past:, :past].double(), heads)  # [H, G, 32, past]
        spread = torch.stack([rows[..., max(0, i - 2) : min(past, i + 3)].mean(-1) for i in range(past)], dim=-1)
        risk = (spread * rows.sum(-1, keepdim=True) / spread.sum(-1, keepdim=True)).amax((1, 2))
        risk = torch.maximum(risk, risk.mean(-1, keepdim=True))
        size = group(norms, heads).mean(1)[:, :past]
        scores = risk * size / size.sum(0)
        top = scores.max()
        mean = rows.mean((1, 2))
        for head in range(heads):
            told = 0.0
            for token in mean[head].argsort(descending=True).tolist():
                told += mean[head, token]
                if told >= 0.9 * mean[head].sum():
                    break
                scores[head, token] = top + mean[head, token]
        found.append(F.pad(scores, (0, 32)))
    return found


TWINS = {
    "snapkv": snapkv, "keydiff": keydiff, "echo": echo, "tova": tova, "criticalkv": criticalkv, "kvzip": kvzip,
    "expected_attention": expected_attention, "rkv": rkv, "defensivekv": defensivekv,
}  # fmt: skip


def twin(name, family, row, monkeypatch):
    more = (monkeypatch,) if name in ("expected_attention", "rkv") else ()
    return TWINS[name](family, row, *more)


def choice(scores: list[float], budget: int, newest: int) -> set[int]:
    """Sinks, the newest, and the best of the others."""
    recent = max(1, min(32, (budget - SINKS) // 2))
    sure = set(range(SINKS)) | set(range(newest - recent + 1, newest + 1))
    rest = sorted((p for p in range(newest + 1) if p not in sure), key=lambda p: (-scores[p], -p))
    return sure | set(rest[: budget - len(sure)])


@pytest.mark.parametrize("name", SCORERS)
@pytest.mark.parametrize("family", [*FAMILIES, *GROUPS])
def test_what_is_kept_of_a_prompt_equals_the_naive_choice(name, family, monkeypatch):
    """Alone, in chunks, and as a left-padded row of a batch."""
    model = make(family, **({"attn_implementation": "eager"} if family == "gemma2" else {}))
    windows = inspect_model(model).windows
    rows = [text(97), text(120, seed=2)]
    for chunk in (None, 25):
        cache = SqueezeCache(model, allocator=[BUDGET] * len(windows), policy=name)
        teacher_forced(model, cache, rows, chunk=chunk)
        cache.compact()
        for index, row in enumerate(rows):
            for layer, scores in enumerate(twin(name, family, row, monkeypatch)):
                if windows[layer] is not None:
                    continue  # with a window smaller than the budget there is nothing to choose
                kept = cache.kept_positions(layer)[index].tolist()
                for head, own in enumerate(kept):
                    want = choice(scores[head].tolist(), BUDGET, len(row) - 1)
                    # Two of forty may be others: scores are compared in fp32, those of a regression as well.
                    assert len(want ^ {p for p in own if p >= 0}) <= 4, (layer, head)


@pytest.mark.parametrize("chunk", [None, 60])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_text_too_long_to_be_repeated_is_learned_from(family, chunk):
    """Rows of a batch that are repeated in part, as a whole, and too short to learn from."""
    model = tiny_model(family, **({"attn_implementation": "eager"} if family == "gemma2" else {}))
    windows = inspect_model(model).windows
    rows = [text(300), text(130, seed=2), text(100, seed=3)]
    cache = SqueezeCache(model, allocator=[BUDGET] * len(windows), policy=Echo(replay=192))
    teacher_forced(model, cache, rows, chunk=chunk)
    cache.compact()
    for index, row in enumerate(rows):
        for layer, scores in enumerate(echo(family, row, 192)):
            if windows[layer] is None:
                for head, own in enumerate(cache.kept_positions(layer)[index].tolist()):
                    want = choice(scores[head].tolist(), BUDGET, len(row) - 1)
                    assert len(want ^ {p for p in own if p >= 0}) <= 4, (layer, head)
    learned = [layer.scorer.fitted for layer in cache.layers]
    assert all(bool(weights[:2].any()) and not weights[2].any() for weights in learned)


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


def test_what_a_scorer_cannot_read_is_refused():
    """In its own name, when the cache is made."""
    half = tiny_model("llama")
    half.model.layers[2].self_attn.o_proj.weight.data = torch.zeros(16, 16)
    nameless = tiny_model("llama")
    nameless.model.layers[1].self_attn.into = nameless.model.layers[1].self_attn.o_proj
    del nameless.model.layers[1].self_attn.o_proj
    longer = tiny_model("llama", rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0})
    for policy in ("criticalkv", "defensivekv"):
        with pytest.raises(
            UnsupportedModelError, match=rf"'{policy}' weighs values by .*o_proj.* no plain matrix of 32"
        ):
            SqueezeCache(half, budget=20, policy=policy)
        with pytest.raises(UnsupportedModelError, match=rf"'{policy}' weighs values .* has none of o_proj"):
            SqueezeCache(nameless, budget=20, policy=policy)
    with pytest.raises(UnsupportedModelError, match=r"'expected_attention' undoes .* 'dynamic' RoPE"):
        SqueezeCache(longer, budget=20, policy="expected_attention")


def test_any_two_scorers_differ():
    model = tiny_model("llama")
    kept = {}
    for name in POLICIES:
        policy = Echo(replay=64) if name == "echo" else name  # of a text that is repeated as a whole it is KVzip
        cache = SqueezeCache(model, budget=BUDGET, allocator="uniform", policy=policy)
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
            assert abs(tokens - max(50 // 4, int(counts[layer, head]))) <= 6
    ids, mask = left_padded([row])
    assert position_ids(mask).max() == ids.shape[1] - 1


@pytest.mark.parametrize("family", ["llama", "llama-mha", "gpt-oss"])
def test_heads_share_their_layers_budget(family):
    """AdaKV: each layer has the same, and its heads as many as they have among its best; a fifth is everyone's own."""
    model = tiny_model(family)
    row, budget = text(200), 50
    cache = SqueezeCache(model, budget=budget, allocator="adakv", policy="snapkv", min_tokens=1)
    teacher_forced(model, cache, [row])
    plan = cache.plan
    windows = inspect_model(model).windows
    differ = False
    for layer, scores in enumerate(snapkv(family, row)):
        if windows[layer] is not None:
            continue
        heads = len(scores)
        told = [list(one) for one in scores.tolist()]
        sure = [sorted(range(len(row)), key=lambda p, own=own: (4 <= p < 177, -own[p]))[:27] for own in told]
        rest = sorted(
            ((score, head) for head, own in enumerate(told) for p, score in enumerate(own) if p not in sure[head]),
            reverse=True,
        )[: heads * (budget - 27)]
        want = [27 + sum(head == own for _, own in rest) for head in range(heads)]
        if not any(windows):
            assert plan.budgets[layer] == budget
            got = plan.heads(layer, heads)
            assert sum(got) == heads * budget
            assert all(abs(one - other) <= 1 for one, other in zip(got, want, strict=True)), (got, want)
        differ = differ or len(set(want)) > 1
    assert differ
    assert plan.total == budget * len(windows)


def test_what_no_head_of_a_layer_looks_at_still_leaves_a_fifth_to_each():
    signal = LayerScores()
    signal.start(1)
    signal.see_budget([20])
    scores = torch.stack([torch.full((1, 100), 1.0), torch.full((1, 100), 0.1)], dim=1)
    signal.see_scores(0, scores, torch.arange(100).expand(1, 2, -1))
    assert signal.values() == [[[1 - 36 / 40, 1 - 4 / 40]]]
    for wrong in (-0.1, 1.5, True, "a"):
        with pytest.raises(ConfigError, match="safeguard"):
            LayerScores(wrong)


@pytest.mark.parametrize(
    ("family", "tokens"), [("llama", 60), ("llama", 8), ("gpt-oss", 60), ("falcon-new", 60), ("deepseek-v3", 60)]
)
@pytest.mark.parametrize("budgets", ["equal", "by head"])
def test_tova_follows_the_newest_query(family, tokens, budgets):
    """While decoding: what the query before looked at least, over all heads, makes room."""
    model = tiny_model(family)
    windows = inspect_model(model).windows
    probe = SqueezeCache(model, budget=8)
    teacher_forced(model, probe, [text(5)])
    heads = probe.kept_positions(0).shape[1]
    room = [[20 if budgets == "equal" else 14 + 5 * ((layer + head) % 3) for head in range(heads)]
            for layer in range(len(windows))]  # fmt: skip
    row = text(tokens)

    def follow(layer, head, held, budget, newest):
        if len(held) <= budget:
            return set(held)
        looks = reference._weights[layer]  # [H, T, T]: mean over the query heads of a group
        before = looks[:, min(newest - 1, looks.shape[1] - 1) if newest >= len(row) else newest].mean(0).tolist()
        recent = max(1, min(32, (budget - 4) // 2))
        sure = {p for p in held if p < 4 or p > newest - recent}
        window = windows[layer]
        rest = sorted((p for p in held - sure if window is None or p > newest - window), key=lambda p: (-before[p], -p))
        sure = {p for p in sure if window is None or p > newest - window}
        return sure | set(rest[: budget - len(sure)])

    reference = NaiveReference(model, follow, windows, heads)
    cache = SqueezeCache(model, policy="tova", allocator=room)
    with torch.no_grad():
        model(torch.tensor([row]), past_key_values=cache)
        reference.read(row)
        reference.cut(room)
        for token in text(25, seed=4):
            got = model(torch.tensor([[token]]), past_key_values=cache).logits[0, 0]
            want = reference.step(token)
            assert (got - want).abs().max() <= 1e-4
            for layer in range(len(windows)):
                kept = [{p for p in head if p >= 0} for head in cache.kept_positions(layer)[0].tolist()]
                assert kept == reference.kept[layer]
                if windows[layer] is None and budgets == "equal":
                    assert all(own == kept[0] for own in kept)


def test_empty_slots_are_filled_before_a_token_goes():
    """A short prompt is scored anew when some heads are full and others are not."""
    model, room = tiny_model("llama"), [[12, 40], [40, 12], [30, 30], [12, 40]]
    cache = SqueezeCache(model, policy=impatient("keydiff"), allocator=room)
    teacher_forced(model, cache, [text(6)])
    for seen in range(7, 50):
        teacher_forced(model, cache, [text(1, seed=seen)])
        assert cache.head_lengths() == [[min(seen, most) for most in layer] for layer in room]


def impatient(name):
    """The scorer, scoring anew every 5 steps if it does so at all."""
    policy = POLICIES.create(name)
    if policy.every is not None:
        policy.every = 5
    return policy


def told(model, cache, ids, mask):
    with torch.no_grad():
        positions = position_ids(mask)[:, -ids.shape[1] :]
        return model(ids, attention_mask=mask, position_ids=positions, past_key_values=cache).logits


@pytest.mark.parametrize("name", SCORERS)
@pytest.mark.parametrize(("family", "budgets"), [("llama", "equal"), ("llama", "by head"), ("gpt-oss", "by head")])
def test_rows_of_a_batch_are_what_they_are_alone(name, family, budgets):
    """Three turns of padded rows, which are picked and repeated on the way, as beam search does; copies go on alone."""
    model = tiny_model(family)
    probe = SqueezeCache(model, budget=8)
    teacher_forced(model, probe, [text(5)])
    heads = probe.kept_positions(0).shape[1]
    room = [
        [24 if budgets == "equal" else 14 + 7 * ((layer + head) % 3) for head in range(heads)] for layer in range(4)
    ]
    order, parts = [2, 0, 0], [[text(n, seed=n + turn) for n in (61, 48, 55)] for turn in range(3)]
    generated = [torch.randint(3, 101, (3, 7), generator=torch.Generator().manual_seed(turn)) for turn in range(3)]
    parts[2], generated[2] = [parts[2][row] for row in order], generated[2][order]
    together, mask = SqueezeCache(model, policy=impatient(name), allocator=room), torch.zeros(3, 0, dtype=torch.long)
    alone = [SqueezeCache(model, policy=impatient(name), allocator=room) for _ in range(3)]
    seen = [0, 0, 0]
    for turn in range(3):
        ids, real = left_padded(parts[turn])
        steps = [(ids, real), *((generated[turn][:, [step]], torch.ones(3, 1, dtype=torch.long)) for step in range(7))]
        for step, (tokens, new) in enumerate(steps):
            mask = torch.cat([mask, new], dim=1)
            got = told(model, together, tokens, mask)
            for row, own in enumerate(alone):
                one = tokens[row, new[row].bool()][None]
                seen[row] += one.shape[1]
                want = told(model, own, one, torch.ones(1, seen[row], dtype=torch.long))
                assert (got[row, -one.shape[1] :] - want[0]).abs().max() <= 1e-4, (turn, step, row)
            if (turn, step) == (1, 4):
                together.reorder_cache(torch.tensor(order))
                mask, seen = mask[order], [seen[row] for row in order]
                alone = [copy.deepcopy(alone[row]) for row in order]
                generated[1] = generated[1][order]
                steps[5:] = [(tokens[order], new) for tokens, new in steps[5:]]
            for layer in range(4):
                assert all(
                    length <= most for length, most in zip(together.head_lengths()[layer], room[layer], strict=True)
                )
    for layer in range(4):
        for row, own in enumerate(alone):
            kept = [sorted(p for p in head if p >= 0) for head in together.kept_positions(layer)[row].tolist()]
            assert kept == [sorted(p for p in head if p >= 0) for head in own.kept_positions(layer)[0].tolist()]


@pytest.mark.parametrize(
    ("family", "name"),
    [*(("llama", name) for name in SCORERS), ("gpt-oss", "tova"), ("gpt-oss", "expected_attention")],
)
def test_compiled_steps_score_alike(family, name, graphs):
    model = tiny_model(family)
    rows, generated = [text(61), text(48, seed=2)], torch.randint(3, 101, (2, 14))
    plain = SqueezeCache(model, budget=20, allocator="uniform", policy=impatient(name))
    compiled = SqueezeCache(model, budget=20, allocator="uniform", policy=impatient(name), compile=True)
    want = teacher_forced(model, plain, rows, generated)
    for got, wanted in zip(teacher_forced(model, compiled, rows, generated), want, strict=True):
        assert (got - wanted).abs().max() <= 1e-4
    for layer in range(4):
        assert torch.equal(plain.kept_positions(layer), compiled.kept_positions(layer))
    assert 1 <= len(graphs) <= 4
