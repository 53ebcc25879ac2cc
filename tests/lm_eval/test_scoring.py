"""Log-likelihoods through a cache, against whole forwards and against steps driven by hand. No harness needed."""

import pytest
import torch

from squeezeattention import POLICIES, SqueezeCache
from squeezeattention.errors import BudgetError, ConfigError, UnknownNameError
from squeezeattention.integrations.caches import CacheMaker
from squeezeattention.integrations.scoring import Group, Scorer, Text
from squeezeattention.plan import BudgetPlan
from squeezeattention.tasks.driving import forward, read
from squeezeattention.testing import tiny_model

GENERATOR = torch.Generator().manual_seed(3)
TOLERANCE = 2e-4


def draw(count):
    return torch.randint(3, 101, (count,), generator=GENERATOR).tolist()


GROUPS = [
    Group(draw(31), [draw(1), draw(5), draw(3)]),
    Group(draw(2), [draw(2)]),
    Group(draw(17), [draw(4), draw(1)]),
]
TEXTS = [Text(draw(40), 39), Text(draw(9), 8), Text(draw(40), 4), Text(draw(2), 1)]


@pytest.fixture(scope="module", params=["llama", "qwen3-window", "opt"])
def model(request):
    return tiny_model(request.param)


@pytest.fixture(scope="module")
def llama():
    return tiny_model("llama")


@torch.no_grad()
def whole(model, tokens, scored):
    """The stock way: one forward over everything."""
    logits = model(torch.tensor([tokens])).logits[0, -scored - 1 : -1]
    wanted = torch.tensor(tokens[-scored:])
    likely = torch.log_softmax(logits, -1).gather(1, wanted[:, None]).sum().item()
    return likely, bool((logits.argmax(-1) == wanted).all())


def by_hand(model, cache, context, continuation):
    """Context read and cut; its last token and the continuation fed one by one."""
    read(model, cache, context[:-1])
    total, token = 0.0, context[-1]
    for wanted in continuation:
        logits = forward(model, cache, torch.tensor([[token]]))
        total += torch.log_softmax(logits[0], -1)[wanted].item()
        token = wanted
    return total


def flat(groups, scores):
    return [
        (list(group.context), list(tokens), score)
        for group, found in zip(groups, scores, strict=True)
        for tokens, score in zip(group.continuations, found, strict=True)
    ]


@pytest.mark.parametrize("rows", [1, 2, 100])
@pytest.mark.parametrize("policy", POLICIES.names())
def test_with_everything_kept_it_is_one_forward(model, policy, rows):
    scorer = Scorer(model, CacheMaker(1.0, policy))
    for context, tokens, score in flat(GROUPS, scorer.after_contexts(GROUPS, rows)):
        likely, greedy = whole(model, context + tokens, len(tokens))
        assert score.log_likelihood == pytest.approx(likely, abs=TOLERANCE)
        assert score.greedy is greedy
    for text, score in zip(TEXTS, scorer.alone(TEXTS), strict=True):
        assert score.log_likelihood == pytest.approx(whole(model, *text)[0], abs=TOLERANCE)


def test_greedy_continuations_are_told(llama):
    context, written = GROUPS[0].context, []
    for _ in range(4):
        logits = llama(torch.tensor([[*context, *written]])).logits[0, -1]
        written.append(int(logits.argmax()))
    other = [*written[:3], (written[3] + 1) % 100]
    scorer = Scorer(llama, CacheMaker(1.0))
    ((right, wrong, start),) = scorer.after_contexts([Group(context, [written, other, written[:1]])], 3)
    assert (right.greedy, wrong.greedy, start.greedy) == (True, False, True)
    text = Text([*context, *written], 4)
    assert [score.greedy for score in scorer.alone([text, Text([*context, *other], 4)])] == [True, False]


@pytest.mark.parametrize("policy", POLICIES.names())
def test_evicting_is_what_steps_by_hand_do(llama, policy):
    """Also in a batch, where budgets in tokens are the same for every row."""
    scorer = Scorer(llama, CacheMaker(8, policy, "uniform"))
    differs = False
    for context, tokens, score in flat(GROUPS, scorer.after_contexts(GROUPS, 2)):
        cache = SqueezeCache(llama, 8, policy, "uniform")
        assert score.log_likelihood == pytest.approx(by_hand(llama, cache, context, tokens), abs=TOLERANCE)
        differs |= abs(score.log_likelihood - whole(llama, context + tokens, len(tokens))[0]) > 1e-3
    assert differs


