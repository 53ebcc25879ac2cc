"""Muon (Jordan et al., 2024): momentum whose matrix is replaced by the nearest orthogonal one, in fp32.

``torch.optim.Muon`` iterates in bf16, which processors without bf16 arithmetic emulate at a twentieth of the speed; and
matrices of one shape are iterated together here.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch

#: Coefficients of the quintic Newton-Schulz iteration: steepest at zero rather than convergent at one.
_A, _B, _C = 3.4445, -4.7750, 2.0315


class Muon(torch.optim.Optimizer):
    """Matrices only. The step of an [m, n] matrix is scaled to the RMS that AdamW's would have."""

    def __init__(
        self, matrices: Iterable[torch.nn.Parameter], lr: float, momentum: float = 0.95, weight_decay: float = 0.05
    ) -> None:
        super().__init__(matrices, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            shapes: dict[torch.Size, list[torch.nn.Parameter]] = defaultdict(list)
            for matrix in group["params"]:
                if matrix.grad is not None:
                    shapes[matrix.shape].append(matrix)
            for shape, matrices in shapes.items():
                updates = []
                for matrix in matrices:
                    kept = self.state[matrix].setdefault("momentum", torch.zeros_like(matrix))
                    kept.lerp_(matrix.grad, 1 - group["momentum"])
                    updates.append(torch.lerp(matrix.grad, kept, group["momentum"]))
                rate = group["lr"] * 0.2 * max(shape) ** 0.5
                for matrix, update in zip(matrices, orthogonal(torch.stack(updates)), strict=True):
                    matrix.mul_(1 - group["lr"] * group["weight_decay"]).sub_(update, alpha=rate)


def orthogonal(matrices: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """``[K, m, n]``: each matrix with its singular values brought near 1."""
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = _A * x + (_B * gram + _C * gram @ gram) @ x
    return x.mT if tall else x
