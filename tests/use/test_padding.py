"""A plan depends on a row's own tokens: not on the padding before them, nor on the rows beside it."""

import pytest
import torch

from squeezeattention import SIGNALS, SqueezeCache
from squeezeattention.testing import left_padded, rules_for, tiny_model

GENERATOR = torch.Generator().manual_seed(8)
ROWS = [torch.randint(3, 101, (length,), generator=GENERATOR).tolist() for length in (90, 62, 89)]
BESIDE = torch.randint(3, 101, (118,), generator=GENERATOR).tolist()


@pytest.fixture(scope="module", params=["llama", "qwen3-window"])
def model(request):
    return tiny_model(request.param)


def answers(model, rows, **settings):
    """Each row's answer, budgets and signal values."""
    ids, mask = left_padded(rows)
    cache = SqueezeCache(model, budget=0.3, min_tokens=10, **settings)
    out = model.generate(
        ids, attention_mask=mask, past_key_values=cache, max_new_tokens=8, min_new_tokens=8, do_sample=False,
        pad_token_id=0,
    )  # fmt: skip
    return [
        (text[-8:].tolist(), plan.head_budgets or plan.budgets, plan.signal_values)
        for text, plan in zip(out, cache.plans, strict=True)
    ]


@pytest.mark.parametrize(
    "settings",
    [*({"allocator": name, "policy": policy} for name in rules_for() for policy in ("h2o", "echo")),
     *({"allocator": "squeeze", "signal": name, "policy": "h2o"} for name in SIGNALS.names())],
    ids=lambda settings: "-".join(settings.values()),
)  # fmt: skip
def test_padding_changes_nothing(model, settings):
    alone = [found for row in ROWS for found in answers(model, [row], **settings)]
    for text, budgets, values in alone:
        assert len(text) == 8
        assert budgets
        assert values is None or any(values)
    for given in (ROWS, [*ROWS, BESIDE]):  # 0 to 28 and 28 to 56 columns of padding
        for got, want in zip(answers(model, given, **settings), alone, strict=False):
            assert got[:2] == want[:2]
            assert got[2] is want[2] or got[2] == pytest.approx(want[2], abs=1e-4)
