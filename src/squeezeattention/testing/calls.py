"""What a stretch of code asks of the device: operator calls, and moments in which the host waits for it."""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack
from types import TracebackType
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

#: Functions after which the host has read a number from the device, or the device a number of the host's: on a GPU each
#: one waits for all that was launched before. Seen where they are called: on a CPU some never become an operator.
_WAITS = frozenset({
    "item", "tolist", "numpy", "__bool__", "__int__", "__float__", "__index__", "__contains__", "is_nonzero", "nonzero",
    "argwhere", "equal", "masked_select", "unique", "unique_consecutive", "bincount", "tensor", "as_tensor",
    "from_numpy",
})  # fmt: skip
#: The same among operators; also what the functions above consist of.
_WAITING = frozenset({
    "_local_scalar_dense", "is_nonzero", "nonzero", "equal", "masked_select", "_unique2", "unique_dim",
    "unique_consecutive", "bincount", "lift_fresh",
})  # fmt: skip
#: Operators that launch nothing, beside the views.
_FREE = frozenset({"_unsafe_view", "empty", "empty_strided", "empty_like", "new_empty", "alias"})


class CountCalls:
    """A context that counts the operators called inside it, on whatever device.

    A GPU launches a kernel or more for each of :attr:`launches`; the rest of :attr:`calls` are views. Where a function
    and the operator that it becomes both wait, they count once.
    """

    def __init__(self) -> None:
        self.operators: Counter[str] = Counter()
        """Calls of each ATen operator, by its name without the overload."""
        self.waits: Counter[str] = Counter()
        """Moments in which the host waits for the device, by what it called."""
        self._views = 0
        self._stack = ExitStack()
        self._modes = (_Functions(self.waits), _Operators(self))

    @property
    def calls(self) -> int:
        """All operators called."""
        return sum(self.operators.values())

    @property
    def launches(self) -> int:
        """Those that compute or copy something: no views, no memory that is only taken."""
        return self.calls - self._views

    @property
    def synchronisations(self) -> int:
        """All :attr:`waits`."""
        return sum(self.waits.values())

    def __enter__(self) -> CountCalls:
        for mode in self._modes:
            self._stack.enter_context(mode)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()


class _Functions(TorchFunctionMode):
    def __init__(self, waits: Counter[str]) -> None:
        super().__init__()
        self.waits, self.inside = waits, False

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = getattr(function, "__name__", "")
        if name not in _WAITS:
            return function(*args, **(kwargs or {}))
        self.waits[name] += 1
        self.inside = True
        try:
            return function(*args, **(kwargs or {}))
        finally:
            self.inside = False


class _Operators(TorchDispatchMode):
    def __init__(self, found: CountCalls) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found = found

    def __torch_dispatch__(
        self, operator: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        found, name = self.found, operator.overloadpacket.__name__
        found.operators[name] += 1
        if operator.is_view or name in _FREE:
            found._views += 1
        output = operator(*args, **(kwargs or {}))
        waits = name in _WAITING or _leaves_the_device(name, args, output) or _is_by_mask(name, args)
        if waits and not found._modes[0].inside:
            found.waits[name] += 1
        return output


def _leaves_the_device(name: str, args: tuple[Any, ...], output: Any) -> bool:
    devices = {one.device.type for one in (*args, output) if isinstance(one, torch.Tensor)}
    return name in ("_to_copy", "copy_") and len(devices) > 1 and "cpu" in devices


def _is_by_mask(name: str, args: tuple[Any, ...]) -> bool:
    """Whether it takes elements by a mask, whose number is to be found out first."""
    chosen = args[1] if name in ("index", "index_put", "index_put_", "_index_put_impl_") else ()
    return any(one is not None and one.dtype in (torch.bool, torch.uint8) for one in chosen)