def test_a_single_token_is_not_predicted_from_the_whole_context(llama):
    group = Group(draw(60), [draw(1)])
    scores = [Scorer(llama, CacheMaker(b)).after_contexts([group], 1)[0][0].log_likelihood for b in (1.0, 0.1)]
    assert abs(scores[0] - scores[1]) > 1e-4


def test_budgets_hold_where_the_context_ends(llama):
    seen = []
    scorer = Scorer(
        llama, CacheMaker(0.25, "h2o"), tell=lambda _, cache: seen.append((cache.plan, cache.head_lengths()))
    )
    scorer.after_contexts([Group(draw(41), [draw(3)])], 1)
    ((plan, lengths),) = seen
    assert plan.base_budget == 10
    assert lengths == [list(plan.heads(layer, 2)) for layer in range(4)]


@pytest.mark.parametrize("policy", ["sliding_window", "streaming_llm"])
@pytest.mark.parametrize("budget", [12, 0.3, "6144B"])
def test_texts_alone_go_through_a_full_cache(llama, policy, budget):
    """What is read at once is what feeding token by token would have kept."""
    tokens = TEXTS[0].tokens
    score = Scorer(llama, CacheMaker(budget, policy, "uniform")).alone([TEXTS[0]])[0]
    probe = SqueezeCache(llama, 12, policy, "uniform")
    read(llama, probe, draw(20))
    assert probe.memory().bytes == 6144  # so that all three budgets are 12 tokens
    cache = SqueezeCache(llama, 12, policy, "uniform")
    logits, total = read(llama, cache, tokens[:1]), 0.0
    for wanted in tokens[1:]:
        total += torch.log_softmax(logits[0], -1)[wanted].item()
        logits = forward(llama, cache, torch.tensor([[wanted]]))
    assert score.log_likelihood == pytest.approx(total, abs=TOLERANCE)
    assert abs(total - whole(llama, tokens, 39)[0]) > 1e-3


def test_texts_alone_in_a_batch(llama):
    scorer = Scorer(llama, CacheMaker(8, "h2o", "uniform"))
    for text, score in zip(TEXTS, scorer.alone(TEXTS), strict=True):
        assert score.log_likelihood == pytest.approx(scorer.alone([text])[0].log_likelihood, abs=TOLERANCE)


def test_nothing_stays_on_the_model(llama):
    before = llama.config._attn_implementation
    scorer = Scorer(llama, CacheMaker(8))
    scorer.after_contexts(GROUPS, 2)
    scorer.alone(TEXTS)
    assert llama.config._attn_implementation == before
    assert not llama.model._forward_hooks


def test_settings(llama, tmp_path):
    plan = BudgetPlan.from_budgets([9, 5, 7, 7])
    plan.save(tmp_path / "plan.json")
    seen = []
    maker = CacheMaker(policy="h2o", allocator=str(tmp_path / "plan.json"))
    Scorer(llama, maker, tell=lambda _, cache: seen.append(cache.plan)).after_contexts(GROUPS[:1], 1)
    assert seen[0].budgets == plan.budgets
    assert maker.make_alone(llama, whole=40)[1] == 7
    options = CacheMaker("25%", "streaming_llm", p=0.3, options={"sinks": 2, "positions": None})
    assert options.describe() == {
        "budget": "25% of the prompt", "policy": "streaming_llm", "allocator": "squeeze", "p": 0.3, "sinks": 2,
    }  # fmt: skip
    assert options.make_alone(llama, whole=4)[1] == 3  # what the policy needs, though a quarter is less
    for error, arguments in [
        (BudgetError, {"budget": "much"}),
        (UnknownNameError, {"policy": "h20"}),
        (UnknownNameError, {"allocator": "nowhere"}),
        (ConfigError, {"p": 2.0}),
        (ConfigError, {"allocator": [1, 2]}),
    ]:
        with pytest.raises(error):
            CacheMaker(**arguments)
