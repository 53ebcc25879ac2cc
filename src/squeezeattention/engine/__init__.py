"""Budget plans inside vLLM: whole blocks of sinks and of the newest tokens, each layer its own number.

Everything here but ``spec.py``, ``hooks.py`` and ``metrics.py`` works without vLLM.
"""

from .blocks import BlockPlan, LayerBlocks
from .forecast import Forecast
from .lanes import Lanes, assign_lanes
from .prompts import PerPrompt, PromptPlanner
from .settings import EngineSettings

__all__ = [
    "BlockPlan",
    "EngineSettings",
    "Forecast",
    "Lanes",
    "LayerBlocks",
    "PerPrompt",
    "PromptPlanner",
    "assign_lanes",
]
