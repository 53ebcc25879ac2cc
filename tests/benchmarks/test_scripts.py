"""Every script of benchmarks/ can be imported: what it uses of the library is still there."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent.parent.parent / "benchmarks"
#: Run by another interpreter, in an environment that has kvpress.
ELSEWHERE = {"kvpress_worker", "kvpress_quality_worker"}


@pytest.mark.parametrize("name", sorted({path.stem for path in BENCHMARKS.glob("*.py")} - ELSEWHERE))
def test_it_finds_what_it_uses(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    before = set(sys.modules)
    try:
        importlib.import_module(name)
    finally:
        for added in set(sys.modules) - before:
            if (BENCHMARKS / f"{added.partition('.')[0]}.py").exists():
                del sys.modules[added]
