"""The tables of docs, from the records in ``eval``: ``python benchmarks/tables.py`` writes them where their marks are.

A table stands between ``<!-- table: NAME -->`` and ``<!-- end -->``; ``--check`` changes nothing and ends with 1 if a
table is not what the records say.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import kinds
import samples
from facts_summary import Line, bootstrap, full_of, lines_of

ROOT = Path(__file__).parent.parent
EVAL = ROOT / "benchmarks" / "eval"
DOCS = [ROOT / "docs" / name for name in ("results.md", "ablations.md", "embedded-model.md")]
MODELS = ("embedded", "depth4", "depth12")
NAMES = {
    "squeeze": "squeeze, as published", "squeeze:outliers=clamp": "squeeze, outliers clamped", "cake": "CAKE",
    "dynamickv": "DynamicKV", "lazy": "lazy layers", "pyramid": "PyramidKV", "zigzag": "ZigZagKV",
    "random": "random layers, sizes of squeeze", "probe:heads=equal": "probe's need, mean of each layer",
    "probe": "probe, each head by itself",
}  # fmt: skip

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


def named(rule: str) -> str:
    return NAMES.get(rule, rule)


# ------------------------------------------------------------------- the tables


class Prose:
    """One evaluation on the real model: its contexts, whatever the book, and its ways to hold the cache."""

    def __init__(self, name: str, task: str = "") -> None:
        """``task``: a part of the name of those that are wanted."""
        self.rows: dict[tuple[str | None, str | None, str | None], dict[str, dict[str, Any]]] = {}
        lines = (EVAL / f"smollm2-{name}" / "results.jsonl").read_text(encoding="utf-8").splitlines()
        for row in (row for row in map(json.loads, lines) if task in row["task"]):
            config, context = row["config"], f"{row['task']}/{row['length']}/{row['seed']}/{row['index']}"
            key = (config["policy"], config["allocator"], config["budget"])
            self.rows.setdefault(key, {})[context] = row
        self.full = self.rows[None, None, None]
        self.ways = list(dict.fromkeys(key[:2] for key in self.rows if key[0] is not None))
        self.budgets = sorted({key[2] for key in self.rows if key[2] is not None}, key=float)

    def right(self) -> str:
        """The full cache's share of right answers."""
        scores = [score for row in self.full.values() for score in row["scores"]]
        return f"{percent(statistics.fmean(scores))} % of {len(scores)}"

    def pairs(self, *way: str | None) -> list[tuple[dict[str, Any], dict[str, Any]]]:
        """Rows of a way, each with the full cache's of the same context."""
        return [(row, self.full[context]) for context, row in self.rows.get(way, {}).items()]  # type: ignore[call-overload]

    def share(self, *way: str | None) -> str:
        """Of the full cache's bytes, measured at the end of the answers."""
        pairs = self.pairs(*way)
        return f"{percent(statistics.fmean(row['bytes'] / row['full_bytes'] for row, _ in pairs))} %"

    def kept(self, *way: str | None, interval: bool = False) -> str:
        """Of the full cache's right answers, in percent; with a 95 % interval over contexts if wanted."""
        pairs = self.pairs(*way)
        if not pairs:
            return ""
        own, base = ([statistics.fmean(row["scores"]) for row in side] for side in zip(*pairs, strict=True))
        text = percent(sum(own) / sum(base))
        if interval:
            low, high = bootstrap(own, base)
            text += f" ({percent(low)}-{percent(high)})"
        return text

    def mean(self, *way: str | None) -> str:
        """Mean score in points."""
        scores = [score for row, _ in self.pairs(*way) for score in row["scores"]]
        return f"{100 * statistics.fmean(scores):.1f}" if scores else ""

    def loss(self) -> str:
        """The full cache's nats a token over what follows, and over how many tokens."""
        losses = [loss for row in self.full.values() for loss in row["losses"]]
        return f"{statistics.fmean(losses):.2f} nats of {len(losses)}"

    def lost(self, *way: str | None) -> str:
        """Nats a token more than the full cache over the tokens that follow, with a 95 % interval over contexts."""
        pairs = self.pairs(*way)
        more = [sum(row["losses"]) - sum(full["losses"]) for row, full in pairs]
        tokens = [len(row["losses"]) for row, _ in pairs]
        low, high = bootstrap(more, tokens)
        return f"{sum(more) / sum(tokens):+.3f} ({low:+.3f} to {high:+.3f})"


