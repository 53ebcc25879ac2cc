"""What replaying a prompt says of each KV head, by the stock model alone."""

import copy

import torch
from transformers import DynamicCache

from squeezeattention.testing import tiny_model


def naive(family, row, signal):
    """Need of each layer's KV heads [[...]]: pieces are read one by one, each over a copy of the stock cache."""
    eager = tiny_model(family, attn_implementation="eager")
    cache = DynamicCache()  # plain layers: windows hide, they do not cut
    with torch.no_grad():
        eager(torch.tensor([row]), past_key_values=cache)
    received = [[] for _ in cache.layers]
    room = int(len(row) * signal.until) - signal.lead - signal.length
    for piece in range(signal.pieces):
        start = signal.lead + int(room * (piece + 0.5) / signal.pieces)
        text = row[start - signal.lead : start + signal.length]
        at = torch.arange(len(row), len(row) + len(text))[None]
        with torch.no_grad():
            out = eager(
                torch.tensor([text]), position_ids=at, past_key_values=copy.deepcopy(cache), output_attentions=True
            )
        for layer, weights in enumerate(out.attentions):
            heads = cache.layers[layer].keys.shape[1]
            columns = weights[0][..., start : start + signal.length].unflatten(0, (heads, -1))
            received[layer].append(columns.amax((1, 2)))
    received = [torch.cat(parts, dim=-1) for parts in received]  # [H, k * c]
    every = torch.cat([found.flatten() for found in received])
    threshold = every.sort().values[max(1, int((1 - signal.share) * len(every))) - 1]
    return [
        ((found > threshold).double().mean(-1) * 0.999 + found.double().mean(-1) * 0.001).tolist() for found in received
    ]
