"""Conversions that are kept: a folder for each file, in the user's cache, there as a whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..user_cache import cache_home

_MANIFEST = "conversion.json"
_FORMAT = 1  # of what is kept: counted up when an older conversion will not do


@dataclass(frozen=True)
class Kept:
    """The folder of one conversion, which may not be there yet."""

    folder: Path

    @classmethod
    def of(cls, key: str) -> Kept:
        """Also by the release of transformers: what one has written may be beyond another, or its error."""
        import transformers

        return cls(cache_home() / "gguf" / f"{key}-transformers-{transformers.__version__}-{_FORMAT}")

    def check(self) -> list[str]:
        """The remarks that were kept with it. Raises :class:`OSError` or :class:`ValueError` if files are not whole."""
        manifest = json.loads((self.folder / _MANIFEST).read_text(encoding="utf-8"))
        if not isinstance(manifest, dict) or not isinstance(manifest.get("files"), dict):
            raise ValueError(f"{_MANIFEST} is damaged")
        for name, size in manifest["files"].items():
            found = (self.folder / name).stat().st_size
            if found != size:
                raise ValueError(f"{name} has {found} bytes instead of {size}")
        return [str(text) for text in manifest.get("remarks", [])]

    def load(self, dtype: Any) -> tuple[Any, Any]:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(self.folder, local_files_only=True)
        model = AutoModelForCausalLM.from_pretrained(self.folder, dtype=dtype, local_files_only=True)
        return model.eval(), tokenizer

    def put(self, model: Any, tokenizer: Any, remarks: list[str]) -> None:
        """Write it, beside its place first. Whoever else does so at the same time may be faster: theirs is as good.

        Raises :class:`OSError` if it cannot be written.
        """
        from safetensors import SafetensorError

        new = self.folder.with_name(f".new-{uuid.uuid4().hex}")
        new.mkdir(parents=True)  # with the user's own permissions, which a tempfile would not have
        try:
            try:
                model.save_pretrained(new)
                tokenizer.save_pretrained(new)
            except SafetensorError as error:  # a full disk, for one
                raise OSError(str(error)) from error
            files = {path.name: path.stat().st_size for path in new.iterdir()}
            text = json.dumps({"files": files, "remarks": remarks}, indent=1)
            (new / _MANIFEST).write_text(text, encoding="utf-8")
            for path in new.iterdir():
                _sync(path)
            try:
                new.rename(self.folder)
            except OSError:
                if self.identity() is None:
                    raise
        finally:
            shutil.rmtree(new, ignore_errors=True)

    def identity(self) -> tuple[int, int] | None:
        """Which conversion is there; ``None`` if there is none. Raises :class:`OSError` if that cannot be seen."""
        try:
            state = self.folder.stat()
        except FileNotFoundError:
            return None
        return state.st_ino, state.st_mtime_ns

    def discard(self, seen: tuple[int, int]) -> None:
        """Take it away, unless another process has replaced it since it was ``seen``."""
        if self.identity() != seen:
            return
        old = self.folder.with_name(f".old-{uuid.uuid4().hex}")
        self.folder.rename(old)
        shutil.rmtree(old, ignore_errors=True)


def _sync(path: Path) -> None:
    """On the disk before it gets its name: a crash must not leave a file of the right size without its content."""
    with path.open("rb+") as stream:
        os.fsync(stream.fileno())
