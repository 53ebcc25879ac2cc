"""Markdown from the records: tables for the docs, and a summary that is short enough to be read on a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from .records import read

#: Characters of the summary at most: what a remote machine prints is often cut.
MOST = 10500


def summary(folder: Path, steps: Iterable[str]) -> str:
    """What each step found, failures in one line each; the records have the rest."""
    parts = []
    for step in steps:
        record = read(folder, step)
        if record is None:
            parts.append(f"## {step}\n\nno record\n")
            continue
        took = record.get("seconds")
        head = f"## {step}: {'not ended' if took is None else f'{took} s'}"
        if "ended" in record:
            lines = record.get("output", "").strip().splitlines()
            head += f"\n\n{record['ended']}: {' / '.join(lines[-3:])[-400:]}"
        parts.append(f"{head}\n\n{_WRITERS[step](record)}{_troubles(record)}")
    text = "\n".join(parts)
    return text if len(text) <= MOST else text[:MOST] + "\n... (the records have the rest)\n"


def tables(folder: Path) -> str:
    """For the docs: the setting and one table a step, rows that failed or were left out in words."""
    records = {step: record for step in _WRITERS if (record := read(folder, step)) is not None}
    if not records:
        raise SystemExit(f"no records in {folder}: python benchmarks/gpu.py --out {folder} makes them")
    first = next((one for one in records.values() if "environment" in one), None)
    head = "" if first is None else _setting(first) + "\n\n"
    return head + "\n".join(f"{step}:\n\n{_WRITERS[step](record)}{_troubles(record)}"
                            for step, record in records.items())  # fmt: skip


def _setting(record: dict[str, Any]) -> str:
    found = record["environment"]
    gpus = ", ".join(found["gpus"]) or "no GPU"
    return f"{gpus}; torch {found['torch']}, transformers {found['transformers']}, Python {found['python']}."


def _rows(record: dict[str, Any], key: str) -> list[dict[str, Any]]:
    return [row for row in record["rows"] if key in row]


def _markdown(heads: list[str], rows: Iterable[list[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _number(value: float | None, form: str = ".1f", unit: str = "") -> str:
    return "" if value is None else f"{value:{form}}{unit}"


def _gib(value: float | None) -> str:
    return "" if value is None else f"{value / 2**30:.2f}"


def _checks(record: dict[str, Any]) -> str:
    rows = _rows(record, "ok")
    lines = [f"{sum(row['ok'] for row in rows)} of {len(rows)} checks hold.\n"]
    for row in rows:
        facts = []
        if not row["ok"]:
            facts.append(str({key: value for key, value in row.items() if key not in ("name", "ok", "took_s")})[:500])
        elif "graph_replays" in row:
            facts.append(
                f"{row['graph_replays']} graph replays a step, graphs {row['graphs_of_first_prompt']} + "
                f"{row['graphs_of_second_prompt']} for a second plan, {row['graphs_skipped']} skipped, "
                f"{len(row['warnings'])} warnings"
            )
        if facts:
            lines.append(f"- {row['name']}: {'ok' if row['ok'] else 'WRONG'}; {'; '.join(facts)}\n")
    return "".join(lines)


def _decode(record: dict[str, Any]) -> str:
    layers = record.get("layers")
    bandwidth = record.get("bandwidth")
    head = "" if bandwidth is None else f"{layers} layers, {bandwidth / 1e12:.3f} TB/s measured.\n\n"
    alone = ""
    for row in _rows(record, "alone"):
        for name, one in row["alone"].items():
            said = one.get("failed") or f"{one['ms']:.3f} ms, {one['of_bound']:.0%}, {', '.join(one['attention'])}"
            alone += f"- {row['name']}, {name}: {said}\n"
    return head + _markdown(
        ["", "ms/step", "host ms", "kernels' ms", "tok/s", "of bound", "attention", "launches a layer",
         "graphs", "waits"],
        ([
            row["name"], _number(row["ms"], ".2f"), _number(row["host_ms"], ".2f"), _number(row["device_ms"], ".2f"),
            _number(row["tokens_per_s"]), "" if row["of_bound"] is None else f"{row['of_bound']:.0%}",
            ", ".join(row["attention"]) or "products", _number(row["launches"] / layers if layers else None),
            f"{row['graph_replays']}" + (f" ({row['graphs_skipped']} skipped)" if row["graphs_skipped"] else ""),
            f"{row['waits']}",
        ] for row in _rows(record, "ms")),
    ) + (f"\n{alone}" if alone else "")  # fmt: skip


def _prefill(record: dict[str, Any]) -> str:
    found = f"{record.get('layers')} layers.\n\n" + _markdown(
        ["", "seconds", "of full", "grown GiB", "attention", "launches"],
        ([
            row["name"], _number(row["seconds"], ".3f"), _number(row["of_full"], ".2f", "x"), _gib(row["grown_bytes"]),
            ", ".join(row["attention"]) or "products",
            "" if row["launches"] is None else f"{row['launches']}",
        ] for row in _rows(record, "seconds")),
    )  # fmt: skip
    for row in _rows(record, "sdpa_ms"):
        found += f"- {row['name']}: sdpa {row['sdpa_ms']:.3f} ms"
        if "with_totals_ms" in row:
            found += f", with totals {row['with_totals_ms']:.3f}, sums in blocks {row['blocks_ms']:.3f}"
        if "sums_ms" in row:
            whole = (row["with_totals_ms"] + row["sums_ms"]) / row["sdpa_ms"]
            tiles, best = min(row["tiles_ms"].items(), key=lambda one: one[1])
            found += (
                f", by the kernel {row['sums_ms']:.3f} (in all {whole:.2f}x of sdpa); best tiles {tiles}: {best:.3f}"
            )
        found += "\n"
    return found


def _batches(record: dict[str, Any]) -> str:
    return _markdown(
        ["", "batch", "prompt s", "ms/step, first", "last", "decode tok/s", "whole tok/s", "KV GiB", "grown GiB"],
        ([
            row["name"], f"{row['batch']}", _number(row.get("prefill_s"), ".2f"),
            _number((row.get("start") or {}).get("ms")), _number(row["end"]["ms"]),
            _number(row["decode_tokens_per_s"]), _number(row.get("whole_tokens_per_s")), _gib(row["end"]["kv_bytes"]),
            _gib(row["grown_bytes"]),
        ] for row in _rows(record, "decode_tokens_per_s")),
    )  # fmt: skip


def _tiles(record: dict[str, Any]) -> str:
    return "".join(
        f"- {row['name']}: {row['call_ms']:.4f} ms, {row['of_bound']:.0%} of the bound\n"
        for row in _rows(record, "call_ms")
    )


def _troubles(record: dict[str, Any]) -> str:
    """What was not measured, in words."""
    failed = [f"- {row['name']}: FAILED, {row['failed']}\n" for row in _rows(record, "failed")]
    left = [row["name"] for row in _rows(record, "left_out")]
    for row in record["rows"]:
        step = row.get("end", row)
        for text in [*step.get("skip_reasons", []), *step.get("fallbacks", [])]:
            failed.append(f"- {row['name']}: {text[:300]}\n")
    words = "".join(failed) + (f"- left out, no time: {'; '.join(left)}\n" if left else "")
    return f"\n{words}" if words else ""


_WRITERS: dict[str, Callable[[dict[str, Any]], str]] = {
    "checks": _checks, "decode": _decode, "prefill": _prefill, "largest": _batches, "paper": _batches,
    "loads": _decode, "tiles": _tiles,
}  # fmt: skip
