"""The command starts fast: nobody waits for torch to read a help text or a mistake in an option."""

from __future__ import annotations

import subprocess
import sys

import pytest

import squeezeattention

COMMANDS = (
    "", "generate", "chat", "plan", "oracle", "bench", "demo", "eval", "eval run", "eval report", "eval plans",
    "eval rerun", "vllm", "vllm plan", "export tensorrt-llm", "serve", "tasks", "models", "policies", "allocators",
    "signals",
)  # fmt: skip
HEAVY = ("torch", "transformers", "matplotlib", "vllm")


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_help_imports_nothing_heavy() -> None:
    """One process for all: what one help text imports stays."""
    result = run(
        "import sys, contextlib, io\n"
        "from squeezeattention.cli import main\n"
        f"for command in {COMMANDS!r}:\n"
        "    sys.argv = ['squeeze', *command.split(), '--help']\n"
        "    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()) as shown:\n"
        "        main()\n"
        "    assert 'Usage' in shown.getvalue(), command\n"
        f"    print(command, [name for name in {HEAVY!r} if name in sys.modules])\n"
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == [f"{command} []" for command in COMMANDS]


def test_the_module_is_the_command() -> None:
    command = [sys.executable, "-m", "squeezeattention", "--version"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.stdout == f"squeezeattention {squeezeattention.__version__}\n", result.stderr


@pytest.mark.parametrize("name", squeezeattention.__all__)
def test_names_of_the_package_are_there(name: str) -> None:
    assert name in dir(squeezeattention)
    assert getattr(squeezeattention, name) is vars(squeezeattention)[name]


def test_other_names_are_not() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Sqeeze'"):
        squeezeattention.Sqeeze  # noqa: B018
