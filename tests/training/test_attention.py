"""Attention in blocks gives what torch's own gives, and the same gradients."""

import pytest
import torch
from torch.nn import functional as F


@torch.enable_grad()  # whatever ran before
@pytest.mark.parametrize("length", [1, 127, 128, 300])
def test_values_and_gradients_equal_those_of_torch(length):
    from attention import blocked

    torch.manual_seed(length)
    shapes = {"query": (2, 4, length, 8), "key": (2, 2, length, 8), "value": (2, 2, length, 8)}
    given = {name: torch.randn(shape, dtype=torch.float64, requires_grad=True) for name, shape in shapes.items()}
    own, _ = blocked(torch.nn.Module(), **given, attention_mask=None, scaling=0.3)
    theirs = F.scaled_dot_product_attention(*given.values(), is_causal=True, scale=0.3, enable_gqa=True)
    assert torch.allclose(own.transpose(1, 2), theirs)
    direction = torch.randn_like(own)
    mine = torch.autograd.grad((own * direction).sum(), list(given.values()))
    right = torch.autograd.grad((theirs.transpose(1, 2) * direction).sum(), list(given.values()))
    for a, b in zip(mine, right, strict=True):
        assert torch.allclose(a, b)
