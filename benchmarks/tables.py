"""The tables of docs, from the records in ``eval``: ``python benchmarks/tables.py`` writes them where their marks are.

A table stands between ``<!-- table: NAME -->`` and ``<!-- end -->``; ``--check`` changes nothing and ends with 1 if a
table is not what the records say.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from facts_summary import Line, full_of, lines_of
from results import RULES

ROOT = Path(__file__).parent.parent
EVAL = ROOT / "benchmarks" / "eval"
DOCS = [ROOT / "docs" / name for name in ("results.md", "embedded-model.md")]
MODELS = ("embedded", "depth4", "depth12")
POLICIES = {"streaming_llm": "StreamingLLM", "h2o": "H2O"}
NAMES = {
    "squeeze": "squeeze, as published", "squeeze:outliers=clamp": "squeeze, outliers clamped", "cake": "CAKE",
    "dynamickv": "DynamicKV", "lazy": "lazy layers", "pyramid": "PyramidKV", "zigzag": "ZigZagKV",
    "random": "random layers, sizes of squeeze", "inverted": "inverted groups",
    "lookup": "lookup, the default then",
}  # fmt: skip
#: What these records were made with where nothing was said.
DEFAULT_ALLOCATOR = "lookup"

Cell = dict[str, Any]
Table = tuple[Sequence[str], list[list[str]]]  # head, rows


class Record:
    """The summary of one evaluation."""

    def __init__(self, model: str, name: str) -> None:
        self.model = model
        self.summary: dict[str, Any] = json.loads((EVAL / f"{model}-{name}" / "summary.json").read_text())
        self.settings = self.summary["settings"]

    def cell(self, **wanted: Any) -> Cell:
        """The one result that is so; ``policy=None`` is the full cache's."""
        (found,) = (one for one in self.summary["results"] if all(one[key] == value for key, value in wanted.items()))
        return found

    def reach(self, **wanted: Any) -> Cell:
        """Bytes from which on a share of the full score is kept."""
        (found,) = (one for one in self.summary["reach"] if all(one[key] == value for key, value in wanted.items()))
        return found


def has(model: str, name: str) -> bool:
    return (EVAL / f"{model}-{name}" / "summary.json").is_file()


def percent(value: float) -> str:
    return f"{100 * value:.0f}"


def spread(cell: Cell) -> str:
    """Score with its interval, or nats a token."""
    interval = "" if cell["nats_per_token"] is not None else f" ({percent(cell['low'])}-{percent(cell['high'])})"
    return short(cell) + interval


def short(cell: Cell) -> str:
    """Score, or nats a token."""
    return f"{cell['nats_per_token']:.2f}" if cell["nats_per_token"] is not None else percent(cell["score"])


def both(show: Callable[[Cell], str], record: Record, **wanted: Any) -> str:
    """``StreamingLLM / H2O``."""
    return " / ".join(show(record.cell(policy=policy, **wanted)) for policy in POLICIES)


def named(rule: str) -> str:
    frozen = re.search(r"-frozen-(\w+)\.json$", rule)
    return f"{frozen[1]}, frozen" if frozen else NAMES.get(rule, rule)


# ------------------------------------------------------------------- the tables


def quick() -> Table:
    record = Record("embedded", "quick")
    columns = [*(("recall", budget) for budget in record.settings["budgets"]), ("code", "0.3")]
    head, full, seen = [""], ["full cache"], set()
    for task, budget in columns:
        share = record.cell(task=task, policy="h2o", allocator="uniform", budget=budget)["share"]
        head.append(f"{task}, {percent(share)} % of the bytes")
        full.append("" if task in seen else short(record.cell(task=task, policy=None)))
        seen.add(task)
    rows = [
        [named(rule), *(both(short, record, task=task, allocator=rule, budget=budget) for task, budget in columns)]
        for rule in record.settings["allocators"]
    ]
    return head, [full, *rows]


def _columns(name: str = "bytes") -> list[tuple[Record, str, int]]:
    """Record, task and length."""
    records = [Record(model, name) for model in MODELS if has(model, name)]
    return [
        (one, task, length) for one in records for task in one.settings["tasks"] for length in one.settings["lengths"]
    ]


def _least(record: Record, **wanted: Any) -> float | None:
    """Bytes for the score as a share of the full cache's."""
    one = record.reach(**wanted)
    full = record.cell(task=wanted["task"], length=wanted["length"], policy=None)["bytes"]
    return None if one["bytes"] is None else one["bytes"] / full


