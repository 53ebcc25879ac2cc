"""``squeeze demo``: the embedded model reads real source code and is asked for facts scattered in it."""

from .measure import Measured, Result, run
from .report import LEGEND, findings, table, to_json, write_files
from .scenario import FULL, QUICK, Context, Settings, build_contexts

__all__ = [
    "FULL",
    "LEGEND",
    "QUICK",
    "Context",
    "Measured",
    "Result",
    "Settings",
    "build_contexts",
    "findings",
    "run",
    "table",
    "to_json",
    "write_files",
]
