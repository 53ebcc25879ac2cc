"""What a plain decode step asks of the device, counted against transformers' DynamicCache; how counting works."""

import pytest
import torch
from transformers import DynamicCache

from squeezeattention import SqueezeCache
from squeezeattention.testing import CountCalls, teacher_forced, tiny_model

BUDGET, LENGTHS, STEPS = 12, (40, 31), 20
#: Calls of a layer, as a multiple of DynamicCache's.
BARS = {"sliding_window": 1.2, "streaming_llm": 1.2, "h2o": 1.5}


def step(make, layers: int, rows: int) -> CountCalls:
    """One step with full layers."""
    model = tiny_model("llama", num_hidden_layers=layers, attn_implementation="sdpa")
    cache, texts = make(model), [list(range(3, 3 + length)) for length in LENGTHS[:rows]]
    teacher_forced(model, cache, texts, torch.full((rows, STEPS), 7))
    positions = torch.tensor([[length + STEPS] for length in LENGTHS[:rows]])
    with torch.no_grad(), CountCalls() as found:
        model(input_ids=torch.full((rows, 1), 7), position_ids=positions, past_key_values=cache, use_cache=True)
    return found


def calls_of_a_layer(make, rows: int) -> int:
    return step(make, 3, rows).calls - step(make, 2, rows).calls


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("policy", BARS)
def test_a_layer_is_called_little_more_often_than_of_a_full_cache(policy, rows):
    full = calls_of_a_layer(lambda model: DynamicCache(config=model.config), rows)
    own = calls_of_a_layer(lambda model: SqueezeCache(model, BUDGET, policy, allocator="uniform"), rows)
    assert own <= BARS[policy] * full


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("budgets", [BUDGET, [BUDGET - 2, BUDGET + 2]], ids=["equal", "ragged"])
@pytest.mark.parametrize("policy", ["streaming_llm", "h2o", "snapkv", "tova", "echo"])
def test_the_host_never_waits_in_a_step(policy, budgets, rows):
    def make(model):
        allocator = [budgets] * model.config.num_hidden_layers
        return SqueezeCache(model, policy=policy, allocator=allocator)

    assert not step(make, 2, rows).waits


def test_positions_that_nobody_asked_for_are_there_when_somebody_does():
    """Few and many of them, and under inference mode as well as outside."""
    model = tiny_model("llama", num_hidden_layers=1)
    for steps in (2, 9, 30):
        for mode in (torch.no_grad, torch.inference_mode):
            cache = SqueezeCache(model, BUDGET, "streaming_llm", allocator="uniform")
            with mode():
                model(input_ids=torch.arange(3, 23)[None], past_key_values=cache, use_cache=True)
                for token in range(steps):
                    model(input_ids=torch.tensor([[token + 3]]), past_key_values=cache, use_cache=True)
            newest = range(20 + steps - (BUDGET - 4), 20 + steps)
            assert cache.kept_positions(0)[0, 0].tolist() == [0, 1, 2, 3, *newest]


def test_what_is_counted():
    x = torch.arange(6.0)
    with CountCalls() as found:
        y = x.view(2, 3) + 1
        y.t()
    assert (found.calls, found.launches, found.synchronisations) == (3, 1, 0)
    assert found.operators == {"view": 1, "add": 1, "t": 1}


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x.sum().item(), lambda x: bool(x.any()), lambda x: x.tolist(), lambda x: x.nonzero(),
        lambda x: x[x > 1], lambda x: torch.tensor([1, 2]), lambda x: torch.equal(x, x),
    ],
)  # fmt: skip
def test_each_way_to_wait_counts_once(wait):
    with CountCalls() as found:
        wait(torch.arange(3))
    assert found.synchronisations == 1
