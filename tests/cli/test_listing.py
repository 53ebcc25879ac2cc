"""The lists, the help and the version."""

from __future__ import annotations

import json
from typing import Any

import pytest

from squeezeattention import __version__, testing
from squeezeattention.allocators import ALLOCATORS, DEFAULT_ALLOCATOR
from squeezeattention.cli.listing import FAMILIES
from squeezeattention.defaults import DEFAULT_POLICY
from squeezeattention.policies import POLICIES
from squeezeattention.registry import Registry
from squeezeattention.signals import SIGNALS

LISTS: list[tuple[str, Registry[Any], str]] = [
    ("policies", POLICIES, DEFAULT_POLICY),
    ("allocators", ALLOCATORS, DEFAULT_ALLOCATOR),
    ("signals", SIGNALS, ALLOCATORS.create(DEFAULT_ALLOCATOR).signal),
]


@pytest.mark.parametrize(("command", "registry", "default"), LISTS)
def test_registries(squeeze: Any, command: str, registry: Registry[Any], default: str) -> None:
    shown = squeeze(command)
    assert shown.exit_code == 0, shown.stderr
    data = json.loads(squeeze(command, "--json").stdout)
    assert list(data) == registry.names()
    for name, entry in data.items():
        assert name in shown.stdout
        assert entry["summary"].endswith((".", "?"))
        assert "`" not in entry["summary"]
    assert [name for name, entry in data.items() if entry["default"]] == [default]
    assert f"{default} (default)" in shown.stdout
    assert "`" not in shown.stdout


def test_models_lists_every_tested_family_once() -> None:
    tested = [name for family in FAMILIES for name in family.tested]
    assert sorted(tested) == sorted(testing.FAMILIES)


def test_models(squeeze: Any) -> None:
    shown = squeeze("models")
    assert shown.exit_code == 0, shown.stderr
    data = json.loads(squeeze("models", "--json").stdout)
    for entry in [*data["supported"], *data["refused"]]:
        assert entry["family"] in shown.stdout
    assert "ALiBi" in shown.stdout


def test_version_and_help(squeeze: Any) -> None:
    assert squeeze("--version").stdout == f"squeezeattention {__version__}\n"
    shown = squeeze("--help")
    assert shown.exit_code == 0
    for command in ("generate", "plan", "models", "policies", "allocators", "signals", "demo"):
        assert command in shown.stdout
        help_text = squeeze(command, "--help")
        assert help_text.exit_code == 0
        assert "--json" in help_text.stdout
