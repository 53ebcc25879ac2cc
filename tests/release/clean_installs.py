"""Builds the release and installs it as a user would, in clean environments: ``make test-release``.

The wheel is built from the source archive, so that is whole too. For each Python that the package promises and that is
found here, the wheel's files are compiled and its parts without torch are imported. For those named by ``--install``,
wheel and archive are installed with torch and transformers alone, and used (torch is gigabytes, so not for all).
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
PROMISED = ("3.10", "3.11", "3.12", "3.13")
#: What runs without torch; the versions of files in a wheel tell which release they are.
TORCHLESS = """
import sys
import squeezeattention
from squeezeattention.plan import Budget, BudgetPlan
assert "torch" not in sys.modules
assert squeezeattention.__version__ == sys.argv[1], squeezeattention.__version__
assert BudgetPlan.from_dict(BudgetPlan.from_budgets([4, 5]).to_dict()).total == 9
assert Budget.parse("20%").kind == "share"
"""


def run(*command: object, **options: object) -> str:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False, **options)  # type: ignore[call-overload]
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}")
    return str(done.stdout)


def interpreters() -> dict[str, Path]:
    """The promised Pythons that are here: on the path, or among pyenv's."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    found = {}
    for version in PROMISED:
        known = [shutil.which(f"python{version}"), *sorted(pyenv.glob(f"{version}.*/bin/python"), reverse=True)]
        for path in known:  # a shim of pyenv is there for a Python that is not switched on
            if path and subprocess.run([path, "-c", ""], capture_output=True, check=False).returncode == 0:
                found[version] = Path(path)
                break
    return found


def build(folder: Path) -> tuple[Path, Path]:
    """The wheel and the archive that it was built from, whose pages a package index takes."""
    run(sys.executable, "-m", "build", "--outdir", folder, ROOT)
    wheel, archive = next(folder.glob("*.whl")), next(folder.glob("*.tar.gz"))
    run(sys.executable, "-m", "twine", "check", "--strict", wheel, archive)
    return wheel, archive


def check_files(python: Path, wheel: Path, folder: Path) -> None:
    """The wheel's files on a Python without any package."""
    from packaging.specifiers import SpecifierSet

    zipfile.ZipFile(wheel).extractall(folder)
    (metadata,) = folder.glob("*.dist-info/METADATA")
    needs = re.findall(r"(?m)^Requires-Python: (.+)$", metadata.read_text(encoding="utf-8"))
    version = run(python, "-c", "import platform; print(platform.python_version())").strip()
    assert version in SpecifierSet(needs[0]), (version, needs)
    run(python, "-W", "error::SyntaxWarning", "-m", "compileall", "-q", "-f", folder)
    isolated = {"PATH": os.environ["PATH"], "PYTHONPATH": str(folder)}
    run(python, "-S", "-c", TORCHLESS, wheel.name.split("-")[1], env=isolated)


def check_install(python: Path, packages: tuple[Path, ...], folder: Path, flags: list[str]) -> None:
    """Each package in one environment that has nothing else but what the first one asked for."""
    run(python, "-m", "venv", folder)
    own = folder / "bin" / "python"
    pip = (own, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", *flags)
    (torch,) = re.findall(r"(?m)^torch==.*$", (ROOT / "constraints.txt").read_text(encoding="utf-8"))
    run(*pip, torch, packages[0])
    for number, package in enumerate(packages):
        if number:
            run(*pip, "--force-reinstall", "--no-deps", package)
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        environment |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        # -I: neither the working folder nor the script's is looked at for modules.
        told = run(own, "-I", Path(__file__).with_name("first_use.py"), env=environment, cwd=folder)
        print(f"  {package.name}: {told.strip()}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--install", nargs="*", default=[], metavar="3.X", help="Pythons to install into")
    parser.add_argument("--pip-flags", default="", help="for every pip install")
    given = parser.parse_args()
    found = interpreters()
    if unknown := set(given.install) - set(found):
        raise SystemExit(f"not here, or not promised: {', '.join(sorted(unknown))}; found: {', '.join(found)}")
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        wheel, archive = build(scratch / "dist")
        for version in PROMISED:
            if version not in found:
                print(f"Python {version}: not found, nothing checked", flush=True)
                continue
            check_files(found[version], wheel, scratch / f"files-{version}")
            print(f"Python {version}: metadata, compilation and parts without torch are right", flush=True)
            if version in given.install:
                check_install(found[version], (wheel, archive), scratch / f"venv-{version}", given.pip_flags.split())
            else:
                print("  not installed (RELEASE_INSTALL names those that are)", flush=True)


if __name__ == "__main__":
    main()
