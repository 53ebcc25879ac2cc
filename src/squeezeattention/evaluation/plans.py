"""How stable the plans of a run were: what ``squeeze plan`` says of prompts, said of a folder of results."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from ..allocators import ALLOCATORS, Uniform, names_file
from ..errors import EvaluationError
from ..plan import BudgetPlan
from ..stability import Observation, Study, freeze, study
from .config import Config
from .folder import read_rows, read_run
from .grid import Settings
from .reading import signal_values_of

#: The rule is not asked when shares are averaged, so any will do.
_FREEZE = partial(freeze, allocator=Uniform(), by="shares")


@dataclass(frozen=True)
class PlanStudy:
    """The plans that one configuration made at one length."""

    length: int
    config: Config
    study: Study

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"length": self.length, "config": self.config.to_dict(), **self.study.to_dict()}


def plan_studies(folder: Path) -> list[PlanStudy]:
    """A study for each length and configuration whose plans depend on the prompt, if it has two prompts or more.

    A sample counts once: with visible questions, the plan of the first one. Frozen plans are means of shares, as the
    caps of layers are not on record. Raises :class:`EvaluationError` if the folder has no results, or no such plans.
    """
    settings = Settings.from_dict(read_run(folder)["settings"])
    rows = read_rows(folder)
    found = []
    for length in settings.lengths:
        for config in settings.configs():
            if _looks_at_prompts(config):
                seen = list(_observations(rows, length, config))
                if len(seen) > 1:
                    found.append(PlanStudy(length, config, study(seen, _FREEZE)))
    if not found:
        raise EvaluationError(f"{folder} has no two plans to compare: no allocator that looks at prompts has run there")
    return found


def _looks_at_prompts(config: Config) -> bool:
    if config.allocator is None or names_file(config.allocator.name):
        return False
    return getattr(ALLOCATORS.factory(config.allocator.name), "needs_signal", True)


def _observations(rows: Sequence[Mapping[str, Any]], length: int, config: Config) -> Iterator[Observation]:
    for row in rows:
        if row["length"] == length and row["config"]["id"] == config.id and row["plans"]:
            recorded = row["plans"][0]
            values = signal_values_of(recorded)
            plan = replace(
                BudgetPlan.from_budgets(recorded["budgets"], allocator=str(config.allocator)),
                groups=recorded["groups"],
                signal_values=None if values is None else tuple(values),
                signal=recorded["signal"],
            )
            yield Observation(row["id"], row["task"], plan.check())
