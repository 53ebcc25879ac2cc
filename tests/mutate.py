"""Plants bugs, one at a time, and says which of them no test finds: ``make mutate``, outside of ``make test``.

``python tests/mutate.py plan --sample 60``: mutants that cosmic-ray makes of a package's files (an operator, a number,
a branch), a drawn sample of them, each in a copy of the tree under ``build/mutate``, against the tests of that package.
A survivor is a missing test, or a change that makes no difference: read the diffs. Ends with 1 if there are any.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
WORK = ROOT / "build" / "mutate"
#: Package -> what tests it, in little time: the first failure ends a run.
TESTS = {
    "plan": "tests/plan",
    "allocators": "tests/plan tests/use/test_twin.py",
    "signals": "tests/signals",
    "cache": "tests/storage tests/use/test_twin.py tests/use/test_saved_caches.py tests/exact/test_heads.py",
    "engine": "tests/engine",
    "policies": "tests/storage tests/exact/test_heads.py",
}
#: ``int | None`` is an operator too, and no test can tell another one in an annotation.
LEFT_OUT = ["core/ReplaceBinaryOperator_BitOr_.*"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("packages", nargs="+", choices=TESTS, help="of src/squeezeattention")
    parser.add_argument("--sample", type=int, default=100, metavar="N", help="mutants of each package [100]")
    parser.add_argument("--seed", type=int, default=0, help="draws them [0]")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    args = parser.parse_args()
    tree = copy_tree(WORK / "tree")
    found = {package: mutate(package, tree, args.sample, args.seed) for package in args.packages}
    survivors = sum(len(one["survived"]) for one in found.values())
    if args.json:
        print(json.dumps(found, indent=1))
    else:
        for package, one in found.items():
            for mutant in one["survived"]:
                print(f"\n{mutant['where']}\n{mutant['diff']}")
            print(f"\n{package}: {one['killed']} of {one['run']} found, {one['of']} there are")
    sys.exit(1 if survivors else 0)


def copy_tree(target: Path) -> Path:
    """What git knows of the tree, as it is now."""
    shutil.rmtree(target, ignore_errors=True)
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file() and not name.startswith(("benchmarks/eval", "docs/")):
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)
    return target


def mutate(package: str, tree: Path, sample: int, seed: int) -> dict[str, Any]:
    """How many of a sample of mutants the tests find, and what the others are."""
    from cosmic_ray.work_db import WorkDB, use_db
    from cosmic_ray.work_item import TestOutcome, WorkerOutcome, WorkResult

    command = [
        sys.executable,
        "-m",
        "pytest",
        "-x",
        "-q",
        "--no-header",
        "-p",
        "no:cacheprovider",
        *TESTS[package].split(),
    ]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tree / "src"), os.environ.get("PYTHONPATH", "")])}
    if subprocess.run(command, cwd=tree, env=env, stdout=subprocess.DEVNULL).returncode:
        raise SystemExit(f"the tests of {package} fail without a mutant: {shlex.join(command)}")
    config, session = WORK / f"{package}.toml", WORK / f"{package}.sqlite"
    session.unlink(missing_ok=True)
    config.write_text(
        f'[cosmic-ray]\nmodule-path = "src/squeezeattention/{package}"\ntimeout = 600.0\nexcluded-modules = []\n'
        f"test-command = {json.dumps(shlex.join(command))}\n"
        '[cosmic-ray.distributor]\nname = "local"\n'
        f"[cosmic-ray.filters.operators-filter]\nexclude-operators = {json.dumps(LEFT_OUT)}\n"
    )
    _run(tree, env, "cosmic_ray.cli", "init", config, session)
    _run(tree, env, "cosmic_ray.tools.filters.operators_filter", session, config)
    with use_db(str(session), WorkDB.Mode.open) as database:
        pending = sorted(database.pending_work_items, key=lambda item: _where(item))
        chosen = set(random.Random(seed).sample(range(len(pending)), min(sample, len(pending))))
        left = [item.job_id for index, item in enumerate(pending) if index not in chosen]
        for job in left:
            database.set_result(job, WorkResult(worker_outcome=WorkerOutcome.SKIPPED))
    _run(tree, env, "cosmic_ray.cli", "exec", config, session)
    with use_db(str(session), WorkDB.Mode.open) as database:
        results = {job: result for job, result in database.results if result.worker_outcome != WorkerOutcome.SKIPPED}
        lived = [
            {"where": _where(item), "diff": results[item.job_id].diff}
            for item in pending
            if item.job_id in results and results[item.job_id].test_outcome == TestOutcome.SURVIVED
        ]
    return {"run": len(results), "of": len(pending), "killed": len(results) - len(lived), "survived": lived}


def _where(item: Any) -> str:
    mutation = item.mutations[0]
    line, column = mutation.start_pos
    return f"{mutation.module_path}:{line}:{column} {mutation.operator_name} {mutation.occurrence}"


def _run(tree: Path, env: dict[str, str], module: str, *words: object) -> None:
    subprocess.run([sys.executable, "-m", module, *map(str, words)], cwd=tree, env=env, check=True)


if __name__ == "__main__":
    main()
