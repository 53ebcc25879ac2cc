"""What each row of a batch sees behind its sinks, when every prompt has budgets of its own."""

from types import SimpleNamespace

import numpy as np
import pytest

from squeezeattention.engine.backends import BATCH, Batch, _newest_blocks
from squeezeattention.errors import CacheStateError

SPEC = SimpleNamespace(per_prompt=True, lane=1, layer=SimpleNamespace(recent=9))


@pytest.fixture
def batch():
    chosen = {"read": [3, 4], "also": [5, 6]}
    token = BATCH.set(Batch(np.array([8, 8, 8]), ["read", "reading", "also"], SimpleNamespace(chosen=chosen)))
    yield
    BATCH.reset(token)


def test_prompts_still_being_read_and_padding_have_the_layers_own(batch):
    found = _newest_blocks(SPEC, np.array([8, 4, 20, 0]), np.array([8, 8, 8, 0]))
    assert found.tolist() == [4, 9, 6, 9]


def test_a_prompt_that_was_read_without_a_choice_is_an_error(batch):
    with pytest.raises(CacheStateError, match="'reading'"):
        _newest_blocks(SPEC, np.array([8, 8, 20]), np.array([8, 8, 8]))


def test_one_plan_for_all_needs_no_batch():
    spec = SimpleNamespace(per_prompt=False, layer=SimpleNamespace(recent=9))
    assert _newest_blocks(spec, np.array([8]), np.array([8])) == 9
