"""Objects as JSON values and tensors, and back. Nothing is executed that a file says: classes are those known here."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch

from ..allocators import Allocator
from ..attention.core import Scoring
from ..attention.turning import Turning
from ..errors import CacheFileError, UnsupportedFeatureError
from ..plan import Budget, BudgetPlan
from ..policies import EvictionPolicy
from ..signals import Signal
from ..signals.last_queries import Tail
from .columns import Columns
from .queries import NewestQueries, QueryStatistics


class Packer:
    """Takes values apart; :attr:`tensors` fills with what is no JSON."""

    def __init__(self) -> None:
        self.tensors: dict[str, torch.Tensor] = {}
        self._known = _known()

    def pack(self, value: Any, where: str) -> Any:
        """``value`` as JSON; ``where`` is its place, and the name of a tensor.

        Raises :class:`UnsupportedFeatureError` for what cannot be written.
        """
        if value is None or isinstance(value, bool | int | float | str):
            return value
        if isinstance(value, list):
            return self._all(value, where)
        if isinstance(value, tuple):
            return {"tuple": self._all(value, where)}
        if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
            return {"dict": {key: self.pack(item, f"{where}.{key}") for key, item in value.items()}}
        if isinstance(value, torch.Tensor):
            # On its own: slices would bring all of what they are slices of, and no two tensors may share memory.
            self.tensors[where] = value.detach().to("cpu", copy=True).contiguous()
            return {"tensor": where, "device": str(value.device)}
        if isinstance(value, torch.dtype):
            return {"dtype": str(value).removeprefix("torch.")}
        if isinstance(value, torch.device):
            return {"device": str(value)}
        if isinstance(value, BudgetPlan):
            return {"plan": value.to_dict()}
        if self._known.get(name := _name(type(value))) is type(value):
            return {"object": name, "state": self.pack_state(vars(value), where)}
        raise UnsupportedFeatureError(
            f"this cache cannot be saved: {where} is a {type(value).__name__}, which is no data; policies, allocators "
            "and signals that are saved hold numbers, texts, tensors, and lists, tuples and dicts of these"
        )

    def pack_state(self, state: Mapping[str, Any], where: str) -> dict[str, Any]:
        """Attributes of an object."""
        return {
            name: self.pack(value, f"{where}.{name}")
            for name, value in state.items()
            if not isinstance(value, Turning)  # the model's own
        }

    def _all(self, values: Iterable[Any], where: str) -> list[Any]:
        return [self.pack(value, f"{where}.{index}") for index, value in enumerate(values)]


class Unpacker:
    """The way back. ``device_of`` says where what was on a device belongs now."""

    def __init__(self, tensors: Mapping[str, torch.Tensor], device_of: Callable[[str], torch.device]) -> None:
        self._tensors, self._device_of = tensors, device_of
        self._known = _known()

    def unpack(self, packed: Any) -> Any:
        """Raises :class:`CacheFileError` for a class that is not there."""
        if isinstance(packed, list):
            return [self.unpack(item) for item in packed]
        if not isinstance(packed, dict):
            return packed
        if "tuple" in packed:
            return tuple(self.unpack(item) for item in packed["tuple"])
        if "dict" in packed:
            return self.unpack_state(packed["dict"])
        if "tensor" in packed:
            return self._tensors[packed["tensor"]].to(self._device_of(packed["device"]))
        if "dtype" in packed:
            return getattr(torch, packed["dtype"])
        if "device" in packed:
            return self._device_of(packed["device"])
        if "plan" in packed:
            return BudgetPlan.from_dict(packed["plan"])
        kind = self._known.get(packed["object"])
        if kind is None:
            raise CacheFileError(
                f"the cache was saved with a {packed['object']}, which is not defined here: import it before it is read"
            )
        made: Any = object.__new__(kind)
        vars(made).update(self.unpack_state(packed["state"]))
        return made

    def unpack_state(self, packed: Mapping[str, Any]) -> dict[str, Any]:
        """Attributes of an object."""
        return {name: self.unpack(value) for name, value in packed.items()}


def _name(kind: type) -> str:
    return f"{kind.__module__}:{kind.__qualname__}"


def _known() -> dict[str, type]:
    """Classes whose objects are data, by name: also rules of users, once they are defined."""
    from ..calibration.record import Calibration

    kinds = [Budget, Calibration, Columns, NewestQueries, QueryStatistics, Scoring, Tail]
    rules: list[type] = [Allocator, EvictionPolicy, Signal]
    while rules:
        rule = rules.pop()
        kinds.append(rule)
        rules += rule.__subclasses__()
    return {_name(kind): kind for kind in kinds}
