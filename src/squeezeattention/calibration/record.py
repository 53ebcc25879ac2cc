"""What a calibration found, as a file."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn

from ..errors import PlanError
from ..hf.layout import inspect_model
from ..plan.codec import has_format, read_json, write_json
from .weights import same_weights, sample_weights

FORMAT, VERSION = "squeezeattention-calibration", 1
_WHAT = "calibration"


@dataclass(frozen=True)
class Calibration:
    """How much of a text each KV head of a model looks back at, see :func:`~squeezeattention.calibration.calibrate`.

    It says nothing of budgets or lengths: one serves them all. Raises :class:`PlanError` for needs that are none.
    """

    model: str
    """Shape of the model, such as "llama-30x3x64"."""
    weights: tuple[float, ...]
    """Some of its weights."""
    needs: tuple[tuple[float, ...], ...]
    """By layer and KV head: share of replayed tokens that it looks back at, from 0 to 1."""
    texts: int
    tokens: int
    """Tokens that were read; about as many were replayed."""

    def __post_init__(self) -> None:
        flat = [need for layer in self.needs for need in layer]
        if not self.needs or not all(self.needs) or not all(math.isfinite(need) and 0 <= need <= 1 for need in flat):
            raise PlanError("a calibration needs a number from 0 to 1 for each KV head of each layer")

    def belongs_to(self, model: nn.Module) -> bool:
        """Whether it was made with this very model (in whatever precision it is loaded)."""
        return self.model == inspect_model(model).fingerprint and same_weights(self.weights, sample_weights(model))

    def check(self, model: nn.Module) -> None:
        """Raise :class:`PlanError` unless it :meth:`belongs_to` ``model``."""
        shape = inspect_model(model).fingerprint
        if self.model != shape:
            raise PlanError(f"the calibration is of a model {self.model!r}, but this one is {shape!r}")
        if not self.belongs_to(model):
            raise PlanError(
                f"the calibration is of another {shape!r}: the weights differ. Make one of this model: "
                "`squeeze calibrate`"
            )

    def save(self, path: str | Path) -> None:
        """Write a JSON file; raises :class:`PlanError` if that is not possible."""
        write_json(path, {"format": FORMAT, "version": VERSION, **asdict(self)}, what=_WHAT)

    @classmethod
    def load(cls, path: str | Path) -> Calibration:
        """From :meth:`save`. Raises :class:`PlanError`."""
        data = read_json(path, what=_WHAT)
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise PlanError(f"{path} holds no calibration (`squeeze calibrate` writes them)")
        if data.get("version") != VERSION:
            raise PlanError(f"cannot read version {data.get('version')!r} of the calibration {path}, only {VERSION}")
        try:
            return cls(
                str(data["model"]), _numbers(data["weights"]), tuple(map(_numbers, data["needs"])),
                int(data["texts"]), int(data["tokens"]),
            )  # fmt: skip
        except (KeyError, TypeError, ValueError) as error:
            raise PlanError(f"{path} holds no whole calibration: {type(error).__name__}: {error}") from error


def _numbers(values: Sequence[Any]) -> tuple[float, ...]:
    return tuple(float(value) for value in values)


def is_calibration(path: str | Path) -> bool:
    """Whether a file says that it is one; ``False`` if it cannot be read."""
    return has_format(path, FORMAT)
