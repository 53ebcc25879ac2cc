"""After Ctrl-C in the middle of a forward, models are as they were: those with an encoder of images, too."""

import pytest
import torch

from squeezeattention import SqueezeCache
from squeezeattention.errors import CacheStateError

from ..exact.test_image_positions import prompt, vision_model


def interrupted(model, cache, **given):
    """A forward that ends in its second layer."""

    def stop(*args):
        raise KeyboardInterrupt

    handle = model.model.language_model.layers[1].register_forward_pre_hook(stop)
    with torch.no_grad(), pytest.raises(KeyboardInterrupt):
        model(**given, past_key_values=cache, use_cache=True)
    handle.remove()


@pytest.mark.parametrize("when", ["prompt", "step"])
@pytest.mark.parametrize("another", [False, True])
def test_images_are_read_as_before(when, another):
    model, other = vision_model(), vision_model()
    with torch.no_grad():
        want = model(**prompt()).logits
        cache = SqueezeCache(model, 400)
        if when == "step":
            model(**prompt(), past_key_values=cache, use_cache=True)
            cache.compact()
        interrupted(model, cache, **({"input_ids": torch.tensor([[7]])} if when == "step" else prompt()))
        reading = other if another else model
        ours = SqueezeCache(reading, 400)
        for given in ({}, {"past_key_values": ours, "use_cache": True}):
            torch.testing.assert_close(reading(**prompt(), **given).logits, want, atol=1e-5, rtol=0)
        with pytest.raises(CacheStateError, match="failed half way"):
            model(input_ids=torch.tensor([[7]]), past_key_values=cache)