def _most(record: Record, **wanted: Any) -> float:
    """The largest share of the full cache's bytes that was measured."""
    share: float = record.cell(budget=max(record.settings["budgets"], key=float), **wanted)["share"]
    return share


def bytes_for(share: float, name: str = "bytes") -> Table:
    columns = _columns(name)
    rows = []
    for rule in columns[0][0].settings["allocators"]:
        row = [named(rule)]
        for record, task, length in columns:
            cell = []
            for policy in POLICIES:
                wanted = {"task": task, "length": length, "policy": policy, "allocator": rule}
                least = _least(record, share=share, **wanted)
                cell.append(f"> {percent(_most(record, **wanted))}" if least is None else percent(least))
            row.append(f"{' / '.join(cell)} %")
        rows.append(row)
    several = len({task for _, task, _ in columns}) > 1
    head = (f"{record.model}, {task if several else length}" for record, task, length in columns)
    return ["", *head], [*rows, _ratios(share, columns)]


def _ratios(share: float, columns: list[tuple[Record, str, int]]) -> list[str]:
    """The default's bytes of those that uniform budgets need; a bound where these never keep as much."""
    row = [f"{DEFAULT_ALLOCATOR} against uniform"]
    for record, task, length in columns:
        cell = []
        for policy in POLICIES:
            where = {"task": task, "length": length, "policy": policy}
            own = _least(record, share=share, allocator=DEFAULT_ALLOCATOR, **where)
            uniform, bound = _least(record, share=share, allocator="uniform", **where), ""
            if uniform is None:
                # Measured more finely, or else they need more than the most that was.
                finer = Record(record.model, "whole") if has(record.model, "whole") and task == "recall" else record
                full = record.cell(task=task, length=length, policy=None)["score"]
                seen = [finer.cell(allocator="uniform", budget=budget, **where) for budget in finer.settings["budgets"]]
                kept = [one["share"] for one in seen if one["score"] >= share * full]
                uniform, bound = (min(kept), "<= ") if kept else (max(one["share"] for one in seen), "< ")
            cell.append("-" if own is None else f"{bound}{own / uniform:.2f}")
        row.append(" / ".join(cell))
    return row


def whole() -> Table:
    columns = _columns("whole")
    rows = [["full cache", *(short(record.cell(task=task, length=n, policy=None)) for record, task, n in columns)]]
    for budget in columns[0][0].settings["budgets"]:
        cells = (both(short, record, task=task, length=length, budget=budget) for record, task, length in columns)
        rows.append([f"uniform, {float(budget):.0%}", *cells])
    return ["", *(f"{record.model}, {length}" for record, _, length in columns)], rows


def allocators() -> Table:
    models = [model for model in MODELS if has(model, "allocators")]
    columns = [(model, task, policy) for model in models for task in ("recall", "code") for policy in POLICIES]
    records = {model: Record(model, "allocators") for model in models}
    full = [spread(records[m].cell(task=t, policy=None)) if p == "streaming_llm" else "" for m, t, p in columns]
    rows = [
        [named(rule), *(spread(records[m].cell(task=t, policy=p, allocator=rule)) for m, t, p in columns)]
        for rule in records["embedded"].settings["allocators"]
    ]
    return ["", *(f"{m}: {t}, {POLICIES[p]}" for m, t, p in columns)], [["full cache", *full], *rows]


def tasks(model: str) -> Table:
    record = Record(model, "tasks")
    names, settings = record.settings["tasks"], record.settings
    columns = [(policy, budget) for policy in POLICIES for budget in settings["budgets"]]
    found = {
        (rule, column): _scores(record, names, allocator=rule, policy=column[0], budget=column[1])
        for rule in settings["allocators"]
        for column in columns
    }
    means = {key: round(100 * sum(scores) / len(names)) for key, scores in found.items()}
    rows = []
    for rule in settings["allocators"]:
        row = [named(rule)]
        for column in columns:
            mean = means[rule, column]
            best = mean == max(means[other, column] for other in settings["allocators"])
            row.append(f"{' / '.join(map(percent, found[rule, column]))}: {f'**{mean}**' if best else mean}")
        rows.append(row)
    full = _scores(record, names, policy=None)
    whole = f"{' / '.join(map(percent, full))}: {percent(sum(full) / len(full))}"
    head = ["", *(f"{POLICIES[policy]}, {budget}" for policy, budget in columns)]
    return head, [["full cache", whole, *[""] * (len(columns) - 1)], *rows]


