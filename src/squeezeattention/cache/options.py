"""The arguments of a SqueezeCache, checked one by one."""

from __future__ import annotations

import importlib

from ..allocators import Allocator, Fixed
from ..device import execution_device
from ..errors import ConfigError
from ..hf import compat
from ..hf.layout import Layout, widest_head
from ..kernels.choosing import Kernels, choose
from ..policies import EvictionPolicy, StreamingLLM, resolve_policy
from ..signals import Signal

#: Ways to read a prompt.
PREFILLS = ("exact", "bounded")


def policy_with(policy: str | EvictionPolicy, *, positions: str | None, sinks: int | None) -> EvictionPolicy:
    """The policy by name or as it is; ``positions`` and ``sinks`` are StreamingLLM's."""
    options = {name: value for name, value in (("positions", positions), ("sinks", sinks)) if value is not None}
    if options and policy != "streaming_llm" and isinstance(policy, str):
        if positions == "original" and sinks is None:
            options = {}  # the only thing the other policies can do
        else:
            raise ConfigError(f"{', '.join(options)} is an option of policy 'streaming_llm', not of {policy!r}")
    return resolve_policy(policy, **options)


def check_used(allocator: Allocator, *, budget: object, signal: object) -> None:
    """:class:`ConfigError` for arguments that this allocator would pass over in silence."""
    if isinstance(allocator, Fixed) and budget is not None:
        raise ConfigError(
            f"budget={budget!r} has no effect: a plan or a list of tokens fixes every layer's budget; give one of the "
            "two (to bring a plan to another size: squeezeattention.allocators.Scaled(plan))"
        )
    if signal is not None and not allocator.needs_signal:
        raise ConfigError(
            f"signal={signal!r} has no effect: allocator {allocator.name!r} measures nothing; leave it out, or use "
            "another allocator"
        )


def check_has_scores(policy: EvictionPolicy, signal: Signal) -> None:
    """:class:`ConfigError` where budgets are to follow scores that the policy does not have."""
    ranking = next((one for one in signal.parts if one.wants_scores), None)
    if ranking is not None and not (policy.needs_scores or policy.scores_tokens):
        raise ConfigError(
            f"signal {ranking.name!r} ranks all tokens by the policy's scores, and {policy.name!r} has none: use a "
            'policy that scores tokens, such as "echo", "snapkv" or "h2o", or another allocator'
        )


def checked_prefill(prefill: str) -> str:
    if prefill not in PREFILLS:
        raise ConfigError(f"prefill must be one of {', '.join(PREFILLS)}, got {prefill!r}")
    return prefill


def checked_tokens(name: str, count: int) -> int:
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise ConfigError(f"{name} must be a whole number of at least 1 token, got {count!r}")
    return count


def checked_new_tokens(count: int | None) -> int | None:
    if count is not None and (isinstance(count, bool) or not isinstance(count, int) or count < 0):
        raise ConfigError(f"new_tokens must be an integer >= 0 or None, got {count!r}")
    return count


def chosen_kernels(kernels: str, layout: Layout) -> Kernels:
    """Whether the Triton kernels serve this model; raises where they are asked for and cannot."""
    decoder = layout.decoder
    found = choose(kernels, execution_device(decoder), getattr(decoder, "dtype", None), widest_head(layout.config))
    if found.accelerated:  # operators are registered now, not while a step is traced
        importlib.import_module("..kernels.ops", __package__)
    return found


def checked_compile(wanted: bool | str, policy: EvictionPolicy) -> bool | str:
    if not isinstance(wanted, bool) and wanted != "strict":
        raise ConfigError(f'compile must be True, False or "strict", got {wanted!r}')
    if wanted and isinstance(policy, StreamingLLM) and policy.positions == "cache":
        raise ConfigError(f'compile={wanted!r} does not go with positions="cache", which moves the sinks at each step')
    if wanted:
        compat.check_compiles()
    return wanted
