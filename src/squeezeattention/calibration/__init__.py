"""Which KV heads of a model look back, measured once on some texts and kept: ``allocator="calibrated"``."""

from .find import find, keep, places
from .measure import calibrate
from .record import Calibration, is_calibration
from .weights import sample_weights

__all__ = ["Calibration", "calibrate", "find", "is_calibration", "keep", "places", "sample_weights"]
