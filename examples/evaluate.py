"""An evaluation from Python: two ways to divide the same cache, on the same questions, with bytes that were measured.

``python examples/evaluate.py FOLDER`` (half a minute with the embedded model). A run that was stopped goes on;
``squeeze eval report FOLDER`` draws what is there.
"""

from __future__ import annotations

import sys
from pathlib import Path

from squeezeattention import load_embedded
from squeezeattention.evaluation import Settings, run, write_summary


def main(folder: str) -> None:
    model, tokenizer = load_embedded()
    settings = Settings(
        model="embedded", tasks=("recall",), lengths=(512,), samples=5, policies=("streaming_llm",),
        allocators=("uniform", "probe"), budgets=("0.3",),
    )  # fmt: skip
    run(model, tokenizer, settings, Path(folder), lambda done, total, what: print(f"{done}/{total} {what}"))
    for cell in write_summary(Path(folder))["results"]:
        held = f"{cell['share']:.0%} of the full cache's bytes"
        print(f"{cell['allocator'] or 'full cache':<12} {cell['score']:.0%} right, {held}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "evaluation")
