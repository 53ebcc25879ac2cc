"""Two grids to start from."""

from __future__ import annotations

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
    """What the embedded model can do, in minutes on two cores; too few contexts to tell small differences."""
    return Settings(
        model=model,
        tasks=("recall", "code"),
        lengths=(512,),
        samples=5,
        policies=("h2o", "echo"),
        allocators=("uniform", "squeeze", "global"),
        budgets=("0.15", "0.3", "0.5"),
    )