def _scores(record: Record, names: Sequence[str], **wanted: Any) -> list[float]:
    return [record.cell(task=name, **wanted)["score"] for name in names]


def ruler(*, squeezed: bool) -> Table:
    record = Record("embedded", "ruler")
    names, (length,) = record.settings["tasks"], record.settings["lengths"]
    rows = [["full cache", *(spread(record.cell(task=name, policy=None)) for name in names)]]
    if not squeezed:
        return ["", *names], [*rows, *_guesses(names, length)]
    for rule in record.settings["allocators"]:
        cells = [record.cell(task=name, allocator=rule) for name in names]
        share = sum(cell["share"] for cell in cells) / len(cells)
        rows.append([f"{named(rule)}, {percent(share)} % of the bytes", *map(spread, cells)])
    return ["", *names], rows


def _guesses(names: Sequence[str], length: int) -> list[list[str]]:
    """What naming things at random scores."""
    guessed = {(one["task"], one["length"]): one for one in json.loads((EVAL.parent / "chance.json").read_text())}
    found = [guessed.get((name, length)) for name in names]
    return [
        [text, *("" if one is None else f"{one[kind]:.0f}" for one in found)]
        for kind, text in (("any", "any name of the text"), ("by_occurrence", "names by occurrence"))
    ]


def short_rows() -> Table:
    """What each model can do at all, and what guessing would."""
    records = [Record(model, "short") for model in MODELS if has(model, "short")]
    names, (length,) = records[0].settings["tasks"], records[0].settings["lengths"]
    rows = [[one.model, *(spread(one.cell(task=name, policy=None)) for name in names)] for one in records]
    return ["", *names], [*rows, *_guesses(names, length)]


def stability() -> Table:
    models = [model for model in MODELS if (EVAL / f"{model}-stability-squeeze.json").is_file()]
    rows = []
    for rule in RULES:
        found = [json.loads((EVAL / f"{model}-stability-{rule}.json").read_text())["stability"] for model in models]
        fits = [{fit["against"]: fit for fit in one["fits"]} for one in found]
        same = {one["all"]["agreement"]["same_layers"] for one in found}
        rows.append([
            rule,
            "-" if None in same else f"{min(same):.0%} of the pairs",
            *(f"{fit['frozen']['moved']:.1%}" for fit in fits),
            f"{max(fit['frozen']['worst'] for fit in fits):.1%}",
            f"{max(fit['unseen task']['moved'] for fit in fits):.1%}",
        ])  # fmt: skip
    moved = (f"moved, {model}" for model in models)
    return ["", "same groups", *moved, "worst prompt", "unseen task, worst model"], rows


def frozen() -> Table:
    models = [model for model in MODELS if has(model, "frozen")]
    records = {model: Record(model, "frozen") for model in models}
    columns = [
        (model, task, budget)
        for model in models for task in ("recall", "code") for budget in records[model].settings["budgets"]
    ]  # fmt: skip
    rows = []
    for rule in records["embedded"].settings["allocators"]:
        cells = (
            records[model].cell(task=task, budget=budget, allocator=rule.replace("/embedded-", f"/{model}-"))
            for model, task, budget in columns
        )
        rows.append([named(rule), *map(spread, cells)])
    return ["", *(f"{model}: {task}, {float(budget):.0%}" for model, task, budget in columns)], rows


def p_sweep() -> Table:
    record = Record("embedded", "p")
    values = record.settings["ps"]
    rows = []
    for rule in record.settings["allocators"]:
        groups = re.search(r"groups=(\d)", rule)
        at = (record.cell(allocator=f"{rule}{',' if groups else ':'}p={p}") for p in values)
        rows.append([f"k = {groups[1] if groups else '3, the paper'}", *map(short, at)])
    return ["p", *(f"{p}{' (uniform)' if p == 1 else ''}" for p in values)], rows


def bounded() -> Table:
    record = Record("embedded", "bounded")
    budgets, rows = record.settings["budgets"], []
    for rule in record.settings["allocators"]:
        name, _, way = rule.partition(":")
        row = [f"{named(name)}: {'bounded' if way else 'exact'}"]
        for budget in budgets:
            cells = [
                one for one in record.summary["results"]
                if one["budget"] == budget and one["allocator"].partition(":")[0] == name
                and ("bounded" in one["allocator"]) == bool(way)
            ]  # fmt: skip
            row += [" / ".join(map(short, cells)), f"{max(one['peak_bytes'] / one['full_bytes'] for one in cells):.0%}"]
        rows.append(row)
    return ["", *(text for budget in budgets for text in (f"{float(budget):.0%}", "peak"))], rows


