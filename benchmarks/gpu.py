"""All that needs a GPU, in about 8 minutes of one: ``PYTHONPATH=src python benchmarks/gpu.py --out DIR``.

For a bare machine without a network: torch, triton, transformers and this source tree. Each step is a process of its
own with a time limit, writes ``DIR/STEP.json`` as it goes, and takes no other along when it fails; what it leaves of
its time goes to those behind it. ``DIR/summary.md`` is printed at the end. The most important comes first:

  checks    kernels against their twins, caches of five families against the CPU, compiled steps
  decode    a step of Mistral 7B's shape against the bound: 64 prompts of 4,096, 20 % kept
  prefill   H2O's prompt against the full cache's
  largest   throughput at the largest batch, 512 + 1,024 and 16k + 1k
  paper     throughput by the paper's batches
  loads     decode steps of other batches and lengths
  tiles     ways to cut the decode kernel's work, to choose by; only where it is asked for

``--beside FILE``, the same for several runs at a time, has them compile side by side and be timed one by one.

``--device cpu --tiny`` is a dry run of every step. ``--table DIR`` prints the tables of records as they are in docs.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

#: Seconds of each step, by importance; together what ``--limit`` is by default.
LIMITS = {"checks": 100, "decode": 190, "prefill": 50, "largest": 65, "paper": 30, "loads": 45, "tiles": 60}
#: Steps that run unless others are named.
USUAL = tuple(name for name in LIMITS if name != "tiles")
#: Seconds before its end at which a step starts no new row.
LANDING = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("out/gpu"), metavar="DIR")
    parser.add_argument("--only", nargs="+", choices=LIMITS, metavar="STEP", help="these, in the usual order")
    parser.add_argument("--rows", metavar="REGEX", help="of each step only the rows whose names match")
    usual = sum(LIMITS[name] for name in USUAL)
    parser.add_argument("--limit", type=float, metavar="SECONDS", help=f"of all together [{usual}]")
    parser.add_argument("--beside", type=Path, metavar="FILE", help="a lock that several runs share")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--tiny", action="store_true", help="small shapes: does it run?")
    parser.add_argument("--table", type=Path, metavar="DIR", help="print the tables of these records and end")
    parser.add_argument("--step", choices=LIMITS, help=argparse.SUPPRESS)  # this process is that step
    args = parser.parse_args()
    if args.table is not None:
        from gpu_steps.table import tables

        print(tables(args.table))
        return
    args.out.mkdir(parents=True, exist_ok=True)
    if args.step is not None:
        run_step(args)
        return
    steps = [name for name in LIMITS if name in (args.only or USUAL)]
    share = 1.0 if args.limit is None else args.limit / sum(LIMITS[name] for name in steps)
    ends = time.monotonic()
    for name in steps:
        ends += share * LIMITS[name]
        began = time.monotonic()
        how = start_step(name, args, ends - began)
        print(f"{name}: {how}, {time.monotonic() - began:.0f} s", flush=True)
    from gpu_steps.table import summary

    text = summary(args.out, steps)
    (args.out / "summary.md").write_text(text, encoding="utf-8")
    print(text)


def start_step(name: str, args: argparse.Namespace, limit: float) -> str:
    """One step in a process of its own, ended with all its children at the limit; says how it went."""
    command = [
        sys.executable, __file__, "--step", name, "--out", str(args.out), "--device", args.device,
        "--limit", str(limit), *(["--tiny"] if args.tiny else []),
        *([] if args.rows is None else ["--rows", args.rows]),
        *([] if args.beside is None else ["--beside", str(args.beside)]),
    ]  # fmt: skip
    environment = dict(os.environ)
    if name in ("largest", "paper", "prefill"):  # which fill the memory, in pieces that come and go
        environment.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    if args.device == "cpu" and name in ("checks", "tiles"):
        environment["TRITON_INTERPRET"] = "1"  # chosen when a kernel is defined
    record = args.out / f"{name}.json"
    record.unlink(missing_ok=True)
    log = args.out / f"{name}.log"
    with log.open("w") as output:
        child = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env=environment, start_new_session=os.name == "posix"
        )
        try:
            code = child.wait(timeout=limit)
            how = "done" if code == 0 else f"failed (exit status {code})"
        except subprocess.TimeoutExpired:
            how = f"stopped at its limit of {limit:.0f} s"
        _end(child)
    if how != "done":
        from gpu_steps.records import add_end

        add_end(record, name, how, log.read_text(errors="replace"))
    log.unlink()
    return how


def _end(child: subprocess.Popen[bytes]) -> None:
    """The child and what it started (inductor's workers), whether it is still there or not."""
    if os.name == "posix":
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
    child.kill()
    child.wait()


def run_step(args: argparse.Namespace) -> None:
    began = time.monotonic()
    from gpu_steps import batches, checks, decode, prefill, tiles
    from gpu_steps.common import Session
    from gpu_steps.turns import Turns

    functions = {
        "checks": checks.checks, "decode": decode.decode, "prefill": prefill.prefill, "largest": batches.largest,
        "paper": batches.paper, "loads": decode.loads, "tiles": tiles.tiles,
    }  # fmt: skip
    limit = args.limit - (time.monotonic() - began) - LANDING
    session = Session(args.step, args.out, args.device, args.tiny, limit, args.rows, Turns(args.beside))
    functions[args.step](session)
    session.note(seconds=round(time.monotonic() - began, 1))


if __name__ == "__main__":
    main()
