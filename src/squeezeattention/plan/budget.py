"""How much cache may be kept: tokens, a share of the prompt, or bytes."""

from __future__ import annotations

import math
import operator
import re
from dataclasses import dataclass
from decimal import Decimal
from numbers import Real
from typing import Literal, TypeGuard

from ..errors import BudgetError

_UNITS = {
    "b": 1,
    "kb": 1000,
    "mb": 1000**2,
    "gb": 1000**3,
    "kib": 1024,
    "mib": 1024**2,
    "gib": 1024**3,
}
_TEXT = re.compile(r"(\d{1,15}|\d{0,15}\.\d{1,15}) ?(%|[a-z]*)", re.ASCII | re.IGNORECASE)
_FORMS = (
    "give tokens per layer (an int >= 1, such as 256), a share of the prompt (a float in (0, 1], such as 0.2 "
    'or "20%"), or bytes per sequence (text with a unit, such as "512MiB" or "1.5GB")'
)


@dataclass(frozen=True)
class Budget:
    """A cache budget: ``value`` tokens per layer on average, share of the prompt, or bytes per sequence.

    Use :meth:`parse`; every value that cannot work is a :class:`BudgetError`.
    """

    kind: Literal["tokens", "share", "bytes"]
    value: int | float

    def __post_init__(self) -> None:
        if self.kind == "share":
            if is_real(self.value) and 0 < self.value <= 1:
                return
        elif self.kind in ("tokens", "bytes"):
            if isinstance(self.value, int) and not isinstance(self.value, bool) and self.value >= 1:
                return
        else:
            raise BudgetError(f'a budget is of kind "tokens", "share" or "bytes", not {self.kind!r}')
        raise _refuse(self.value)

    @classmethod
    def parse(cls, value: object) -> Budget:
        """Read a budget.

        An int counts tokens, a float in (0, 1] is a share, text is either of these or has a unit: B, kB, MB,
        GB (decimal), KiB, MiB, GiB (binary), in any case, or %. A float 1.0 is the whole prompt and an int 1
        is one token; the text "1" and "1.0" likewise.
        """
        if isinstance(value, Budget):
            return value
        if isinstance(value, str):
            return cls._parse_text(value)
        if isinstance(value, bool):
            raise _refuse(value)
        try:
            return cls._checked("tokens", operator.index(value), value)  # type: ignore[arg-type]
        except TypeError:
            pass
        if not is_real(value):
            raise _refuse(value)
        return cls._checked("share", float(value), value)

    @classmethod
    def _parse_text(cls, text: str) -> Budget:
        match = _TEXT.fullmatch(text.strip())
        if match is None:
            raise _refuse(text)
        number, unit = match[1], match[2].lower()
        if unit == "%":
            return cls._checked("share", float(Decimal(number) / 100), text)
        if unit in _UNITS:
            return cls._checked("bytes", int(Decimal(number) * _UNITS[unit]), text)
        if unit:
            raise _refuse(text, f"{match[2]!r} is not one of the units B, kB, MB, GB, KiB, MiB, GiB, %")
        if "." in number:
            return cls._checked("share", float(number), text)
        return cls._checked("tokens", int(number), text)

    @classmethod
    def _checked(cls, kind: Literal["tokens", "share", "bytes"], value: int | float, given: object) -> Budget:
        try:
            return cls(kind, value)
        except BudgetError:
            raise _refuse(given) from None

    def base_tokens(self, prompt_tokens: int, bytes_per_token: int) -> int:
        """Average budget of a layer in tokens, at least 1.

        ``bytes_per_token``: KV bytes of one token of one sequence, summed over all layers. A share is rounded
        half up. Raises :class:`BudgetError` when the bytes do not pay for one token in every layer.
        """
        if self.kind == "share":
            return max(1, math.floor(self.value * prompt_tokens + 0.5))
        if self.kind == "tokens":
            return int(self.value)
        if bytes_per_token < 1:
            raise BudgetError(f"a token must take at least 1 byte, got bytes_per_token={bytes_per_token}")
        tokens = int(self.value) // bytes_per_token
        if tokens < 1:
            raise BudgetError(
                f"a budget of {self} is too small: one token in every layer takes {bytes_per_token} bytes; "
                f"use at least {bytes_per_token} bytes"
            )
        return tokens

    @property
    def is_whole(self) -> bool:
        """Whether it is all of the text, however long."""
        return self.kind == "share" and self.value == 1

    def __str__(self) -> str:
        if self.kind == "tokens":
            return f"{self.value} token{'s' if self.value != 1 else ''} per layer"
        if self.kind == "share":
            return f"{100 * self.value:g}% of the prompt"
        for unit in ("GiB", "MiB", "KiB", "GB", "MB", "kB"):
            if self.value % _UNITS[unit.lower()] == 0:
                return f"{self.value // _UNITS[unit.lower()]} {unit}"
        return f"{self.value} bytes"


def is_real(value: object) -> TypeGuard[float]:
    """Whether a value is a real number of any library, and not a bool."""
    return isinstance(value, Real) and not isinstance(value, bool)


def _refuse(given: object, why: str = "") -> BudgetError:
    return BudgetError(f"cannot use {given!r} as a budget{f' ({why})' if why else ''}: {_FORMS}")
