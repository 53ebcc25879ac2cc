"""``squeeze eval``: tasks, caches and budgets in a grid; resumable, with intervals, bytes and failures in the open."""

from .columns import LEGEND, WIN_LEGEND
from .grid import FULL, Settings, Unit
from .merge import merge, part_of
from .needed import Kept, Need, Why, why
from .plans import PlanStudy, plan_studies
from .report import Report, write_report
from .rerun import Agreement, compare
from .runner import Progress, run
from .spec import Spec
from .summary import summarize, write_summary
from .table import first_tables, overview_tables, results_table, wins_table
from .verdict import verdicts

__all__ = [
    "FULL",
    "LEGEND",
    "WIN_LEGEND",
    "Agreement",
    "Kept",
    "Need",
    "PlanStudy",
    "Progress",
    "Report",
    "Settings",
    "Spec",
    "Unit",
    "Why",
    "compare",
    "first_tables",
    "merge",
    "overview_tables",
    "part_of",
    "plan_studies",
    "results_table",
    "run",
    "summarize",
    "verdicts",
    "why",
    "wins_table",
    "write_report",
    "write_summary",
]
