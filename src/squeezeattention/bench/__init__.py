"""Speed and memory of a model with one cache or another, measured, and held against the hardware's bound."""

from .machine import Bandwidth, measure_bandwidth, memory_limit
from .run import Run, Workload, measure
from .search import largest_batch
from .shapes import SHAPES, build, shape_names
from .summary import medians
from .variants import Variant, variants_of
from .weights import step_weight_bytes

__all__ = [
    "SHAPES",
    "Bandwidth",
    "Run",
    "Variant",
    "Workload",
    "build",
    "largest_batch",
    "measure",
    "measure_bandwidth",
    "medians",
    "memory_limit",
    "shape_names",
    "step_weight_bytes",
    "variants_of",
]
