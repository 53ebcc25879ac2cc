"""What ``squeeze --help`` shows: every command in a group, in one line of a narrow terminal."""

from __future__ import annotations

import re

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from squeezeattention.cli.app import app


def test_every_command_is_one_line_of_a_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("NO_COLOR", "1")
    shown = CliRunner().invoke(app, ["--help"]).stdout
    panels = re.split(r"(?m)^╭─ (\w+) ─*╮$", shown)[1:]
    titles, bodies = panels[::2], panels[1::2]
    assert titles == ["Options", "Use", "Plans", "Measure", "Serve", "Lists"]
    lines = [line for body in bodies[1:] for line in body.splitlines() if line.startswith("│")]
    names = [match[1] if (match := re.match(r"│ (\w+) {2,}[A-Z].*[.] +│$", line)) else line for line in lines]
    assert sorted(names) == sorted(get_command(app).commands)  # type: ignore[attr-defined]
