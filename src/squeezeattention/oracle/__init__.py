"""What each layer's cache is worth, measured: the loss of known replies when the layer is cut."""

from .cases import Case, case_of
from .losses import reply_losses
from .search import Losses, Progress, measure_layers
from .signals import SignalRank, rank_signals, shown_by

__all__ = [
    "Case",
    "Losses",
    "Progress",
    "SignalRank",
    "case_of",
    "measure_layers",
    "rank_signals",
    "reply_losses",
    "shown_by",
]
