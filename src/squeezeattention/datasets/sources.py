"""Where a data set's files are: in a folder, in an archive, or on the hub."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from ..errors import InputError
from .reading import ENDINGS, Source


@dataclass(frozen=True)
class Home:
    """Where a data set lives on the hub, and how its files are called, there and elsewhere."""

    repository: str
    patterns: tuple[str, ...]
    """Of the files that are wanted, the hub's own first; ``*`` also matches ``/``."""
    archive: str | None = None
    """A zip file on the hub that holds them."""
    remark: str = ""

    @property
    def advice(self) -> str:
        """Where to get the data, for messages."""
        what = self.archive or self.patterns[0]
        return (
            f"get {what} of the hub's data set {self.repository}{self.remark} and give its path (a file, a folder or "
            f"a zip archive), or your own {', '.join(ENDINGS)} file with the names of its fields"
        )


def local_files(path: Path, home: Home) -> list[Source]:
    """The files at ``path``: itself, or those in the folder or archive that ``home`` knows by name.

    Raises :class:`InputError` that says where to get the data.
    """
    if path.is_dir():
        files = {file.relative_to(path).as_posix(): file for file in sorted(path.rglob("*")) if file.is_file()}
        names = _matching(list(files), home.patterns)
        if names:
            return [files[name] for name in names]
        archives = _matching(list(files), [home.archive] if home.archive else [])
        if archives:
            return _in_archive(files[archives[0]], home)
        raise InputError(f"there is no {_either(home)} in {path}: {home.advice}")
    if not path.is_file():
        raise InputError(f"there is no file or folder {path}: {home.advice}")
    return _in_archive(path, home) if path.suffix.lower() == ".zip" else [path]


def _in_archive(path: Path, home: Home) -> list[Source]:
    try:
        with zipfile.ZipFile(path) as archive:
            names = _matching(archive.namelist(), home.patterns)
    except (OSError, zipfile.BadZipFile) as error:
        raise InputError(f"cannot read the archive {path}: {error}") from error
    if not names:
        raise InputError(f"there is no {_either(home)} in {path}: {home.advice}")
    return [zipfile.Path(path, name) for name in names]


def _matching(names: Sequence[str], patterns: Sequence[str]) -> list[str]:
    """The names that fit the first pattern that any name fits, in their order."""
    for pattern in patterns:
        found = sorted(name for name in names if fnmatch(name, pattern) or fnmatch(name, f"*/{pattern}"))
        if found:
            return found
    return []


def _either(home: Home) -> str:
    return " or ".join(home.patterns)


def hub_folder(home: Home) -> Path:
    """The data set's files from the hub, or from its cache on this machine.

    Raises :class:`InputError` that says where to get the data when the hub cannot be reached.
    """
    from huggingface_hub import snapshot_download

    wanted = home.archive or home.patterns[0]
    try:
        return Path(snapshot_download(home.repository, repo_type="dataset", allow_patterns=[wanted]))
    except Exception as error:  # offline, refused, renamed, gated: whatever its client raises
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise InputError(
            f"cannot get the data set {home.repository} from the hub ({reason}); without it, {home.advice}"
        ) from error
