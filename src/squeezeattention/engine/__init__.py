"""Budget plans inside vLLM: whole blocks of sinks and of the newest tokens, each layer its own number.

Everything here but ``spec.py`` and ``hooks.py`` works without vLLM.
"""

from .blocks import BlockPlan, LayerBlocks
from .forecast import Forecast
from .lanes import Lanes, assign_lanes
from .settings import EngineSettings

__all__ = ["BlockPlan", "EngineSettings", "Forecast", "Lanes", "LayerBlocks", "assign_lanes"]
