"""Published data sets as tasks: those of the paper, and LongBench. From a local path, or from the hub."""

from __future__ import annotations

from ..registry import Registry
from .dataset import Dataset, Recipe, dataset, first_line
from .fields import Fields
from .longbench import LONGBENCH, published_prompt
from .paper import PAPER
from .sources import Home
from .template import Asks, Template

__all__ = [
    "DATASETS",
    "Asks",
    "Dataset",
    "Fields",
    "Home",
    "Recipe",
    "Template",
    "dataset",
    "first_line",
    "published_prompt",
]

DATASETS: Registry[Dataset] = Registry("data set", name=str, metric=str, summary=str)
for _recipe in (*PAPER, *LONGBENCH):
    DATASETS.register(_recipe.name, dataset(_recipe))
