"""``docs/bytes.png``: right answers against measured bytes, from the records of facts and sweep (tables.py's own)."""

from __future__ import annotations

import statistics
from pathlib import Path

from facts_summary import bootstrap
from squeezeattention.plots import Panel, Point, accuracy_figure, save
from tables import Prose

OUT = Path(__file__).parent.parent / "docs" / "bytes.png"
PANELS = {
    "each KV head has a budget of its own": (
        ("echo", "global"), ("h2o", "probe"), ("h2o", "calibrated"), ("tova", "probe"), ("streaming_llm", "probe"),
    ),
    "all heads of a layer have the same": (("h2o", "uniform"), ("h2o", "squeeze"), ("streaming_llm", "uniform")),
}  # fmt: skip


def point(found: Prose, *way: str | None) -> Point:
    """Share of right answers and its interval over contexts, at the bytes held, mean over contexts."""
    rows = [row for row, _ in found.pairs(*way)]
    scores = [statistics.fmean(row["scores"]) for row in rows]
    low, high = bootstrap(scores, [1.0] * len(scores))
    return Point(statistics.fmean(row["bytes"] for row in rows), statistics.fmean(scores), low, high)


def main() -> None:
    parts = [Prose("facts"), Prose("sweep")]
    panels = [
        Panel(title, {"/".join(way): [point(one, *way, at) for one in parts for at in one.budgets] for way in ways})
        for title, ways in PANELS.items()
    ]
    questions = sum(len(row["scores"]) for row in parts[0].full.values())
    title = "SmolLM2-135M-Instruct: facts in novels, asked for after the cut"
    save(accuracy_figure(panels, point(parts[0], None, None, None), title=title, n=questions), OUT)


if __name__ == "__main__":
    main()
