"""The interface also carries signals that look at the attention itself, in chunks and with padding."""

import pytest
import torch

from squeezeattention import SqueezeCache
from squeezeattention.signals import SIGNALS, AttentionSample, Signal
from squeezeattention.testing import left_padded, position_ids, teacher_forced, tiny_model

NEAR = 8


class FarMass(Signal):
    """Share of attention outside the newest ``NEAR`` tokens, negated: a layer that reads far matters more."""

    name = "far_mass"
    wants_attention = True

    def start(self, n_layers: int) -> None:
        self.sums = [0.0] * n_layers
        self.counts = [0] * n_layers

    def see_attention(self, layer: int, sample: AttentionSample) -> None:
        rows = torch.arange(sample.queries.shape[2])
        probabilities, lse = sample.probabilities(rows)
        far = sample.key_positions[..., None, :] <= sample.query_positions[:, None, :, None] - NEAR
        real = (sample.query_positions >= 0).expand(len(probabilities), -1)
        mass = (probabilities * far).sum(-1).mean(1)
        assert torch.isfinite(lse.mean(1)[real]).all()
        self.sums[layer] += float(mass[real].sum())
        self.counts[layer] += int(real.sum())

    def values(self) -> list[float]:
        return [-total / count for total, count in zip(self.sums, self.counts, strict=True)]


@pytest.fixture
def far_mass():
    SIGNALS.register("far_mass", FarMass)
    yield
    SIGNALS.unregister("far_mass")


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt-oss"])
def test_far_mass_equals_the_models_own_attention(far_mass, family):
    model = tiny_model(family)
    rows = [list(range(3, 3 + n)) for n in (41, 29)]
    ids, mask = left_padded(rows)
    eager = tiny_model(family)
    eager.set_attn_implementation("eager")
    with torch.no_grad():
        weights = eager(
            input_ids=ids, attention_mask=mask, position_ids=position_ids(mask), output_attentions=True
        ).attentions
    position = torch.arange(ids.shape[1])
    far = position[None, :] <= position[:, None] - NEAR
    want = [-(w * far).sum(-1).mean(1)[mask.bool()].mean().item() for w in weights]
    for chunk in (None, 13):
        cache = SqueezeCache(model, budget=0.5, signal="far_mass", policy="streaming_llm")
        teacher_forced(model, cache, rows, chunk=chunk)
        assert all(plan.signal == "far_mass" for plan in cache.plans)  # one list of numbers speaks for all rows
        assert cache.plans[1].signal_values == pytest.approx(want, abs=1e-5)
