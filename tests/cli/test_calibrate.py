"""Calibrations: what is measured, whose they are, where they are found, and the budgets that follow."""

import json
from dataclasses import replace
from itertools import chain
from pathlib import Path

import pytest
import torch

from squeezeattention import Calibration, SqueezeCache, calibrate
from squeezeattention.allocators import Calibrated, Probe, name_or_plan
from squeezeattention.calibration import find, keep
from squeezeattention.errors import ConfigError, InputError, PlanError
from squeezeattention.signals import Replay
from squeezeattention.testing import teacher_forced, tiny_model

from ..naive_replay import naive


def text(length, seed=0):
    return torch.randint(3, 101, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


@pytest.fixture
def home(tmp_path, monkeypatch):
    """The user's cache."""
    monkeypatch.setenv("SQUEEZE_CACHE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture(scope="module")
def model():
    return tiny_model("llama")


@pytest.fixture(scope="module")
def calibration(model):
    return calibrate(model, None, [text(150)])


def test_whole_texts_in_parts(model):
    """Weighted by length; what is too short to be replayed is left out."""
    texts = [text(230, 1), text(20, 2), text(72, 3)]
    found = calibrate(model, None, texts, length=100)
    parts = [texts[0][:100], texts[0][100:200], texts[2]]
    assert (found.texts, found.tokens) == (3, sum(map(len, parts)))
    want = [naive("llama", part, Replay(pieces=(len(part) - 8) // 32)) for part in parts]
    for layer, heads in enumerate(found.needs):
        for head, need in enumerate(heads):
            mean = sum(len(part) * one[layer][head] for part, one in zip(parts, want, strict=True)) / found.tokens
            assert need == pytest.approx(mean, abs=0.02)


def test_saved_loaded_and_used_at_any_budget(model, calibration, tmp_path):
    path = tmp_path / "calibration.json"
    calibration.save(path)
    assert Calibration.load(path) == calibration
    row = text(200, 5)
    for budget in (40, 0.3, 0.6, "20KiB"):
        cache = SqueezeCache(model, budget=budget, allocator=name_or_plan(str(path)))
        teacher_forced(model, cache, [row])
        values = [[1 - need for need in layer] for layer in calibration.needs]
        shares = Probe().allocate_heads(values, len(values)).heads
        plan = cache.plan
        assert plan.allocator == "calibrated"
        assert cache.head_lengths() == [list(plan.heads(layer, 2)) for layer in range(4)]
        flat = sorted(zip(chain(*shares), chain(*cache.head_lengths()), strict=True))
        assert [tokens for _, tokens in flat] == sorted(tokens for _, tokens in flat)


def test_budgets_are_known_before_the_prompt_is_read(model, calibration):
    """So layers are cut while it is, and less is held at peak than with the probe."""
    peaks = []
    for allocator in (Calibrated(calibration=calibration), "probe"):
        cache = SqueezeCache(model, budget=40, policy="h2o", allocator=allocator)
        with torch.no_grad(), cache.prefilling(400):
            model(torch.tensor([text(400, 6)]), past_key_values=cache)
        peaks.append(cache.memory().peak_bytes)
    assert peaks[0] < 0.6 * peaks[1]


def test_found_beside_the_model_in_the_users_cache_or_not_at_all(model, calibration, home, tmp_path):
    with pytest.raises(PlanError, match="squeeze calibrate"):
        SqueezeCache(model, allocator="calibrated")
    path = keep(calibration)
    assert home in path.parents
    assert find(model) == calibration
    assert SqueezeCache(model, allocator="calibrated").allocator.calibration == calibration
    told = Calibrated(floor=20, power=2.0, heads="equal")
    assert SqueezeCache(model, allocator=told).allocator == replace(told, calibration=calibration)
    folder = tmp_path / "folder"
    model.save_pretrained(folder)
    other = Calibration(calibration.model, calibration.weights, ((0.5, 0.25),) * 4, 1, 100)
    other.save(folder / "squeeze_calibration.json")
    again = type(model).from_pretrained(folder)
    assert find(again) == other
    half = type(model).from_pretrained(folder, dtype=torch.bfloat16)
    assert find(half) == other, "the same weights in another precision"


def test_never_another_models(model, calibration, home, tmp_path):
    keep(calibration)
    stranger = tiny_model("llama", seed=9)
    with pytest.raises(PlanError, match="no calibration of this model"):
        find(stranger)
    with pytest.raises(PlanError, match="the weights differ"):
        SqueezeCache(stranger, allocator=Calibrated(calibration=calibration))
    with pytest.raises(PlanError, match="is of a model 'llama-4x2x8'"):
        SqueezeCache(tiny_model("gpt2"), allocator=Calibrated(calibration=calibration))
    calibration.save(tmp_path / "squeeze_calibration.json")
    stranger.config._name_or_path = str(tmp_path)
    with pytest.raises(PlanError, match="the weights differ"):
        find(stranger)


def test_what_cannot_be_measured(model):
    with pytest.raises(InputError, match="no text has 40 tokens"):
        calibrate(model, None, [text(39)])
    with pytest.raises(InputError, match="no text has 40 tokens"):
        calibrate(model, None, [])
    with pytest.raises(ConfigError, match="length must be"):
        calibrate(model, None, [text(99)], length=12)
    with pytest.raises(ConfigError, match="a list of texts"):
        calibrate(model, None, "text")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda data: data.pop("needs"), "no whole calibration"),
        (lambda data: data.update(needs=[[2.0]]), "from 0 to 1"),
        (lambda data: data.update(needs=[]), "from 0 to 1"),
        (lambda data: data.update(needs="all"), "no whole calibration"),
        (lambda data: data.update(version=2), "version 2"),
        (lambda data: data.update(format="plan"), "no calibration"),
    ],
)
def test_damaged_files(calibration, tmp_path, change, words):
    path = tmp_path / "calibration.json"
    calibration.save(path)
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))
    with pytest.raises(PlanError, match=words):
        Calibration.load(path)


def test_on_the_command_line(squeeze, tmp_path: Path, home: Path):
    story = tmp_path / "story.txt"
    story.write_text("The code of the red house is 4417. A dog ran by. The code of the blue house is 9023. " * 12)
    saved = tmp_path / "mine.json"
    result = squeeze("calibrate", "embedded", "-f", story, "-o", saved)
    assert result.exit_code == 0, result.stderr
    assert "KV heads have half of all need" in result.stdout
    needs = Calibration.load(saved).needs
    assert max(range(8), key=lambda layer: max(needs[layer])) == 1
    result = squeeze("calibrate", "embedded", "-f", story, "--json")
    kept = Path(json.loads(result.stdout)["output"])
    assert home in kept.parents
    for allocator in (saved, "calibrated"):
        result = squeeze("generate", "embedded", "-f", story, "-n", 3, "--allocator", allocator, "--json")
        assert result.exit_code == 0, result.stderr
        assert json.loads(result.stdout)["plan"]["allocator"] == "calibrated"
    result = squeeze("calibrate", "embedded", "-p", "too short")
    assert result.exit_code == 2
    assert "40 tokens" in result.stderr
