"""Products of a weight matrix with few rows, as loops that read the weights at the memory's speed.

A decode step reads every weight once, so a product should take as long as reading does. Matrix libraries block for many
rows: on one row they come to less than half of the memory's speed. Written as a sum over the rows of the weights,
``out[m, n] = sum_k x[m, k] * w[n, k]``, the compiler makes one vectorised pass of it.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch._dynamo import lookup_backend
from torch.nn import functional as F

#: From four rows on a matrix library is as fast (two cores, fp32; benchmarks/few_rows.py).
MOST_ROWS = 3


def few_rows_backend(graph: torch.fx.GraphModule, example_inputs: list[torch.Tensor]) -> Any:
    """Inductor, for a decode step on the CPU: see the module's docstring."""
    for node in graph.graph.nodes:
        if node.op == "call_function" and node.target is F.linear and is_few_rows(*map(_example, node.args[:2])):
            node.target = sum_of_rows
    graph.recompile()
    return lookup_backend("inductor")(graph, example_inputs)


def _example(node: Any) -> object:
    return node.meta.get("example_value") if isinstance(node, torch.fx.Node) else None


def is_few_rows(x: object, weight: object) -> bool:
    """Whether ``F.linear(x, weight)`` is such a product, on the CPU."""
    if not isinstance(x, torch.Tensor) or not isinstance(weight, torch.Tensor):
        return False
    rows = x.shape[:-1]
    # Weights that lie another way round are read across by such a loop.
    known = all(isinstance(count, int) for count in rows) and x.device.type == "cpu" and weight.is_contiguous()
    return known and x.dtype == weight.dtype and x.is_floating_point() and math.prod(rows) <= MOST_ROWS


def sum_of_rows(input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    wide = torch.promote_types(input.dtype, torch.float32)  # half precision adds up in fp32, as in a library
    out = (input.unsqueeze(-2).to(wide) * weight.to(wide)).sum(-1)
    return (out if bias is None else out + bias).to(input.dtype)
