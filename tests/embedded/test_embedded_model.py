"""The embedded model does what it is there for: it recalls held-out facts, and it has learned the language."""

import itertools
import math
from collections import Counter

import pytest
import torch
from transformers import DynamicCache

from squeezeattention import SqueezeCache, load_embedded
from squeezeattention.demo.scenario import Settings, build_contexts
from squeezeattention.embedded import FOLDER
from squeezeattention.tasks import corpus, driving, scoring


@pytest.fixture(scope="module")
def embedded():
    return load_embedded()


def test_it_is_small_and_grouped(embedded):
    model, tokenizer = embedded
    assert sum(path.stat().st_size for path in FOLDER.iterdir() if path.is_file()) <= 20 * 2**20
    assert model.config.num_key_value_heads < model.config.num_attention_heads
    assert model.config.head_dim in (32, 64)
    text = "def area(width, height):\n    return width * height  # 12345\n"
    assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_loading_leaves_the_random_state_alone():
    torch.manual_seed(3)
    want = torch.rand(1)
    torch.manual_seed(3)
    load_embedded()
    assert torch.equal(torch.rand(1), want)


@pytest.mark.parametrize("seed", [101, 202])
def test_recall_over_512_tokens_with_a_full_cache(embedded, seed):
    model, tokenizer = embedded
    settings = Settings("code", length=512, contexts=8, facts=6, seed=seed)
    answers = []
    for context in build_contexts(tokenizer, settings, salt="embedded"):
        cache = DynamicCache(config=model.config)
        driving.read(model, cache, context.tokens)
        answers += scoring.recall_facts(model, tokenizer, cache, context.facts)
    assert len(answers) == 48
    assert sum(answers) / len(answers) >= 0.9  # chance is 1 in 100,000


def test_enough_budget_answers_as_the_full_cache_does(embedded):
    model, tokenizer = embedded
    (context,) = build_contexts(tokenizer, Settings("code", length=512, contexts=1, facts=6, seed=7))
    said = []
    for cache in (DynamicCache(config=model.config), SqueezeCache(model, budget=10_000, policy="h2o")):
        driving.read(model, cache, context.tokens)
        said.append(scoring.recall_facts(model, tokenizer, cache, context.facts))
    assert said[0] == said[1]


def test_perplexity_on_held_out_modules_is_well_below_a_bigram_model(embedded):
    """Per token, over the same tokens; the bigram model is interpolated with unigrams and smoothed."""
    model, tokenizer = embedded
    train = [tokenizer(text).input_ids for _, text in corpus.modules(held_out=False)]
    unigrams, bigrams = Counter(), Counter()
    for ids in train:
        unigrams.update(ids)
        bigrams.update(itertools.pairwise(ids))
    total, size = sum(unigrams.values()), len(tokenizer)

    def bigram_nll(first: int, second: int) -> float:
        single = (unigrams[second] + 1) / (total + size)
        pair = bigrams[first, second] / unigrams[first] if unigrams[first] else 0.0
        return -math.log(0.85 * pair + 0.15 * single)

    ours = theirs = count = 0.0
    for _, text in corpus.modules(held_out=True)[::4]:
        ids = tokenizer(text).input_ids[:513]
        with torch.no_grad():
            logits = model(torch.tensor([ids[:-1]])).logits[0]
        ours += torch.nn.functional.cross_entropy(logits, torch.tensor(ids[1:]), reduction="sum").item()
        theirs += sum(bigram_nll(a, b) for a, b in itertools.pairwise(ids))
        count += len(ids) - 1
    assert math.exp(ours / count) <= 0.7 * math.exp(theirs / count)
