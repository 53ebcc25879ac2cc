"""Which cases of the matrices run by default."""

from __future__ import annotations

import warnings

import pytest
import torch

from squeezeattention import POLICIES
from squeezeattention.errors import CompileWarning
from squeezeattention.hf import compiled
from squeezeattention.testing import FAMILIES, REFERENCE_POLICIES, rules_for

#: Policies whose large matrices are ``make test-matrix``; those of the others are ``make test-scorers``.
CORE = (*REFERENCE_POLICIES, "snapkv", "echo")
#: Families that see everything in ``make test``.
SOME = ("llama", "gemma2", "mistral-window", "falcon-7b")
#: Families whose ragged heads are tried in compiled steps.
COMPILED = ("llama", "gpt-oss", "mistral-window", "deepseek-v3")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark most cases of the large matrices ``matrix`` or ``scorers``, which are targets of their own.

    What stays of small budgets is the default allocator everywhere, and each other one with each policy and with
    each family; of pieces, one policy for each family; of compiled steps, one policy for each fifth family; of ragged
    heads, each further scorer with each fourth family, compiled or not.
    """
    for item in items:
        name = getattr(item, "originalname", "")
        case = item.callspec.params if hasattr(item, "callspec") else {}
        further = case.get("policy", CORE[0]) not in CORE
        if name == "test_small_budgets_equal_the_reference":
            allocator = case["allocator"]
            left_out = (_turn(case) + rules_for().index(allocator)) % 6 and allocator != "squeeze"
        elif name == "test_every_family_decodes_in_graphs":
            family = list(FAMILIES).index(case["family"])
            left_out = family % 5 or _turn(case) % 3
        elif name == "test_every_piece_equals_the_reference":
            left_out = _turn(case) % 3
        elif name == "test_a_long_forward_is_cut_into_pieces_by_itself":
            left_out = (rules_for().index(case["allocator"]) + POLICIES.names().index(case["policy"])) % 3
        elif name == "test_what_no_plan_could_keep_goes_while_the_prompt_is_read":
            left_out = case["family"] not in SOME
        elif name == "test_ragged_heads_equal_the_reference":
            left_out = further and _turn(case) % 4
        elif name == "test_compiled_steps_and_copies":
            left_out = further and (COMPILED.index(case["family"]) + POLICIES.names().index(case["policy"])) % 4
        else:
            continue
        if left_out:
            item.add_marker(pytest.mark.scorers if further else pytest.mark.matrix)


def _turn(case: dict[str, str]) -> int:
    return list(FAMILIES).index(case["family"]) + POLICIES.names().index(case["policy"])


@pytest.fixture
def graphs(monkeypatch):
    """Traces steps whole and runs them operation by operation; lists what was traced."""
    traced = []

    def backend(graph, example_inputs):
        traced.append(graph)
        return graph.forward

    torch._dynamo.reset()
    call = torch.compile(compiled._forward, fullgraph=True, backend=backend)
    monkeypatch.setattr(compiled, "_compiler", lambda mode: call)
    with warnings.catch_warnings():
        warnings.simplefilter("error", CompileWarning)
        yield traced
    torch._dynamo.reset()
