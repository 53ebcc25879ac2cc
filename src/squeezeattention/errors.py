"""Every error that a user's mistake can cause, under one base class.

A message says what was wrong, what was given and what would do.
"""

from __future__ import annotations


class SqueezeError(Exception):
    """Base class of all errors raised on purpose by this library."""


class ConfigError(SqueezeError, ValueError):
    """An argument has a value that cannot work (budget, p, dtype, combination of options)."""


class UnknownNameError(ConfigError):
    """A policy, allocator, signal or shape name is not registered; the message lists those that are."""


class BudgetError(ConfigError):
    """A budget cannot be understood or is too small for the policy."""


class PlanError(SqueezeError, ValueError):
    """A budget plan is damaged, breaks its own invariants, or belongs to another model."""


class UnsupportedModelError(SqueezeError, TypeError):
    """The model cannot be carried exactly (ALiBi, encoder-decoder, unknown attention arguments, ...)."""


class UnsupportedFeatureError(SqueezeError, NotImplementedError):
    """The model is fine, but what was asked for cannot work on a cache that forgets (crop, ...)."""


class InputError(SqueezeError, ValueError):
    """The prompt cannot be used: empty, an all-padding row, right padding, an unreadable file, ..."""


class CacheStateError(SqueezeError, RuntimeError):
    """The cache is in a state in which the call makes no sense (another model, a failed step, ...)."""


class CacheFileError(SqueezeError, ValueError):
    """A saved cache cannot be written or read: it is damaged, of another model or release, or none at all."""


class EvaluationError(SqueezeError, RuntimeError):
    """A folder of results cannot be used: it is of other settings, damaged, or written by another process."""


class MissingExtraError(SqueezeError, ImportError):
    """An optional dependency is not installed; the message names the extra that brings it."""


class KernelError(SqueezeError, RuntimeError):
    """A Triton kernel could not be compiled or launched; the message names it. ``kernels="torch"`` does without."""


class CompileError(SqueezeError, RuntimeError):
    """Decode steps were to be compiled in any case (``compile="strict"``) and cannot be; the message says why."""


class CompileWarning(UserWarning):
    """Decode steps were to be compiled and are not; the message says why. Results are the same."""


class ConversionWarning(UserWarning):
    """A GGUF file was unpacked, but not kept for the next time, or not all that is in it could be read."""