def oracle() -> Table:
    rows = []
    shown = ("sharpness", "preference", "locality", "cosine")
    for model in MODELS:
        found = json.loads((EVAL / f"{model}-oracle.json").read_text())
        added = found["added"]
        order = sorted(range(len(added)), key=lambda layer: -added[layer])
        rank = {one["signal"]: one["alone"] for one in found["signals"]}
        rows.append([model, f"{added[order[0]]:.2f}, layer {order[0]}", f"{added[order[1]]:.2f}, layer {order[1]}",
                     *(f"{rank[signal]:.2f}" for signal in shown)])  # fmt: skip
    return ["", "costs most", "costs next", *shown], rows


def facts() -> Table:
    """Facts in prose on SmolLM2, and what going on with the text costs."""
    record = json.loads((ROOT / "benchmarks" / "facts.json").read_text())
    rows = [[*row, f"{line.nats:+.3f}"] for row, line in _facts_lines(record)]
    return ["policy/allocator", "bytes", "right", "of the full cache's", "nats"], [[*_full_line(record), ""], *rows]


def kvpress() -> Table:
    """The same texts and questions under kvpress's presses, beside ours."""
    theirs = json.loads((ROOT / "benchmarks" / "kvpress_quality.json").read_text())
    ours = json.loads((ROOT / "benchmarks" / "facts.json").read_text())
    texts = {row["text"] for row in theirs["rows"]}
    both = {"rows": [row for row in ours["rows"] if row["text"] in texts]}
    both["rows"] += [row for row in theirs["rows"] if row["cache"] != "full"]
    header = ["", "bytes", "right", "of the full cache's"]
    return header, [_full_line(both), *(row for row, _ in _facts_lines(both))]


def _full_line(record: dict[str, Any]) -> list[str]:
    _, questions, share = full_of(record)
    return ["full cache", "100 %", f"{percent(share)} % of {questions}", ""]


def _facts_lines(record: dict[str, Any]) -> list[tuple[list[str], Line]]:
    lines = sorted(lines_of(record), key=lambda line: (round(line.share, 1), line.right))
    return [
        (
            [
                line.cache, f"{percent(line.share)} %", f"{percent(line.right)} %",
                f"{percent(line.kept)} % ({percent(line.low)}-{percent(line.high)})",
            ],
            line,
        )
        for line in lines
    ]  # fmt: skip


TABLES: dict[str, Callable[[], Table]] = {
    "facts": facts,
    "kvpress": kvpress,
    "quick": quick,
    "oracle": oracle,
    "bytes for 95 %": lambda: bytes_for(0.95),
    "bytes for 90 %": lambda: bytes_for(0.9),
    "needles for 95 %": lambda: bytes_for(0.95, "needles"),
    "whole": whole,
    "allocators": allocators,
    "tasks": lambda: tasks("embedded"),
    "ruler": lambda: ruler(squeezed=True),
    "ruler and chance": lambda: ruler(squeezed=False),
    "short": short_rows,
    "stability": stability,
    "frozen": frozen,
    "p": p_sweep,
    "bounded": bounded,
}


@cache
def written(name: str) -> str:
    """A table's lines."""
    if name not in TABLES:
        raise SystemExit(f"no table is called {name!r}; there are {', '.join(TABLES)}")
    head, rows = TABLES[name]()
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows))


def renewed(text: str) -> str:
    """The text with each of its tables as the records have it."""
    mark = r"(<!-- table: (.+?) -->\n).*?(<!-- end -->)"
    return re.sub(mark, lambda found: f"{found[1]}\n{written(found[2])}\n\n{found[3]}", text, flags=re.DOTALL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing, end with 1 if a table is stale")
    args = parser.parse_args()
    stale = False
    for path in DOCS:
        before = path.read_text(encoding="utf-8")
        after = renewed(before)
        if after != before:
            stale = True
            print(f"{path.relative_to(ROOT)}: {'stale' if args.check else 'renewed'}")
            if not args.check:
                path.write_text(after, encoding="utf-8")
    sys.exit(1 if stale and args.check else 0)


if __name__ == "__main__":
    main()
