"""The script for a GPU, dry: every step runs on a CPU, and one that fails takes no other along."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
SCRIPT = ROOT / "benchmarks" / "gpu.py"


@pytest.fixture(scope="module")
def steps():
    sys.path.insert(0, str(ROOT / "benchmarks"))
    import gpu_steps.batches
    import gpu_steps.decode
    import gpu_steps.prefill

    yield gpu_steps
    sys.path.remove(str(ROOT / "benchmarks"))
    for name in [name for name in sys.modules if name.split(".")[0] == "gpu_steps"]:
        del sys.modules[name]


def dry(steps, name, function, folder, limit=120.0):
    from gpu_steps.common import Session

    function(Session(name, folder, "cpu", True, limit))
    return json.loads((folder / f"{name}.json").read_text())


def run(*arguments):
    return subprocess.run(
        [sys.executable, SCRIPT, *map(str, arguments)], capture_output=True, text=True, check=False, cwd=ROOT
    )


@pytest.mark.parametrize("name", ["decode", "prefill", "largest", "paper", "loads"])
def test_every_step_runs(steps, name, tmp_path):
    from gpu_steps.table import summary, tables

    function = getattr(steps.prefill if name == "prefill" else steps.batches if name in ("largest", "paper")
                       else steps.decode, name)  # fmt: skip
    record = dry(steps, name, function, tmp_path)
    troubles = {row["name"]: row.get("traceback", row.get("left_out")) for row in record["rows"]
                if "failed" in row or "left_out" in row}  # fmt: skip
    assert not troubles
    written = tables(tmp_path)
    for row in record["rows"]:
        assert row["name"] in written
    assert "FAILED" not in summary(tmp_path, [name])


def test_bytes_and_bounds_are_those_of_the_cache(steps, tmp_path):
    """Counted by hand: two layers of two KV heads, 64 wide, fp32, two prompts."""
    record = dry(steps, "decode", steps.decode.decode, tmp_path)
    token = 2 * 2 * 2 * 2 * 64 * 4
    rows = {row["name"].removeprefix("64 x 4096: "): row for row in record["rows"]}
    full, squeezed, heads = rows["full"], rows["h2o, kernels auto"], rows["by head, policy h2o, kernels auto"]
    assert full["kv_bytes"] == (80 + 3 + 2 + 1) * token
    assert squeezed["kv_bytes"] == 16 * token
    assert heads["kv_bytes"] == pytest.approx(16 * token, rel=0.1)
    for row in (full, squeezed, heads):
        assert row["bound_ms"] == pytest.approx(1e3 * (row["kv_bytes"] + row["weight_bytes"]) / record["bandwidth"])
        assert row["of_bound"] == pytest.approx(row["bound_ms"] / row["ms"])
        assert row["tokens_per_s"] == pytest.approx(2e3 / row["ms"])
    assert rows["full, static, compiled"]["attention"] == full["attention"] == ["flash_attention_for_cpu"]


def test_a_row_that_fails_takes_no_other_along(steps, tmp_path):
    from gpu_steps.common import Session
    from gpu_steps.table import summary

    session = Session("loads", tmp_path, "cpu", True, 60.0)
    session.row("broken", lambda: {}[0])
    session.row("late", lambda: {"ok": True}, needs=1000.0)
    session.row("sound", lambda: {"value": 3})
    broken, late, sound = json.loads((tmp_path / "loads.json").read_text())["rows"]
    assert broken["failed"] == "KeyError: 0"
    assert "test_gpu.py" in broken["traceback"]
    assert "needs about 1000" in late["left_out"]
    assert "ok" not in late
    assert sound["value"] == 3
    text = summary(tmp_path, ["loads", "paper"])
    assert "broken: FAILED, KeyError: 0" in text
    assert "left out, no time: late" in text
    assert "no record" in text


def test_the_script_itself(tmp_path):
    """Steps in processes of their own, one of which has no time; the kernels against their twins in the interpreter."""
    pytest.importorskip("triton")
    rows = "kernel|sums|llama, (h2o|snapkv|streaming)"  # compiling has tests of its own
    done = run("--device", "cpu", "--tiny", "--only", "checks", "--rows", rows, "--limit", 150, "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "checks.json").read_text())
    assert len(record["rows"]) == 8 + 3
    assert all(row.get("ok") for row in record["rows"]), record["rows"]
    assert "checks: done" in done.stdout
    assert (tmp_path / "summary.md").read_text() in done.stdout
    assert f"{len(record['rows'])} of {len(record['rows'])} checks hold" in run("--table", tmp_path).stdout


def test_a_step_is_stopped_at_its_limit(tmp_path):
    done = run("--device", "cpu", "--tiny", "--only", "paper", "--limit", 1, "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "paper: stopped at its limit of 1 s" in done.stdout
    assert "stopped" in json.loads((tmp_path / "paper.json").read_text())["ended"]


def test_records_that_are_not_there(tmp_path):
    done = run("--table", tmp_path)
    assert done.returncode != 0
    assert "no records" in done.stderr
