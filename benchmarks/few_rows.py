"""How fast a few rows pass through weights: the matrix library against sums of rows that the compiler makes a loop of.

``python benchmarks/few_rows.py --threads 1``: fp32 matrices of 40 to 60 MiB together, more than a processor's caches
hold, medians of seven passes; GB/s of weights read, beside what plain reading reaches. It is where ``MOST_ROWS`` in
``squeezeattention/hf/rows.py`` comes from.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch.nn import functional as F

from squeezeattention.hf.rows import sum_of_rows

SHAPES = ((512, 512), (1408, 512), (512, 1408), (32_000, 512))


def seconds(call: Callable[[], object], rounds: int = 7) -> float:
    call(), call()  # the first ones compile
    found = []
    for _ in range(rounds):
        began = time.perf_counter()
        call()
        found.append(time.perf_counter() - began)
    return statistics.median(found)


def passes(product: Callable[..., torch.Tensor], x: torch.Tensor, weights: list[torch.Tensor]) -> float:
    torch._dynamo.reset()
    run = torch.compile(lambda x, *weights: [product(x, weight) for weight in weights], dynamic=False)
    return seconds(lambda: run(x, *weights))


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 2, 3, 4, 8])
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    big = torch.randn(50_000_000)
    print(f"reading {big.nbytes / seconds(big.sum) / 1e9:.1f} GB/s with {args.threads} thread(s)")
    for rows in args.rows:
        for shape in SHAPES:
            weights = [torch.randn(shape) for _ in range(max(1, 12_000_000 // (shape[0] * shape[1])))]
            size, x = sum(weight.nbytes for weight in weights), torch.randn(rows, 1, shape[1])
            library, loop = passes(F.linear, x, weights), passes(sum_of_rows, x, weights)
            print(f"{rows} rows, {shape[0]} x {shape[1]}: library {size / library / 1e9:.1f} GB/s, "
                  f"loop {size / loop / 1e9:.1f} GB/s, {library / loop:.2f}x", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
