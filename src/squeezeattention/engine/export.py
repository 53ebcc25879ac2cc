"""A plan for engines that know one window per layer, and nothing else."""

from __future__ import annotations

import json
from typing import Any

from ..errors import UnsupportedFeatureError
from ..plan import BudgetPlan


def tensorrt_llm(plan: BudgetPlan) -> dict[str, Any]:
    """Options for TensorRT-LLM's LLM API (``trtllm-serve --extra_llm_api_options FILE``): a window for each layer.

    Windows forget sinks, so a plan of another policy than "sliding_window" is an :class:`UnsupportedFeatureError`.
    """
    if plan.policy not in (None, "sliding_window"):
        raise UnsupportedFeatureError(
            f"TensorRT-LLM keeps the newest tokens of a layer and nothing else, and this plan was made for "
            f"{plan.policy!r}: make one with --policy sliding_window"
        )
    return {"kv_cache_config": {"max_attention_window": list(plan.budgets)}}


def as_yaml(options: dict[str, Any]) -> str:
    """JSON, which is YAML too."""
    return json.dumps(options, indent=2) + "\n"
