"""What the demo found: a table, a paragraph computed from the numbers, JSON and figures."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from ..plan import BudgetPlan
from ..plots import Panel, Point, accuracy_figure, plan_figure, save
from ..tasks.scoring import Score, sign_test
from .measure import REFERENCE, Measured, Result

if TYPE_CHECKING:
    from rich.table import Table

_LEVEL = 0.05
_NEAR = 0.95  # share of the full cache's score that counts as "nearly as good"
_SMALL_CACHE = 64 * 2**20


@dataclass(frozen=True)
class _Column:
    """One column of the table, shown from a certain terminal width on."""

    title: str
    cell: Callable[[Measured, Result], str]
    from_width: int = 0
    right: bool = True


_COLUMNS = (
    _Column("policy", lambda row, _: row.policy or "none", right=False),
    _Column("budget", lambda row, _: f"{row.budget:.0%}"),
    _Column("layers", lambda row, _: row.label, right=False),
    _Column("right", lambda row, _: f"{row.score.right}/{row.score.n}"),
    _Column("95 %", lambda row, _: f"{100 * row.score.low:.0f}-{100 * row.score.high:.0f} %", from_width=90),
    _Column("KV held", lambda row, _: _size(row.mean_bytes)),
    _Column("of full", lambda row, result: f"{row.mean_bytes / result.full.mean_bytes:.0%}"),
    _Column("peak", lambda row, _: _size(row.mean_peak_bytes), from_width=100),
    _Column("tok/s", lambda row, _: f"{row.tokens_per_s:.0f}"),
    _Column(
        "plan: layers x tokens",
        lambda row, _: _plan_text(row.plans[0]) if row.plans else "all",
        from_width=130,
        right=False,
    ),
)


def table(result: Result, width: int = 80) -> Table:
    """All rows, with as many columns as a terminal of ``width`` has room for; needs ``rich``."""
    from rich import box
    from rich.table import Table

    columns = [column for column in _COLUMNS if column.from_width <= width]
    made = Table(header_style="bold", pad_edge=False, padding=(0, 1, 0, 0), box=box.SIMPLE_HEAD)
    for column in columns:
        made.add_column(column.title, justify="right" if column.right else "left", no_wrap=column.from_width < 130)
    for index, row in enumerate((result.full, *result.rows)):
        following = result.rows[index] if index < len(result.rows) else None
        made.add_row(
            *(column.cell(row, result) for column in columns),
            style="bold" if row is result.full else None,
            end_section=following is not None and following.policy != row.policy,
        )
    return made


LEGEND = (
    "right: answers with all five digits right (95 %: Wilson interval of their share). KV held: measured bytes of "
    "keys and values after a context was cut, mean of the contexts; peak: most held at once while reading. tok/s: one "
    "sequence, median step. plan: of the first context. A wider terminal shows more columns, demo.json has all. "
    "In the picture, markers of one size stand side by side: their bytes are the middle one's."
)


def _size(count: float) -> str:
    return f"{count / 2**20:,.1f} MiB" if count >= 2**20 else f"{count / 1024:,.0f} KiB"


def _plan_text(plan: BudgetPlan) -> str:
    """Budgets by how many layers have them, such as ``2x1210, 8x104`` (largest first)."""
    by_budget: dict[int, int] = {}
    for budget in sorted(plan.budgets, reverse=True):
        near = next((known for known in by_budget if abs(known - budget) <= 1), budget)
        by_budget[near] = by_budget.get(near, 0) + 1
    shown = [f"{count}x{budget}" for budget, count in by_budget.items()]
    return ", ".join(shown[:4]) + (", ..." if len(shown) > 4 else "")


# ------------------------------------------------------------------ paragraph


def findings(result: Result) -> str:
    """One paragraph of what the numbers show, and what they do not."""
    parts = [_about_full(result)]
    baseline = _by_setting(result, result.settings.allocators[0])
    for allocator in result.settings.allocators[1:]:
        parts.append(_against(_by_setting(result, allocator), baseline, allocator))
    parts += [
        _about_outliers(result),
        _about_smallest(result),
        _about_reference(result),
        _about_speed(result),
    ]
    return " ".join(part for part in parts if part)


def _by_setting(result: Result, label: str) -> dict[tuple[str | None, float], Measured]:
    return {(row.policy, row.budget): row for row in result.rows if row.label == label}


def _about_full(result: Result) -> str:
    score = result.full.score
    text = (
        f"With the full cache ({_size(result.full.mean_bytes)}) the model gives {score.right} of {score.n} "
        f"answers ({_percent(score)})"
    )
    if score.share < 0.5:
        return text + "; that is so few that the differences below say little about any method."
    return text + "; nothing that forgets can be expected to do better."


def _percent(score: Score) -> str:
    return f"{score.share:.0%}, 95 % interval {100 * score.low:.0f}-{100 * score.high:.0f} %"


def _against(
    rows: dict[tuple[str | None, float], Measured],
    baseline: dict[tuple[str | None, float], Measured],
    label: str,
) -> str:
    better = worse = 0
    gains = []
    for setting, row in rows.items():
        other = baseline[setting]
        gains.append(row.score.share - other.score.share)
        if sign_test(row.answers, other.answers) < _LEVEL:
            better += gains[-1] > 0
            worse += gains[-1] < 0
    same = len(rows) - better - worse
    mean = 100 * sum(gains) / len(gains)
    return (
        f'Against uniform budgets of the same size, "{label}" is better in {better} of {len(rows)} pairs of '
        f"policy and budget, worse in {worse} and not to be told apart in {same} (paired exact test on the "
        f"same questions, 5 %, each pair by itself); on average {mean:+.0f} points."
    )


def _about_outliers(result: Result) -> str:
    plans = [plan for row in result.rows if row.label == "squeeze" for plan in row.plans]
    captured = sum(any("took the important groups" in warning for warning in plan.warnings) for plan in plans)
    if not captured:
        return ""
    return (
        f"In {captured} of {len(plans)} plans as published, a few layers with an extreme cosine took "
        "the important groups by themselves and all others were cut."
    )


def _about_smallest(result: Result) -> str:
    methods = [row for row in result.rows if row.label != REFERENCE]
    full = result.full.score
    near = [row for row in methods if full.right and row.score.right >= _NEAR * full.right]
    if not full.right:
        return ""
    if near:
        row = min(near, key=lambda row: row.mean_bytes)
        start = f"The smallest cache within {1 - _NEAR:.0%} of the full score is"
    else:
        row = max(methods, key=lambda row: (row.score.right, -row.mean_bytes))
        start = f"No setting comes within {1 - _NEAR:.0%} of the full score; the best is"
    return (
        f"{start} {row.policy} with {row.label} budgets at {_size(row.mean_bytes)} "
        f"({row.mean_bytes / result.full.mean_bytes:.0%} of the full cache): {row.score.right} of "
        f"{row.score.n}."
    )


def _about_reference(result: Result) -> str:
    rows = [row for row in result.rows if row.label == REFERENCE]
    if not rows or result.whole_layer is None:
        return ""
    best = max(rows, key=lambda row: (row.score.right, -row.mean_bytes))
    uniform = _by_setting(result, result.settings.allocators[0])[best.policy, best.budget]
    text = (
        f'For comparison, "{REFERENCE}" keeps layer {result.whole_layer}, found by cutting each layer alone '
        f"on another context and looking at the answers, and little elsewhere: {best.score.right} of "
        f"{best.score.n} with {_size(best.mean_bytes)}. It is no method, but shows what "
    )
    if best.score.right > uniform.score.right:
        return text + "a signal that finds the right layer could reach."
    return text + "one layer is worth: recall needs more than that."


def _about_speed(result: Result) -> str:
    speeds = [row.tokens_per_s for row in result.rows]
    text = (
        f"Decoding ran at {min(speeds):.0f}-{max(speeds):.0f} tokens/s against "
        f"{result.full.tokens_per_s:.0f} with the full cache"
    )
    if result.full.mean_bytes < _SMALL_CACHE:
        text += "; for one short sequence that is overhead and says nothing of long contexts or large batches"
    return text + ". Peaks are those of the whole context, but for uniform budgets, which are known before it is read."


# ---------------------------------------------------------------------- files


def to_json(result: Result) -> dict[str, Any]:
    """Everything measured, as plain JSON values."""
    settings = result.settings
    return {
        "settings": {
            "length": settings.length,
            "contexts": settings.contexts,
            "facts": settings.facts,
            "policies": list(settings.policies),
            "budgets": list(settings.budgets),
            "p": settings.p,
            "decode_tokens": settings.decode_tokens,
            "seed": settings.seed,
        },
        "contexts": [
            {
                "source": context.source,
                "tokens": len(context.tokens),
                "facts": [{"name": fact.name, "value": fact.value} for fact in context.facts],
            }
            for context in result.contexts
        ],
        "full": _row_json(result.full),
        "rows": [_row_json(row) for row in result.rows],
        "whole_layer": result.whole_layer,
        "findings": findings(result),
        "seconds": round(result.seconds, 2),
    }


def _row_json(row: Measured) -> dict[str, Any]:
    score = row.score
    return {
        "policy": row.policy,
        "budget": row.budget,
        "allocator": row.label,
        "right": score.right,
        "n": score.n,
        "interval": [round(score.low, 4), round(score.high, 4)],
        "answers": row.answers,
        "bytes": row.bytes,
        "peak_bytes": row.peak_bytes,
        "tokens_per_s": round(row.tokens_per_s, 2),
        "plans": [plan.to_dict() for plan in row.plans],
    }


def write_files(result: Result, folder: Path) -> list[Path]:
    """demo.json, accuracy_vs_bytes.png, and plans_RULE.png for each rule that measures; raises :class:`InputError`."""
    target = folder / "demo.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps(to_json(result), indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot write to the folder {folder}: {error.strerror or error}") from error
    figures = {"accuracy_vs_bytes.png": _accuracy_figure(result)}
    figures |= {f"plans_{label}.png": _plan_figure(result, label) for label in _measured(result)}
    return [target, *(save(figure, folder / name) for name, figure in figures.items())]


def _measured(result: Result) -> list[str]:
    """The rules whose plans follow a signal: there is something to draw of them."""
    plans = {row.label: row.plans for row in result.rows if row.plans}
    return [label for label, made in plans.items() if all(plan.signal_values is not None for plan in made)]


def _point(row: Measured) -> Point:
    score = row.score
    return Point(row.mean_bytes, score.share, score.low, score.high)


def _accuracy_figure(result: Result) -> Any:
    panels = []
    for policy in result.settings.policies:
        rows = [row for row in result.rows if row.policy == policy]
        labels = dict.fromkeys(row.label for row in rows)
        panels.append(Panel(policy, {k: [_point(row) for row in rows if row.label == k] for k in labels}))
    full = result.full.score
    length = result.settings.length
    title = f"Recall of facts in {length:,} tokens of source code against the size of the cache"
    return accuracy_figure(panels, _point(result.full), title=title, n=full.n)


def _plan_figure(result: Result, label: str) -> Any:
    """A rule's plans at the middle budget, one row a context."""
    settings = result.settings
    budget = sorted(settings.budgets)[len(settings.budgets) // 2]
    row = next(row for row in result.rows if row.label == label and row.budget == budget)
    sources = [context.source for context in result.contexts]
    title = f"Signal, groups and budgets of each context ({label}, budget {budget:.0%})"
    return plan_figure(list(zip(sources, row.plans, strict=True)), title=title)
