"""--include: a user's own file, with policies, allocators and tasks that the command then knows by name."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from squeezeattention.allocators import ALLOCATORS
from squeezeattention.policies import POLICIES

from ..conftest import refused

OWN = '''
from dataclasses import dataclass
from squeezeattention import ALLOCATORS, POLICIES, Allocator, EvictionPolicy
from squeezeattention.allocators import Allocation


class Oldest(EvictionPolicy):
    """Keeps the first tokens."""

    name = "oldest"

    def priority(self, tokens, budget):
        return -tokens.positions


@dataclass(frozen=True)
class First(Allocator):
    """All to the first layer."""

    name = "first"
    needs_signal = False

    def allocate(self, signal_values, n_layers):
        return Allocation((float(n_layers),) + (0.0,) * (n_layers - 1), (1,) * n_layers)


POLICIES.register("oldest", Oldest)
ALLOCATORS.register("first", First)
'''


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "own.py"
    path.write_text(OWN)
    yield path
    for registry, name in ((POLICIES, "oldest"), (ALLOCATORS, "first")):
        if name in registry:
            registry.unregister(name)


def test_own_names_work_in_a_command(squeeze: Any, own: Path, prompt_file: Path, tmp_path: Path) -> None:
    given = ("embedded", "-f", prompt_file, "--policy", "oldest", "--allocator", "first", "-b", 16)
    refused(squeeze("generate", *given), "unknown policy 'oldest'")
    result = squeeze("generate", *given, "-n", 3, "--include", own, "--json")
    assert result.exit_code == 0, result.stderr
    budgets = json.loads(result.stdout)["plan"]["budgets"]
    assert budgets[0] > sum(budgets[1:])
    listed = json.loads(squeeze("policies", "--include", own, "--json").stdout)  # a second time: nothing happens
    assert listed["oldest"]["summary"] == "Keeps the first tokens."


def test_files_that_cannot_be_run(squeeze: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, text, words in (
        ("broken.py", "x = 1\ny = = 2\n", ("broken.py, line 2", "SyntaxError")),
        ("fails.py", "import os\n\nos.nothing\n", ("fails.py, line 3", "AttributeError")),
        ("leaves.py", "import sys\nsys.exit(3)\n", ("leaves.py, line 2", "SystemExit")),
        ("taken.py", "from squeezeattention import POLICIES\nPOLICIES.register('h2o', int)\n",
         ("taken.py, line 2", "already registered")),
        ("text.txt", "", ("no Python file",)),
    ):  # fmt: skip
        Path(name).write_text(text)
        for path in (name, tmp_path / name):
            refused(squeeze("policies", "--include", path), *words)
    refused(squeeze("policies", "--include", "none.py"), "no such file")
    (tmp_path / "below.py").write_text("1 +\n")
    (tmp_path / "above.py").write_text(f"import sys\nsys.path.insert(0, {os.fspath(tmp_path)!r})\nimport below\n")
    refused(squeeze("policies", "--include", "above.py"), "above.py, line 3", "SyntaxError")
