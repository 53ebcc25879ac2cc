"""Where calibrations lie: beside the model, in the user's cache, in the package."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from pathlib import Path

from torch import nn

from ..errors import PlanError
from ..hf.layout import inspect_model
from ..user_cache import cache_home
from .record import Calibration

#: Its name in a model's own folder.
BESIDE = "squeeze_calibration.json"
_SHIPPED = Path(__file__).parent / "shipped"


def cache_folder() -> Path:
    """Raises :class:`OSError` if the user has no home and no variable says where."""
    return cache_home() / "calibrations"


def keep(calibration: Calibration) -> Path:
    """Save one in the user's cache, where :func:`find` looks for it. Raises :class:`PlanError`."""
    told = hashlib.sha256(repr(calibration.weights).encode()).hexdigest()[:12]
    try:
        folder = cache_folder()
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PlanError(f"cannot keep the calibration in the user's cache: {error}; say where to write it") from error
    path = folder / f"{calibration.model}-{told}.json"
    calibration.save(path)
    return path


def places(model: nn.Module) -> Iterator[Path]:
    """Files that may be this model's, those that win first."""
    source = getattr(getattr(model, "config", None), "_name_or_path", None)
    if source and (beside := Path(source) / BESIDE).is_file():
        yield beside
    shape = inspect_model(model).fingerprint
    folders = [_SHIPPED]
    with contextlib.suppress(OSError):
        folders.insert(0, cache_folder())
    for folder in folders:
        yield from sorted(folder.glob(f"{shape}-*.json"))


def find(model: nn.Module) -> Calibration:
    """The calibration of this very model. Raises :class:`PlanError` if there is none, or one beside it is another's."""
    for path in places(model):
        calibration = Calibration.load(path)
        if path.name == BESIDE:
            calibration.check(model)
            return calibration
        if calibration.belongs_to(model):
            return calibration
    raise PlanError(
        f"no calibration of this model ({inspect_model(model).fingerprint}) was found: make one with "
        '`squeeze calibrate MODEL`, or use allocator="probe", which needs none'
    )
