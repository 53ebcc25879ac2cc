"""Two grids to start from."""

from __future__ import annotations

from ..defaults import DEFAULT_ALLOCATOR, DEFAULT_POLICY
from ..embedded import NAME as EMBEDDED
from .grid import Settings


def standard(model: str) -> Settings:
    """Recall beside tracking, counting and likelihood (needles alone flatter), and every control."""
    return Settings(
        model=model,
        tasks=("recall", "niah_multikey_2", "vt", "cwe", "fwe", "track", "code"),
        lengths=(1024,),
        samples=20,
        policies=("h2o", "snapkv", "echo"),
        allocators=("uniform", "squeeze", "probe", "adakv", "global", "pyramid", "random", "inverted"),
        budgets=("0.1", "0.2", "0.4"),
    )


def quick(model: str) -> Settings:
    """Minutes on two cores, for what the model can do; too few contexts to tell small differences."""
    ways = ("h2o/uniform", "h2o/squeeze", f"{DEFAULT_POLICY}/{DEFAULT_ALLOCATOR}")
    if model == EMBEDDED:
        return Settings(
            model, ("recall", "code"), lengths=(512,), samples=5, policies=ways, budgets=("0.15", "0.3", "0.5")
        )
    return Settings(
        model, ("facts", "text_file:following=100"), lengths=(1024,), samples=4, policies=ways,
        budgets=("0.2", "0.3", "0.5"),
    )  # fmt: skip
