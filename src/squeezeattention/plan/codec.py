"""Budget plans as JSON: strict to read, atomic to write."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn
from uuid import uuid4

from ..errors import PlanError

if TYPE_CHECKING:
    from .plan import BudgetPlan

FORMAT = "squeezeattention-plan"
VERSION = 3
#: What older versions called fields: version 1 had "importance", although the lowest value is the most important.
_RENAMED = {1: {"signal_values": "importance"}}
#: Fields by the version that brought them: older files lack them, and mean this.
_ADDED: dict[int, dict[str, object]] = {3: {"head_budgets": None}}
#: How to read the signal, written into every plan for people and programs that meet the file alone.
DIRECTION = "low values mark the layers that matter more"

Reader = Callable[[str, object], object]


def _integer(name: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise PlanError(f"field {name!r} must be a whole number, got {value!r}")
    return value


def _number(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise PlanError(f"field {name!r} must be a number, got {value!r}")
    try:
        return float(value)
    except OverflowError:
        raise PlanError(f"field {name!r} holds a number that is too large: {str(value)[:20]}...") from None


def _string(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise PlanError(f"field {name!r} must be text, got {value!r}")
    return value


def _optional(reader: Reader) -> Reader:
    return lambda name, value: None if value is None else reader(name, value)


def _list_of(reader: Reader) -> Reader:
    def read(name: str, value: object) -> tuple[object, ...]:
        if not isinstance(value, list | tuple):
            raise PlanError(f"field {name!r} must be a list, got {value!r}")
        return tuple(reader(f"{name}[{i}]", item) for i, item in enumerate(value))

    return read


_READERS: dict[str, Reader] = {
    "budgets": _list_of(_integer),
    "groups": _list_of(_integer),
    "base_budget": _integer,
    "caps": _list_of(_optional(_integer)),
    "allocator": _string,
    "signal_values": _optional(_list_of(_number)),
    "floor": _integer,
    "signal": _optional(_string),
    "policy": _optional(_string),
    "p": _optional(_number),
    "prompt_tokens": _optional(_integer),
    "model": _optional(_string),
    "exact_total": _optional(_integer),
    "warnings": _list_of(_string),
    "head_budgets": _optional(_list_of(_list_of(_integer))),
}


def encode(plan: BudgetPlan) -> dict[str, Any]:
    """The plan as plain JSON values; tuples become lists."""
    values = {field.name: _plain(getattr(plan, field.name)) for field in fields(plan)}
    return {"format": FORMAT, "version": VERSION, "signal_direction": DIRECTION, **values}


def _plain(value: object) -> object:
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def decode(data: object) -> dict[str, Any]:
    """Constructor arguments of a plan, every type checked; raises :class:`PlanError`."""
    if not isinstance(data, Mapping) or data.get("format") != FORMAT:
        raise PlanError(f'this is not a budget plan: it has no "format": "{FORMAT}"')
    version = data.get("version")
    if isinstance(version, bool) or not isinstance(version, int) or not 1 <= version <= VERSION:
        raise PlanError(f"cannot read version {version!r} of the plan format; this release reads 1 to {VERSION}")
    absent = {name: value for since, more in _ADDED.items() if since > version for name, value in more.items()}
    renamed = _RENAMED.get(version, {})
    keys = {name: renamed.get(name, name) for name in _READERS if name not in absent}
    beside = {"format", "version"} | (set() if version == 1 else {"signal_direction"})
    if missing := [key for key in keys.values() if key not in data]:
        raise PlanError(f"the plan lacks the field{'s' * (len(missing) > 1)} {', '.join(missing)}")
    if unknown := [str(name) for name in data if name not in {*keys.values(), *beside}]:
        raise PlanError(f"the plan has unknown fields: {', '.join(unknown)}; known: {', '.join(keys.values())}")
    if data.get("signal_direction", DIRECTION) != DIRECTION:
        raise PlanError(f'the signal of this plan is read another way: "signal_direction" is not "{DIRECTION}"')
    return {**{name: _READERS[name](key, data[key]) for name, key in keys.items()}, **absent}


def write_json(path: str | os.PathLike[str], data: dict[str, Any], *, what: str = "budget plan") -> None:
    """Write beside the target, then rename over it: a reader sees the old file or the new one, never half."""
    try:
        target = Path(path)
        scratch = target.with_name(f".{uuid4().hex}.tmp")
        try:
            scratch.write_text(json.dumps(data, indent=1, allow_nan=False) + "\n", encoding="utf-8")
            os.replace(scratch, target)
        finally:
            scratch.unlink(missing_ok=True)
    except (OSError, ValueError) as error:
        raise PlanError(f"cannot write the {what} to {os.fspath(path)}: {error}") from error


def has_format(path: str | os.PathLike[str], name: str) -> bool:
    """Whether a file says that it is of this format; ``False`` if it cannot be read."""
    try:
        data = read_json(path)
    except PlanError:
        return False
    return isinstance(data, dict) and data.get("format") == name


def read_json(path: str | os.PathLike[str], *, what: str = "budget plan") -> Any:
    """The JSON value in a file; raises :class:`PlanError` with the path."""
    try:
        text = Path(path).read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise PlanError(f"{os.fspath(path)}: not a {what}, not UTF-8 text ({error})") from error
    except (OSError, ValueError) as error:
        raise PlanError(f"cannot read the {what} {os.fspath(path)}: {error}") from error
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise PlanError(f"{os.fspath(path)}: not a {what}, not JSON ({error})") from error


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a JSON number")