SELECTIONS = ("uniform", "squeeze", "adakv", "probe", "calibrated", "global")


def scorers() -> Table:
    """Scorers by selections, two budgets a cell; those that are kin to others have a record of their own."""
    records = [Prose(name) for name in ("facts", "scorers") if has("smollm2", name)]
    selections = [one for one in SELECTIONS if any(way[1] == one for found in records for way in found.ways)]
    rows = {}
    for found in records:
        for policy in dict.fromkeys(way[0] for way in found.ways):
            cells = [[found.kept(policy, one, budget) for budget in found.budgets] for one in selections]
            rows[str(policy)] = [f"`{policy}`", *(" / ".join(filter(None, cell)) for cell in cells)]
    head = ["", *(f"`{one}`" if one != "uniform" else "equal" for one in selections)]
    return head, [rows[policy] for policy in sorted(rows)]


#: Evaluations of the best ways, and what their columns are called.
ELSEWHERE = {
    "facts": "hidden, 1,600 tokens", "visible": "visible", "conversations": "conversations",
    "long": "hidden, 4,000 tokens",
}  # fmt: skip


def elsewhere() -> Table:
    """The same ways with questions in the prompt, in conversations and in longer texts."""
    found = {name: Prose(name) for name in ELSEWHERE if has("smollm2", name)}
    ways = max((one.ways for name, one in found.items() if name != "facts"), key=len)
    rows = [[_title(way), *(_both(one.kept, one, way) for one in found.values())] for way in ways]
    return ["", *(ELSEWHERE[name] for name in found)], [*rows, ["full cache", *(one.right() for one in found.values())]]


def following() -> Table:
    """What going on with the text costs."""
    found = Prose("following")
    rows = [[_title(way), *(found.lost(*way, budget) for budget in found.budgets)] for way in found.ways]
    head = [f"{float(budget or 0):.0%}" for budget in found.budgets]
    return [f"full cache: {found.loss()} tokens", *head], rows


def _both(measure: Callable[..., str], found: Prose, way: tuple[str | None, str | None]) -> str:
    return " / ".join(filter(None, (measure(*way, budget) for budget in ("0.2", "0.3") if budget in found.budgets)))


def sweep() -> Table:
    """From a twentieth to half of the bytes: the same texts and questions as in the first table."""
    parts = [Prose("facts"), Prose("sweep")]
    at = sorted(((budget, one) for one in parts for budget in one.budgets), key=lambda pair: float(pair[0] or 0))
    rows = [[_title(way), *(one.kept(*way, budget) for budget, one in at)] for way in parts[1].ways]
    return ["", *(f"{float(budget or 0):.0%}" for budget, _ in at)], rows


def rules() -> Table:
    """Rules that give the KV heads of a layer the same."""
    found = Prose("layers")
    return _by_budget(found, {way: named(str(way[1])) for way in found.ways})


def dividing() -> Table:
    """How steeply, and above which floor, the probe divides."""
    found = Prose("dividing")
    return _by_budget(found, {way: _title(way) for way in found.ways})


def repeating() -> Table:
    """How much of the text echo repeats; the default repeats all of these texts."""
    found, whole = Prose("repeating"), Prose("facts")
    tokens = {way: int(str(way[0]).rpartition("=")[2]) for way in found.ways}
    head, rows = _by_budget(found, {way: f"{tokens[way]} tokens" for way in sorted(tokens, key=tokens.__getitem__)})
    return head, [*rows, ["all", *_kept(whole, ("echo", "global"), found.budgets)]]


def sampling() -> Table:
    """What probe repeats; its own sample is of another record with the same texts."""
    found, own = Prose("sampling"), Prose("dividing")
    titles = {
        **{f"{pieces}x{length}": f"{pieces} x {length} tokens" for pieces, length in samples.SIZES},
        **{name: f"4 x 32, {name.replace('-', ' ')}" for name in (*samples.OTHERS, samples.LAST)},
    }
    ways = {("h2o", f"probe:signal=replay-{name}"): title for name, title in titles.items()}
    head, rows = _by_budget(found, ways)
    return head, [["4 x 32 tokens, `probe`", *_kept(own, ("h2o", "probe"), found.budgets)], *rows]


