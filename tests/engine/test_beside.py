"""One pair of positions and scores for layers whose pages lie in the same memory."""

import gc

import torch

from squeezeattention.engine.beside import Beside


def test_layers_of_one_pool_share():
    pool = torch.zeros(6, 2, 4, 8)
    one, other = Beside.of(pool.view(pool.shape), scores=True), Beside.of(pool, scores=True)
    assert one is other
    assert one.bytes() == 12 * 6 * 2 * 4
    assert Beside.of(torch.zeros_like(pool), scores=True) is not one
    plain = Beside.of(pool, scores=False)
    assert (plain.scores, plain.bytes()) == (None, 8 * 48)


def test_it_goes_with_its_layers():
    pool = torch.zeros(6, 2, 4, 8)
    Beside.of(pool, scores=True).positions.fill_(5)
    gc.collect()
    assert (Beside.of(pool, scores=True).positions == -1).all()
