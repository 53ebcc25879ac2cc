"""The embedded model with a plan answers in vLLM what it answers in the library at the same budgets."""

import pytest
import torch

from squeezeattention import BudgetPlan, SqueezeCache
from squeezeattention.embedded import FOLDER, load_embedded
from squeezeattention.evaluation.runner import token_counter
from squeezeattention.tasks import resolve_task

from .conftest import BLOCK, generate

CONTEXTS, LENGTH, NEW = 12, 500, 8
#: Recall goes through layer 1 of this model.
BUDGETS = [64, 512, 64, 64, 64, 64, 64, 128]


def questions(tokenizer):
    """Prompts with the question in them, and the right numbers."""
    task, prompts, answers = resolve_task("recall", held_out=True), [], []
    count = token_counter(tokenizer)
    for index in range(CONTEXTS):
        sample = task.sample(count, LENGTH, 31, index)
        for question in sample.questions:
            prompts.append(tokenizer(sample.context).input_ids + tokenizer(question.text).input_ids)
            answers.append(question.answers[0])
    return prompts, answers


def score(tokenizer, replies, answers):
    return [tokenizer.decode(reply).strip().startswith(answer) for reply, answer in zip(replies, answers, strict=True)]


@torch.no_grad()
def told_by_the_library(model, prompts, budgets):
    replies = []
    for prompt in prompts:
        cache = SqueezeCache(model, policy="streaming_llm", allocator=budgets, sinks=BLOCK)
        out = model.generate(
            torch.tensor([prompt]), past_key_values=cache, max_new_tokens=NEW, do_sample=False, eos_token_id=None,
            pad_token_id=0,
        )  # fmt: skip
        replies.append(out[0, len(prompt) :].tolist())
    return replies


@pytest.mark.parametrize("budgets", [BUDGETS, [128] * 8], ids=["plan", "uniform"])
def test_recall_is_the_same(engine, budgets):
    model, tokenizer = load_embedded()
    prompts, answers = questions(tokenizer)
    plan = {"plan": BudgetPlan.from_budgets(budgets).to_dict(), "sinks": BLOCK}
    served = score(tokenizer, generate(engine(plan, model=str(FOLDER)), prompts, NEW), answers)
    library = score(tokenizer, told_by_the_library(model, prompts, budgets), answers)
    print(sum(served), sum(library), len(answers))
    differ = sum(a != b for a, b in zip(served, library, strict=True))
    assert differ <= 0.1 * len(answers)
    if budgets == BUDGETS:
        assert sum(served) >= 0.8 * len(answers)