def transfer() -> Table:
    """Calibrations on other kinds of texts, on novels."""
    found, own = Prose("transfer"), Prose("facts")
    titles = {"short": "pieces of 256 tokens", **{name: name for name in kinds.KINDS}}
    ways = {("h2o", f"{kinds.CALIBRATIONS / name}.json"): title for name, title in titles.items()}
    head, rows = _by_budget(found, ways)
    ours = {"calibrated": "this project's docs, the shipped one", "probe": "nothing: `probe` looks at each prompt"}
    first = [[title, *_kept(own, ("h2o", name), found.budgets)] for name, title in ours.items()]
    return ["calibrated on", *head[1:]], [*first, *rows]


def other_kinds() -> Table:
    """Facts in texts that are no novels."""
    found = {name: Prose("kinds", f"kinds/{name}.txt") for name in kinds.KINDS}
    rows = [
        [_title(way), *(_both(one.kept, one, way) for one in found.values())] for way in found["code"].ways
    ]  # fmt: skip
    return ["", *found], [*rows, ["full cache", *(one.right() for one in found.values())]]


def _by_budget(found: Prose, titles: dict[tuple[str | None, str | None], str]) -> Table:
    """A row for each way, in this order, a column for each budget, with intervals."""
    rows = [[title, *_kept(found, way, found.budgets)] for way, title in titles.items()]
    head = [found.share(*found.ways[0], budget) for budget in found.budgets]
    return [f"full cache: {found.right()}", *head], rows


def _kept(found: Prose, way: tuple[str | None, str | None], budgets: Sequence[str | None]) -> list[str]:
    return [found.kept(*way, budget, interval=True) for budget in budgets]


def _title(way: Sequence[str | None]) -> str:
    return " / ".join(f"`{part}`" for part in way)


SUMMARIES = {"xsum": "XSum", "cnn_dailymail": "CNN/DailyMail"}


def summaries() -> Table:
    """ROUGE of summaries."""
    found = [Prose(name) for name in SUMMARIES]
    rows = [
        [_title(way), *(one.mean(*way, budget) for one in found for budget in one.budgets)] for way in found[0].ways
    ]
    head = [
        f"{title}, {float(budget):.0%}"
        for title, one in zip(SUMMARIES.values(), found, strict=True)
        for budget in one.budgets
    ]
    full = [text for one in found for text in (one.mean(None, None, None), *[""] * (len(one.budgets) - 1))]
    return ["", *head], [["full cache", *full], *rows]


def why() -> Table:
    """What caches have left of where right answers look."""
    record = json.loads((ROOT / "benchmarks" / "why.json").read_text())
    rows = [
        [_way(one), f"{percent(one['bytes'])} %", f"{percent(one['kept'])} %", f"{percent(one['score'])} %"]
        for one in record["ways"]
    ]
    return ["", "bytes", "of the needed attention kept", "right"], rows


def _way(one: dict[str, Any]) -> str:
    return "full cache" if one["policy"] is None else f"`{one['policy']}` / `{one['allocator']}`"


def toy_bytes() -> Table:
    """Recall and code on the embedded model."""
    record = Record("embedded", "bytes")
    budgets = record.settings["budgets"]
    rows = [["full cache", *[""] * (len(budgets) - 1), short(record.cell(task="recall", policy=None)),
             *[""] * (len(budgets) - 1), short(record.cell(task="code", policy=None))]]  # fmt: skip
    for way in record.settings["policies"]:
        policy, allocator = way.split("/")
        at = (record.cell(task=task, policy=policy, allocator=allocator, budget=budget)
              for task in ("recall", "code") for budget in budgets)  # fmt: skip
        rows.append([f"`{policy}` / `{allocator}`", *map(short, at)])
    return ["", *(f"{task}, {float(budget):.0%}" for task in ("recall", "code") for budget in budgets)], rows


def ruler() -> Table:
    """What the full cache does in long rows."""
    record = Record("embedded", "ruler")
    names, (length,) = record.settings["tasks"], record.settings["lengths"]
    rows = [["full cache", *(spread(record.cell(task=name, policy=None)) for name in names)]]
    return ["", *names], [*rows, *_guesses(names, length)]


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


def facts() -> Table:
    """The best of them on twice as many questions, and what going on with the text costs."""
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
    "scorers": scorers,
    "facts": facts,
    "sweep": sweep,
    "elsewhere": elsewhere,
    "following": following,
    "rules": rules,
    "dividing": dividing,
    "repeating": repeating,
    "sampling": sampling,
    "transfer": transfer,
    "kinds": other_kinds,
    "summaries": summaries,
    "why": why,
    "kvpress": kvpress,
    "toy bytes": toy_bytes,
    "ruler and chance": ruler,
    "short": short_rows,
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
