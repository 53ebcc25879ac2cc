"""``squeeze demo``: the embedded model reads real source code and is asked for facts scattered in it."""

from .report import findings, table, write_files
from .run import Measured, Result, run
from .scenario import FULL, QUICK, Context, Settings, Variant, build_contexts

__all__ = [
    "FULL",
    "QUICK",
    "Context",
    "Measured",
    "Result",
    "Settings",
    "Variant",
    "build_contexts",
    "findings",
    "run",
    "table",
    "write_files",
]
