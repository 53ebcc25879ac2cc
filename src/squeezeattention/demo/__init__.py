"""``squeeze demo``: a model reads a text with facts in it, its cache is cut, and then it is asked for them."""

from .facts import Fact
from .measure import Measured, Result, run
from .report import LEGEND, examples, findings, table, to_json, write_files
from .scenario import FULL, QUICK, Context, Settings, build_contexts

__all__ = [
    "FULL",
    "LEGEND",
    "QUICK",
    "Context",
    "Fact",
    "Measured",
    "Result",
    "Settings",
    "build_contexts",
    "examples",
    "findings",
    "run",
    "table",
    "to_json",
    "write_files",
]
