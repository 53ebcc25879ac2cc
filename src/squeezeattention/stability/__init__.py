"""How stable plans are: from prompt to prompt, from task to task, and against one frozen plan. No torch."""

from .fits import Fit, fits_of
from .frozen import WAYS, freeze
from .layers import Spread, group_counts, spread, usual_groups
from .measures import adjusted_rand, moved, same_layers, spearman
from .pairs import Agreement, agreement
from .study import Observation, Study, TaskStudy, study

__all__ = [
    "WAYS",
    "Agreement",
    "Fit",
    "Observation",
    "Spread",
    "Study",
    "TaskStudy",
    "adjusted_rand",
    "agreement",
    "fits_of",
    "freeze",
    "group_counts",
    "moved",
    "same_layers",
    "spearman",
    "spread",
    "study",
    "usual_groups",
]
