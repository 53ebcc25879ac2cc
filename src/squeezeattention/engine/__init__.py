"""Budget plans inside vLLM: whole blocks of sinks and of the newest tokens, each layer its own number.

``hooks.py`` is where vLLM is touched; ``spec.py`` and ``metrics.py`` cannot be imported without it, all others can.
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
